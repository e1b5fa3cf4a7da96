package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/cli"
	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/formats/qcow2"
)

// file is a file of this host that appears under its name when it is whole, and never in the place of another unless
// that was asked for. It is written in order, holes left out.
type file struct {
	f        *os.File // nil: done
	path     string
	force    bool
	at       int64
	progress *cli.Progress
}

// createFile begins a file. One that is in use by a machine is never replaced.
func createFile(path string, force bool) (*file, error) {
	switch st, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("%s is there, and no regular file", path)
	case !force:
		return nil, fmt.Errorf("%s is there; --force overwrites it", path)
	default:
		var src formats.OSSource
		_, err := src.Open(path)
		if src.Close(); err != nil {
			return nil, err
		}
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".part*")
	if err != nil {
		return nil, err
	}
	return &file{f: f, path: path, force: force}, nil
}

// Write implements io.Writer.
func (w *file) Write(p []byte) (int, error) {
	n, err := w.f.WriteAt(p, w.at)
	w.at += int64(n)
	w.progress.Add(int64(n))
	return n, err
}

// WriteZeros implements formats.ZeroWriter.
func (w *file) WriteZeros(n int64) error {
	w.at += n
	w.progress.Add(n)
	return nil
}

// WriteHead implements qcow2.Target.
func (w *file) WriteHead(p []byte, off int64) error {
	_, err := w.f.WriteAt(p, off)
	return err
}

// commit gives the file its name, with all of its bytes on the disk.
func (w *file) commit() error {
	defer w.abort()
	err := w.f.Chmod(0o600) // a machine's disk is its owner's business
	if err == nil {
		err = w.f.Truncate(w.at)
	}
	if err == nil {
		err = w.f.Sync()
	}
	if err != nil {
		return err
	}
	if w.force {
		err = os.Rename(w.f.Name(), w.path)
	} else if err = os.Link(w.f.Name(), w.path); errors.Is(err, fs.ErrExist) {
		err = fmt.Errorf("%s is there; --force overwrites it", w.path)
	} else if err != nil { // no hard links there
		err = unix.Renameat2(unix.AT_FDCWD, w.f.Name(), unix.AT_FDCWD, w.path, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(w.path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// abort leaves nothing but what was committed.
func (w *file) abort() {
	if w.f != nil {
		w.f.Close()
		os.Remove(w.f.Name())
		w.f = nil
	}
}

// workers is how many clusters are read ahead: more than there are processors, for the sake of stores that are far.
func workers() int { return max(8, runtime.GOMAXPROCS(0)) }

func writeRaw(ctx context.Context, f *file, d formats.Disk) error {
	if _, err := formats.Copy(ctx, f, d, workers()); err != nil {
		return err
	}
	return f.f.Truncate(d.Size())
}

// writeQcow2 writes an image without compression: a machine is to work with it.
func writeQcow2(ctx context.Context, f *file, d formats.Disk) error {
	w, err := qcow2.NewWriter(f, qcow2.Layout{Size: d.Size(), Codec: codec.Deflate, Head: 1 << 40})
	if err != nil {
		return err
	}
	c := &clusters{w: w, buf: make([]byte, 0, qcow2.DefaultCluster), f: f}
	f.progress, c.progress = nil, f.progress // the disk's bytes count, not the image's
	if _, err := formats.Copy(ctx, c, d, workers()); err != nil {
		return err
	}
	if err := c.end(); err != nil {
		return err
	}
	return w.Close()
}

// clusters cuts a disk into an image's clusters. What is zeros has none.
type clusters struct {
	w        *qcow2.Writer
	f        *file
	buf      []byte
	i        int64
	data     bool
	progress *cli.Progress
}

func (c *clusters) Write(p []byte) (int, error) {
	for done := 0; done < len(p); {
		n := min(cap(c.buf)-len(c.buf), len(p)-done)
		c.buf, c.data = append(c.buf, p[done:done+n]...), true
		done += n
		if err := c.full(); err != nil {
			return done, err
		}
	}
	c.progress.Add(int64(len(p)))
	return len(p), nil
}

// WriteZeros implements formats.ZeroWriter.
func (c *clusters) WriteZeros(n int64) error {
	c.progress.Add(n)
	for n > 0 {
		if whole := n / int64(cap(c.buf)); len(c.buf) == 0 && whole > 0 {
			c.i += whole
			n -= whole * int64(cap(c.buf))
			continue
		}
		k := min(int64(cap(c.buf)-len(c.buf)), n)
		c.buf = c.buf[:len(c.buf)+int(k)]
		clear(c.buf[len(c.buf)-int(k):])
		n -= k
		if err := c.full(); err != nil {
			return err
		}
	}
	return nil
}

// full writes the cluster where it is full.
func (c *clusters) full() error {
	if len(c.buf) < cap(c.buf) {
		return nil
	}
	var err error
	if c.data {
		err = c.w.Data(c.i, c.buf)
	}
	c.buf, c.data, c.i = c.buf[:0], false, c.i+1
	return err
}

// end fills the last cluster up.
func (c *clusters) end() error {
	if len(c.buf) == 0 {
		return nil
	}
	return c.WriteZeros(int64(cap(c.buf) - len(c.buf)))
}

// flatDescriptor is the text that makes a raw file a VMDK image of the type monolithicFlat: QEMU, VirtualBox and
// VMware's hosted products open it as it is, and vmkfstools imports it.
func flatDescriptor(name string, size int64) string {
	sectors := (size + 511) / 512
	return fmt.Sprintf(`# Disk DescriptorFile
version=1
CID=%08x
parentCID=ffffffff
createType="monolithicFlat"

# Extent description
RW %d FLAT "%s" 0

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.geometry.cylinders = "%d"
ddb.geometry.heads = "16"
ddb.geometry.sectors = "63"
ddb.adapterType = "ide"
`, rand.Uint32()|1, sectors, name, min(max(sectors/(16*63), 1), 16383))
}
