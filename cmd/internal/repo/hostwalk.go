package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/hostsnap"
	"vmkit/cmd/internal/live"
	"vmkit/fsmap/mapfile"
)

// HostPath is a folder or file of this host that is backed up, under the name As: a snapshot's folder keeps the name of
// what it is one of.
type HostPath struct{ Path, As string }

// ParseHostPath reads PATH or PATH=NAME; both are absolute.
func ParseHostPath(s string) (HostPath, error) {
	path, as, ok := strings.Cut(s, "=")
	if !ok {
		as = path
	}
	if !filepath.IsAbs(path) || !filepath.IsAbs(as) {
		return HostPath{}, fmt.Errorf("%q is no absolute PATH, nor PATH=NAME", s)
	}
	return HostPath{filepath.Clean(path), filepath.Clean(as)}, nil
}

var errSubvolume = errors.New("it is a btrfs subvolume of its own, which is left out: give it with --host too, or name it with --exclude")

// hostWalk goes through the chosen files of this host in the order of a map: depth first, names in byte order.
type hostWalk struct {
	ctx     context.Context
	files   *hostsnap.Set // or nil
	paths   []HostPath
	exclude func(name string) bool
	// skip is a folder that is left out: the repository's own.
	skip    os.FileInfo
	file    func(f *mapfile.File, path string, dev uint64) error
	problem func(name, what string, err error) error
}

// run walks from the root, through the folders that lead to what was chosen.
func (w *hostWalk) run() error {
	slices.SortFunc(w.paths, func(a, b HostPath) int {
		return (&fileKey{path: a.As}).compare(&fileKey{path: b.As})
	})
	return w.enter("/", w.paths)
}

// enter takes the folder name, of which only the paths that are given were chosen: all of them lie in it.
func (w *hostWalk) enter(name string, paths []HostPath) error {
	for _, p := range paths {
		if p.As == name {
			return w.all(name, p.Path, 0, paths)
		}
	}
	if err := w.folder(name); err != nil {
		return err
	}
	return w.lead(name, paths)
}

// lead goes on to what was chosen in the folder name.
func (w *hostWalk) lead(name string, paths []HostPath) error {
	// The paths are in the order of a map, so that those in one folder follow one another.
	for len(paths) > 0 {
		rest := strings.TrimPrefix(strings.TrimPrefix(paths[0].As, name), "/")
		first, _, _ := strings.Cut(rest, "/")
		child := filepath.Join(name, first)
		n := 1
		for n < len(paths) && (paths[n].As == child || strings.HasPrefix(paths[n].As, child+"/")) {
			n++
		}
		if err := w.enter(child, paths[:n]); err != nil {
			return err
		}
		paths = paths[n:]
	}
	return nil
}

// folder takes a folder that only leads to what was chosen; under another name than its own it may not exist.
func (w *hostWalk) folder(name string) error {
	var st unix.Stat_t
	f := &mapfile.File{Path: name, Kind: mapfile.Directory, Mode: 0o755, UID: 0, GID: 0, Links: mapfile.None}
	if err := unix.Stat(name, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		f = hostRecord(name, &st)
	}
	return w.file(f, "", 0)
}

// all takes a file, and all that is in it on the same file system: dev is the device of the folder around it, or 0.
// Other chosen paths may lie in it, under their own names.
func (w *hostWalk) all(name, path string, dev uint64, paths []HostPath) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if w.exclude != nil && w.exclude(name) {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		if dev != 0 && errors.Is(err, fs.ErrNotExist) { // it went meanwhile
			return nil
		}
		return w.problem(name, "inode", &os.PathError{Op: "lstat", Path: path, Err: err})
	}
	folder := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if folder && dev != 0 && hostsnap.Own(filepath.Base(path)) {
		return nil
	}
	origin := path
	if folder && w.files != nil {
		origin = w.files.Live(path)
	}
	stub := dev != 0 && origin != path && hostsnap.Stub(st.Ino)
	if now := (unix.Stat_t{}); stub && unix.Lstat(origin, &now) == nil && now.Mode&unix.S_IFMT == unix.S_IFDIR {
		st = now // the folder that only stands for it has neither its owner nor its times
	}
	f := hostRecord(name, &st)
	if f.Kind == 0 {
		return w.problem(name, "inode", fmt.Errorf("mode %#o", st.Mode))
	}
	if f.Kind == mapfile.Symlink {
		target, err := os.Readlink(path)
		if err != nil {
			return w.problem(name, "inode", err)
		}
		f.Target = target
	}
	var errs []error
	f.Xattrs, errs = live.Xattrs(func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		func(x string, b []byte) (int, error) { return unix.Lgetxattr(path, x, b) })
	if err := w.file(f, path, st.Dev); err != nil {
		return err
	}
	for _, err := range errs {
		if err := w.problem(name, "inode", err); err != nil {
			return err
		}
	}
	if !folder {
		return nil
	}
	if stub || dev != 0 && dev != st.Dev {
		if stub || hostsnap.Nested(path) {
			if err := w.problem(name, "directory", errSubvolume); err != nil {
				return err
			}
		}
		return w.lead(name, paths)
	}
	if w.skip != nil {
		if info, err := os.Lstat(origin); err == nil && os.SameFile(info, w.skip) {
			return nil
		}
	}
	return w.children(name, path, st.Dev, paths)
}

func (w *hostWalk) children(name, path string, dev uint64, paths []HostPath) error {
	list, err := os.ReadDir(path)
	if err != nil {
		if err := w.problem(name, "directory", err); err != nil {
			return err
		}
	}
	inside := map[string][]HostPath{} // chosen under names in this folder
	for _, p := range paths {
		if rest, ok := strings.CutPrefix(p.As, strings.TrimSuffix(name, "/")+"/"); ok {
			first, _, _ := strings.Cut(rest, "/")
			inside[first] = append(inside[first], p)
		}
	}
	names := map[string]bool{}
	for _, e := range list {
		names[e.Name()] = true
	}
	for first := range inside {
		names[first] = true
	}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		child := filepath.Join(name, n)
		if chosen := inside[n]; slices.ContainsFunc(chosen, func(p HostPath) bool { return p.As == child }) {
			err = w.enter(child, chosen)
		} else {
			err = w.all(child, filepath.Join(path, n), dev, chosen)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// hostRecord makes the record of a file of this host.
func hostRecord(name string, st *unix.Stat_t) *mapfile.File {
	at := func(t unix.Timespec) mapfile.Time { return mapfile.Time{Sec: t.Sec, Nsec: int32(t.Nsec), Known: true} }
	f := &mapfile.File{
		Path: name, Inode: st.Ino, Size: st.Size, Mode: int64(st.Mode & 0o7777), UID: int64(st.Uid), GID: int64(st.Gid), Links: int64(st.Nlink),
		MTime: at(st.Mtim), ATime: at(st.Atim), CTime: at(st.Ctim),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		f.Kind = mapfile.Regular
	case unix.S_IFDIR:
		f.Kind = mapfile.Directory
	case unix.S_IFLNK:
		f.Kind = mapfile.Symlink
	case unix.S_IFIFO:
		f.Kind = mapfile.FIFO
	case unix.S_IFSOCK:
		f.Kind = mapfile.Socket
	case unix.S_IFCHR:
		f.Kind = mapfile.Char
	case unix.S_IFBLK:
		f.Kind = mapfile.Block
	}
	if f.Kind == mapfile.Char || f.Kind == mapfile.Block {
		f.Major, f.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	if f.Kind != mapfile.Regular {
		f.Size = 0
	}
	return f
}
