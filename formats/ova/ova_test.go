package ova_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/all"
	"vmkit/formats/formatstest"
	"vmkit/formats/ondisk"
	"vmkit/formats/ova"
)

const ovf = `<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
  <References>
    <File ovf:href="other.iso" ovf:id="file0" ovf:size="3"/>
    %s
  </References>
  <DiskSection>
    <Info>Disks</Info>
    <Disk ovf:capacity="20" ovf:diskId="empty" ovf:format="x"/>
    %s
  </DiskSection>
</Envelope>
`

// pack makes an OVA of files. Their names, in the order of the descriptor's disks, may be escaped there.
func pack(t testing.TB, disks map[string][]byte, attributes string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name string, content []byte) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	var files, sections string
	names := slices.Sorted(mapKeys(disks))
	for i, n := range names {
		files += fmt.Sprintf("<File ovf:href=%q ovf:id=\"file%d\" %s/>", strings.ReplaceAll(n, " ", "%20"), i+1, attributes)
		sections = fmt.Sprintf("<Disk ovf:diskId=\"d%d\" ovf:fileRef=\"file%d\"/>", i, i+1) + sections // the last first
	}
	put("web1.ovf", fmt.Appendf(nil, ovf, files, sections))
	put("web1.mf", []byte("SHA256(web1.ovf)= 00\n"))
	put("other.iso", []byte("iso"))
	for _, n := range names {
		if disks[n] != nil {
			put(n, disks[n])
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "web1.ova")
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func mapKeys(m map[string][]byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// stream makes a stream-optimized VMDK, and what it holds.
func stream(t testing.TB, seed uint64) (vmdk, raw []byte) {
	t.Helper()
	dir := t.TempDir()
	raw = make([]byte, 3<<20)
	rnd := rand.New(rand.NewPCG(seed, 5))
	for i := range 1 << 20 {
		raw[i] = byte(rnd.Uint32() % 50)
	}
	copy(raw[2<<20+100:], "the second part")
	src, dst := filepath.Join(dir, "raw"), filepath.Join(dir, "s.vmdk")
	if err := os.WriteFile(src, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	formatstest.Exec(t, "qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", src, dst)
	vmdk, err := os.ReadFile(dst)
	if err != nil {
		t.Fatal(err)
	}
	return vmdk, raw
}

func opener(path string) func(testing.TB) *formats.Image {
	return func(t testing.TB) *formats.Image { return formatstest.Open(t, all.Formats, path, nil) }
}

func TestOne(t *testing.T) {
	vmdk, raw := stream(t, 1)
	path := pack(t, map[string][]byte{"my disk.vmdk": vmdk}, "")
	formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: bytes.NewReader(raw), Size: int64(len(raw))})
	img := opener(path)(t)
	if img.Format != "ova" || len(img.Files) != 1 || img.Files[0].Path != path || len(img.Notes)+len(img.Problems) > 0 {
		t.Errorf("%s, files %v, notes %q, problems %v", img.Format, img.Files, img.Notes, img.Problems)
	}
	// The coded bytes of a grain are where the extent says, in the archive itself.
	e, err := img.ExtentAt(70000, 100)
	if err != nil || e.Kind != formats.Packed {
		t.Fatalf("%v, %v", e.Kind, err)
	}
	host, off := e.Pack.Parts[0].File.Host(e.Pack.Parts[0].Off)
	archive, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if host.Path != path || archive[off] != 0x78 {
		t.Errorf("part in %s, byte %d is %#x", host.Path, off, archive[off])
	}
}

func TestSeveral(t *testing.T) {
	one, raw1 := stream(t, 1)
	two, raw2 := stream(t, 2)
	path := pack(t, map[string][]byte{"disk1.vmdk": one, "disk2.vmdk": two}, "")
	_, err := formatstest.TryOpen(t, all.Formats, path, nil)
	if err == nil || !strings.Contains(err.Error(), path+":disk1.vmdk") || !strings.Contains(err.Error(), path+":disk2.vmdk") {
		t.Fatalf("error %v", err)
	}
	src := &formats.OSSource{}
	defer src.Close()
	names, err := (&formats.Opener{Formats: all.Formats, Source: src}).Names(path)
	if err != nil || !slices.Equal(names, []string{path + ":disk2.vmdk", path + ":disk1.vmdk"}) {
		t.Fatalf("names %q, %v", names, err)
	}
	for i, raw := range [][]byte{raw2, raw1} {
		img := opener(names[i])(t)
		got := make([]byte, len(raw))
		if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%s: %v", names[i], err)
		}
	}
	if _, err := formatstest.TryOpen(t, all.Formats, path+":disk3.vmdk", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestBad(t *testing.T) {
	vmdk, raw := stream(t, 1)
	for _, c := range []struct {
		name string
		path string
		err  error
		text string
	}{
		{"gzip", pack(t, map[string][]byte{"d.vmdk": vmdk}, `ovf:compression="gzip"`), ondisk.ErrUnsupported, "compressed with gzip"},
		{"chunks", pack(t, map[string][]byte{"d.vmdk": vmdk}, `ovf:chunkSize="100"`), ondisk.ErrUnsupported, "cut into chunks"},
		{"absent", pack(t, map[string][]byte{"d.vmdk": nil}, ""), fs.ErrNotExist, "d.vmdk, which the OVF descriptor lists"},
		{"no disk", pack(t, nil, ""), ondisk.ErrCorrupt, "no disk"},
		{"refers to others", pack(t, map[string][]byte{"d.vmdk": []byte("# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\nRW 1 VMFS \"web1.ova\"\n")}, ""),
			ondisk.ErrUnsupported, "may not name other files"},
	} {
		if _, err := formatstest.TryOpen(t, all.Formats, c.path, nil); !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	path := pack(t, map[string][]byte{"d.vmdk": vmdk}, "")
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, st.Size()/2); err != nil {
		t.Fatal(err)
	}
	img := opener(path)(t)
	if len(img.Problems) != 1 || !errors.Is(img.Problems[0], ondisk.ErrTruncated) {
		t.Errorf("problems %v", img.Problems)
	}
	got := make([]byte, 65536)
	if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, raw[:65536]) {
		t.Errorf("read: %v", err)
	}
	if _, err := img.ReadAt(got, 1<<20-65536); !errors.Is(err, ondisk.ErrTruncated) {
		t.Errorf("read: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	b, err := os.ReadFile(pack(f, map[string][]byte{"d.raw": []byte("raw")}, ""))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) { formatstest.Fuzz(t, ova.Format, b) })
}
