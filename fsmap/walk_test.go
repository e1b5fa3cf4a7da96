package fsmap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/fsmap/mapfile"
)

// TestOrder: a directory's record, then what is in it, with names in byte order.
func TestOrder(t *testing.T) {
	fs := tree("b/", "b/z", "a", "b-c", "b.d", "é", "B", "b/a/", "b/a/x", "b/a-", "\xff")
	got, _, _ := build(t, fs, Config{}, fakeImage(1<<20))
	want := []string{"d /", "f /B", "f /a", "d /b", "d /b/a", "f /b/a/x", "f /b/a-", "f /b/z", "f /b-c", "f /b.d", "f /é", "f /\xff"}
	if !slices.Equal(got.lines, want) {
		t.Errorf("got %q\nwant %q", got.lines, want)
	}
	if len(got.problems) > 0 || got.end.Files != int64(len(want)) || got.end.Bytes != 9*10 {
		t.Errorf("problems %q, end %+v", got.problems, got.end)
	}
}

// TestTrouble: what is wrong is a problem at its place, and the rest goes on.
func TestTrouble(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name     string
		spoil    func(fs *fakeFS)
		lines    []string
		problems []string
	}{
		{"a directory that is its own ancestor", func(fs *fakeFS) {
			fs.nodes[2].entries = append(fs.nodes[2].entries, fakeEntry{name: "up", id: 1})
		}, []string{"d /", "d /d", "f /d/f", "d /d/up", "f /g"}, []string{"/d/up: directory: directory: it is met a second time, as inode 1: corrupt"}},
		{"a directory with two names", func(fs *fakeFS) {
			fs.nodes[1].entries = append(fs.nodes[1].entries, fakeEntry{name: "e", id: 2})
		}, []string{"d /", "d /d", "f /d/f", "d /e", "f /g"}, []string{"/e: directory: directory: it is met a second time, as inode 2: corrupt"}},
		{"a name twice", func(fs *fakeFS) {
			fs.nodes[2].entries = append(fs.nodes[2].entries, fakeEntry{name: "f", id: 4})
		}, []string{"d /", "d /d", "f /d/f", "f /g"},
			[]string{"/d/f: directory entry: directory: name that occurs twice, left out for inode 4: corrupt"}},
		{"names that no file can have", func(fs *fakeFS) {
			for _, name := range []string{"..", ".", "", "a/b", "nul\x00"} {
				fs.nodes[2].entries = append(fs.nodes[2].entries, fakeEntry{name: name, id: 4})
			}
		}, []string{"d /", "d /d", "f /d/f", "f /g"}, []string{
			`/d: directory entry: directory entry: name "..": corrupt`, `/d: directory entry: directory entry: name ".": corrupt`,
			"/d: directory entry: directory entry: length of its name 0: corrupt", `/d: directory entry: directory entry: name "a/b": corrupt`,
			`/d: directory entry: directory entry: name "nul\x00": corrupt`,
		}},
		{"an inode that is not there", func(fs *fakeFS) {
			fs.nodes[2].entries = append(fs.nodes[2].entries, fakeEntry{name: "gone", id: 99})
		}, []string{"d /", "d /d", "f /d/f", "f /g"}, []string{"/d/gone: inode: no such inode"}},
		{"a directory that ends early", func(fs *fakeFS) { fs.nodes[2].dirErr = broken },
			[]string{"d /", "d /d", "f /d/f", "f /g"}, []string{"/d: directory: broken"}},
		{"an inode with doubts", func(fs *fakeFS) { fs.nodes[3].problems = []error{broken} },
			[]string{"d /", "d /d", "f /d/f", "f /g"}, []string{"/d/f: inode: broken"}},
		{"runs that end early", func(fs *fakeFS) { fs.nodes[3].runsErr = broken; fs.nodes[3].size = 30 },
			[]string{"d /", "d /d", "f /d/f", "f /g"}, []string{"/d/f: content: broken"}},
		{"a run past the end of the volume", func(fs *fakeFS) { fs.nodes[3].runs[0].Off = 1 << 40 },
			[]string{"d /", "d /d", "f /d/f", "f /g"},
			[]string{"/d/f: content: 10 bytes are missing: run: position past the end of the volume 1099511627776: truncated"}},
		{"an entry that calls a directory a file", func(fs *fakeFS) { fs.nodes[1].entries[0].kind = mapfile.Regular },
			[]string{"d /", "d /d", "f /g"}, []string{"/d: directory: directory entry: kind of what is a directory regular: corrupt"}},
		{"an entry that calls a file a directory", func(fs *fakeFS) { fs.nodes[1].entries[1].kind = mapfile.Directory },
			[]string{"d /", "d /d", "f /d/f", "f /g"}, nil},
		{"content that the file system encrypted", func(fs *fakeFS) { fs.nodes[3].crypt = true },
			[]string{"d /", "d /d", "f /d/f", "f /g"}, []string{"/d/f: content: bytes are encrypted and no key was given"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fs := tree("d/", "d/f", "g")
			tt.spoil(fs)
			var told []string
			c := Config{Problem: func(n *mapfile.Names, p *mapfile.Problem) { told = append(told, n.Problem(p)) }}
			got, s, _ := build(t, fs, c, fakeImage(1<<20))
			if !slices.Equal(got.lines, tt.lines) {
				t.Errorf("files %q\nwant  %q", got.lines, tt.lines)
			}
			if !slices.Equal(got.problems, tt.problems) {
				t.Errorf("problems %q\nwant     %q", got.problems, tt.problems)
			}
			if s.Problems != int64(len(tt.problems)) || len(told) != len(tt.problems) {
				t.Errorf("the summary has %d problems, told were %q", s.Problems, told)
			}
			for i, p := range told {
				if want := "fake.img: disk: " + tt.problems[i]; p != want {
					t.Errorf("told was %q, want %q", p, want)
				}
			}
		})
	}
}

// TestDeep: a tree that is deeper than any path may be is cut.
func TestDeep(t *testing.T) {
	fs := &fakeFS{nodes: map[uint64]*fakeNode{}}
	for i := range uint64(maxDepth + 10) {
		fs.nodes[i+1] = &fakeNode{kind: mapfile.Directory, entries: []fakeEntry{{name: "d", id: i + 2}}}
	}
	got, _, _ := build(t, fs, Config{}, fakeImage(1<<20))
	if len(got.lines) != maxDepth+1 || len(got.problems) != 1 || !strings.HasSuffix(got.problems[0], "depth 4097: unsupported") {
		t.Errorf("%d records, problems %.200q", len(got.lines), got.problems)
	}
	for i := range fs.nodes {
		if n := fs.nodes[i]; len(n.entries) > 0 {
			n.entries[0].name = strings.Repeat("x", 255)
		}
	}
	got, _, _ = build(t, fs, Config{}, fakeImage(1<<20))
	if len(got.problems) != 1 || !strings.Contains(got.problems[0], "path: length 65") {
		t.Errorf("problems %.200q", got.problems)
	}
}

// TestSelection: patterns select, and only directories that lead to something are read.
func TestSelection(t *testing.T) {
	paths := []string{"etc/", "etc/passwd", "etc/ssh/", "etc/ssh/config", "home/", "home/u/", "home/u/a.conf", "usr/", "usr/b.conf", "empty/"}
	all := []string{"/", "/empty", "/etc", "/etc/passwd", "/etc/ssh", "/etc/ssh/config", "/home", "/home/u", "/home/u/a.conf", "/usr", "/usr/b.conf"}
	for _, tt := range []struct {
		patterns string
		want     []string
		read     int
		missed   int
	}{
		{"/etc/passwd", []string{"/", "/etc", "/etc/passwd"}, 2, 0},
		{"disk:/etc/passwd", []string{"/", "/etc", "/etc/passwd"}, 2, 0},
		{"p9:/etc/passwd", nil, 0, 1},
		{"/etc", []string{"/", "/etc", "/etc/passwd", "/etc/ssh", "/etc/ssh/config"}, 3, 0},
		{"/etc/**", []string{"/", "/etc", "/etc/passwd", "/etc/ssh", "/etc/ssh/config"}, 3, 0},
		{"/etc/*", []string{"/", "/etc", "/etc/passwd", "/etc/ssh", "/etc/ssh/config"}, 3, 0},
		{"/**/*.conf", []string{"/", "/home", "/home/u", "/home/u/a.conf", "/usr", "/usr/b.conf"}, 7, 0},
		{"/*/passwd /usr", []string{"/", "/etc", "/etc/passwd", "/usr", "/usr/b.conf"}, 5, 0},
		{"/nothing", nil, 1, 1},
		{"/nothing /empty", []string{"/", "/empty"}, 2, 1},
		{"/", all, 7, 0},
		{"/**", all, 7, 0},
		{"", all, 7, 0},
	} {
		fs := tree(paths...)
		p, err := mapfile.ParsePatterns(strings.Fields(tt.patterns))
		if err != nil {
			t.Fatal(err)
		}
		got, _, _ := build(t, fs, Config{Patterns: p}, fakeImage(1<<20))
		var files []string
		for _, l := range got.lines {
			files = append(files, l[2:])
		}
		if !slices.Equal(files, tt.want) {
			t.Errorf("%s: %q\nwant %q", tt.patterns, files, tt.want)
		}
		if len(fs.read) != tt.read {
			t.Errorf("%s: %d directories were read, want %d", tt.patterns, len(fs.read), tt.read)
		}
		if len(got.problems) != tt.missed {
			t.Errorf("%s: problems %q", tt.patterns, got.problems)
		}
	}
}

// big is a file system with many names, long lists of extents, and troubles in between.
func big() *fakeFS {
	var paths []string
	for i := range 40 {
		paths = append(paths, fmt.Sprintf("d%02d/", i))
		for j := range 60 {
			paths = append(paths, fmt.Sprintf("d%02d/f%d", i, j*7919%1000))
		}
	}
	fs := tree(paths...)
	for id, n := range fs.nodes {
		switch {
		case n.kind == mapfile.Directory:
		case id%200 == 3: // many runs, each of several extents
			n.size, n.runs = 0, nil
			for k := range int64(9000 + id) {
				n.runs = append(n.runs, Run{At: n.size, Len: 16, Kind: mapfile.Data, Off: (k * 7919 * 16) % (1 << 19)})
				n.size += 16
			}
		case id%97 == 0:
			n.runsErr = errors.New("broken")
		case id%50 == 0:
			n.streams = []Stream{{Name: "one", Size: 5}, {Name: "two", Size: 0}}
		}
	}
	return fs
}

// TestDeterministic: the map is the same whatever the number of workers, and whole.
func TestDeterministic(t *testing.T) {
	fs := big()
	img := fakeImage(1 << 20)
	img.Disk.(*fakeDisk).step = 1 << 12
	var first []byte
	for _, workers := range []int{1, 2, 7} {
		got, s, stream := build(t, fs, Config{Workers: workers}, img)
		if first == nil {
			first = stream
			n := 0
			for _, f := range got.files {
				n = max(n, len(f.Extents))
			}
			if n < 9000 || s.Files < 2400 || s.Problems == 0 {
				t.Fatalf("%+v, at most %d extents: not what was to be tested", s, n)
			}
		} else if !bytes.Equal(stream, first) {
			t.Errorf("%d workers make another map than 1", workers)
		}
	}
}

// TestVolumes: what lies on one volume is not taken for what lies on another, though workers and batches serve both.
func TestVolumes(t *testing.T) {
	fs := big()
	a, b := fakeImage(1<<20), fakeImage(1<<20)
	b.Number, b.Name, b.Files[0].ID, b.Files[0].Image = 1, "second", 1, 1
	b.Disk = formats.Numbered(b.Disk, 1)
	var buf bytes.Buffer
	c := Config{Drivers: []Driver{fs.driver()}, Workers: 3}
	if _, err := Build(t.Context(), []*formats.Image{a, b}, c, mapfile.NewWriter(&buf)); err != nil {
		t.Fatal(err)
	}
	for r := mapfile.NewReader(&buf); ; {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := record.(*mapfile.File); ok {
			for _, x := range f.Extents {
				if x.Kind == mapfile.Data && (x.File != f.Volume || x.Image != mapfile.None) {
					t.Fatalf("%s of volume %d: %+v", f.Path, f.Volume, x)
				}
			}
		}
	}
}

// TestReaderLeaves: when nobody reads the map any more, Build ends with that error.
func TestReaderLeaves(t *testing.T) {
	gone := errors.New("gone")
	r, w := io.Pipe()
	go func() {
		io.CopyN(io.Discard, r, 300<<10)
		r.CloseWithError(gone)
	}()
	c := Config{Drivers: []Driver{big().driver()}}
	if _, err := Build(t.Context(), []*formats.Image{fakeImage(1 << 20)}, c, mapfile.NewWriter(w)); !errors.Is(err, gone) {
		t.Errorf("got %v", err)
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := Config{Drivers: []Driver{big().driver()}, Progress: func(int64) { cancel() }}
	var buf bytes.Buffer
	if _, err := Build(ctx, []*formats.Image{fakeImage(1 << 20)}, c, mapfile.NewWriter(&buf)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if bytes.Contains(buf.Bytes(), []byte(`"type":"end"`)) {
		t.Error("the stream has an end")
	}
}

// TestManyNames: a directory is not believed to hold more names than its volume has room for.
func TestManyNames(t *testing.T) {
	fs := tree("d/")
	for range 3000 {
		fs.nodes[2].entries = append(fs.nodes[2].entries, fakeEntry{name: "the same block again and again", id: 2})
	}
	got, _, _ := build(t, fs, Config{}, fakeImage(64<<10))
	if p := got.problems; len(p) == 0 || !strings.Contains(p[0], "number of entries") {
		t.Errorf("problems %.300q", p)
	}
}
