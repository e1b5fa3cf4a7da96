package hostsnap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/live"
)

// marker begins the names of the folders: .vmkit-snapshot-PID-TIME.
const marker = ".vmkit-snapshot-"

// snapshot is the name of the snapshot in its folder.
const snapshot = "files"

// Own tells whether a file of that name is a folder of this package, which is no backup's business.
func Own(name string) bool { return strings.HasPrefix(name, marker) }

// folder holds a snapshot, or copies. Its lock ends with the process at the latest.
type folder struct {
	top, path string
	dir       *os.File
	btrfs     bool
	at        time.Time // of the snapshot
	copies    int
}

// newFolder makes a folder at the top of a file system, and locks it.
func newFolder(top string) (*folder, error) {
	for {
		path := filepath.Join(top, fmt.Sprintf("%s%d-%s", marker, os.Getpid(), time.Now().UTC().Format("20060102T150405.000000Z")))
		if err := os.Mkdir(path, 0o700); errors.Is(err, fs.ErrExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		f, err := lock(top, path)
		if err != nil {
			return nil, errors.Join(err, unix.Rmdir(path))
		}
		if f != nil {
			return f, nil
		}
		// Another run took it for a leftover before it was locked, and removes it.
	}
}

// lock takes a folder, or gives nil where another process has it, or had it and removed it.
func lock(top, path string) (*folder, error) {
	dir, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		var now, then os.FileInfo
		if now, err = os.Lstat(path); err == nil {
			if then, err = dir.Stat(); err == nil && !os.SameFile(now, then) {
				err = fs.ErrNotExist
			}
		}
	}
	if err != nil {
		dir.Close()
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("%s: locking it: %w", path, err)
	}
	return &folder{top: top, path: path, dir: dir}, nil
}

// snap makes the snapshot of the subvolume whose top the folder lies at.
func (f *folder) snap() error {
	top, err := os.Open(f.top)
	if err != nil {
		return err
	}
	defer top.Close()
	b := make([]byte, volSize)
	le.PutUint64(b[volFD:], uint64(top.Fd()))
	le.PutUint64(b[vol2Mode:], readOnly)
	copy(b[vol2Name:], snapshot)
	// All that was written before the call is in the snapshot; what the kernel does first may take it a while.
	f.btrfs, f.at = true, time.Now()
	if err := live.Ioctl(int(f.dir.Fd()), reqSnapshot, b); err != nil {
		return fmt.Errorf("a snapshot of %s: %w", f.top, err)
	}
	return nil
}

// clone makes another file in the folder that shares the bytes of src.
func (f *folder) clone(src *os.File) (path string, err error) {
	f.copies++
	path = filepath.Join(f.path, fmt.Sprint(f.copies))
	dst, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer dst.Close()
	err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	if errors.Is(err, unix.EINVAL) {
		// Files of btrfs that are overwritten in place (chattr +C) share only with their like.
		if err = unix.IoctlSetPointerInt(int(dst.Fd()), unix.FS_IOC_SETFLAGS, noCOW); err == nil {
			err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
		}
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("sharing the bytes of %s: %w", src.Name(), err), os.Remove(path))
	}
	return path, nil
}

// remove removes the folder, and what this package puts into such folders.
func (f *folder) remove() error {
	defer f.dir.Close()
	// A folder of btrfs shows only what it had when it was opened.
	fd, err := unix.Openat(int(f.dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: f.path, Err: err}
	}
	dir := os.NewFile(uintptr(fd), f.path)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == snapshot {
			b := make([]byte, volSize)
			copy(b[volName:], name)
			err = live.Ioctl(fd, reqDestroy, b)
		} else {
			err = unix.Unlinkat(fd, name, 0)
		}
		if err != nil {
			return fmt.Errorf("removing %s: %w", filepath.Join(f.path, name), err)
		}
	}
	return os.Remove(f.path)
}

// sweep removes the folders that runs which are over left at the top of a file system, and tells of each.
func sweep(top string, warn func(format string, args ...any)) {
	list, err := os.ReadDir(top)
	if err != nil {
		return // what is to be read there says so itself
	}
	for _, e := range list {
		if !Own(e.Name()) || !e.IsDir() {
			continue
		}
		path := filepath.Join(top, e.Name())
		var st unix.Stat_t
		if unix.Lstat(path, &st) != nil || int(st.Uid) != os.Geteuid() || st.Mode&0o777 != 0o700 {
			continue // another's
		}
		f, err := lock(top, path)
		if f == nil && err == nil {
			continue
		}
		if err == nil {
			err = f.remove()
		}
		if err != nil {
			warn("what an interrupted run left is still there: %v", err)
		} else {
			warn("%s, which an interrupted run left, was removed", path)
		}
	}
}
