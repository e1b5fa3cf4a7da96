package vdi_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/all"
	"vmkit/formats/formatstest"
	"vmkit/formats/ondisk"
	"vmkit/formats/vdi"
)

// content makes a raw disk with noise, repeated bytes and holes, and gives its path.
func content(t testing.TB, size int) (string, []byte) {
	t.Helper()
	b := make([]byte, size)
	rnd := rand.New(rand.NewPCG(3, 4))
	for _, at := range []int{0, 3<<20 - 600, 5 << 20, size - 1000} {
		for i := range min(1<<20, size-at) {
			b[at+i] = byte(rnd.Uint32())
		}
	}
	path := filepath.Join(t.TempDir(), "content.raw")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path, b
}

func opener(path string) func(testing.TB) *formats.Image {
	return func(t testing.TB) *formats.Image { return formatstest.Open(t, all.Formats, path, nil) }
}

func image(t testing.TB, size int, options string) (path string, raw []byte) {
	t.Helper()
	src, raw := content(t, size)
	path = filepath.Join(t.TempDir(), "disk.vdi")
	formatstest.Exec(t, "qemu-img", "convert", "-O", "vdi", "-o", options, src, path)
	return path, raw
}

func TestQEMU(t *testing.T) {
	for _, options := range []string{"static=off", "static=on"} {
		t.Run(options, func(t *testing.T) {
			path, raw := image(t, 12<<20+512*3, options)
			formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: bytes.NewReader(raw), Size: int64(len(raw))})
			img := opener(path)(t)
			if img.Format != "vdi" || len(img.Problems)+len(img.Notes) > 0 {
				t.Errorf("%s, notes %q, problems %v", img.Format, img.Notes, img.Problems)
			}
			formatstest.CompareMap(t, path, img)
		})
	}
}

// patched writes a changed copy of an image.
func patched(t testing.TB, path string, off int, set any) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := binary.Encode(b[off:], binary.LittleEndian, set); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "patched.vdi")
	if err := os.WriteFile(out, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDifferencing(t *testing.T) {
	path, raw := image(t, 8<<20, "static=off")
	path = patched(t, path, 76, uint32(4))
	path = patched(t, path, 424, [16]byte{0x78, 0x56, 0x34, 0x12})
	_, err := formatstest.TryOpen(t, all.Formats, path, nil)
	if !errors.Is(err, ondisk.ErrUnsupported) || !strings.Contains(err.Error(), "UUID 12345678-0000-0000-0000-000000000000") {
		t.Fatalf("error %v", err)
	}
	var gone [8]formats.Kind // by block
	for i := range gone {
		if len(bytes.Trim(raw[i<<20:(i+1)<<20], "\x00")) == 0 {
			gone[i] = formats.Missing
		}
	}
	formatstest.Run(t, formatstest.Case{
		Open: func(t testing.TB) *formats.Image {
			return formatstest.Open(t, all.Formats, path, func(o *formats.Opener) { o.AllowMissing = true })
		},
		Truth: bytes.NewReader(raw), Size: int64(len(raw)),
		Gone: func(off int64) formats.Kind { return gone[off>>20] },
	})
}

// TestZeroBlock is what VirtualBox and QEMU leave of a block that was discarded.
func TestZeroBlock(t *testing.T) {
	path, raw := image(t, 8<<20, "static=off")
	path = patched(t, path, 512, uint32(0xfffffffe))
	clear(raw[:1<<20])
	formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: bytes.NewReader(raw), Size: int64(len(raw))})
}

func TestBad(t *testing.T) {
	path, _ := image(t, 4<<20, "static=off")
	for _, c := range []struct {
		off  int
		set  any
		err  error
		text string
	}{
		{68, uint32(0x00020000), ondisk.ErrUnsupported, "version 2.0 at byte 0x44"},
		{76, uint32(9), ondisk.ErrUnsupported, "image type 9 at byte 0x4c"},
		{340, uint32(1 << 30), ondisk.ErrTruncated, "block table"},
		{360, uint32(4096), ondisk.ErrUnsupported, "sector size 4096"},
		{368, uint64(1 << 50), ondisk.ErrCorrupt, "disk size"},
		{376, uint32(12345), ondisk.ErrCorrupt, "block size 12345"},
		{380, uint32(1 << 30), ondisk.ErrCorrupt, "bytes before a block"},
		{384, uint32(1 << 31), ondisk.ErrTruncated, "block table"},
	} {
		_, err := formatstest.TryOpen(t, all.Formats, patched(t, path, c.off, c.set), nil)
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("byte %d = %v: %v", c.off, c.set, err)
		}
	}
	// A block outside the file, and a file that is cut: missing, with an error, and the rest stays.
	img := opener(patched(t, path, 512, uint32(1<<20)))(t)
	if e, err := img.ExtentAt(77, 4<<20); e.Kind != formats.Missing || e.Len != 1<<20-77 || !errors.Is(err, ondisk.ErrTruncated) {
		t.Errorf("%v, %d, %v", e.Kind, e.Len, err)
	}
	if _, err := img.ReadAt(make([]byte, 512), 2<<20); err != nil {
		t.Error(err)
	}
}

func FuzzOpen(f *testing.F) {
	path, _ := image(f, 4<<20, "static=off")
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	small := bytes.Clone(b[:12<<10])
	binary.LittleEndian.PutUint64(small[368:], 16<<10) // blocks of 4 KiB
	binary.LittleEndian.PutUint32(small[376:], 4<<10)
	f.Add(small)
	f.Fuzz(func(t *testing.T, b []byte) { formatstest.Fuzz(t, vdi.Format, b) })
}
