package vmdk_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/all"
	"vmkit/formats/formatstest"
	"vmkit/formats/ondisk"
	"vmkit/formats/vmdk"
)

func TestRefusedDescriptor(t *testing.T) {
	for _, c := range []struct {
		createType, line string
		err              error
		text             string
	}{
		{"fullDevice", `RW 100 FLAT "/dev/sda" 0`, ondisk.ErrUnsupported, "createType fullDevice"},
		{"partitionedDevice", `RW 63 FLAT "d-pt.vmdk" 0`, ondisk.ErrUnsupported, "createType partitionedDevice"},
		{"vmfsRaw", `RW 100 VMFSRAW "d-rdmp.vmdk"`, ondisk.ErrUnsupported, "createType vmfsRaw"},
		{"vmfsRawDeviceMap", `RW 100 VMFSRDM "d-rdm.vmdk"`, ondisk.ErrUnsupported, "createType vmfsRawDeviceMap"},
		{"vmfsPassthroughRawDeviceMap", `RW 100 VMFSRDM "d-rdmp.vmdk"`, ondisk.ErrUnsupported, "createType vmfsPass"},
		{"custom", `RW 100 VMFSRDM "d-rdm.vmdk"`, ondisk.ErrUnsupported, "extent of type VMFSRDM"},
		{"custom", `RW 100 FLAT "\\.\PhysicalDrive1" 0`, ondisk.ErrUnsupported, "PhysicalDrive1"},
		{"vmfs", `RW 100 VMFS "vsan://a6f0/x.vmdk"`, ondisk.ErrUnsupported, "vsan:"},
		{"custom", `RW 100 FRACTAL "x"`, ondisk.ErrUnsupported, "extent type FRACTAL"},
		{"custom", ``, ondisk.ErrCorrupt, "no extents"},
		{"custom", "RW 2251799813685248 ZERO\nRW 1 ZERO", ondisk.ErrCorrupt, "more than 1 EiB"},
		{"monolithicSparse", `RW 100 SPARSE "text"`, ondisk.ErrCorrupt, "magic number"},
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "text"), []byte(strings.Repeat("no sparse extent ", 100)))
		_, err := formatstest.TryOpen(t, all.Formats, describe(t, filepath.Join(dir, "d.vmdk"), c.createType, "", c.line), nil)
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s, %s: %v", c.createType, c.line, err)
		}
	}
}

func TestRefusedHeader(t *testing.T) {
	raw := read(t, content(t, t.TempDir(), 1<<20))
	dir := t.TempDir()
	write(t, filepath.Join(dir, "c"), cowd(raw, 512))
	write(t, filepath.Join(dir, "s"), seSparse(raw, none, none))
	images := map[string][]byte{
		"hosted": read(t, image(t, content(t, t.TempDir(), 1<<20), "monolithicSparse")),
		"cowd":   read(t, filepath.Join(dir, "c")),
		"se":     read(t, filepath.Join(dir, "s")),
	}
	for _, c := range []struct {
		image string
		off   int
		set   any
		err   error
		text  string
	}{
		{"hosted", 4, uint32(0), ondisk.ErrUnsupported, "version 0 at byte 0x4"},
		{"hosted", 4, uint32(4), ondisk.ErrUnsupported, "version 4"},
		{"hosted", 8, uint32(0x40003), ondisk.ErrUnsupported, "flags 0x40000 at byte 0x8"},
		{"hosted", 77, uint16(2), ondisk.ErrUnsupported, "compression 2 at byte 0x4d"},
		{"hosted", 12, uint64(1 << 60), ondisk.ErrCorrupt, "capacity 1152921504606846976 at byte 0xc"},
		{"hosted", 12, uint64(1 << 40), ondisk.ErrCorrupt, "grain tables"},
		{"hosted", 12, uint64(1 << 38), ondisk.ErrTruncated, "grain directory"},
		{"hosted", 20, uint64(0), ondisk.ErrCorrupt, "grain size 0 at byte 0x14"},
		{"hosted", 20, uint64(1 << 40), ondisk.ErrCorrupt, "grain size"},
		{"hosted", 44, uint32(0), ondisk.ErrCorrupt, "entries of a grain table 0"},
		{"hosted", 44, uint32(1 << 30), ondisk.ErrCorrupt, "entries of a grain table"},
		{"hosted", 28, uint64(1 << 60), ondisk.ErrCorrupt, "place of the descriptor"},
		{"hosted", 36, uint64(1 << 60), ondisk.ErrCorrupt, "place of the descriptor"},
		{"hosted", 28, uint64(1 << 30), ondisk.ErrTruncated, "vmdk descriptor"},
		{"hosted", 56, ^uint64(0), ondisk.ErrTruncated, "no footer"},
		{"cowd", 4, uint32(2), ondisk.ErrUnsupported, "COWD header: version 2"},
		{"cowd", 16, uint32(0), ondisk.ErrCorrupt, "grain size 0"},
		{"cowd", 16, uint32(1 << 31), ondisk.ErrCorrupt, "grain size"},
		{"cowd", 24, uint32(0), ondisk.ErrCorrupt, "entries of the grain directory 0"},
		{"cowd", 20, uint32(1 << 30), ondisk.ErrTruncated, "grain directory"},
		{"se", 8, uint64(0x0000000200000002), ondisk.ErrUnsupported, "version 0x200000002"},
		{"se", 24, uint64(16), ondisk.ErrUnsupported, "grain size 16"},
		{"se", 32, uint64(32), ondisk.ErrUnsupported, "grain table size 32"},
		{"se", 40, uint64(1), ondisk.ErrUnsupported, "flags 0x1"},
		{"se", 80, uint64(8), ondisk.ErrCorrupt, "volatile header"},
		{"se", 128, uint64(1 << 60), ondisk.ErrCorrupt, "place of the grain directory"},
		{"se", 136, uint64(0), ondisk.ErrCorrupt, "size of the grain directory 0"},
		{"se", 512 + 24, uint64(1), ondisk.ErrUnsupported, "journal that is to be replayed 1"},
	} {
		b := bytes.Clone(images[c.image])
		put(b[c.off:], c.set)
		path := in(t, "x.vmdk")
		write(t, path, b)
		_, err := formatstest.TryOpen(t, all.Formats, path, nil)
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s, byte %d = %#x: %v", c.image, c.off, c.set, err)
		}
	}
}

func TestBare(t *testing.T) {
	raw := read(t, content(t, t.TempDir(), 3<<20))
	path := in(t, "d-delta.vmdk")
	b := cowd(raw, 512)
	write(t, path, b)
	img := opener(path)(t)
	if len(img.Problems) != 1 || !strings.Contains(img.Problems[0].Error(), "without a descriptor") {
		t.Errorf("problems %v", img.Problems)
	}
	// ESX 2 wrote the parent's name into the extent.
	copy(b[32:], "/vmfs/vmhba0:0:0:1/base.vmdk")
	write(t, path, b)
	if _, err := formatstest.TryOpen(t, all.Formats, path, nil); err == nil || !strings.Contains(err.Error(), "base.vmdk") {
		t.Errorf("error %v", err)
	}
	img = formatstest.Open(t, all.Formats, path, func(o *formats.Opener) { o.AllowMissing = true })
	if e, err := img.ExtentAt(2<<20, 512); e.Kind != formats.Missing || err != nil {
		t.Errorf("%v, %v", e.Kind, err)
	}
}

func TestEncryptedDisk(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "d-flat.vmdk"), make([]byte, 1<<20))
	img := opener(describe(t, filepath.Join(dir, "d.vmdk"), "vmfs", "ddb.iofilters = \"vmwarevmcrypt\"\n", sizeLine(1<<20, `VMFS "d-flat.vmdk"`)))(t)
	if e, err := img.ExtentAt(5, 100); e.Kind != formats.Encrypted || err != nil || img.Encryption != "vmware" {
		t.Errorf("%v, %v, %q", e.Kind, err, img.Encryption)
	}
}

func FuzzOpen(f *testing.F) {
	// Small seeds, so that what is changed in them matters.
	raw := bytes.Repeat([]byte("seed "), 40000)
	clear(raw[8<<10 : 120<<10])
	stream := vmwareStream(raw[:200000/512*512], 21)
	hosted := append(hostedHeader(7, 300, 22, 22, 21, 0), make([]byte, 21*512)...)
	hosted = append(hosted, 23)
	hosted = append(hosted, make([]byte, 511)...)
	seeds := [][]byte{
		stream, stream[:len(stream)-2000], cowd(raw[:9<<10], 512), seSparse(raw[:16<<10], none, none)[:3<<12],
		append(hosted, 1, 0, 0, 0, 24, 0, 0, 0, 1, 0, 0, 0),
	}
	for _, line := range []string{`RW 100 FLAT "fuzz" 1`, `RW 100 ZERO`, `RW 100 SPARSE "fuzz"`} {
		seeds = append(seeds, read(f, describe(f, in(f, "d"), "custom", "parentFileNameHint=\"parent\"\n", line)))
	}
	for _, b := range seeds {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { formatstest.Fuzz(t, vmdk.Format, b) })
}
