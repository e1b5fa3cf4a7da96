package vmdk_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/all"
	"vmkit/formats/formatstest"
	"vmkit/formats/ondisk"
)

// same checks that an image reads as content by every way, and that QEMU reads the same of it.
func same(t *testing.T, path string, content []byte) *formats.Image {
	t.Helper()
	formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: bytes.NewReader(content), Size: int64(len(content))})
	t.Run("qemu", func(t *testing.T) {
		truth, size := formatstest.Convert(t, path)
		if size != int64(len(content)) {
			t.Fatalf("qemu-img gives %d bytes, want %d", size, len(content))
		}
		if !bytes.Equal(read(t, truth.Name()), content) {
			t.Fatal("qemu-img reads something else")
		}
	})
	return opener(path)(t)
}

func none(int) bool { return false }

func TestCOWD(t *testing.T) {
	raw := read(t, content(t, t.TempDir(), 9<<20+512))
	for _, grain := range []int{512, 64 << 10} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "d-delta.vmdk"), cowd(raw, grain))
		img := same(t, describe(t, filepath.Join(dir, "d.vmdk"), "vmfsSparse", "", sizeLine(len(raw), `VMFSSPARSE "d-delta.vmdk"`)), raw)
		if len(img.Files) != 2 || len(img.Problems) > 0 {
			t.Errorf("files %v, problems %v", img.Files, img.Problems)
		}
	}
}

// TestDelta is what ESXi leaves of a machine with a snapshot: a flat base, and a COWD or seSparse delta.
func TestDelta(t *testing.T) {
	base := read(t, content(t, t.TempDir(), 20<<20))
	delta := make([]byte, len(base))
	copy(delta[5<<20:], bytes.Repeat([]byte("delta"), 5000))
	copy(delta[len(delta)-512:], bytes.Repeat([]byte("end"), 170))
	for _, kind := range []string{"vmfsSparse", "seSparse"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			write(t, filepath.Join(dir, "web-flat.vmdk"), base)
			describe(t, filepath.Join(dir, "web.vmdk"), "vmfs", "", sizeLine(len(base), `VMFS "web-flat.vmdk"`))
			want, grain := bytes.Clone(base), 512
			top := filepath.Join(dir, "web-000001.vmdk")
			if kind == "seSparse" {
				grain = 4096
				write(t, filepath.Join(dir, "web-000001-sesparse.vmdk"), seSparse(delta,
					func(g int) bool { return g >= 8 && g < 20 }, func(g int) bool { return g == 21 }))
				clear(want[8*4096 : 20*4096])
				clear(want[21*4096 : 22*4096])
				describe(t, top, kind, "", sizeLine(len(base), `SESPARSE "web-000001-sesparse.vmdk"`))
			} else {
				write(t, filepath.Join(dir, "web-000001-delta.vmdk"), cowd(delta, grain))
				describe(t, top, kind, "", sizeLine(len(base), `VMFSSPARSE "web-000001-delta.vmdk"`))
			}
			for i, p := range pieces(delta, grain) {
				if p != nil {
					copy(want[i*grain:], p)
				}
			}
			edit(t, top, "parentCID=ffffffff", "parentCID=0badcafe\nparentFileNameHint=\"web.vmdk\"")
			img := same(t, top, want)
			if len(img.Files) != 4 || len(img.Problems) > 0 || len(img.Notes) > 0 {
				t.Errorf("%d files, notes %q, problems %v", len(img.Files), img.Notes, img.Problems)
			}
		})
	}
}

func TestSESparse(t *testing.T) {
	raw := read(t, content(t, t.TempDir(), 50<<20+512))
	dir := t.TempDir()
	write(t, filepath.Join(dir, "d-sesparse.vmdk"), seSparse(raw, none, none))
	same(t, describe(t, filepath.Join(dir, "d.vmdk"), "seSparse", "", sizeLine(len(raw), `SESPARSE "d-sesparse.vmdk"`)), raw)
}

func TestVMwareStream(t *testing.T) {
	raw := read(t, content(t, t.TempDir(), diskSize))
	path := in(t, "renamed.vmdk")
	write(t, path, vmwareStream(raw, 128))
	img := same(t, path, raw)
	if len(img.Notes)+len(img.Problems) > 0 {
		t.Errorf("notes %q, problems %v", img.Notes, img.Problems)
	}
}

// TestCutStream cuts a stream at every kind of place: what was whole before is read, the rest is missing.
func TestCutStream(t *testing.T) {
	raw := read(t, content(t, t.TempDir(), diskSize))
	whole := vmwareStream(raw, 128)
	var ends []int // where each grain of the stream ends, by the order of the disk
	var no []int64
	for at := 128 * 512; at < len(whole); {
		size := int(le32(whole[at+8:]))
		switch typ := le32(whole[at+12:]); {
		case size > 0:
			no = append(no, int64(le32(whole[at:])/128))
			at = (at + 12 + size + 511) / 512 * 512
			ends = append(ends, at)
			continue
		case typ == 0:
			at = len(whole)
		default:
			at += 512 + 512*int(le32(whole[at:]))
		}
	}
	cuts := []int{128 * 512, 128*512 + 7, ends[0], ends[2] - 600, ends[len(ends)-1] + 512, ends[len(ends)-1] - 512, len(whole) / 2}
	for _, cut := range cuts {
		path := in(t, "cut.vmdk")
		write(t, path, whole[:cut])
		var got int
		for got < len(ends) && ends[got] <= cut {
			got++
		}
		known := int64(0)
		if got > 0 {
			known = (no[got-1] + 1) * 65536
		}
		img := opener(path)(t)
		if len(img.Problems) != 1 || !errors.Is(img.Problems[0], ondisk.ErrTruncated) {
			t.Errorf("cut at %d: problems %v", cut, img.Problems)
		}
		b := make([]byte, 512)
		for off := int64(0); off < img.Size(); off += 65536 / 2 {
			want := raw[off : off+512]
			n, err := img.ReadAt(b, off)
			switch {
			case off < known && (n < 512 || !bytes.Equal(b, want)):
				t.Fatalf("cut at %d, byte %d: %d, %v", cut, off, n, err)
			case off >= known && err == nil && len(bytes.Trim(want, "\x00")) > 0 && !bytes.Equal(b, want):
				t.Fatalf("cut at %d: byte %d reads as something else", cut, off)
			case off >= known && err == nil && off >= (known+32<<20-1)/(32<<20)*(32<<20):
				t.Fatalf("cut at %d: byte %d can be had", cut, off)
			}
		}
	}
	// A footer, or a directory, that is not where it should be is found by its marker.
	for what, b := range map[string][]byte{
		"trailing bytes": append(bytes.Clone(whole), bytes.Repeat([]byte("junk"), 5000)...),
		"footer lost":    whole[:len(whole)-1536],
		"end lost":       whole[:len(whole)-512],
	} {
		path := in(t, "odd.vmdk")
		write(t, path, b)
		formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: bytes.NewReader(raw), Size: int64(len(raw))})
		if img := opener(path)(t); len(img.Problems) > 0 || len(img.Notes) != 1 {
			t.Errorf("%s: problems %v, notes %q", what, img.Problems, img.Notes)
		}
	}
}

// TestCutSparse cuts what has its tables in front: the grains behind the cut are missing, with an error each.
func TestCutSparse(t *testing.T) {
	for _, sub := range []string{"monolithicSparse", "streamOptimized"} {
		path := image(t, content(t, t.TempDir(), diskSize), sub)
		truth, size := formatstest.Convert(t, path)
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, st.Size()/2+100); err != nil {
			t.Fatal(err)
		}
		img := opener(path)(t)
		var missing int64
		for off := int64(0); off < size; {
			e, err := img.ExtentAt(off, size-off)
			if (e.Kind == formats.Missing) != (err != nil) {
				t.Fatalf("%s: at %d: %v, %v", sub, off, e.Kind, err)
			}
			if err != nil {
				missing += e.Len
				if !errors.Is(err, ondisk.ErrTruncated) || !strings.Contains(err.Error(), "disk.vmdk") {
					t.Fatalf("%s: %v", sub, err)
				}
			} else {
				got, want := make([]byte, min(e.Len, 1<<20)), make([]byte, min(e.Len, 1<<20))
				if _, err := img.ReadAt(got, off); err != nil {
					t.Fatal(err)
				}
				if _, err := truth.ReadAt(want, off); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got, want) {
					t.Fatalf("%s: at %d: other bytes", sub, off)
				}
			}
			off += e.Len
		}
		if missing == 0 || missing == size {
			t.Errorf("%s: %d of %d bytes missing", sub, missing, size)
		}
	}
}

func TestZeroedGrains(t *testing.T) {
	dir := t.TempDir()
	raw := content(t, dir, 8<<20)
	base, top := filepath.Join(dir, "base.vmdk"), filepath.Join(dir, "top.vmdk")
	formatstest.Exec(t, "qemu-img", "convert", "-O", "vmdk", raw, base)
	formatstest.Exec(t, "qemu-img", "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", base, "-o", "zeroed_grain=on", top)
	formatstest.Exec(t, "qemu-io", "-f", "vmdk", "-c", "write -z 64k 256k", "-c", "write -P 7 1M 64k", top)
	truth, size := formatstest.Convert(t, top)
	formatstest.Run(t, formatstest.Case{Open: opener(top), Truth: truth, Size: size})
	formatstest.CompareMap(t, top, opener(top)(t))
}

func TestRedundantDirectory(t *testing.T) {
	raw := content(t, t.TempDir(), diskSize)
	path := image(t, raw, "monolithicSparse")
	good := read(t, path)
	truth, size := formatstest.Convert(t, path)
	gd := int(le32(good[56:])) * 512
	gt := int(le32(good[gd:])) * 512
	wipe := func(b []byte, with byte) { copy(b, bytes.Repeat([]byte{with}, len(b))) }
	for _, c := range []struct {
		name   string
		damage func(b []byte)
	}{
		{"directory wiped", func(b []byte) { wipe(b[gd:gd+12], 0) }},
		{"directory garbled", func(b []byte) { wipe(b[gd:gd+12], 0xf7) }},
		{"one entry", func(b []byte) { wipe(b[gd+4:gd+8], 0xee) }},
		{"directory's place", func(b []byte) { wipe(b[56:64], 0x55) }},
		{"table wiped", func(b []byte) { wipe(b[gt:gt+2048], 0) }},
		{"table's sector garbled", func(b []byte) { wipe(b[gt:gt+512], 0xff) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Clone(good)
			c.damage(b)
			path := in(t, "damaged.vmdk")
			write(t, path, b)
			formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: truth, Size: size})
			img := opener(path)(t)
			if len(img.Notes) != 1 || !strings.Contains(img.Notes[0], "redundant") || len(img.Problems) > 0 {
				t.Errorf("notes %q, problems %v", img.Notes, img.Problems)
			}
		})
	}
	// With both gone a table's range is missing, and the rest stays.
	b := bytes.Clone(good)
	wipe(b[gd:gd+4], 0xee)
	wipe(b[int(le32(good[48:]))*512:][:4], 0xee)
	write(t, path, b)
	img := opener(path)(t)
	if len(img.Problems) != 1 {
		t.Errorf("problems %v", img.Problems)
	}
	if e, err := img.ExtentAt(0, size); err == nil || e.Kind != formats.Missing || e.Len != 32<<20 {
		t.Errorf("%v, %v", e, err)
	}
	if _, err := img.ReadAt(make([]byte, 4096), 40<<20); err != nil {
		t.Error(err)
	}
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

// edit replaces a text in a file once.
func edit(t testing.TB, path, old, new string) {
	t.Helper()
	b := read(t, path)
	if !bytes.Contains(b, []byte(old)) {
		t.Fatalf("%s does not hold %q", path, old)
	}
	write(t, path, bytes.Replace(b, []byte(old), []byte(new), 1))
}

func TestProbe(t *testing.T) {
	dir := t.TempDir()
	raw := content(t, dir, 1<<20)
	flat := image(t, raw, "monolithicFlat")
	for name, want := range map[string]string{
		raw:  "raw",
		flat: "vmdk",
		strings.TrimSuffix(flat, ".vmdk") + "-flat.vmdk": "raw",
	} {
		if img := opener(name)(t); img.Format != want {
			t.Errorf("%s: %s", name, img.Format)
		}
	}
	for _, text := range []string{"", "# Disk\n", "version=1\n", "version=1\nfoo=2\ncreateType=\"vmfs\"\n", "KDMV", "encoding=\"UTF-8\"\n"} {
		path := in(t, "text")
		write(t, path, []byte(text))
		if img, err := formatstest.TryOpen(t, all.Formats, path, nil); err != nil || img.Format != "raw" {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestMixed is a disk of extents of several kinds, which QEMU does not read.
func TestMixed(t *testing.T) {
	raw := read(t, content(t, t.TempDir(), 4<<20))
	zeros := make([]byte, 3<<20)
	want := bytes.Join([][]byte{raw[:1<<20], zeros[:512*3], raw, raw[1<<20 : 2<<20], zeros}, nil)
	dir := t.TempDir()
	write(t, filepath.Join(dir, "flat"), raw)
	write(t, filepath.Join(dir, "delta"), cowd(raw, 512))
	path := describe(t, filepath.Join(dir, "d.vmdk"), "custom", "",
		sizeLine(1<<20, `FLAT "flat" 0`), sizeLine(512*3, `ZERO`), "RDONLY "+sizeLine(len(raw), `VMFSSPARSE "delta"`)[3:],
		sizeLine(1<<20, `FLAT "flat" 2048`), "NOACCESS "+sizeLine(len(zeros), "ZERO")[3:])
	formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: bytes.NewReader(want), Size: int64(len(want))})
	if img := opener(path)(t); len(img.Files) != 3 || len(img.Notes)+len(img.Problems) > 0 {
		t.Errorf("%d files, notes %q, problems %v", len(img.Files), img.Notes, img.Problems)
	}
	// A sparse extent may hold the descriptor of more extents, or be nothing but a descriptor.
	first := read(t, image(t, content(t, t.TempDir(), 4<<20), "monolithicSparse"))
	both := bytes.Clone(first)
	copy(both[512:], "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"custom\"\n"+
		sizeLine(4<<20, `SPARSE "itself"`)+"\n"+sizeLine(1<<20, `FLAT "flat" 0`)+"\n\x00")
	want = append(bytes.Clone(raw), raw[:1<<20]...)
	write(t, path, both)
	formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: bytes.NewReader(want), Size: int64(len(want))})
	put(both[12:], uint64(0))
	copy(both[512:], "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\n"+sizeLine(4<<20, `VMFS "flat"`)+"\n\x00")
	write(t, path, both)
	same(t, path, raw)
}

// TestLarge bounds what a disk of 16 TiB costs, all of whose tables are there.
func TestLarge(t *testing.T) {
	path := in(t, "large.vmdk")
	formatstest.Exec(t, "qemu-img", "create", "-q", "-f", "vmdk", path, "16T")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	img := opener(path)(t)
	b := make([]byte, 4096)
	for i := range int64(20000) {
		if _, err := img.ReadAt(b, i*(16<<40/20000)); err != nil {
			t.Fatal(err)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if used := int64(after.HeapAlloc) - int64(before.HeapAlloc); used > 16<<20 {
		t.Errorf("%d MiB", used>>20)
	}
	runtime.KeepAlive(img)
}
