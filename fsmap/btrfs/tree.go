package btrfs

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
	"sync"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

var le = binary.LittleEndian

// key is a tree key.
type key struct {
	id  uint64
	typ uint8
	off uint64
}

func parseKey(b []byte) key { return key{le.Uint64(b), b[8], le.Uint64(b[9:])} }

func (a key) compare(b key) int {
	return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.typ, b.typ), cmp.Compare(a.off, b.off))
}

const maxOff = 1<<64 - 1

// item is a leaf item. Its bytes are shared and must not be written to; at is the logical address where they lie.
type item struct {
	key
	data []byte
	at   int64
}

// tree is a B-tree. over holds what a replayed log changes in it.
type tree struct {
	fs    *fs
	id    uint64
	root  int64
	level int
	gen   uint64 // generation of the root node, 0 when unknown
	over  *overlay
}

// nodeCache keeps verified nodes: 8 MiB of them.
type nodeCache struct {
	mu    sync.Mutex
	nodes map[int64][]byte
	order []int64 // a ring
	next  int
}

const nodeCacheLimit = 8 << 20

func (c *nodeCache) get(at int64) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[at]
}

func (c *nodeCache) put(at int64, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nodes[at] != nil {
		return
	}
	if limit := nodeCacheLimit / len(b); len(c.order) < limit {
		c.order = append(c.order, at)
	} else {
		delete(c.nodes, c.order[c.next])
		c.order[c.next] = at
		c.next = (c.next + 1) % limit
	}
	c.nodes[at] = b
}

// node reads and verifies the node at a logical address, from whichever copy is sound. gen is what its parent says of
// its generation (0: nothing).
func (f *fs) node(at int64, level int, gen uint64) ([]byte, error) {
	b := f.nodes.get(at)
	if b == nil {
		c, err := f.chunks.find(at)
		if err != nil {
			return nil, err
		}
		b = make([]byte, f.nodeSize)
		var errs error
		for mirror := range c.mirrors() {
			err := f.readMirror(c, at, mirror, b)
			if err == nil {
				err = f.checkNode(b, at)
			}
			if err == nil {
				if errs != nil && !errors.Is(errs, errAbsent) {
					f.noteOnce(fmt.Sprintf("a copy of a node is bad, another one was used: %v", errs))
				}
				errs = nil
				break
			}
			errs = errors.Join(errs, err)
		}
		if errs != nil && c.typ&(bgRAID5|bgRAID6) != 0 {
			if err := f.readRebuilt(c, at, b); err == nil {
				if err = f.checkNode(b, at); err == nil {
					f.noteOnce(fmt.Sprintf("a node was rebuilt from parity: %v", errs))
					errs = nil
				}
			}
		}
		if errs != nil {
			return nil, errs
		}
		f.nodes.put(at, b)
	}
	if l := int(b[hdLevel]); l != level {
		return nil, ondisk.Corrupt("btrfs node", fmt.Sprintf("level (expected %d)", level), at, l)
	}
	if g := le.Uint64(b[hdGeneration:]); gen != 0 && g != gen {
		return nil, ondisk.Corrupt("btrfs node", fmt.Sprintf("generation (expected %d)", gen), at, g)
	}
	return b, nil
}

// errAbsent is why a copy can't be read that lies on a device that isn't there.
var errAbsent = &ondisk.Error{What: "btrfs node", Field: "its device is absent, or too short", Off: -1, Err: ondisk.ErrTruncated}

// readMirror reads len(b) bytes at a logical address from one copy. Nodes don't cross stripes, but nothing depends on
// that here.
func (f *fs) readMirror(c *chunk, at int64, mirror int, b []byte) error {
	for len(b) > 0 {
		off := at - c.logical
		if off >= c.length {
			return ondisk.Truncated("btrfs node", "it crosses the end of a chunk", at, nil)
		}
		s, k := c.place(off, mirror)
		k = min(k, int64(len(b)))
		if !f.chunks.present(s, k) {
			return errAbsent
		}
		if err := ondisk.ReadFull(f.members[s.dev].R, b[:k], s.off, "btrfs node"); err != nil {
			return err
		}
		b, at = b[k:], at+k
	}
	return nil
}

// readRebuilt reads a node's bytes from the rest of its row.
func (f *fs) readRebuilt(c *chunk, at int64, b []byte) error {
	off := at - c.logical
	if _, k := c.place(off, 0); k < int64(len(b)) {
		return ondisk.ErrCorrupt
	}
	x := f.chunks.rebuild(c, off, int64(len(b)))
	if x.Kind != mapfile.Packed {
		return ondisk.ErrTruncated
	}
	var parts [][]byte
	for _, p := range x.Pack.Parts {
		part := make([]byte, len(b))
		if err := ondisk.ReadFull(f.members[p.Dev].R, part, p.Off, "btrfs node"); err != nil {
			return err
		}
		parts = append(parts, part)
	}
	return codec.Decode(b, x.Pack.Spec, nil, parts...)
}

func (f *fs) checkNode(b []byte, at int64) error {
	if err := f.csum.check(b, "btrfs node", at); err != nil {
		return err
	}
	if got := le.Uint64(b[hdBytenr:]); int64(got) != at {
		return ondisk.Corrupt("btrfs node", "its own address", at, fmt.Sprintf("%#x", got))
	}
	if !bytes.Equal(b[hdFSID:hdFSID+16], f.metaUUID[:]) {
		return ondisk.Corrupt("btrfs node", "id of the file system", at, nil)
	}
	n, level := int64(le.Uint32(b[hdItems:])), b[hdLevel]
	size := int64(itemSize)
	if level > 0 {
		size = ptrSize
	}
	if level > maxLevel || n > (int64(len(b))-hdSize)/size {
		return ondisk.Corrupt("btrfs node", "number of items", at, n)
	}
	return nil
}

// scan calls fn for the items from from to to, both included, in order, until it returns false. Where a node can't be
// read the rest is still given, and the error comes at the end.
func (t *tree) scan(from, to key, fn func(item) bool) error {
	if t.over == nil {
		_, err := t.walk(t.root, t.level, t.gen, from, to, fn)
		return err
	}
	return t.over.merge(t, from, to, fn)
}

// maxErrs bounds what is collected when many nodes are bad.
const maxErrs = 8

func (t *tree) walk(at int64, level int, gen uint64, from, to key, fn func(item) bool) (more bool, err error) {
	b, err := t.fs.node(at, level, gen)
	if err != nil {
		return true, err
	}
	n := int(le.Uint32(b[hdItems:]))
	if level > 0 {
		ptr := func(i int) []byte { return b[hdSize+i*ptrSize:] }
		i := sort.Search(n, func(i int) bool { return parseKey(ptr(i)).compare(from) > 0 })
		var errs error
		bad := 0
		for i = max(0, i-1); i < n; i++ {
			p := ptr(i)
			if parseKey(p).compare(to) > 0 {
				break
			}
			more, err := t.walk(int64(le.Uint64(p[keySize:])), level-1, le.Uint64(p[keySize+8:]), from, to, fn)
			if err != nil {
				errs = errors.Join(errs, err)
				if bad++; bad >= maxErrs {
					return true, errs
				}
			}
			if !more {
				return false, errs
			}
		}
		return true, errs
	}
	head := func(i int) []byte { return b[hdSize+i*itemSize:] }
	i := sort.Search(n, func(i int) bool { return parseKey(head(i)).compare(from) >= 0 })
	for ; i < n; i++ {
		h := head(i)
		k := parseKey(h)
		if k.compare(to) > 0 {
			return false, nil
		}
		off, size := int64(le.Uint32(h[keySize:])), int64(le.Uint32(h[keySize+4:]))
		if !ondisk.Within(hdSize+off, size, int64(len(b))) {
			return true, ondisk.Corrupt("btrfs leaf", fmt.Sprintf("item %d: position", i), at, off)
		}
		if k.compare(from) < 0 {
			continue // keys out of order
		}
		if !fn(item{k, b[hdSize+off : hdSize+off+size : hdSize+off+size], at + hdSize + off}) {
			return false, nil
		}
	}
	return true, nil
}

// get gives the item with exactly this key.
func (t *tree) get(k key) (it item, ok bool, err error) {
	err = t.scan(k, k, func(x item) bool {
		it, ok = x, true
		return false
	})
	return it, ok, err
}
