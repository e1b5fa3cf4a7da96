package dos

import (
	"bytes"
	"encoding/binary"
	"testing"
	"time"

	"pgregory.net/rapid"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

func TestTime(t *testing.T) {
	for _, test := range []struct {
		date, clock uint16
		cent        uint8
		want        string // or empty: not known
	}{
		{1<<5 | 1, 0, 0, "1980-01-01T00:00:00Z"},
		{127<<9 | 12<<5 | 31, 23<<11 | 59<<5 | 29, 199, "2107-12-31T23:59:59.99Z"},
		{20<<9 | 2<<5 | 29, 12 << 11, 100, "2000-02-29T12:00:01Z"},
		{0, 0, 0, ""},
		{21<<9 | 2<<5 | 29, 0, 0, ""},
		{13<<5 | 1, 0, 0, ""},
		{1 << 5, 0, 0, ""},
		{1<<5 | 1, 24 << 11, 0, ""},
		{1<<5 | 1, 60 << 5, 0, ""},
		{1<<5 | 1, 30, 0, ""},
		{1<<5 | 1, 0, 200, ""},
	} {
		got := ""
		if m := Time(test.date, test.clock, test.cent); m.Known {
			got = time.Unix(m.Sec, int64(m.Nsec)).UTC().Format(time.RFC3339Nano)
		}
		if got != test.want {
			t.Errorf("%#x %#x %d: %q, should be %q", test.date, test.clock, test.cent, got, test.want)
		}
	}
}

// heap makes a volume of the given table entries: 512 bytes, the table, then clusters of 512 bytes.
func heap(bits int, entries []uint32) *Heap {
	b := make([]byte, 512+len(entries)*4+8+len(entries)*512)
	h := &Heap{Table: 512, Bits: bits, Data: 512 + int64(len(entries))*4 + 8, Shift: 9, Last: uint32(len(entries)) - 1}
	for n, v := range entries {
		p := b[h.EntryPos(h.Table, uint32(n)):]
		switch {
		case bits == 12 && n%2 == 1:
			binary.LittleEndian.PutUint16(p, binary.LittleEndian.Uint16(p)&0xF|uint16(v)<<4)
		case bits == 12:
			binary.LittleEndian.PutUint16(p, binary.LittleEndian.Uint16(p)&0xF000|uint16(v)&0xFFF)
		case bits == 16:
			binary.LittleEndian.PutUint16(p, uint16(v))
		default:
			binary.LittleEndian.PutUint32(p, v)
		}
	}
	h.Meta = ondisk.NewCache(bytes.NewReader(b), int64(len(b)), 64, 1<<20) // small pages: entries lie in two
	return h
}

// TestChain compares Chain with the plainest way to follow a chain, on random tables with ends, gaps and loops.
func TestChain(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.SampledFrom([]int{12, 16, 28, 32}).Draw(t, "bits")
		n := rapid.IntRange(3, 60).Draw(t, "entries")
		entries := make([]uint32, n)
		for i := range entries {
			switch rapid.IntRange(0, 9).Draw(t, "kind") {
			case 0:
				entries[i] = uint32(1)<<bits - 1
			case 1:
				entries[i] = rapid.Uint32().Draw(t, "value")
			case 2, 3:
				entries[i] = uint32(rapid.IntRange(2, n-1).Draw(t, "jump"))
			default:
				entries[i] = uint32(i + 1)
			}
			entries[i] &= uint32(1)<<bits - 1
		}
		h := heap(bits, entries)
		start := uint32(rapid.IntRange(0, n).Draw(t, "start"))
		size := int64(rapid.IntRange(0, (n+3)*512).Draw(t, "size"))
		valid := int64(rapid.IntRange(0, (n+3)*512).Draw(t, "valid"))

		var want []int64 // positions of the file's clusters
		seen := map[uint32]bool{}
		for c := start; int64(len(want))*512 < size && h.Valid(c) && !seen[c]; c = entries[c] {
			seen[c] = true
			want = append(want, h.Pos(c))
		}
		whole := int64(len(want))*512 >= size

		var r fsmap.Runs
		r.Reset(size)
		err := h.Chain(start, valid, &r)
		if (err == nil) != whole {
			t.Fatalf("error %v, whole %v", err, whole)
		}
		at := int64(0)
		for _, x := range r.List {
			if x.At != at || x.Len <= 0 {
				t.Fatalf("run %+v at %d", x, at)
			}
			for end := at + x.Len; at < end; at++ {
				i := at / 512
				switch {
				case i >= int64(len(want)):
					if x.Kind != mapfile.Missing {
						t.Fatalf("byte %d is %v, should be missing", at, x.Kind)
					}
				case x.Kind == mapfile.Data != (at < valid), x.Kind == mapfile.Unwritten != (at >= valid):
					t.Fatalf("byte %d is %v, %d bytes are valid", at, x.Kind, valid)
				case x.Off+at-x.At != want[i]+at%512:
					t.Fatalf("byte %d lies at %d, should at %d", at, x.Off+at-x.At, want[i]+at%512)
				}
			}
		}
		if at != size {
			t.Fatalf("runs of %d bytes, the file has %d", at, size)
		}
	})
}

// TestLongLoop follows a file of 2⁶² bytes that is a loop of two clusters.
func TestLongLoop(t *testing.T) {
	h := heap(28, []uint32{0, 0, 3, 2})
	var r fsmap.Runs
	r.Reset(1 << 62)
	if err := h.Chain(2, 1<<62, &r); err == nil || len(r.List) != 2 || r.List[0].Len != 1024 {
		t.Errorf("error %v, runs %v", err, r.List)
	}
}

func TestBitmapFirst(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := NewBitmap(300)
		for _, n := range rapid.SliceOfN(rapid.Uint32Range(0, 300), 0, 4).Draw(t, "set") {
			b.Set(n)
		}
		from, count := rapid.Uint32Range(0, 310).Draw(t, "from"), rapid.Uint32Range(0, 400).Draw(t, "count")
		want, ok := uint32(0), false
		for n := from; n < from+count && !ok; n++ {
			if b.Has(n) {
				want, ok = n, true
			}
		}
		if got, found := b.First(from, count); got != want || found != ok {
			t.Fatalf("%d, %v; should be %d, %v", got, found, want, ok)
		}
	})
}
