package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"vmkit/formats"
	"vmkit/fsmap/mapfile"
)

// hostJob is a stretch of the disk that a part of a file is read into.
type hostJob struct {
	hostSource
	pos, n, at int64 // in the disk; length; in the file
	name       string

	mu  sync.Mutex
	err error // the first that was met: the file is not kept
}

// hostSource is the file that is read, as it was when it was placed.
type hostSource struct {
	path  string
	size  int64
	mtime mapfile.Time
	inode uint64
}

func (j *hostJob) fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err == nil {
		j.err = err
	}
}

// hostDisk is the disk that the files of this host make up. Between the jobs it shows what lies below. A file that can't
// be read shows as zeros, and its job says so.
type hostDisk struct {
	size  int64
	jobs  []*hostJob // in order
	below formats.Disk

	mu   sync.Mutex
	open []openFile // used last at the end
}

type openFile struct {
	path string
	f    *os.File
	refs int
}

// maxOpenFiles bounds the files that stay open for the next read.
const maxOpenFiles = 64

func (d *hostDisk) Size() int64 { return d.size }

// jobAt gives the job that holds off, or how far the next one is.
func (d *hostDisk) jobAt(off int64) (j *hostJob, gap int64) {
	i, found := slices.BinarySearchFunc(d.jobs, off, func(j *hostJob, at int64) int {
		switch {
		case j.pos+j.n <= at:
			return -1
		case j.pos > at:
			return 1
		}
		return 0
	})
	switch {
	case found:
		return d.jobs[i], 0
	case i < len(d.jobs):
		return nil, d.jobs[i].pos - off
	}
	return nil, d.size - off
}

// ExtentAt implements formats.Mapper, for whoever looks for zeros only.
func (d *hostDisk) ExtentAt(off, max int64) (formats.Extent, error) {
	j, gap := d.jobAt(off)
	e := formats.Extent{Len: min(max, gap), Kind: formats.Data, Disk: off}
	if j == nil {
		if d.below == nil {
			e.Kind = formats.Zero
		}
		return e, nil
	}
	at := j.at + off - j.pos
	e.Len = min(max, j.pos+j.n-off)
	if f, err := d.file(j.path); err == nil {
		defer d.release(f)
		if data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA); err == nil && data > at {
			e.Kind, e.Len = formats.Zero, min(e.Len, data-at)
		}
	}
	return e, nil
}

// ReadAt implements io.ReaderAt.
func (d *hostDisk) ReadAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		at := off + int64(done)
		if at >= d.size {
			return done, io.EOF
		}
		j, gap := d.jobAt(at)
		if j == nil {
			q := p[done:][:min(int64(len(p)-done), gap)]
			if err := d.readBelow(q, at); err != nil {
				return done, err
			}
			done += len(q)
			continue
		}
		q := p[done:][:min(int64(len(p)-done), j.pos+j.n-at)]
		if err := d.read(j, q, j.at+at-j.pos); err != nil {
			clear(q)
			j.fail(err)
		}
		done += len(q)
	}
	return len(p), nil
}

func (d *hostDisk) readBelow(p []byte, off int64) error {
	if d.below == nil || off >= d.below.Size() {
		clear(p)
		return nil
	}
	n := min(int64(len(p)), d.below.Size()-off)
	clear(p[n:])
	if k, err := d.below.ReadAt(p[:n], off); int64(k) < n {
		return fmt.Errorf("the point before: %w", err)
	}
	return nil
}

// read reads from a job's file.
func (d *hostDisk) read(j *hostJob, p []byte, at int64) error {
	f, err := d.file(j.path)
	if err != nil {
		return err
	}
	defer d.release(f)
	n, err := f.ReadAt(p, at)
	if n == len(p) {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("it got shorter while it was read: it ends at byte %d of %d", at+int64(n), j.size)
	}
	return err
}

// file gives a file opened, to be released.
func (d *hostDisk) file(path string) (*os.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.IndexFunc(d.open, func(x openFile) bool { return x.path == path }); i >= 0 {
		x := d.open[i]
		x.refs++
		d.open = append(slices.Delete(d.open, i, i+1), x)
		return x.f, nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) { // who doesn't own a file can't leave its time alone
		f, err = os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is no file any more", path)
	}
	if i := slices.IndexFunc(d.open, func(x openFile) bool { return x.refs == 0 }); len(d.open) >= maxOpenFiles && i >= 0 {
		d.open[i].f.Close()
		d.open = slices.Delete(d.open, i, i+1)
	}
	d.open = append(d.open, openFile{path, f, 1})
	return f, nil
}

func (d *hostDisk) release(f *os.File) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.open {
		if d.open[i].f == f {
			d.open[i].refs--
		}
	}
}

func (d *hostDisk) close() {
	for _, x := range d.open {
		x.f.Close()
	}
	d.open = nil
}

// unchanged tells whether a job's file is still what was placed.
func (j *hostJob) unchanged() bool {
	var st unix.Stat_t
	return unix.Lstat(j.path, &st) == nil && st.Ino == j.inode && st.Size == j.size &&
		j.mtime == mapfile.Time{Sec: st.Mtim.Sec, Nsec: int32(st.Mtim.Nsec), Known: true}
}

// readFiles reads back files that were stored, and compares them with the host's.
func (b *hostMaker) readFiles(ctx context.Context) error {
	share := b.Sample
	switch b.Verify {
	case "none":
		return nil
	case "full":
		share = 1
	}
	c, err := OpenDisk(ctx, b.s, b.p, 0, true, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	defer b.disk.close()
	r := mathrand.New(mathrand.NewChaCha8(seed()))
	in, out := make([]byte, 256<<10), make([]byte, 256<<10)
	for _, j := range b.disk.jobs {
		if err := ctx.Err(); err != nil {
			return err
		}
		if b.failed[j.name] != nil || r.Float64() >= share {
			continue
		}
		for at := int64(0); at < j.n; at += int64(len(in)) {
			n := min(j.n-at, int64(len(in)))
			if k, err := c.ReadAt(out[:n], j.pos+at); int64(k) < n {
				return fmt.Errorf("reading back what was stored: %s: %w", j.name, err)
			}
			if err := b.disk.read(j, in[:n], j.at+at); err != nil || !j.unchanged() {
				break // it is no longer what was stored
			}
			if !bytes.Equal(in[:n], out[:n]) {
				return fmt.Errorf("reading back what was stored: %w", &differs{j.name, 0, j.pos + at})
			}
			b.p.Disks[0].Verified += n
		}
	}
	return nil
}
