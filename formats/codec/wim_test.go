package codec

import (
	"crypto/sha1"
	"encoding/binary"
	"os"
	"testing"

	"vmkit/fixtures"
)

// TestWIM decodes the resources of WIM files that wimlib wrote, whose chunks are those of WOF files, and compares them
// with the SHA-1 that the WIM states.
func TestWIM(t *testing.T) {
	le := binary.LittleEndian
	for file, codec := range map[string]string{"xpress-4096": Xpress4K, "xpress-8192": Xpress8K, "xpress-16384": Xpress16, "lzx-32768": LZX32K} {
		t.Run(file, func(t *testing.T) {
			b, err := os.ReadFile(fixtures.Image(t, "wim", file+".wim.zst"))
			if err != nil {
				t.Fatal(err)
			}
			chunk := int(le.Uint32(b[20:]))
			resource := func(h []byte) (data []byte, packed bool, size int) {
				n := int(le.Uint64(h) & (1<<56 - 1))
				off := int(le.Uint64(h[8:]))
				return b[off : off+n], h[7]&4 != 0, int(le.Uint64(h[16:]))
			}
			table, _, _ := resource(b[48:])
			decoded := 0
			for ; len(table) >= 50; table = table[50:] {
				data, packed, size := resource(table)
				out := make([]byte, size)
				if !packed {
					copy(out, data)
				} else {
					chunks := (size + chunk - 1) / chunk
					body := data[4*(chunks-1):]
					for i, at := 0, 0; i < chunks; i++ {
						end := len(body)
						if i < chunks-1 {
							end = int(le.Uint32(data[4*i:]))
						}
						dst := out[i*chunk : min(size, (i+1)*chunk)]
						if end-at == len(dst) {
							copy(dst, body[at:end])
						} else if err := Decode(dst, Spec{Codec: codec, Full: int64(len(dst))}, nil, body[at:end]); err != nil {
							t.Fatalf("chunk %d of %d: %v", i, chunks, err)
						} else {
							decoded++
						}
						at = end
					}
				}
				if sum := sha1.Sum(out); string(sum[:]) != string(table[30:50]) {
					t.Errorf("resource of %d bytes: content differs", size)
				}
			}
			if decoded < 5 {
				t.Errorf("only %d chunks were decoded", decoded)
			}
		})
	}
}

// FuzzDecode gives every decoder hostile input: it may fail, and must not panic or write past its output.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{"", "\x00", "\xff\xff\xff\xff", "\x05\xb0\x00abcdef\x00"} {
		f.Add([]byte(s), uint16(4096))
	}
	f.Fuzz(func(t *testing.T, in []byte, size uint16) {
		for name, d := range decoders {
			if n, err := d(make([]byte, int(size)), in); n < 0 || n > int(size) {
				t.Errorf("%s: %d bytes of %d (%v)", name, n, size, err)
			}
		}
	})
}
