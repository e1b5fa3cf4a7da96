package codec

import (
	"bytes"
	"compress/zlib"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"

	"vmkit/formats/ondisk"
)

// mul multiplies as the definition says: shift, add, take the polynomial away.
func mul(a, b byte) (p byte) {
	for ; b > 0; b >>= 1 {
		if b&1 != 0 {
			p ^= a
		}
		carry := a&0x80 != 0
		if a <<= 1; carry {
			a ^= 0x1d
		}
	}
	return p
}

// TestRAID6 loses every two members of stripes that are made by the definition of P and Q.
func TestRAID6(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 2))
	for _, n := range []int{1, 2, 3, 7, MaxRAID6} {
		data, p, q := make([][]byte, n), make([]byte, 512), make([]byte, 512)
		power := byte(1)
		for i := range data {
			data[i] = make([]byte, 512)
			for j := range data[i] {
				data[i][j] = byte(r.Uint32())
				p[j] ^= data[i][j]
				q[j] ^= mul(power, data[i][j])
			}
			power = mul(power, 2)
		}
		of := func(i int) []byte {
			switch i {
			case RAID6P:
				return p
			case RAID6Q:
				return q
			}
			return data[i]
		}
		for lost := range n {
			for other := RAID6P; other < n; other++ {
				if other == lost || n > 7 && (lost%50 != 4 || other%50 > 4) {
					continue
				}
				s := Spec{Codec: RAID6, Full: 512}
				var parts [][]byte
				for i := RAID6Q; i < n; i++ {
					if i != lost && i != other {
						s.Factors, parts = append(s.Factors, RAID6Factor(lost, other, i)), append(parts, of(i))
					}
				}
				got := make([]byte, 512)
				if err := Decode(got, s, nil, parts...); err != nil || !bytes.Equal(got, data[lost]) {
					t.Errorf("%d data members, %d and %d lost: %v", n, lost, other, err)
				}
			}
		}
	}
	for _, s := range []Spec{{Factors: []byte{1}}, {Factors: []byte{1, 2, 3}}, {}} {
		s.Codec, s.Full = RAID6, 4
		if err := Decode(make([]byte, 4), s, nil, make([]byte, 4), make([]byte, 4)); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("factors %v for two parts: %v", s.Factors, err)
		}
	}
	if err := Decode(make([]byte, 4), Spec{Codec: RAID6, Full: 4, Factors: []byte{1, 2}}, nil, make([]byte, 4), make([]byte, 5)); !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("parts of unequal length: %v", err)
	}
}

// TestPad decodes what ends before Full: an error, or with Pad zeros.
func TestPad(t *testing.T) {
	plain := bytes.Repeat([]byte("pad "), 300)
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	w.Write(plain)
	w.Close()
	e, err := zstd.NewWriter(nil, zstd.WithSingleSegment(true))
	if err != nil {
		t.Fatal(err)
	}
	// A segment of one literal run of four bytes, and the end.
	lzo := append([]byte{4 + 4 + 8, 0, 0, 0, 8, 0, 0, 0, 21}, "pad \x11\x00\x00"...)
	for codec, in := range map[string][]byte{Zlib: z.Bytes(), Zstd: e.EncodeAll(plain, nil), LZOBtrfs: lzo} {
		want := plain
		if codec == LZOBtrfs {
			want = plain[:4]
		}
		in = append(in, make([]byte, 100)...) // a sector's rest
		got := bytes.Repeat([]byte{1}, 2000)
		if err := Decode(got, Spec{Codec: codec, Full: 2000}, nil, in); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("%s, without: %v", codec, err)
		}
		if err := Decode(got, Spec{Codec: codec, Full: 2000, Pad: true}, nil, in); err != nil || !bytes.Equal(got, append(bytes.Clone(want), make([]byte, 2000-len(want))...)) {
			t.Errorf("%s: %v", codec, err)
		}
		if codec == Zlib {
			in = in[:z.Len()-6]
		} else {
			in = in[:12]
		}
		if err := Decode(got, Spec{Codec: codec, Full: 2000, Pad: true}, nil, in); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("%s, cut off: %v", codec, err)
		}
	}
}

func BenchmarkRAID6(b *testing.B) {
	s := Spec{Codec: RAID6, Full: 64 << 10, Factors: []byte{7, 29, 142}}
	in, out := make([]byte, s.Full), make([]byte, s.Full)
	b.SetBytes(s.Full)
	for b.Loop() {
		if err := Decode(out, s, nil, in, in, in); err != nil {
			b.Fatal(err)
		}
	}
}
