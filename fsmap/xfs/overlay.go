package xfs

import (
	"fmt"
	"io"

	"vmkit/formats/ondisk"
)

const sector = 512

// overlay is the volume as log recovery would leave it: the sectors that the log changed, over the others. It is
// written during recovery only; afterwards it is safe for concurrent reading.
type overlay struct {
	r     io.ReaderAt
	size  int64
	limit int             // sectors
	index map[int64]int32 // sector number to its place in slabs
	slabs [][]byte        // of slabSectors
	count int             // sectors
}

const slabSectors = 512

func newOverlay(r io.ReaderAt, size int64, limit int64) *overlay {
	return &overlay{r: r, size: size, limit: int(limit / sector), index: make(map[int64]int32)}
}

// at gives the bytes of a sector that was changed.
func (o *overlay) at(i int32) []byte {
	b := o.slabs[i/slabSectors]
	return b[i%slabSectors*sector:][:sector:sector]
}

// touches reports whether the log changed any of the n bytes at off.
func (o *overlay) touches(off, n int64) bool {
	if o == nil || len(o.index) == 0 {
		return false
	}
	for s := off / sector; s*sector < off+n; s++ {
		if _, ok := o.index[s]; ok {
			return true
		}
	}
	return false
}

// ReadAt implements io.ReaderAt.
func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.r.ReadAt(p, off)
	for s := off / sector; s*sector < off+int64(n); s++ {
		i, ok := o.index[s]
		if !ok {
			continue
		}
		b, to := o.at(i), s*sector-off
		if to < 0 {
			b, to = b[-to:], 0
		}
		copy(p[to:n], b)
	}
	return n, err
}

// write changes the bytes at off.
func (o *overlay) write(off int64, p []byte) error {
	if !ondisk.Within(off, int64(len(p)), o.size/sector*sector) {
		return ondisk.Truncated("xfs log", "volume ends before a logged block", off, nil)
	}
	for len(p) > 0 {
		s := off / sector
		i, ok := o.index[s]
		if !ok {
			if o.count >= o.limit {
				return ondisk.Unsupported("xfs log", "sectors changed, more than", -1, o.limit)
			}
			i = int32(o.count)
			if int(i)/slabSectors == len(o.slabs) {
				o.slabs = append(o.slabs, make([]byte, slabSectors*sector))
			}
			if len(p) < sector || off%sector != 0 {
				if err := ondisk.ReadFull(o.r, o.at(i), s*sector, "xfs log: block to change"); err != nil {
					return err
				}
			}
			o.count++
			o.index[s] = i
		}
		n := copy(o.at(i)[off%sector:], p)
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// bytes reads n bytes at off into a new slice, as they are by now.
func (o *overlay) bytes(off int64, n int) ([]byte, error) {
	if !ondisk.Within(off, int64(n), o.size) {
		return nil, ondisk.Truncated("xfs log", "volume ends before a logged block", off, nil)
	}
	b := make([]byte, n)
	if got, err := o.ReadAt(b, off); got < n {
		return nil, fmt.Errorf("xfs log: block to change at byte %#x: %w", off, err)
	}
	return b, nil
}
