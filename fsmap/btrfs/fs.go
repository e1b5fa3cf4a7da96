package btrfs

import (
	"bytes"
	"fmt"
	"sort"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/names"
	"vmkit/fsmap/mapfile"
)

// tree gives the tree of a subvolume.
func (f *fs) tree(id uint64) (*tree, error) {
	f.mu.Lock()
	t := f.trees[id]
	f.mu.Unlock()
	if t != nil {
		return t, nil
	}
	var it item
	found := false
	// A root item's offset is the generation in which a snapshot was made; the last one counts.
	err := f.rootTree.scan(key{id, tRootItem, 0}, key{id, tRootItem, maxOff}, func(x item) bool {
		it, found = x, true
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("btrfs subvolume %d: %w", id, err)
	}
	if !found || len(it.data) < rtMin || it.data[rtLevel] > maxLevel {
		return nil, ondisk.Corrupt("btrfs root tree", "item of subvolume", -1, id)
	}
	t = &tree{fs: f, id: id, root: int64(le.Uint64(it.data[rtBytenr:])), level: int(it.data[rtLevel]), over: f.over[id]}
	f.mu.Lock()
	defer f.mu.Unlock()
	const maxTrees = 4096 // kept; more are read again
	if len(f.trees) < maxTrees {
		f.trees[id] = t
	}
	return t, nil
}

// listSubvolumes fills what the volume record says of them. The default subvolume is named in the root directory.
func (f *fs) listSubvolumes() {
	type subvolume struct {
		id, parent uint64
		name       string
		readOnly   bool
		snapshot   bool
	}
	var subs []subvolume
	const maxListed = 10000
	err := f.rootTree.scan(key{idFS, tRootItem, 0}, key{idRootMax, tRootRef, maxOff}, func(x item) bool {
		if x.id != idFS && x.id < firstFreeID {
			return true
		}
		switch {
		case x.typ == tRootItem && len(x.data) >= rtMin && x.id != idFS:
			s := subvolume{id: x.id, readOnly: le.Uint64(x.data[rtFlags:])&rtReadOnly != 0}
			if len(x.data) >= rtParentUUID+16 {
				s.snapshot = !bytes.Equal(x.data[rtParentUUID:rtParentUUID+16], make([]byte, 16))
			}
			if le.Uint32(x.data[rtRefs:]) > 0 {
				subs = append(subs, s)
			}
		case x.typ == tRootBack && len(x.data) > 18 && len(subs) > 0 && subs[len(subs)-1].id == x.id:
			subs[len(subs)-1].parent = x.off
			subs[len(subs)-1].name = string(x.data[18:])
		}
		return len(subs) < maxListed
	})
	if err != nil {
		f.problem(fmt.Errorf("list of subvolumes: %w", err))
	}
	sort.SliceStable(subs, func(i, j int) bool { return subs[i].id < subs[j].id })
	var list []any
	for _, s := range subs {
		m := map[string]any{"id": s.id, "name": s.name, "parent": s.parent}
		if s.readOnly {
			m["read_only"] = true
		}
		if s.snapshot {
			m["snapshot"] = true
			f.info.Snapshots = append(f.info.Snapshots, fmt.Sprintf("subvolume %d %s", s.id, s.name))
		}
		list = append(list, m)
	}
	if len(list) > 0 {
		f.info.Extra["subvolumes"] = list
	}
	err = f.rootTree.scan(key{idRootDir, tDirItem, 0}, key{idRootDir, tDirItem, maxOff}, func(x item) bool {
		eachDirItem(x.data, func(d dirItem) bool {
			if string(d.name) == "default" && d.location.id != idFS {
				f.info.Extra["default_subvolume"] = d.location.id
			}
			return true
		})
		return true
	})
	if err != nil {
		f.problem(fmt.Errorf("default subvolume: %w", err))
	}
}

// dirItem is one entry of a directory or xattr item.
type dirItem struct {
	location   key
	typ        uint8
	name, data []byte
}

// eachDirItem takes apart an item; several entries share one where their names' hashes are the same.
func eachDirItem(b []byte, fn func(dirItem) bool) error {
	for len(b) > 0 {
		if len(b) < diHead {
			return ondisk.Truncated("btrfs directory item", "head", -1, len(b))
		}
		n, d := int(le.Uint16(b[diNameLen:])), int(le.Uint16(b[diDataLen:]))
		if diHead+n+d > len(b) {
			return ondisk.Corrupt("btrfs directory item", "length of the name", -1, n)
		}
		if !fn(dirItem{parseKey(b), b[diType], b[diHead : diHead+n], b[diHead+n : diHead+n+d]}) {
			return nil
		}
		b = b[diHead+n+d:]
	}
	return nil
}

// kinds are the entry types of directory items (BTRFS_FT_*).
var kinds = [...]mapfile.FileKind{0, mapfile.Regular, mapfile.Directory, mapfile.Char, mapfile.Block, mapfile.FIFO, mapfile.Socket, mapfile.Symlink}

func timeAt(b []byte) mapfile.Time {
	return mapfile.Time{Sec: int64(le.Uint64(b)), Nsec: int32(min(le.Uint32(b[8:]), 999999999)), Known: true}
}

// number gives the number that a map shows. Subvolumes count their inodes each for itself; so that two files never have
// one number, and are taken for one, those of subvolumes carry the subvolume's id above bit 40.
func number(r fsmap.Ref) uint64 {
	if r.ID&emptySubvol != 0 {
		r.ID = 2 // the kernel's number for all of these
	}
	if r.Tree == idFS {
		return r.ID
	}
	return r.Tree<<40 ^ r.ID
}

// Node implements fsmap.FS.
func (f *fs) Node(e fsmap.Entry, n *fsmap.Node) error {
	n.Ref, n.Inode = e.Ref, number(e.Ref)
	if e.Ref.ID&emptySubvol != 0 { // what the kernel shows for a subvolume inside a snapshot
		n.Kind, n.Mode, n.UID, n.GID, n.Links = mapfile.Directory, 0o755, 0, 0, 1
		return nil
	}
	t, err := f.tree(e.Ref.Tree)
	if err != nil {
		return err
	}
	found := false
	err = t.scan(key{e.Ref.ID, tInodeItem, 0}, key{e.Ref.ID, tXattr, maxOff}, func(x item) bool {
		switch x.typ {
		case tInodeItem:
			if len(x.data) < inLen {
				return false
			}
			found = true
			f.inode(x.data, n)
		case tXattr:
			bad := eachDirItem(x.data, func(d dirItem) bool {
				n.Xattrs = append(n.Xattrs, mapfile.Xattr{Name: string(d.name), Value: bytes.Clone(d.data)})
				return true
			})
			if bad != nil {
				n.Problems = append(n.Problems, bad)
			}
		}
		return found
	})
	switch {
	case !found && err != nil:
		return err
	case !found:
		return ondisk.Corrupt("btrfs inode", fmt.Sprintf("subvolume %d has no inode", e.Ref.Tree), -1, e.Ref.ID)
	case n.Kind == 0:
		return ondisk.Corrupt("btrfs inode", fmt.Sprintf("%d: mode", e.Ref.ID), -1, fmt.Sprintf("%#o", n.Mode))
	case err != nil:
		n.Problems = append(n.Problems, err)
	}
	if n.Kind == mapfile.Symlink {
		return f.readLink(t, n)
	}
	return nil
}

func (f *fs) inode(b []byte, n *fsmap.Node) {
	mode := le.Uint32(b[inMode:])
	n.Kind, n.Mode = fsmap.ModeKind(mode), int64(mode&0o7777)
	n.Size = int64(le.Uint64(b[inSize:]))
	n.UID, n.GID, n.Links = int64(le.Uint32(b[inUID:])), int64(le.Uint32(b[inGID:])), int64(le.Uint32(b[inLinks:]))
	n.ATime, n.CTime, n.MTime = timeAt(b[inATime:]), timeAt(b[inCTime:]), timeAt(b[inMTime:])
	if le.Uint64(b[inOTime:]) != 0 {
		n.BTime = timeAt(b[inOTime:])
	}
	if n.Kind == mapfile.Char || n.Kind == mapfile.Block {
		dev := le.Uint64(b[inRdev:])
		n.Major, n.Minor = uint32(dev>>20), uint32(dev&(1<<20-1))
	}
	for _, x := range inodeFlags {
		if le.Uint64(b[inFlags:])&x.bit != 0 {
			n.Attrs = append(n.Attrs, x.name)
		}
	}
}

// readLink takes a symlink's target from its inline extent.
func (f *fs) readLink(t *tree, n *fsmap.Node) error {
	it, ok, err := t.get(key{n.Ref.ID, tExtentData, 0})
	if err != nil {
		return err
	}
	if !ok || len(it.data) < feInline || it.data[feType] != feKindInline || it.data[feCompression] != 0 || int64(len(it.data)-feInline) < n.Size || n.Size < 0 {
		return ondisk.Corrupt("btrfs symlink", fmt.Sprintf("inode %d: target of length", n.Ref.ID), -1, n.Size)
	}
	n.Target = append(n.Target, it.data[feInline:feInline+n.Size]...)
	return nil
}

// ReadDir implements fsmap.FS.
func (f *fs) ReadDir(n *fsmap.Node, add func(fsmap.Entry) bool) error {
	if n.Ref.ID&emptySubvol != 0 {
		return nil
	}
	t, err := f.tree(n.Ref.Tree)
	if err != nil {
		return err
	}
	var bad error
	err = t.scan(key{n.Ref.ID, tDirIndex, 0}, key{n.Ref.ID, tDirIndex, maxOff}, func(x item) bool {
		more := true
		if e := eachDirItem(x.data, func(d dirItem) bool {
			if !names.Usable(d.name) {
				if bad == nil {
					bad = ondisk.Corrupt("btrfs directory", fmt.Sprintf("%d: name", n.Ref.ID), x.at, fmt.Sprintf("%q", d.name))
				}
				return true
			}
			entry := fsmap.Entry{Name: d.name, Ref: fsmap.Ref{Tree: n.Ref.Tree, ID: d.location.id}}
			if int(d.typ) < len(kinds) {
				entry.Kind = kinds[d.typ]
			}
			if d.location.typ == tRootItem {
				entry.Kind = mapfile.Directory
				entry.Ref = f.subvolume(n.Ref, d)
			}
			more = add(entry)
			return more
		}); e != nil && bad == nil {
			bad = fmt.Errorf("directory %d: %w", n.Ref.ID, e)
		}
		return more
	})
	if err == nil {
		err = bad
	}
	return err
}

// subvolume finds the root of the subvolume that a directory entry names. The root tree must agree on where it hangs:
// a snapshot has the entries of the subvolumes below it, but not the subvolumes.
func (f *fs) subvolume(dir fsmap.Ref, d dirItem) fsmap.Ref {
	const head = 18
	it, ok, err := f.rootTree.get(key{dir.Tree, tRootRef, d.location.id})
	if err != nil || !ok || len(it.data) < head || le.Uint64(it.data) != dir.ID || !bytes.Equal(it.data[head:], d.name) {
		return fsmap.Ref{Tree: dir.Tree, ID: emptySubvol | d.location.id}
	}
	return fsmap.Ref{Tree: d.location.id, ID: firstFreeID}
}

// Runs implements fsmap.FS.
func (f *fs) Runs(n *fsmap.Node, _ *fsmap.Stream, r *fsmap.Runs) error {
	t, err := f.tree(n.Ref.Tree)
	if err != nil {
		return err
	}
	var bad error
	err = t.scan(key{n.Ref.ID, tExtentData, 0}, key{n.Ref.ID, tExtentData, maxOff}, func(x item) bool {
		bad = f.extent(x, r)
		return bad == nil && r.Next() < r.Size()
	})
	if bad != nil {
		return fmt.Errorf("inode %d, extent at %d: %w", n.Ref.ID, r.Next(), bad)
	}
	return err
}

// codecs by the number of a compression.
var codecs = [...]string{"", codec.Zlib, codec.LZOBtrfs, codec.Zstd}

// extent appends what one extent item says.
func (f *fs) extent(x item, r *fsmap.Runs) error {
	b := x.data
	bad := func(field string, got any) error { return ondisk.Corrupt("btrfs extent item", field, x.at, got) }
	if len(b) < feInline || x.off > 1<<62 {
		return bad("length", len(b))
	}
	at, ram, comp, kind := int64(x.off), le.Uint64(b[feRAM:]), int(b[feCompression]), b[feType]
	if b[feEncryption] != 0 || le.Uint16(b[feOther:]) != 0 {
		return ondisk.Unsupported("btrfs extent item", "encryption or encoding", x.at+feEncryption, b[feEncryption])
	}
	if comp >= len(codecs) {
		return ondisk.Unsupported("btrfs extent item", "compression", x.at+feCompression, comp)
	}
	if comp != 0 && (ram == 0 || ram > codec.MaxFull) {
		return bad("decoded length", ram)
	}
	if kind == feKindInline {
		n := int64(len(b)) - feInline
		if n == 0 {
			return nil
		}
		if comp == 0 {
			return f.place(at, x.at+feInline, min(n, int64(min(ram, 1<<62))), mapfile.Data, r)
		}
		return f.packed(at, int64(ram), 0, int64(ram), comp, x.at+feInline, n, r)
	}
	if len(b) < feSize {
		return bad("length", len(b))
	}
	disk, diskLen, skip, n := le.Uint64(b[feDisk:]), le.Uint64(b[feDiskLen:]), le.Uint64(b[feOffset:]), le.Uint64(b[feLen:])
	switch {
	case n == 0 || n > 1<<62 || skip > 1<<62 || disk > 1<<62 || diskLen > 1<<62:
		return bad("length", n)
	case disk == 0:
		return r.Append(fsmap.Run{At: at, Len: int64(n), Kind: mapfile.Hole})
	case kind == feKindPrealloc:
		return f.place(at, int64(disk+skip), int64(n), mapfile.Unwritten, r)
	case kind != feKindRegular:
		return bad("type", kind)
	case comp == 0:
		if skip+n > diskLen {
			return bad("range within its extent", skip)
		}
		return f.place(at, int64(disk+skip), int64(n), mapfile.Data, r)
	case skip+n > ram || diskLen > codec.MaxFull:
		return bad("range within its extent", skip)
	}
	return f.packed(at, int64(n), int64(skip), int64(ram), comp, int64(disk), int64(diskLen), r)
}

// place appends n bytes that lie at a logical address.
func (f *fs) place(at, logical, n int64, kind mapfile.Kind, r *fsmap.Runs) error {
	if at < r.Size() {
		n = min(n, r.Size()-at) // what is cut off needs no chunk
	}
	return f.chunks.runs(logical, n, func(x fsmap.Run) error {
		x.At = at
		at += x.Len
		if kind == mapfile.Unwritten {
			if x.Kind != mapfile.Data {
				x = fsmap.Run{At: x.At, Len: x.Len, Kind: mapfile.Hole}
			} else {
				x.Kind = kind
			}
		}
		return r.Append(x)
	})
}

// packed appends n bytes from skip of an extent whose coded bytes lie at a logical address. The extent's decoded length
// counts whole sectors, but Linux compresses only up to where the file ends at that moment; so no more is asked for than
// the file shows, and where it has grown since, zeros may follow.
func (f *fs) packed(at, n, skip, full int64, comp int, logical, length int64, r *fsmap.Runs) error {
	if at >= r.Size() {
		return nil
	}
	n = min(n, r.Size()-at)
	pack := &fsmap.Pack{Spec: codec.Spec{Codec: codecs[comp], Full: min(full, skip+n)}}
	pack.Pad = skip+n == full && at+n < r.Size()
	lost := false
	err := f.chunks.runs(logical, length, func(x fsmap.Run) error {
		if k := len(pack.Parts); k > 0 && x.Kind == mapfile.Data && pack.Parts[k-1].Kind == x.Kind && pack.Parts[k-1].Dev == x.Dev && pack.Parts[k-1].Off+pack.Parts[k-1].Len == x.Off {
			pack.Parts[k-1].Len += x.Len
			return nil
		}
		lost = lost || x.Kind == mapfile.Missing
		pack.Parts = append(pack.Parts, x)
		return nil
	})
	if err != nil {
		return err
	}
	if lost {
		return r.Append(fsmap.Run{At: at, Len: n, Kind: mapfile.Missing})
	}
	return r.Packed(at, n, skip, pack)
}
