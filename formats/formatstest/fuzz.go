package formatstest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"testing"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// fuzzCompanions is how many files a fuzzed image gets to open: enough for a chain of three with extents.
const fuzzCompanions = 8

// fuzzExtents is how many extents of a fuzzed image are looked at.
const fuzzExtents = 300

// memSource gives one file's bytes under every name.
type memSource struct {
	b []byte
	n int
}

func (s *memSource) Open(name string) (*formats.File, error) {
	s.n++
	return &formats.File{ReaderAt: bytes.NewReader(s.b), Path: name, Size: int64(len(s.b)), Key: fmt.Sprint(s.n)}, nil
}

func (s *memSource) Companion(_ *formats.File, name string, _ formats.Role) (*formats.File, error) {
	if s.n > fuzzCompanions {
		return nil, fmt.Errorf("%s is not there: %w", name, fs.ErrNotExist)
	}
	return s.Open(name)
}

// Fuzz opens bytes as an image of a format, whose companions are the same bytes, and goes through it: nothing may
// panic or hang, errors wrap a sentinel, and what comes out keeps the contract of ExtentAt.
func Fuzz(t *testing.T, format formats.Format, b []byte) {
	src := &memSource{b: b}
	f, err := src.Open("fuzz")
	if err != nil {
		t.Fatal(err)
	}
	format.Probe(f, b[:min(len(b), formats.ProbeLen)])
	o := &formats.Opener{Formats: []formats.Format{format}, Format: format.Name, Source: src, AllowMissing: true}
	src.n = 0
	img, err := o.Open("fuzz")
	if err != nil {
		if img != nil {
			t.Error("an image and an error")
		}
		known(t, err)
		return
	}
	off := int64(0)
	for range fuzzExtents {
		if off >= img.Size() {
			break
		}
		e, err := img.ExtentAt(off, img.Size()-off)
		if err != nil {
			known(t, err)
		}
		switch {
		case e.Len <= 0 || e.Len > img.Size()-off || e.Disk != off || err != nil && e.Kind != formats.Missing:
			t.Fatalf("ExtentAt(%#x) = %s, %v", off, show(e), err)
		case e.Kind == formats.Data && !ondisk.Within(e.Off, e.Len, e.File.Size):
			t.Fatalf("ExtentAt(%#x) = %s: outside a file of %d bytes", off, show(e), e.File.Size)
		case e.Kind < formats.Data || e.Kind > formats.Encrypted:
			t.Fatalf("ExtentAt(%#x) = %s", off, show(e))
		}
		if e.Kind == formats.Packed {
			for _, p := range e.Pack.Parts {
				if p.Kind == formats.Data && !ondisk.Within(p.Off, p.Len, p.File.Size) {
					t.Fatalf("ExtentAt(%#x) = %s: outside a file of %d bytes", off, show(e), p.File.Size)
				}
			}
		}
		p := make([]byte, min(e.Len, 8192))
		if n, err := img.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			known(t, err)
		} else if n < len(p) {
			t.Fatalf("ReadAt(%#x): %d of %d bytes, %v", off, n, len(p), err)
		}
		off += e.Len
	}
	if size := img.Size(); size > 0 {
		if e, err := img.ExtentAt(size-1, 1); e.Len != 1 || err != nil && e.Kind != formats.Missing {
			t.Fatalf("the last byte: %s, %v", show(e), err)
		}
	}
}

// known checks that an error wraps one of what a parser may give.
func known(t *testing.T, err error) {
	t.Helper()
	for _, k := range []error{ondisk.ErrNot, ondisk.ErrCorrupt, ondisk.ErrTruncated, ondisk.ErrUnsupported, formats.ErrEncrypted, fs.ErrNotExist} {
		if errors.Is(err, k) {
			return
		}
	}
	t.Errorf("an error that wraps no sentinel: %v", err)
}
