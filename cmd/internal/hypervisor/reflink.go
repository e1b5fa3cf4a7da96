package hypervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// CanReflink tells whether the file system of a folder clones files by reflink, by trying.
func CanReflink(dir string) (bool, error) {
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(dir, ".vmfreeze-")
		if err != nil {
			return false, err
		}
		defer f.Close()
		if err := os.Remove(f.Name()); err != nil {
			return false, err
		}
		files[i] = f
	}
	if _, err := files[0].Write(make([]byte, 4096)); err != nil {
		return false, err
	}
	err := unix.IoctlFileClone(int(files[1].Fd()), int(files[0].Fd()))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EXDEV):
		return false, nil
	}
	return false, fmt.Errorf("%s: trying a reflink: %w", dir, err)
}

// NoReflink gives the files of a machine's disks that can't be cloned by reflink, and how many bytes they have allocated.
// Its other files are small.
func NoReflink(vm *mapfile.VM) (paths []string, bytes int64) {
	dirs := map[string]bool{}
	for _, f := range vm.Files {
		if f.Role != mapfile.RoleDisk && f.Role != mapfile.RoleBacking {
			continue
		}
		st, err := os.Stat(f.Path)
		if err != nil || !st.Mode().IsRegular() {
			paths = append(paths, f.Path)
			bytes += f.Size
			continue
		}
		dir := filepath.Dir(f.Path)
		ok, known := dirs[dir]
		if !known {
			// A folder that can't be written to can't be tried: the copy may turn out to be a long one.
			ok, err = CanReflink(dir)
			ok = ok && err == nil
			dirs[dir] = ok
		}
		if !ok {
			var u unix.Stat_t
			if unix.Stat(f.Path, &u) == nil {
				bytes += u.Blocks * 512
			}
			paths = append(paths, f.Path)
		}
	}
	return paths, bytes
}
