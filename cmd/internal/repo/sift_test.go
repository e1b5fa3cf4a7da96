package repo_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"vmkit/cmd/internal/repo"
	"vmkit/fsmap/mapfile"
)

// siftMap gives a map of two volumes with files of odd names, many extents and problems.
func siftMap(t *testing.T) []byte {
	t.Helper()
	var out bytes.Buffer
	w := mapfile.NewWriter(&out)
	w.Map(&mapfile.Map{Version: mapfile.Version, Tool: "test"})
	w.Image(&mapfile.Image{Name: "web1", Format: "raw", Size: 1 << 30, State: "clean"})
	for id, name := range []string{"disk", "p1", "p2"} {
		w.Volume(&mapfile.Volume{ID: id, Name: name, Kind: "partition", Start: 0, Size: 1 << 30, In: mapfile.None})
	}
	for volume := 1; volume <= 2; volume++ {
		for i, name := range []string{"/", "/etc", "/etc/a", "/etc/\"quoted\"", "/etc/back\\slash", "/etc/latin-\xe9", "/etc/new\nline", "/etc/ä", "/var", "/var/many", "/var/x"} {
			f := &mapfile.File{Volume: volume, Path: name, Inode: uint64(i + 2), Kind: mapfile.Regular, Mode: 0o644}
			if name == "/" || name == "/etc" || name == "/var" {
				f.Kind = mapfile.Directory
			}
			n := int64(1)
			if name == "/var/many" {
				n = 3000
			}
			for k := range n {
				f.Extents = append(f.Extents, mapfile.Extent{At: k * 10, Len: 10, Kind: mapfile.Data, Disk: 1000 * k, Image: mapfile.None, File: mapfile.None})
			}
			if f.Size = n * 10; f.Kind == mapfile.Directory {
				f.Size, f.Extents = 0, nil
			}
			w.File(f)
			w.Problem(&mapfile.Problem{Image: mapfile.None, Volume: volume, Path: name, What: "content", Error: "test"})
		}
	}
	w.Problem(&mapfile.Problem{Image: 0, Volume: mapfile.None, What: "image", Error: "of all"})
	end := w.Count()
	if err := errors.Join(w.End(&end), w.Flush()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// chosen lists the files and problems of a map that patterns select, by what the reader makes of the records.
func chosen(t *testing.T, in io.Reader, p mapfile.Patterns) (list []string) {
	t.Helper()
	var names mapfile.Names
	for r := mapfile.NewReader(in); ; {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		names.See(record)
		inside := func(volume int, path string) bool {
			on, ok := p.On(names.Volume(volume))
			return p.All() || ok && on.Match(path) == mapfile.Inside
		}
		switch x := record.(type) {
		case *mapfile.File:
			if inside(x.Volume, x.Path) {
				list = append(list, fmt.Sprintf("%d %q %d", x.Volume, x.Path, len(x.Extents)))
			}
		case *mapfile.Extents:
			if inside(x.Volume, x.Path) {
				list = append(list, fmt.Sprintf("%d %q more %d", x.Volume, x.Path, len(x.Extents)))
			}
		case *mapfile.Problem:
			if x.Path == "" || inside(x.Volume, x.Path) {
				list = append(list, fmt.Sprintf("problem %d %q", x.Volume, x.Path))
			}
		}
	}
}

func TestSift(t *testing.T) {
	text := siftMap(t)
	for _, patterns := range [][]string{
		{}, {"/etc/a"}, {"p2:/etc"}, {"/etc/latin-*"}, {"/etc/*"}, {"p1:/var/many", "/etc/new?line"}, {"/**"}, {"/"}, {"/nothing"}, {"p[12]:/etc/*slash"}, {`/etc/"quoted"`},
	} {
		p, err := mapfile.ParsePatterns(patterns)
		if err != nil {
			t.Fatal(err)
		}
		sifted, err := io.ReadAll(repo.Sift(bytes.NewReader(text), p))
		if err != nil {
			t.Fatal(err)
		}
		want := chosen(t, bytes.NewReader(text), p)
		if got := chosen(t, bytes.NewReader(sifted), p); !slices.Equal(got, want) {
			t.Errorf("%q: %q\nnot %q", patterns, got, want)
		}
		if len(patterns) == 1 && patterns[0] == "/etc/a" && len(sifted) > 4000 {
			t.Errorf("%q: %d bytes are left of %d", patterns, len(sifted), len(text))
		}
	}
	p, _ := mapfile.ParsePatterns([]string{"/etc/a"})
	for _, cut := range []int{len(text) / 2, len(text) - 3} { // a map that is cut is cut still
		if _, err := mapfile.NewReader(repo.Sift(bytes.NewReader(text[:cut]), p)).Next(); err != nil {
			t.Fatal(err)
		}
		r := mapfile.NewReader(repo.Sift(bytes.NewReader(text[:cut]), p))
		var err error
		for err == nil {
			_, err = r.Next()
		}
		if errors.Is(err, io.EOF) {
			t.Errorf("cut at %d: it ends like a whole one", cut)
		}
	}
	if b, err := io.ReadAll(repo.Sift(strings.NewReader(strings.Repeat("x", mapfile.MaxLine+10)+"\n"), p)); err != nil || len(b) < mapfile.MaxLine {
		t.Errorf("a line that is too long: %d bytes, %v", len(b), err)
	}
}
