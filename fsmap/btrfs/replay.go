package btrfs

import (
	"bytes"
	"maps"
	"slices"
	"sort"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// replayer applies one subvolume's log, step by step as the kernel does (fs/btrfs/tree-log.c): what a name becomes that
// others contend for depends on the order.
type replayer struct {
	fs    *fs
	log   *tree
	sub   *tree // with over in place: reads see what was changed so far
	over  *overlay
	items []item // of the log
	// fixup are the inodes whose links are counted in the end; those that are left without a name go.
	fixup map[uint64]bool
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
	// Inodes with what was removed from them, then names of directories, then the rest.
	for _, stage := range [...]func(item) error{r.inode, r.dirIndex, r.rest} {
		unlinked := false // a file that has no name is not logged, but older kernels did
		for _, x := range r.items {
			if x.typ == tInodeItem {
				if len(x.data) < inLen {
					return ondisk.Corrupt("btrfs log tree", "length of an inode item", x.at, len(x.data))
				}
				unlinked = le.Uint32(x.data[inLinks:]) == 0
			}
			if unlinked {
				continue
			}
			if err := stage(x); err != nil {
				return err
			}
		}
	}
	return r.countLinks()
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
	if x.typ != tInodeItem {
		return nil
	}
	r.fixup[x.id] = true
	// The log has all xattrs that there are: the last stage puts them back.
	if err := r.dropAll(x.id, tXattr); err != nil {
		return err
	}
	old, exists, err := r.sub.get(x.key)
	if err != nil {
		return err
	}
	mode, size := le.Uint32(x.data[inMode:]), le.Uint64(x.data[inSize:])
	kind := fsmap.ModeKind(mode)
	if kind == mapfile.Directory {
		for _, rng := range r.inLog(x.id, tDirLogIdx) {
			if len(rng.data) < 8 {
				return ondisk.Corrupt("btrfs log tree", "length of a directory range", rng.at, len(rng.data))
			}
			if err := r.removeNames(x.id, rng.off, le.Uint64(rng.data), r.inLog(x.id, tDirIndex)); err != nil {
				return err
			}
		}
		if old, exists, err = r.sub.get(x.key); err != nil { // its size has changed
			return err
		}
	}
	exists = exists && len(old.data) >= inLen
	data, at := bytes.Clone(x.data), x.at
	switch {
	case exists && le.Uint64(x.data[inGeneration:]) == 0:
		data, at = bytes.Clone(old.data), old.at
		if kind == mapfile.Regular && size != 0 {
			le.PutUint64(data[inSize:], size)
		}
	case kind == mapfile.Directory: // adding and removing names sets the size
		le.PutUint64(data[inSize:], 0)
		if exists {
			copy(data[inSize:inSize+8], old.data[inSize:inSize+8])
		}
	}
	r.over.put(x.key, data, at)
	if kind != mapfile.Regular {
		return nil
	}
	sector := uint64(r.fs.sector)
	return r.dropExtents(x.id, (le.Uint64(data[inSize:])+sector-1)&^(sector-1), maxOff)
}

// dropAll takes out an inode's items of a type.
func (r *replayer) dropAll(id uint64, typ uint8) error {
	var gone []key
	err := r.sub.scan(key{id, typ, 0}, key{id, typ, maxOff}, func(y item) bool {
		gone = append(gone, y.key)
		return true
	})
	for _, k := range gone {
		r.over.drop(k)
	}
	return err
}

// rest is the last stage.
func (r *replayer) rest(x item) error {
	switch x.typ {
	case tXattr:
		r.over.put(x.key, x.data, x.at)
	case tInodeRef, tInodeExt:
		return r.refs(x)
	case tExtentData:
		return r.extent(x)
	}
	return nil
}

// countLinks sets the link counts of inodes to the numbers of their names. Of those that have none the names in them,
// if they are directories, go too.
func (r *replayer) countLinks() error {
	for len(r.fixup) > 0 {
		ids := slices.Sorted(maps.Keys(r.fixup))
		clear(r.fixup)
		for _, id := range ids {
			it, ok, err := r.sub.get(key{id, tInodeItem, 0})
			if err != nil {
				return err
			}
			if !ok || len(it.data) < inLen {
				continue
			}
			names, err := r.names(key{id, tInodeRef, 0}, key{id, tInodeExt, maxOff})
			if err != nil {
				return err
			}
			switch n := uint32(len(names)); {
			case n == 0:
				if fsmap.ModeKind(le.Uint32(it.data[inMode:])) == mapfile.Directory {
					if err := r.removeNames(id, 0, maxOff, nil); err != nil {
						return err
					}
				}
				r.over.drop(it.key)
			case n != le.Uint32(it.data[inLinks:]):
				b := bytes.Clone(it.data)
				le.PutUint32(b[inLinks:], n)
				r.over.put(it.key, b, it.at)
			}
		}
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
