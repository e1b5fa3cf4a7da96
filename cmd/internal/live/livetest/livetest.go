// Package livetest holds maps that a kernel's word made against those that images gave, for the tests of whoever makes
// the former.
package livetest

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"vmkit/fsmap/mapfile"
)

// Read gives the files of a map, with all of their extents, by volume and path: "p1/etc/passwd"; and its problems.
func Read(t testing.TB, stream []byte) (files map[string]*mapfile.File, problems []string) {
	t.Helper()
	files = map[string]*mapfile.File{}
	var names mapfile.Names
	var last *mapfile.File
	for r := mapfile.NewReader(bytes.NewReader(stream)); ; {
		record, err := r.Next()
		names.See(record)
		switch x := record.(type) {
		case *mapfile.File:
			f := *x
			f.Extents, f.More = slices.Clone(x.Extents), false
			last = &f
			files[names.Volume(x.Volume)+x.Path] = last
		case *mapfile.Extents:
			last.Extents = append(last.Extents, x.Extents...)
		case *mapfile.Problem:
			problems = append(problems, names.Problem(x))
		}
		if errors.Is(err, io.EOF) {
			return files, problems
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// Compare holds the files of a map that a kernel's word made against those of one that the images gave. Left aside is
// where the kernel tells less, or shows the same bytes elsewhere: some of btrfs's flags, the times of a folder that stands
// for a subvolume, bytes in inodes, and what is in a journal when moved(path) says that the file's bytes are there.
func Compare(t testing.TB, got, want map[string]*mapfile.File, moved func(path string) bool) {
	t.Helper()
	for path := range got {
		if want[path] == nil {
			t.Errorf("%q is in the map", path)
		}
	}
	for path, w := range want {
		g := got[path]
		if g == nil {
			t.Errorf("%q is not in the map", path)
			continue
		}
		g.SHA256 = ""
		g.Attrs, w.Attrs = slices.DeleteFunc(g.Attrs, loose), slices.DeleteFunc(w.Attrs, loose)
		if w.Inode&(1<<40-1) == 2 && w.Inode > 2 {
			g.MTime, g.ATime, g.CTime = w.MTime, w.ATime, w.CTime
		}
		if moved != nil && moved(path) || len(g.Extents) == 1 && g.Extents[0].Kind == mapfile.Inline {
			g.Extents, w.Extents = nil, nil
		}
		byName := cmpopts.SortSlices(func(a, b mapfile.Xattr) bool { return a.Name < b.Name })
		if d := cmp.Diff(w, g, cmpopts.EquateEmpty(), byName); d != "" {
			t.Errorf("%q (- from outside, + from inside):\n%s", path, d)
		}
	}
}

func loose(attr string) bool {
	return attr == "prealloc" || attr == "nocompress" || attr == "compressed"
}

// Closure gives the SHA-256 of each regular file, by volume and path, as a program finds it that knows maps only: script is
// fixtures/closure.py. dir is the folder that host files are looked up in.
func Closure(t testing.TB, script, dir string, stream []byte) map[string]string {
	t.Helper()
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("python3 is not installed")
	}
	c := exec.Command("python3", script)
	c.Dir, c.Stdin = dir, bytes.NewReader(stream)
	var said strings.Builder
	c.Stderr = &said
	out, err := c.Output()
	if err != nil {
		t.Fatalf("closure.py: %v: %s", err, said.String())
	}
	sums := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if sum, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  "); ok && len(sum) == 64 {
			sums[path] = sum
		}
	}
	return sums
}
