// Package overlay keeps what the replay of a journal changes of a volume, over the volume itself.
package overlay

import (
	"fmt"
	"io"
	"maps"
	"slices"

	"vmkit/formats/ondisk"
)

// Volume is a volume as recovery would leave it: the sectors that the journal changed, over the others. It is written
// during recovery only; afterwards it is safe for concurrent reading.
type Volume struct {
	r     io.ReaderAt
	size  int64
	what  string          // for messages
	limit int             // sectors
	index map[int64]int32 // sector number to its place in slabs
	slabs [][]byte        // of slabSectors
	count int             // sectors
}

// SectorLen is the unit in which changes are kept.
const (
	SectorLen   = 512
	sector      = SectorLen
	slabSectors = 512
)

// New makes an overlay of the size bytes of r, which takes at most limit bytes of changes. what names the journal in
// messages.
func New(r io.ReaderAt, size, limit int64, what string) *Volume {
	return &Volume{r: r, size: size, what: what, limit: int(limit / sector), index: make(map[int64]int32)}
}

// at gives the bytes of a sector that was changed.
func (v *Volume) at(i int32) []byte {
	b := v.slabs[i/slabSectors]
	return b[i%slabSectors*sector:][:sector:sector]
}

// Touches reports whether the journal changed any of the n bytes at off.
func (v *Volume) Touches(off, n int64) bool {
	if v == nil || len(v.index) == 0 {
		return false
	}
	for s := off / sector; s*sector < off+n; s++ {
		if _, ok := v.index[s]; ok {
			return true
		}
	}
	return false
}

// Changed gives the numbers of the sectors that the journal changed, in order.
func (v *Volume) Changed() []int64 { return slices.Sorted(maps.Keys(v.index)) }

// ReadAt implements io.ReaderAt.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.r.ReadAt(p, off)
	for s := off / sector; s*sector < off+int64(n); s++ {
		i, ok := v.index[s]
		if !ok {
			continue
		}
		b, to := v.at(i), s*sector-off
		if to < 0 {
			b, to = b[-to:], 0
		}
		copy(p[to:n], b)
	}
	return n, err
}

// Write changes the bytes at off.
func (v *Volume) Write(off int64, p []byte) error {
	if !ondisk.Within(off, int64(len(p)), v.size/sector*sector) {
		return ondisk.Truncated(v.what, "volume ends before a logged block", off, nil)
	}
	for len(p) > 0 {
		s := off / sector
		i, ok := v.index[s]
		if !ok {
			if v.count >= v.limit {
				return ondisk.Unsupported(v.what, "sectors changed, more than", -1, v.limit)
			}
			i = int32(v.count)
			if int(i)/slabSectors == len(v.slabs) {
				v.slabs = append(v.slabs, make([]byte, slabSectors*sector))
			}
			if len(p) < sector || off%sector != 0 {
				if err := ondisk.ReadFull(v.r, v.at(i), s*sector, v.what+": block to change"); err != nil {
					return err
				}
			}
			v.count++
			v.index[s] = i
		}
		n := copy(v.at(i)[off%sector:], p)
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Bytes reads n bytes at off into a new slice, as they are by now.
func (v *Volume) Bytes(off int64, n int) ([]byte, error) {
	if !ondisk.Within(off, int64(n), v.size) {
		return nil, ondisk.Truncated(v.what, "volume ends before a logged block", off, nil)
	}
	b := make([]byte, n)
	if got, err := v.ReadAt(b, off); got < n {
		return nil, fmt.Errorf("%s: block to change at byte %#x: %w", v.what, off, err)
	}
	return b, nil
}
