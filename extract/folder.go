package extract

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// folder is a folder of the output that is being filled. It is held open, and everything in it is done relative to it
// by single names, never followed through symlinks: that is what keeps a hostile tree inside.
type folder struct {
	parent *folder
	name   string
	full   string        // volume and path, as the map has them
	path   string        // where it is, below the output folder
	rec    *mapfile.File // what the map says of it, or nil
	fd     int
	made   bool
	acl    bool  // files inherit an ACL here
	err    error // why there is none
	refs   atomic.Int32
	last   string // the name in it that came last, and
	isDir  bool   // whether that was a folder
}

func (f *folder) hold() { f.refs.Add(1) }

// drop lets go of the folder; the last one closes it.
func (f *folder) drop() {
	if f.refs.Add(-1) == 0 && f.fd >= 0 {
		unix.Close(f.fd)
		f.fd = -1
	}
}

// child makes the folder name inside f known. It isn't made on the host yet.
func (f *folder) child(name string, rec *mapfile.File) *folder {
	host := hostName(name)
	c := &folder{parent: f, name: host, full: join(f.full, "/", name), path: f.join(host), rec: rec, fd: -1}
	c.hold()
	return c
}

// join gives the path of a name in the folder, below the output folder.
func (f *folder) join(name string) string { return join(f.path, "/", name) }

// hostName gives a name as the host can have it: one that is too long is cut, and gets a mark that no other name has.
// Windows counts characters where Linux counts bytes, so that whole trees have such names.
func hostName(name string) string {
	if len(name) <= unix.NAME_MAX {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	mark := "~" + hex.EncodeToString(sum[:4])
	if ext := path.Ext(name); len(ext) <= 16 {
		mark += ext
	}
	return cutText(name, unix.NAME_MAX-len(mark)) + mark
}

// cutText cuts a text to n bytes, not within a character.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	whole := utf8.ValidString(s)
	s = s[:n]
	for i := 0; i < utf8.UTFMax-1 && whole && !utf8.ValidString(s); i++ {
		s = s[:len(s)-1]
	}
	return s
}

const shortened = "its name is too long for this host, and was cut"

// make makes the folder and those above it, unless they are there.
func (f *folder) make(d *dirSink) error {
	if f.made {
		return f.err
	}
	f.made = true
	if f.err = f.parent.make(d); f.err == nil {
		f.err = f.open(d)
	}
	return f.err
}

func (f *folder) open(d *dirSink) error {
	if len(d.prefix)+len(f.path) >= unix.PathMax {
		return unix.ENAMETOOLONG
	}
	mode := uint32(0o777)
	if f.rec != nil && f.rec.Mode != mapfile.None {
		mode = 0o700 // until all is in it
	}
	err := retry(func() error { return unix.Mkdirat(f.parent.fd, f.name, mode) })
	fresh := err == nil
	if err != nil && err != unix.EEXIST {
		return err
	}
	var fd int
	err = retry(func() error {
		fd, err = unix.Openat(f.parent.fd, f.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		return err
	})
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return errors.New("there is something else of that name")
	}
	if err != nil {
		return err
	}
	if !fresh && f.rec != nil && f.rec.Mode != mapfile.None {
		unix.Fchmod(fd, 0o700) // where it isn't ours, what follows fails and says so
	}
	f.fd, f.acl = fd, f.parent.acl || !fresh && inherits(fd)
	return nil
}

// inherits tells whether what is made in the folder gets an ACL, which sets its mode.
func inherits(fd int) bool {
	_, err := unix.Fgetxattr(fd, aclDefault, nil)
	return err == nil
}

// leave sets what must come last: the folder's mode and times, and the ACL that its files would inherit.
func (f *folder) leave(d *dirSink) error {
	if f.rec == nil || f.fd < 0 {
		return nil
	}
	var errs []error
	for _, x := range f.rec.Xattrs {
		if x.Name == aclDefault {
			if err := unix.Fsetxattr(f.fd, x.Name, x.Value, 0); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", x.Name, err))
			}
		}
	}
	if mode := f.rec.Mode; mode != mapfile.None {
		if err := unix.Fchmod(f.fd, d.mode(mode)); err != nil {
			errs = append(errs, fmt.Errorf("mode: %w", err))
		}
	}
	if f.rec.MTime.Known {
		if err := setTimes(f.fd, "", f.rec); err != nil {
			errs = append(errs, fmt.Errorf("time: %w", err))
		}
	}
	return errors.Join(errs...)
}

// enter makes top the folder that holds path, which is a volume's name and a path in it without slashes at the ends:
// folders that are left are put on the batch's list, those between are made known. It gives the last name.
func (d *dirSink) enter(path string) (name string) {
	for {
		rest, ok := within(path, d.top().full)
		if !ok {
			d.pop()
			continue
		}
		for {
			next, below, more := strings.Cut(rest, "/")
			if !more {
				return next
			}
			d.push(next, nil)
			rest = below
		}
	}
}

// within cuts what lies beneath folder off a path; the topmost folder is "".
func within(path, folder string) (string, bool) {
	if folder == "" {
		return path, true
	}
	if len(path) > len(folder) && path[len(folder)] == '/' && path[:len(folder)] == folder {
		return path[len(folder)+1:], true
	}
	return "", false
}

func (d *dirSink) top() *folder { return d.stack[len(d.stack)-1] }

func (d *dirSink) push(name string, rec *mapfile.File) *folder {
	top := d.top()
	f := top.child(name, rec)
	if err := top.clash(name, true); err != nil {
		f.made, f.err = true, err
	}
	d.stack = append(d.stack, f)
	return f
}

func (d *dirSink) pop() {
	d.batch.leave = append(d.batch.leave, d.top())
	d.stack = d.stack[:len(d.stack)-1]
}

// clash is the clash of a name in the folder.
func (f *folder) clash(name string, isDir bool) error { return clash(&f.last, &f.isDir, name, isDir) }

// clash tells whether name was in a folder just before, as something that doesn't go together with what it is now; last
// and wasDir remember. A map is in the order of names, so that equal ones come one after another; what comes in another
// order is found when it is made.
func clash(last *string, wasDir *bool, name string, isDir bool) error {
	same, was := *last == name && name != "", *wasDir
	*last, *wasDir = name, isDir
	switch {
	case !same || was && isDir:
		return nil
	case isDir:
		return errors.New("the map has something else of that name, which is no folder")
	}
	return errors.New("the map has this name twice")
}

// retry calls f again where a signal interrupted it.
func retry(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
