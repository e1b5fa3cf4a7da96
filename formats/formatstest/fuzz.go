package formatstest

import (
	"bytes"
	"fmt"
	"io/fs"
	"testing"

	"vmkit/formats"
)

// Fuzz opens whatever bytes the fuzzer makes as an image of one format, with its companions absent, and walks through
// its extents within bounds: nothing may panic, hang or break the contract of ExtentAt. The seeds should be a few KB.
func Fuzz(f *testing.F, format formats.Format, seeds ...[]byte) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		src := memory{"fuzz": b}
		o := &formats.Opener{Formats: []formats.Format{format}, Source: src, Format: format.Name, AllowMissing: true}
		img, err := o.Open("fuzz")
		if (img == nil) == (err == nil) {
			t.Fatalf("image %v with error %v", img, err)
		}
		if err != nil {
			return
		}
		size := img.Size()
		if size < 0 {
			t.Fatalf("size %d", size)
		}
		buf := make([]byte, 16<<10)
		look := func(off, limit int64) int64 {
			e, err := img.ExtentAt(off, limit)
			if e.Len <= 0 || e.Len > limit || err != nil && e.Kind != formats.Missing || e.Disk != off {
				t.Fatalf("ExtentAt(%d, %d) of %d = %s, %v", off, limit, size, show(e), err)
			}
			if e.Kind == formats.Data && (e.Off < 0 || e.Off > e.File.Size-e.Len) {
				t.Fatalf("ExtentAt(%d, %d) of %d = %s: outside its file", off, limit, size, show(e))
			}
			n := min(e.Len, int64(len(buf)))
			if k, err := img.ReadAt(buf[:n], off); err == nil && int64(k) != n {
				t.Fatalf("ReadAt(%d bytes, %d) = %d", n, off, k)
			}
			return e.Len
		}
		for off, i := int64(0), 0; off < size && i < 300; i++ {
			off += look(off, size-off)
		}
		for i := int64(1); i <= 20 && size > 0; i++ {
			off := size / 20 * (i - 1)
			look(off, min(i*777, size-off))
			look(size-1-off, min(i*70_000, off+1))
		}
	})
}

// memory is a Source of files in memory.
type memory map[string][]byte

func (m memory) Open(name string) (*formats.File, error) {
	b, ok := m[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return &formats.File{ReaderAt: bytes.NewReader(b), Path: name, Size: int64(len(b)), Key: name}, nil
}

func (m memory) Companion(_ *formats.File, name string, _ formats.Role) (*formats.File, error) {
	return m.Open(name)
}
