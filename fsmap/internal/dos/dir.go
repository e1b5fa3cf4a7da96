package dos

import (
	"fmt"

	"vmkit/formats/ondisk"
)

// dirPiece is how many bytes of a directory are read at a time.
const dirPiece = 16 << 10

// Dir is where a directory lies.
type Dir struct {
	Owner      uint64 // a number of its own, by which its clusters are told from other directories'
	Start      uint32 // first cluster
	Contiguous bool   // its clusters follow one another without the table: Size counts
	Size       int64  // bytes, or -1: to the end of the chain
	Limit      int64  // bytes that a directory of this kind can have
}

// Slots calls fn with pieces of the directory, in order: each a number of whole entries and their position in the
// volume. When fn returns false it stops. An error means that entries may be lacking; those that could be read were
// given.
//
// A cluster belongs to the directory that was read first: where another runs into it, that one ends. So a loop, and
// directories that share a tail, end soon.
func (h *Heap) Slots(d Dir, fn func(b []byte, pos int64) bool) error {
	c := cursor{h: h}
	n, size := d.Start, d.Size
	if size < 0 || size > d.Limit {
		size = d.Limit
	}
	var first error
	buf := make([]byte, min(dirPiece, h.Cluster()))
	for index := int64(0); index<<h.Shift < size; index++ {
		if !h.Valid(n) {
			return ondisk.Corrupt("directory", "cluster", -1, n)
		}
		if !h.claims.Take(uint64(n), d.Owner, index) {
			return ondisk.Corrupt("directory", "loop, or shared with another directory, at cluster", h.Pos(n), n)
		}
		pos, end := h.Pos(n), h.Pos(n)+min(h.Cluster(), size-index<<h.Shift)
		for ; pos < end; pos += int64(len(buf)) {
			b := buf[:min(int64(len(buf)), end-pos)]
			if err := ondisk.ReadFull(h.Meta, b, pos, "directory"); err != nil {
				if first == nil {
					first = err
				}
				continue
			}
			if !fn(b, pos) {
				return first
			}
		}
		if d.Contiguous {
			n++
			continue
		}
		if d.Size >= 0 && (index+1)<<h.Shift >= size {
			break
		}
		next, err := c.next(n)
		if err != nil {
			return err
		}
		if next == 0 {
			if d.Size > (index+1)<<h.Shift {
				return ondisk.Corrupt("directory", fmt.Sprintf("the chain ends before its %d bytes, at cluster", d.Size), h.Pos(n), n)
			}
			return first
		}
		n = next
	}
	if d.Size < 0 || d.Size > d.Limit {
		return ondisk.Corrupt("directory", "more bytes than", -1, d.Limit)
	}
	return first
}

// Attributes of a directory entry.
const (
	AttrReadOnly  = 0x01
	AttrHidden    = 0x02
	AttrSystem    = 0x04
	AttrDirectory = 0x10
	AttrArchive   = 0x20
)

var attrNames = [...]struct {
	bit  uint16
	name string
}{{AttrReadOnly, "read-only"}, {AttrHidden, "hidden"}, {AttrSystem, "system"}, {AttrArchive, "archive"}}

// AppendAttrs appends the names of the attributes that are set.
func AppendAttrs(names []string, attr uint16) []string {
	for _, a := range attrNames {
		if attr&a.bit != 0 {
			names = append(names, a.name)
		}
	}
	return names
}
