package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// checkWindow is how many sectors of an extent's file are looked at in one pass over its tables: 256 GiB, with a bit
// for each sector in 64 MiB of memory at most.
const checkWindow = 1 << 29

// maxReports bounds what is told of one kind of damage in one extent.
const maxReports = 10

// check implements formats.Format's Check: what opening tells as a problem (a parent's CID, sizes that don't agree,
// directories that point outside), grains and tables that overlap or lie outside their file, redundant tables that
// differ, compressed grains whose marker is another one's.
func check(f *formats.File, o *formats.Opener, report func(formats.Finding)) error {
	p, err := prepare(f, o)
	if err != nil {
		return err
	}
	for _, err := range p.img.Problems {
		report(formats.Finding{What: "image", File: f, Off: formats.NoPos, Found: err.Error()})
	}
	for _, x := range p.sparse {
		for _, n := range x.notes { // what was mended from the spare
			report(formats.Finding{What: "extent", File: f, Off: formats.NoPos, Found: n})
		}
		g, ok := x.layer.(*grains)
		if !ok { // a stream without tables, which is among the problems
			continue
		}
		c := &checker{extent: x, f: g.f, report: report, told: map[string]int{}}
		if err := c.check(g); err != nil {
			return fmt.Errorf("%s: %w", g.f.Path, err)
		}
	}
	return nil
}

// checker checks one sparse extent.
type checker struct {
	*extent
	f      *formats.File
	report func(formats.Finding)
	told   map[string]int

	base, end int64    // the window, in sectors
	bits      []uint64 // the sectors in it that something lies in
}

// found reports damage of a kind, up to a number.
func (c *checker) found(what string, off int64, expected, format string, args ...any) {
	c.told[what]++
	switch n := c.told[what]; {
	case n < maxReports:
		c.report(formats.Finding{What: what, File: c.f, Off: off, Expected: expected, Found: fmt.Sprintf(format, args...)})
	case n == maxReports:
		c.report(formats.Finding{What: what, File: c.f, Off: off, Found: "more of the kind, which are not listed"})
	}
}

func (c *checker) check(g *grains) error {
	if t := c.tables; t != nil && t.spare != nil {
		c.compareSpares(g, t)
	}
	sectors := (g.f.Size + sector - 1) / sector
	for c.base = 0; c.base < sectors; c.base = c.end {
		c.end = min(sectors, c.base+checkWindow)
		c.bits = make([]uint64, (c.end-c.base+63)/64)
		for _, m := range c.fixed {
			c.mark(m.what, 0, m.off, m.size)
		}
		if err := c.pass(g); err != nil {
			return err
		}
	}
	return nil
}

// compareSpares compares each table with its spare.
func (c *checker) compareSpares(g *grains, t *tableReader) {
	size := g.perTable * g.entryLen
	a, b := make([]byte, size), make([]byte, size)
	for i, v := range g.dir {
		if v == 0 || t.spare[i] == 0 {
			continue
		}
		n := min(g.perTable, g.count-int64(i)*g.perTable) * g.entryLen
		errA := ondisk.ReadFull(g.f, a[:n], t.pos(v), "grain table")
		errB := ondisk.ReadFull(g.f, b[:n], t.pos(t.spare[i]), "grain table")
		switch {
		case errA != nil || errB != nil:
			c.found("grain table", t.pos(v), "", "table %d or its spare can't be read", i)
		case !bytes.Equal(a[:n], b[:n]):
			c.found("redundant grain table", t.pos(t.spare[i]), fmt.Sprintf("what table %d holds", i), "other entries")
		}
	}
}

// pass goes through all tables for what lies in the window.
func (c *checker) pass(g *grains) error {
	for i, v := range g.dir {
		if v == 0 {
			continue
		}
		first := int64(i) * g.perTable
		n := min(g.perTable, g.count-first)
		c.mark("grain table", int64(i), c.tables.pos(v), n*g.entryLen)
		if s := c.tables.spare; s != nil && s[i] != 0 {
			c.mark("redundant grain table", int64(i), c.tables.pos(s[i]), n*g.entryLen)
		}
		table, err := g.table(first)
		if err != nil {
			if c.base == 0 {
				c.found("grain table", c.tables.pos(v), "", "%v", err)
			}
			continue
		}
		for no := first; no < first+n; no++ {
			if err := c.grain(g, no, g.at(table, no)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *checker) grain(g *grains, no int64, e entry) error {
	size := min(g.grain, g.size-no*g.grain)
	switch {
	case e.kind == formats.Missing && c.base == 0:
		c.found("grain table", formats.NoPos, "", "entry %#x of grain %d", e.raw, no)
	case e.kind != formats.Data:
		return nil
	case e.off > g.f.Size-min(size, sector):
		if c.base == 0 {
			c.found("grain", e.off, fmt.Sprintf("inside a file of %d bytes", g.f.Size), "grain %d", no)
		}
		return nil
	}
	if e.off/sector < c.base || e.off/sector >= c.end {
		return nil
	}
	if g.compressed && g.markers {
		var m [markerGrainLen]byte
		if err := ondisk.ReadFull(g.f, m[:], e.off, "marker"); err != nil {
			return err
		}
		lba := binary.LittleEndian.Uint64(m[:])
		size = markerGrainLen + int64(binary.LittleEndian.Uint32(m[8:]))
		if size > maxCoded(g.grain)+markerGrainLen {
			c.found("grain marker", e.off, "", "grain %d has %d coded bytes", no, size-markerGrainLen)
			return nil
		}
		if lba != uint64(no*g.grain/sector) {
			c.found("grain marker", e.off, fmt.Sprintf("sector %d", no*g.grain/sector), "sector %d", lba)
		}
	} else if g.compressed {
		return nil // nothing tells how long it is
	}
	if e.off > g.f.Size-size {
		c.found("grain", e.off, fmt.Sprintf("inside a file of %d bytes", g.f.Size), "grain %d of %d bytes", no, size)
		return nil
	}
	c.mark("grain", no, e.off, size)
	return nil
}

// mark notes that something lies in a stretch of the file, and tells if something else does.
func (c *checker) mark(what string, no, off, size int64) {
	first, last := off/sector, (off+size-1)/sector
	for s := max(first, c.base); s <= min(last, c.end-1); s++ {
		i := s - c.base
		if c.bits[i/64]>>(i%64)&1 == 1 {
			c.found("overlap", off, "", "%s %d lies where something else does", what, no)
			return
		}
		c.bits[i/64] |= 1 << (i % 64)
	}
}
