package formats

import "sync/atomic"

// Plain maps a host file as it is: its bytes are data, its holes are zeros. It is a raw image, and what a descriptor
// calls a flat extent.
func Plain(f *File) Mapper {
	p := &plain{f: f}
	p.sparse, _ = f.ReaderAt.(Sparse)
	return p
}

type plain struct {
	f      *File
	sparse Sparse // nil: the host can't tell holes
	// last is the stretch that was asked about last: readers go on from where they are.
	last atomic.Pointer[stretch]
}

// stretch is data or a hole of the host file.
type stretch struct {
	start, end int64
	hole       bool
}

func (p *plain) Size() int64 { return p.f.Size }

// ReadAt implements io.ReaderAt without asking for holes first: the host reads them as zeros itself.
func (p *plain) ReadAt(b []byte, off int64) (int, error) {
	return readClipped(p.f, b, 0, off, p.f.Size)
}

func (p *plain) ExtentAt(off, max int64) (Extent, error) {
	e := Extent{Len: min(max, p.f.Size-off), Kind: Data, Disk: off, File: p.f, Off: off}
	if p.sparse == nil {
		return e, nil
	}
	s := p.last.Load()
	if s == nil || off < s.start || off >= s.end {
		s = &stretch{start: off}
		s.hole, s.end = p.sparse.Region(off)
		p.last.Store(s)
	}
	e.Len = min(e.Len, s.end-off)
	if s.hole {
		e.Kind, e.File, e.Off = Zero, nil, 0
	}
	return e, nil
}
