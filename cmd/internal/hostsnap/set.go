package hostsnap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/live"
)

// Mode is how files are made to stand still.
type Mode string

const (
	// Auto is Btrfs for root where it can be had, else None.
	Auto    Mode = "auto"
	Btrfs   Mode = "btrfs"
	Reflink Mode = "reflink"
	None    Mode = "none"
)

// Modes are all of them.
var Modes = []Mode{Auto, Btrfs, Reflink, None}

// Path is a file or folder that is to be read.
type Path struct {
	Live string // where it lies
	Read string // where it is read from
	How  Mode   // never Auto
	At   time.Time

	folder *folder
}

// Set is what stands still. It is for one goroutine at a time.
type Set struct {
	Paths []Path // in the order in which they were given
	// At is the first instant that the files show, and Whole tells that all of them show this one.
	At    time.Time
	Whole bool

	folders map[string]*folder // by the top that they lie at
}

// Take makes the paths, which are absolute, stand still. What isn't there is nobody's snapshot, and no error. What runs
// that were killed left is removed, but for None.
func Take(ctx context.Context, mode Mode, paths []string, warn func(format string, args ...any)) (*Set, error) {
	s := &Set{folders: map[string]*folder{}}
	for _, path := range paths {
		p := Path{Live: path, Read: path, How: None}
		err := ctx.Err()
		if err == nil && mode != None {
			err = s.take(&p, mode, warn)
		}
		switch {
		case err == nil:
		case mode == Auto && ctx.Err() == nil:
			warn("%s is read as it stands: %v", path, err)
		default:
			return nil, errors.Join(fmt.Errorf("%s: %w", path, err), s.Close())
		}
		if p.At.IsZero() {
			p.At = time.Now()
		}
		s.Paths = append(s.Paths, p)
	}
	s.Whole = len(s.Paths) > 0
	for i, p := range s.Paths {
		if i == 0 || p.At.Before(s.At) {
			s.At = p.At
		}
		s.Whole = s.Whole && p.How == Btrfs && p.At.Equal(s.Paths[0].At)
	}
	return s, nil
}

// take makes one path stand still.
func (s *Set) take(p *Path, mode Mode, warn func(format string, args ...any)) error {
	top, real, at, err := topOf(p.Live)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	btrfs := onBtrfs(top)
	if mode == Auto && (os.Geteuid() != 0 || readOnlyMount(top) || !at.folder()) {
		return nil
	}
	if !at.folder() {
		return errors.New("it is a file that is mounted by itself")
	}
	f := s.folders[top]
	if f == nil {
		sweep(top, warn)
		switch {
		case mode == Auto && !btrfs:
			return nil
		case mode == Reflink:
		case !btrfs:
			return errors.New("it lies on no btrfs")
		case os.Geteuid() != 0:
			return errors.New("snapshots take root")
		case at.inode != topInode:
			return fmt.Errorf("only a folder of its subvolume is mounted, at %s", top)
		case isReadOnly(top): // already a snapshot, or as good as one
			if mode == Auto {
				return nil
			}
			return fmt.Errorf("%s is a read-only subvolume, which needs no snapshot (--host-snapshot none)", top)
		}
		if f, err = newFolder(top); err != nil {
			return err
		}
		s.folders[top] = f
		if mode == Reflink {
			err = f.probe()
		} else {
			err = f.snap()
		}
		if err != nil {
			delete(s.folders, top)
			return errors.Join(err, f.remove())
		}
	}
	p.folder = f
	if !f.btrfs {
		p.How = Reflink
		return nil
	}
	p.How, p.At = Btrfs, f.at
	p.Read = f.inside() + strings.TrimPrefix(real, strings.TrimSuffix(top, "/"))
	return nil
}

// inside gives the path of the snapshot.
func (f *folder) inside() string { return f.path + "/" + snapshot }

// probe finds out whether the file system has reflinks.
func (f *folder) probe() error {
	src, err := os.CreateTemp(f.path, "")
	if err != nil {
		return err
	}
	defer src.Close()
	if _, err := src.Write(make([]byte, 4096)); err != nil {
		return err
	}
	path, err := f.clone(src)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		return errors.New("its file system has no reflinks")
	}
	if err != nil {
		return err
	}
	return errors.Join(os.Remove(path), os.Remove(src.Name()))
}

func readOnlyMount(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && st.Flags&unix.ST_RDONLY != 0
}

// isReadOnly tells whether the subvolume with that top is read-only.
func isReadOnly(top string) bool {
	d, err := os.Open(top)
	if err != nil {
		return false
	}
	defer d.Close()
	b := make([]byte, 8)
	return live.Ioctl(int(d.Fd()), reqFlags, b) == nil && le.Uint64(b)&readOnly != 0
}

// Live gives the path of the file that the one at path, in a snapshot, was taken of; any other path is its own.
func (s *Set) Live(path string) string {
	for top, f := range s.folders {
		if rest, ok := strings.CutPrefix(path, f.inside()); ok && f.btrfs && (rest == "" || rest[0] == '/') {
			return strings.TrimSuffix(top, "/") + rest
		}
	}
	return path
}

// maxTries bounds how often a file is copied that changes whenever it is.
const maxTries = 16

// ErrRestless is the error of a file that changed whenever it was copied.
var ErrRestless = errors.New("it changed whenever it was copied")

// Copy gives the path of a reflink copy of a file below a path of Reflink, and the state of the file that the copy has
// the content of. Of other files it gives the file itself, and no state.
func (s *Set) Copy(path string) (string, *unix.Stat_t, error) {
	var in *Path
	for i := range s.Paths {
		p := &s.Paths[i]
		if rest, ok := strings.CutPrefix(path, strings.TrimSuffix(p.Read, "/")); ok && (rest == "" || rest[0] == '/') && (in == nil || len(p.Read) > len(in.Read)) {
			in = p
		}
	}
	if in == nil || in.How != Reflink {
		return path, nil, nil
	}
	src, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", nil, err
	}
	defer src.Close()
	for range maxTries {
		var before, after unix.Stat_t
		if err := unix.Fstat(int(src.Fd()), &before); err != nil {
			return "", nil, &os.PathError{Op: "fstat", Path: path, Err: err}
		}
		if before.Mode&unix.S_IFMT != unix.S_IFREG {
			return "", nil, fmt.Errorf("%s is no file any more", path)
		}
		to, err := in.folder.clone(src)
		if err != nil {
			return "", nil, err
		}
		if err := unix.Fstat(int(src.Fd()), &after); err != nil {
			return "", nil, &os.PathError{Op: "fstat", Path: path, Err: err}
		}
		if before.Size == after.Size && before.Mtim == after.Mtim && before.Ctim == after.Ctim {
			return to, &after, nil
		}
		if err := os.Remove(to); err != nil {
			return "", nil, err
		}
	}
	return "", nil, ErrRestless
}

// Close removes the snapshots and copies.
func (s *Set) Close() error {
	var errs []error
	for _, top := range slices.Sorted(maps.Keys(s.folders)) {
		errs = append(errs, s.folders[top].remove())
	}
	clear(s.folders)
	return errors.Join(errs...)
}
