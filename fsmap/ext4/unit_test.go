package ext4

import (
	"bytes"
	"io"
	"testing"

	"pgregory.net/rapid"

	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// The hashes are those that debugfs's dx_hash (e2fsprogs 1.47.0) gives with the seed; legacy takes none.
func TestDirHash(t *testing.T) {
	seed := [4]uint32{0x98badcfe, 0x10325476, 0xefcdab89, 0x67452301}
	long := "a-name-that-is-longer-than-thirty-two-bytes-äöü"
	for _, c := range []struct {
		version     uint8
		name        string
		hash, minor uint32
	}{
		{0, "x", 0xb26f0bdc, 0x0},
		{0, "hello", 0x32252546, 0x0},
		{0, long, 0xf5316a0e, 0x0},
		{1, "x", 0x880e6c0c, 0x6f6ce36c},
		{1, "hello", 0x8c49e172, 0x85ce9408},
		{1, long, 0xd4649516, 0x9ba05f6},
		{2, "x", 0x2c77b270, 0xbb3dad01},
		{2, "hello", 0xf11a04a, 0xada95b24},
		{2, long, 0xca64076c, 0xca9fc2cd},
		{3, "x", 0xb26f0bdc, 0x0},
		{3, "hello", 0x32252546, 0x0},
		{3, long, 0x2a8f20e, 0x0},
		{4, "x", 0x880e6c0c, 0x6f6ce36c},
		{4, "hello", 0x8c49e172, 0x85ce9408},
		{4, long, 0xcd837d0a, 0xa48d838c},
		{5, "x", 0x2c77b270, 0xbb3dad01},
		{5, "hello", 0xf11a04a, 0xada95b24},
		{5, long, 0xaf2a5a9e, 0xc02b6c9d},
	} {
		if hash, minor := dirHash(c.version, seed, []byte(c.name)); hash != c.hash || minor != c.minor {
			t.Errorf("version %d of %q: %#x %#x, should be %#x %#x", c.version, c.name, hash, minor, c.hash, c.minor)
		}
	}
	if hash, minor := dirHash(hashNone, seed, []byte("x")); hash != 0 || minor != 0 {
		t.Error("no hash is not zero")
	}
}

// TestPaint lays stretches over one another and looks at each block.
func TestPaint(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) extent {
			return extent{at: rapid.Uint64Range(0, 60).Draw(t, "at"), n: rapid.Uint64Range(0, 20).Draw(t, "n"), block: rapid.Uint64Range(1000, 9000).Draw(t, "block"),
				kind: rapid.SampledFrom([]mapfile.Kind{mapfile.Data, mapfile.Unwritten, mapfile.Hole}).Draw(t, "kind")}
		}), 0, 12).Draw(t, "list")
		type block struct {
			no   uint64
			kind mapfile.Kind
		}
		var want, got [80]block
		for _, x := range list {
			for i := range x.n {
				want[x.at+i] = block{x.block + i, x.kind}
			}
		}
		last := uint64(0)
		for _, x := range paint(list) {
			if x.n == 0 || x.at < last {
				t.Fatalf("%+v behind %d", x, last)
			}
			last = x.at + x.n
			for i := range x.n {
				got[x.at+i] = block{x.block + i, x.kind}
			}
		}
		if got != want {
			t.Fatalf("painted %v, should be %v", got, want)
		}
	})
}

// TestOverlay reads through an overlay, and by the places that it gives: both are the same bytes.
func TestOverlay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const shift, blocks = 4, 16
		disk := rapid.SliceOfN(rapid.Byte(), 2*blocks<<shift, 2*blocks<<shift).Draw(t, "disk")
		o := &overlay{r: bytes.NewReader(disk), shift: shift}
		for b := range uint64(blocks) {
			if rapid.Bool().Draw(t, "moved") {
				o.blocks = append(o.blocks, moved{b, int64(blocks+rapid.IntRange(0, blocks-1).Draw(t, "to")) << shift, rapid.Bool().Draw(t, "escaped")})
			}
		}
		off := rapid.Int64Range(0, blocks<<shift-1).Draw(t, "off")
		n := rapid.Int64Range(1, blocks<<shift-off).Draw(t, "n")
		want := make([]byte, n)
		if k, err := o.ReadAt(want, off); int64(k) != n || err != nil && err != io.EOF {
			t.Fatal(k, err)
		}
		var r fsmap.Runs
		r.Reset(n)
		o.place(0, n, off, func(x fsmap.Run) {
			if err := r.Append(x); err != nil {
				t.Fatal(err)
			}
		})
		var got []byte
		for _, x := range r.List {
			if x.Kind == mapfile.Inline {
				got = append(got, x.Bytes...)
			} else {
				got = append(got, disk[x.Off:x.Off+x.Len]...)
			}
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("at %d: %x, should be %x", off, got, want)
		}
	})
}

// TestHoldsSuper compares with the groups that mke2fs lists (dumpe2fs) for 400 groups.
func TestHoldsSuper(t *testing.T) {
	sparse := &geometry{sb: superblock{ROCompat: roCompatSparseSuper}}
	want := []uint64{0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343}
	for n := range uint64(400) {
		is := false
		for _, w := range want {
			is = is || w == n
		}
		if sparse.holdsSuper(n) != is {
			t.Errorf("group %d: %v", n, !is)
		}
		if all := new(geometry); !all.holdsSuper(n) {
			t.Errorf("group %d of an old file system", n)
		}
		two := &geometry{sb: superblock{Compat: compatSparseSuper2, BackupBGs: [2]uint32{1, 399}}}
		if two.holdsSuper(n) != (n == 0 || n == 1 || n == 399) {
			t.Errorf("group %d with sparse_super2", n)
		}
	}
}
