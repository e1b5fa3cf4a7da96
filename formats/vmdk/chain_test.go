package vmdk_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/all"
	"vmkit/formats/formatstest"
	"vmkit/formats/ondisk"
)

// chain makes a base and two snapshots with qemu-img, of growing sizes, in one folder.
func chain(t testing.TB) (dir, top string) {
	t.Helper()
	dir = t.TempDir()
	raw := content(t, dir, 4<<20)
	at := func(n string) string { return filepath.Join(dir, n) }
	formatstest.Exec(t, "qemu-img", "convert", "-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", raw, at("web.vmdk"))
	for _, c := range []struct{ name, below, size, write string }{
		{"web-000001.vmdk", "web.vmdk", "5M", "write -P 1 100k 200k"},
		{"web-000002.vmdk", "web-000001.vmdk", "6M", "write -P 2 250k 1M"},
	} {
		formatstest.Exec(t, "qemu-img", "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", at(c.below), at(c.name), c.size)
		formatstest.Exec(t, "qemu-io", "-f", "vmdk", "-c", c.write, at(c.name))
		// qemu-img stores the path that it was given; VMware stores plain names.
		editAll(t, at(c.name), fmt.Sprintf("parentFileNameHint=%q", at(c.below)), fmt.Sprintf("parentFileNameHint=%q", c.below))
	}
	return dir, at("web-000002.vmdk")
}

// editAll replaces a text in an embedded descriptor, keeping the file's layout.
func editAll(t testing.TB, path, old, new string) {
	t.Helper()
	if len(new) < len(old) {
		new += "\n#" + strings.Repeat(" ", len(old)-len(new))
		new = new[:len(old)]
	}
	edit(t, path, old, new)
}

func TestChain(t *testing.T) {
	_, top := chain(t)
	truth, size := formatstest.Convert(t, top)
	formatstest.Run(t, formatstest.Case{Open: opener(top), Truth: truth, Size: size})
	img := opener(top)(t)
	if len(img.Files) != 4 || len(img.Problems)+len(img.Notes) > 0 {
		t.Errorf("%d files, notes %q, problems %v", len(img.Files), img.Notes, img.Problems)
	}
}

func TestChangedParent(t *testing.T) {
	dir, top := chain(t)
	formatstest.Exec(t, "qemu-io", "-f", "vmdk", "-c", "write -P 9 3M 64k", filepath.Join(dir, "web-000001.vmdk"))
	img := opener(top)(t)
	if len(img.Problems) != 1 || !strings.Contains(img.Problems[0].Error(), "web-000001.vmdk was changed") {
		t.Errorf("problems %v", img.Problems)
	}
	if _, err := img.ReadAt(make([]byte, 4096), 3<<20); err != nil {
		t.Error(err)
	}
}

func TestMissingParent(t *testing.T) {
	dir, top := chain(t)
	if err := os.Remove(filepath.Join(dir, "web.vmdk")); err != nil {
		t.Fatal(err)
	}
	_, err := formatstest.TryOpen(t, all.Formats, top, nil)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir+"/web.vmdk") || strings.Contains(err.Error(), "\n") {
		t.Fatalf("error %v", err)
	}
	img := formatstest.Open(t, all.Formats, top, func(o *formats.Opener) { o.AllowMissing = true })
	if len(img.Problems) != 1 || !strings.Contains(img.Problems[0].Error(), "web.vmdk") {
		t.Errorf("problems %v", img.Problems)
	}
	for _, c := range []struct {
		off  int64
		kind formats.Kind
	}{{0, formats.Missing}, {300 << 10, formats.Data}, {2 << 20, formats.Missing}, {4<<20 + 512, formats.Missing}} {
		if e, err := img.ExtentAt(c.off, 512); e.Kind != c.kind || err != nil {
			t.Errorf("at %d: %v, %v; want %v", c.off, e.Kind, err, c.kind)
		}
	}
	if _, err := img.ReadAt(make([]byte, 10), 0); !errors.Is(err, ondisk.ErrTruncated) {
		t.Errorf("read: %v", err)
	}
}

func TestMissingExtent(t *testing.T) {
	dir := t.TempDir()
	raw := read(t, content(t, dir, 4<<20))
	write(t, filepath.Join(dir, "d-f001.vmdk"), raw[:2<<20])
	top := describe(t, filepath.Join(dir, "d.vmdk"), "twoGbMaxExtentFlat", "", sizeLine(2<<20, `FLAT "d-f001.vmdk" 0`), sizeLine(2<<20, `FLAT "d-f002.vmdk" 0`))
	_, err := formatstest.TryOpen(t, all.Formats, top, nil)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), dir+"/d-f002.vmdk") {
		t.Fatalf("error %v", err)
	}
	formatstest.Run(t, formatstest.Case{
		Open: func(t testing.TB) *formats.Image {
			return formatstest.Open(t, all.Formats, top, func(o *formats.Opener) { o.AllowMissing = true })
		},
		Truth: bytes.NewReader(raw), Size: int64(len(raw)),
		Gone: func(off int64) formats.Kind {
			if off >= 2<<20 {
				return formats.Missing
			}
			return 0
		},
	})
	// A flat extent that is too short is a gap as well, to the byte.
	write(t, filepath.Join(dir, "d-f002.vmdk"), raw[2<<20:3<<20+700])
	formatstest.Run(t, formatstest.Case{
		Open: opener(top), Truth: bytes.NewReader(raw), Size: int64(len(raw)),
		Gone: func(off int64) formats.Kind {
			if off >= 3<<20+700 {
				return formats.Missing
			}
			return 0
		},
	})
	if img := opener(top)(t); len(img.Problems) != 1 || !errors.Is(img.Problems[0], ondisk.ErrTruncated) {
		t.Errorf("problems %v", img.Problems)
	}
}

// TestMoved opens disks whose files are not where the descriptor says, but obviously beside it.
func TestMoved(t *testing.T) {
	raw := read(t, content(t, t.TempDir(), 2<<20))
	for _, c := range []struct{ descriptor, listed, found string }{
		{"new.vmdk", "old-flat.vmdk", "new-flat.vmdk"},
		{"new.vmdk", "/vmfs/volumes/5f0b-2c91/old/old-flat.vmdk", "old-flat.vmdk"},
		{"new.vmdk", "/vmfs/volumes/5f0b-2c91/old/old-flat.vmdk", "new-flat.vmdk"},
		{"new.vmdk", `C:\VMs\old-flat.vmdk`, "old-flat.vmdk"},
		{"disk.vmdk", "Disk-FLAT.VMDK", "disk-flat.vmdk"},
		{"new-000002.vmdk", "old-000001-f001.vmdk", "new-000002-f001.vmdk"},
		{"caf\u00e9.vmdk", "caf\xe9-flat.vmdk", "caf\u00e9-flat.vmdk"},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, c.found), raw)
		top := describe(t, filepath.Join(dir, c.descriptor), "monolithicFlat", "encoding=\"windows-1252\"\n", sizeLine(len(raw), `FLAT "`+c.listed+`" 0`))
		img, err := formatstest.TryOpen(t, all.Formats, top, nil)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		if len(img.Problems) > 0 || len(img.Notes) != 1 && !strings.Contains(c.listed, "\xe9") || img.Files[1].Path != filepath.Join(dir, c.found) {
			t.Errorf("%+v: notes %q, problems %v, files %v", c, img.Notes, img.Problems, img.Files[1].Path)
		}
	}
	refuse := func(name, listed string, want string, files map[string][]byte) {
		t.Helper()
		dir := t.TempDir()
		for n, b := range files {
			write(t, filepath.Join(dir, n), b)
		}
		top := describe(t, filepath.Join(dir, name), "monolithicFlat", "", sizeLine(len(raw), `FLAT "`+listed+`" 0`))
		if _, err := formatstest.TryOpen(t, all.Formats, top, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s, listed %q: %v", name, listed, err)
		}
	}
	refuse("new.vmdk", "old-flat.vmdk", "not there", map[string][]byte{"new-flat.vmdk": raw[1:]})
	refuse("new.vmdk", "/x/old-flat.vmdk", "several", map[string][]byte{"new-flat.vmdk": raw, "old-flat.vmdk": raw})
	refuse("new.vmdk", "../old-flat.vmdk", "outside", nil)
	refuse("new.vmdk", "new.vmdk", "itself", nil)
}

func TestMovedParent(t *testing.T) {
	dir, top := chain(t)
	// The whole folder was renamed, and the names in it.
	for _, n := range []string{"web.vmdk", "web-000001.vmdk", "web-000002.vmdk", "web-s001.vmdk"} {
		if err := os.Rename(filepath.Join(dir, n), filepath.Join(dir, strings.Replace(n, "web", "bew", 1))); err != nil {
			t.Fatal(err)
		}
	}
	top = filepath.Join(dir, "bew-000002.vmdk")
	img := opener(top)(t)
	if len(img.Notes) != 3 || len(img.Problems) > 0 || len(img.Files) != 4 {
		t.Errorf("notes %q, problems %v, %d files", img.Notes, img.Problems, len(img.Files))
	}
	// A file of the right name that is another disk is not taken.
	edit(t, filepath.Join(dir, "bew.vmdk"), "\nCID=", "\nCID=1")
	if _, err := formatstest.TryOpen(t, all.Formats, top, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestLoop(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a-flat.vmdk"), make([]byte, 1<<20))
	for _, c := range [][2]string{{"a.vmdk", "b.vmdk"}, {"b.vmdk", "a.vmdk"}, {"self.vmdk", "self.vmdk"}} {
		describe(t, filepath.Join(dir, c[0]), "vmfs", "parentFileNameHint=\""+c[1]+"\"\n", sizeLine(1<<20, `VMFS "a-flat.vmdk"`))
	}
	for _, n := range []string{"a.vmdk", "self.vmdk"} {
		if _, err := formatstest.TryOpen(t, all.Formats, filepath.Join(dir, n), nil); !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("%s: %v", n, err)
		}
	}
}
