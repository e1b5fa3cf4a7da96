package partition

import (
	"encoding/binary"
	"fmt"
	"strings"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// raidLayouts are dm-raid's names for the kernel's level and layout (drivers/md/dm-raid.c, raid_types). Its raid4 has
// its parity on the first member.
var raidLayouts = map[string]struct{ level, layout int }{
	"raid4": {5, 4}, "raid5": {5, 2}, "raid5_la": {5, 0}, "raid5_ra": {5, 1}, "raid5_ls": {5, 2}, "raid5_rs": {5, 3}, "raid5_n": {5, 5},
	"raid6": {6, 8}, "raid6_zr": {6, 8}, "raid6_nr": {6, 9}, "raid6_nc": {6, 10}, "raid6_n_6": {6, 5},
	"raid6_la_6": {6, 16}, "raid6_ra_6": {6, 17}, "raid6_ls_6": {6, 18}, "raid6_rs_6": {6, 19},
}

// raid composes a segment of the raid types. Each leg is a logical volume of its own, with another one beside it that
// holds dm-raid's superblock: it tells which legs are stale.
func (c *segment) raid(kind string) (formats.Mapper, error) {
	if n := c.n.number("data_offset"); n > 1 || c.n.values["reshape_count"] != nil {
		return nil, ondisk.Unsupported("lvm2 segment", "an array that changes its shape, data offset", -1, n)
	}
	var names, metas []string
	list := c.n.list("raid0_lvs")
	for _, x := range list {
		name, _ := x.(string)
		names, metas = append(names, name), append(metas, "")
	}
	if list = c.n.list("raids"); len(names) == 0 {
		for i := 0; i+1 < len(list); i += 2 {
			meta, _ := list[i].(string)
			name, _ := list[i+1].(string)
			names, metas = append(names, name), append(metas, meta)
		}
	}
	k := int64(len(names))
	if k == 0 {
		return nil, ondisk.Corrupt("lvm2 segment", "raid without legs", -1, nil)
	}
	chunk := c.n.number("stripe_size") * 512
	if chunk < 512 && kind != "raid1" {
		return nil, ondisk.Corrupt("lvm2 segment", "stripe size", -1, chunk/512)
	}
	copies := max(c.n.number("data_copies"), 2)
	each := c.size // bytes of a leg
	lay := raidLayouts[kind]
	spare := 0
	switch {
	case kind == "raid0" || kind == "raid0_meta":
		each = c.size / k
	case kind == "raid10" || kind == "raid10_near":
		each = (c.size*copies/k + chunk - 1) / chunk * chunk
	case lay.level != 0:
		if spare = lay.level - 4; k <= int64(spare) {
			return nil, ondisk.Corrupt("lvm2 segment", "number of legs", -1, k)
		}
		each = c.size / (k - int64(spare))
	}
	if each <= 0 {
		return nil, ondisk.Corrupt("lvm2 segment", "extents for its legs", -1, c.size)
	}
	var places [][]Segment
	var failed error
	legs := make([]formats.Mapper, k)
	supers := make([]*dmRaidSuper, k)
	for i, name := range names {
		m, p, err := c.area(name, 0, each)
		legs[i], places, failed = m, append(places, p), or(failed, err)
		supers[i] = c.g.raidSuper(metas[i])
	}
	c.leaveStale(legs, supers)
	c.place(kind, places, each, chunk)
	switch {
	case kind == "raid1":
		return c.redundant(mirror{legs, c.size}, failed)
	case strings.HasPrefix(kind, "raid0"):
		return striped{legs: legs, chunk: chunk, n: c.size}, failed
	case lay.level == 0:
		r, err := newRAID10(legs, int(copies)|1<<8, chunk, each)
		if err != nil {
			return nil, err
		}
		return c.redundant(section(r, 0, c.size), failed)
	}
	f, err := parityLayout(lay.level, lay.layout, int(k))
	if err != nil {
		return nil, err
	}
	return c.redundant(&parity{legs: legs, chunk: chunk, place: f, parity: spare, n: c.size, ddf: lay.level == 6 && ddfQ(lay.layout)}, failed)
}

// raidSuper reads the superblock in a metadata volume; nil: there is none to be had.
func (g *lvmGroup) raidSuper(name string) *dmRaidSuper {
	lv := g.lvs[name]
	if lv == nil {
		return nil
	}
	m, _, err := g.volume(lv)
	if err != nil || m.Size() < 4096 {
		return nil
	}
	b := make([]byte, 512)
	if ondisk.ReadFull(formats.NewDisk(m, g.env), b, 0, "dm-raid superblock") != nil {
		return nil
	}
	var s dmRaidSuper
	if _, err := binary.Decode(b, le, &s); err != nil || s.Magic != dmRaidMagic {
		return nil
	}
	return &s
}

// leaveStale makes the legs missing that the newest superblock calls failed, or that missed events; one event apart is
// what an update that was cut short leaves.
func (c *segment) leaveStale(legs []formats.Mapper, supers []*dmRaidSuper) {
	var newest *dmRaidSuper
	for _, s := range supers {
		if s != nil && (newest == nil || s.Events > newest.Events) {
			newest = s
		}
	}
	if newest == nil {
		return
	}
	for i, s := range supers {
		n := legs[i].Size()
		switch {
		case i < 64 && newest.Failed>>i&1 != 0, s != nil && s.Events+1 < newest.Events:
			c.lv.notes = append(c.lv.notes, fmt.Sprintf("degraded: leg %d is stale", i))
			legs[i] = nothing{formats.Missing, n}
		case s != nil && s.Recovery < uint64(n/512):
			c.lv.notes = append(c.lv.notes, fmt.Sprintf("degraded: leg %d is rebuilt up to sector %d", i, s.Recovery))
			legs[i] = without(legs[i], [][2]int64{{int64(s.Recovery) * 512, n}})
		}
	}
}
