package fsmap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"vmkit/formats"
	"vmkit/fsmap/mapfile"
)

// fakeDisk is a disk of given extents, which it tells in pieces of at most step bytes. It can't be read.
type fakeDisk struct {
	size    int64
	extents []formats.Extent // from 0 to size; Disk is set by where they lie
	errs    map[int]error    // of extents[i]
	step    int64
}

func (d *fakeDisk) Size() int64 { return d.size }

func (d *fakeDisk) ExtentAt(off, max int64) (formats.Extent, error) {
	if off < 0 || off >= d.size || max <= 0 {
		return formats.Extent{}, fmt.Errorf("asked for %d bytes at %d", max, off)
	}
	var at int64
	for i, e := range d.extents {
		if off < at+e.Len {
			if d.step > 0 {
				max = min(max, d.step-off%d.step)
			}
			e.Disk = at
			return cut(e, off-at, max), d.errs[i]
		}
		at += e.Len
	}
	return formats.Extent{Len: 1, Kind: formats.Missing, Disk: off}, io.ErrUnexpectedEOF
}

// ReadAt gives bytes that tell their own position, so that probes find nothing.
func (d *fakeDisk) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		if off+int64(i) >= d.size {
			return i, io.EOF
		}
		p[i] = byte(off+int64(i))*7 + 1
	}
	return len(p), nil
}

// fakeNode is an inode of a fakeFS.
type fakeNode struct {
	kind     mapfile.FileKind
	size     int64
	entries  []fakeEntry
	runs     []Run
	streams  []Stream
	target   string
	crypt    bool
	nodeErr  error
	dirErr   error
	runsErr  error
	problems []error
}

type fakeEntry struct {
	name string
	id   uint64
	kind mapfile.FileKind // 0: what the inode says
}

// fakeFS is a file system in memory; its root is inode 1.
type fakeFS struct {
	nodes map[uint64]*fakeNode
	mu    sync.Mutex
	read  []uint64 // the directories that were read
}

func (f *fakeFS) Info() *Info { return &Info{Type: "fake", Used: mapfile.None, Root: Ref{ID: 1}} }

func (f *fakeFS) Node(e Entry, n *Node) error {
	x := f.nodes[e.Ref.ID]
	if x == nil {
		return errors.New("no such inode")
	}
	n.Inode, n.Kind, n.Size, n.Streams, n.Encrypted, n.Problems = e.Ref.ID, x.kind, x.size, x.streams, x.crypt, x.problems
	n.Target = append(n.Target, x.target...)
	n.Ref = e.Ref
	return x.nodeErr
}

func (f *fakeFS) ReadDir(n *Node, add func(Entry) bool) error {
	f.mu.Lock()
	f.read = append(f.read, n.Inode)
	f.mu.Unlock()
	x := f.nodes[n.Inode]
	for _, e := range x.entries {
		kind := e.kind
		if y := f.nodes[e.id]; kind == 0 && y != nil {
			kind = y.kind
		}
		if !add(Entry{Name: []byte(e.name), Ref: Ref{ID: e.id}, Kind: kind}) {
			break
		}
	}
	return x.dirErr
}

func (f *fakeFS) Runs(n *Node, s *Stream, r *Runs) error {
	x := f.nodes[n.Inode]
	if s != nil {
		return r.Inline(0, bytes.Repeat([]byte{'s'}, int(s.Size)))
	}
	for _, run := range x.runs {
		if err := r.Append(run); err != nil {
			return err
		}
	}
	return x.runsErr
}

func (f *fakeFS) driver() Driver {
	return Driver{
		Name:  "fake",
		Probe: func(io.ReaderAt, int64, []byte) (string, bool) { return "fake", true },
		Open:  func(io.ReaderAt, int64, Options) (FS, error) { return f, nil },
	}
}

// tree makes a fakeFS of paths: "dir/", "dir/file". Files have one run of their own.
func tree(paths ...string) *fakeFS {
	f := &fakeFS{nodes: map[uint64]*fakeNode{1: {kind: mapfile.Directory}}}
	ids := map[string]uint64{"": 1}
	for _, p := range paths {
		id := uint64(len(f.nodes) + 1)
		x := &fakeNode{kind: mapfile.Regular, size: 10, runs: []Run{{Len: 10, Kind: mapfile.Data, Off: int64(id) * 100}}}
		if strings.HasSuffix(p, "/") {
			x = &fakeNode{kind: mapfile.Directory}
		}
		p = strings.TrimSuffix(p, "/")
		dir, name := "", p
		if i := strings.LastIndexByte(p, '/'); i >= 0 {
			dir, name = p[:i], p[i+1:]
		}
		parent := f.nodes[ids[dir]]
		parent.entries = append(parent.entries, fakeEntry{name: name, id: id})
		f.nodes[id], ids[p] = x, id
	}
	return f
}

// fakeImage is an image that lies in one host file as it is.
func fakeImage(size int64) *formats.Image {
	f := &formats.File{Path: "fake.img", Role: formats.RoleTop, Size: size}
	d := &fakeDisk{size: size, extents: []formats.Extent{{Len: size, Kind: formats.Data, File: f}}}
	return &formats.Image{Disk: d, Name: "fake", Format: "raw", State: formats.StateClean, Files: []*formats.File{f}}
}

// records is a map that was read back.
type records struct {
	lines    []string // "kind path" of the files, in order
	files    map[string]*mapfile.File
	problems []string // "path: what: error"
	end      *mapfile.End
}

// build makes the map of fs on an image of size bytes and reads it back, by which it is checked.
func build(t *testing.T, fs *fakeFS, c Config, img *formats.Image) (*records, Summary, []byte) {
	t.Helper()
	var buf bytes.Buffer
	c.Drivers = []Driver{fs.driver()}
	s, err := Build(context.Background(), []*formats.Image{img}, c, mapfile.NewWriter(&buf))
	if err != nil {
		t.Fatal(err)
	}
	return readBack(t, buf.Bytes()), s, buf.Bytes()
}

func readBack(t *testing.T, stream []byte) *records {
	t.Helper()
	got := &records{files: map[string]*mapfile.File{}}
	var last *mapfile.File
	for r := mapfile.NewReader(bytes.NewReader(stream)); ; {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatalf("%v\n%.2000s", err, stream)
		}
		switch x := record.(type) {
		case *mapfile.File:
			f := *x
			f.Extents = slices.Clone(x.Extents)
			last = &f
			name := f.Path
			if f.Stream != "" {
				name += ":" + f.Stream
			}
			got.lines = append(got.lines, string(rune(f.Kind))+" "+name)
			got.files[name] = last
		case *mapfile.Extents:
			last.Extents = append(last.Extents, x.Extents...)
		case *mapfile.Problem:
			got.problems = append(got.problems, fmt.Sprintf("%s: %s: %s", x.Path, x.What, x.Error))
		case *mapfile.End:
			end := *x
			got.end = &end
		}
	}
}
