package extract

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

// hosts holds the host files that a map names. They are found, and compared with what the map says of them, when the
// map names them; they are opened when they are first read.
type hosts struct {
	folder    string // look files up here by name, and nowhere else
	anyMTime  bool
	elsewhere func(path string) (ondisk.HostFile, error) // Options.Open
	mu        sync.RWMutex
	byID      map[int]*host
}

type host struct {
	rec  mapfile.HostFile
	path string
	once sync.Once
	f    ondisk.HostFile
	err  error
}

// errChanged is what a host file that isn't the one that was mapped gives.
var errChanged = errors.New("it changed since the map was made")

// add takes up the host files of an image. Any that isn't as the map says is an error that names it.
func (h *hosts) add(m *mapfile.Image) error {
	for _, rec := range m.Files {
		x := &host{rec: rec, path: rec.Path}
		if h.folder != "" {
			x.path = filepath.Join(h.folder, filepath.Base(rec.Path))
		}
		st, err := h.find(x)
		if err != nil {
			return err
		}
		if err := h.same(x, st); err != nil {
			return err
		}
		h.mu.Lock()
		h.byID[rec.ID] = x
		h.mu.Unlock()
	}
	return nil
}

// find looks a host file up. One that lies elsewhere is opened at once.
func (h *hosts) find(x *host) (fs.FileInfo, error) {
	if h.elsewhere == nil || h.folder != "" {
		return os.Stat(x.path)
	}
	f, err := h.elsewhere(x.path)
	switch {
	case err != nil:
		return nil, err
	case f == nil:
		return os.Stat(x.path)
	}
	x.once.Do(func() { x.f = f })
	return f.Stat()
}

// same compares a host file with what the map says of it.
func (h *hosts) same(x *host, st fs.FileInfo) error {
	switch mode := st.Mode(); {
	case mode&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice:
		return nil // a block device has neither a size nor a time of change
	case !mode.IsRegular():
		return fmt.Errorf("%s: neither a file nor a block device", x.path)
	case st.Size() != x.rec.Size:
		return fmt.Errorf("%s: %w: it has %d bytes, the map says %d", x.path, errChanged, st.Size(), x.rec.Size)
	case !h.anyMTime && x.rec.MTime.Known && mapfile.TimeOf(st.ModTime()) != x.rec.MTime:
		return fmt.Errorf("%s: %w: its time is %s, the map says %s", x.path, errChanged, mapfile.TimeOf(st.ModTime()), x.rec.MTime)
	}
	return nil
}

// open gives a host file by its id, opened.
func (h *hosts) open(id int) (ondisk.HostFile, error) {
	h.mu.RLock()
	x := h.byID[id]
	h.mu.RUnlock()
	if x == nil {
		return nil, fmt.Errorf("the map has no host file %d", id)
	}
	x.once.Do(func() {
		f, err := os.OpenFile(x.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			x.err = err
			return
		}
		st, err := f.Stat()
		if err == nil {
			err = h.same(x, st)
		}
		if x.f = f; err != nil {
			x.err = err
			f.Close()
		}
	})
	return x.f, x.err
}

// read fills p from off of a host file.
func (h *hosts) read(id int, p []byte, off int64) error {
	f, err := h.open(id)
	if err != nil {
		return err
	}
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == io.EOF {
		return fmt.Errorf("%s ends at byte %d: %w", f.Name(), off+int64(n), io.ErrUnexpectedEOF)
	}
	return err
}

// there tells why bytes can't be in a host file.
func (h *hosts) there(id int, off, n int64) error {
	f, err := h.open(id)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err == nil && st.Mode().IsRegular() && off > st.Size()-n {
		err = fmt.Errorf("%s ends at byte %d: %w", f.Name(), st.Size(), io.ErrUnexpectedEOF)
	}
	return err
}

// changed tells which of the files that were read changed meanwhile.
func (h *hosts) changed() (errs []error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, x := range h.byID {
		if x.f == nil || x.err != nil {
			continue
		}
		st, err := x.f.Stat()
		if err == nil {
			err = h.same(x, st)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}

// reset forgets the files of one map, so that the next one can name its own.
func (h *hosts) reset() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, x := range h.byID {
		if x.f != nil && x.err == nil {
			x.f.Close()
		}
	}
	h.byID = make(map[int]*host)
}
