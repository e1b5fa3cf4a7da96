package vhdx_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
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
	"vmkit/formats/vhdx"
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

// image makes a VHDX with qemu-img.
func image(t testing.TB, size int, options string) (path string, raw []byte) {
	t.Helper()
	raw = content(size)
	path = in(t, "disk.vhdx")
	formatstest.Exec(t, "qemu-img", "convert", "-O", "vhdx", "-o", options, write(t, in(t, "raw"), raw), path)
	return path, raw
}

func TestQEMU(t *testing.T) {
	for _, options := range []string{"subformat=dynamic,block_size=1M", "subformat=dynamic,block_size=8M", "subformat=fixed,block_size=1M"} {
		t.Run(options, func(t *testing.T) {
			path, raw := image(t, 11<<20+512*3, options)
			formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: bytes.NewReader(raw), Size: int64(len(raw))})
			img := opener(path)(t)
			if img.Format != "vhdx" || img.State != formats.StateClean || img.SectorSize != 512 || len(img.Problems)+len(img.Notes) > 0 {
				t.Errorf("%s, %s, notes %q, problems %v", img.Format, img.State, img.Notes, img.Problems)
			}
			// qemu-img map knows no places in a VHDX.
		})
	}
}

var le = binary.LittleEndian

// sum sets the CRC-32C that stands at byte 4.
func sum(b []byte) {
	le.PutUint32(b[4:], 0)
	le.PutUint32(b[4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
}

func utf16Bytes(s string) (b []byte) {
	for _, c := range utf16.Encode([]rune(s)) {
		b = le.AppendUint16(b, c)
	}
	return b
}

// guid gives the stored form of a GUID.
func guid(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil {
		panic(err)
	}
	for _, p := range [][2]int{{0, 3}, {1, 2}, {4, 5}, {6, 7}} {
		b[p[0]], b[p[1]] = b[p[1]], b[p[0]]
	}
	return b
}

const (
	mib       = 1 << 20
	dataWrite = "11111111-2222-3333-4444-555555555555" // of a parent
)

// header makes a header with a sequence number.
func header(seq uint64, log []byte, logAt, logLen int, data string) []byte {
	h := make([]byte, 4096)
	copy(h, "head")
	le.PutUint64(h[8:], seq)
	copy(h[16:], guid("99999999-8888-7777-6666-555555555555"))
	copy(h[32:], guid(data))
	copy(h[48:], log)
	le.PutUint16(h[66:], 1)
	le.PutUint32(h[68:], uint32(logLen))
	le.PutUint64(h[72:], uint64(logAt))
	sum(h)
	return h
}

// build makes a file with blocks of 1 MiB: of chosen states, and for partial ones with the sectors that changed tells.
// Places: log at 1 MiB, metadata at 2, BAT at 3, sector bitmap at 4, blocks from 5.
func build(size int, sectorSize int, states map[int]byte, changed map[int]byte, locator map[string]string) []byte {
	out := make([]byte, 5*mib)
	copy(out, "vhdxfile")
	copy(out[64<<10:], header(7, make([]byte, 16), mib, mib, dataWrite))
	copy(out[128<<10:], header(6, make([]byte, 16), mib, mib, dataWrite))
	table := make([]byte, 64<<10)
	copy(table, "regi")
	le.PutUint32(table[8:], 2)
	for i, r := range []struct {
		guid string
		at   uint64
	}{{"2dc27766-f623-4200-9d64-115e9bfd4a08", 3 * mib}, {"8b7ca206-4790-4b9a-b8fe-575f050f886e", 2 * mib}} {
		p := table[16+32*i:]
		copy(p, guid(r.guid))
		le.PutUint64(p[16:], r.at)
		le.PutUint32(p[24:], mib)
		le.PutUint32(p[28:], 1)
	}
	sum(table)
	copy(out[192<<10:], table)
	copy(out[256<<10:], table)

	meta := out[2*mib:]
	copy(meta, "metadata")
	n, at := 0, 64<<10
	item := func(id string, b []byte) {
		p := meta[32+32*n:]
		copy(p, guid(id))
		le.PutUint32(p[16:], uint32(at))
		le.PutUint32(p[20:], uint32(len(b)))
		le.PutUint32(p[24:], 4)
		copy(meta[at:], b)
		n, at = n+1, at+len(b)
		le.PutUint16(meta[10:], uint16(n))
	}
	flags := uint64(0)
	if locator != nil {
		flags = 2
		b := append(guid("b04aefb7-d19e-4a81-b789-25b8e9445913"), 0, 0, byte(len(locator)), 0)
		strs := 20 + 12*len(locator)
		var text []byte
		for k, v := range locator {
			key, value := utf16Bytes(k), utf16Bytes(v)
			b = le.AppendUint32(b, uint32(strs+len(text)))
			b = le.AppendUint32(b, uint32(strs+len(text)+len(key)))
			b = le.AppendUint16(b, uint16(len(key)))
			b = le.AppendUint16(b, uint16(len(value)))
			text = append(append(text, key...), value...)
		}
		item("a8d35f2d-b30b-454d-abf7-d3d84834ab0c", append(b, text...))
	}
	item("caa16737-fa36-4d43-b3b6-33f0aa44e76b", le.AppendUint64(nil, mib|flags<<32))
	item("2fa54224-cd1b-4876-b211-5dbed83bf4b8", le.AppendUint64(nil, uint64(size)))
	item("beca12ab-b2e6-4523-93ef-c309e000c746", make([]byte, 16))
	item("8141bf1d-a96f-4709-ba47-f233a8faab5f", le.AppendUint32(nil, uint32(sectorSize)))
	item("cda348c7-445d-4471-9cc9-e9885251c556", le.AppendUint32(nil, 4096))

	chunk := 8 << 20 * sectorSize / mib
	bat, bitmap := out[3*mib:], out[4*mib:5*mib]
	le.PutUint64(bat[8*chunk:], 4*mib|6)
	for i := 0; i < (size+mib-1)/mib; i++ {
		state := states[i]
		v := uint64(state)
		if state >= 6 {
			v |= uint64(len(out))
			block := make([]byte, mib)
			for s := range mib / sectorSize {
				c, ok := changed[i*mib/sectorSize+s]
				if ok {
					bitmap[(i*mib/sectorSize+s)/8] |= 1 << (s % 8)
				}
				copy(block[s*sectorSize:], bytes.Repeat([]byte{c}, sectorSize))
			}
			out = append(out, block...)
			bat = out[3*mib:]
			bitmap = out[4*mib : 5*mib]
		}
		le.PutUint64(bat[8*i:], v)
	}
	return out
}

// pair makes a parent of 6 MiB and a disk that differs from it, and gives the latter's path and content.
func pair(t testing.TB, parentName string, locator map[string]string) (top string, raw []byte) {
	t.Helper()
	const size = 6*mib + 4096
	dir := t.TempDir()
	all := map[int]byte{}
	for s := range size / 512 {
		all[s] = byte(s/7 + 1)
	}
	write(t, filepath.Join(dir, parentName), build(size, 512, map[int]byte{0: 6, 1: 6, 2: 6, 5: 6, 6: 6}, all, nil))
	raw = make([]byte, size)
	for s, c := range all {
		if b := s / 2048; b != 3 && b != 4 {
			copy(raw[s*512:(s+1)*512], bytes.Repeat([]byte{c}, 512))
		}
	}
	changed := map[int]byte{0: 1, 3: 2, 4: 3, 5: 4, 8: 5, 15: 6, 16: 7, 2047: 8}
	for i := range 600 {
		changed[3*2048+700+i] = byte(i)
	}
	for i := range 2048 {
		changed[4*2048+i] = 77
	}
	for s, c := range changed {
		copy(raw[s*512:], bytes.Repeat([]byte{c}, 512))
	}
	clear(raw[1*mib : 2*mib])
	states := map[int]byte{0: 7, 1: 2, 3: 7, 4: 6}
	return write(t, filepath.Join(dir, "top.avhdx"), build(size, 512, states, changed, locator)), raw
}

func linked(relative, absolute string) map[string]string {
	return map[string]string{"parent_linkage": "{" + dataWrite + "}", "relative_path": relative, "absolute_win32_path": absolute}
}

func TestDifferencing(t *testing.T) {
	top, raw := pair(t, "base.vhdx", linked(`.\base.vhdx`, `C:\VMs\base.vhdx`))
	formatstest.Run(t, formatstest.Case{Open: opener(top), Truth: bytes.NewReader(raw), Size: int64(len(raw))})
	img := opener(top)(t)
	if len(img.Notes)+len(img.Problems) > 0 || len(img.Files) != 2 {
		t.Errorf("notes %q, problems %v, %d files", img.Notes, img.Problems, len(img.Files))
	}
	t.Run("7z", func(t *testing.T) {
		if !bytes.Contains(formatstest.Exec(t, "7z", "i"), []byte("VHDX")) {
			t.Skip("this 7z knows no VHDX")
		}
		out := t.TempDir()
		formatstest.Exec(t, "7z", "x", "-tvhdx", "-o"+out, top)
		names, err := filepath.Glob(filepath.Join(out, "*"))
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
		{"moved.vhdx", `..\base\moved.vhdx`, `C:\VMs\base\moved.vhdx`, "was taken for it"},
		{"base.vhdx", ``, `C:\VMs\base.vhdx`, ""},
	} {
		top, raw := pair(t, c.name, linked(c.relative, c.absolute))
		img := opener(top)(t)
		got := make([]byte, len(raw))
		if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%+v: %v", c, err)
		}
		if len(img.Problems) > 0 || (c.note == "") != (len(img.Notes) == 0) || !strings.Contains(strings.Join(img.Notes, " "), c.note) {
			t.Errorf("%+v: notes %q, problems %v", c, img.Notes, img.Problems)
		}
	}
	top, _ := pair(t, "other.vhdx", linked(`.\base.vhdx`, ``))
	_, err := formatstest.TryOpen(t, all.Formats, top, nil)
	if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), filepath.Dir(top)+"/base.vhdx") {
		t.Errorf("error %v", err)
	}
	img := formatstest.Open(t, all.Formats, top, func(o *formats.Opener) { o.AllowMissing = true })
	for off, kind := range map[int64]formats.Kind{0: formats.Data, 512: formats.Missing, 1 * mib: formats.Zero, 2 * mib: formats.Missing} {
		if e, err := img.ExtentAt(off, 512); e.Kind != kind || err != nil {
			t.Errorf("at %d: %v, %v", off, e.Kind, err)
		}
	}
	changed := linked(`.\base.vhdx`, ``)
	changed["parent_linkage"] = "{aaaaaaaa-2222-3333-4444-555555555555}"
	top, _ = pair(t, "base.vhdx", changed)
	if img := opener(top)(t); len(img.Problems) != 1 || !strings.Contains(img.Problems[0].Error(), "changed since") {
		t.Errorf("problems %v", img.Problems)
	}
}

// TestSectors4096 has no oracle but the specification: QEMU writes no such disks.
func TestSectors4096(t *testing.T) {
	all := map[int]byte{}
	raw := make([]byte, 3*mib)
	for s := range len(raw) / 4096 {
		all[s] = byte(s)
		copy(raw[s*4096:], bytes.Repeat([]byte{byte(s)}, 4096))
	}
	clear(raw[mib : 2*mib])
	path := write(t, in(t, "x.vhdx"), build(len(raw), 4096, map[int]byte{0: 6, 2: 6}, all, nil))
	formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: bytes.NewReader(raw), Size: int64(len(raw))})
	if img := opener(path)(t); img.SectorSize != 4096 {
		t.Errorf("sector size %d", img.SectorSize)
	}
}

func TestCopies(t *testing.T) {
	path, raw := image(t, 3*mib, "subformat=dynamic,block_size=1M")
	good := read(t, path)
	for name, at := range map[string]int{"header 1": 64 << 10, "header 2": 128 << 10, "region table": 192 << 10, "copy of the region table": 256 << 10} {
		b := bytes.Clone(good)
		b[at+100]++
		img := opener(write(t, in(t, "x.vhdx"), b))(t)
		got := make([]byte, len(raw))
		if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: %v", name, err)
		}
		if want := min(1, strings.Count("header 1 header 2 region table", name)); len(img.Notes) != want {
			t.Errorf("%s: notes %q", name, img.Notes)
		}
	}
}

func TestBad(t *testing.T) {
	good := build(3*mib, 512, map[int]byte{0: 6}, nil, nil)
	resum := func(b []byte) {
		for _, at := range []int{64 << 10, 128 << 10} {
			sum(b[at : at+4096])
		}
		for _, at := range []int{192 << 10, 256 << 10} {
			sum(b[at : at+64<<10])
		}
	}
	for _, c := range []struct {
		name string
		set  func(b []byte)
		err  error
		text string
	}{
		{"both headers", func(b []byte) { b[64<<10], b[128<<10] = 0, 0 }, ondisk.ErrCorrupt, "neither is whole"},
		{"same number", func(b []byte) { b[128<<10+8] = 7; b[128<<10+16]++ }, ondisk.ErrCorrupt, "sequence number 7"},
		{"version", func(b []byte) { b[64<<10+66] = 2 }, ondisk.ErrUnsupported, "version 2"},
		{"log version", func(b []byte) { b[64<<10+48] = 1; b[64<<10+64] = 1 }, ondisk.ErrUnsupported, "log version 1"},
		{"log length", func(b []byte) { b[64<<10+48] = 1; b[64<<10+68] = 1 }, ondisk.ErrCorrupt, "length of the log"},
		{"log place", func(b []byte) { b[64<<10+48] = 1; b[64<<10+79] = 1 }, ondisk.ErrTruncated, "place of the log"},
		{"log empty", func(b []byte) { b[64<<10+48] = 1 }, ondisk.ErrCorrupt, "none is whole"},
		{"region tables", func(b []byte) { b[192<<10], b[256<<10] = 0, 0 }, ondisk.ErrCorrupt, "neither copy is whole"},
		{"region", func(b []byte) { b[192<<10+16]++ }, ondisk.ErrUnsupported, "region 2dc27767-f623-4200-9d64-115e9bfd4a08"},
		{"regions", func(b []byte) { b[192<<10+8] = 1 }, ondisk.ErrCorrupt, "no region"},
		{"many regions", func(b []byte) { b[192<<10+9] = 0xff }, ondisk.ErrCorrupt, "entries"},
		{"region's place", func(b []byte) { b[192<<10+16+23] = 0xff }, ondisk.ErrTruncated, "region"},
		{"metadata", func(b []byte) { b[2*mib] = 0 }, ondisk.ErrCorrupt, "vhdx metadata: signature"},
		{"items", func(b []byte) { b[2*mib+11] = 0xff }, ondisk.ErrCorrupt, "entries"},
		{"item", func(b []byte) { b[2*mib+32]++ }, ondisk.ErrUnsupported, "item caa16738-fa36-4d43-b3b6-33f0aa44e76b"},
		{"item's place", func(b []byte) { b[2*mib+32+19] = 0xff }, ondisk.ErrCorrupt, "item"},
		{"no size", func(b []byte) { b[2*mib+10] = 1 }, ondisk.ErrCorrupt, "no disk size"},
		{"block size", func(b []byte) { b[2*mib+64<<10] = 1 }, ondisk.ErrCorrupt, "block size 1048577"},
		{"sector size", func(b []byte) { b[2*mib+64<<10+32] = 9 }, ondisk.ErrCorrupt, "logical sector size"},
		{"disk size", func(b []byte) { b[2*mib+64<<10+15] = 1 }, ondisk.ErrCorrupt, "disk size"},
		{"large disk", func(b []byte) { b[2*mib+64<<10+13] = 1 }, ondisk.ErrCorrupt, "length of the BAT"},
		{"no locator", func(b []byte) { b[2*mib+64<<10+4] = 2 }, ondisk.ErrCorrupt, "without a parent locator"},
	} {
		b := bytes.Clone(good)
		c.set(b)
		resum(b)
		_, err := formatstest.TryOpen(t, all.Formats, write(t, in(t, "x.vhdx"), b), nil)
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// Damage in the BAT is a gap.
	for state, want := range map[uint64]error{4: ondisk.ErrCorrupt, 7: ondisk.ErrCorrupt, 6 | 1<<30: ondisk.ErrTruncated, 6 | 1<<63: ondisk.ErrCorrupt} {
		b := bytes.Clone(good)
		le.PutUint64(b[3*mib:], state)
		img := opener(write(t, in(t, "x.vhdx"), b))(t)
		if e, err := img.ExtentAt(10, 3*mib-10); e.Kind != formats.Missing || e.Len != mib-10 || !errors.Is(err, want) {
			t.Errorf("BAT entry %#x: %v, %d, %v", state, e.Kind, e.Len, err)
		}
	}
}

// FuzzOpen changes numbers in whole files, whose checksums it then sets right: bytes at random would seldom pass them,
// and the files are too large for a fuzzer. Four bytes of the input say where, eight what.
func FuzzOpen(f *testing.F) {
	files := [][]byte{
		build(mib, 512, map[int]byte{0: 6}, nil, nil),
		build(mib, 512, map[int]byte{0: 7}, map[int]byte{1: 1, 2000: 2}, linked("fuzz", "")),
		logged(build(mib, 512, map[int]byte{0: 6}, nil, nil), 0, []logWrite{{at: 3 * mib, data: make([]byte, 4096)}, {at: 4 * mib, zeros: 4096}}),
	}
	places := []int{64 << 10, 192 << 10, 2 * mib, 2*mib + 64<<10, 3 * mib, 4 * mib, mib, mib + 4096}
	for i := range files {
		f.Add(uint8(i), true, []byte{})
		f.Add(uint8(i), false, append([]byte{4, 0, 0, 0}, 6, 0, 0, 0, 0, 0, 0, 0))
		f.Add(uint8(i), true, append([]byte{6, 0, 64, 0}, 0, 0, 0, 0, 0, 0, 0, 1))
	}
	f.Fuzz(func(t *testing.T, which uint8, right bool, patch []byte) {
		b := bytes.Clone(files[int(which)%len(files)])
		for ; len(patch) >= 12; patch = patch[12:] {
			copy(b[places[int(patch[0])%len(places)]+int(le.Uint16(patch[2:])%4088):], patch[4:12])
		}
		if right {
			sum(b[64<<10 : 68<<10])
			sum(b[192<<10 : 256<<10])
			if n := int(le.Uint32(b[mib+8:])); n >= 64 && n < mib {
				sum(b[mib : mib+n])
			}
		}
		formatstest.Fuzz(t, vhdx.Format, b)
	})
}
