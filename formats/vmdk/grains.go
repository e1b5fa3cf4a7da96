package vmdk

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
)

// unallocated is the kind of an extent that this layer doesn't hold: the parent is asked, or it is zeros.
const unallocated formats.Kind = 0

// layer is one extent of a disk: the part that a line of the descriptor stands for. Offsets count from its start. An
// answer of kind unallocated has a length only. Disk is set by the caller.
type layer interface {
	extentAt(off, max int64) (formats.Extent, error)
}

// grains is a sparse extent of any kind.
type grains struct {
	f          *formats.File
	size       int64 // bytes of the disk that it stands for
	grain      int64 // bytes
	count      int64 // grains, the last of which may be a part of one
	perTable   int64
	dir        []uint32      // where each table lies, 0: nowhere; see tables
	tables     *ondisk.Cache // a page is a table
	entryLen   int64
	decode     func(entry []byte) entry
	compressed bool
	markers    bool
}

// entry is what a grain table says of a grain.
type entry struct {
	kind formats.Kind // Data, Zero, unallocated, or Missing: the entry makes no sense
	off  int64        // of Data, in the file
	raw  uint64
}

// scanSteps bounds how many grains, or empty tables, one call of extentAt looks at.
const scanSteps = 1 << 14

func (g *grains) extentAt(off, max int64) (formats.Extent, error) {
	n, in := off/g.grain, off%g.grain
	t, err := g.table(n)
	if err != nil {
		last := (n/g.perTable + 1) * g.perTable * g.grain
		return formats.Extent{Len: min(max, last-off), Kind: formats.Missing}, err
	}
	first := g.at(t, n)
	if first.kind == formats.Data && g.compressed {
		return g.packed(first, n, in, max)
	}
	e := formats.Extent{Len: g.grain - in, Kind: first.kind}
	switch first.kind {
	case formats.Data:
		e.File, e.Off = g.f, first.off+in
		if e.Off >= g.f.Size {
			e = formats.Extent{Len: min(max, e.Len), Kind: formats.Missing}
			return e, ondisk.Truncated(g.f.Path, fmt.Sprintf("grain %d", n), first.off, nil)
		}
		if left := g.f.Size - e.Off; left < min(e.Len, max) {
			e.Len = left
			return e, nil
		}
	case formats.Missing:
		e.Len = min(max, e.Len)
		return e, ondisk.Corrupt(g.f.Path, fmt.Sprintf("grain table: entry of grain %d", n), -1, fmt.Sprintf("%#x", first.raw))
	}
	for steps := 0; e.Len < max && steps < scanSteps; steps++ {
		if n++; n == g.count {
			break
		}
		if n%g.perTable == 0 {
			if t, err = g.table(n); err != nil {
				break
			}
		}
		if t == nil && first.kind == unallocated {
			skip := min(g.perTable-n%g.perTable, g.count-n)
			e.Len += skip * g.grain
			n += skip - 1
			continue
		}
		next := g.at(t, n)
		if next.kind != first.kind || next.kind == formats.Data && (next.off != e.Off+e.Len || next.off > g.f.Size-g.grain) {
			break
		}
		e.Len += g.grain
	}
	e.Len = min(e.Len, max)
	return e, nil
}

// table gives the table that grain n's entry is in; nil: the directory has none.
func (g *grains) table(n int64) ([]byte, error) {
	i := n / g.perTable
	if g.dir[i] == 0 {
		return nil, nil
	}
	return g.tables.Page(i * g.perTable * g.entryLen)
}

func (g *grains) at(table []byte, n int64) entry {
	if table == nil {
		return entry{}
	}
	return g.decode(table[n%g.perTable*g.entryLen:])
}

// packed gives a compressed grain. Its coded bytes are known from the marker before them, else only that they are no
// more than a grain's.
func (g *grains) packed(x entry, n, in, max int64) (formats.Extent, error) {
	full := min(g.grain, g.size-n*g.grain) // the last grain may be coded only as far as the disk goes
	gone := formats.Extent{Len: min(max, full-in), Kind: formats.Missing}
	if x.off >= g.f.Size {
		return gone, ondisk.Truncated(g.f.Path, fmt.Sprintf("compressed grain %d", n), x.off, nil)
	}
	at, size := x.off, min(g.grain, g.f.Size-x.off)
	if g.markers {
		var m [markerGrainLen]byte
		if err := ondisk.ReadFull(g.f, m[:], x.off, g.f.Path); err != nil {
			return gone, err
		}
		at, size = x.off+markerGrainLen, int64(binary.LittleEndian.Uint32(m[8:]))
		switch {
		case size == 0 || size > maxCoded(g.grain):
			return gone, ondisk.Corrupt(g.f.Path, fmt.Sprintf("compressed grain %d: length", n), x.off+8, size)
		case size > g.f.Size-at:
			return gone, ondisk.Truncated(g.f.Path, fmt.Sprintf("compressed grain %d", n), x.off, nil)
		}
	}
	return formats.Extent{
		Len: min(max, full-in), Kind: formats.Packed, Skip: in,
		Pack: &formats.Pack{
			Spec:  codec.Spec{Codec: codec.Zlib, Full: full},
			Parts: []formats.Extent{{Len: size, Kind: formats.Data, Disk: formats.NoPos, File: g.f, Off: at}},
		},
	}, nil
}

// maxCoded bounds a compressed grain. What can't be compressed grows by a few bytes; QEMU takes twice a grain.
func maxCoded(grain int64) int64 { return 2 * grain }
