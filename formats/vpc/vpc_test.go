package vpc_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"

	"vmkit/formats"
	"vmkit/formats/all"
	"vmkit/formats/formatstest"
	"vmkit/formats/ondisk"
	"vmkit/formats/vpc"
)

// content is a disk with noise, and holes between.
func content(size int) []byte {
	b := make([]byte, size)
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, at := range []int{0, 3<<20 - 600, 5 << 20, size - 1000} {
		for i := range max(0, min(1<<20, size-at)) {
			b[at+i] = byte(rnd.Uint32())
		}
	}
	return b
}

func write(t testing.TB, path string, b []byte) string {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func in(t testing.TB, name string) string { return filepath.Join(t.TempDir(), name) }

func opener(path string) func(testing.TB) *formats.Image {
	return func(t testing.TB) *formats.Image { return formatstest.Open(t, all.Formats, path, nil) }
}

// image makes a VHD with qemu-img and gives what it holds, which may end in zeros up to a whole geometry.
func image(t testing.TB, size int, options string) (path string, raw []byte) {
	t.Helper()
	path = in(t, "disk.vhd")
	formatstest.Exec(t, "qemu-img", "convert", "-O", "vpc", "-o", options, write(t, in(t, "raw"), content(size)), path)
	truth, _ := formatstest.Convert(t, path, "-f", "vpc")
	return path, read(t, truth.Name())
}

func TestQEMU(t *testing.T) {
	for _, options := range []string{"subformat=dynamic", "subformat=fixed", "subformat=dynamic,force_size=on", "subformat=fixed,force_size=on"} {
		t.Run(options, func(t *testing.T) {
			path, raw := image(t, 11<<20+512*3, options)
			formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: bytes.NewReader(raw), Size: int64(len(raw))})
			img := opener(path)(t)
			if img.Format != "vpc" || len(img.Problems)+len(img.Notes) > 0 {
				t.Errorf("%s, notes %q, problems %v", img.Format, img.Notes, img.Problems)
			}
			formatstest.CompareMap(t, path, img, "-f", "vpc")
		})
	}
}

const footerLen = 512

func sum(b []byte, at int) {
	binary.BigEndian.PutUint32(b[at:], 0)
	var n uint32
	for _, c := range b {
		n += uint32(c)
	}
	binary.BigEndian.PutUint32(b[at:], ^n)
}

func utf16Bytes(order binary.AppendByteOrder, s string) (b []byte) {
	for _, c := range utf16.Encode([]rune(s)) {
		b = order.AppendUint16(b, c)
	}
	return b
}

// differencing builds what Hyper-V leaves of a snapshot: blocks of 2 MiB whose bitmaps say which sectors are here.
// relative and absolute are the parent's names.
func differencing(size int, changed map[int]byte, parent [16]byte, relative, absolute string) []byte {
	const block = 2 << 20
	be := binary.BigEndian
	foot := make([]byte, footerLen)
	copy(foot, "conectix\x00\x00\x00\x02\x00\x01\x00\x00")
	be.PutUint64(foot[16:], 512)
	copy(foot[28:], "win \x00\x06\x00\x01Wi2k")
	be.PutUint64(foot[40:], uint64(size))
	be.PutUint64(foot[48:], uint64(size))
	be.PutUint32(foot[60:], 4)
	copy(foot[68:], "a differencing d")
	sum(foot, 64)
	entries := (size + block - 1) / block
	rel, abs := utf16Bytes(binary.LittleEndian, relative), utf16Bytes(binary.LittleEndian, absolute)
	head := make([]byte, 1024)
	copy(head, "cxsparse\xff\xff\xff\xff\xff\xff\xff\xff")
	be.PutUint64(head[16:], 4096)
	be.PutUint32(head[24:], 0x10000)
	be.PutUint32(head[28:], uint32(entries))
	be.PutUint32(head[32:], block)
	copy(head[40:], parent[:])
	copy(head[64:], utf16Bytes(be, absolute[strings.LastIndex(absolute, `\`)+1:]))
	for i, l := range []struct {
		platform string
		b        []byte
		at       int
	}{{"W2ku", abs, 2048}, {"W2ru", rel, 3072}} {
		p := head[576+24*i:]
		copy(p, l.platform)
		be.PutUint32(p[4:], 512)
		be.PutUint32(p[8:], uint32(len(l.b)))
		be.PutUint64(p[16:], uint64(l.at))
	}
	sum(head, 36)
	out := append(foot, head...)
	pad := func(n int) { out = append(out, make([]byte, n-len(out))...) }
	pad(2048)
	out = append(out, abs...)
	pad(3072)
	out = append(out, rel...)
	pad(4096)
	bat := make([]byte, (entries*4+511)/512*512)
	for i := range bat {
		bat[i] = 0xff
	}
	out = append(out, bat...)
	for i := range entries {
		bitmap, data, any := make([]byte, 512), make([]byte, block), false
		for s, c := range changed {
			if s >= i*block/512 && s < (i+1)*block/512 {
				any = true
				n := s - i*block/512
				bitmap[n/8] |= 0x80 >> (n % 8)
				copy(data[n*512:], bytes.Repeat([]byte{c}, 512))
			}
		}
		if any {
			be.PutUint32(out[4096+4*i:], uint32(len(out)/512))
			out = append(append(out, bitmap...), data...)
		}
	}
	return append(out, foot...)
}

func uuidOf(vhd []byte) (u [16]byte) { copy(u[:], vhd[len(vhd)-footerLen+68:]); return u }

// pair makes a parent and a disk that differs from it in some sectors, and gives the latter's path and content.
func pair(t testing.TB, parentName, relative, absolute string) (top string, raw []byte) {
	t.Helper()
	path, raw := image(t, 9<<20, "subformat=dynamic,force_size=on")
	dir := t.TempDir()
	base := read(t, path)
	write(t, filepath.Join(dir, parentName), base)
	changed := map[int]byte{0: 1, 3: 2, 4: 3, 5: 4, 8: 5, 15: 6, 16: 7, 4095: 8, 4096: 9, 10000: 10, len(raw)/512 - 1: 11}
	for i := range 600 {
		changed[5000+i] = byte(i)
	}
	for s, c := range changed {
		copy(raw[s*512:], bytes.Repeat([]byte{c}, 512))
	}
	return write(t, filepath.Join(dir, "top.avhd"), differencing(len(raw), changed, uuidOf(base), relative, absolute)), raw
}

func TestDifferencing(t *testing.T) {
	top, raw := pair(t, "base.vhd", `.\base.vhd`, `C:\VMs\base.vhd`)
	formatstest.Run(t, formatstest.Case{Open: opener(top), Truth: bytes.NewReader(raw), Size: int64(len(raw))})
	img := opener(top)(t)
	if len(img.Notes)+len(img.Problems) > 0 || len(img.Files) != 2 {
		t.Errorf("notes %q, problems %v, %d files", img.Notes, img.Problems, len(img.Files))
	}
	t.Run("7z", func(t *testing.T) {
		formatstest.Exec(t, "7z", "x", "-tvhd", "-o"+filepath.Join(filepath.Dir(top), "out"), top)
		names, err := filepath.Glob(filepath.Join(filepath.Dir(top), "out", "*"))
		if err != nil || len(names) != 1 {
			t.Fatalf("%v, %v", names, err)
		}
		if !bytes.Equal(read(t, names[0]), raw) {
			t.Error("7z reads something else")
		}
	})
}

func TestParent(t *testing.T) {
	for _, c := range []struct{ name, relative, absolute, note string }{
		{"moved.vhd", `..\base\moved.vhd`, `C:\VMs\base\moved.vhd`, "was taken for it"},
		{"base.vhd", ``, `C:\VMs\base.vhd`, ""},
		{"base.vhd", `.\old.vhd`, `D:\base.vhd`, "was taken for it"},
	} {
		top, raw := pair(t, c.name, c.relative, c.absolute)
		img := opener(top)(t)
		got := make([]byte, len(raw))
		if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%+v: %v", c, err)
		}
		if len(img.Problems) > 0 || (c.note == "") != (len(img.Notes) == 0) || !strings.Contains(strings.Join(img.Notes, " "), c.note) {
			t.Errorf("%+v: notes %q, problems %v", c, img.Notes, img.Problems)
		}
	}
	top, _ := pair(t, "other.vhd", `.\base.vhd`, `C:\VMs\base.vhd`)
	_, err := formatstest.TryOpen(t, all.Formats, top, nil)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), filepath.Dir(top)+"/base.vhd") {
		t.Errorf("error %v", err)
	}
	img := formatstest.Open(t, all.Formats, top, func(o *formats.Opener) { o.AllowMissing = true })
	for off, kind := range map[int64]formats.Kind{512: formats.Missing, 1536: formats.Data, 8 << 20: formats.Missing} {
		if e, err := img.ExtentAt(off, 512); e.Kind != kind || err != nil {
			t.Errorf("at %d: %v, %v", off, e.Kind, err)
		}
	}
	// A parent with another UUID is offered, with a problem.
	top, _ = pair(t, "base.vhd", `.\base.vhd`, `C:\VMs\base.vhd`)
	base := filepath.Join(filepath.Dir(top), "base.vhd")
	b := read(t, base)
	for _, foot := range [][]byte{b[:footerLen], b[len(b)-footerLen:]} {
		foot[68]++
		sum(foot, 64)
	}
	write(t, base, b)
	if img := opener(top)(t); len(img.Problems) != 1 || !strings.Contains(img.Problems[0].Error(), "another UUID") {
		t.Errorf("problems %v", img.Problems)
	}
}

func TestFooters(t *testing.T) {
	path, raw := image(t, 5<<20, "subformat=dynamic,force_size=on")
	good := read(t, path)
	for _, c := range []struct {
		name, note, problem string
		damage              func(b []byte) []byte
	}{
		{"copy damaged", "copy in front is damaged", "", func(b []byte) []byte { b[100]++; return b }},
		{"end damaged", "copy in front is used", "", func(b []byte) []byte { b[len(b)-1]++; return b }},
		{"end lost", "copy in front is used", "", func(b []byte) []byte { return b[:len(b)-footerLen] }},
		{"both damaged", "", "checksum", func(b []byte) []byte { b[511]++; b[len(b)-1]++; return b }},
		{"header damaged", "", "checksum", func(b []byte) []byte { b[512+1000]++; return b }},
	} {
		img := opener(write(t, in(t, "x.vhd"), c.damage(bytes.Clone(good))))(t)
		got := make([]byte, len(raw))
		if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: %v", c.name, err)
		}
		if len(img.Notes) != min(1, len(c.note)) || c.note != "" && !strings.Contains(img.Notes[0], c.note) ||
			len(img.Problems) != min(1, len(c.problem)) || c.problem != "" && !strings.Contains(img.Problems[0].Error(), c.problem) {
			t.Errorf("%s: notes %q, problems %v", c.name, img.Notes, img.Problems)
		}
	}
	// Virtual PC before 2004 wrote 511 bytes.
	path, raw = image(t, 2<<20, "subformat=fixed,force_size=on")
	b := read(t, path)
	formatstest.Run(t, formatstest.Case{Open: opener(write(t, in(t, "x.vhd"), b[:len(b)-1])), Truth: bytes.NewReader(raw), Size: int64(len(raw))})
}

// TestCut: a fixed disk whose file lacks its middle ends early; a dynamic one lacks its last blocks.
func TestCut(t *testing.T) {
	path, raw := image(t, 2<<20, "subformat=fixed,force_size=on")
	b := read(t, path)
	cut := append(bytes.Clone(b[:1<<20]), b[len(b)-footerLen:]...)
	formatstest.Run(t, formatstest.Case{
		Open: opener(write(t, in(t, "x.vhd"), cut)), Truth: bytes.NewReader(raw), Size: int64(len(raw)),
		Gone: func(off int64) formats.Kind {
			if off >= 1<<20 {
				return formats.Missing
			}
			return 0
		},
	})
	path, raw = image(t, 9<<20, "subformat=dynamic,force_size=on")
	b = read(t, path)
	img := opener(write(t, in(t, "y.vhd"), b[:len(b)/2+77]))(t)
	gone, got := 0, make([]byte, 1)
	for off := 0; off < len(raw); off += 512 {
		if _, err := img.ReadAt(got, int64(off)); errors.Is(err, ondisk.ErrTruncated) {
			gone++
		} else if err != nil || got[0] != raw[off] {
			t.Fatalf("at %d: %v", off, err)
		}
	}
	if gone == 0 || gone == len(raw)/512 {
		t.Errorf("%d sectors missing", gone)
	}
}

func TestBad(t *testing.T) {
	path, _ := image(t, 5<<20, "subformat=dynamic,force_size=on")
	good := read(t, path)
	be := binary.BigEndian
	for _, c := range []struct {
		name string
		set  func(foot, head []byte)
		err  error
		text string
	}{
		{"version", func(f, h []byte) { be.PutUint32(f[12:], 0x20000) }, ondisk.ErrUnsupported, "version 0x20000 at byte 0xc"},
		{"type", func(f, h []byte) { be.PutUint32(f[60:], 7) }, ondisk.ErrUnsupported, "disk type 7 at byte 0x3c"},
		{"size", func(f, h []byte) { be.PutUint64(f[48:], 1<<60) }, ondisk.ErrCorrupt, "size 1152921504606846976"},
		{"header", func(f, h []byte) { be.PutUint64(f[16:], 1<<63) }, ondisk.ErrTruncated, "offset of the dynamic disk header"},
		{"cookie", func(f, h []byte) { h[0] = 'x' }, ondisk.ErrCorrupt, "cookie"},
		{"header version", func(f, h []byte) { be.PutUint32(h[24:], 0) }, ondisk.ErrUnsupported, "version 0x0"},
		{"entries", func(f, h []byte) { be.PutUint32(h[28:], 1) }, ondisk.ErrCorrupt, "entries of the BAT 1"},
		{"block 0", func(f, h []byte) { be.PutUint32(h[32:], 0) }, ondisk.ErrCorrupt, "block size 0"},
		{"block odd", func(f, h []byte) { be.PutUint32(h[32:], 3<<20) }, ondisk.ErrCorrupt, "block size"},
		{"table", func(f, h []byte) { be.PutUint64(h[16:], ^uint64(0)) }, ondisk.ErrTruncated, "BAT"},
		{"no parent", func(f, h []byte) { be.PutUint32(f[60:], 4) }, ondisk.ErrCorrupt, "no name of the parent"},
	} {
		b := bytes.Clone(good)
		foot, head := b[len(b)-footerLen:], b[512:1536]
		c.set(foot, head)
		sum(foot, 64)
		sum(head, 36)
		copy(b[:footerLen], foot)
		_, err := formatstest.TryOpen(t, all.Formats, write(t, in(t, "x.vhd"), b), nil)
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(differencing(32<<10, nil, [16]byte{}, `.\fuzz`, `C:\fuzz`))
	path, _ := image(f, 64<<10, "subformat=fixed,force_size=on")
	f.Add(read(f, path))
	small := differencing(32<<10, nil, [16]byte{}, "", "")
	binary.BigEndian.PutUint32(small[60:], 3)
	binary.BigEndian.PutUint32(small[512+28:], 8)
	binary.BigEndian.PutUint32(small[512+32:], 4096)
	binary.BigEndian.PutUint32(small[4096:], 9)
	f.Add(small)
	f.Fuzz(func(t *testing.T, b []byte) { formatstest.Fuzz(t, vpc.Format, b) })
}
