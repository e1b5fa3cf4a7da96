package partition

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// lvmLV is a logical volume, visible or a piece of another one.
type lvmLV struct {
	name     string
	node     *lvmNode
	kind     string // the type of its segments
	m        formats.Mapper
	segs     []Segment
	err      error
	notes    []string
	problems []error
	hidden   bool // it stands for a snapshot, which has the name of its store
	shown    bool // it is the store of a visible snapshot
	busy     bool // being composed: a volume that leads back here is a loop
}

const (
	maxLVBytes  = 1 << 60 // of a volume; LVM2 itself stops at 8 EiB
	maxLVDepth  = 32      // layers of volumes; LVM2 stacks half a dozen
	maxSegments = 64 << 10
)

// volume composes a logical volume. The mapper is never nil; with an error parts of it are missing.
func (g *lvmGroup) volume(lv *lvmLV) (formats.Mapper, []Segment, error) {
	if lv.m != nil {
		return lv.m, lv.segs, lv.err
	}
	if lv.busy {
		return nothing{formats.Missing, 0}, nil, ondisk.Corrupt("lvm2 metadata", "a volume that is made of itself", -1, lv.name)
	}
	if g.depth >= maxLVDepth {
		return nothing{formats.Missing, 0}, nil, ondisk.Unsupported("lvm2 metadata", "volumes made of volumes, layers", -1, g.depth)
	}
	lv.busy = true
	g.depth++
	lv.m, lv.segs, lv.err = g.composeLV(lv)
	g.depth--
	lv.busy = false
	return lv.m, lv.segs, lv.err
}

func (g *lvmGroup) composeLV(lv *lvmLV) (formats.Mapper, []Segment, error) {
	j := &joined{}
	var out []Segment
	var first error
	segments := slices.Clone(lv.node.sections)
	segments = slices.DeleteFunc(segments, func(n *lvmNode) bool { return !strings.HasPrefix(n.name, "segment") })
	slices.SortStableFunc(segments, func(a, b *lvmNode) int { return int(a.number("start_extent") - b.number("start_extent")) })
	for _, n := range segments {
		start, size := n.number("start_extent"), n.number("extent_count")
		if start > maxLVBytes/g.extent || size > maxLVBytes/g.extent || start*g.extent < j.Size() {
			first = or(first, ondisk.Corrupt("lvm2 metadata", "extents of "+lv.name, -1, fmt.Sprintf("%d+%d", start, size)))
			break
		}
		if hole := start*g.extent - j.Size(); hole > 0 {
			first = or(first, ondisk.Corrupt("lvm2 metadata", "extents of "+lv.name+" that no segment covers", -1, hole/g.extent))
			j.add(nothing{formats.Missing, hole})
		}
		c := &segment{g: g, lv: lv, n: n, at: j.Size(), size: size * g.extent}
		m, err := c.compose()
		if err != nil {
			first = or(first, fmt.Errorf("segment at %d of %s: %w", c.at, lv.name, err))
		}
		if m == nil {
			m = nothing{formats.Missing, c.size}
			c.out = []Segment{{At: c.at, Len: c.size, Kind: "missing"}}
		}
		j.add(m)
		if out = append(out, c.out...); len(out) > maxSegments {
			return nothing{formats.Missing, j.Size()}, nil, ondisk.Unsupported("lvm2 metadata", "stretches of "+lv.name, -1, len(out))
		}
		if kind := c.kind(); lv.kind == "" {
			lv.kind = kind
		}
	}
	if s := g.stores[lv.name]; s != nil {
		m, out, err := g.openSnapshot(lv, s, j)
		return m, out, or(first, err)
	}
	if len(j.parts) == 1 {
		return j.parts[0], out, first
	}
	return j, out, first
}

func or(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// segment is one segment while it is composed.
type segment struct {
	g        *lvmGroup
	lv       *lvmLV
	n        *lvmNode
	at, size int64 // bytes in the volume
	out      []Segment
}

func (c *segment) kind() string {
	typ, _, _ := strings.Cut(c.n.text("type"), "+") // "striped+flags"
	if typ == "striped" && c.n.number("stripe_count") <= 1 {
		return "linear"
	}
	return typ
}

// compose gives the mapper of the segment; nil: all of it is missing.
func (c *segment) compose() (formats.Mapper, error) {
	if typ := c.n.text("type"); strings.Contains(typ, "+") {
		return nil, ondisk.Unsupported("lvm2 segment", "flags in type "+typ, -1, nil)
	}
	switch kind := c.kind(); kind {
	case "linear", "striped":
		return c.stripes(c.n.list("stripes"))
	case "mirror":
		return c.mirror()
	case "raid0", "raid0_meta", "raid1", "raid4", "raid5", "raid5_la", "raid5_ra", "raid5_ls", "raid5_rs", "raid5_n", "raid6", "raid6_zr",
		"raid6_nr", "raid6_nc", "raid6_n_6", "raid6_ls_6", "raid6_rs_6", "raid6_la_6", "raid6_ra_6", "raid10", "raid10_near":
		return c.raid(kind)
	case "thin":
		return c.thin()
	case "thin-pool":
		return c.whole(c.n.text("pool"), "the data of a thin pool: its volumes are listed for themselves")
	case "cache":
		return c.cache()
	case "zero":
		c.out = []Segment{{At: c.at, Len: c.size, Kind: "zero"}}
		return nothing{formats.Zero, c.size}, nil
	case "error":
		return nil, ondisk.Corrupt("lvm2 segment", "it stands for an error", -1, nil)
	default:
		return nil, ondisk.Unsupported("lvm2 segment", fmt.Sprintf("type %q", kind), -1, nil)
	}
}

// area gives n bytes of a physical or logical volume from an extent on, and where they lie on physical volumes.
func (c *segment) area(name string, extent, n int64) (formats.Mapper, []Segment, error) {
	g := c.g
	if extent > maxLVBytes/g.extent {
		return nothing{formats.Missing, n}, nil, ondisk.Corrupt("lvm2 segment", "extent", -1, extent)
	}
	if lv := g.lvs[name]; lv != nil {
		m, segs, err := g.volume(lv)
		return section(m, extent*g.extent, n), cut(segs, extent*g.extent, n), err
	}
	pvs := g.text.node.section("physical_volumes")
	if pvs == nil || pvs.section(name) == nil {
		return nothing{formats.Missing, n}, nil, ondisk.Corrupt("lvm2 segment", "unknown volume", -1, name)
	}
	pv := pvs.section(name)
	start := pv.number("pe_start")*512 + extent*g.extent
	p := g.pvs[strings.ReplaceAll(pv.text("id"), "-", "")]
	if p == nil {
		err := ondisk.Truncated("lvm2", "physical volume "+pv.text("id")+" is missing", -1, nil)
		return nothing{formats.Missing, n}, []Segment{{Len: n, Kind: "missing"}}, err
	}
	out := []Segment{{Len: n, Kind: "linear", Volumes: []int{p.vol}, Starts: []int64{start}}}
	var err error
	if !ondisk.Within(start, n, p.disk.Size()) {
		err = ondisk.Truncated("lvm2", "physical volume "+pv.text("id")+" ends before extent", -1, extent)
	}
	return section(p.disk, start, n), out, err
}

// cut gives what segs say of n bytes from off, counted from there.
func cut(segs []Segment, off, n int64) []Segment {
	var out []Segment
	for _, s := range segs {
		start, end := max(s.At, off), min(s.At+s.Len, off+n)
		if start >= end {
			continue
		}
		d := start - s.At
		s.At, s.Len = start-off, end-start
		if s.Kind == "linear" {
			s.Starts = []int64{s.Starts[0] + d}
		}
		out = append(out, s)
	}
	return out
}

// legs takes pairs of a volume and an extent.
func (c *segment) legs(list []any, n int64) (legs []formats.Mapper, places [][]Segment, err error) {
	for i := 0; i+1 < len(list); i += 2 {
		name, ok := list[i].(string)
		extent, ok2 := list[i+1].(int64)
		if !ok || !ok2 || extent < 0 {
			return nil, nil, ondisk.Corrupt("lvm2 segment", "list of volumes", -1, fmt.Sprint(list[i:i+2]))
		}
		m, s, err1 := c.area(name, extent, n)
		legs, places, err = append(legs, m), append(places, s), or(err, err1)
	}
	return legs, places, err
}

func (c *segment) stripes(list []any) (formats.Mapper, error) {
	k := int64(len(list) / 2)
	if k == 0 || k != max(c.n.number("stripe_count"), 1) {
		return nil, ondisk.Corrupt("lvm2 segment", "number of stripes", -1, c.n.number("stripe_count"))
	}
	legs, places, err := c.legs(list, c.size/k)
	if legs == nil {
		return nil, err
	}
	if k == 1 {
		for _, s := range places[0] {
			s.At += c.at
			c.out = append(c.out, s)
		}
		return legs[0], err
	}
	return c.striped(legs, places, "striped", err)
}

// striped joins legs by the segment's stripe size.
func (c *segment) striped(legs []formats.Mapper, places [][]Segment, kind string, err error) (formats.Mapper, error) {
	chunk := c.n.number("stripe_size") * 512
	if chunk < 512 || chunk > maxLVBytes {
		return nil, ondisk.Corrupt("lvm2 segment", "stripe size", -1, chunk/512)
	}
	c.place(kind, places, c.size/int64(len(legs)), chunk)
	return striped{legs: legs, chunk: chunk, n: c.size}, err
}

// place tells on which volumes legs of each bytes lie side by side: one Segment for each stretch in which no leg changes
// its place.
func (c *segment) place(kind string, legs [][]Segment, each, chunk int64) {
	if each <= 0 {
		return
	}
	borders := []int64{each}
	for _, l := range legs {
		for _, s := range l {
			if s.At < each {
				borders = append(borders, s.At)
			}
		}
	}
	slices.Sort(borders)
	borders = slices.Compact(borders)
	// scale turns a position in a leg into one in the segment.
	scale := func(x int64) int64 {
		hi, lo := bits.Mul64(uint64(x), uint64(c.size))
		q, _ := bits.Div64(hi, lo, uint64(each)) // x <= each, so that it fits
		return int64(q)
	}
	for i := 0; i+1 < len(borders); i++ {
		start, end := borders[i], borders[i+1]
		s := Segment{At: c.at + scale(start), Len: scale(end) - scale(start), Kind: kind, Stripe: chunk}
		for _, l := range legs {
			for _, x := range cut(l, start, end-start) {
				s.Volumes, s.Starts = append(s.Volumes, x.Volumes...), append(s.Starts, x.Starts...)
			}
		}
		c.out = append(c.out, s)
	}
}

func (c *segment) mirror() (formats.Mapper, error) {
	legs, places, err := c.legs(c.n.list("mirrors"), c.size)
	if len(legs) == 0 {
		return nil, or(err, ondisk.Corrupt("lvm2 segment", "mirror without legs", -1, nil))
	}
	c.place("mirror", places, c.size, 0)
	return c.redundant(mirror{legs, c.size}, err)
}

// redundant keeps quiet about a leg that is missing: what the others have is said where it is read.
func (c *segment) redundant(m formats.Mapper, err error) (formats.Mapper, error) {
	if err != nil && isMissing(err) {
		c.lv.notes = append(c.lv.notes, fmt.Sprintf("degraded: %v", err))
		err = nil
	}
	return m, err
}

// whole maps the segment to the start of one other volume.
func (c *segment) whole(name, note string) (formats.Mapper, error) {
	m, places, err := c.area(name, 0, c.size)
	for _, s := range places {
		s.At += c.at
		c.out = append(c.out, s)
	}
	if note != "" {
		c.lv.notes = append(c.lv.notes, note)
	}
	return m, err
}

// cache reads the origin of a cached volume, where that is always up to date.
func (c *segment) cache() (formats.Mapper, error) {
	mode := c.n.text("cache_mode")
	if pool := c.g.lvs[c.n.text("cache_pool")]; pool != nil && mode == "" {
		for _, s := range pool.node.sections {
			if mode = s.text("cache_mode"); mode != "" {
				break
			}
		}
	}
	if mode != "writethrough" && mode != "passthrough" {
		return nil, ondisk.Unsupported("lvm2 segment", fmt.Sprintf("cache in mode %q, whose newest blocks may be in the cache only", mode), -1, nil)
	}
	return c.whole(c.n.text("origin"), "cached ("+mode+"): read from the origin, which is up to date")
}
