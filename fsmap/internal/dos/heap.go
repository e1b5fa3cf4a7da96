// Package dos is what FAT and exFAT have in common: a heap of clusters that a table links to chains, directories that
// are such chains of 32-byte entries, and times that count from 1980.
package dos

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap/internal/claim"
)

// FirstCluster is the number of the heap's first cluster; 0 and 1 are no clusters.
const FirstCluster = 2

// SlotLen is the length of a directory entry.
const SlotLen = 32

// A Heap is the data area of a volume: clusters numbered from FirstCluster to Last, and the table that links them.
type Heap struct {
	Meta  *ondisk.Cache // the volume, for its structures
	Table int64         // where the table lies
	Spare int64         // where its second copy lies, or 0
	Bits  int           // of a table entry that count: 12, 16, 28 (FAT32), 32
	Data  int64         // where the first cluster lies
	Shift uint          // log2 of the bytes in a cluster
	Last  uint32        // number of the last cluster

	// Linked and Merged tell, where the whole table was looked at, which clusters follow another in a chain, and which
	// follow two: chains that run into one another. Both may be nil.
	Linked, Merged Bitmap

	claims claim.Table
}

// Cluster gives the bytes in a cluster.
func (h *Heap) Cluster() int64 { return 1 << h.Shift }

// Pos gives the position of cluster n in the volume.
func (h *Heap) Pos(n uint32) int64 { return h.Data + int64(n-FirstCluster)<<h.Shift }

// Valid reports whether n is the number of a cluster.
func (h *Heap) Valid(n uint32) bool { return n >= FirstCluster && n <= h.Last }

// EntryPos gives the position of the entry of cluster n in the table at base.
func (h *Heap) EntryPos(base int64, n uint32) int64 {
	switch h.Bits {
	case 12:
		return base + int64(n) + int64(n)/2
	case 16:
		return base + int64(n)*2
	}
	return base + int64(n)*4
}

// Decode gives entry n of a table of the given entry width that starts at b[at:], which holds it wholly.
func Decode(b []byte, bits int, n uint32) uint32 {
	switch bits {
	case 12:
		v := binary.LittleEndian.Uint16(b)
		if n%2 == 1 {
			return uint32(v >> 4)
		}
		return uint32(v & 0xFFF)
	case 16:
		return uint32(binary.LittleEndian.Uint16(b))
	case 28:
		return binary.LittleEndian.Uint32(b) & 0x0FFFFFFF
	}
	return binary.LittleEndian.Uint32(b)
}

// Link says what a table entry means: the cluster that follows, or 0 for the end of the chain. ok is false for an
// entry that no cluster of a chain can have: free, reserved, bad, or past the heap.
func (h *Heap) Link(v uint32) (next uint32, ok bool) {
	if h.Valid(v) {
		return v, true
	}
	// The eight highest values end a chain; the one below them marks a bad cluster.
	return 0, v >= uint32(1)<<h.Bits-8 // a shift by 32 gives 0, so that this is 2³²-8
}

// cursor reads entries of the table. It holds on to the page that it read last: the entries of a chain lie close
// together.
type cursor struct {
	h    *Heap
	page []byte
	base int64 // position of page
}

func (c *cursor) entry(table int64, n uint32) (uint32, error) {
	pos := c.h.EntryPos(table, n)
	width := 4
	if c.h.Bits <= 16 {
		width = 2
	}
	if pos < c.base || pos+int64(width) > c.base+int64(len(c.page)) {
		p, err := c.h.Meta.Page(pos)
		if err != nil {
			return 0, err
		}
		if len(p) < width { // an entry of 12 bits that lies in two pages
			if p, err = c.h.Meta.Slice(pos, width); err != nil {
				return 0, err
			}
		}
		c.page, c.base = p, pos
	}
	return Decode(c.page[pos-c.base:], c.h.Bits, n), nil
}

// next gives the cluster that follows n, or 0 at the end of the chain. Where the first table's entry is broken and
// the second's is not, the second's is taken.
func (c *cursor) next(n uint32) (uint32, error) {
	v, err := c.entry(c.h.Table, n)
	if err == nil {
		if next, ok := c.h.Link(v); ok {
			return next, nil
		}
	}
	if c.h.Spare != 0 {
		if w, err := c.entry(c.h.Spare, n); err == nil {
			if next, ok := c.h.Link(w); ok {
				return next, nil
			}
		}
	}
	if err != nil {
		return 0, err
	}
	return 0, ondisk.Corrupt("allocation table", fmt.Sprintf("entry of cluster %d in a chain", n), c.h.EntryPos(c.h.Table, n), fmt.Sprintf("%#x", v))
}

// A Bitmap has a bit for every cluster number.
type Bitmap []uint64

// NewBitmap makes a Bitmap for the numbers up to last.
func NewBitmap(last uint32) Bitmap { return make(Bitmap, last/64+1) }

// Has reports whether n is set; false for a nil Bitmap.
func (b Bitmap) Has(n uint32) bool { return int(n/64) < len(b) && b[n/64]>>(n%64)&1 != 0 }

// Set sets n, which is not above the last number.
func (b Bitmap) Set(n uint32) { b[n/64] |= 1 << (n % 64) }

// First gives the first number from n on, among count, that is set; ok is false when none is.
func (b Bitmap) First(n, count uint32) (uint32, bool) {
	for end := uint64(n) + uint64(count); uint64(n) < end && int(n/64) < len(b); n++ {
		if n%64 == 0 && b[n/64] == 0 {
			n += 63
			continue
		}
		if b.Has(n) {
			return n, true
		}
	}
	return 0, false
}
