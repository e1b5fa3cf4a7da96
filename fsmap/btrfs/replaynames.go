package btrfs

import (
	"bytes"
	"errors"
	"hash/crc32"
	"slices"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
)

// A name in a directory is three items: one by the hash of the name, one by its index, and a reference from the inode.

// nameHash is the offset of the item that holds a name.
func nameHash(name []byte) uint64 { return uint64(^crc32.Update(1, castagnoli, name)) }

// exists tells whether the subvolume has the inode.
func (r *replayer) exists(id uint64) (bool, error) {
	_, ok, err := r.sub.get(key{id, tInodeItem, 0})
	return ok, err
}

// byName looks a name up in a directory.
func (r *replayer) byName(dir uint64, name []byte) (found dirItem, ok bool, err error) {
	return r.entry(key{dir, tDirItem, nameHash(name)}, name)
}

// entry looks for a name in one directory item.
func (r *replayer) entry(k key, name []byte) (found dirItem, ok bool, err error) {
	it, ok, err := r.sub.get(k)
	if err != nil || !ok {
		return dirItem{}, false, err
	}
	ok = false
	err = eachDirItem(it.data, func(d dirItem) bool {
		if bytes.Equal(d.name, name) {
			found, ok = d, true
		}
		return !ok
	})
	return found, ok, err
}

// link adds a name to a directory, and its size.
func (r *replayer) link(dir, index uint64, name []byte, to key, typ uint8, at int64) error {
	b := encodeDirItem(dirItem{location: to, typ: typ, name: name})
	k := key{dir, tDirItem, nameHash(name)}
	old, _, err := r.sub.get(k)
	if err != nil {
		return err
	}
	r.over.put(k, slices.Concat(old.data, b), at)
	r.over.put(key{dir, tDirIndex, index}, b, at)
	return r.grow(dir, 2*len(name))
}

func encodeDirItem(d dirItem) []byte {
	b := make([]byte, diHead)
	le.PutUint64(b, d.location.id)
	b[8] = d.location.typ
	le.PutUint64(b[9:], d.location.off)
	le.PutUint16(b[diDataLen:], uint16(len(d.data)))
	le.PutUint16(b[diNameLen:], uint16(len(d.name)))
	b[diType] = d.typ
	return slices.Concat(b, d.name, d.data)
}

// unlink takes a name from a directory and from its inode's references. It is none of the log's own names.
func (r *replayer) unlink(dir uint64, name []byte) error {
	d, ok, err := r.byName(dir, name)
	if err != nil || !ok || d.location.typ != tInodeItem {
		return err
	}
	k := key{dir, tDirItem, nameHash(name)}
	it, _, err := r.sub.get(k)
	if err != nil {
		return err
	}
	var kept []byte
	err = eachDirItem(it.data, func(d dirItem) bool {
		if !bytes.Equal(d.name, name) {
			kept = append(kept, encodeDirItem(d)...)
		}
		return true
	})
	if err != nil {
		return err
	}
	if kept == nil {
		r.over.drop(k)
	} else {
		r.over.put(k, kept, it.at)
	}
	index, err := r.dropRef(d.location.id, dir, name)
	if err != nil {
		return err
	}
	r.over.drop(key{dir, tDirIndex, index})
	r.fixup[d.location.id] = true
	return r.grow(dir, -2*len(name))
}

// grow changes the size of a directory.
func (r *replayer) grow(dir uint64, n int) error {
	it, ok, err := r.sub.get(key{dir, tInodeItem, 0})
	if err != nil || !ok || len(it.data) < inLen {
		return err
	}
	b := bytes.Clone(it.data)
	le.PutUint64(b[inSize:], le.Uint64(b[inSize:])+uint64(n))
	r.over.put(it.key, b, it.at)
	return nil
}

// removeNames takes out of a directory what has an index of a range and is none of the logged ones.
func (r *replayer) removeNames(dir, from, to uint64, logged []item) error {
	var gone [][]byte
	var bad error
	err := r.sub.scan(key{dir, tDirIndex, from}, key{dir, tDirIndex, to}, func(y item) bool {
		i, ok := slices.BinarySearchFunc(logged, y.key, func(x item, k key) int { return x.compare(k) })
		bad = eachDirItem(y.data, func(d dirItem) bool {
			if !ok || !hasName(logged[i], d.name) {
				gone = append(gone, d.name)
			}
			return true
		})
		return bad == nil
	})
	if err = errors.Join(err, bad); err != nil {
		return err
	}
	for _, name := range gone {
		if err := r.unlink(dir, name); err != nil {
			return err
		}
	}
	return nil
}

func hasName(x item, name []byte) (has bool) {
	eachDirItem(x.data, func(d dirItem) bool { // a bad item is met when its turn comes
		has = bytes.Equal(d.name, name)
		return !has
	})
	return has
}

// dirIndex puts a name of the log in place of whatever has its name or its index with that name. Names of inodes that
// don't exist are left out.
func (r *replayer) dirIndex(x item) error {
	if x.typ != tDirIndex {
		return nil
	}
	var err error
	bad := eachDirItem(x.data, func(d dirItem) bool {
		err = r.logged(x, d)
		return err == nil
	})
	return errors.Join(bad, err)
}

func (r *replayer) logged(x item, d dirItem) error {
	dir := x.id
	if ok, err := r.exists(dir); err != nil || !ok {
		return err
	}
	var exists bool
	var err error
	if d.location.typ == tInodeItem {
		exists, err = r.exists(d.location.id)
	} else {
		_, exists, err = r.fs.rootTree.get(key{r.log.id, tRootRef, d.location.id})
	}
	if err != nil {
		return err
	}
	same := 0
	for _, k := range []key{{dir, tDirItem, nameHash(d.name)}, x.key} {
		old, ok, err := r.entry(k, d.name)
		switch {
		case err != nil:
			return err
		case ok && old.location == d.location && old.typ == d.typ:
			same++
		case ok && exists:
			if err := r.unlink(dir, d.name); err != nil {
				return err
			}
		}
	}
	if same == 2 || !exists {
		return nil
	}
	// What the log has a reference of is added with that.
	refs, err := r.loggedNames(d.location.id)
	if err != nil || slices.ContainsFunc(refs, func(n ref) bool { return n.dir == dir && bytes.Equal(n.name, d.name) }) {
		return err
	}
	if _, taken, err := r.byName(dir, d.name); err != nil || taken {
		return err
	}
	if d.location.typ == tInodeItem {
		k := key{d.location.id, tInodeRef, dir}
		old, _, err := r.sub.get(k)
		if err != nil {
			return err
		}
		r.over.put(k, slices.Concat(old.data, encodeRefs(tInodeRef, []ref{{dir, x.off, d.name}})), x.at)
		r.fixup[d.location.id] = true
	}
	return r.link(dir, x.off, d.name, d.location, d.typ, x.at)
}

// ref is one name of an inode.
type ref struct {
	dir, index uint64
	name       []byte
}

// refNames takes apart an inode's references: index, length and name, with the directory in front in the extended form.
func refNames(x item) ([]ref, error) {
	var out []ref
	for b := x.data; len(b) > 0; {
		n := ref{dir: x.off}
		head := 10
		if x.typ == tInodeExt {
			head = 18
			if len(b) < head {
				return nil, ondisk.Truncated("btrfs inode reference", "head", x.at, len(b))
			}
			n.dir = le.Uint64(b)
		} else if len(b) < head {
			return nil, ondisk.Truncated("btrfs inode reference", "head", x.at, len(b))
		}
		n.index = le.Uint64(b[head-10:])
		k := int(le.Uint16(b[head-2:]))
		if head+k > len(b) {
			return nil, ondisk.Corrupt("btrfs inode reference", "length of the name", x.at, k)
		}
		n.name = b[head : head+k]
		out = append(out, n)
		b = b[head+k:]
	}
	return out, nil
}

func encodeRefs(typ uint8, refs []ref) []byte {
	var b []byte
	for _, n := range refs {
		if typ == tInodeExt {
			b = le.AppendUint64(b, n.dir)
		}
		b = le.AppendUint64(b, n.index)
		b = le.AppendUint16(b, uint16(len(n.name)))
		b = append(b, n.name...)
	}
	return b
}

// names gives those that an inode has by its references within a range of keys.
func (r *replayer) names(from, to key) (out []ref, err error) {
	var bad error
	err = r.sub.scan(from, to, func(y item) bool {
		var more []ref
		more, bad = refNames(y)
		out = append(out, more...)
		return bad == nil
	})
	return out, errors.Join(err, bad)
}

// loggedNames gives those that the log has of an inode.
func (r *replayer) loggedNames(id uint64) (out []ref, err error) {
	for _, y := range slices.Concat(r.inLog(id, tInodeRef), r.inLog(id, tInodeExt)) {
		more, err := refNames(y)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// dropRef takes a name from an inode's references and gives its index in the directory.
func (r *replayer) dropRef(id, dir uint64, name []byte) (index uint64, err error) {
	var hits []item
	err = r.sub.scan(key{id, tInodeRef, 0}, key{id, tInodeExt, maxOff}, func(y item) bool {
		hits = append(hits, y)
		return true
	})
	if err != nil {
		return 0, err
	}
	for _, y := range hits {
		names, err := refNames(y)
		if err != nil {
			return 0, err
		}
		i := slices.IndexFunc(names, func(n ref) bool { return n.dir == dir && bytes.Equal(n.name, name) })
		if i < 0 {
			continue
		}
		if len(names) == 1 {
			r.over.drop(y.key)
		} else {
			r.over.put(y.key, encodeRefs(y.typ, slices.Delete(slices.Clone(names), i, i+1)), y.at)
		}
		return names[i].index, nil
	}
	return 0, ondisk.Corrupt("btrfs log tree", "a name without a reference of inode", -1, id)
}

// refs makes an inode's names those that an item of its references says: others of the item go, new ones come.
func (r *replayer) refs(x item) error {
	names, err := refNames(x)
	if err != nil || len(names) == 0 || x.id == x.off { // which is the root's ".."
		return err
	}
	inode, ok, err := r.sub.get(key{x.id, tInodeItem, 0})
	if err != nil || !ok || len(inode.data) < inLen {
		return err
	}
	// Not all directories are logged. Where the first one isn't there, the kernel leaves out the whole item.
	if ok, err := r.exists(names[0].dir); err != nil || !ok {
		return err
	}
	logged, err := r.loggedNames(x.id)
	if err != nil {
		return err
	}
	kind := uint8(slices.Index(kinds[:], fsmap.ModeKind(le.Uint32(inode.data[inMode:]))))
	for _, n := range names {
		if ok, err := r.exists(n.dir); err != nil {
			return err
		} else if !ok {
			continue
		}
		if err := r.setName(x, n, kind, logged); err != nil {
			return err
		}
	}
	old, err := r.names(x.key, x.key)
	if err != nil {
		return err
	}
	for _, o := range old {
		if !slices.ContainsFunc(names, func(n ref) bool { return n.dir == o.dir && bytes.Equal(n.name, o.name) }) {
			if err := r.unlink(o.dir, o.name); err != nil {
				return err
			}
		}
	}
	r.over.put(x.key, x.data, x.at)
	return nil
}

// setName gives inode x.id a name, and takes away what stands in its way: the inode's own names in that directory that
// the log lacks, and others' that are the same.
func (r *replayer) setName(x item, n ref, kind uint8, logged []ref) error {
	to := key{x.id, tInodeItem, 0}
	same := 0
	for _, k := range []key{{n.dir, tDirItem, nameHash(n.name)}, {n.dir, tDirIndex, n.index}} {
		d, ok, err := r.entry(k, n.name)
		if err != nil {
			return err
		}
		if ok && d.location == to {
			same++
		}
	}
	if same == 2 {
		return nil
	}
	k := key{x.id, tInodeRef, n.dir}
	old, err := r.names(k, k)
	if err != nil {
		return err
	}
	for _, o := range old {
		if !slices.ContainsFunc(logged, func(l ref) bool { return l.dir == o.dir && bytes.Equal(l.name, o.name) }) {
			if err := r.unlink(o.dir, o.name); err != nil {
				return err
			}
		}
	}
	if err := r.unlink(n.dir, n.name); err != nil {
		return err
	}
	return r.link(n.dir, n.index, n.name, to, kind, x.at)
}
