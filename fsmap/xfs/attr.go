package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// xattrs appends the extended attributes of in to n.Xattrs, under the names and with the values that the kernel shows
// to root. What can't be read is a problem of the inode.
func (f *fsys) xattrs(in *inode, n *fsmap.Node) {
	if in.forkOff > 0 {
		w := attrWalk{f: f, in: in, n: n}
		var err error
		switch in.aformat {
		case fmtLocal:
			err = w.short(in.attrFork(f), in.off+int64(f.coreLen+in.forkOff))
		case fmtExtents, fmtBTree:
			if in.anextents > 0 {
				err = w.leaves()
			}
		default:
			err = ondisk.Corrupt("xfs attribute fork", "format", in.off+diAFormat, in.aformat)
		}
		if err = first(w.err, err); err != nil {
			n.Problems = append(n.Problems, err)
		}
	}
	if p := f.patches[in.ino]; p != nil {
		for _, op := range p.attrs {
			op.apply(n)
		}
	}
}

type attrWalk struct {
	f     *fsys
	in    *inode
	n     *fsmap.Node
	err   error // the first doubt
	bytes int   // of remote values
}

func (w *attrWalk) fail(err error) {
	if w.err == nil {
		w.err = err
	}
}

// attrName gives the name under which the kernel shows an attribute.
func attrName(flags uint8, name []byte) string {
	switch {
	case flags&attrSecure != 0:
		if string(name) == "selinux" {
			return "security.selinux"
		}
		return "security." + string(name)
	case flags&attrRoot != 0:
		return "trusted." + string(name)
	}
	return "user." + string(name)
}

// The attributes that hold POSIX ACLs (xfs_format.h: SGI_ACL_FILE, SGI_ACL_DEFAULT), and what the kernel shows besides.
var aclNames = map[string]string{
	"trusted.SGI_ACL_FILE":    "system.posix_acl_access",
	"trusted.SGI_ACL_DEFAULT": "system.posix_acl_default",
}

// set appends one attribute, and the ACL that it stands for. Parent pointers and attributes that were never finished
// are not shown by the kernel either.
func (w *attrWalk) set(flags uint8, name, value []byte, at int64) {
	if flags&(attrParent|attrIncomplete) != 0 {
		return
	}
	s := attrName(flags, name)
	if err := appendXattr(w.n, s, value); err != nil {
		w.fail(fmt.Errorf("%w, in the attribute at byte %#x", err, at))
	}
}

func appendXattr(n *fsmap.Node, name string, value []byte) (err error) {
	n.Xattrs = append(n.Xattrs, mapfile.Xattr{Name: name, Value: value})
	if len(name) > 16 && name[0] == 't' {
		if shown, ok := aclNames[name]; ok {
			var acl []byte
			if acl, err = posixACL(value); err == nil {
				n.Xattrs = append(n.Xattrs, mapfile.Xattr{Name: shown, Value: acl})
			}
		}
	}
	return err
}

// posixACL turns an ACL as it is on disk (xfs_format.h: struct xfs_acl) into what getxattr gives (linux/posix_acl_xattr.h).
func posixACL(b []byte) ([]byte, error) {
	const entry = 12
	if len(b) < 4 || uint64(be.Uint32(b)) > uint64(len(b)-4)/entry {
		return nil, ondisk.Corrupt("xfs acl", "entries in a value of bytes", -1, len(b))
	}
	le := binary.LittleEndian
	acl := le.AppendUint32(nil, 2)
	for b, n := b[4:], be.Uint32(b); n > 0; b, n = b[entry:], n-1 {
		tag, id := be.Uint32(b), be.Uint32(b[4:])
		if tag != 0x02 && tag != 0x08 { // only a named user or group has an id
			id = ^uint32(0)
		}
		acl = le.AppendUint16(acl, uint16(tag))
		acl = le.AppendUint16(acl, be.Uint16(b[8:]))
		acl = le.AppendUint32(acl, id)
	}
	return acl, nil
}

// short reads attributes that lie in the inode (struct xfs_attr_sf_hdr).
func (w *attrWalk) short(b []byte, at int64) error {
	if len(b) < 4 {
		return ondisk.Truncated("xfs attribute fork", "in the inode", at, len(b))
	}
	total, count := int(be.Uint16(b)), int(b[2])
	if total < 4 || total > len(b) {
		return ondisk.Corrupt("xfs attribute fork", "size in the inode", at, total)
	}
	b = b[:total]
	pos := 4
	for range count {
		if pos+3 > total || pos+3+int(b[pos])+int(b[pos+1]) > total {
			return ondisk.Corrupt("xfs attribute fork", "entry in the inode", at+int64(pos), count)
		}
		name, value := b[pos+3:][:b[pos]], b[pos+3+int(b[pos]):][:b[pos+1]:b[pos+1]]
		w.set(b[pos+2], name, value, at+int64(pos))
		pos += 3 + len(name) + len(value)
	}
	return nil
}

// leaves goes through the leaf blocks in order: down the left side of the tree, then from neighbour to neighbour.
func (w *attrWalk) leaves() error {
	const maxExtents = 1 << 20 // of an attribute fork: a bound on memory, far above what 64 Ki values of 64 KiB need
	in := w.in
	var total uint64
	err := w.f.extents(in, true, func(x extent) error {
		if x.lost {
			return nil // the walk says why
		}
		if len(in.exts) == maxExtents {
			return ondisk.Unsupported("xfs attribute fork", "extents, more than", in.off, maxExtents)
		}
		in.exts = append(in.exts, x)
		total += x.n
		return nil
	})
	if err != nil {
		w.fail(err)
	}
	da := uint64(0)
	for range daMaxDepth + 1 {
		b, off, err := w.block(da)
		if err != nil {
			return err
		}
		switch m := be.Uint16(b[8:]); {
		case w.f.v5 && m == attr3LeafMagic, !w.f.v5 && m == attrLeafMagic:
			return w.chain(b, off, total)
		case w.f.v5 && m == da3NodeMagic, !w.f.v5 && m == daNodeMagic:
			hdr, at := daNodeLen, 12
			if w.f.v5 {
				hdr, at = da3NodeLen, 56
			}
			if be.Uint16(b[at:]) == 0 {
				return ondisk.Corrupt("xfs attribute node", "entries", off+int64(at), 0)
			}
			da = uint64(be.Uint32(b[hdr+4:]))
		default:
			return ondisk.Corrupt("xfs attribute block", "magic", off+8, fmt.Sprintf("%#04x", m))
		}
	}
	return ondisk.Corrupt("xfs attribute fork", "depth of the tree, more than", in.off, daMaxDepth)
}

// chain reads the leaf b and the ones that follow it; there can't be more than the fork has blocks.
func (w *attrWalk) chain(b []byte, off int64, total uint64) error {
	for n := uint64(0); ; n++ {
		w.leaf(b, off)
		next := uint64(be.Uint32(b))
		if next == 0 {
			return nil
		}
		if n >= total {
			return ondisk.Corrupt("xfs attribute leaf", "chain without an end, next", off, next)
		}
		var err error
		if b, off, err = w.block(next); err != nil {
			return err
		}
		if m := be.Uint16(b[8:]); w.f.v5 && m != attr3LeafMagic || !w.f.v5 && m != attrLeafMagic {
			return ondisk.Corrupt("xfs attribute leaf", "magic", off+8, fmt.Sprintf("%#04x", m))
		}
	}
}

// place finds a block of the attribute fork; n is how many follow it without a break.
func (w *attrWalk) place(da uint64) (off int64, n uint64, ok bool) {
	x := w.in.exts
	lo, hi := 0, len(x)
	for lo < hi {
		if mid := (lo + hi) / 2; x[mid].off+x[mid].n <= da {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(x) || x[lo].off > da {
		return 0, 0, false
	}
	skip := da - x[lo].off
	off, ok = w.f.place(x[lo].block+skip, x[lo].n-skip)
	return off, x[lo].n - skip, ok
}

// block reads a leaf or node and checks what it says of itself.
func (w *attrWalk) block(da uint64) ([]byte, int64, error) {
	off, _, ok := w.place(da)
	if !ok {
		return nil, 0, ondisk.Corrupt("xfs attribute fork", "block that isn't mapped", w.in.off, da)
	}
	b, err := w.f.read(off, int(w.f.blockSize), "xfs attribute block")
	if err != nil {
		return nil, 0, err
	}
	if w.f.v5 {
		if err := w.f.identify(b, off, idDA, w.in.ino, "xfs attribute block"); err != nil {
			w.fail(err)
		}
	}
	return b, off, nil
}

// leaf reads the attributes of one leaf block (struct xfs_attr_leafblock).
func (w *attrWalk) leaf(b []byte, off int64) {
	hdr, at := attrLeafLen, 12
	if w.f.v5 {
		hdr, at = attr3LeafLen, 56
	}
	count := int(be.Uint16(b[at:]))
	room := len(b) - hdr - count*attrEntryLen
	if room < 0 {
		w.fail(ondisk.Corrupt("xfs attribute leaf", "entries", off+int64(at), count))
		return
	}
	for i := range count {
		e := b[hdr+i*attrEntryLen:]
		pos, flags := int(be.Uint16(e[4:])), e[6]
		name, value, err := w.value(b, pos, flags)
		// Entries don't overlap, so together they are no longer than the block.
		if room -= 3 + len(name); flags&attrLocal != 0 {
			room -= len(value)
		}
		if err == nil && room < 0 {
			err = ondisk.Corrupt("xfs attribute leaf", "entries that overlap, one", -1, i)
		}
		if err != nil {
			w.fail(fmt.Errorf("%w, in the entry at byte %#x", err, off+int64(hdr+i*attrEntryLen)))
			if room < 0 {
				return
			}
			continue
		}
		w.set(flags, name, value, off+int64(pos))
	}
}

// value gives name and value of the entry at pos of a leaf.
func (w *attrWalk) value(b []byte, pos int, flags uint8) (name, value []byte, err error) {
	bad := func(field string, got any) error { return ondisk.Corrupt("xfs attribute leaf", field, -1, got) }
	if flags&attrLocal != 0 {
		if pos+3 > len(b) {
			return nil, nil, bad("position of an entry", pos)
		}
		n, l := int(be.Uint16(b[pos:])), int(b[pos+2])
		if pos+3+l+n > len(b) {
			return nil, nil, bad("length of a value", n)
		}
		return b[pos+3:][:l], b[pos+3+l:][:n:n], nil
	}
	if pos+9 > len(b) {
		return nil, nil, bad("position of an entry", pos)
	}
	blk, n, l := be.Uint32(b[pos:]), be.Uint32(b[pos+4:]), int(b[pos+8])
	if pos+9+l > len(b) {
		return nil, nil, bad("length of a name", l)
	}
	name = b[pos+9:][:l]
	if flags&(attrParent|attrIncomplete) != 0 {
		return name, nil, nil
	}
	if n > maxAttrValue {
		return name, nil, bad("length of a value", n)
	}
	if w.bytes += int(n); w.bytes > maxAttrValues {
		return name, nil, ondisk.Unsupported("xfs attributes", "bytes of values, more than", -1, maxAttrValues)
	}
	value, err = w.remote(uint64(blk), int(n))
	return name, value, err
}

// remote reads a value that lies in blocks of its own, each with a header in version 5 (struct xfs_attr3_rmt_hdr).
func (w *attrWalk) remote(da uint64, n int) ([]byte, error) {
	f := w.f
	value := make([]byte, 0, n)
	for ; len(value) < n; da++ {
		off, _, ok := w.place(da)
		if !ok {
			return nil, ondisk.Corrupt("xfs attribute value", "block that isn't mapped", w.in.off, da)
		}
		b, err := f.read(off, int(f.blockSize), "xfs attribute value")
		if err != nil {
			return nil, err
		}
		if f.v5 {
			if m := be.Uint32(b); m != attrRmtMagic {
				return nil, ondisk.Corrupt("xfs attribute value", "magic", off, fmt.Sprintf("%#08x", m))
			}
			if err := f.identify(b, off, idRemote, w.in.ino, "xfs attribute value"); err != nil {
				w.fail(err)
			}
			got := be.Uint32(b[remoteBytes:])
			if be.Uint32(b[remoteOffset:]) != uint32(len(value)) || got == 0 || got > uint32(len(b)-remoteHdrLen) {
				return nil, ondisk.Corrupt("xfs attribute value", "bytes here", off+remoteBytes, got)
			}
			b = b[remoteHdrLen:][:got]
		}
		value = append(value, b[:min(len(b), n-len(value))]...)
	}
	return value, nil
}

// attrOp is what an unfinished intent would do to an attribute.
type attrOp struct {
	name   string
	value  []byte
	remove bool
}

func (op attrOp) apply(n *fsmap.Node) {
	shown := aclNames[op.name]
	kept := n.Xattrs[:0]
	for _, x := range n.Xattrs {
		if x.Name != op.name && (shown == "" || x.Name != shown) {
			kept = append(kept, x)
		}
	}
	n.Xattrs = kept
	if op.remove {
		return
	}
	if err := appendXattr(n, op.name, bytes.Clone(op.value)); err != nil {
		n.Problems = append(n.Problems, err)
	}
}
