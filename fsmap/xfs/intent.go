package xfs

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"vmkit/formats/ondisk"
)

// intent is a change that was announced in the log and is not known to have been made: recovery makes it, after the
// replay.
type intent struct {
	seq  int // in the order of the log
	make func(f *fsys) error
}

type intentKey struct {
	kind uint16
	id   uint64
}

// maxIntents bounds the intents that are open at once. Each transaction leaves a few.
const maxIntents = 1 << 20

// intend notes an intent.
func (p *replay) intend(kind uint16, it *item, ord binary.ByteOrder) error {
	h := it.regions[0]
	bad := func(got any) error {
		return ondisk.Corrupt("xfs log intent", fmt.Sprintf("of type %#x, length", kind), -1, got)
	}
	p.seq++
	x := intent{seq: p.seq}
	switch {
	case kind == itemBUI && len(h) == buiExtents+mapBytes:
		x.make = mapIntent(h[buiExtents:], ord)
	case kind == itemXMI && len(h) == xmiBytes:
		x.make = exchangeIntent(h, ord)
	case kind == itemATTRI && len(h) == attriBytes && len(it.regions) == it.total:
		x.make = attrIntent(it, ord)
	default:
		return bad(len(h))
	}
	if len(p.intents) == maxIntents {
		return ondisk.Unsupported("xfs log", "open intents, more than", -1, maxIntents)
	}
	p.intents[intentKey{kind, ord.Uint64(h[intentID:])}] = x
	return nil
}

// done strikes off the intent that was carried out.
func (p *replay) done(kind uint16, it *item, ord binary.ByteOrder) error {
	h := it.regions[0]
	if len(h) < intentID+8 {
		return ondisk.Truncated("xfs log intent", "done item", -1, len(h))
	}
	delete(p.intents, intentKey{kind, ord.Uint64(h[intentID:])})
	return nil
}

// unfinished gives the intents that are left, in order.
func (p *replay) unfinished() []intent {
	return slices.SortedFunc(maps.Values(p.intents), func(a, b intent) int { return a.seq - b.seq })
}

// patch is what the inode of a file is after recovery where that differs from what the log says.
type patch struct {
	mapped bool // exts is the whole map of the data fork
	exts   []extent
	size   int64 // or -1
	attrs  []attrOp
}

func (f *fsys) patch(ino uint64) *patch {
	if f.patches == nil {
		f.patches = make(map[uint64]*patch)
	}
	p := f.patches[ino]
	if p == nil {
		p = &patch{size: -1}
		f.patches[ino] = p
	}
	return p
}

// finishIntents carries out what is left to do, in memory.
func (f *fsys) finishIntents() {
	for _, x := range f.intents {
		if err := x.make(f); err != nil {
			f.doubt(fmt.Errorf("a change that the log announces can't be finished: %w", err))
		}
	}
	f.intents = nil
}

// Bounds of patching maps: the extents of one file, and those gone through for all intents.
const (
	maxPatched   = 8 << 20
	maxPatchWork = 1 << 28
)

// mapped gives the data fork's map for changing it.
func (f *fsys) mapped(ino uint64) (*patch, error) {
	p := f.patch(ino)
	if p.mapped {
		if f.patchWork += len(p.exts) + 1; f.patchWork > maxPatchWork {
			return nil, ondisk.Unsupported("xfs log", "extents to go through for open intents, more than", -1, maxPatchWork)
		}
		return p, nil
	}
	var in inode
	if err := f.load(ino, &in, nil); err != nil {
		return nil, err
	}
	var exts []extent
	err := f.extents(&in, false, func(x extent) error {
		if len(exts) == maxPatched {
			return ondisk.Unsupported("xfs data fork", "extents to patch, more than", in.off, maxPatched)
		}
		exts = append(exts, x)
		return nil
	})
	if err != nil {
		return nil, err
	}
	p.mapped, p.exts = true, exts
	return p, nil
}

// cut gives the part of x between from and to.
func (x extent) cut(from, to uint64) (extent, bool) {
	lo, hi := max(x.off, from), min(x.off+x.n, to)
	if lo >= hi {
		return extent{}, false
	}
	x.block, x.off, x.n = x.block+lo-x.off, lo, hi-lo
	return x, true
}

// split parts a map into what lies between from and to, and the rest.
func split(exts []extent, from, to uint64) (in, rest []extent) {
	for _, x := range exts {
		if y, ok := x.cut(0, from); ok {
			rest = append(rest, y)
		}
		if y, ok := x.cut(from, to); ok {
			in = append(in, y)
		}
		if y, ok := x.cut(to, maxFileOff); ok {
			rest = append(rest, y)
		}
	}
	return in, rest
}

// merge puts extents into a map.
func merge(exts, more []extent) []extent {
	exts = append(exts, more...)
	slices.SortFunc(exts, func(a, b extent) int {
		switch {
		case a.off < b.off:
			return -1
		case a.off > b.off:
			return 1
		}
		return 0
	})
	return exts
}

// mapIntent maps or unmaps one extent (struct xfs_map_extent).
func mapIntent(h []byte, ord binary.ByteOrder) func(*fsys) error {
	ino, flags := ord.Uint64(h[mapOwner:]), ord.Uint32(h[mapFlags:])
	x := extent{block: ord.Uint64(h[mapBlock:]), off: ord.Uint64(h[mapOff:]), n: uint64(ord.Uint32(h[mapLen:])), unwritten: flags&bmapUnwrit != 0}
	return func(f *fsys) error {
		bad := func(field string, got any) error {
			return ondisk.Corrupt(fmt.Sprintf("xfs mapping intent of inode %d", ino), field, -1, got)
		}
		if flags&bmapAttr != 0 {
			return bad("fork, flags", fmt.Sprintf("%#x", flags))
		}
		if x.n == 0 || x.n > maxExtentLen || x.off > maxFileOff-x.n {
			return bad("extent", fmt.Sprintf("%d+%d", x.off, x.n))
		}
		if _, ok := f.place(x.block, x.n); !ok && flags&bmapRT == 0 {
			return bad("blocks", fmt.Sprintf("%d+%d", x.block, x.n))
		}
		p, err := f.mapped(ino)
		if err != nil {
			return err
		}
		there, rest := split(p.exts, x.off, x.off+x.n)
		switch flags & 0xff {
		case bmapMap:
			if len(there) > 0 {
				return bad("extent that is mapped already", x.off)
			}
			p.exts = merge(p.exts, []extent{x})
		case bmapUnmap:
			p.exts = rest
		default:
			return bad("type", flags&0xff)
		}
		return nil
	}
}

// exchangeIntent exchanges what is left of two ranges (struct xfs_xmi_log_format).
func exchangeIntent(h []byte, ord binary.ByteOrder) func(*fsys) error {
	h = slices.Clone(h)
	u := func(at int) uint64 { return ord.Uint64(h[at:]) }
	return func(f *fsys) error {
		ino1, ino2, n, flags := u(xmiIno1), u(xmiIno2), u(xmiBlocks), u(xmiFlags)
		off1, off2 := u(xmiOff1), u(xmiOff2)
		bad := func(field string, got any) error {
			return ondisk.Corrupt(fmt.Sprintf("xfs exchange intent of inodes %d and %d", ino1, ino2), field, -1, got)
		}
		if flags&xmiAttrFork != 0 {
			return ondisk.Unsupported("xfs exchange intent", "attribute forks of inode", -1, ino1)
		}
		if n > maxFileOff || off1 > maxFileOff-n || off2 > maxFileOff-n || ino1 == ino2 && off1 < off2+n && off2 < off1+n {
			return bad("ranges", fmt.Sprintf("%d, %d +%d", off1, off2, n))
		}
		p1, err := f.mapped(ino1)
		if err != nil {
			return err
		}
		p2, err := f.mapped(ino2)
		if err != nil {
			return err
		}
		in1, _ := split(p1.exts, off1, off1+n)
		in2, _ := split(p2.exts, off2, off2+n)
		if flags&xmiWritten1 != 0 {
			// Only where the first file has been written.
			var from, to []extent
			for _, x := range in1 {
				if !x.unwritten {
					from = append(from, x)
					y, _ := split(in2, off2+x.off-off1, off2+x.off-off1+x.n)
					to = append(to, y...)
				}
			}
			for _, x := range from {
				_, p2.exts = split(p2.exts, off2+x.off-off1, off2+x.off-off1+x.n)
				_, p1.exts = split(p1.exts, x.off, x.off+x.n)
			}
			in1, in2 = from, to
		} else {
			_, p1.exts = split(p1.exts, off1, off1+n)
			_, p2.exts = split(p2.exts, off2, off2+n)
		}
		for i := range in1 {
			in1[i].off += off2 - off1
		}
		for i := range in2 {
			in2[i].off += off1 - off2
		}
		p1.exts = merge(p1.exts, in2)
		p2.exts = merge(p2.exts, in1) // the two may be one
		if flags&xmiSetSizes != 0 {
			s1, s2 := u(xmiSize1), u(xmiSize2)
			if s1>>63 != 0 || s2>>63 != 0 {
				return bad("sizes", s1)
			}
			p1.size, p2.size = int64(s1), int64(s2)
		}
		return nil
	}
}

// attrIntent sets or removes an extended attribute (struct xfs_attri_log_format). Parent pointers are not shown.
func attrIntent(it *item, ord binary.ByteOrder) func(*fsys) error {
	h := it.regions[0]
	ino, op := ord.Uint64(h[attriIno:]), ord.Uint32(h[attriOp:])&0xff
	nameLen, valueLen := uint64(ord.Uint32(h[attriNameLen:])), uint64(ord.Uint32(h[attriValLen:]))
	filter := uint8(ord.Uint32(h[attriFilter:]))
	if op > attriReplace || filter&attrParent != 0 {
		return func(*fsys) error { return nil }
	}
	rest := it.regions[1:]
	return func(f *fsys) error {
		bad := ondisk.Corrupt(fmt.Sprintf("xfs attribute intent of inode %d", ino), "name and value", -1, fmt.Sprintf("%d, %d", nameLen, valueLen))
		if len(rest) < 1 || nameLen == 0 || nameLen > 255 || uint64(len(rest[0])) < nameLen {
			return bad
		}
		a := attrOp{name: attrName(filter, rest[0][:nameLen]), remove: op == attriRemove}
		if valueLen > 0 {
			if len(rest) < 2 || valueLen > maxAttrValue || uint64(len(rest[1])) < valueLen {
				return bad
			}
			a.value = rest[1][:valueLen]
		}
		if _, ok := f.inodePlace(ino); !ok {
			return bad
		}
		p := f.patch(ino)
		p.attrs = append(p.attrs, a)
		return nil
	}
}
