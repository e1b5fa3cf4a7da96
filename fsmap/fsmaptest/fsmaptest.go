// Package fsmaptest is the suite that every driver's tests call: it walks a file system, checks what all drivers
// promise, and compares what was found with an oracle's account.
package fsmaptest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// File is what a driver said of one name.
type File struct {
	fsmap.Node
	Path   string // "." for the root
	Runs   []fsmap.Run
	SHA256 string // of the content of a regular file, or empty where a part can't be had
	// Errs are what Node, ReadDir and Runs returned, and the Node's Problems.
	Errs []error
}

// Tree is a walked file system.
type Tree struct {
	FS    fsmap.FS
	Files map[string]*File
}

// Errs gives everything that went wrong, as "path: error".
func (t *Tree) Errs() []string {
	var all []string
	for p, f := range t.Files {
		for _, err := range f.Errs {
			all = append(all, p+": "+err.Error())
		}
	}
	return all
}

// Open probes and opens the volume; it fails the test unless both succeed.
func Open(t testing.TB, d fsmap.Driver, r io.ReaderAt, size int64, o fsmap.Options) fsmap.FS {
	t.Helper()
	head := make([]byte, min(size, fsmap.ProbeLen))
	if _, err := r.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if _, ok := d.Probe(r, size, head); !ok {
		t.Fatal("the probe does not know it")
	}
	fs, err := d.Open(r, size, o)
	if err != nil {
		t.Fatal(err)
	}
	return fs
}

// Walk goes through the whole tree, depth first, and reads every file's content by its runs. Directories that were
// seen before are not entered again.
func Walk(t testing.TB, fs fsmap.FS, r io.ReaderAt, size int64) *Tree {
	t.Helper()
	return WalkSet(t, fs, []fsmap.Member{{R: r, Size: size}})
}

// WalkSet is Walk for a file system that spans several volumes.
func WalkSet(t testing.TB, fs fsmap.FS, members []fsmap.Member) *Tree {
	t.Helper()
	w := walker{t: t, members: members, content: true, tree: &Tree{FS: fs, Files: map[string]*File{}}, seen: map[fsmap.Ref]bool{}, left: 1 << 20}
	w.visit(fsmap.Entry{Ref: fs.Info().Root, Kind: mapfile.Directory}, ".", nil)
	return w.tree
}

type walker struct {
	t       testing.TB
	members []fsmap.Member
	content bool // is read
	tree    *Tree
	seen    map[fsmap.Ref]bool
	left    int // names that are still looked at
}

func (w *walker) visit(e fsmap.Entry, path string, priv any) {
	f := &File{Path: path}
	w.tree.Files[path] = f
	f.Node.Priv = priv
	f.Node.Reset()
	if err := w.tree.FS.Node(e, &f.Node); err != nil {
		f.Errs = append(f.Errs, err)
		return
	}
	f.Errs = append(f.Errs, f.Problems...)
	if e.Kind != 0 && e.Kind != f.Kind {
		f.Errs = append(f.Errs, fmt.Errorf("the directory says %c, the inode %c", e.Kind, f.Kind))
	}
	switch f.Kind {
	case mapfile.Regular:
		w.runs(f)
	case mapfile.Directory:
		if !w.seen[f.Ref] {
			w.seen[f.Ref] = true
			w.list(f)
		}
	}
}

func (w *walker) list(f *File) {
	var entries []fsmap.Entry
	names := map[string]bool{}
	err := w.tree.FS.ReadDir(&f.Node, func(e fsmap.Entry) bool {
		name := string(e.Name)
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			w.t.Errorf("%s: name %q", f.Path, name)
			return true
		}
		if names[name] {
			f.Errs = append(f.Errs, fmt.Errorf("two names %q", name))
			return true
		}
		names[name] = true
		e.Name = []byte(name)
		entries = append(entries, e)
		w.left--
		return w.left > 0
	})
	if err != nil {
		f.Errs = append(f.Errs, err)
	}
	for _, e := range entries {
		path := string(e.Name)
		if f.Path != "." {
			path = f.Path + "/" + path
		}
		if strings.Count(path, "/") < 256 {
			w.visit(e, path, nil)
		}
	}
}

// runs asks for the runs of f, and checks that they are a run list: ordered, gapless, inside the volume, as long as
// the file.
func (w *walker) runs(f *File) {
	var r fsmap.Runs
	r.Reset(f.Size)
	kind := mapfile.Hole
	if err := w.tree.FS.Runs(&f.Node, nil, &r); err != nil {
		f.Errs = append(f.Errs, err)
		kind = mapfile.Missing
	}
	r.Fill(kind)
	f.Runs = r.List
	at := int64(0)
	for _, x := range r.List {
		if x.At != at || x.Len <= 0 {
			w.t.Fatalf("%s: run at %d, %d bytes; expected at %d", f.Path, x.At, x.Len, at)
		}
		if (x.Kind == mapfile.Data || x.Kind == mapfile.Unwritten) && (x.Dev >= len(w.members) || !ondisk.Within(x.Off, x.Len, w.members[x.Dev].Size)) {
			w.t.Fatalf("%s: run at %d lies at %d+%d of volume %d, outside of it", f.Path, x.At, x.Off, x.Len, x.Dev)
		}
		at += x.Len
	}
	if at != f.Size {
		w.t.Fatalf("%s: runs of %d bytes, the file has %d", f.Path, at, f.Size)
	}
	if w.content && f.Size <= 1<<32 {
		f.SHA256 = sum(w.t, w.members, r.List)
	}
}

// Concurrent asks several times at once for every inode and its runs, and compares them with what Walk found. The race
// detector sees more.
func (t *Tree) Concurrent(tb testing.TB) {
	tb.Helper()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var (
				n fsmap.Node
				r fsmap.Runs
			)
			for path, f := range t.Files {
				n.Reset()
				if err := t.FS.Node(fsmap.Entry{Ref: f.Ref, Aux: f.Aux, Kind: f.Kind}, &n); err != nil || n.Kind != f.Kind || n.Size != f.Size {
					tb.Errorf("%s: %c of %d bytes, was %c of %d; %v", path, n.Kind, n.Size, f.Kind, f.Size, err)
					continue
				}
				switch n.Kind {
				case mapfile.Regular:
					r.Reset(n.Size)
					if err := t.FS.Runs(&n, nil, &r); err == nil {
						r.Fill(mapfile.Hole)
					}
					if len(r.List) != len(f.Runs) {
						tb.Errorf("%s: %d runs, were %d", path, len(r.List), len(f.Runs))
					}
				case mapfile.Directory:
					_ = t.FS.ReadDir(&n, func(fsmap.Entry) bool { return true })
				}
			}
		})
	}
	wg.Wait()
}

// Sum gives the sha256 of what the runs hold, or nothing where a part of it can't be had.
func Sum(t testing.TB, r io.ReaderAt, runs []fsmap.Run) string {
	return sum(t, []fsmap.Member{{R: r}}, runs)
}

func sum(t testing.TB, members []fsmap.Member, runs []fsmap.Run) string {
	t.Helper()
	s, err := digest(members, runs)
	if err != nil {
		t.Error(err)
	}
	return s
}

// digest is sum with the error.
func digest(members []fsmap.Member, runs []fsmap.Run) (string, error) {
	h := sha256.New()
	for _, x := range runs {
		var err error
		switch x.Kind {
		case mapfile.Data:
			_, err = io.CopyN(h, io.NewSectionReader(members[x.Dev].R, x.Off, x.Len), x.Len)
		case mapfile.Hole, mapfile.Unwritten, mapfile.Zero:
			_, err = io.CopyN(h, zeros{}, x.Len)
		case mapfile.Inline:
			h.Write(x.Bytes)
		case mapfile.Packed:
			var b []byte
			if b, err = unpack(members, x.Pack); err == nil {
				h.Write(b[x.Skip : x.Skip+x.Len])
			}
		default:
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("run at %d: %w", x.At, err)
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func unpack(members []fsmap.Member, p *fsmap.Pack) ([]byte, error) {
	parts := make([][]byte, len(p.Parts))
	for i, x := range p.Parts {
		parts[i] = make([]byte, x.Len)
		switch x.Kind {
		case mapfile.Data:
			if err := ondisk.ReadFull(members[x.Dev].R, parts[i], x.Off, "part"); err != nil {
				return nil, err
			}
		case mapfile.Inline:
			copy(parts[i], x.Bytes)
		}
	}
	b := make([]byte, p.Full)
	return b, codec.Decode(b, p.Spec, nil, parts...)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// Compare compares the tree with an oracle's account: a line a name, with tabs between path, kind (a letter), size,
// mtime in seconds, sha256, symlink target, and mode, uid and gid. "-" stands for what is not known; what follows the
// last field that counts may be left out. Names are as strconv.Quote writes them, without the quotes. slack is how many seconds two
// times may be apart.
func (t *Tree) Compare(tb testing.TB, lines []string, slack int64) {
	tb.Helper()
	expected := map[string]bool{".": true}
	for _, line := range lines {
		c := strings.Split(line, "\t")
		for len(c) < 9 {
			c = append(c, "-")
		}
		path, err := strconv.Unquote(`"` + c[0] + `"`)
		if err != nil {
			tb.Fatalf("%q: %v", c[0], err)
		}
		expected[path] = true
		f := t.Files[path]
		if f == nil {
			tb.Errorf("%s: missing", c[0])
			continue
		}
		is := func(what, want, got string) {
			if want != "-" && want != got {
				tb.Errorf("%s: %s is %s, should be %s", c[0], what, got, want)
			}
		}
		is("kind", c[1], string(f.Kind))
		if f.Kind == mapfile.Regular {
			is("size", c[2], strconv.FormatInt(f.Size, 10))
			is("sha256", c[4], f.SHA256)
		}
		if sec, err := strconv.ParseInt(c[3], 10, 64); err == nil && (!f.MTime.Known || max(f.MTime.Sec-sec, sec-f.MTime.Sec) > slack) {
			tb.Errorf("%s: mtime is %d, should be %d", c[0], f.MTime.Sec, sec)
		}
		is("target", c[5], string(f.Target))
		is("mode", c[6], fmt.Sprintf("%04o", f.Mode))
		is("uid", c[7], strconv.FormatInt(f.UID, 10))
		is("gid", c[8], strconv.FormatInt(f.GID, 10))
	}
	for path := range t.Files {
		if !expected[path] {
			tb.Errorf("%q: should not be there", path)
		}
	}
}

// Fuzz runs a driver on hostile volumes that begin as the seeds.
func Fuzz(f *testing.F, d fsmap.Driver, seeds ...[]byte) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) { hostile(t, d, b) })
}

// FuzzPart is Fuzz for n bytes of a volume, from off on: all else stays as it is.
func FuzzPart(f *testing.F, d fsmap.Driver, volume []byte, off, n int) {
	f.Add(volume[off : off+n])
	f.Fuzz(func(t *testing.T, part []byte) {
		b := slices.Clone(volume)
		copy(b[off:off+n], part)
		hostile(t, d, b)
	})
}

// hostile opens and walks a volume that need not be one.
func hostile(t *testing.T, d fsmap.Driver, b []byte) {
	r := bytes.NewReader(b)
	size := int64(len(b))
	d.Probe(r, size, b[:min(len(b), fsmap.ProbeLen)])
	fs, err := d.Open(r, size, fsmap.Options{Journal: fsmap.JournalReplay})
	if (fs == nil) == (err == nil) {
		t.Fatalf("file system %v and error %v", fs, err)
	}
	if err != nil {
		return
	}
	w := walker{t: t, members: []fsmap.Member{{R: r, Size: size}}, tree: &Tree{FS: fs, Files: map[string]*File{}}, seen: map[fsmap.Ref]bool{}, left: 1000}
	w.visit(fsmap.Entry{Ref: fs.Info().Root, Kind: mapfile.Directory}, ".", nil)
}

// Layout checks the packed size of an on-disk struct, as encoding/binary reads it, and where its fields begin.
func Layout(t testing.TB, v any, size int, offsets map[string]int) {
	t.Helper()
	if n := binary.Size(v); n != size {
		t.Errorf("%T has %d bytes, should have %d", v, n, size)
	}
	at, found := 0, 0
	val := reflect.ValueOf(v)
	for i := range val.NumField() {
		name := val.Type().Field(i).Name
		if want, ok := offsets[name]; ok {
			found++
			if want != at {
				t.Errorf("%T.%s at %d, should be at %d", v, name, at, want)
			}
		}
		at += binary.Size(reflect.New(val.Field(i).Type()).Interface())
	}
	if found != len(offsets) {
		t.Errorf("%T has only %d of the fields %v", v, found, offsets)
	}
}
