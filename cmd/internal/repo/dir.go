package repo

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Dir is a Store in a folder of this host. What is being written has a name that begins with a dot, as a machine's lock
// has; a listing shows neither. Files and folders are for their owner only: they hold all that the machines hold.
type Dir struct{ root string }

// OpenDir opens the store in a folder. Unless create is set, that has to be there.
func OpenDir(path string, create bool) (*Dir, error) {
	if create {
		if err := makeDirs(path); err != nil {
			return nil, err
		}
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: there is no such repository: %w", path, ErrNotExist)
	case err != nil:
		return nil, err
	case !st.IsDir():
		return nil, fmt.Errorf("%s is no folder", path)
	}
	return &Dir{path}, nil
}

// URL implements Store.
func (d *Dir) URL() string { return d.root }

// Close implements Store.
func (d *Dir) Close() error { return nil }

func (d *Dir) path(name string) (string, error) {
	if !validName(name) {
		return "", fmt.Errorf("%q can't be a file's name in a repository", name)
	}
	return filepath.Join(d.root, filepath.FromSlash(name)), nil
}

type dirObject struct {
	*os.File
	st fs.FileInfo
}

func (o dirObject) Size() int64      { return o.st.Size() }
func (o dirObject) MTime() time.Time { return o.st.ModTime() }

// Open implements Store. A file that is replaced keeps its old bytes for those who have it open.
func (d *Dir) Open(_ context.Context, name string) (Object, error) {
	path, err := d.path(name)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%s: %w", path, ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s is no file: %w", path, ErrNotExist)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return dirObject{f, st}, nil
}

// tmpPrefix begins the names of files that are being written.
const tmpPrefix = ".tmp-"

// Create implements Store.
func (d *Dir) Create(_ context.Context, name string, exclusive bool) (Writer, error) {
	path, err := d.path(name)
	if err != nil {
		return nil, err
	}
	if err := makeDirs(filepath.Dir(path)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(filepath.Dir(path), tmpPrefix+rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return &dirWriter{f: f, buf: bufio.NewWriterSize(f, 1<<20), name: name, path: path, exclusive: exclusive}, nil
}

// dirWriter is a file in the making.
type dirWriter struct {
	f          *os.File // nil: done
	buf        *bufio.Writer
	name, path string
	exclusive  bool
	n, pushed  int64
}

// pushEvery is how many bytes are written until the kernel is told to begin with them, so that the end needn't wait for
// all.
const pushEvery = 16 << 20

func (w *dirWriter) Write(p []byte) (int, error) {
	n, err := w.buf.Write(p)
	if w.n += int64(n); err == nil && w.n-w.pushed >= pushEvery {
		// A hint: where the file system doesn't know it, nothing is lost.
		unix.SyncFileRange(int(w.f.Fd()), w.pushed, w.n-w.pushed, unix.SYNC_FILE_RANGE_WRITE)
		w.pushed = w.n
	}
	return n, err
}

func (w *dirWriter) WriteHead(p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > min(Head, w.n) {
		return fmt.Errorf("%s: %d bytes at %d are not in its head", w.path, len(p), off)
	}
	if err := w.buf.Flush(); err != nil {
		return err
	}
	_, err := w.f.WriteAt(p, off)
	return err
}

func (w *dirWriter) Commit(ctx context.Context) (Info, error) {
	if w.f == nil {
		return Info{}, fs.ErrClosed
	}
	info := Info{Name: w.name, Size: w.n}
	err := cmp.Or(ctx.Err(), w.buf.Flush(), w.f.Sync())
	var st fs.FileInfo
	if err == nil {
		if st, err = w.f.Stat(); err == nil {
			info.MTime = st.ModTime()
		}
	}
	switch {
	case err != nil:
	case st.Size() != w.n:
		err = fmt.Errorf("%s: it has %d bytes, not the %d that were written", w.path, st.Size(), w.n)
	case !w.exclusive:
		err = os.Rename(w.f.Name(), w.path)
	default:
		if err = os.Link(w.f.Name(), w.path); err == nil {
			err = os.Remove(w.f.Name())
		} else if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%s: %w", w.path, ErrExists)
		}
	}
	if err != nil {
		w.Abort()
		return Info{}, err
	}
	err = w.f.Close()
	w.f = nil
	return info, cmp.Or(err, syncDir(filepath.Dir(w.path)))
}

func (w *dirWriter) Abort() {
	if w.f != nil {
		w.f.Close()
		os.Remove(w.f.Name())
		w.f = nil
	}
}

// List implements Store.
func (d *Dir) List(ctx context.Context, prefix string, yield func(Info) error) error {
	var all []Info
	// The prefix may end within a name: what is above it is where to look.
	top := filepath.Join(d.root, filepath.FromSlash(prefix[:strings.LastIndexByte(prefix, '/')+1]))
	err := filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if errors.Is(err, fs.ErrNotExist) { // it went meanwhile
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(d.root, path)
		if err != nil {
			return err
		}
		name := filepath.ToSlash(rel)
		switch {
		case strings.HasPrefix(e.Name(), ".") && path != top:
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		case e.IsDir() && path != top && !strings.HasPrefix(name+"/", prefix) && !strings.HasPrefix(prefix, name+"/"):
			return fs.SkipDir
		case !e.Type().IsRegular() || !strings.HasPrefix(name, prefix):
			return nil
		}
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		all = append(all, Info{name, st.Size(), st.ModTime()})
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b Info) int { return cmp.Compare(a.Name, b.Name) })
	for _, i := range all {
		if err := yield(i); err != nil {
			return err
		}
	}
	return nil
}

// Remove implements Store.
func (d *Dir) Remove(_ context.Context, names ...string) error {
	changed := map[string]bool{}
	for _, name := range names {
		path, err := d.path(name)
		if err != nil {
			return err
		}
		if err := os.Remove(path); err != nil {
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
				continue
			}
			return err
		}
		changed[filepath.Dir(path)] = true
	}
	var errs []error
	for path := range changed {
		errs = append(errs, syncDir(path))
		os.Remove(path) // where it is empty now
	}
	return errors.Join(errs...)
}

// Lock implements Store by an flock, which ends with the process. What an earlier writer of the machine left unfinished
// is removed.
func (d *Dir) Lock(_ context.Context, machine string) (unlock func() error, err error) {
	path, err := d.path(machine)
	if err != nil {
		return nil, err
	}
	for {
		if err := makeDirs(path); err != nil {
			return nil, err
		}
		f, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, fs.ErrNotExist) { // the folder was empty, and was removed
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			who, _ := io.ReadAll(io.LimitReader(f, 256))
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("%s: %w (%s)", path, ErrLocked, strings.TrimSpace(string(who)))
			}
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		host, _ := os.Hostname()
		f.Truncate(0)
		fmt.Fprintf(f, "process %d on %s\n", os.Getpid(), host)
		if err := removeTemporary(path); err != nil {
			f.Close()
			return nil, err
		}
		return sync.OnceValue(f.Close), nil
	}
}

// removeTemporary removes the files that were never finished.
func removeTemporary(top string) error {
	return filepath.WalkDir(top, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && strings.HasPrefix(e.Name(), tmpPrefix) {
			err = os.Remove(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
}

// makeDirs makes a folder, and those above it, so that they last.
func makeDirs(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	above := filepath.Dir(path)
	if above != path {
		if err := makeDirs(above); err != nil {
			return err
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(above)
}

// syncDir makes what changed in a folder last.
func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
