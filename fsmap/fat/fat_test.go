package fat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"vmkit/fixtures"
	"vmkit/fsmap"
	"vmkit/fsmap/fsmaptest"
	"vmkit/fsmap/internal/dos"
	"vmkit/fsmap/mapfile"
)

func TestLayout(t *testing.T) {
	fsmaptest.Layout(t, bootSector{}, bootBase, map[string]int{"OEM": 3, "SectorSize": 11, "SectorsPerCluster": 13, "Reserved": 14, "FATs": 16,
		"RootEntries": 17, "Sectors16": 19, "Media": 21, "FATSectors16": 22, "Heads": 26, "Hidden": 28, "Sectors32": 32})
	fsmaptest.Layout(t, extended16{}, 62-bootBase, map[string]int{"Drive": 0, "State": 1, "Signature": 2, "Serial": 3, "Label": 7, "Type": 18})
	fsmaptest.Layout(t, extended32{}, 90-bootBase, map[string]int{"FATSectors": 0, "Flags": 4, "Version": 6, "RootCluster": 8, "InfoSector": 12, "Backup": 14, "extended16": 28})
}

// image gives a stored image's bytes.
func image(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(fixtures.Image(t, "fat-mtools", name+".img.zst"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func walk(t testing.TB, b []byte) *fsmaptest.Tree {
	t.Helper()
	r := bytes.NewReader(b)
	fs := fsmaptest.Open(t, Driver, r, int64(len(b)), fsmap.Options{})
	return fsmaptest.Walk(t, fs, r, int64(len(b)))
}

// TestImages compares stored images with the tree that was copied into them, and with where TSK sees it.
func TestImages(t *testing.T) {
	for _, name := range []string{"fat12", "fat16", "fat32"} {
		t.Run(name, func(t *testing.T) {
			tree := walk(t, image(t, name))
			tree.Compare(t, fixtures.Expect(t, "fat-mtools", "tree.tsv"), 1)
			tree.Concurrent(t)
			if errs := tree.Errs(); len(errs) > 0 {
				t.Error(errs)
			}
			want := map[string][]string{}
			for _, line := range fixtures.Expect(t, "fat-mtools", name+".extents.tsv") {
				path, extent, _ := strings.Cut(line, "\t")
				want[path] = append(want[path], extent)
			}
			if len(want) != 2 {
				t.Fatalf("extents of %d files", len(want))
			}
			for path, extents := range want {
				var got []string
				for _, x := range tree.Files[path].Runs {
					got = append(got, fmt.Sprintf("%d\t%d", x.Off, (x.Len+511)&^511))
				}
				if !slices.Equal(got, extents) {
					t.Errorf("%s lies at %q, should at %q", path, got, extents)
				}
			}
			info := tree.FS.Info()
			if info.UUID != "1234-ABCD" || info.Label != "LABEL 850" || info.Extra["version"] != strings.ToUpper(name) || len(info.Notes) > 0 || len(info.Problems) > 0 {
				t.Errorf("info: %+v", info)
			}
			if f := tree.Files["UPPER.TXT"]; !slices.Equal(f.Attrs, []string{"read-only", "hidden", "system", "archive"}) {
				t.Errorf("attributes %q", f.Attrs)
			}
		})
	}
}

// damage is a way to break an image of FAT12: table and data give the positions of things.
type damaged struct {
	b    []byte
	v    *volume
	tree *fsmaptest.Tree // before
}

// link sets the entry of a cluster in the first table, and in the second too when both is set.
func (d *damaged) link(n, to uint32, both bool) {
	set := func(table int64) {
		p := d.b[d.v.EntryPos(table, n):]
		old := binary.LittleEndian.Uint16(p)
		if n%2 == 1 {
			binary.LittleEndian.PutUint16(p, old&0xF|uint16(to)<<4)
		} else {
			binary.LittleEndian.PutUint16(p, old&0xF000|uint16(to))
		}
	}
	set(d.v.Table)
	if both {
		set(d.v.Spare)
	}
}

// clusters gives the chain of a file.
func (d *damaged) clusters(path string) []uint32 {
	var c []uint32
	for _, x := range d.tree.Files[path].Runs {
		for off := x.Off; off < x.Off+x.Len; off += d.v.Cluster() {
			c = append(c, uint32((off-d.v.Data)>>d.v.Shift)+dos.FirstCluster)
		}
	}
	return c
}

func (d *damaged) entry(path string) []byte { return d.b[d.tree.Files[path].Ref.ID*dos.SlotLen:] }

func TestDamage(t *testing.T) {
	const file, other, dir = "big.bin", "sub/deep/er/file", "many"
	for _, test := range []struct {
		name  string
		do    func(d *damaged)
		path  string // which has a problem
		err   string // what it says
		note  string // or what a note says
		whole bool   // the content is as before
		held  int64  // else: bytes that are not missing
	}{
		{name: "chain ends early", do: func(d *damaged) { d.link(d.clusters(file)[9], 0xFFF, true) }, path: file, err: "end after 5120 of 150000 bytes", held: 5120},
		{name: "chain into a free cluster", do: func(d *damaged) { d.link(d.clusters(file)[9], 0, true) }, path: file, err: "in a chain 0x0", held: 5120},
		{name: "chain past the heap", do: func(d *damaged) { d.link(d.clusters(file)[9], 0xFF0, true) }, path: file, err: "in a chain 0xff0", held: 5120},
		{name: "bad cluster mark", do: func(d *damaged) { d.link(d.clusters(file)[9], 0xFF7, true) }, path: file, err: "in a chain 0xff7", held: 5120},
		{name: "first table broken", do: func(d *damaged) { d.link(d.clusters(file)[9], 0, false) }, note: "tables differ in 1 entries", whole: true},
		{name: "tables differ", do: func(d *damaged) { d.link(2500, 0xFFF, false) }, note: "tables differ in 1 entries", whole: true},
		{name: "loop of one", do: func(d *damaged) { c := d.clusters(file); d.link(c[9], c[9], true) }, path: file, err: "loop after 10 clusters", held: 5120},
		{name: "loop to the start", do: func(d *damaged) { c := d.clusters(file); d.link(c[99], c[0], true) }, path: file, err: "loop after 100 clusters", held: 51200},
		{name: "loop into the middle", do: func(d *damaged) { c := d.clusters(file); d.link(c[99], c[7], true) }, path: file, err: "loop after 100 clusters", held: 51200},
		{name: "cross-link", do: func(d *damaged) { d.link(d.clusters(other)[8], d.clusters(file)[3], true) }, path: file, err: "cross-linked", held: 150000, whole: true},
		{name: "start inside a chain", do: func(d *damaged) {
			binary.LittleEndian.PutUint16(d.entry(other)[entStartLow:], uint16(d.clusters(file)[3]))
		}, path: other, err: "cross-linked", held: 4097},
		{name: "no first cluster", do: func(d *damaged) { binary.LittleEndian.PutUint16(d.entry(file)[entStartLow:], 0) }, path: file, err: "first cluster 0"},
		{name: "size past the chain", do: func(d *damaged) { binary.LittleEndian.PutUint32(d.entry(other)[entSize:], 1<<32-1) }, path: other, err: "end after 4608 of 4294967295", held: 4608},
		{name: "directory loop", do: func(d *damaged) {
			n := binary.LittleEndian.Uint16(d.entry(dir)[entStartLow:])
			d.link(uint32(n), uint32(n), true)
		}, path: dir, err: "loop, or shared"},
		{name: "directory that is its parent", do: func(d *damaged) {
			copy(d.entry("sub/deep/er")[entStartLow:], d.entry("sub")[entStartLow:entStartLow+2])
		}, path: "sub/deep/er", err: "loop, or shared"},
		{name: "directory without clusters", do: func(d *damaged) { binary.LittleEndian.PutUint16(d.entry(dir)[entStartLow:], 0) }, path: dir, err: "cluster 0"},
		{name: "dirty", do: func(d *damaged) { d.b[37] |= stateDirty }, note: "dirty bit", whole: true},
		{name: "slash in a name", do: func(d *damaged) { d.entry("many/entry number 11.dat")[2] = '/' }, path: "many", err: "name"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := &damaged{b: image(t, "fat12")}
			d.tree = walk(t, d.b)
			d.v = d.tree.FS.(*volume)
			before := d.tree.Files[file].SHA256
			test.do(d)
			after := walk(t, d.b)
			if test.path != "" {
				f := after.Files[test.path]
				if len(f.Errs) != 1 || !strings.Contains(f.Errs[0].Error(), test.err) {
					t.Fatalf("%s: %q, should say %q", test.path, f.Errs, test.err)
				}
				var held int64
				for _, x := range f.Runs {
					if x.Kind != mapfile.Missing {
						held += x.Len
					}
				}
				if held != test.held {
					t.Errorf("%d bytes are not missing, should be %d", held, test.held)
				}
			} else if errs := after.Errs(); len(errs) > 0 {
				t.Error(errs)
			}
			if test.whole && after.Files[file].SHA256 != before {
				t.Error("the content changed")
			}
			if notes := strings.Join(after.FS.Info().Notes, "; "); !strings.Contains(notes, test.note) {
				t.Errorf("notes %q, should say %q", notes, test.note)
			}
		})
	}
}

// TestTruncated opens images that were cut off: what lies behind is missing, nothing else.
func TestTruncated(t *testing.T) {
	b := image(t, "fat16")
	whole := walk(t, b)
	cut := whole.Files["big.bin"].Runs[0].Off + 3000
	tree := walk(t, b[:cut])
	f := tree.Files["big.bin"]
	if last := f.Runs[len(f.Runs)-1]; len(f.Errs) != 1 || !strings.Contains(f.Errs[0].Error(), "truncated") || last.Kind != mapfile.Missing {
		t.Errorf("errors %q, last run %+v", f.Errs, last)
	}
	same := 0
	for path, f := range tree.Files {
		if n := len(f.Runs); n > 0 && f.Runs[n-1].Off < cut && path != "big.bin" {
			same++
			if want := whole.Files[path].SHA256; f.SHA256 != want {
				t.Errorf("%s is %q, should be %q", path, f.SHA256, want)
			}
		}
	}
	if same < 3 {
		t.Errorf("only %d files before the cut", same)
	}
	for n := range 600 {
		r := bytes.NewReader(b[:n])
		if fs, err := open(r, int64(n), fsmap.Options{}); err == nil {
			t.Errorf("%d bytes: opened: %v", n, fs.Info())
		}
	}
}

// TestProbe holds the probe against other things that begin a disk.
func TestProbe(t *testing.T) {
	ok := image(t, "fat12")[:4096]
	for _, test := range []struct {
		name string
		do   func(b []byte)
		is   bool
	}{
		{"as mkfs.fat makes it", func([]byte) {}, true},
		{"without a jump", func(b []byte) { clear(b[:3]) }, true},
		{"without a signature", func(b []byte) { clear(b[510:512]) }, true},
		{"Atari's", func(b []byte) { clear(b[510:512]); b[0], b[1] = 0x60, 0x1C }, true},
		{"neither, nor a table", func(b []byte) { clear(b[:3]); clear(b[510:512]); b[512] = 0 }, false},
		{"NTFS", func(b []byte) { copy(b[3:], "NTFS    ") }, false},
		{"exFAT", func(b []byte) { copy(b[3:], "EXFAT   "); clear(b[11:64]) }, false},
		{"HPFS", func(b []byte) { copy(b[54:], "HPFS    ") }, false},
		{"sector of 513 bytes", func(b []byte) { b[11] = 1 }, false},
		{"cluster of 3 sectors", func(b []byte) { b[13] = 3 }, false},
		{"no reserved sectors", func(b []byte) { clear(b[14:16]) }, false},
		{"no table", func(b []byte) { b[16] = 0 }, false},
		{"media", func(b []byte) { b[21] = 0x12 }, false},
		{"no root directory", func(b []byte) { clear(b[17:19]) }, false},
		{"no sectors", func(b []byte) { clear(b[19:21]) }, false},
	} {
		b := slices.Clone(ok)
		test.do(b)
		if _, is := probe(bytes.NewReader(b), int64(len(b)), b); is != test.is {
			t.Errorf("%s: %v", test.name, is)
		}
	}
}

func FuzzFAT(f *testing.F) {
	var seeds [][]byte
	for _, name := range []string{"fat12", "fat16", "fat32"} {
		seeds = append(seeds, image(f, name)[:48<<10])
	}
	fsmaptest.Fuzz(f, Driver, seeds...)
}

// FuzzDirectory changes the table and the root directory of a volume.
func FuzzDirectory(f *testing.F) {
	b := image(f, "fat12")
	v := walk(f, b).FS.(*volume)
	fsmaptest.FuzzPart(f, Driver, b[:64<<10], int(v.Table), int(v.Data-v.Table))
}
