package partition

import (
	"cmp"
	"fmt"
	"slices"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// A device-mapper snapshot keeps what the origin held before it was written to, in chunks that a store tells of
// (drivers/md/dm-snap-persistent.c): a header, then areas of exceptions, each followed by the chunks it names.
const (
	cowMagic     = 0x70416e53 // "SnAp"
	cowVersion   = 1
	cowEntry     = 16
	maxCowChunk  = 1 << 20 // sectors
	maxCowChunks = 16 << 20
)

// cow is a snapshot: the store's chunks over the origin.
type cow struct {
	origin, store formats.Mapper
	chunk         int64
	moved         []exception // by old
}

// exception says that chunks old to old+n-1 of the snapshot are chunks in… of the store.
type exception struct{ old, in, n int64 }

func (c *cow) Size() int64 { return c.origin.Size() }

func (c *cow) ExtentAt(off, max int64) (formats.Extent, error) {
	k := off / c.chunk
	i, ok := slices.BinarySearchFunc(c.moved, k, func(e exception, k int64) int { return cmp.Compare(e.old, k) })
	if !ok {
		i--
	}
	if i >= 0 && k < c.moved[i].old+c.moved[i].n {
		e := c.moved[i]
		return at0(c.store, (e.in+k-e.old)*c.chunk+off%c.chunk, min(max, (e.old+e.n)*c.chunk-off))
	}
	if i+1 < len(c.moved) {
		max = min(max, c.moved[i+1].old*c.chunk-off)
	}
	return c.origin.ExtentAt(off, max)
}

// openCow reads the exceptions of a store.
func openCow(origin, store formats.Mapper, env *formats.Env) (*cow, error) {
	const what = "snapshot store"
	d := formats.NewDisk(store, env)
	head := make([]byte, 16)
	if err := ondisk.ReadFull(d, head, 0, what); err != nil {
		return nil, err
	}
	switch {
	case le.Uint32(head) != cowMagic:
		return nil, ondisk.Corrupt(what, "magic", 0, fmt.Sprintf("%#x", le.Uint32(head)))
	case le.Uint32(head[4:]) == 0:
		return nil, ondisk.Corrupt(what, "it is marked as invalid: it ran full", 4, nil)
	case le.Uint32(head[8:]) != cowVersion:
		return nil, ondisk.Unsupported(what, "version", 8, le.Uint32(head[8:]))
	}
	sectors := int64(le.Uint32(head[12:]))
	if sectors == 0 || sectors > maxCowChunk || sectors&(sectors-1) != 0 {
		return nil, ondisk.Corrupt(what, "chunk size", 12, sectors)
	}
	c := &cow{origin: origin, store: store, chunk: sectors * 512}
	chunks := store.Size() / c.chunk
	each := c.chunk / cowEntry
	buf := make([]byte, c.chunk)
	for area := int64(1); area < chunks; area += each + 1 {
		if err := ondisk.ReadFull(d, buf, area*c.chunk, what); err != nil {
			return nil, err
		}
		for b := buf; len(b) > 0; b = b[cowEntry:] {
			old, in := le.Uint64(b), le.Uint64(b[8:])
			if in == 0 {
				return c, c.sort()
			}
			if old >= uint64((origin.Size()+c.chunk-1)/c.chunk) || in >= uint64(chunks) {
				return nil, ondisk.Corrupt(what, "exception", area*c.chunk, fmt.Sprintf("%d in %d", old, in))
			}
			if last := len(c.moved) - 1; last >= 0 && c.moved[last].old+c.moved[last].n == int64(old) && c.moved[last].in+c.moved[last].n == int64(in) {
				c.moved[last].n++
				continue
			}
			if len(c.moved) >= maxCowChunks {
				return nil, ondisk.Unsupported(what, "number of exceptions", -1, len(c.moved))
			}
			c.moved = append(c.moved, exception{int64(old), int64(in), 1})
		}
	}
	return c, c.sort()
}

func (c *cow) sort() error {
	slices.SortFunc(c.moved, func(a, b exception) int { return cmp.Compare(a.old, b.old) })
	for i := 1; i < len(c.moved); i++ {
		if p := c.moved[i-1]; p.old+p.n > c.moved[i].old {
			return ondisk.Corrupt("snapshot store", "two exceptions for chunk", -1, c.moved[i].old)
		}
	}
	return nil
}

// findSnapshots collects the segments that make one volume, a store, the snapshot of another. They belong to volumes
// that exist in the text only ("snapshot0"); the snapshot that a user knows has the store's name.
func (g *lvmGroup) findSnapshots() {
	g.stores = make(map[string]*lvmNode)
	for name, lv := range g.lvs {
		for _, s := range lv.node.sections {
			if s.text("type") != "snapshot" {
				continue
			}
			lv.hidden = true
			if store := g.lvs[s.text("cow_store")]; store != nil {
				g.stores[store.name] = s
				store.shown = lv.node.has("status", "VISIBLE")
			} else if origin := g.lvs[s.text("origin")]; origin != nil && s.text("merging_store") != "" {
				origin.problems = append(origin.problems, ondisk.Unsupported("lvm2 metadata", "a snapshot that is being merged into it", -1, name))
			}
		}
	}
}

func (g *lvmGroup) openSnapshot(lv *lvmLV, n *lvmNode, store *joined) (formats.Mapper, []Segment, error) {
	lv.kind = "snapshot"
	name := n.text("origin")
	origin := g.lvs[name]
	if origin == nil {
		return nothing{formats.Missing, store.Size()}, nil, ondisk.Corrupt("lvm2 metadata", "origin of snapshot "+lv.name, -1, name)
	}
	m, segs, err := g.volume(origin)
	s := Segment{Len: m.Size(), Kind: "snapshot"}
	for _, x := range segs {
		s.Volumes, s.Starts = append(s.Volumes, x.Volumes...), append(s.Starts, x.Starts...)
	}
	lv.notes = append(lv.notes, "snapshot of "+name)
	c, err2 := openCow(m, store, g.env)
	if err2 != nil {
		return nothing{formats.Missing, m.Size()}, []Segment{s}, err2
	}
	return c, []Segment{s}, err
}
