package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// results compares result records with the files that they name. Folders come last: while the records are being
// written, what is in them is too.
type results struct {
	*run
	seen    int64
	ended   bool
	folders []mapfile.Result
	roots   []string
	named   map[uint64]struct{} // hashes of the paths that results name
	seed    maphash.Seed
}

func newResults(r *run) *results {
	return &results{run: r, named: make(map[uint64]struct{}), seed: maphash.MakeSeed()}
}

// place gives where a name of an account is.
func (o *Options) place(name string) string {
	if o.Dir != "" && !filepath.IsAbs(name) {
		name = filepath.Join(o.Dir, name)
	}
	return strings.TrimSuffix(name, "/") // a tar's folder
}

func at(res *mapfile.Result) mapfile.Finding {
	return mapfile.Finding{Volume: res.Volume, Path: res.Path, Stream: res.Stream}
}

func (r *results) add(x *mapfile.Result) error {
	r.seen++
	res := *x
	if res.To != "" && r.Extra {
		r.named[maphash.String(r.seed, filepath.Clean(r.place(res.To)))] = struct{}{}
	}
	switch {
	case res.Status == "partial", res.Status == "failed":
		t := &task{}
		t.problem(at(&res), "extract", errors.New(res.Status+": "+res.Error))
		return r.say(t)
	case res.Status != "ok", res.To == "":
		return nil
	case res.Kind == mapfile.Directory:
		if res.Path == "/" {
			r.roots = append(r.roots, r.place(res.To))
		}
		r.folders = append(r.folders, res)
		return nil
	}
	return r.submit(func(t *task) { r.compare(t, &res) })
}

// end compares what had to wait for the end of the stream.
func (r *results) end() error {
	for i := range r.folders {
		res := &r.folders[i]
		if err := r.submit(func(t *task) { r.compare(t, res) }); err != nil {
			return err
		}
	}
	if !r.Extra {
		return nil
	}
	if len(r.roots) == 0 && r.Dir != "" {
		r.roots = append(r.roots, r.Dir)
	}
	for _, root := range r.roots {
		err := r.submit(func(t *task) {
			r.extra(t, root, func(path string) bool { _, ok := r.named[maphash.String(r.seed, path)]; return ok })
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// extra finds what lies below root and isn't known. Of a folder that isn't known it tells once.
func (r *run) extra(t *task, root string, known func(path string) bool) {
	root = filepath.Clean(root)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || r.ctx.Err() != nil {
			return errors.Join(err, r.ctx.Err())
		}
		if path == root || known(path) {
			return nil
		}
		if e.IsDir() && r.inside(path, known) {
			return nil
		}
		t.diff(mapfile.Finding{Volume: mapfile.None, Path: path}, Extra, "nothing", kindOf(e.Type()))
		if e.IsDir() {
			return fs.SkipDir
		}
		return nil
	})
	if err != nil {
		t.problem(mapfile.Finding{Volume: mapfile.None, Path: root}, "folder", err)
	}
}

// inside tells whether anything in a folder is known: it then came without a record of its own.
func (r *run) inside(dir string, known func(path string) bool) (found bool) {
	filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if found = err == nil && known(path); found || r.ctx.Err() != nil {
			return fs.SkipAll
		}
		return nil
	})
	return found
}

func kindOf(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "regular"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symlink"
	case fs.ModeNamedPipe:
		return "fifo"
	case fs.ModeSocket:
		return "socket"
	case fs.ModeDevice:
		return "block"
	case fs.ModeDevice | fs.ModeCharDevice:
		return "char"
	}
	return m.Type().String()
}

// compare compares one file with its result.
func (r *results) compare(t *task, res *mapfile.Result) {
	t.checked++
	at, path := at(res), r.place(res.To)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			t.diff(at, Missing, path, "nothing")
		} else {
			t.problem(at, "stat", err)
		}
		return
	}
	if got := statKind(st.Mode); res.Kind != 0 && got != res.Kind.String() {
		t.diff(at, Type, res.Kind.String(), got)
		return
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		r.content(t, at, path, st.Size, res.Size, res.SHA256)
	}
	if got := int64(st.Mode & 0o7777); res.Mode != mapfile.None && got != res.Mode {
		t.diff(at, Mode, fmt.Sprintf("%04o", res.Mode), fmt.Sprintf("%04o", got))
	}
	if uid, gid := int64(st.Uid), int64(st.Gid); res.UID != mapfile.None && res.UID != uid || res.GID != mapfile.None && res.GID != gid {
		t.diff(at, Owner, fmt.Sprintf("%d:%d", res.UID, res.GID), fmt.Sprintf("%d:%d", uid, gid))
	}
	if got := (mapfile.Time{Sec: st.Mtim.Sec, Nsec: int32(st.Mtim.Nsec), Known: true}); res.MTime.Known && got != res.MTime {
		t.diff(at, MTime, res.MTime.String(), got.String())
	}
	if res.Target != "" {
		if got, err := os.Readlink(path); err != nil {
			t.problem(at, "symlink", err)
		} else if got != res.Target {
			t.diff(at, Target, res.Target, got)
		}
	}
	for _, x := range res.Xattrs {
		if got, err := getxattr(path, x.Name); err != nil {
			t.diff(at, Xattr, x.Name+"="+hex.EncodeToString(x.Value), fmt.Sprintf("%s: %v", x.Name, err))
		} else if string(got) != string(x.Value) {
			t.diff(at, Xattr, x.Name+"="+hex.EncodeToString(x.Value), x.Name+"="+hex.EncodeToString(got))
		}
	}
}

func statKind(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "regular"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symlink"
	case unix.S_IFIFO:
		return "fifo"
	case unix.S_IFSOCK:
		return "socket"
	case unix.S_IFBLK:
		return "block"
	case unix.S_IFCHR:
		return "char"
	}
	return fmt.Sprintf("%#o", mode)
}

func getxattr(path, name string) ([]byte, error) {
	b := make([]byte, 256)
	for {
		n, err := unix.Lgetxattr(path, name, b)
		if err == unix.ERANGE {
			if n, err = unix.Lgetxattr(path, name, nil); err == nil {
				b = make([]byte, n+16)
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		return b[:n], nil
	}
}

// content compares a regular file's size and bytes with those of the account; want may be empty, size None.
func (r *run) content(t *task, at mapfile.Finding, path string, got, size int64, want string) {
	if size != mapfile.None && got != size {
		t.diff(at, Size, fmt.Sprint(size), fmt.Sprint(got))
		return
	}
	if want == "" {
		return
	}
	sum, n, err := r.sumFile(path)
	t.bytes += n
	switch {
	case err != nil:
		t.problem(at, "read", err)
	case sum != want:
		t.diff(at, Content, want, sum)
	}
}

// sumFile hashes a file. Its time of access stays, where the host lets us: it may be evidence too.
func (r *run) sumFile(path string) (sum string, n int64, err error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Open(path, flags|unix.O_NOATIME, 0)
	if err == unix.EPERM {
		fd, err = unix.Open(path, flags, 0)
	}
	if err != nil {
		return "", 0, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	h := sha256.New()
	n, err = io.CopyBuffer(struct{ io.Writer }{h}, readerOf(r, f), make([]byte, 256<<10))
	return hex.EncodeToString(h.Sum(nil)), n, err
}

// readerOf makes reading a file end with the run.
func readerOf(r *run, f io.Reader) io.Reader {
	return readFunc(func(p []byte) (int, error) {
		if err := r.ctx.Err(); err != nil {
			return 0, err
		}
		return f.Read(p)
	})
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
