package ext4_test

import (
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmkit/fsmap"
	"vmkit/fsmap/ext4"
	"vmkit/fsmap/fsmaptest"
	"vmkit/fsmap/mapfile"
)

// walk opens an image and walks it.
func walk(t testing.TB, path string, o fsmap.Options) *fsmaptest.Tree {
	t.Helper()
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	st, err := r.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return fsmaptest.Walk(t, fsmaptest.Open(t, ext4.Driver, r, st.Size(), o), r, st.Size())
}

// openError opens an image and gives the error only.
func openError(t testing.TB, path string, o fsmap.Options) error {
	t.Helper()
	r, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		t.Fatal(err)
	}
	_, err = ext4.Driver.Open(r, st.Size(), o)
	return err
}

// The columns of a line of fixtures/ext4-manifest.py.
const (
	colPath = iota
	colKind
	colMode
	colUID
	colGID
	colLinks
	colSize
	colMTime
	colATime
	colCTime
	colBTime
	colSHA256
	colTarget
	colProject
	colFlags
	colXattrs
	colRuns
	columns
)

// compare compares a tree with what the kernel said of it, field by field, but for the columns left out.
func compare(t *testing.T, tree *fsmaptest.Tree, lines []string, without ...int) {
	t.Helper()
	expected := map[string]bool{}
	for _, line := range lines {
		want := strings.Split(line, "\t")
		if len(want) != columns {
			t.Fatalf("%d columns in %q", len(want), line)
		}
		path, err := strconv.Unquote(`"` + want[colPath] + `"`)
		if err != nil {
			t.Fatalf("%q: %v", want[colPath], err)
		}
		expected[path] = true
		f := tree.Files[path]
		if f == nil {
			t.Errorf("%s: missing", want[colPath])
			continue
		}
		for _, c := range without {
			want[c] = "-"
		}
		for c, got := range row(f) {
			if want[c] != got && want[c] != "-" && !(want[c] == "0" && got == "-") {
				t.Errorf("%s: column %d is %s, should be %s", want[colPath], c, got, want[c])
			}
		}
		if flags, err := strconv.ParseUint(want[colFlags], 0, 64); err == nil {
			for name, bit := range attrBits {
				if flags&bit != 0 != slices.Contains(f.Attrs, name) {
					t.Errorf("%s: attributes %v, flags %s", want[colPath], f.Attrs, want[colFlags])
				}
			}
		}
		if want[colXattrs] == "-" && len(f.Xattrs) > 0 {
			t.Errorf("%s: xattrs %v, should have none", want[colPath], f.Xattrs)
		}
	}
	for path, f := range tree.Files {
		if !expected[path] {
			t.Errorf("%q: should not be there", path)
		}
		for _, err := range f.Errs {
			t.Errorf("%q: %v", path, err)
		}
	}
}

// attrBits are the flags that a Node's Attrs stand for.
var attrBits = map[string]uint64{"secure-deletion": 0x1, "undelete": 0x2, "compressed": 0x4, "sync": 0x8, "immutable": 0x10, "append-only": 0x20,
	"no-dump": 0x40, "no-atime": 0x80, "encrypted": 0x800, "journaled-data": 0x4000, "no-tail": 0x8000, "dirsync": 0x10000,
	"top-of-hierarchies": 0x20000, "verity": 0x100000, "dax": 0x2000000, "project-inherit": 0x20000000, "casefold": 0x40000000}

// row renders a file as the script does.
func row(f *fsmaptest.File) map[int]string {
	m := map[int]string{
		colKind: string(rune(f.Kind)), colMode: fmt.Sprintf("%04o", f.Mode), colUID: fmt.Sprint(f.UID), colGID: fmt.Sprint(f.GID),
		colLinks: fmt.Sprint(f.Links), colSize: fmt.Sprint(f.Size),
		colMTime: stamp(f.MTime), colATime: stamp(f.ATime), colCTime: stamp(f.CTime), colBTime: stamp(f.BTime),
		colProject: fmt.Sprint(f.Project),
	}
	var x []string
	for _, a := range f.Xattrs {
		x = append(x, quoted([]byte(a.Name))+"="+hex.EncodeToString(a.Value))
	}
	slices.Sort(x)
	m[colXattrs] = join(x)
	switch f.Kind {
	case mapfile.Regular:
		m[colSHA256] = f.SHA256
		var pieces []string
		for _, r := range f.Runs {
			switch r.Kind {
			case mapfile.Data:
				pieces = append(pieces, fmt.Sprintf("%d+%d@%d", r.At, r.Len, r.Off))
			case mapfile.Unwritten:
				pieces = append(pieces, fmt.Sprintf("%d+%d@%du", r.At, r.Len, r.Off))
			case mapfile.Hole:
			default:
				pieces = append(pieces, fmt.Sprintf("%d+%d %s", r.At, r.Len, r.Kind))
			}
		}
		m[colRuns] = join(pieces)
	case mapfile.Symlink:
		m[colTarget] = quoted(f.Target)
	case mapfile.Char, mapfile.Block:
		m[colTarget] = fmt.Sprintf("%d:%d", f.Major, f.Minor)
	}
	return m
}

func stamp(t mapfile.Time) string {
	if !t.Known {
		return "-"
	}
	return fmt.Sprintf("%d.%09d", t.Sec, t.Nsec)
}

func join(list []string) string {
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, " ")
}

func quoted(b []byte) string {
	var s strings.Builder
	for _, c := range b {
		if c >= 0x20 && c < 0x7F && c != '"' && c != '\\' {
			s.WriteByte(c)
		} else {
			fmt.Fprintf(&s, `\x%02x`, c)
		}
	}
	return s.String()
}
