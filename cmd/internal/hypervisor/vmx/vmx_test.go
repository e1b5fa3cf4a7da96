package vmx

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/encoding/japanese"
)

const sample = `#!/usr/bin/vmware
.encoding = "UTF-8"
config.version = "8"
displayName = "Virtual 01"
  ide1:0.fileName="auto detect"	# the host's drive
ide1:0.deviceType = "cdrom-raw"
annotation = "say |22hi|22|0Aa|7Cb"

scsi0:0.present = "TRUE"
scsi0:0.fileName = "Virtual 01.vmdk"
this is nothing
mem = 512
`

func parse(t *testing.T, text string) *File {
	t.Helper()
	f, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func text(t *testing.T, f *File) string {
	t.Helper()
	b, err := f.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestReadAndWriteBack(t *testing.T) {
	for name, s := range map[string]string{
		"sample": sample, "empty": "", "no end": `a = "b"`, "crlf": strings.ReplaceAll(sample, "\n", "\r\n"),
		"bom": bom + sample, "bom alone": bom, "odd": "=\n= \"x\"\nk = \"open\nk=v w\nk = \"v\" w\n\"k\" = \"v\"\n\xff\n",
	} {
		if got := text(t, parse(t, s)); got != s {
			t.Errorf("%s: written back as %q", name, got)
		}
	}
}

func TestValues(t *testing.T) {
	f := parse(t, sample)
	for name, want := range map[string]string{
		"DISPLAYNAME": "Virtual 01", "annotation": "say \"hi\"\na|b", "ide1:0.filename": "auto detect", "mem": "512", "absent": "",
	} {
		if got := f.Value(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if !f.True("scsi0:0.present") || f.True("mem") {
		t.Error("True doesn't know yes from no")
	}
	if got := len(maps.Collect(f.All())); got != 9 {
		t.Errorf("%d names", got)
	}
}

func TestChange(t *testing.T) {
	f := parse(t, sample+`DisplayName = "again"`)
	f.Set("displayname", `Virtual "03" | é`+"\n")
	f.Set("uuid.action", "create")
	if !f.Delete("MEM") || f.Delete("mem") {
		t.Error("Delete doesn't tell whether it was there")
	}
	want := strings.NewReplacer(
		`displayName = "Virtual 01"`, `displayName = "Virtual |2203|22 |7C é|0A"`,
		"mem = 512\n", "",
	).Replace(sample) + "uuid.action = \"create\"\n"
	if d := cmp.Diff(want, text(t, f)); d != "" {
		t.Error(d)
	}
}

func TestLineEnds(t *testing.T) {
	f := parse(t, "a = \"1\"\r\nb = \"2\"")
	f.Set("c", "3")
	if got, want := text(t, f), "a = \"1\"\r\nb = \"2\"\r\nc = \"3\"\r\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestEncodings(t *testing.T) {
	// The second byte of ポ in Shift_JIS is "|", so VMware writes it as |7C.
	sjis, err := japanese.ShiftJIS.NewEncoder().String("ポート")
	if err != nil {
		t.Fatal(err)
	}
	f := parse(t, ".encoding = \"Shift_JIS\"\ndisplayName = "+quote(sjis)+"\n")
	if got := f.Value("displayName"); got != "ポート" {
		t.Errorf("Shift_JIS read as %q", got)
	}
	f.Set("displayName", "ポ")
	if got := text(t, f); got != ".encoding = \"Shift_JIS\"\ndisplayName = \"\x83|7C\"\n" {
		t.Errorf("Shift_JIS written as %q", got)
	}

	const windows = ".encoding = \"windows-1252\"\r\n# caf\xe9\r\nname = \"\x80uro\"\r\nother = \"\xe4\"\r\n"
	f = parse(t, windows)
	if got := f.Value("name"); got != "€uro" {
		t.Errorf("windows-1252 read as %q", got)
	}
	f.Set("name", "über")
	if got := text(t, f); got != strings.Replace(windows, "\x80uro", "\xfcber", 1) {
		t.Errorf("windows-1252 written as %q", got)
	}
	f.Set("name", "ポ")
	if got := text(t, f); got != ".encoding = \"UTF-8\"\r\n# café\r\nname = \"ポ\"\r\nother = \"ä\"\r\n" {
		t.Errorf("what windows-1252 lacks written as %q", got)
	}

	if f = parse(t, "name = \"\xe9\"\n"); f.Value("name") != "é" {
		t.Errorf("without an encoding read as %q", f.Value("name"))
	}
}

func TestRefuse(t *testing.T) {
	for want, b := range map[string][]byte{
		"NUL":          []byte("a = \"b\x00\""),
		"is not known": []byte(".encoding = \"klingon\"\n"),
		"at most":      bytes.Repeat([]byte("#"), MaxSize+1),
	} {
		if _, err := Parse(b); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

func TestDevices(t *testing.T) {
	f := parse(t, sample+`
scsi0:1.fileName = "gone.vmdk"
scsi0:1.present = "FALSE"
sata0:0.fileName = "/vms/data.vmdk"
ide0:0.fileName = "boot.iso"
ide0:0.deviceType = "cdrom-image"
nvme0:0.fileName = ""
nvme0:1.fileName = "C:\vms\n.vmdk"
nvme0:1.present = "true"
floppy0.fileName = "/dev/fd0"
floppy1.fileName = "f.flp"
floppy1.fileType = "file"
serial0.fileName = "serial.txt"
scsi0.fileName = "x"
scsi0:a.fileName = "x"
SATA0:0.FILENAME = "twice"
`)
	want := []Device{
		{"scsi0:0", "Virtual 01.vmdk", true}, {"sata0:0", "/vms/data.vmdk", true}, {"ide0:0", "boot.iso", false},
		{"nvme0:1", `C:\vms\n.vmdk`, true}, {"floppy1", "f.flp", false},
	}
	if d := cmp.Diff(want, f.Devices()); d != "" {
		t.Error(d)
	}
}

func TestUUID(t *testing.T) {
	for text, want := range map[string]string{
		`uuid.bios = "56 4D 2c 06 7f 1d aa bb-cc dd ee ff 00 11 22 33"`: "564d2c06-7f1d-aabb-ccdd-eeff00112233",
		`uuid.bios = "56 4d"`: "", "": "",
	} {
		if got := parse(t, text).UUID(); got != want {
			t.Errorf("%s: %q", text, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{sample, bom + "a=b", ".encoding = \"GBK\"\na = \"\x81|7C\"\n", "a = \"|zz|4\""} {
		f.Add([]byte(s), "a", "v|\"\n")
	}
	f.Fuzz(func(t *testing.T, b []byte, name, value string) {
		d, err := Parse(b)
		if err != nil {
			return
		}
		if got, err := d.Bytes(); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("written back as %q: %v", got, err)
		}
		d.Devices()
		if name == "" || strings.EqualFold(name, encodingKey) || strings.ContainsAny(name, " \t\r\n=#\x00\ufeff") || slices.Contains([]byte(value), 0) {
			return
		}
		d.Set(name, value)
		if got, ok := d.Get(name); !ok || got != value {
			t.Fatalf("%q was set to %q and is %q", name, value, got)
		}
		again, err := d.Bytes()
		if err != nil || d.enc != nil {
			return
		}
		back, err := Parse(again)
		if err != nil || back.enc != nil {
			return
		}
		if got := back.Value(name); got != value {
			t.Fatalf("%q was written as %q and read as %q in %q", name, value, got, again)
		}
	})
}
