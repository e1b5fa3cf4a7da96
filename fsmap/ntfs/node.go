package ntfs

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/names"
	"vmkit/fsmap/mapfile"
)

// inode is an MFT record with its extension records, as Node leaves it for ReadDir and Runs.
type inode struct {
	no     uint64
	rec    []byte // the base record
	attrs  []attr // of the base record, then of the extension records
	ext    []byte // the extension record read last
	extNo  uint64
	extOK  bool
	seg    []int
	names  []byte
	wof    wof
	target []byte
}

func (f *fs) newInode() *inode { return &inode{rec: make([]byte, f.recordSize)} }

// holder gives the record that holds an attribute.
func (f *fs) holder(ino *inode, no uint64) ([]byte, error) {
	if no == ino.no {
		return ino.rec, nil
	}
	if ino.extOK && ino.extNo == no {
		return ino.ext, nil
	}
	if ino.ext == nil {
		ino.ext = make([]byte, f.recordSize)
	}
	ino.extOK = false
	if err := f.readRecord(no, ino.ext); err != nil {
		return nil, err
	}
	ino.extNo, ino.extOK = no, true
	return ino.ext, nil
}

// load reads MFT record no with all its attributes; seq is the sequence number that the reference had, or 0.
func (f *fs) load(ino *inode, no uint64, seq uint16) error {
	ino.no, ino.attrs, ino.extOK = no, ino.attrs[:0], false
	if err := f.readRecord(no, ino.rec); err != nil {
		return err
	}
	if le.Uint16(ino.rec[recFlags:])&recInUse == 0 {
		return ondisk.Corrupt("mft record", "not in use, but named by a directory: record", -1, no)
	}
	if got := le.Uint16(ino.rec[recSequence:]); seq != 0 && got != seq {
		return ondisk.Corrupt("mft record", fmt.Sprintf("record %d: sequence number (the reference has %d)", no, seq), -1, got)
	}
	if base := le.Uint64(ino.rec[recBase:]); base != 0 {
		return ondisk.Corrupt("mft record", fmt.Sprintf("record %d is an extension of record", no), -1, base&(1<<48-1))
	}
	list, err := f.addAttrs(ino, ino.rec, no)
	if err != nil || list.typ == 0 {
		return err
	}
	entries, err := f.attrList(ino, list)
	if err != nil {
		return err
	}
	refs := make([]uint64, 0, 8)
	for _, e := range entries {
		if n, _ := mftRef(e.ref); n != no {
			refs = append(refs, e.ref)
		}
	}
	slices.Sort(refs)
	refs = slices.Compact(refs)
	if len(refs) > maxExtension {
		return ondisk.Unsupported("attribute list", "extension records", -1, len(refs))
	}
	self := uint64(le.Uint16(ino.rec[recSequence:]))<<48 | no
	for _, ref := range refs {
		ext, want := mftRef(ref)
		b, err := f.holder(ino, ext)
		if err != nil {
			return fmt.Errorf("extension of record %d: %w", no, err)
		}
		if base := le.Uint64(b[recBase:]); base != self || le.Uint16(b[recSequence:]) != want {
			return ondisk.Corrupt("mft record", fmt.Sprintf("extension record %d of record %d belongs to", ext, no), -1, base&(1<<48-1))
		}
		if _, err := f.addAttrs(ino, b, ext); err != nil {
			return err
		}
	}
	return nil
}

// addAttrs appends the attributes of one record, and gives its attribute list, if any.
func (f *fs) addAttrs(ino *inode, b []byte, no uint64) (list attr, err error) {
	for off := int(le.Uint16(b[recAttrs:])); ; {
		if off < recHeaderLen {
			return list, ondisk.Corrupt("mft record", "offset of the first attribute", -1, off)
		}
		a, next, ok, err := nextAttr(b, no, off)
		if err != nil || !ok {
			return list, err
		}
		if a.typ == atAttributeList {
			list = a
		}
		ino.attrs = append(ino.attrs, a)
		off = next
	}
}

// listEntry is one line of an attribute list.
type listEntry struct {
	typ    uint32
	name   string
	lowest int64
	ref    uint64
}

func (f *fs) attrList(ino *inode, a attr) ([]listEntry, error) {
	var b []byte
	if a.nonRes {
		if a.size > maxAttrList {
			return nil, ondisk.Unsupported("attribute list", "length", -1, a.size)
		}
		s := &stream{f: f, size: a.size}
		if err := f.pairs(ino.rec, a, s.add); err != nil {
			return nil, err
		}
		b = make([]byte, a.size)
		if err := ondisk.ReadFull(s, b, 0, "attribute list"); err != nil {
			return nil, err
		}
	} else {
		b = ino.rec[a.value : a.value+a.valueLen]
	}
	var out []listEntry
	for len(b) >= alMin {
		n, k, at := int(le.Uint16(b[alLength:])), int(b[alNameLen]), int(b[alNameOff])
		if n < alMin-2 || n > len(b) || at+2*k > n {
			return nil, ondisk.Corrupt("attribute list", "length of an entry", -1, n)
		}
		e := listEntry{typ: le.Uint32(b), lowest: int64(le.Uint64(b[alLowest:])), ref: le.Uint64(b[alRef:])}
		if k > 0 {
			e.name = string(appendUTF16(nil, b[at:at+2*k]))
		}
		out = append(out, e)
		b = b[n:]
	}
	return out, nil
}

// fileTime turns 100 ns units since 1601 into a Time.
func fileTime(v uint64) mapfile.Time {
	const epoch = 11644473600
	if v == 0 {
		return mapfile.Time{}
	}
	return mapfile.Time{Sec: int64(v/1e7) - epoch, Nsec: int32(v%1e7) * 100, Known: true}
}

// Node implements fsmap.FS. Aux is the sequence number of the reference, 0 for the root.
func (f *fs) Node(e fsmap.Entry, n *fsmap.Node) error {
	ino, _ := n.Priv.(*inode)
	if ino == nil {
		ino = f.newInode()
		n.Priv = ino
	}
	ino.wof = wof{}
	if err := f.load(ino, e.Ref.ID, uint16(e.Aux)); err != nil {
		return err
	}
	n.Ref, n.Aux, n.Inode = e.Ref, e.Aux, e.Ref.ID
	n.Sequence = uint64(le.Uint16(ino.rec[recSequence:]))
	n.Kind, n.Links = mapfile.Regular, 0
	if le.Uint16(ino.rec[recFlags:])&recDirectory != 0 {
		n.Kind = mapfile.Directory
	}
	var attrs uint32
	reparse, ea := false, false
	for i := range ino.attrs {
		a := &ino.attrs[i]
		switch a.typ {
		case atStandardInformation:
			b, err := f.holder(ino, a.record)
			if err != nil || a.nonRes || a.valueLen < siMin {
				n.Problems = append(n.Problems, ondisk.Corrupt("$STANDARD_INFORMATION", "length", -1, a.valueLen))
				continue
			}
			v := b[a.value : a.value+a.valueLen]
			n.BTime, n.MTime = fileTime(le.Uint64(v[siCreated:])), fileTime(le.Uint64(v[siModified:]))
			n.CTime, n.ATime = fileTime(le.Uint64(v[siChanged:])), fileTime(le.Uint64(v[siAccessed:]))
			attrs = le.Uint32(v[siAttrs:])
			for _, x := range fileAttrs {
				if attrs&x.bit != 0 {
					n.Attrs = append(n.Attrs, x.name)
				}
			}
			if len(v) >= siSecurityID+4 {
				f.setOwner(n, le.Uint32(v[siSecurityID:]))
			}
		case atFileName:
			b, err := f.holder(ino, a.record)
			if err == nil && !a.nonRes && a.valueLen >= fnName && b[a.value+fnNamespace] != nsDOS {
				n.Links++
			}
		case atData:
			if a.nonRes && a.lowest != 0 {
				continue
			}
			if a.name == "" {
				n.Size = a.size
				n.Encrypted = a.flags&flEncrypted != 0
			} else {
				n.Streams = append(n.Streams, fsmap.Stream{Name: a.name, Size: a.size})
			}
		case atReparsePoint:
			reparse = true
		case atEA:
			ea = true
		}
	}
	if ea {
		f.readEA(ino, n)
	}
	if reparse {
		f.readReparse(ino, n)
	} else if n.Kind == mapfile.Regular && attrs&0x4 != 0 {
		f.readInterix(ino, n)
	}
	if n.Kind == mapfile.Directory || n.Kind == mapfile.Symlink {
		n.Encrypted = false
	}
	switch n.Kind {
	case mapfile.Directory:
		n.Size = 0
	case mapfile.Symlink:
		n.Size = int64(len(n.Target))
	}
	if e.Ref.ID < firstUser && e.Ref.ID != recRoot {
		n.Streams = slices.DeleteFunc(n.Streams, func(s fsmap.Stream) bool { return s.Name == "$Bad" })
	}
	slices.SortFunc(n.Streams, func(a, b fsmap.Stream) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// ReadDir implements fsmap.FS. The blocks of the index that its bitmap marks are read in their order in the volume's
// file; the tree is not needed, since Build sorts names.
func (f *fs) ReadDir(n *fsmap.Node, add func(fsmap.Entry) bool) error {
	ino := n.Priv.(*inode)
	root, err := f.value(ino, atIndexRoot, "$I30", maxRecord)
	if err != nil {
		return err
	}
	if len(root) < irHeader+16 {
		return ondisk.Corrupt("index root", "length", -1, len(root))
	}
	root = slices.Clone(root) // an extension record that holds it may be read over
	size := int64(le.Uint32(root[irBlockSize:]))
	more, first := f.entries(ino, root[irHeader:], add)
	if !more {
		return first
	}
	if len(ino.segments(atIndexAllocation, "$I30")) == 0 {
		return first
	}
	if size < stride || size > maxIndexBlock || size&(size-1) != 0 {
		return ondisk.Corrupt("index root", "size of an index block", -1, size)
	}
	s, err := f.open(ino, atIndexAllocation, "$I30")
	if err != nil {
		return err
	}
	const maxBitmap = 16 << 20 // bytes: 128 Mi index blocks
	bitmap, err := f.value(ino, atBitmap, "$I30", maxBitmap)
	if err != nil {
		return err
	}
	bitmap = slices.Clone(bitmap)
	const maxErrs = 16
	bad, buf := 0, make([]byte, size)
	for i := int64(0); i < s.size/size && i/8 < int64(len(bitmap)); i++ {
		if bitmap[i/8]>>(i%8)&1 == 0 {
			continue
		}
		pos, _, _ := s.at(i * size)
		err := ondisk.ReadFull(s, buf, i*size, "index block")
		if err == nil {
			err = fixup(buf, "INDX", "index block", pos)
		}
		if err == nil {
			more, err = f.entries(ino, buf[ibHeader:], add)
		}
		if err != nil {
			first = errors.Join(first, err) // the other blocks may be sound
			if bad++; bad >= maxErrs {
				return first
			}
		}
		if !more {
			break
		}
	}
	return first
}

// entries gives the names of one index node, which begins with its index header.
func (f *fs) entries(ino *inode, b []byte, add func(fsmap.Entry) bool) (more bool, err error) {
	at, used := int64(le.Uint32(b[ihFirst:])), int64(le.Uint32(b[ihUsed:]))
	if used > int64(len(b)) || at < 16 || at > used {
		return true, ondisk.Corrupt("index node", "bytes in use", -1, used)
	}
	var bad error // what doesn't keep the other entries from being read
	for p := b[at:used]; len(p) >= ieKey; {
		n, k := int(le.Uint16(p[ieLength:])), int(le.Uint16(p[ieKeyLen:]))
		if le.Uint16(p[ieFlags:])&ieLast != 0 {
			break
		}
		if n < ieKey || n > len(p) || k > n-ieKey || k < fnName {
			return true, ondisk.Corrupt("index entry", "length", -1, n)
		}
		key := p[ieKey : ieKey+k]
		if fnName+2*int(key[fnNameLen]) > k {
			return true, ondisk.Corrupt("index entry", "length of the name", -1, key[fnNameLen])
		}
		no, seq := mftRef(le.Uint64(p[ieRef:]))
		p = p[n:]
		if key[fnNamespace] == nsDOS || no == recRoot || no < firstUser && !f.metadata {
			continue // the DOS name of a file that has a long one too; the root's "."; the file system's own files
		}
		ino.names = appendUTF16(ino.names[:0], key[fnName:fnName+2*int(key[fnNameLen])])
		if !names.Usable(ino.names) {
			bad = ondisk.Corrupt("index entry", "name, shown repaired:", -1, fmt.Sprintf("%q", ino.names))
			ino.names = names.Repair(ino.names)
		}
		kind := mapfile.Regular
		switch a := le.Uint32(key[fnAttrs:]); {
		case a&0x404 != 0: // reparse points, and Interix links, which are system files
			kind = 0
		case a&0x10000000 != 0:
			kind = mapfile.Directory
		}
		if !add(fsmap.Entry{Name: ino.names, Ref: fsmap.Ref{ID: no}, Kind: kind, Aux: uint64(seq)}) {
			return false, bad
		}
	}
	return true, bad
}
