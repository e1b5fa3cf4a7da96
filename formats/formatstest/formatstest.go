// Package formatstest holds the tests that every image format shares: what an image's extents and reads say is held
// against the true bytes of the virtual disk, which come from an oracle (qemu-img, or whatever filled the image).
//
// A format's own tests, in a package of their own (package qcow2_test), look like
//
//	truth, size := formatstest.Convert(t, path)  // qemu-img convert -O raw
//	formatstest.Run(t, formatstest.Case{
//		Open:  func(t testing.TB) *formats.Image { return formatstest.Open(t, all.Formats, path, nil) },
//		Truth: truth, Size: size,
//	})
//	formatstest.CompareMap(t, path, formatstest.Open(t, all.Formats, path, nil))
package formatstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"sync"
	"testing"

	"vmkit/formats"
)

// Case is an image and what it holds.
type Case struct {
	// Open opens the image afresh; it is called more than once, and fails the test when it can't.
	Open func(t testing.TB) *formats.Image
	// Truth is the virtual disk, Size its length in bytes.
	Truth io.ReaderAt
	Size  int64
	// Gone says which bytes can't be had, and why: formats.Missing or formats.Encrypted, else 0. The truth of such
	// bytes is not looked at. A nil Gone: every byte can be had.
	Gone func(off int64) formats.Kind
	// Env is what extents are decoded with besides; nil: a fresh one. An image that needs keys gets its own Env here.
	Env *formats.Env
}

// Open opens an image with everything that it refers to by the table of formats, and closes it when the test ends.
// set may change the Opener before, or be nil.
func Open(t testing.TB, table []formats.Format, path string, set func(*formats.Opener)) *formats.Image {
	t.Helper()
	img, err := TryOpen(t, table, path, set)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return img
}

// TryOpen is Open that gives the error.
func TryOpen(t testing.TB, table []formats.Format, path string, set func(*formats.Opener)) (*formats.Image, error) {
	t.Helper()
	src := &formats.OSSource{}
	t.Cleanup(func() {
		if err := src.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	o := &formats.Opener{Formats: table, Source: src}
	if set != nil {
		set(o)
	}
	return o.Open(path)
}

// Run holds an image against its truth: the contract of ExtentAt at every boundary and at random spots, every byte by
// way of its extent, reads at odd offsets, over the end, and by several readers at once.
func Run(t *testing.T, c Case) {
	t.Helper()
	if c.Gone == nil {
		c.Gone = func(int64) formats.Kind { return 0 }
	}
	img := c.Open(t)
	if img.Size() != c.Size {
		t.Fatalf("size %d, want %d", img.Size(), c.Size)
	}
	if c.Size == 0 {
		return
	}
	if c.Env == nil {
		c.Env = formats.NewEnv(0)
	}
	r := &runner{Case: c, img: img}
	var bounds []int64
	t.Run("extents", func(t *testing.T) { bounds = r.walk(t) })
	t.Run("boundaries", func(t *testing.T) { r.boundaries(t, bounds) })
	t.Run("reads", func(t *testing.T) { r.reads(t, bounds) })
	t.Run("end", r.end)
	t.Run("concurrent", func(t *testing.T) { r.concurrent(t, bounds) })
}

type runner struct {
	Case
	img *formats.Image
}

const (
	maxBounds = 500     // boundaries that are looked at one by one
	maxRead   = 1 << 20 // bytes of one read
)

// walk goes through the whole disk in extents as long as they come, twice, and compares all their bytes.
func (r *runner) walk(t *testing.T) []int64 {
	again := r.Open(t)
	var bounds []int64
	for off := int64(0); off < r.Size; {
		e := r.extent(t, r.img, off, r.Size)
		if f := r.extent(t, again, off, r.Size); !same(e, f) {
			t.Fatalf("at %#x: one opening gives %s, another %s", off, show(e), show(f))
		}
		r.content(t, off, e, e.Len)
		bounds = append(bounds, off)
		off += e.Len
	}
	t.Logf("%d extents", len(bounds))
	return append(bounds, r.Size)
}

// boundaries asks around every boundary, with several limits.
func (r *runner) boundaries(t *testing.T, bounds []int64) {
	step := max(1, len(bounds)/maxBounds)
	for i := 0; i < len(bounds); i += step {
		for _, d := range []int64{-513, -1, 0, 1, 511} {
			for _, limit := range []int64{1, 2, 513, 65536 + 1, r.Size} {
				off := bounds[i] + d
				if off < 0 || off >= r.Size {
					continue
				}
				e := r.extent(t, r.img, off, limit)
				r.content(t, off, e, min(e.Len, 4096))
			}
		}
	}
}

// extent asks for one extent and checks the contract.
func (r *runner) extent(t testing.TB, img *formats.Image, off, limit int64) formats.Extent {
	t.Helper()
	e, err := img.ExtentAt(off, limit)
	bad := func(format string, args ...any) {
		t.Helper()
		t.Fatalf("ExtentAt(%#x, %d) = %s, %v: %s", off, limit, show(e), err, fmt.Sprintf(format, args...))
	}
	gone := r.Gone(off)
	switch {
	case e.Len <= 0 || e.Len > limit || e.Len > r.Size-off:
		bad("length")
	case err != nil && e.Kind != formats.Missing:
		bad("an error comes with kind missing only")
	case gone != 0 && e.Kind != gone:
		bad("want %s", gone)
	case gone == 0 && (e.Kind == formats.Missing || e.Kind == formats.Encrypted):
		bad("these bytes can be had")
	case e.Disk != off:
		bad("Disk is not the offset")
	case e.Kind == formats.Data:
		if e.File == nil || e.Off < 0 || e.Off > e.File.Size-e.Len {
			bad("outside its file")
		}
		if !listed(img, e.File) {
			bad("the image does not list %s", e.File.Path)
		}
	case e.Kind == formats.Packed:
		if e.Pack == nil || e.Skip < 0 || e.Skip > e.Pack.Full-e.Len || len(e.Pack.Parts) == 0 {
			bad("outside its pack")
		}
		for _, p := range e.Pack.Parts {
			if p.Kind == formats.Data && (p.Off < 0 || p.Off > p.File.Size-p.Len || !listed(img, p.File)) {
				bad("part %s", show(p))
			}
		}
	}
	return e
}

func listed(img *formats.Image, f *formats.File) bool {
	f, _ = f.Host(0)
	for _, g := range img.Files {
		if f == g {
			return true
		}
	}
	return false
}

// content compares the first n bytes that an extent says with the truth.
func (r *runner) content(t testing.TB, off int64, e formats.Extent, n int64) {
	t.Helper()
	if e.Kind == formats.Missing || e.Kind == formats.Encrypted {
		for _, p := range []int64{0, n / 2, n - 1} {
			if r.Gone(off+p) != e.Kind {
				t.Fatalf("byte %#x of %s can be had", off+p, show(e))
			}
		}
		if err := r.Env.Fill(make([]byte, 1), e); err == nil {
			t.Fatalf("filled from %s", show(e))
		}
		return
	}
	got, want := make([]byte, min(n, maxRead)), make([]byte, min(n, maxRead))
	for at := int64(0); at < n; at += maxRead {
		k := min(n-at, maxRead)
		part := e
		part.Len = k
		switch e.Kind {
		case formats.Data:
			part.Off += at
		case formats.Packed:
			part.Skip += at
		}
		if err := r.Env.Fill(got[:k], part); err != nil {
			t.Fatalf("at %#x: %s: %v", off+at, show(part), err)
		}
		r.truth(t, want[:k], off+at)
		if d := differ(got[:k], want[:k]); d >= 0 {
			t.Fatalf("byte %#x is %#x by %s, want %#x", off+at+int64(d), got[d], show(part), want[d])
		}
	}
}

func (r *runner) truth(t testing.TB, p []byte, off int64) {
	t.Helper()
	if n, err := r.Truth.ReadAt(p, off); n < len(p) {
		t.Fatalf("truth at %#x: %v", off, err)
	}
}

// reads reads at odd offsets and lengths, across boundaries.
func (r *runner) reads(t *testing.T, bounds []int64) {
	rnd := rand.New(rand.NewPCG(1, 2))
	step := max(1, len(bounds)/maxBounds)
	for i := 0; i < len(bounds); i += step {
		r.read(t, r.img, bounds[i]-1-rnd.Int64N(1000), 2+rnd.Int64N(3000))
		r.read(t, r.img, bounds[i], 1)
	}
	for range 200 {
		r.read(t, r.img, rnd.Int64N(r.Size), 1+rnd.Int64N(300_000))
	}
	if r.Size <= 256<<20 {
		const odd = 1<<20 - 4093
		for off := int64(0); off < r.Size; off += odd {
			r.read(t, r.img, off, odd)
		}
	}
}

// read reads up to n bytes at off, clipped to the disk.
func (r *runner) read(t testing.TB, d io.ReaderAt, off, n int64) {
	t.Helper()
	off = max(off, 0)
	n = min(n, r.Size-off)
	if n <= 0 {
		return
	}
	got := make([]byte, n)
	k, err := d.ReadAt(got, off)
	if err != nil && !(errors.Is(err, io.EOF) && int64(k) == n) {
		if k < 0 || int64(k) >= n {
			t.Errorf("ReadAt(%d bytes, %#x) = %d, %v", n, off, k, err)
			return
		}
		if r.Gone(off+int64(k)) == 0 {
			t.Errorf("ReadAt(%d bytes, %#x) = %d, %v: but byte %#x can be had", n, off, k, err, off+int64(k))
			return
		}
	} else if int64(k) != n {
		t.Errorf("ReadAt(%d bytes, %#x) = %d, %v", n, off, k, err)
		return
	}
	want := make([]byte, k)
	r.truth(t, want, off)
	if i := differ(got[:k], want); i >= 0 {
		t.Errorf("ReadAt(%d bytes, %#x): byte %#x is %#x, want %#x", n, off, off+int64(i), got[i], want[i])
	}
	for i := 0; i < k; i += 512 {
		if r.Gone(off+int64(i)) != 0 {
			t.Errorf("ReadAt(%d bytes, %#x): read byte %#x, which can't be had", n, off, off+int64(i))
			return
		}
	}
}

// end checks what io.ReaderAt demands around the end and before the start.
func (r *runner) end(t *testing.T) {
	if r.Gone(r.Size-1) == 0 {
		tail := min(r.Size, 700)
		p := make([]byte, tail+100)
		n, err := r.img.ReadAt(p, r.Size-tail)
		if r.Gone(r.Size-tail) == 0 && (int64(n) != tail || !errors.Is(err, io.EOF)) {
			t.Errorf("a read over the end: %d, %v; want %d, EOF", n, err, tail)
		}
	}
	for _, off := range []int64{r.Size, r.Size + 1, 1<<63 - 1} {
		if n, err := r.img.ReadAt(make([]byte, 10), off); n != 0 || !errors.Is(err, io.EOF) {
			t.Errorf("a read at %d of %d: %d, %v; want 0, EOF", off, r.Size, n, err)
		}
	}
	if n, err := r.img.ReadAt(make([]byte, 10), -1); n != 0 || err == nil {
		t.Errorf("a read at -1: %d, %v; want an error", n, err)
	}
}

// concurrent reads one image, freshly opened, from several goroutines.
func (r *runner) concurrent(t *testing.T, bounds []int64) {
	img := r.Open(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 3))
			for range 100 {
				b := bounds[rnd.IntN(len(bounds))]
				r.read(t, img, b-rnd.Int64N(2000), 1+rnd.Int64N(100_000))
				r.read(t, img, rnd.Int64N(r.Size), 1+rnd.Int64N(5000))
				if off := rnd.Int64N(r.Size); true {
					if e, err := img.ExtentAt(off, r.Size); e.Len <= 0 || err != nil && e.Kind != formats.Missing {
						t.Errorf("ExtentAt(%#x) = %s, %v", off, show(e), err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// same compares extents of two openings: Files by path, Packs by content.
func same(a, b formats.Extent) bool {
	if a.Len != b.Len || a.Kind != b.Kind || a.Disk != b.Disk || a.Off != b.Off || a.Skip != b.Skip || (a.File == nil) != (b.File == nil) || (a.Pack == nil) != (b.Pack == nil) {
		return false
	}
	if a.File != nil && a.File.Path != b.File.Path {
		return false
	}
	if a.Pack == nil {
		return true
	}
	if !reflect.DeepEqual(a.Pack.Spec, b.Pack.Spec) || len(a.Pack.Parts) != len(b.Pack.Parts) {
		return false
	}
	for i := range a.Pack.Parts {
		if !same(a.Pack.Parts[i], b.Pack.Parts[i]) {
			return false
		}
	}
	return true
}

func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func show(e formats.Extent) string {
	s := fmt.Sprintf("{%s len %d disk %#x", e.Kind, e.Len, e.Disk)
	if e.File != nil {
		s += fmt.Sprintf(" %s+%#x", e.File.Path, e.Off)
	}
	if e.Pack != nil {
		s += fmt.Sprintf(" %s skip %d full %d parts", e.Pack.Codec, e.Skip, e.Pack.Full)
		for _, p := range e.Pack.Parts {
			s += " " + show(p)
		}
	}
	return s + "}"
}
