package live

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/btrfs"
	"vmkit/fsmap/mapfile"
)

// FS is a mounted file system. It implements fsmap.FS.
type FS struct {
	root  int // descriptor of its root, for paths only
	dir   int // the same, opened
	info  fsmap.Info
	hash  bool
	attrs []attr
	made  bool // it has no owners and modes: what the kernel shows is made up
	nodev bool // no device can be opened through it

	refs   atomic.Uint64
	inline atomic.Int64 // bytes that may still be carried
	sample atomic.Int64 // bytes that may still be hashed

	// Of a btrfs:
	ids   []uint64
	sizes []int64
	items atomic.Pointer[btrfs.Items]
	trees sync.Map // device number of a subvolume to its id
}

// Limits of what a map carries, and of the sample of files whose hashes it has: one of sampleOf, if not longer than
// sampleFile.
const (
	maxInline     = 1 << 20  // bytes of one file
	maxInlineAll  = 64 << 20 // and of one file system
	sampleOf      = 32
	sampleFile    = 1 << 20
	maxSample     = 64 << 20
	maxListXattrs = 1 << 20
)

// attr is an attribute of FS_IOC_FSGETXATTR and its name, which is that of the driver that reads the file system from
// outside.
type attr struct {
	bit  uint32
	name string
}

var attrsOf = map[string][]attr{
	"xfs":   {{0x8, "immutable"}, {0x10, "append"}, {0x20, "sync"}, {0x40, "noatime"}, {0x80, "nodump"}, {fxRealtime, "realtime"}},
	"btrfs": {{0x20, "sync"}, {0x8, "immutable"}, {0x10, "append-only"}, {0x80, "nodump"}, {0x40, "noatime"}},
	"":      {{0x20, "sync"}, {0x8, "immutable"}, {0x10, "append-only"}, {0x80, "no-dump"}, {0x40, "no-atime"}},
}

// ownerless are the kernel's names of file systems without owners and modes.
var ownerless = []string{"vfat", "msdos", "exfat", "ntfs3", "ntfs", "hfs"}

// Open takes the mounted file system of type typ whose root the descriptor root is, and which it closes in the end.
// sizes are those of the volumes that it lies on, in bytes.
func Open(root int, typ string, sizes []int64, o Options) (*FS, error) {
	f := &FS{root: root, hash: o.Hash, sizes: sizes, attrs: attrsOf[typ], made: slices.Contains(ownerless, typ), info: fsmap.Info{Used: mapfile.None, Root: fsmap.Ref{ID: 1}}}
	if f.attrs == nil {
		f.attrs = attrsOf[""]
	}
	f.refs.Store(1)
	f.inline.Store(maxInlineAll)
	f.sample.Store(maxSample)
	var st unix.Statfs_t
	if err := unix.Fstatfs(root, &st); err != nil {
		return nil, fmt.Errorf("statfs: %w", err)
	}
	f.info.BlockSize, f.nodev = st.Bsize, st.Flags&unix.ST_NODEV != 0
	if free := st.Blocks - st.Bfree; st.Bsize > 0 && st.Bfree <= st.Blocks && free < uint64(1<<62/st.Bsize) {
		f.info.Used = int64(free) * st.Bsize
	}
	dir, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return nil, fmt.Errorf("root folder: %w", err)
	}
	f.dir = dir
	if typ == "btrfs" {
		err = f.openBtrfs()
	} else if len(sizes) != 1 {
		err = ondisk.Unsupported(typ, "number of volumes", -1, len(sizes))
	}
	if err != nil {
		unix.Close(dir)
		return nil, err
	}
	return f, nil
}

func (f *FS) openBtrfs() error {
	members, err := btrfsMembers(f.dir)
	if err != nil {
		return err
	}
	if len(members) != len(f.sizes) {
		return fmt.Errorf("btrfs: %d devices, of which %d were found on the disks", len(members), len(f.sizes))
	}
	for _, m := range members {
		f.ids = append(f.ids, m.id)
	}
	items, err := chunks(f.dir, f.ids, f.sizes)
	f.items.Store(items)
	return err
}

// Close lets go of the mount.
func (f *FS) Close() error { return errors.Join(unix.Close(f.dir), unix.Close(f.root)) }

// Info implements fsmap.FS.
func (f *FS) Info() *fsmap.Info { return &f.info }

// within says that a name is looked up below the root, through no symbolic link and on no other mount.
const within = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS

// pathMax is how long a path may be that the kernel takes at once.
const pathMax = 4000

const (
	// onlyPath opens what can't be read from: see reopen. forReading is for files and folders, whose access time stays.
	onlyPath   = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	forReading = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NOATIME | unix.O_NONBLOCK | unix.O_CLOEXEC
)

// find opens what lies at a path from the root on.
func (f *FS) find(path []byte, flags uint64) (int, error) {
	rest := strings.TrimPrefix(string(path), "/")
	if rest == "" {
		rest = "."
	}
	at := f.root
	for {
		part, how := rest, flags
		if len(part) > pathMax {
			i := strings.LastIndexByte(part[:pathMax], '/')
			if i <= 0 {
				return -1, unix.ENAMETOOLONG
			}
			part, how = part[:i], onlyPath
		}
		fd, err := unix.Openat2(at, part, &unix.OpenHow{Flags: how, Resolve: within})
		if at != f.root {
			unix.Close(at)
		}
		if errors.Is(err, unix.ENOSYS) {
			return -1, errors.New("openat2: Linux 5.8 or later is needed")
		}
		if err != nil || len(part) == len(rest) {
			return fd, err
		}
		at, rest = fd, rest[len(part)+1:]
	}
}

// magic is a path that names what a descriptor stands for.
func magic(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// reopen opens for reading what find gave, a regular file or a folder. Its access time stays.
func reopen(fd int) (int, error) { return unix.Open(magic(fd), forReading&^unix.O_NOFOLLOW, 0) }

// file is what Node finds out for ReadDir and Runs.
type file struct {
	path []byte
	runs fsmap.Runs
	err  error // of the runs
}

// Node implements fsmap.FS. A regular file's runs are asked for at once, so that they fit its size and times; a file
// that changes meanwhile is read once more.
func (f *FS) Node(e fsmap.Entry, n *fsmap.Node) error {
	// At once, where a name that has become a device's by now can do no harm.
	fd, err := -1, error(unix.EAGAIN)
	if f.nodev && (e.Kind == mapfile.Regular || e.Kind == mapfile.Directory) {
		fd, err = f.find(e.Path, forReading)
	}
	readable := err == nil
	if !readable {
		if fd, err = f.find(e.Path, onlyPath); err != nil {
			return err
		}
	}
	defer unix.Close(fd)
	p, ok := n.Priv.(*file)
	if !ok {
		p = &file{}
	}
	for try := 0; ; try++ {
		n.Reset()
		n.Priv, n.Ref = p, e.Ref
		p.path, p.err = append(p.path[:0], e.Path...), nil
		before, err := stat(fd)
		if err != nil {
			return err
		}
		if err := f.fill(fd, readable, before, n, p); err != nil {
			return err
		}
		after, err := stat(fd)
		if err != nil {
			return err
		}
		if before.Size == after.Size && before.Ctime == after.Ctime && before.Mtime == after.Mtime || n.Kind != mapfile.Regular {
			return nil
		}
		if try == 1 {
			n.SHA256 = ""
			n.Problems = append(n.Problems, errors.New("it changed while it was being read, twice"))
			return nil
		}
	}
}

func stat(fd int) (*unix.Statx_t, error) {
	st := &unix.Statx_t{}
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, st)
	return st, err
}

func timeOf(t unix.StatxTimestamp) mapfile.Time {
	return mapfile.Time{Sec: t.Sec, Nsec: int32(t.Nsec), Known: true}
}

// fill sets what is known of a file, and finds out its runs.
func (f *FS) fill(fd int, readable bool, st *unix.Statx_t, n *fsmap.Node, p *file) error {
	n.Kind = fsmap.ModeKind(uint32(st.Mode))
	n.Inode, n.Size, n.Mode, n.Links = st.Ino, int64(st.Size), int64(st.Mode&0o7777), int64(st.Nlink)
	n.UID, n.GID = int64(st.Uid), int64(st.Gid)
	if f.made {
		n.Mode, n.UID, n.GID, n.Links = mapfile.None, mapfile.None, mapfile.None, mapfile.None
	}
	n.MTime, n.ATime, n.CTime = timeOf(st.Mtime), timeOf(st.Atime), timeOf(st.Ctime)
	if st.Mask&unix.STATX_BTIME != 0 {
		n.BTime = timeOf(st.Btime)
	}
	n.Encrypted = st.Attributes&unix.STATX_ATTR_ENCRYPTED != 0
	if err := f.number(fd, p.path, st, n); err != nil {
		return err
	}
	f.xattrs(fd, readable, n)
	switch n.Kind {
	case mapfile.Symlink:
		b := make([]byte, unix.PathMax+1)
		k, err := unix.Readlinkat(fd, "", b)
		if err != nil {
			n.Problems = append(n.Problems, fmt.Errorf("readlink: %w", err))
		}
		n.Target = append(n.Target, b[:max(k, 0)]...)
	case mapfile.Char, mapfile.Block:
		n.Major, n.Minor = st.Rdev_major, st.Rdev_minor
	case mapfile.Regular, mapfile.Directory:
		return f.content(fd, readable, st, n, p)
	}
	return nil
}

// number makes inode numbers of a btrfs unique, as its driver does.
func (f *FS) number(fd int, path []byte, st *unix.Statx_t, n *fsmap.Node) error {
	if f.ids == nil {
		return nil
	}
	if st.Ino == emptySubvolume {
		// The folder that stands in a snapshot for a subvolume is in no tree: it counts in the one around it.
		up, err := f.find(path[:bytes.LastIndexByte(path, '/')], onlyPath)
		if err != nil {
			return err
		}
		defer unix.Close(up)
		tree, err := treeOf(up)
		n.Inode = btrfs.Number(tree, st.Ino)
		return err
	}
	dev := [2]uint32{st.Dev_major, st.Dev_minor}
	tree, ok := f.trees.Load(dev)
	if !ok {
		// The folder that leads into a subvolume is met before its files are.
		id, err := treeOf(fd)
		if err != nil {
			return err
		}
		tree = id
		f.trees.Store(dev, tree)
	}
	n.Inode = btrfs.Number(tree.(uint64), st.Ino)
	return nil
}

// xattrs reads the extended attributes that root sees.
func (f *FS) xattrs(fd int, readable bool, n *fsmap.Node) {
	names := func(b []byte) (int, error) { return unix.Flistxattr(fd, b) }
	get := func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) }
	if !readable {
		path := magic(fd)
		names = func(b []byte) (int, error) { return unix.Listxattr(path, b) }
		get = func(name string, b []byte) (int, error) { return unix.Getxattr(path, name, b) }
	}
	list, errs := Xattrs(names, get)
	n.Xattrs = append(n.Xattrs, list...)
	n.Problems = append(n.Problems, errs...)
}

// Xattrs gives a file's extended attributes, by name, through the calls that list them and get one. A file system that
// has none is no error.
func Xattrs(names func([]byte) (int, error), get func(name string, b []byte) (int, error)) (list []mapfile.Xattr, errs []error) {
	fail := func(err error) { errs = append(errs, fmt.Errorf("extended attributes: %w", err)) }
	b, err := grow(names)
	if err != nil {
		if !errors.Is(err, unix.EOPNOTSUPP) {
			fail(err)
		}
		return nil, errs
	}
	for name := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte{0}), []byte{0}) {
		if len(name) == 0 {
			continue
		}
		value, err := grow(func(b []byte) (int, error) { return get(string(name), b) })
		if err != nil {
			fail(fmt.Errorf("%s: %w", name, err))
			continue
		}
		list = append(list, mapfile.Xattr{Name: string(name), Value: value})
	}
	slices.SortFunc(list, func(a, b mapfile.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return list, errs
}

// grow calls get with ever larger buffers until what there is fits.
func grow(get func([]byte) (int, error)) ([]byte, error) {
	for size := 1 << 10; ; size *= 8 {
		b := make([]byte, size)
		n, err := get(b)
		if err == nil {
			return b[:n], nil
		}
		if !errors.Is(err, unix.ERANGE) || size >= maxListXattrs {
			return nil, err
		}
	}
}

// ReadDir implements fsmap.FS.
func (f *FS) ReadDir(n *fsmap.Node, add func(fsmap.Entry) bool) error {
	fd, err := f.find(n.Priv.(*file).path, forReading|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 64<<10)
	for {
		k, err := unix.ReadDirent(fd, buf)
		if err != nil || k <= 0 {
			return err
		}
		// struct linux_dirent64: ino u64, off u64, reclen u16, type u8, name.
		for b := buf[:k]; len(b) > 0; {
			const head = 19
			if len(b) < head || int(le.Uint16(b[16:])) < head || int(le.Uint16(b[16:])) > len(b) {
				return ondisk.Corrupt("directory", "length of an entry", -1, len(b))
			}
			size := int(le.Uint16(b[16:]))
			name, _, _ := bytes.Cut(b[head:size], []byte{0})
			kind := fsmap.ModeKind(uint32(b[18]) << 12)
			b = b[size:]
			if string(name) == "." || string(name) == ".." {
				continue
			}
			if !add(fsmap.Entry{Name: name, Kind: kind, Ref: fsmap.Ref{ID: f.refs.Add(1)}}) {
				return nil
			}
		}
	}
}

// Runs implements fsmap.FS.
func (f *FS) Runs(n *fsmap.Node, _ *fsmap.Stream, r *fsmap.Runs) error {
	p := n.Priv.(*file)
	for _, x := range p.runs.List {
		if err := r.Append(x); err != nil {
			return err
		}
	}
	return p.err
}
