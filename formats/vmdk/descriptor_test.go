package vmdk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"reflect"
	"strings"
	"testing"
	"unicode/utf16"

	"vmkit/formats/ondisk"
)

const sample = `# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=fb183c20
parentCID=ffffffff
isNativeSnapshot="no"
createType="twoGbMaxExtentSparse"

# Extent description
RW 4192256 SPARSE "disk s001.vmdk"
RDONLY 63 ZERO
NOACCESS 100 FLAT "disk-pt.vmdk" 63 partitionUUID "\\?\Volume{1}"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
`

func TestParseDescriptor(t *testing.T) {
	want := &descriptor{
		version: 1, encoding: "UTF-8", cid: 0xfb183c20, hasCID: true, parentCID: noParent, createType: "twoGbMaxExtentSparse",
		extents: []extentLine{
			{line: 10, sectors: 4192256, kind: "SPARSE", name: "disk s001.vmdk"},
			{line: 11, sectors: 63, kind: "ZERO"},
			{line: 12, sectors: 100, kind: "FLAT", name: "disk-pt.vmdk", offset: 63},
		},
	}
	utf16le := []byte{0xff, 0xfe}
	for _, u := range utf16.Encode([]rune(sample)) {
		utf16le = binary.LittleEndian.AppendUint16(utf16le, u)
	}
	odd := strings.NewReplacer("RW ", "rw\t", "SPARSE", "Sparse", "CID=", "Cid = ", "createType=", "\tCREATETYPE =  ", "version=1", "  Version = 1 ").Replace(sample)
	for name, text := range map[string][]byte{
		"plain":           []byte(sample),
		"CRLF":            []byte(strings.ReplaceAll(sample, "\n", "\r\n")),
		"byte order mark": []byte("\ufeff" + sample),
		"UTF-16":          utf16le,
		"padded":          append([]byte(sample), make([]byte, 5000)...),
		"odd case":        []byte(odd),
		"no last newline": bytes.TrimSpace([]byte(sample)),
	} {
		got, err := parseDescriptor(text)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if !isDescriptor(text) {
			t.Errorf("%s: not recognised", name)
		}
	}
}

func TestBadDescriptor(t *testing.T) {
	for _, c := range []struct {
		line string
		err  error
		text string
	}{
		{`RW 12x SPARSE "a"`, ondisk.ErrCorrupt, "line 1: extent"},
		{`RW -5 SPARSE "a"`, ondisk.ErrCorrupt, "line 1: extent"},
		{`RW 99999999999999999999 SPARSE "a"`, ondisk.ErrCorrupt, "line 1: extent's size"},
		{`RW 9999999999999999 SPARSE "a"`, ondisk.ErrCorrupt, "line 1: extent's size"},
		{`RW 5 FLAT "a" 9999999999999999`, ondisk.ErrCorrupt, "line 1: extent's offset"},
		{`RW 5 FLAT "a" -1`, ondisk.ErrCorrupt, "line 1: extent"},
		{`RW 5 FLAT a 0`, ondisk.ErrCorrupt, "line 1: extent without a file name"},
		{`RW 5 FLAT "" 0`, ondisk.ErrCorrupt, "line 1: extent without a file name"},
		{"CID=xyz", ondisk.ErrCorrupt, `line 1: CID "xyz"`},
		{"parentCID=123456789", ondisk.ErrCorrupt, "line 1: parentCID"},
		{"version=4", ondisk.ErrUnsupported, "line 1: version 4"},
		{"version=0", ondisk.ErrCorrupt, "line 1: version"},
	} {
		_, err := parseDescriptor([]byte(c.line))
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.line, err)
		}
	}
}

func TestEncrypted(t *testing.T) {
	for _, line := range []string{`encryptionKeys="vmware:key/list/(pair)"`, `ddb.iofilters = "vmwarevmcrypt"`, `encryption.keySafe = "vmware:key"`} {
		d, err := parseDescriptor([]byte(line))
		if err != nil || !d.encrypted {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestLayout(t *testing.T) {
	for _, v := range []any{hostedHeader{}, seHeader{}, seVolatile{}} {
		if n := binary.Size(v); n != sector {
			t.Errorf("%T has %d bytes", v, n)
		}
	}
	if n := binary.Size(cowdHeader{}); n != 1056 {
		t.Errorf("cowdHeader has %d bytes", n)
	}
	// Each field's first byte set alone shows where it is.
	for _, c := range []struct {
		v     any
		field string
		off   int
	}{
		{new(hostedHeader), "Version", 4}, {new(hostedHeader), "Flags", 8}, {new(hostedHeader), "Capacity", 12},
		{new(hostedHeader), "GrainSize", 20}, {new(hostedHeader), "DescOffset", 28}, {new(hostedHeader), "DescSize", 36},
		{new(hostedHeader), "GTEs", 44}, {new(hostedHeader), "RGDOffset", 48}, {new(hostedHeader), "GDOffset", 56},
		{new(hostedHeader), "Overhead", 64}, {new(hostedHeader), "Unclean", 72}, {new(hostedHeader), "Compression", 77},
		{new(cowdHeader), "Version", 4}, {new(cowdHeader), "Capacity", 12}, {new(cowdHeader), "GrainSize", 16},
		{new(cowdHeader), "GDOffset", 20}, {new(cowdHeader), "GDEntries", 24}, {new(cowdHeader), "FreeSector", 28},
		{new(seHeader), "Version", 8}, {new(seHeader), "Capacity", 16}, {new(seHeader), "GrainSize", 24},
		{new(seHeader), "GrainTableSize", 32}, {new(seHeader), "Flags", 40}, {new(seHeader), "VolatileOffset", 80},
		{new(seHeader), "GDOffset", 128}, {new(seHeader), "GDSize", 136}, {new(seHeader), "GTsOffset", 144},
		{new(seHeader), "GrainsOffset", 192}, {new(seVolatile), "ReplayJournal", 24},
	} {
		b := make([]byte, 2*sector+100)
		b[c.off] = 1
		if _, err := binary.Decode(b, binary.LittleEndian, c.v); err != nil {
			t.Fatal(err)
		}
		if f := reflect.ValueOf(c.v).Elem().FieldByName(c.field); f.Uint() != 1 {
			t.Errorf("%T: %s is not at byte %d", c.v, c.field, c.off)
		}
	}
}
