package partition

import (
	"fmt"
	"hash/crc32"
	"sort"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Thin provisioning keeps two B-trees in a metadata device of 4 KiB blocks: drivers/md/dm-thin-metadata.c and
// drivers/md/persistent-data/dm-btree-internal.h. The first has a tree for each device, whose keys are the device's
// blocks and whose values are blocks of the data device.
const (
	thinBlock      = 4096
	thinMagic      = 27022010
	thinSuperXOR   = 160774 // of the checksums
	thinNodeXOR    = 121107
	thinNeedsCheck = 1 << 0
	thinInternal   = 1 << 0 // flags of a node
	thinLeaf       = 1 << 1
	thinNodeHead   = 32
	maxThinDepth   = 16 // a tree of 4 KiB nodes with 2⁶⁴ keys has 9 levels
	minThinChunk   = 128
	maxThinChunk   = 1 << 21 // sectors: 64 KiB to 1 GiB
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func thinChecksum(b []byte, xor uint32) uint32 { return ^crc32.Update(0, castagnoli, b[4:]) ^ xor }

// thinPool is an open pool.
type thinPool struct {
	meta   *ondisk.Cache
	data   formats.Mapper
	chunk  int64  // bytes
	root   uint64 // of the tree of devices
	blocks uint64 // of the metadata device
	notes  []string
}

// thinCache bounds the metadata that is kept: 1 MiB maps some 6 GiB in chunks of 64 KiB.
const thinCache = 1 << 20

func openThinPool(meta, data formats.Mapper, env *formats.Env) (*thinPool, error) {
	const what = "thin pool superblock"
	d := formats.NewDisk(meta, env)
	b, err := ondisk.Read(d, 0, thinBlock, what)
	if err != nil {
		return nil, err
	}
	if le.Uint64(b[32:]) != thinMagic {
		return nil, ondisk.Corrupt(what, "magic", 32, le.Uint64(b[32:]))
	}
	if sum := thinChecksum(b, thinSuperXOR); sum != le.Uint32(b) {
		return nil, ondisk.Corrupt(what, "checksum", 0, fmt.Sprintf("%#x", le.Uint32(b)))
	}
	if v := le.Uint32(b[40:]); v != 1 && v != 2 {
		return nil, ondisk.Unsupported(what, "version", 40, v)
	}
	if f := le.Uint32(b[360:]); f != 0 {
		return nil, ondisk.Unsupported(what, "incompatible features", 360, fmt.Sprintf("%#x", f))
	}
	sectors := int64(le.Uint32(b[336:]))
	if sectors < minThinChunk || sectors > maxThinChunk || sectors%minThinChunk != 0 {
		return nil, ondisk.Corrupt(what, "chunk size", 336, sectors)
	}
	if n := le.Uint32(b[340:]); n != thinBlock/512 {
		return nil, ondisk.Corrupt(what, "metadata block size", 340, n)
	}
	p := &thinPool{
		meta: ondisk.NewCache(d, meta.Size(), thinBlock, thinCache), data: data, chunk: sectors * 512, root: le.Uint64(b[320:]),
		blocks: uint64(meta.Size() / thinBlock),
	}
	if le.Uint32(b[4:])&thinNeedsCheck != 0 {
		p.notes = append(p.notes, "the thin pool's metadata is marked as in need of a check")
	}
	return p, nil
}

// node reads and checks a node of a tree whose values have size bytes.
func (p *thinPool) node(block uint64, size int) (keys, values []byte, leaf bool, err error) {
	const what = "thin pool B-tree node"
	at := int64(min(block, 1<<50)) * thinBlock
	if block >= p.blocks {
		return nil, nil, false, ondisk.Corrupt(what, "block", at, block)
	}
	b, err := p.meta.Slice(at, thinBlock)
	if err != nil {
		return nil, nil, false, err
	}
	if thinChecksum(b, thinNodeXOR) != le.Uint32(b) {
		return nil, nil, false, ondisk.Corrupt(what, "checksum", at, fmt.Sprintf("%#x", le.Uint32(b)))
	}
	flags, n, room := le.Uint32(b[4:]), int(le.Uint32(b[16:])), int(le.Uint32(b[20:]))
	leaf = flags&thinLeaf != 0
	if leaf == (flags&thinInternal != 0) || le.Uint64(b[8:]) != block {
		return nil, nil, false, ondisk.Corrupt(what, "header", at, flags)
	}
	if !leaf {
		size = 8
	}
	if n < 0 || n > room || room > (thinBlock-thinNodeHead)/(8+size) || leaf && int(le.Uint32(b[24:])) != size {
		return nil, nil, false, ondisk.Corrupt(what, "number of entries", at+16, n)
	}
	values = b[thinNodeHead+8*room:]
	return b[thinNodeHead : thinNodeHead+8*n], values[:size*n], leaf, nil
}

// leaf goes down to the leaf that would hold key. i is the entry with the greatest key up to it, or -1; bound is the
// first key that lies beyond the leaf.
func (p *thinPool) leaf(root, key uint64) (keys, values []byte, i int, bound uint64, err error) {
	bound = 1<<64 - 1
	for range maxThinDepth {
		var leaf bool
		keys, values, leaf, err = p.node(root, 8)
		if err != nil {
			return nil, nil, 0, 0, err
		}
		n := len(keys) / 8
		i = sort.Search(n, func(i int) bool { return le.Uint64(keys[8*i:]) > key }) - 1
		if leaf {
			return keys, values, i, bound, nil
		}
		if i+1 < n {
			bound = min(bound, le.Uint64(keys[8*(i+1):]))
		}
		if i < 0 {
			return nil, nil, -1, bound, nil // below the first key
		}
		root = le.Uint64(values[8*i:])
	}
	return nil, nil, 0, 0, ondisk.Corrupt("thin pool B-tree", "depth", -1, maxThinDepth)
}

// device gives the root of a device's tree. A pool whose device was created and never written to has one too.
func (p *thinPool) device(id int64) (uint64, error) {
	keys, values, i, _, err := p.leaf(p.root, uint64(id))
	if err != nil {
		return 0, err
	}
	if i < 0 || le.Uint64(keys[8*i:]) != uint64(id) {
		return 0, ondisk.Corrupt("thin pool", "no device with id", -1, id)
	}
	return le.Uint64(values[8*i:]), nil
}

// thin is a thin volume.
type thin struct {
	pool   *thinPool
	root   uint64
	n      int64
	origin formats.Mapper // what unmapped blocks read from, or nil: zeros
}

func (t *thin) Size() int64 { return t.n }

func (t *thin) ExtentAt(off, max int64) (formats.Extent, error) {
	c := t.pool.chunk
	k := uint64(off / c)
	max = min(max, t.n-off)
	keys, values, i, bound, err := t.pool.leaf(t.root, k)
	if err != nil {
		return formats.Extent{Len: min(max, c-off%c), Kind: formats.Missing, Disk: formats.NoPos}, err
	}
	n := len(keys) / 8
	key := func(i int) uint64 { return le.Uint64(keys[8*i:]) }
	block := func(i int) uint64 { return le.Uint64(values[8*i:]) >> 24 } // below it lies the time of the mapping
	if i < 0 || key(i) != k {
		if i+1 < n {
			bound = key(i + 1)
		}
		if bound <= uint64(t.n/c) {
			max = min(max, int64(bound)*c-off)
		}
		if t.origin != nil && off < t.origin.Size() {
			return t.origin.ExtentAt(off, min(max, t.origin.Size()-off))
		}
		return formats.Extent{Len: max, Kind: formats.Zero, Disk: formats.NoPos}, nil
	}
	run := 1
	for i+run < n && int64(run)*c-off%c < max && key(i+run) == k+uint64(run) && block(i+run) == block(i)+uint64(run) {
		run++
	}
	max = min(max, int64(run)*c-off%c)
	if size := t.pool.data.Size(); block(i) >= uint64((size+c-1)/c) {
		err := ondisk.Corrupt("thin pool", "mapping past the end of the data, block", -1, block(i))
		return formats.Extent{Len: min(max, c-off%c), Kind: formats.Missing, Disk: formats.NoPos}, err
	}
	return at0(t.pool.data, int64(block(i))*c+off%c, max)
}

// pool opens the pool that a thin segment names.
func (g *lvmGroup) pool(name string) (*thinPool, []Segment, error) {
	lv := g.lvs[name]
	if lv == nil {
		return nil, nil, ondisk.Corrupt("lvm2 metadata", "unknown thin pool", -1, name)
	}
	for _, n := range lv.node.sections {
		if n.text("type") != "thin-pool" {
			continue
		}
		meta, data := g.lvs[n.text("metadata")], g.lvs[n.text("pool")]
		if meta == nil || data == nil {
			return nil, nil, ondisk.Corrupt("lvm2 metadata", "volumes of thin pool", -1, name)
		}
		m, _, err := g.volume(meta)
		d, segs, err2 := g.volume(data)
		if p := g.pools[name]; p != nil {
			return p, segs, err2
		}
		if err != nil {
			return nil, nil, err
		}
		p, err := openThinPool(m, d, g.env)
		if err != nil {
			return nil, nil, err
		}
		if chunk := n.number("chunk_size") * 512; chunk != p.chunk {
			return nil, nil, ondisk.Corrupt("lvm2 metadata", "chunk size of thin pool "+name, -1, chunk)
		}
		g.pools[name] = p
		return p, segs, err2
	}
	return nil, nil, ondisk.Corrupt("lvm2 metadata", "not a thin pool", -1, name)
}

func (c *segment) thin() (formats.Mapper, error) {
	p, segs, err := c.g.pool(c.n.text("thin_pool"))
	if p == nil {
		return nil, err
	}
	root, err2 := p.device(c.n.number("device_id"))
	if err2 != nil {
		return nil, err2
	}
	t := &thin{pool: p, root: root, n: c.size}
	if name := c.n.text("external_origin"); name != "" {
		lv := c.g.lvs[name]
		if lv == nil {
			return nil, ondisk.Corrupt("lvm2 metadata", "unknown external origin", -1, name)
		}
		m, _, err3 := c.g.volume(lv)
		t.origin, err = m, or(err, err3)
	}
	s := Segment{At: c.at, Len: c.size, Kind: "thin", Stripe: p.chunk}
	for _, x := range segs {
		s.Volumes, s.Starts = append(s.Volumes, x.Volumes...), append(s.Starts, x.Starts...)
	}
	c.out = []Segment{s}
	c.lv.notes = append(c.lv.notes, p.notes...)
	if name := c.n.text("origin"); name != "" {
		c.lv.notes = append(c.lv.notes, "thin snapshot of "+name)
	}
	return t, err
}
