package verify

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

// mapCheck compares a map with its host files: they are those that were mapped, every byte of every regular file can
// be had, and where the map has its sum, it is that.
type mapCheck struct {
	*run
	bytes   *bytesOf
	hosts   []hostFile
	volumes map[int]*mapfile.Volume

	now  mapfile.File // whose extents are coming
	list []mapfile.Extent
	open *summing // of a file that is read while they do
}

type hostFile struct {
	rec mapfile.HostFile // with the path that it has here
	f   ondisk.HostFile
	st  fs.FileInfo
}

// maxHeld is how many extents of one file are held in memory.
const maxHeld = 64 << 10

func newMapCheck(r *run) *mapCheck {
	return &mapCheck{run: r, bytes: &bytesOf{keys: r.Keys, hosts: make(map[int]ondisk.HostFile)}, volumes: make(map[int]*mapfile.Volume)}
}

func (m *mapCheck) close() { m.bytes.close() }

func (m *mapCheck) image(x *mapfile.Image) error {
	if m.Image != nil {
		m.Image(x)
	}
	t := &task{}
	for _, h := range x.Files {
		if m.Images != "" {
			h.Path = filepath.Join(m.Images, filepath.Base(h.Path))
		}
		at := mapfile.Finding{Volume: mapfile.None, Path: h.Path}
		f, err := m.openHost(h.Path)
		if errors.Is(err, fs.ErrNotExist) {
			t.diff(at, Missing, "host file", "nothing")
			continue
		}
		var st fs.FileInfo
		if err == nil {
			st, err = f.Stat()
		}
		if err != nil {
			t.problem(at, HostFile, err)
			continue
		}
		m.bytes.hosts[h.ID] = f
		m.hosts = append(m.hosts, hostFile{h, f, st})
		m.identity(t, at, h, st)
	}
	return m.say(t)
}

// openHost opens a host file, wherever it lies.
func (m *mapCheck) openHost(path string) (ondisk.HostFile, error) {
	if m.Open != nil && m.Images == "" {
		if f, err := m.Open(path); f != nil || err != nil {
			return f, err
		}
	}
	f, err := openHost(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// identity compares a host file with what the map says of it.
func (m *mapCheck) identity(t *task, at mapfile.Finding, h mapfile.HostFile, st fs.FileInfo) {
	got := mapfile.TimeOf(st.ModTime())
	switch {
	case !st.Mode().IsRegular(): // a block device has neither size nor time
	case st.Size() != h.Size:
		t.diff(at, HostFile, fmt.Sprintf("of %d bytes", h.Size), fmt.Sprintf("of %d bytes", st.Size()))
	case !m.AnyMTime && h.MTime.Known && got != h.MTime:
		t.diff(at, HostFile, "of "+h.MTime.String(), "of "+got.String())
	}
}

// end waits until all of the map's files are read, and looks whether the host files stayed as they were.
func (m *mapCheck) end() error {
	if err := m.barrier(); err != nil {
		return err
	}
	t := &task{}
	for _, h := range m.hosts {
		st, err := h.f.Stat()
		if err == nil && st.Mode().IsRegular() && (st.Size() != h.st.Size() || !st.ModTime().Equal(h.st.ModTime())) {
			err = errors.New("it changed while it was read")
		}
		if err != nil {
			t.problem(mapfile.Finding{Volume: mapfile.None, Path: h.rec.Path}, HostFile, err)
		}
	}
	m.close()
	return m.say(t)
}

// summing is a file that is being read.
type summing struct {
	at   mapfile.Finding
	want string
	size int64
	hash hash.Hash
	next int64
	errs []error

	data, holes int64
	hollow      bool // nearly all holes: it has no sum
}

// A guest can make holes of any length for nothing: that many bytes of them are hashed in any file, and more of one with
// data.
const (
	maxHoles     = 8 << 30
	holesPerData = 16
)

func newSumming(f *mapfile.File) *summing {
	return &summing{at: mapfile.Finding{Volume: f.Volume, Path: f.Path, Stream: f.Stream}, want: f.SHA256, size: f.Size, hash: sha256.New()}
}

// maxErrors is how many gaps of one file are told.
const maxErrors = 3

func (s *summing) add(b *bytesOf, list []mapfile.Extent) {
	for i := range list {
		e := &list[i]
		s.next = e.At + e.Len
		switch e.Kind {
		case mapfile.Zero, mapfile.Hole, mapfile.Unwritten:
			s.holes += e.Len
		default:
			s.data += e.Len
		}
		if s.holes > maxHoles && s.holes/holesPerData > s.data {
			s.want, s.hollow = "", true // all of it would be hashing zeros
			continue
		}
		if err := b.copy(s.hash, e); err != nil && len(s.errs) < maxErrors {
			s.errs = append(s.errs, fmt.Errorf("bytes %d to %d: %w", e.At, s.next-1, err))
		}
	}
}

func (s *summing) end(t *task) {
	t.checked++
	t.bytes += s.size
	if s.next < s.size {
		s.errs = append(s.errs, errors.New("the map doesn't tell where it lies"))
	}
	if len(s.errs) > 0 {
		locked := true
		var texts []string
		for _, err := range s.errs {
			locked = locked && errors.Is(err, errEncrypted)
			texts = append(texts, err.Error())
		}
		if locked {
			t.locked++
		}
		t.problem(s.at, Content, errors.New(strings.Join(texts, "; ")))
		return
	}
	t.read++
	if sum := s.sum(); s.want != "" && sum != s.want {
		t.diff(s.at, Content, s.want, sum)
	}
}

func (s *summing) sum() string { return hex.EncodeToString(s.hash.Sum(nil)) }

func (m *mapCheck) file(f *mapfile.File) error {
	m.now, m.list = *f, nil
	switch {
	case f.Kind != mapfile.Regular:
		return m.say(&task{checked: 1})
	case f.More:
		m.list = slices.Clone(f.Extents)
		return nil
	}
	return m.whole(slices.Clone(f.Extents))
}

// whole has a file read whose extents are all there.
func (m *mapCheck) whole(list []mapfile.Extent) error {
	s := newSumming(&m.now)
	return m.submit(func(t *task) {
		s.add(m.bytes, list)
		s.end(t)
	})
}

func (m *mapCheck) extents(x *mapfile.Extents) error {
	switch {
	case x.Path == "" || m.now.Kind != mapfile.Regular: // a volume's own
		return nil
	case m.open == nil:
		m.list = append(m.list, x.Extents...)
		if !x.More {
			return m.whole(m.list)
		}
		if len(m.list) > maxHeld {
			m.open = newSumming(&m.now)
			m.open.add(m.bytes, m.list)
			m.list = nil
		}
		return nil
	}
	m.open.add(m.bytes, x.Extents)
	if x.More {
		return nil
	}
	t := &task{}
	m.open.end(t)
	m.open = nil
	return m.say(t)
}
