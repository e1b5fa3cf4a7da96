package exfat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"vmkit/fixtures"
	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/fsmaptest"
	"vmkit/fsmap/internal/dos"
	"vmkit/fsmap/mapfile"
)

func TestLayout(t *testing.T) {
	fsmaptest.Layout(t, bootSector{}, 512, map[string]int{"Name": 3, "Partition": 64, "VolumeLength": 72, "FATOffset": 80, "FATLength": 84,
		"HeapOffset": 88, "Clusters": 92, "RootCluster": 96, "Serial": 100, "Revision": 104, "Flags": offFlags, "SectorShift": 108,
		"ClusterShift": 109, "FATs": 110, "PercentInUse": offPercent, "BootSignature": 510})
}

func image(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(fixtures.Image(t, "exfat-fuse", name+".img.zst"))
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

// TestImages compares stored images with the tree that was copied into them, with where TSK sees it, and with what
// dump.exfat counts.
func TestImages(t *testing.T) {
	for _, name := range []string{"small", "large"} {
		t.Run(name, func(t *testing.T) {
			tree := walk(t, image(t, name))
			tree.Compare(t, fixtures.Expect(t, "exfat-fuse", "tree.tsv"), 1)
			tree.Concurrent(t)
			if errs := tree.Errs(); len(errs) > 0 {
				t.Error(errs)
			}
			info, v := tree.FS.Info(), tree.FS.(*volume)
			got := []string{fmt.Sprint(int64(v.Last-1) - info.Used/info.BlockSize)}
			for _, x := range tree.Files["big.bin"].Runs {
				got = append(got, fmt.Sprintf("%d\t%d", x.Off, (x.Len+511)&^511))
			}
			if want := fixtures.Expect(t, "exfat-fuse", name+".tsv"); !slices.Equal(got, want) {
				t.Errorf("free clusters and extents are %q, should be %q", got, want)
			}
			if info.Label != "Ярлык 1" || len(info.UUID) != 9 || len(info.Notes) > 0 || len(info.Problems) > 0 {
				t.Errorf("info: %+v", info)
			}
		})
	}
}

// edited is an image to be changed.
type edited struct {
	b    []byte
	v    *volume
	tree *fsmaptest.Tree // before
}

// entries gives the entries of a file, which lie in one cluster.
func (d *edited) entries(path string) []byte {
	e := d.b[d.tree.Files[path].Ref.ID*dos.SlotLen:]
	return e[:(int(e[fileSecondaries])+1)*dos.SlotLen]
}

func (d *edited) stream(path string) []byte { return d.entries(path)[dos.SlotLen:] }

// seal makes the checksum of a file's entries right.
func (d *edited) seal(path string) {
	e := d.entries(path)
	binary.LittleEndian.PutUint16(e[fileSum:], checksum(checksum(0, e[:fileSum]), e[fileSum+2:]))
}

// sealBoot makes the checksum of the main boot region right.
func sealBoot(b []byte) {
	sum := uint32(0)
	for i, c := range b[:(bootSectors-1)*512] {
		if i != offFlags && i != offFlags+1 && i != offPercent {
			sum = (sum<<31 | sum>>1) + uint32(c)
		}
	}
	for i := range 128 {
		binary.LittleEndian.PutUint32(b[(bootSectors-1)*512+4*i:], sum)
	}
}

// link sets the table entry of a cluster.
func (d *edited) link(n, to uint32) {
	binary.LittleEndian.PutUint32(d.b[d.v.EntryPos(d.v.Table, n):], to)
}

func (d *edited) clusters(path string) []uint32 {
	var c []uint32
	for _, x := range d.tree.Files[path].Runs {
		for off := x.Off; off < x.Off+x.Len; off += d.v.Cluster() {
			c = append(c, uint32((off-d.v.Data)>>d.v.Shift)+dos.FirstCluster)
		}
	}
	return c
}

func edit(t *testing.T) *edited {
	d := &edited{b: image(t, "small")}
	d.tree = walk(t, d.b)
	d.v = d.tree.FS.(*volume)
	return d
}

func TestDamage(t *testing.T) {
	const file, one, dir = "big.bin", "sub/deep/er/file", "many" // in pieces; in one piece; of several clusters
	put := binary.LittleEndian.PutUint64
	for _, test := range []struct {
		name string
		do   func(d *edited)
		path string // which has a problem
		err  string // what it says
		note string // or what a note says
		held int64  // bytes of path that are not missing
	}{
		{name: "chain ends early", do: func(d *edited) { d.link(d.clusters(file)[9], 0xFFFFFFFF) }, path: file, err: "end after 10240 of 150000", held: 10240},
		{name: "chain into a free cluster", do: func(d *edited) { d.link(d.clusters(file)[9], 0) }, path: file, err: "in a chain 0x0", held: 10240},
		{name: "bad cluster mark", do: func(d *edited) { d.link(d.clusters(file)[9], 0xFFFFFFF7) }, path: file, err: "in a chain 0xfffffff7", held: 10240},
		{name: "loop", do: func(d *edited) { c := d.clusters(file); d.link(c[99], c[7]) }, path: file, err: "loop after 100 clusters", held: 102400},
		{name: "contiguous past the heap", do: func(d *edited) {
			put(d.stream(one)[entLength:], 1<<40)
			put(d.stream(one)[streamValid:], 1<<40)
			d.seal(one)
		}, path: one, err: "the heap ends after cluster", held: -1},
		{name: "first cluster 1", do: func(d *edited) {
			binary.LittleEndian.PutUint32(d.stream(one)[entCluster:], 1)
			d.seal(one)
		}, path: one, err: "first cluster 1"},
		{name: "no clusters possible", do: func(d *edited) { d.stream(one)[streamFlags] = 0; d.seal(one) }, path: one, err: "first cluster 0"},
		{name: "length of 2⁶³", do: func(d *edited) { put(d.stream(one)[entLength:], 1<<63); d.seal(one) }, path: one, err: "length 9223372036854775808"},
		{name: "more valid than there is", do: func(d *edited) { put(d.stream(one)[streamValid:], 50000); d.seal(one) }, path: one, err: "valid are 50000", held: 40000},
		{name: "wrong checksum", do: func(d *edited) { d.entries(one)[fileSum]++ }, path: one, err: "checksum of its entries", held: 40000},
		{name: "an entry lacks", do: func(d *edited) { d.entries(one)[fileSecondaries]++ }, path: one, err: "number of its entries", held: 40000},
		{name: "no stream extension", do: func(d *edited) { d.stream(one)[0] = 0xE0; d.seal(one) }, path: one, err: "no stream extension"},
		{name: "slash in a name", do: func(d *edited) { d.entries(one)[2*dos.SlotLen+nameUnits] = '/'; d.seal(one) }, path: "sub/deep/er", err: "name"},
		{name: "length of the name", do: func(d *edited) { d.stream("sixteen.chars.xx")[streamNameLength] = 0; d.seal("sixteen.chars.xx") },
			path: "sixteen.chars.xx", err: "length of its name", held: 100},
		{name: "critical secondary entry", do: func(d *edited) {
			e := d.entries("sixteen.chars.xx")
			e[3*dos.SlotLen] = 0xC2
			d.stream("sixteen.chars.xx")[streamNameLength] = 15
			d.seal("sixteen.chars.xx")
		}, path: "sixteen.chars.x", err: "unknown critical entry", held: 100},
		{name: "critical primary entry", do: func(d *edited) { d.entries("a")[0] = 0x86 }, path: ".", err: "critical entry 0x86"},
		{name: "benign primary entry", do: func(d *edited) { d.entries("a")[0] = 0xA3 }},
		{name: "deleted entry", do: func(d *edited) { d.entries("a")[0] &^= typeInUse }},
		{name: "directory loop", do: func(d *edited) {
			n := binary.LittleEndian.Uint32(d.stream(dir)[entCluster:])
			d.stream(dir)[streamFlags] &^= streamContiguous
			d.link(n, n)
			d.seal(dir)
		}, path: dir, err: "loop, or shared"},
		{name: "directory that is its parent", do: func(d *edited) {
			copy(d.stream("sub/deep/er")[entCluster:entCluster+4], d.stream("sub")[entCluster:])
			d.seal("sub/deep/er")
		}, path: "sub/deep/er", err: "loop, or shared"},
		{name: "dirty", do: func(d *edited) { d.b[offFlags] |= flagDirty }, note: "dirty flag"},
		{name: "media failure", do: func(d *edited) { d.b[offFlags] |= flagMediaFailure }, note: "media failure"},
		{name: "main boot region", do: func(d *edited) { d.b[92]++ }, note: "the backup is used"},
		{name: "main boot sector", do: func(d *edited) { d.b[108] = 77 }, note: "the backup is used"},
		{name: "up-case table", do: func(d *edited) { d.b[d.v.Pos(3)+10] ^= 1 }, note: "up-case table is damaged"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := edit(t)
			test.do(d)
			after := walk(t, d.b)
			if test.path == "" {
				if errs := after.Errs(); len(errs) > 0 {
					t.Error(errs)
				}
			} else {
				f := after.Files[test.path]
				if f == nil || len(f.Errs) != 1 || !strings.Contains(f.Errs[0].Error(), test.err) {
					t.Fatalf("%s: %q, should say %q", test.path, f.Errs, test.err)
				}
				var held int64
				for _, x := range f.Runs {
					if x.Kind != mapfile.Missing {
						held += x.Len
					}
				}
				if held != test.held && test.held >= 0 {
					t.Errorf("%d bytes are not missing, should be %d", held, test.held)
				}
			}
			if notes := strings.Join(after.FS.Info().Notes, "; "); !strings.Contains(notes, test.note) || test.note == "" && notes != "" {
				t.Errorf("notes %q, should say %q", notes, test.note)
			}
		})
	}
}

// TestBothBootRegions damages both: what the main one says is used, with a problem; or nothing opens.
func TestBothBootRegions(t *testing.T) {
	d := edit(t)
	d.b[200]++ // boot code
	d.b[bootSectors*512+200]++
	if p := walk(t, d.b).FS.Info().Problems; len(p) != 1 || !strings.Contains(p[0].Error(), "boot region: checksum") {
		t.Errorf("problems %v", p)
	}
	d.b[105] = 2
	sealBoot(d.b)
	if _, err := open(bytes.NewReader(d.b), int64(len(d.b)), fsmap.Options{}); !errors.Is(err, ondisk.ErrUnsupported) || !strings.Contains(err.Error(), "revision 2.00") {
		t.Errorf("revision 2: %v", err)
	}
	if _, err := open(bytes.NewReader(make([]byte, 1<<20)), 1<<20, fsmap.Options{}); !errors.Is(err, ondisk.ErrNot) {
		t.Errorf("zeros: %v", err)
	}
}

// TestValidLength shortens the valid data of a file: the rest is unwritten, and lies where it lay.
func TestValidLength(t *testing.T) {
	for _, path := range []string{"big.bin", "sub/deep/er/file"} {
		d := edit(t)
		before := d.tree.Files[path]
		binary.LittleEndian.PutUint64(d.stream(path)[streamValid:], 5000)
		d.seal(path)
		after := walk(t, d.b).Files[path]
		if len(after.Errs) > 0 {
			t.Error(after.Errs)
		}
		at := func(runs []fsmap.Run, n int64) (mapfile.Kind, int64) {
			i := slices.IndexFunc(runs, func(x fsmap.Run) bool { return n >= x.At && n < x.At+x.Len })
			return runs[i].Kind, runs[i].Off + n - runs[i].At
		}
		for _, n := range []int64{0, 4999, 5000, 5119, 5120, before.Size - 1} {
			_, want := at(before.Runs, n)
			kind, off := at(after.Runs, n)
			if off != want || kind == mapfile.Data != (n < 5000) || kind == mapfile.Unwritten != (n >= 5000) {
				t.Errorf("%s: byte %d is %v at %d, should be at %d", path, n, kind, off, want)
			}
		}
	}
}

func TestTimes(t *testing.T) {
	stamp := uint32(43<<9|7<<5|5)<<16 | 6<<11 | 7<<5 | 4 // 2023-07-05 06:07:08
	for _, test := range []struct {
		cent, zone uint8
		want       string
	}{
		{0, 0, "2023-07-05T06:07:08Z"},
		{150, 0x80, "2023-07-05T06:07:09.5Z"},
		{0, 0x80 | 8, "2023-07-05T04:07:08Z"},          // +2:00
		{0, 0x80 | 22, "2023-07-05T00:37:08Z"},         // +5:30
		{0, 0x80 | (128 - 14), "2023-07-05T09:37:08Z"}, // -3:30
		{0, 22, "2023-07-05T06:07:08Z"},
	} {
		m := timeAt(stamp, test.cent, test.zone)
		if got := time.Unix(m.Sec, int64(m.Nsec)).UTC().Format(time.RFC3339Nano); got != test.want {
			t.Errorf("%d, %#x: %s, should be %s", test.cent, test.zone, got, test.want)
		}
	}
}

// TestSecondTable makes the volume one with two tables, of which the second is active (TexFAT).
func TestSecondTable(t *testing.T) {
	d := edit(t)
	var s bootSector
	if _, err := binary.Decode(d.b, binary.LittleEndian, &s); err != nil {
		t.Fatal(err)
	}
	room := int64(s.HeapOffset-s.FATOffset) << s.SectorShift
	half := (int64(d.v.Last+1)*4 + 511) &^ 511
	if room < 2*half {
		t.Fatalf("%d bytes for two tables of %d", room, half)
	}
	first := d.b[d.v.Table : d.v.Table+half]
	copy(d.b[d.v.Table+half:], first)
	clear(first)
	d.b[110] = 2
	d.b[offFlags] |= flagSecondFAT
	binary.LittleEndian.PutUint32(d.b[84:], uint32(half>>9))
	sealBoot(d.b)
	bitmap := d.b[bytes.Index(d.b[d.v.Pos(d.v.root):], []byte{typeBitmap})+int(d.v.Pos(d.v.root)):]
	bitmap[bitmapFlags] |= flagSecondFAT
	tree := walk(t, d.b)
	if got, want := tree.Files["big.bin"].SHA256, d.tree.Files["big.bin"].SHA256; got != want {
		t.Errorf("content %q, should be %q: %q", got, want, tree.Files["big.bin"].Errs)
	}
	if used := tree.FS.Info().Used; used != d.tree.FS.Info().Used {
		t.Errorf("%d bytes used", used)
	}
}

func FuzzExFAT(f *testing.F) {
	b := image(f, "small")
	fsmaptest.Fuzz(f, Driver, b[:80<<10])
}

// FuzzDirectory changes the root directory of a volume.
func FuzzDirectory(f *testing.F) {
	b := image(f, "small")
	v := walk(f, b).FS.(*volume)
	fsmaptest.FuzzPart(f, Driver, b[:160<<10], int(v.Pos(v.root)), 2<<10)
}
