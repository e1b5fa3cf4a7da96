package extract

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// output is a file that has no name yet, or a temporary one.
type output struct {
	folder *folder
	fd     int
	tmp    string // "": it has no name at all
}

// create makes a file in a folder that nobody sees.
func (d *dirSink) create(in *folder, mode uint32) (*output, error) {
	if !d.noTmp.Load() {
		var fd int
		err := retry(func() (err error) {
			fd, err = unix.Openat(in.fd, ".", unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, mode)
			return err
		})
		switch err {
		case nil:
			return &output{in, fd, ""}, nil
		case unix.EOPNOTSUPP, unix.EISDIR, unix.EINVAL:
			d.noTmp.Store(true)
		default:
			return nil, err
		}
	}
	for {
		tmp := d.tmpName()
		fd, err := unix.Openat(in.fd, tmp, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, mode)
		switch err {
		case nil:
			return &output{in, fd, tmp}, nil
		case unix.EEXIST, unix.EINTR:
		default:
			return nil, err
		}
	}
}

func (d *dirSink) tmpName() string {
	return fmt.Sprintf(".vmextract-%d-%d.tmp", os.Getpid(), d.tmpNo.Add(1))
}

// abandon makes it as if the file had never been.
func (o *output) abandon() {
	if o.fd >= 0 {
		unix.Close(o.fd)
		o.fd = -1
	}
	if o.tmp != "" {
		unix.Unlinkat(o.folder.fd, o.tmp, 0)
	}
}

var (
	errExists = fmt.Errorf("%w (--force overwrites)", unix.EEXIST)
	errSame   = errors.New("another file of the map has this name here")
)

// publish gives the file its name, and closes it.
func (o *output) publish(d *dirSink, name string) error {
	err := o.name(d, name)
	if err == nil {
		if err = unix.Close(o.fd); err != nil {
			unix.Unlinkat(o.folder.fd, name, 0)
		}
		o.fd, o.tmp = -1, ""
	}
	return err
}

func (o *output) name(d *dirSink, name string) error {
	dir := o.folder.fd
	if o.tmp == "" {
		self := "/proc/self/fd/" + strconv.Itoa(o.fd)
		err := unix.Linkat(unix.AT_FDCWD, self, dir, name, unix.AT_SYMLINK_FOLLOW)
		if err == unix.ENOENT { // no /proc
			err = unix.Linkat(o.fd, "", dir, name, unix.AT_EMPTY_PATH)
		}
		if err != unix.EEXIST {
			return err
		}
		if err := d.replaceable(dir, name); err != nil {
			return err
		}
		o.tmp = d.tmpName()
		if err := unix.Linkat(unix.AT_FDCWD, self, dir, o.tmp, unix.AT_SYMLINK_FOLLOW); err != nil {
			o.tmp = ""
			return err
		}
		return unix.Renameat(dir, o.tmp, dir, name)
	}
	return d.rename(dir, o.tmp, name)
}

// rename gives tmp its name without overwriting what may not be.
func (d *dirSink) rename(dir int, tmp, name string) error {
	err := unix.Renameat2(dir, tmp, dir, name, unix.RENAME_NOREPLACE)
	switch err {
	case unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP: // take the name first
		var fd int
		if fd, err = unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600); err == nil {
			unix.Close(fd)
			return unix.Renameat(dir, tmp, dir, name)
		}
	}
	if err != unix.EEXIST {
		return err
	}
	if err := d.replaceable(dir, name); err != nil {
		return err
	}
	return unix.Renameat(dir, tmp, dir, name)
}

// replaceable tells whether what has the name may be overwritten: only what was there before the run, and only where
// that was asked for. Two names of the map can be one here, where the file system doesn't tell case apart.
func (d *dirSink) replaceable(dir int, name string) error {
	var st unix.Statx_t
	if err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE|unix.STATX_BTIME|unix.STATX_CTIME, &st); err != nil {
		return err
	}
	switch {
	case !earlier(birth(&st), d.born):
		return errSame
	case !d.Force:
		return errExists
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return unix.EISDIR
	}
	return nil
}

// birth tells when a file was made, or, where the file system doesn't keep that, when it was last changed.
func birth(st *unix.Statx_t) unix.StatxTimestamp {
	if st.Mask&unix.STATX_BTIME != 0 {
		return st.Btime
	}
	return st.Ctime
}

func earlier(a, b unix.StatxTimestamp) bool {
	return a.Sec < b.Sec || a.Sec == b.Sec && a.Nsec < b.Nsec
}

// writing is a regular file that is being written.
type writing struct {
	output
	it   *item
	size int64 // written so far, holes at the end apart
}

// begin starts to write a regular file with f.
func (d *dirSink) begin(f *filler, it *item) (*writing, error) {
	if len(it.to(d)) >= unix.PathMax {
		return nil, unix.ENAMETOOLONG
	}
	mode := uint32(0o666)
	if it.file.Mode != mapfile.None {
		mode = 0o600
		if m := d.mode(it.file.Mode); d.asMade(m, &it.file, it.folder) {
			mode = m
		}
	}
	o, err := d.create(it.folder, mode)
	if err != nil {
		return nil, err
	}
	w := &writing{output: *o, it: it}
	f.begin(func(at int64, p []byte) error {
		if d.ctx.Err() != nil {
			return context.Cause(d.ctx)
		}
		return w.write(at, p)
	})
	return w, nil
}

func (w *writing) write(at int64, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(w.fd, p, at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p, at = p[n:], at+int64(n)
	}
	w.size = at
	return nil
}

// complete finishes a regular file: its length, what goes with it, and its name.
func (d *dirSink) complete(f *filler, w *writing) error {
	it := w.it
	if err := f.end(it.file.Size); err != nil {
		return err
	}
	if f.gaps.any() {
		it.res.Error = f.gaps.String()
		it.locked = f.gaps.encrypted == f.gaps.bytes
		it.res.Status = statusFailed
		if f.gaps.bytes == it.file.Size {
			w.abandon()
			return nil
		}
		it.name = partialName(it.name)
	}
	if w.size < it.file.Size {
		if err := retry(func() error { return unix.Ftruncate(w.fd, it.file.Size) }); err != nil {
			return err
		}
	}
	note := d.restore(it.folder, w.fd, &it.file, &it.res)
	if err := w.publish(d, it.name); err != nil {
		return err
	}
	it.res.To = it.to(d)
	if f.gaps.any() {
		it.res.Status = statusPartial
		return nil
	}
	it.res.Status, it.res.Error = statusOK, note
	if f.sums.spent {
		remark(&it.res, noSum)
	} else {
		it.res.SHA256 = f.sha256()
	}
	return nil
}

const partialSuffix = ".partial"

// partialName is under which name a file is put that isn't whole.
func partialName(name string) string {
	return cutText(name, unix.NAME_MAX-len(partialSuffix)) + partialSuffix
}

// symlink makes a symlink.
func (d *dirSink) symlink(it *item) error {
	dir := it.folder.fd
	if err := d.place(it, func(name string) error { return unix.Symlinkat(it.file.Target, dir, name) }); err != nil {
		return err
	}
	it.res.Target = it.file.Target
	note := d.restoreAt(it)
	it.res.Status, it.res.To, it.res.Error = statusOK, it.to(d), note
	return nil
}

// node makes a FIFO, a device node or a socket.
func (d *dirSink) node(it *item) error {
	f := &it.file
	mode, dev := uint32(unix.S_IFIFO), 0
	switch f.Kind {
	case mapfile.Char:
		mode, dev = unix.S_IFCHR, int(unix.Mkdev(f.Major, f.Minor))
	case mapfile.Block:
		mode, dev = unix.S_IFBLK, int(unix.Mkdev(f.Major, f.Minor))
	case mapfile.Socket:
		mode = unix.S_IFSOCK
	}
	dir := it.folder.fd
	if err := d.place(it, func(name string) error { return unix.Mknodat(dir, name, mode|0o600, dev) }); err != nil {
		return err
	}
	note := d.restoreAt(it)
	it.res.Status, it.res.To, it.res.Error = statusOK, it.to(d), note
	return nil
}

// place makes something that has no content under its name, or replaces what may be.
func (d *dirSink) place(it *item, create func(name string) error) error {
	dir := it.folder.fd
	if len(it.to(d)) >= unix.PathMax {
		return unix.ENAMETOOLONG
	}
	err := create(it.name)
	if err != unix.EEXIST {
		return err
	}
	if err := d.replaceable(dir, it.name); err != nil {
		return err
	}
	tmp := d.tmpName()
	if err := create(tmp); err != nil {
		return err
	}
	if err = unix.Renameat(dir, tmp, dir, it.name); err != nil {
		unix.Unlinkat(dir, tmp, 0)
	}
	return err
}

// linkAt makes the item another name of the file at from, below the output folder. No symlink is followed on the way.
func (d *dirSink) linkAt(from string, it *item) error {
	dir, name, err := d.walk(from)
	if err != nil {
		return err
	}
	if dir != d.root.fd {
		defer unix.Close(dir)
	}
	return d.place(it, func(to string) error { return unix.Linkat(dir, name, it.folder.fd, to, 0) })
}

// walk opens the folder that holds a path below the output folder.
func (d *dirSink) walk(rel string) (fd int, name string, err error) {
	fd = d.root.fd
	for {
		next, rest, more := strings.Cut(rel, "/")
		if !more {
			return fd, next, nil
		}
		sub, err := unix.Openat(fd, next, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if fd != d.root.fd {
			unix.Close(fd)
		}
		if err != nil {
			return -1, "", err
		}
		fd, rel = sub, rest
	}
}
