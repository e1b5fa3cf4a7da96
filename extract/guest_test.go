package extract

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/fsmap/mapfile"
)

// guest is a map made by hand: a host file that holds what the files do, and records.
type guest struct {
	t     testing.TB
	dir   string
	host  []byte
	files []mapfile.File
	more  [][]mapfile.Extent // of the last file
	vols  []string
	lines []string // behind the files
}

func newGuest(t testing.TB) *guest {
	return &guest{t: t, dir: t.TempDir(), vols: []string{"p1"}}
}

// at puts bytes into the host file and gives their extent; its place in the file is set by add.
func (g *guest) at(b []byte) mapfile.Extent {
	off := int64(len(g.host))
	g.host = append(g.host, b...)
	return mapfile.Extent{Len: int64(len(b)), Kind: mapfile.Data, Disk: off, Image: mapfile.None, File: 0, Off: off}
}

func other(kind mapfile.Kind, n int64) mapfile.Extent {
	return mapfile.Extent{Len: n, Kind: kind, Disk: mapfile.None, Image: mapfile.None, File: mapfile.None, Off: mapfile.None}
}

func inline(s string) mapfile.Extent {
	e := other(mapfile.Inline, int64(len(s)))
	e.Bytes = []byte(s)
	return e
}

func packed(p *mapfile.Pack, skip, n int64) mapfile.Extent {
	e := other(mapfile.Packed, n)
	e.Pack, e.Skip = p, skip
	return e
}

// add appends a file made of extents, which are put one behind the other.
func (g *guest) add(path string, kind mapfile.FileKind, list ...mapfile.Extent) *mapfile.File {
	f := mapfile.File{Path: path, Inode: uint64(len(g.files) + 11), Kind: kind, Mode: 0o644, UID: mapfile.None, GID: mapfile.None, Links: 1,
		MTime: mapfile.Time{Sec: 1600000000, Nsec: 123456789, Known: true}}
	if kind == mapfile.Directory {
		f.Mode = 0o755
	}
	for _, e := range list {
		e.At = f.Size
		f.Size += e.Len
		f.Extents = append(f.Extents, e)
	}
	g.files = append(g.files, f)
	return &g.files[len(g.files)-1]
}

func (g *guest) text(path, s string) *mapfile.File {
	return g.add(path, mapfile.Regular, g.at([]byte(s)))
}

func (g *guest) folder(path string) *mapfile.File { return g.add(path, mapfile.Directory) }

func (g *guest) symlink(path, target string) *mapfile.File {
	f := g.add(path, mapfile.Symlink)
	f.Target, f.Size = target, int64(len(target))
	return f
}

// stream writes the host file and gives the map.
func (g *guest) stream() []byte {
	path := filepath.Join(g.dir, "disk.img")
	if err := os.WriteFile(path, g.host, 0o600); err != nil {
		g.t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil {
		g.t.Fatal(err)
	}
	var buf bytes.Buffer
	w := mapfile.NewWriter(&buf)
	w.Map(&mapfile.Map{Version: 1, Tool: "test", Created: mapfile.Time{Known: true}})
	size := int64(len(g.host))
	w.Image(&mapfile.Image{Name: "disk", Format: "raw", Size: size,
		Files: []mapfile.HostFile{{Path: path, Role: "top", Size: size, MTime: mapfile.TimeOf(st.ModTime())}}})
	for i, name := range g.vols {
		w.Volume(&mapfile.Volume{ID: i, Name: name, Kind: "partition", Size: size, In: mapfile.None, Used: mapfile.None})
	}
	for i := range g.files {
		w.File(&g.files[i])
	}
	for _, l := range g.lines {
		w.Other(&mapfile.Other{Raw: []byte(l)})
	}
	c := w.Count()
	w.End(&c)
	return buf.Bytes()
}

func patterns(texts ...string) mapfile.Patterns {
	p, err := mapfile.ParsePatterns(texts)
	if err != nil {
		panic(err)
	}
	return p
}

// calling is a reader without content that calls f.
type calling func()

func (f calling) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

// outcome is what a run left behind.
type outcome struct {
	dir     string
	sum     Summary
	err     error
	results map[string]mapfile.Result
	order   []string
	ended   bool
	lines   []string
	warned  []string
}

func (g *guest) extract(o Options) outcome { return g.into(filepath.Join(g.t.TempDir(), "out"), o) }

func (g *guest) into(dir string, o Options) outcome {
	return runDir(g.t, g.stream(), dir, o)
}

func runDir(t testing.TB, stream []byte, dir string, o Options) outcome {
	return collect(t, dir, o, func(o Options) (Summary, error) {
		return ToDir(context.Background(), mapfile.NewReader(bytes.NewReader(stream)), dir, o)
	})
}

// collect runs f with results that it reads back.
func collect(t testing.TB, dir string, o Options, f func(Options) (Summary, error)) outcome {
	t.Helper()
	var buf bytes.Buffer
	out := outcome{dir: dir, results: map[string]mapfile.Result{}}
	o.Results = mapfile.NewWriter(&buf)
	o.Warn = func(format string, args ...any) { out.warned = append(out.warned, format) }
	out.sum, out.err = f(o)
	o.Results.Flush()
	r := mapfile.NewReader(bytes.NewReader(buf.Bytes()))
	for {
		rec, err := r.Next()
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			return out
		}
		if err != nil {
			t.Fatalf("results: %v\n%s", err, buf.Bytes())
		}
		switch x := rec.(type) {
		case *mapfile.Result:
			key := x.Path
			if x.Stream != "" {
				key += ":" + x.Stream
			}
			for ; out.results[key].Path != ""; key += "#" {
			}
			out.results[key] = *x
			out.order = append(out.order, key)
		case *mapfile.End:
			out.ended = true
		case *mapfile.Problem, *mapfile.Other:
			out.lines = append(out.lines, string(r.Line()))
		}
	}
}

// want checks a file's result and what lies under its name.
func (o *outcome) want(t *testing.T, key, status, reason, content string) {
	t.Helper()
	res, ok := o.results[key]
	if !ok {
		t.Errorf("%s: no result", key)
		return
	}
	if res.Status != status || !strings.Contains(res.Error, reason) {
		t.Errorf("%s: %s: %s; want %s: %s", key, res.Status, res.Error, status, reason)
	}
	if res.To == "" {
		if content != "" {
			t.Errorf("%s: written nowhere: %s", key, res.Error)
		}
		return
	}
	if res.Kind != mapfile.Regular {
		return
	}
	b, err := os.ReadFile(res.To)
	if err != nil || string(b) != content {
		t.Errorf("%s: holds %.60q, %v; want %.60q", key, b, err, content)
	}
	if sum := sha256.Sum256(b); status == statusOK && (res.SHA256 != hex.EncodeToString(sum[:]) || res.Size != int64(len(b))) {
		t.Errorf("%s: sha256 %s, size %d", key, res.SHA256, res.Size)
	}
}
