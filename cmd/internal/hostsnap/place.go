package hostsnap

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// place is where a file lies: its file system or subvolume, the mount that it is seen through (0 where the kernel
// doesn't tell: before Linux 5.8), its inode.
type place struct {
	dev, mount, inode uint64
	mode              uint16
}

func (p place) folder() bool { return p.mode&unix.S_IFMT == unix.S_IFDIR }

func placeOf(path string) (place, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &st); err != nil {
		return place{}, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	p := place{dev: unix.Mkdev(st.Dev_major, st.Dev_minor), inode: st.Ino, mode: st.Mode}
	if st.Mask&unix.STATX_MNT_ID != 0 {
		p.mount = st.Mnt_id
	}
	return p, nil
}

// topOf gives the highest folder above a file, or itself, that lies in the same file system or subvolume and is seen
// through the same mount, and the file's own path without symbolic links above it.
func topOf(path string) (top, real string, at place, err error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", "", at, err
	}
	real = filepath.Join(dir, filepath.Base(path))
	own, err := placeOf(real)
	if err != nil {
		return "", "", at, err
	}
	top, at = real, own
	for top != "/" {
		p, err := placeOf(filepath.Dir(top))
		if err != nil || p.dev != own.dev || p.mount != own.mount {
			break
		}
		top, at = filepath.Dir(top), p
	}
	return top, real, at, nil
}

// onBtrfs tells whether a folder lies on a btrfs.
func onBtrfs(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Type == unix.BTRFS_SUPER_MAGIC
}

// Nested tells whether a folder of another device than the one around it is a subvolume in it, and not mounted there.
func Nested(path string) bool {
	own, err := placeOf(path)
	if err != nil {
		return false
	}
	around, err := placeOf(filepath.Dir(path))
	return err == nil && own.mount != 0 && own.mount == around.mount && own.inode == topInode
}

// Stub tells whether a folder with that inode number, in the snapshot of a subvolume, stands for another subvolume.
func Stub(inode uint64) bool { return inode == noSubvolume }
