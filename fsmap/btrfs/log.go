package btrfs

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// overlay holds what the replay of a log changes in a subvolume: items put in or over others, and keys taken out.
// It is filled while the file system is opened, and read-only after.
type overlay struct {
	changed map[key]*item // nil: taken out
	sorted  []key         // of changed, once frozen
}

func (o *overlay) put(k key, data []byte, at int64) { o.changed[k] = &item{k, data, at} }
func (o *overlay) drop(k key)                       { o.changed[k] = nil }

func (o *overlay) freeze() {
	o.sorted = o.sorted[:0]
	for k := range o.changed {
		o.sorted = append(o.sorted, k)
	}
	slices.SortFunc(o.sorted, key.compare)
}

// merge scans the tree with the changes.
func (o *overlay) merge(t *tree, from, to key, fn func(item) bool) error {
	keys := o.sorted
	if len(keys) != len(o.changed) { // still being filled: only what lies in the range
		keys = nil
		for k := range o.changed {
			if k.compare(from) >= 0 && k.compare(to) <= 0 {
				keys = append(keys, k)
			}
		}
		slices.SortFunc(keys, key.compare)
	}
	i := sort.Search(len(keys), func(i int) bool { return keys[i].compare(from) >= 0 })
	more := true
	emit := func(before *key) bool { // changes before a key of the tree, or up to the end
		for ; more && i < len(keys) && keys[i].compare(to) <= 0 && (before == nil || keys[i].compare(*before) < 0); i++ {
			if x := o.changed[keys[i]]; x != nil {
				more = fn(*x)
			}
		}
		return more
	}
	_, err := t.walk(t.root, t.level, t.gen, from, to, func(x item) bool {
		if !emit(&x.key) {
			return false
		}
		if _, ok := o.changed[x.key]; ok {
			return true // put over it, or taken out
		}
		more = fn(x)
		return more
	})
	emit(nil)
	return err
}

// replay applies the log trees, which hold what was fsynced since the last commit (fs/btrfs/tree-log.c), to the
// subvolumes, in memory.
func (f *fs) replay(sb []byte, mode fsmap.JournalMode) error {
	at := int64(le.Uint64(sb[sbLogRoot:]))
	if at == 0 {
		f.info.Journal = "clean"
		return nil
	}
	switch mode {
	case fsmap.JournalFail:
		return ondisk.Unsupported("btrfs log tree", "it holds work", superPos+sbLogRoot, nil)
	case fsmap.JournalIgnore:
		f.info.Journal = "ignored"
		f.note("the log tree holds work and was ignored: this is the state of the last commit")
		return nil
	}
	logRoot := &tree{fs: f, id: idLog, root: at, level: int(sb[sbLogLevel])}
	var logs []*tree
	err := logRoot.scan(key{idLog, tRootItem, 0}, key{idLog, tRootItem, maxOff}, func(x item) bool {
		if len(x.data) >= rtMin && x.data[rtLevel] <= maxLevel {
			logs = append(logs, &tree{fs: f, id: x.off, root: int64(le.Uint64(x.data[rtBytenr:])), level: int(x.data[rtLevel])})
		}
		return true
	})
	for _, log := range logs {
		if err != nil {
			break
		}
		r := replayer{fs: f, log: log, over: &overlay{changed: map[key]*item{}}}
		if r.sub, err = f.tree(log.id); err == nil {
			r.sub.over = r.over
			if err = r.run(); err == nil {
				r.over.freeze()
				f.over[log.id] = r.over
			}
		}
	}
	if err != nil {
		// Half a replay is a state that never was.
		f.over, f.trees = map[uint64]*overlay{}, map[uint64]*tree{}
		f.info.Journal = "unreplayed"
		f.problem(fmt.Errorf("btrfs log tree can't be replayed, this is the state of the last commit: %w", err))
		return nil
	}
	f.info.Journal = "replayed"
	return nil
}

// replayer applies one subvolume's log.
type replayer struct {
	fs    *fs
	log   *tree
	sub   *tree // with over in place: reads see what was changed so far
	over  *overlay
	items []item // of the log
}

func (r *replayer) run() error {
	err := r.log.scan(key{}, key{maxOff, 255, maxOff}, func(x item) bool {
		r.items = append(r.items, x)
		return len(r.items) <= maxLogItems
	})
	if err != nil {
		return err
	}
	if len(r.items) > maxLogItems {
		return ondisk.Unsupported("btrfs log tree", "number of items", -1, len(r.items))
	}
	// The order is the kernel's: inodes with what was removed from them, then names of directories, then the rest.
	var touched []uint64
	for _, x := range r.items {
		if x.typ == tInodeItem {
			if err := r.inode(x); err != nil {
				return err
			}
			touched = append(touched, x.id)
		}
	}
	for _, x := range r.items {
		if x.typ == tDirIndex {
			if err := r.dirIndex(x); err != nil {
				return err
			}
		}
	}
	for _, x := range r.items {
		switch x.typ {
		case tXattr:
			r.over.put(x.key, x.data, x.at)
		case tInodeRef, tInodeExt:
			err = r.refs(x)
		case tExtentData:
			err = r.extent(x)
		}
		if err != nil {
			return err
		}
	}
	for _, id := range touched {
		if err := r.countLinks(id); err != nil {
			return err
		}
	}
	return nil
}

// inLog gives the log's items of one inode and type.
func (r *replayer) inLog(id uint64, typ uint8) []item {
	from, to := key{id, typ, 0}, key{id, typ, maxOff}
	i := sort.Search(len(r.items), func(i int) bool { return r.items[i].compare(from) >= 0 })
	j := i
	for j < len(r.items) && r.items[j].compare(to) <= 0 {
		j++
	}
	return r.items[i:j]
}

// inode puts an inode item in place. One of generation 0 says only that the inode exists.
func (r *replayer) inode(x item) error {
	if len(x.data) < inLen {
		return ondisk.Corrupt("btrfs log tree", "length of an inode item", x.at, len(x.data))
	}
	old, exists, err := r.sub.get(x.key)
	if err != nil {
		return err
	}
	mode := le.Uint32(x.data[inMode:])
	size := le.Uint64(x.data[inSize:])
	if exists && len(old.data) >= inLen && le.Uint64(x.data[inGeneration:]) == 0 {
		if fsmap.ModeKind(mode) == mapfile.Regular && size != 0 {
			b := bytes.Clone(old.data)
			le.PutUint64(b[inSize:], size)
			r.over.put(x.key, b, old.at)
		}
		return nil
	}
	data := x.data
	if exists && fsmap.ModeKind(mode) == mapfile.Directory && len(old.data) >= inLen {
		data = bytes.Clone(data)
		copy(data[inSize:inSize+8], old.data[inSize:inSize+8])
	}
	r.over.put(x.key, data, x.at)
	// Xattrs that the log lacks are gone.
	var gone []key
	err = r.sub.scan(key{x.id, tXattr, 0}, key{x.id, tXattr, maxOff}, func(y item) bool {
		gone = append(gone, y.key)
		return true
	})
	for _, k := range gone {
		r.over.drop(k)
	}
	if err != nil {
		return err
	}
	switch fsmap.ModeKind(mode) {
	case mapfile.Directory:
		return r.removeNames(x.id)
	case mapfile.Regular:
		end := (size + uint64(r.fs.sector) - 1) &^ (uint64(r.fs.sector) - 1)
		return r.dropExtents(x.id, end, maxOff)
	}
	return nil
}

// removeNames takes out of a directory what the log's ranges cover and the log doesn't name.
func (r *replayer) removeNames(dir uint64) error {
	for _, rng := range r.inLog(dir, tDirLogIdx) {
		if len(rng.data) < 8 {
			return ondisk.Corrupt("btrfs log tree", "length of a directory range", rng.at, len(rng.data))
		}
		var gone []item
		err := r.sub.scan(key{dir, tDirIndex, rng.off}, key{dir, tDirIndex, le.Uint64(rng.data)}, func(y item) bool {
			logged := r.inLog(dir, tDirIndex)
			i := sort.Search(len(logged), func(i int) bool { return logged[i].off >= y.off })
			if i == len(logged) || logged[i].off != y.off {
				gone = append(gone, y)
			}
			return true
		})
		if err != nil {
			return err
		}
		for _, y := range gone {
			if err := r.unlink(y); err != nil {
				return err
			}
		}
	}
	return nil
}

// unlink takes out a directory entry, and the name from the inode's references. An inode without names is gone.
func (r *replayer) unlink(entry item) error {
	r.over.drop(entry.key)
	var err error
	bad := eachDirItem(entry.data, func(d dirItem) bool {
		if d.location.typ == tInodeItem {
			err = r.dropRef(d.location.id, entry.id, entry.off, d.name)
		}
		return err == nil
	})
	return errors.Join(bad, err)
}

func (r *replayer) dropRef(id, dir, index uint64, name []byte) error {
	var hits []item
	err := r.sub.scan(key{id, tInodeRef, 0}, key{id, tInodeExt, maxOff}, func(y item) bool {
		hits = append(hits, y)
		return true
	})
	if err != nil {
		return err
	}
	for _, y := range hits {
		names, err := refNames(y)
		if err != nil {
			return err
		}
		kept := slices.DeleteFunc(slices.Clone(names), func(n ref) bool {
			return n.dir == dir && n.index == index && bytes.Equal(n.name, name)
		})
		switch {
		case len(kept) == 0:
			r.over.drop(y.key)
		case len(kept) < len(names):
			r.over.put(y.key, encodeRefs(y.typ, kept), y.at)
		}
	}
	return r.countLinks(id)
}

// countLinks sets an inode's link count to the number of its names, as the kernel does after a replay.
func (r *replayer) countLinks(id uint64) error {
	n := 0
	var bad error
	err := r.sub.scan(key{id, tInodeRef, 0}, key{id, tInodeExt, maxOff}, func(y item) bool {
		var names []ref
		names, bad = refNames(y)
		n += len(names)
		return bad == nil
	})
	if err = errors.Join(err, bad); err != nil {
		return err
	}
	it, ok, err := r.sub.get(key{id, tInodeItem, 0})
	if err != nil || !ok || len(it.data) < inLen || id == firstFreeID {
		return err
	}
	if n == 0 {
		r.over.drop(it.key)
		return nil
	}
	if fsmap.ModeKind(le.Uint32(it.data[inMode:])) == mapfile.Directory {
		n = 1
	}
	if le.Uint32(it.data[inLinks:]) != uint32(n) {
		b := bytes.Clone(it.data)
		le.PutUint32(b[inLinks:], uint32(n))
		r.over.put(it.key, b, it.at)
	}
	return nil
}

// dirIndex puts a name of the log in place of whatever has its name or its index. Names of inodes that don't exist
// are left out.
func (r *replayer) dirIndex(x item) error {
	var err error
	bad := eachDirItem(x.data, func(d dirItem) bool {
		var ok bool
		if d.location.typ == tInodeItem {
			_, ok, err = r.sub.get(key{d.location.id, tInodeItem, 0})
		} else {
			_, ok, err = r.fs.rootTree.get(key{r.log.id, tRootRef, d.location.id})
		}
		if err == nil && ok {
			err = r.setName(x.id, x.off, d.name, x.data, x.at, d.location)
		}
		return err == nil
	})
	return errors.Join(bad, err)
}

// setName makes dir's entry at index the one with this name, and unlinks others that stand in its way.
func (r *replayer) setName(dir, index uint64, name, data []byte, at int64, to key) error {
	var conflicts []item
	same := false
	err := r.sub.scan(key{dir, tDirIndex, 0}, key{dir, tDirIndex, maxOff}, func(y item) bool {
		eachDirItem(y.data, func(d dirItem) bool { // a bad item is met by the directory's reader
			is := bytes.Equal(d.name, name)
			switch {
			case is && y.off == index && d.location == to:
				same = true
			case is || y.off == index:
				conflicts = append(conflicts, y)
			}
			return true
		})
		return true
	})
	if err != nil {
		return err
	}
	for _, y := range conflicts {
		if err := r.unlink(y); err != nil {
			return err
		}
	}
	if !same {
		r.over.put(key{dir, tDirIndex, index}, data, at)
	}
	return nil
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

// refs makes an inode's names in the directories that the item speaks of those that it says: others go, new ones come.
func (r *replayer) refs(x item) error {
	if x.id == x.off {
		return nil // the root's "..", which is no name
	}
	names, err := refNames(x)
	if err != nil {
		return err
	}
	inode, ok, err := r.sub.get(key{x.id, tInodeItem, 0})
	if err != nil || !ok || len(inode.data) < inLen {
		return err
	}
	// Names of the same inode and directory that the log lacks were removed.
	dirs := map[uint64]bool{}
	if x.typ == tInodeRef {
		dirs[x.off] = true
	}
	for _, n := range names {
		dirs[n.dir] = true
	}
	logged := slices.Clone(names)
	for _, y := range slices.Concat(r.inLog(x.id, tInodeRef), r.inLog(x.id, tInodeExt)) {
		more, err := refNames(y)
		if err != nil {
			return err
		}
		logged = append(logged, more...)
	}
	var old []ref
	var bad error
	err = r.sub.scan(key{x.id, tInodeRef, 0}, key{x.id, tInodeExt, maxOff}, func(y item) bool {
		var more []ref
		more, bad = refNames(y)
		old = append(old, more...)
		return bad == nil
	})
	if err = errors.Join(err, bad); err != nil {
		return err
	}
	for _, o := range old {
		if !dirs[o.dir] || slices.ContainsFunc(logged, func(n ref) bool { return n.dir == o.dir && bytes.Equal(n.name, o.name) }) {
			continue
		}
		entry, ok, err := r.sub.get(key{o.dir, tDirIndex, o.index})
		if err != nil {
			return err
		}
		if ok {
			r.over.drop(entry.key)
		}
		if err := r.dropRefKeepInode(x.id, o); err != nil {
			return err
		}
	}
	kind := byte(slices.Index(kinds[:], fsmap.ModeKind(le.Uint32(inode.data[inMode:]))))
	for _, n := range names {
		_, ok, err := r.sub.get(key{n.dir, tInodeItem, 0})
		if err != nil {
			return err
		}
		if !ok {
			continue // the directory is gone: the kernel leaves such names out
		}
		data := make([]byte, diHead, diHead+len(n.name))
		to := key{x.id, tInodeItem, 0}
		le.PutUint64(data, to.id)
		data[8] = to.typ
		le.PutUint16(data[diNameLen:], uint16(len(n.name)))
		data[diType] = kind
		if err := r.setName(n.dir, n.index, n.name, append(data, n.name...), x.at, to); err != nil {
			return err
		}
	}
	r.over.put(x.key, x.data, x.at)
	return nil
}

// dropRefKeepInode takes a name from an inode that gets another one in the same step.
func (r *replayer) dropRefKeepInode(id uint64, o ref) error {
	it, ok, err := r.sub.get(key{id, tInodeItem, 0})
	if err != nil {
		return err
	}
	if err := r.dropRef(id, o.dir, o.index, o.name); err != nil {
		return err
	}
	if ok {
		r.over.put(it.key, it.data, it.at)
	}
	return nil
}

// extent puts a file extent in place of what it covers.
func (r *replayer) extent(x item) error {
	if len(x.data) < feInline {
		return ondisk.Corrupt("btrfs log tree", "length of an extent item", x.at, len(x.data))
	}
	n := le.Uint64(x.data[feRAM:])
	if x.data[feType] != feKindInline {
		if len(x.data) < feSize {
			return ondisk.Corrupt("btrfs log tree", "length of an extent item", x.at, len(x.data))
		}
		n = le.Uint64(x.data[feLen:])
	} else {
		n = (n + uint64(r.fs.sector) - 1) &^ (uint64(r.fs.sector) - 1)
	}
	if _, ok, err := r.sub.get(key{x.id, tInodeItem, 0}); err != nil || !ok {
		return err
	}
	if n == 0 || x.off > 1<<62 || n > 1<<62 {
		return ondisk.Corrupt("btrfs log tree", "length of an extent", x.at, n)
	}
	if err := r.dropExtents(x.id, x.off, x.off+n); err != nil {
		return err
	}
	r.over.put(x.key, x.data, x.at)
	return nil
}

// dropExtents takes a range out of a file's extents, cutting those that reach into it.
func (r *replayer) dropExtents(id, from, to uint64) error {
	if from >= to {
		return nil
	}
	var hits []item
	err := r.sub.scan(key{id, tExtentData, 0}, key{id, tExtentData, to - 1}, func(y item) bool {
		if len(y.data) >= feInline {
			hits = append(hits, y)
		}
		return true
	})
	if err != nil {
		return err
	}
	for _, y := range hits {
		if y.data[feType] == feKindInline || len(y.data) < feSize {
			if y.off >= from {
				r.over.drop(y.key)
			} else if y.off+le.Uint64(y.data[feRAM:]) > from {
				r.over.drop(y.key)
			}
			continue
		}
		n := le.Uint64(y.data[feLen:])
		end := y.off + n
		if end <= from || n > 1<<62 || y.off > 1<<62 {
			continue
		}
		r.over.drop(y.key)
		if y.off < from {
			b := bytes.Clone(y.data)
			le.PutUint64(b[feLen:], from-y.off)
			r.over.put(y.key, b, y.at)
		}
		if end > to {
			b := bytes.Clone(y.data)
			le.PutUint64(b[feOffset:], le.Uint64(b[feOffset:])+to-y.off)
			le.PutUint64(b[feLen:], end-to)
			r.over.put(key{id, tExtentData, to}, b, y.at)
		}
	}
	return nil
}
