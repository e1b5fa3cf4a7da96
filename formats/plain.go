package formats

import (
	"sort"
	"sync"
	"sync/atomic"
)

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
	// blocks are the stretches of what was looked at before, by number: a map goes to and fro, and asking the host is
	// two system calls.
	mu     sync.Mutex
	blocks map[int64][]stretch
}

const (
	plainBlock  = 1 << 20 // bytes
	plainBlocks = 1 << 14 // that are kept
	plainMost   = 64      // stretches of one; behind that many the host is asked each time
)

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
		s = p.stretch(off)
		p.last.Store(s)
	}
	e.Len = min(e.Len, s.end-off)
	if s.hole {
		e.Kind, e.File, e.Off = Zero, nil, 0
	}
	return e, nil
}

// stretch gives the one that holds off.
func (p *plain) stretch(off int64) *stretch {
	no := off / plainBlock
	p.mu.Lock()
	list := p.blocks[no]
	p.mu.Unlock()
	if list == nil {
		for at, end := no*plainBlock, min((no+1)*plainBlock, p.f.Size); at < end && len(list) < plainMost; {
			s := stretch{start: at}
			s.hole, s.end = p.sparse.Region(at)
			list, at = append(list, s), s.end
		}
		p.mu.Lock()
		if p.blocks == nil || len(p.blocks) >= plainBlocks {
			p.blocks = make(map[int64][]stretch)
		}
		p.blocks[no] = list
		p.mu.Unlock()
	}
	i := sort.Search(len(list), func(i int) bool { return list[i].end > off })
	if i == len(list) {
		s := &stretch{start: off}
		s.hole, s.end = p.sparse.Region(off)
		return s
	}
	return &list[i]
}
