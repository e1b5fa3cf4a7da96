package overlay

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"vmkit/formats/ondisk"
)

// TestVolume compares an overlay with a plain copy of the volume to which the same changes were made.
func TestVolume(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	base := make([]byte, 100*sector+17)
	for i := range base {
		base[i] = byte(rnd.Uint32())
	}
	whole := len(base) / sector * sector
	want := bytes.Clone(base)
	v := New(bytes.NewReader(base), int64(len(base)), 1<<20, "test")
	touched := map[int64]bool{}
	for range 200 {
		off := rnd.IntN(whole)
		p := make([]byte, 1+rnd.IntN(min(3*sector, whole-off)))
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		if err := v.Write(int64(off), p); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], p)
		for s := off / sector; s*sector < off+len(p); s++ {
			touched[int64(s)] = true
		}
		at := rnd.IntN(len(base))
		n := 1 + rnd.IntN(len(base)-at)
		got, err := v.Bytes(int64(at), n)
		if err != nil || !bytes.Equal(got, want[at:at+n]) {
			t.Fatalf("bytes %d+%d differ, %v", at, n, err)
		}
	}
	changed := v.Changed()
	if len(changed) != len(touched) {
		t.Errorf("%d sectors changed, should be %d", len(changed), len(touched))
	}
	for i, s := range changed {
		if !touched[s] || i > 0 && changed[i-1] >= s || !v.Touches(s*sector+5, 1) {
			t.Errorf("changed sector %d", s)
		}
	}
	if v.Touches(int64(whole), 17) || (*Volume)(nil).Touches(0, 1) {
		t.Error("touches what was not changed")
	}
}

func TestLimits(t *testing.T) {
	v := New(bytes.NewReader(make([]byte, 10*sector)), 10*sector, 2*sector, "test")
	for _, x := range []struct {
		off, n int64
		err    error
	}{
		{0, 2 * sector, nil}, {sector, sector, nil}, {2 * sector, 1, ondisk.ErrUnsupported}, {9*sector + 1, sector, ondisk.ErrTruncated}, {-1, 1, ondisk.ErrTruncated},
	} {
		if err := v.Write(x.off, make([]byte, x.n)); !errors.Is(err, x.err) {
			t.Errorf("%d bytes at %d: %v", x.n, x.off, err)
		}
	}
	if _, err := v.Bytes(9*sector, 2*sector); !errors.Is(err, ondisk.ErrTruncated) {
		t.Error(err)
	}
}
