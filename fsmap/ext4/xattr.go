package ext4

import (
	"bytes"
	"errors"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// xattrs is a cursor over the entries of an inode body or of a block ("Extended Attributes").
type xattrs struct {
	b    []byte // the inode's area, or the block
	pos  int    // of the next entry
	what string // for errors
	off  int64  // of b in the volume, or negative
	err  error

	// The entry that next found.
	index      uint8
	name       []byte
	entry      []byte // without the name
	inum       uint32
	size, from int // of the value
}

// ibody gives the xattrs in the inode, behind its fields.
func (in *inode) ibody() xattrs {
	at := goodOldSize + in.extra
	if in.extra == 0 || at+xaIbodyLen > len(in.raw) || le.Uint32(in.raw[at:]) != xaMagic {
		return xattrs{}
	}
	at += xaIbodyLen
	it := xattrs{b: in.raw[at:], what: "xattrs in inode", off: in.off}
	if it.off >= 0 {
		it.off += int64(at)
	}
	return it
}

func (it *xattrs) corrupt(field string, at int, got any) error {
	off := it.off
	if off >= 0 {
		off += int64(at)
	}
	return ondisk.Corrupt(it.what, field, off, got)
}

// next goes to the next entry. It reports false at the end, and when err says what is wrong.
func (it *xattrs) next() bool {
	if it.err != nil || len(it.b)-it.pos < 4 || le.Uint32(it.b[it.pos:]) == 0 {
		return false
	}
	e := it.b[it.pos:]
	if len(e) < xaEntryLen || len(e) < xaEntryLen+int(e[xaNameLen]) {
		it.err = it.corrupt("entry at the end", it.pos, nil)
		return false
	}
	n := int(e[xaNameLen])
	it.index, it.name, it.entry = e[xaIndex], e[xaEntryLen:xaEntryLen+n], e[:xaEntryLen]
	it.from, it.inum = int(le.Uint16(e[xaValueOff:])), le.Uint32(e[xaValueInum:])
	it.size = int(le.Uint32(e[xaValueSize:]))
	if it.size > xaMaxValue {
		it.err = it.corrupt("length of a value", it.pos+xaValueSize, it.size)
		return false
	}
	it.pos += (xaEntryLen + n + 3) &^ 3
	return true
}

// value gives the entry's value, which is not in an inode of its own.
func (it *xattrs) value() ([]byte, error) {
	if it.from > len(it.b) || it.size > len(it.b)-it.from {
		return nil, it.corrupt(fmt.Sprintf("place of the value of %d bytes of %q", it.size, it.name), it.from, it.from)
	}
	return it.b[it.from : it.from+it.size], nil
}

// xattrs reads the extended attributes into n. What is wrong with them becomes problems of n.
func (f *fsys) xattrs(in *inode, n *fsmap.Node) {
	if it := in.ibody(); it.b != nil {
		f.addXattrs(&it, in, n, false)
	}
	block := f.fileACL(in)
	if block == 0 {
		return
	}
	bad := func(err error) { n.Problems = append(n.Problems, err) }
	off := int64(block << f.shift)
	if block <= f.first || block >= f.blocks {
		bad(in.corrupt("block of xattrs", iFileACLLo, block))
		return
	}
	b, err := f.block(block)
	if err != nil {
		bad(fmt.Errorf("xattrs: %w", err))
		return
	}
	it := xattrs{b: b, pos: xaBlockLen, what: "xattr block", off: off}
	if le.Uint32(b) != xaMagic || le.Uint32(b[xaBlocks:]) != 1 {
		bad(it.corrupt("magic", 0, fmt.Sprintf("%#08x", le.Uint32(b))))
		return
	}
	if f.csum {
		seed := crc32cUint(crc32cUint(f.seed, uint32(block)), uint32(block>>32))
		if got := le.Uint32(b[xaCsum:]); got != crc32cExcept(seed, b, xaCsum, xaCsum+4) {
			bad(it.corrupt("checksum", xaCsum, fmt.Sprintf("%#08x", got)))
		}
	}
	f.addXattrs(&it, in, n, true)
}

// addXattrs adds the entries of one area. Those that n has already stand before others of the same name.
func (f *fsys) addXattrs(it *xattrs, in *inode, n *fsmap.Node, inBlock bool) {
	bad := func(err error) { n.Problems = append(n.Problems, err) }
	had := len(n.Xattrs)
next:
	for it.next() {
		if it.index == xaIndexCrypt || it.index == xaIndexSys && string(it.name) == "data" && in.inline() {
			continue
		}
		if int(it.index) >= len(xaPrefixes) || xaPrefixes[it.index] == "" {
			bad(it.corrupt(fmt.Sprintf("unknown kind of name, %q:", it.name), it.pos, it.index))
			continue
		}
		name := in.xattrName(it.index, it.name)
		for i := range n.Xattrs[:had] {
			if n.Xattrs[i].Name == name {
				continue next
			}
		}
		value, err := f.xattrValue(it, in, inBlock)
		if err != nil {
			bad(err)
			if value == nil {
				continue
			}
		}
		if it.index == xaIndexACL || it.index == xaIndexDef {
			if value, err = aclXattr(value); err != nil {
				bad(fmt.Errorf("%s: %w", name, err))
				continue
			}
		}
		n.Xattrs = append(n.Xattrs, mapfile.Xattr{Name: name, Value: value})
	}
	if it.err != nil {
		bad(it.err)
	}
}

// xattrName joins a name's beginning and rest. Names that were seen are kept, so that a new one is rare.
func (in *inode) xattrName(index uint8, rest []byte) string {
	const kept = 64
	var buf [maxName + 32]byte
	full := append(append(buf[:0], xaPrefixes[index]...), rest...)
	if s, ok := in.names[string(full)]; ok {
		return s
	}
	s := string(full)
	if in.names == nil {
		in.names = make(map[string]string)
	}
	if len(in.names) < kept {
		in.names[s] = s
	}
	return s
}

// xattrValue reads an entry's value and verifies its hash. A value that comes with an error is whole, but in doubt.
func (f *fsys) xattrValue(it *xattrs, in *inode, inBlock bool) ([]byte, error) {
	hash := le.Uint32(it.entry[xaHash:])
	if it.inum != 0 {
		return f.bigValue(it, in, hash)
	}
	v, err := it.value()
	if err != nil {
		return nil, err
	}
	if v == nil {
		v = []byte{}
	}
	// Kernels before 4.13 left the hash of an entry in the inode zero.
	if hash != 0 || inBlock {
		if hash != entryHash(it.name, v, false) && hash != entryHash(it.name, v, true) {
			err = it.corrupt(fmt.Sprintf("hash of %q", it.name), it.pos, fmt.Sprintf("%#08x", hash))
		}
	}
	return v, err
}

// bigValue reads a value that has an inode of its own (ea_inode).
func (f *fsys) bigValue(it *xattrs, owner *inode, hash uint32) ([]byte, error) {
	var in inode
	if err := f.load(it.inum, &in); err != nil {
		return nil, fmt.Errorf("value of %q: %w", it.name, err)
	}
	if in.flags&flEAInode == 0 || in.mode&modeFmt != modeReg {
		return nil, in.corrupt("it should hold an xattr's value: flags", iFlags, fmt.Sprintf("%#x", in.flags))
	}
	if in.size != int64(it.size) {
		return nil, in.corrupt(fmt.Sprintf("size, where an xattr says %d:", it.size), iSizeLo, in.size)
	}
	v := make([]byte, it.size)
	if err := f.readContent(&in, v); err != nil {
		return nil, fmt.Errorf("value of %q: %w", it.name, err)
	}
	if in.doubt != nil {
		return v, in.doubt
	}
	if le.Uint32(in.raw[iMTime:]) == owner.ino && bytes.Equal(in.raw[iGeneration:iGeneration+4], owner.raw[iGeneration:iGeneration+4]) {
		return v, nil // Lustre keeps the owner there, and no hash
	}
	sum := crc32c(f.seed, v)
	if got := le.Uint32(in.raw[iATime:]); got != sum {
		return v, in.corrupt("hash of an xattr's value", iATime, fmt.Sprintf("%#08x", got))
	}
	var word [4]byte
	le.PutUint32(word[:], sum)
	if hash != entryHash(it.name, word[:], false) && hash != entryHash(it.name, word[:], true) {
		return v, it.corrupt(fmt.Sprintf("hash of %q", it.name), it.pos, fmt.Sprintf("%#08x", hash))
	}
	return v, nil
}

// entryHash is the hash of an entry. Where char was signed, so are the bytes of the name.
func entryHash(name, value []byte, signed bool) uint32 {
	var h uint32
	for _, c := range name {
		h = h<<5 ^ h>>27 ^ char(c, signed)
	}
	for ; len(value) >= 4; value = value[4:] {
		h = h<<16 ^ h>>16 ^ le.Uint32(value)
	}
	if len(value) > 0 {
		var last [4]byte
		copy(last[:], value)
		h = h<<16 ^ h>>16 ^ le.Uint32(last[:])
	}
	return h
}

var errACL = errors.New("POSIX ACL is not well-formed")

// aclXattr turns a stored POSIX ACL into the form that getxattr gives ("POSIX ACLs").
func aclXattr(b []byte) ([]byte, error) {
	bad := fmt.Errorf("%w: %w", errACL, ondisk.ErrCorrupt)
	if len(b) < 4 || le.Uint32(b) != aclVersion {
		return nil, bad
	}
	out := le.AppendUint32(make([]byte, 0, 2*len(b)), aclXattrVersion)
	for b = b[4:]; len(b) > 0; {
		if len(b) < 4 {
			return nil, bad
		}
		tag, id, n := le.Uint16(b), ^uint32(0), 4
		switch tag {
		case aclUser, aclGroup:
			if n = 8; len(b) < n {
				return nil, bad
			}
			id = le.Uint32(b[4:])
		case aclUserObj, aclGroupObj, aclMask, aclOther:
		default:
			return nil, bad
		}
		out = append(out, b[:4]...)
		out = le.AppendUint32(out, id)
		b = b[n:]
	}
	return out, nil
}
