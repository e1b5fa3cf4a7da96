package qcow2

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// checker compares what refers to each cluster of the image with the refcounts that it stores, as qemu-img check does.
type checker struct {
	h        *info
	f        *formats.File
	report   func(formats.Finding)
	clusters int64 // of the host file
	uses     uses
	blocks   []int64 // refcount blocks: positions, 0 for none, -1 for those that can't be had
	stored   *ondisk.Cache
}

// maxCheckClusters bounds the memory of a check: it takes 4 bytes for each cluster in use, and at most 4 GiB.
const maxCheckClusters = 1 << 30

// maxCheckL1 bounds the L1 entries of all snapshots together.
const maxCheckL1 = 1 << 28

// check implements formats.Format's Check.
func check(f *formats.File, _ *formats.Opener, report func(formats.Finding)) error {
	h, err := readHeader(f)
	if err != nil {
		return err
	}
	c := &checker{h: h, f: f, report: report, clusters: (f.Size + h.clusterSize() - 1) >> h.ClusterBits}
	if c.clusters > maxCheckClusters {
		return ondisk.Unsupported("qcow2 check", "number of clusters", -1, c.clusters)
	}
	c.uses = make(uses, c.clusters>>pageBits+1)
	c.use(0, h.clusterSize(), 1, alone)
	if h.crypto != nil {
		c.useRange(h.crypto.Offset, h.crypto.Length, "encryption header")
	}
	if err := c.refcounts(); err != nil {
		return err
	}
	// L1 tables first: they tell how often each L2 table is used.
	snapshots, err := readSnapshots(f, h)
	if err != nil {
		c.found("snapshots", int64(h.SnapshotsOffset), "", err.Error())
	}
	if n := len(snapshots); n > 0 {
		c.useRange(h.SnapshotsOffset, uint64(snapshots[n-1].end)-h.SnapshotsOffset, "snapshot table")
	}
	if err := c.l1(h.L1TableOffset, h.L1Size, true); err != nil {
		return err
	}
	total := int64(h.L1Size)
	for _, s := range snapshots {
		if total += int64(s.l1Size); total > maxCheckL1 {
			return ondisk.Unsupported("qcow2 check", "L1 entries of all snapshots", -1, total)
		}
		if err := h.checkL1(s.l1, s.l1Size, 0, fmt.Sprintf("snapshot %q", s.ID), s.at); err != nil {
			c.found("snapshots", s.at, "", err.Error())
			continue
		}
		if err := c.l1(s.l1, s.l1Size, false); err != nil {
			return err
		}
	}
	if err := c.l2Tables(); err != nil {
		return err
	}
	if h.bitmaps != nil && h.Autoclear&autoclearBitmaps != 0 {
		c.bitmaps()
	}
	c.compare()
	return nil
}

func (c *checker) found(what string, off int64, expected, found string) {
	c.report(formats.Finding{What: what, File: c.f, Off: off, Expected: expected, Found: found})
}

// uses counts, for each cluster, what refers to it; the upper bits say what it is.
type uses [][]uint32

const (
	pageBits = 16
	alone    = 1 << 31 // header, L1 or refcount table and so on: nothing else may be there
	table    = 1 << 30 // an L2 table
	active   = 1 << 29 // an L2 table of the active state
	data     = 1 << 28
	roles    = alone | table | data
	count    = data - 1
)

func (u uses) at(cluster int64) uint32 {
	if p := u[cluster>>pageBits]; p != nil {
		return p[cluster&(1<<pageBits-1)]
	}
	return 0
}

// use counts n more uses of each cluster that the bytes lie in. What they are for is one of the roles; clusters that
// are two things are reported. It tells whether the bytes lie in the file.
func (c *checker) use(off, size int64, n uint32, role uint32) bool {
	if size == 0 {
		return true
	}
	// The last cluster may be there in part.
	if off < 0 || !ondisk.Within(off, size, c.clusters<<c.h.ClusterBits) {
		return false
	}
	for i := off >> c.h.ClusterBits; i <= (off+size-1)>>c.h.ClusterBits; i++ {
		p := &c.uses[i>>pageBits]
		if *p == nil {
			*p = make([]uint32, 1<<pageBits)
		}
		u := &(*p)[i&(1<<pageBits-1)]
		if is := *u & roles; is != 0 && (is != role&roles || is == alone) {
			c.found("overlap", i<<c.h.ClusterBits, names[is&-is], names[role&roles])
		}
		*u = *u&^count | role | min(*u&count+n, count)
	}
	return true
}

var names = map[uint32]string{alone: "metadata", table: "L2 table", data: "data"}

// useRange counts metadata that lies in one piece.
func (c *checker) useRange(off, size uint64, what string) {
	if off > 1<<62 || size > 1<<62 || !c.use(int64(off), int64(size), 1, alone) {
		c.found("table", int64(off), what+" in the file", fmt.Sprintf("%d bytes past its end", size))
	}
}

// refcounts reads the refcount table and counts it and its blocks.
func (c *checker) refcounts() error {
	n := int64(c.h.RefcountTableClusters) << c.h.ClusterBits
	switch {
	case n > maxRefcountTable:
		return ondisk.Unsupported("qcow2 header", "clusters of the refcount table", 56, c.h.RefcountTableClusters)
	case c.h.RefcountTableOffset&uint64(c.h.clusterSize()-1) != 0 || c.h.RefcountTableOffset > 1<<56:
		return ondisk.Corrupt("qcow2 header", "refcount table's offset", 48, c.h.RefcountTableOffset)
	}
	at := int64(c.h.RefcountTableOffset)
	buf, err := ondisk.Read(c.f, at, n, "qcow2 refcount table")
	if err != nil {
		return err
	}
	c.use(at, n, 1, alone)
	c.blocks = make([]int64, n/8)
	for i := range c.blocks {
		e := binary.BigEndian.Uint64(buf[8*i:])
		c.blocks[i] = -1
		switch {
		case e&uint64(c.h.clusterSize()-1) != 0:
			c.found("table", at+8*int64(i), "refcount block at a cluster's start", fmt.Sprintf("%#x", e))
		case e>>c.h.ClusterBits >= uint64(c.clusters):
			c.found("table", at+8*int64(i), "refcount block in the file", fmt.Sprintf("%#x", e))
		default:
			c.blocks[i] = int64(e)
			if e != 0 {
				c.use(int64(e), c.h.clusterSize(), 1, alone)
			}
		}
	}
	c.stored = ondisk.NewCache(c.f, c.f.Size, int(pageSize(c.h.clusterSize())), tableCache)
	return nil
}

// refcount gives the refcount that is stored for a cluster; ok is false where it can't be had.
func (c *checker) refcount(cluster int64) (n uint64, ok bool) {
	perBlock := c.h.clusterSize() * 8 >> c.h.RefcountOrder
	i := cluster / perBlock
	if i >= int64(len(c.blocks)) || c.blocks[i] == 0 {
		return 0, true
	}
	if c.blocks[i] < 0 {
		return 0, false
	}
	bit := cluster % perBlock << c.h.RefcountOrder
	width := int64(1) << c.h.RefcountOrder
	b, err := c.stored.Slice(c.blocks[i]+bit/8, int(max(width/8, 1)))
	if err != nil {
		return 0, false
	}
	for _, x := range b {
		n = n<<8 | uint64(x)
	}
	if width < 8 {
		n = n >> (bit % 8) & (1<<width - 1)
	}
	return n, true
}

// l1 counts an L1 table and the L2 tables that it names.
func (c *checker) l1(off uint64, entries uint32, isActive bool) error {
	at, n := int64(off), int64(entries)*8
	if !c.use(at, n, 1, alone) {
		c.found("table", at, "L1 table in the file", fmt.Sprintf("%d bytes past its end", n))
		return nil
	}
	r := newTable(c.f, at, n)
	for i := int64(0); i < n; i += 8 {
		b, err := r.next(8)
		if err != nil {
			c.found("table", at+i, "", err.Error())
			return nil
		}
		e := binary.BigEndian.Uint64(b)
		if e&l1Reserved != 0 {
			c.found("entry", at+i, "reserved bits of an L1 entry clear", fmt.Sprintf("%#x", e))
		}
		l2 := int64(e & offsetMask)
		if l2 == 0 {
			continue
		}
		role := uint32(table)
		if isActive {
			role |= active
		}
		if l2&(c.h.clusterSize()-1) != 0 {
			c.found("entry", at+i, "L2 table at a cluster's start", fmt.Sprintf("%#x", l2))
			continue
		}
		if !c.use(l2, c.h.clusterSize(), 1, role) {
			c.found("entry", at+i, "L2 table in the file", fmt.Sprintf("%#x", l2))
			continue
		}
		if isActive {
			c.copied(e, l2, at+i, "L2 table")
		}
	}
	return nil
}

// copied checks the bit that says that a refcount is exactly one.
func (c *checker) copied(e uint64, host, at int64, what string) {
	n, ok := c.refcount(host >> c.h.ClusterBits)
	if ok && (n == 1) != (e&entryCopied != 0) {
		c.found("copied", at, fmt.Sprintf("%s with the copied bit for refcount %d", what, n), fmt.Sprintf("%#x", e))
	}
}

// l2Tables goes through every L2 table once, however often it is used.
func (c *checker) l2Tables() error {
	type ref struct {
		cluster int64
		uses    uint32
	}
	var refs []ref
	for i, p := range c.uses {
		for j, u := range p {
			if u&table != 0 {
				refs = append(refs, ref{int64(i)<<pageBits + int64(j), u})
			}
		}
	}
	buf := make([]byte, c.h.clusterSize())
	for _, r := range refs {
		at := r.cluster << c.h.ClusterBits
		if err := ondisk.ReadFull(c.f, buf, at, "qcow2 L2 table"); err != nil {
			c.found("table", at, "", err.Error())
			continue
		}
		size := c.h.entrySize()
		for i := int64(0); i < int64(len(buf)); i += size {
			e := binary.BigEndian.Uint64(buf[i:])
			var bitmap uint64
			if size == 16 {
				bitmap = binary.BigEndian.Uint64(buf[i+8:])
			}
			if e|bitmap != 0 {
				c.entry(e, bitmap, at+i, r.uses&count, r.uses&active != 0)
			}
		}
	}
	return nil
}

// entry counts the cluster that an L2 entry names, n times.
func (c *checker) entry(e, bitmap uint64, at int64, n uint32, isActive bool) {
	if e&entryPacked != 0 {
		c.packedEntry(e, bitmap, at, n)
		return
	}
	reserved := uint64(l2Reserved)
	if c.h.extended() || c.h.Version < 3 {
		reserved |= entryZero
	}
	if e&reserved != 0 {
		c.found("entry", at, "reserved bits of an L2 entry clear", fmt.Sprintf("%#x", e))
	}
	host := int64(e & offsetMask)
	allocated := host != 0 || c.h.external() && e&entryCopied != 0
	alloc, zero := uint32(bitmap), uint32(bitmap>>subclusters)
	if alloc&zero != 0 || !allocated && alloc != 0 {
		c.found("entry", at+8, "a subcluster that is one thing", fmt.Sprintf("%#x", bitmap))
	}
	if !allocated {
		return
	}
	if host&(c.h.clusterSize()-1) != 0 {
		c.found("entry", at, "cluster at a cluster's start", fmt.Sprintf("%#x", host))
		return
	}
	if c.h.external() { // which has no refcounts
		if isActive && e&entryCopied == 0 {
			c.found("copied", at, "cluster of the data file with the copied bit", fmt.Sprintf("%#x", e))
		}
		return
	}
	if !c.use(host, c.h.clusterSize(), n, data) {
		c.found("entry", at, "cluster in the file", fmt.Sprintf("%#x", host))
		return
	}
	if isActive {
		c.copied(e, host, at, "cluster")
	}
}

func (c *checker) packedEntry(e, bitmap uint64, at int64, n uint32) {
	if e&entryCopied != 0 || bitmap != 0 || c.h.external() {
		c.found("entry", at, "compressed cluster without the copied bit, subclusters and a data file", fmt.Sprintf("%#x", e))
		if c.h.external() {
			return
		}
	}
	host, end := c.h.packedRange(e)
	if start := host &^ 511; !c.use(start, end-start, n, data) {
		c.found("entry", at, "compressed cluster in the file", fmt.Sprintf("%#x", host))
	}
}

// bitmaps counts the clusters of the persistent bitmaps.
func (c *checker) bitmaps() {
	list, err := readBitmaps(c.f, c.h)
	if err != nil {
		c.found("bitmaps", int64(c.h.bitmaps.DirOffset), "", err.Error())
	}
	c.useRange(c.h.bitmaps.DirOffset, c.h.bitmaps.DirSize, "bitmap directory")
	for _, b := range list {
		n := int64(b.entries) * 8
		c.useRange(b.table, uint64(n), "bitmap table")
		r := newTable(c.f, int64(b.table), n)
		for i := int64(0); i < n; i += 8 {
			raw, err := r.next(8)
			if err != nil {
				c.found("bitmaps", int64(b.table)+i, "", err.Error())
				break
			}
			e := binary.BigEndian.Uint64(raw)
			off := e & offsetMask
			if e&bitmapReserved != 0 || off&uint64(c.h.clusterSize()-1) != 0 || off != 0 && e&bitmapAllOnes != 0 {
				c.found("bitmaps", int64(b.table)+i, "entry of a bitmap table", fmt.Sprintf("%#x", e))
			} else if off != 0 {
				c.useRange(off, uint64(c.h.clusterSize()), "bitmap")
			}
		}
	}
}

// compare holds the counts against the stored refcounts.
func (c *checker) compare() {
	for i := range c.clusters {
		have, ok := c.refcount(i)
		want := uint64(c.uses.at(i) & count)
		if !ok || have == want {
			continue
		}
		f := formats.Finding{What: "refcount", File: c.f, Off: i << c.h.ClusterBits, Expected: fmt.Sprint(want), Found: fmt.Sprint(have)}
		if have > want {
			f.What, f.Leak = "leak", true
		}
		c.report(f)
	}
}
