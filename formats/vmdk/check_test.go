package vmdk_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/all"
	"vmkit/formats/formatstest"
)

// check gives what is found in an image.
func check(t *testing.T, path string) (found []string) {
	t.Helper()
	src := &formats.OSSource{}
	defer src.Close()
	_, err := (&formats.Opener{Formats: all.Formats, Source: src}).Check(path, func(f formats.Finding) {
		found = append(found, fmt.Sprintf("%s at %d: %s, not %s", f.What, f.Off, f.Found, f.Expected))
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestCheck(t *testing.T) {
	raw := content(t, t.TempDir(), diskSize)
	sound := map[string]string{"stream as VMware's": in(t, "stream.vmdk")}
	for _, sub := range []string{"monolithicSparse", "streamOptimized", "monolithicFlat", "twoGbMaxExtentSparse"} {
		sound[sub] = image(t, raw, sub)
	}
	write(t, sound["stream as VMware's"], vmwareStream(read(t, raw), 128))
	dir := t.TempDir()
	write(t, filepath.Join(dir, "cowd"), cowd(read(t, raw)[:9<<20], 64<<10))
	write(t, filepath.Join(dir, "se"), seSparse(read(t, raw)[:9<<20], none, none))
	sound["COWD and seSparse"] = describe(t, filepath.Join(dir, "d.vmdk"), "custom", "", sizeLine(9<<20, `VMFSSPARSE "cowd"`), sizeLine(9<<20, `SESPARSE "se"`))
	for name, path := range sound {
		if found := check(t, path); len(found) > 0 {
			t.Errorf("%s: %q", name, found)
		}
	}

	good := read(t, sound["monolithicSparse"])
	gd, rgd := int(le32(good[56:]))*512, int(le32(good[48:]))*512
	gt, rgt := int(le32(good[gd:]))*512, int(le32(good[rgd:]))*512
	for _, c := range []struct {
		name   string
		damage func(b []byte)
		want   string
	}{
		{"tables differ", func(b []byte) { put(b[rgt+4:], uint32(9)) }, "redundant grain table at"},
		{"two grains in one place", func(b []byte) { copy(b[gt+4:gt+8], b[gt:]); copy(b[rgt+4:rgt+8], b[gt:]) }, "grain 1 lies where something else does"},
		{"a grain over the directory", func(b []byte) { put(b[gt:], uint32(gd/512)); put(b[rgt:], uint32(gd/512)) }, "lies where something else does"},
		{"a grain outside", func(b []byte) { put(b[gt:], uint32(1<<30)); put(b[rgt:], uint32(1<<30)) }, "inside a file of"},
		{"directory", func(b []byte) { clear(b[gd : gd+4]) }, "1 of 3 entries are damaged"},
		{"two tables in one place", func(b []byte) { copy(b[gd+4:gd+8], b[gd:]) }, "grain table 1 lies where something else does"},
	} {
		b := bytes.Clone(good)
		c.damage(b)
		path := in(t, "damaged.vmdk")
		write(t, path, b)
		if found := check(t, path); !strings.Contains(strings.Join(found, "\n"), c.want) {
			t.Errorf("%s: %q", c.name, found)
		}
	}
	// Every grain's marker names the first one's sector.
	b := vmwareStream(read(t, raw), 128)
	for at := 128 * 512; le32(b[at+8:]) > 0; at = (at + 12 + int(le32(b[at+8:])) + 511) / 512 * 512 {
		put(b[at:], uint64(0))
	}
	path := in(t, "markers.vmdk")
	write(t, path, b)
	if found := check(t, path); len(found) != 10 || !strings.Contains(found[0], "sector 0, not sector 128") || !strings.Contains(found[9], "more of the kind") {
		t.Errorf("markers: %q", found)
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	formatstest.Exec(t, "qemu-img", "check", "-q", sound["monolithicSparse"])
	if after, err := os.Stat(path); err != nil || after.ModTime() != before.ModTime() {
		t.Errorf("it was written to: %v", err)
	}
}
