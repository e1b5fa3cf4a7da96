package live

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/btrfs"
)

// member is a device of a btrfs.
type member struct {
	id   uint64
	path string
	dev  string
	size int64
}

const maxMembers = 4096

// btrfsMembers asks a btrfs for its devices, in order of their ids.
func btrfsMembers(fd int) ([]member, error) {
	info := make([]byte, infoSize)
	if err := Ioctl(fd, reqBtrfsInfo, info); err != nil {
		return nil, fmt.Errorf("btrfs devices: %w", err)
	}
	var list []member
	for id := uint64(0); id <= min(le.Uint64(info[infoMaxID:]), maxMembers); id++ {
		b := make([]byte, bdSize)
		le.PutUint64(b, id)
		if err := Ioctl(fd, reqBtrfsDev, b); errors.Is(err, unix.ENODEV) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("btrfs device %d: %w", id, err)
		}
		path, _, _ := bytes.Cut(b[bdPath:], []byte{0})
		m := member{id: id, path: string(path), size: int64(le.Uint64(b[bdBytes:]))}
		var st unix.Stat_t
		if err := unix.Stat(m.path, &st); err != nil {
			return nil, fmt.Errorf("btrfs device %d, %s: %w", id, m.path, err)
		}
		m.dev = devName(uint64(st.Rdev))
		list = append(list, m)
	}
	if len(list) == 0 {
		return nil, errors.New("btrfs: it names no devices")
	}
	return list, nil
}

// search calls fn with the items of one type and object of a tree (0: the one that fd's file is in), by rising offset,
// until it returns false.
func search(fd int, tree, object uint64, typ uint32, fn func(offset uint64, data []byte) bool) error {
	buf := make([]byte, bsHead+(64<<10))
	for from := uint64(0); ; {
		clear(buf[:bsHead])
		le.PutUint64(buf[bsTree:], tree)
		le.PutUint64(buf[bsMinObject:], object)
		le.PutUint64(buf[bsMaxObject:], object)
		le.PutUint64(buf[bsMinOffset:], from)
		le.PutUint64(buf[bsMaxOffset:], 1<<64-1)
		le.PutUint64(buf[bsMaxTrans:], 1<<64-1)
		le.PutUint32(buf[bsMinType:], typ)
		le.PutUint32(buf[bsMaxType:], typ)
		le.PutUint32(buf[bsItems:], 1<<32-1)
		le.PutUint64(buf[bsBufSize:], uint64(len(buf)-bsHead))
		if err := Ioctl(fd, reqBtrfsSearch, buf); err != nil {
			return fmt.Errorf("btrfs tree search: %w", err)
		}
		n, b := le.Uint32(buf[bsItems:]), buf[bsHead:]
		if n == 0 {
			return nil
		}
		for range n {
			if len(b) < biHead || uint64(len(b)-biHead) < uint64(le.Uint32(b[biLen:])) {
				return ondisk.Corrupt("btrfs tree search", "length of its answer", -1, len(b))
			}
			end := biHead + int(le.Uint32(b[biLen:]))
			from = le.Uint64(b[biOffset:])
			if !fn(from, b[biHead:end]) {
				return nil
			}
			b = b[end:]
		}
		if from++; from == 0 {
			return nil
		}
	}
}

// chunks reads where the logical addresses of a btrfs lie.
func chunks(fd int, ids []uint64, sizes []int64) (*btrfs.Items, error) {
	x := btrfs.NewItems(ids, sizes)
	var bad error
	err := search(fd, treeChunks, chunkObject, itemChunk, func(logical uint64, data []byte) bool {
		bad = x.Chunk(logical, data)
		return bad == nil
	})
	return x, errors.Join(err, bad)
}

// btrfsRuns appends the extents of an open file.
func (f *FS) btrfsRuns(fd int, inode uint64, r *fsmap.Runs) error {
	size := r.Size()
	for again := false; ; again = true {
		r.Reset(size)
		items := f.items.Load()
		var bad error
		err := search(fd, 0, inode, itemExtentData, func(at uint64, data []byte) bool {
			bad = items.Extent(at, data, r)
			return bad == nil && r.Next() < size
		})
		if err != nil || bad == nil || again {
			return errors.Join(err, bad)
		}
		// A chunk that is new since they were read.
		if items, err = chunks(f.dir, f.ids, f.sizes); err != nil {
			return err
		}
		f.items.Store(items)
	}
}

// treeOf gives the id of the subvolume that what find gave, a file or a folder, is in.
func treeOf(fd int) (uint64, error) {
	h, err := reopen(fd)
	if err != nil {
		return 0, fmt.Errorf("btrfs subvolume: %w", err)
	}
	defer unix.Close(h)
	b := make([]byte, lookupSize)
	le.PutUint64(b[8:], chunkObject) // any valid number: only the tree's id is wanted
	if err := Ioctl(h, reqBtrfsLookup, b); err != nil {
		return 0, fmt.Errorf("btrfs subvolume: %w", err)
	}
	return le.Uint64(b), nil
}
