package iso9660

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
	"vmkit/fsmap/mapfile"
)

func TestLayout(t *testing.T) {
	fsmaptest.Layout(t, volumeDescriptor{}, 882, map[string]int{"SystemID": 8, "VolumeID": 40, "Space": 80, "Escapes": 88, "SetSize": 120,
		"Sequence": 124, "BlockSize": 128, "PathTable": 132, "Root": 156, "VolumeSet": 190, "Application": 574, "Created": 813, "Modified": 830, "Structure": 881})
}

func image(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(fixtures.Image(t, "iso9660", name+".iso.zst"))
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

// TestImages compares stored images with the trees that were put into them.
func TestImages(t *testing.T) {
	for _, test := range []struct {
		name, expect, label string
		extensions          []string
		notes               int
	}{
		{"rr", "rr", "Two trees", []string{"Rock Ridge", "Joliet level 3"}, 0},
		{"joliet", "joliet", "Joliet only", []string{"Joliet level 3"}, 0},
		{"plain", "plain", "PLAIN", nil, 0},
		{"sessions", "sessions", "S3", []string{"Rock Ridge"}, 1},
		{"zisofs", "zisofs", "ISOIMAGE", []string{"Rock Ridge"}, 0},
		{"zisofs2", "zisofs", "ISOIMAGE", []string{"Rock Ridge"}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			tree := walk(t, image(t, test.name))
			// genisoimage's own: the boot catalog, and the place of directories that were moved.
			delete(tree.Files, "boot/boot.cat")
			delete(tree.Files, "rr_moved")
			tree.Compare(t, fixtures.Expect(t, "iso9660", test.expect+".tsv"), 0)
			tree.Concurrent(t)
			if errs := tree.Errs(); len(errs) > 0 {
				t.Error(errs)
			}
			info := tree.FS.Info()
			extensions, _ := info.Extra["extensions"].([]string)
			if info.Label != test.label || !slices.Equal(extensions, test.extensions) || len(info.Notes) != test.notes || len(info.Problems) > 0 || len(info.UUID) != 22 {
				t.Errorf("info: %+v", info)
			}
		})
	}
}

func TestDevicesAndLinks(t *testing.T) {
	tree := walk(t, image(t, "rr"))
	for path, want := range map[string][2]uint32{"char": {5, 1}, "block": {259, 7}} {
		if f := tree.Files[path]; f.Major != want[0] || f.Minor != want[1] {
			t.Errorf("%s is %d:%d", path, f.Major, f.Minor)
		}
	}
	if f := tree.Files["one"]; f.Links != 1 || !f.ATime.Known || !f.CTime.Known {
		t.Errorf("one: %+v", f.Node)
	}
}

// TestZisofs checks that the zeros of a compressed file are holes, and that the rest is packed.
func TestZisofs(t *testing.T) {
	for name, block := range map[string]int64{"zisofs": 32 << 10, "zisofs2": 64 << 10} {
		f := walk(t, image(t, name)).Files["gap"]
		var kinds []string
		for _, x := range f.Runs {
			kinds = append(kinds, x.Kind.String())
			if x.Kind == mapfile.Packed && x.Pack.Full != min(block, f.Size-x.At) {
				t.Errorf("%s: block of %d bytes at %d", name, x.Pack.Full, x.At)
			}
		}
		if holes := slices.Index(kinds, "hole"); holes < 0 || len(f.Runs) >= int((f.Size+block-1)/block) || kinds[len(kinds)-1] != "packed" {
			t.Errorf("%s: runs %v", name, kinds)
		}
	}
}

func TestBootImages(t *testing.T) {
	b := image(t, "rr")
	tree := walk(t, b)
	images := tree.FS.Info().Extra["boot_images"].([]map[string]any)
	if len(images) != 2 {
		t.Fatalf("boot images %v", images)
	}
	for i, want := range []struct{ platform, path string }{{"x86", "boot/bios.img"}, {"EFI", "boot/efi.img"}} {
		im, f := images[i], tree.Files[want.path]
		if im["platform"] != want.platform || im["emulation"] != "none" || im["bootable"] != true || im["start"] != f.Runs[0].Off || im["size"] != f.Size {
			t.Errorf("boot image %v, should be %s at %d", im, want.path, f.Runs[0].Off)
		}
	}
	// isoinfo knows the first only.
	if text := strings.Join(fixtures.Expect(t, "iso9660", "rr.boot.txt"), "\n"); !strings.Contains(text, fmt.Sprintf("Bootoff %X ", images[0]["start"].(int64)/sectorLen)) {
		t.Errorf("isoinfo: %s", text)
	}
	catalog := tree.Files["boot/boot.cat"].Runs[0].Off
	b[catalog+5]++
	if info := walk(t, b).FS.Info(); info.Extra["boot_images"] != nil || len(info.Notes) != 1 || !strings.Contains(info.Notes[0], "checksum") {
		t.Errorf("damaged: %v, notes %q", info.Extra, info.Notes)
	}
}

// record gives a file's directory record.
func record(b []byte, f *fsmaptest.File) []byte {
	pos := int(f.Ref.ID)
	return b[pos : pos+int(b[pos])]
}

func put(b []byte, v uint32) {
	binary.LittleEndian.PutUint32(b, v)
	binary.BigEndian.PutUint32(b[4:], v)
}

// insert puts a record before another, in a sector that has room.
func insert(b []byte, before int, rec []byte) {
	end := before - before%sectorLen + sectorLen
	copy(b[before+len(rec):end], b[before:end-len(rec)])
	copy(b[before:], rec)
}

// TestSections splits a file into three records, the last of which says that nothing follows.
func TestSections(t *testing.T) {
	b := image(t, "plain")
	before := walk(t, b).Files["dir/sub/file"]
	rec := slices.Clone(record(b, before))
	pos := int(before.Ref.ID)
	extent := binary.LittleEndian.Uint32(rec[recExtent:])
	for i, s := range []section{{extent + 20, uint32(before.Size) - 20*sectorLen}, {extent + 1, 19 * sectorLen}, {extent, sectorLen}} {
		x := slices.Clone(rec)
		put(x[recExtent:], s.extent)
		put(x[recSize:], s.size)
		if i > 0 {
			x[recFlags] |= flagMulti
			insert(b, pos, x)
		} else {
			copy(b[pos:], x)
		}
	}
	after := walk(t, b)
	f := after.Files["dir/sub/file"]
	if f.Size != before.Size || f.SHA256 != before.SHA256 || len(f.Runs) != 1 || len(f.Errs) > 0 {
		t.Errorf("%d bytes in runs %v: %v", f.Size, f.Runs, f.Errs)
	}
	if n := len(after.Files); n != len(walk(t, image(t, "plain")).Files) {
		t.Errorf("%d files", n)
	}
	b[pos+2*len(rec)+recFlags] |= flagMulti // the file now goes on where nothing follows
	if f := walk(t, b).Files["dir/sub/file"]; len(f.Errs) != 1 {
		t.Errorf("errors %v", f.Errs)
	}
}

// TestAssociated gives a file an associated one: that is a stream, and no name of its own.
func TestAssociated(t *testing.T) {
	b := image(t, "plain")
	tree := walk(t, b)
	file, other := tree.Files["dir/sub/file"], tree.Files["upper.txt"]
	rec := slices.Clone(record(b, file))
	copy(rec[recExtent:recDate], record(b, other)[recExtent:recDate])
	rec[recFlags] |= flagAssociated
	insert(b, int(file.Ref.ID), rec)
	after := walk(t, b)
	f := after.Files["dir/sub/file"]
	if len(after.Files) != len(tree.Files) || f.SHA256 != file.SHA256 || len(f.Streams) != 1 || f.Streams[0].Size != 300 {
		t.Fatalf("%d files, %+v", len(after.Files), f.Node)
	}
	var r fsmap.Runs
	r.Reset(f.Streams[0].Size)
	if err := after.FS.Runs(&f.Node, &f.Streams[0], &r); err != nil || fsmaptest.Sum(t, bytes.NewReader(b), r.List) != other.SHA256 {
		t.Errorf("stream: %v, %v", r.List, err)
	}
}

func TestDamage(t *testing.T) {
	for _, test := range []struct {
		name, image string
		do          func(b []byte, tree *fsmaptest.Tree)
		path        string // which has a problem
		err         string // what it says
		note        string // or what a note says
		held        int64  // bytes of path that are not missing
	}{
		{name: "byte orders differ", image: "plain", do: func(b []byte, tree *fsmaptest.Tree) { record(b, tree.Files["one"])[recSize+7]++ },
			path: "one", err: "differ between the byte orders", held: 1},
		{name: "volume's byte orders differ", image: "plain", do: func(b []byte, _ *fsmaptest.Tree) { b[systemArea*sectorLen+80+7]++ }, note: "differ between the byte orders"},
		{name: "interleaved", image: "plain", do: func(b []byte, tree *fsmaptest.Tree) { record(b, tree.Files["sector"])[recGap] = 1 }, path: "sector", err: "interleaved"},
		{name: "on another volume", image: "plain", do: func(b []byte, tree *fsmaptest.Tree) {
			b[systemArea*sectorLen+120], b[systemArea*sectorLen+123] = 2, 2
			record(b, tree.Files["sector"])[recVolume] = 2
		}, path: "sector", err: "on another volume", note: "number 1 of a set of 2"},
		{name: "past the end", image: "plain", do: func(b []byte, tree *fsmaptest.Tree) {
			put(record(b, tree.Files["sector"])[recExtent:], uint32(len(b)/sectorLen))
		}, path: "sector", err: "truncated"},
		{name: "half past the end", image: "plain", do: func(b []byte, tree *fsmaptest.Tree) {
			put(record(b, tree.Files["sector"])[recExtent:], uint32(len(b)/sectorLen-1))
			put(record(b, tree.Files["sector"])[recSize:], 5000)
		}, path: "sector", err: "truncated", held: 2048},
		{name: "record length", image: "plain", do: func(b []byte, tree *fsmaptest.Tree) { record(b, tree.Files["dir/sub/file"])[0] = 20 }, path: "dir/sub", err: "length 20"},
		{name: "directory loop", image: "plain", do: func(b []byte, tree *fsmaptest.Tree) {
			copy(record(b, tree.Files["dir/sub"])[recExtent:recDate], record(b, tree.Files["dir"])[recExtent:recDate])
		}, path: "dir/sub", err: "loop, or shared"},
		{name: "directory past the end", image: "plain", do: func(b []byte, tree *fsmaptest.Tree) {
			put(record(b, tree.Files["dir/sub"])[recExtent:], 1<<30)
		}, path: "dir/sub", err: "truncated"},
		{name: "Rock Ridge entry too short", image: "rr", do: func(b []byte, tree *fsmaptest.Tree) {
			rec := record(b, tree.Files["one"])
			i := bytes.Index(rec, []byte("PX"))
			rec[i+2] -= 10
			rec[i+int(rec[i+2])], rec[i+int(rec[i+2])+1] = 0, 0
		}, path: "one", err: "length of PX", held: 1},
		{name: "entry of length 0", image: "rr", do: func(b []byte, tree *fsmaptest.Tree) {
			rec := record(b, tree.Files["one"])
			rec[bytes.Index(rec, []byte("TF"))+2] = 0
		}, path: "one", err: "length of \"TF\" 0", held: 1},
		{name: "sparse", image: "rr", do: func(b []byte, tree *fsmaptest.Tree) {
			rec := record(b, tree.Files["sector"])
			copy(rec[bytes.Index(rec, []byte("TF")):], "SF")
		}, path: "sector", err: "SF, a sparse file"},
		{name: "moved to nowhere", image: "rr", do: func(b []byte, tree *fsmaptest.Tree) {
			rec := record(b, tree.Files["d1/d2/d3/d4/d5/d6/d7/d8"])
			put(rec[bytes.Index(rec, []byte("CL\x0c\x01"))+suHead:], 3)
		}, path: "d1/d2/d3/d4/d5/d6/d7/d8", err: "moved directory"},
		{name: "zisofs block", image: "zisofs", do: func(b []byte, tree *fsmaptest.Tree) {
			b[bytes.Index(b, []byte(zisofsMagic1))+16+4+3] = 1 // 270001 bytes: the second pointer of "gap"
		}, path: "gap", err: "block 0 from byte"},
		{name: "zisofs magic", image: "zisofs2", do: func(b []byte, _ *fsmaptest.Tree) { b[bytes.Index(b, []byte(zisofsMagic2))]++ }, path: "gap", err: "magic"},
		{name: "zisofs algorithm", image: "zisofs2", do: func(b []byte, _ *fsmaptest.Tree) { b[bytes.Index(b, []byte(zisofsMagic2))+10] = 2 }, path: "gap", err: "algorithm 2"},
		{name: "zisofs block size", image: "zisofs", do: func(b []byte, _ *fsmaptest.Tree) { b[bytes.Index(b, []byte("ZF\x10\x01"))+7] = 30 }, path: "gap", err: "log2 of the block size 30"},
		{name: "zisofs size", image: "zisofs", do: func(b []byte, _ *fsmaptest.Tree) {
			put(b[bytes.Index(b, []byte("ZF\x10\x01"))+8:], 1<<31)
		}, path: "gap", err: "table of 65536 blocks"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := image(t, test.image)
			test.do(b, walk(t, b))
			after := walk(t, b)
			if test.path != "" {
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
				if held != test.held {
					t.Errorf("%d bytes are not missing, should be %d", held, test.held)
				}
			} else if errs := after.Errs(); len(errs) > 0 {
				t.Error(errs)
			}
			if notes := strings.Join(after.FS.Info().Notes, "; "); !strings.Contains(notes, test.note) {
				t.Errorf("notes %q, should say %q", notes, test.note)
			}
		})
	}
}

// TestContinuationLoop makes a continuation area its own.
func TestContinuationLoop(t *testing.T) {
	b := image(t, "rr")
	tree := walk(t, b)
	rec := record(b, tree.Files["dir/long"])
	ce := bytes.Index(rec, []byte("CE\x1c\x01"))
	if ce < 0 {
		t.Fatal("no continuation area")
	}
	at := int(binary.LittleEndian.Uint32(rec[ce+4:]))*sectorLen + int(binary.LittleEndian.Uint32(rec[ce+12:]))
	copy(b[at:], rec[ce:ce+28])
	copy(b[at+28:], "ST\x04\x01")
	if f := walk(t, b).Files["dir/long"]; len(f.Errs) != 1 || !strings.Contains(f.Errs[0].Error(), "more continuation areas than 32") {
		t.Errorf("errors %v", f.Errs)
	}
}

func TestPlainNames(t *testing.T) {
	for raw, want := range map[string]string{"README.TXT;1": "readme.txt", "NODOT.;1": "nodot", "A;1": "a", "A.B;2": "a.b.2", "A": "a", "SUB.DIR": "sub.dir", "A/B;1": "a.b", ";1": ".1"} {
		if got := string(appendPlain(nil, []byte(raw))); got != want {
			t.Errorf("%q: %q, should be %q", raw, got, want)
		}
	}
	for raw, want := range map[string]string{"R\xE9;1": "Ré", "Ab": "Ab", "A..;1": "A", "A;2": "A;2"} {
		var wide []byte
		for _, c := range []byte(raw) {
			wide = append(wide, 0, c)
		}
		if got := string(appendJoliet(nil, wide)); got != want {
			t.Errorf("Joliet's %q: %q, should be %q", raw, got, want)
		}
	}
}

func TestTimes(t *testing.T) {
	show := func(m mapfile.Time) string {
		if !m.Known {
			return ""
		}
		return time.Unix(m.Sec, int64(m.Nsec)).UTC().Format(time.RFC3339Nano)
	}
	for want, b := range map[string][]byte{
		"2023-07-05T06:07:08Z": {123, 7, 5, 6, 7, 8, 0},
		"2023-07-05T04:07:08Z": {123, 7, 5, 6, 7, 8, 8},
		"2023-07-05T09:37:08Z": {123, 7, 5, 6, 7, 8, 0xF2},
		"":                     {0, 0, 0, 0, 0, 0, 0},
	} {
		if got := show(recordTime(b)); got != want {
			t.Errorf("%v: %q, should be %q", b, got, want)
		}
	}
	if got := show(longStamp([]byte("2023070506070899\x04"))); got != "2023-07-05T05:07:08.99Z" {
		t.Errorf("digits: %q", got)
	}
	if got := show(longStamp([]byte("2023 70506070899\x04"))); got != "" {
		t.Errorf("no digits: %q", got)
	}
}

func TestUnsupported(t *testing.T) {
	b := make([]byte, 64<<10)
	copy(b[systemArea*sectorLen+9:], highSierra)
	if name, ok := probe(bytes.NewReader(b), int64(len(b)), b); !ok || name != "iso9660" {
		t.Errorf("probe: %q, %v", name, ok)
	}
	if _, err := open(bytes.NewReader(b), int64(len(b)), fsmap.Options{}); !errors.Is(err, ondisk.ErrUnsupported) || !strings.Contains(err.Error(), "High Sierra") {
		t.Errorf("High Sierra: %v", err)
	}
	clear(b)
	copy(b[systemArea*sectorLen+1:], "BEA01")
	if _, ok := probe(bytes.NewReader(b), int64(len(b)), b); ok {
		t.Error("UDF is taken for ISO 9660")
	}
}

func FuzzISO9660(f *testing.F) {
	var seeds [][]byte
	for _, name := range []string{"sessions", "zisofs", "zisofs2"} {
		seeds = append(seeds, image(f, name))
	}
	b := image(f, "rr")
	seeds = append(seeds, b[:120<<10])
	fsmaptest.Fuzz(f, Driver, seeds...)
}

// FuzzDirectory changes the directories of a volume, with their Rock Ridge entries.
func FuzzDirectory(f *testing.F) {
	b := image(f, "rr")
	root := walk(f, b).Files["."]
	fsmaptest.FuzzPart(f, Driver, b[:140<<10], int(root.Ref.ID), 4*sectorLen)
}
