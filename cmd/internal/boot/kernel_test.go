package boot

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func TestCompareVersions(t *testing.T) {
	list := []string{"vmlinuz-6.10.0-1-amd64", "vmlinuz-6.1.0-56-amd64", "vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-56-cloud-amd64", "vmlinuz-5.19"}
	slices.SortFunc(list, compareVersions)
	if got := strings.Join(list, " "); got != "vmlinuz-5.19 vmlinuz-6.1.0-9-amd64 vmlinuz-6.1.0-56-amd64 vmlinuz-6.1.0-56-cloud-amd64 vmlinuz-6.10.0-1-amd64" {
		t.Error(got)
	}
}

// host makes a folder with kernels, of which each has its modules where they are named.
func host(t *testing.T, kernels ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"boot", "lib/modules"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range kernels {
		version, with := strings.CutSuffix(k, "+modules")
		if err := os.WriteFile(filepath.Join(dir, "boot/vmlinuz-"+version), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if with {
			if err := os.MkdirAll(filepath.Join(dir, "lib/modules", version, "kernel/fs"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestChooseKernel(t *testing.T) {
	for name, tt := range map[string]struct {
		kernels []string
		want    string // or an error
	}{
		"the newest":            {[]string{"6.1.0-9+modules", "6.1.0-10+modules"}, "vmlinuz-6.1.0-10"},
		"the newest is alone":   {[]string{"6.1.0-9+modules", "6.1.0-10"}, "vmlinuz-6.1.0-9"},
		"none":                  {nil, "no kernel in"},
		"none with its modules": {[]string{"6.1"}, "the modules of"},
	} {
		dir := host(t, tt.kernels...)
		k, err := hostKernel(filepath.Join(dir, "boot"), filepath.Join(dir, "lib/modules"))
		if err != nil && !strings.Contains(err.Error(), tt.want) || err == nil && filepath.Base(k.image) != tt.want {
			t.Errorf("%s: %v %v, want %s", name, k, err, tt.want)
		}
	}
	dir := host(t, "6.1+modules", "6.2")
	if k, err := chooseKernel(filepath.Join(dir, "boot/vmlinuz-6.1"), ""); err != nil || k.modules != filepath.Join(dir, "lib/modules/6.1") {
		t.Errorf("beside it: %v %v", k, err)
	}
	for _, args := range [][2]string{{filepath.Join(dir, "boot/vmlinuz-6.2"), ""}, {filepath.Join(dir, "none-1"), dir}, {filepath.Join(dir, "bzImage"), ""}, {"", dir}} {
		if k, err := chooseKernel(args[0], args[1]); err == nil {
			t.Errorf("%q gives %v", args, k)
		}
	}
}

// module makes a module that depends on others, with a C compiler.
func makeModule(t *testing.T, path, info string) {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("gcc is not installed, which makes modules")
	}
	src := filepath.Join(t.TempDir(), "m.s")
	text := ".section .modinfo\n"
	for s := range strings.SplitSeq(info, " ") {
		text += ".asciz \"" + strings.ReplaceAll(s, "_", " ") + "\"\n"
	}
	if err := os.WriteFile(src, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(gcc, "-c", "-o", path, src).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, "kernel", name) }
	if err := os.MkdirAll(filepath.Join(dir, "kernel"), 0o755); err != nil {
		t.Fatal(err)
	}
	makeModule(t, at("top.ko"), "license=GPL depends=one,two-b")
	makeModule(t, at("one.ko"), "depends=base softdep=pre:_soft_post:_late")
	makeModule(t, at("two-b.ko"), "depends=base")
	makeModule(t, at("base.ko"), "depends=")
	makeModule(t, at("soft.ko"), "depends=built-in")
	makeModule(t, at("late.ko"), "depends=")
	makeModule(t, at("round.ko"), "depends=round")
	pack := func(name, ext string, w func(*bytes.Buffer, []byte) error) {
		b, err := os.ReadFile(at(name))
		if err != nil {
			t.Fatal(err)
		}
		var packed bytes.Buffer
		if err := w(&packed, b); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at(name+ext), packed.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Remove(at(name))
	}
	pack("one.ko", ".gz", func(out *bytes.Buffer, b []byte) error {
		z := gzip.NewWriter(out)
		z.Write(b)
		return z.Close()
	})
	pack("two-b.ko", ".zst", func(out *bytes.Buffer, b []byte) error {
		z, err := zstd.NewWriter(out)
		if err == nil {
			z.Write(b)
			err = z.Close()
		}
		return err
	})
	if _, err := exec.LookPath("xz"); err == nil {
		if out, err := exec.Command("xz", at("base.ko")).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	k := &kernel{modules: dir}
	list, err := k.load([]string{"top", "absent", "round", "two_b"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range list {
		names = append(names, m.name)
		if !bytes.HasPrefix(m.data, []byte("\x7fELF")) {
			t.Errorf("%s is no module", m.name)
		}
	}
	if got := strings.Join(names, " "); got != "base soft one two_b top round" {
		t.Errorf("loaded in the order %s", got)
	}
	os.WriteFile(at("bad.ko"), []byte("no module"), 0o600)
	if _, err := k.load([]string{"bad"}); err == nil {
		t.Error("a broken module is taken")
	}
}

// TestArchive has cpio read what the kernel is to unpack.
func TestArchive(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("cpio is not installed")
	}
	var b bytes.Buffer
	a := &archive{w: &b}
	a.add("dir", modeDir, nil)
	a.add("dir/file", modeFile, []byte("12345"))
	a.add("init", modeProg, []byte("1234"))
	if err := a.close(); err != nil || b.Len()%4 != 0 {
		t.Fatalf("%d bytes: %v", b.Len(), err)
	}
	dir := t.TempDir()
	c := exec.Command("cpio", "-idm", "--quiet", "--no-absolute-filenames")
	c.Dir, c.Stdin = dir, &b
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	for name, want := range map[string]string{"dir/file": "12345", "init": "1234"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
	}
	if st, err := os.Stat(filepath.Join(dir, "init")); err != nil || st.Mode() != 0o755 {
		t.Errorf("init: %v %v", st.Mode(), err)
	}
}

// packed makes an x86 kernel of a payload.
func packed(payload []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 2*512+16)
	b[bzSectors] = 1
	copy(b[bzMagic:], "HdrS")
	le.PutUint16(b[bzVersion:], 0x20f)
	le.PutUint32(b[bzPayload:], 16)
	le.PutUint32(b[bzLength:], uint32(len(payload)))
	return append(b, payload...)
}

// TestPayload unpacks what gzip and zstd packed, as the kernel's makefiles do: the length follows. xz is run on the kernel
// that TestBoot boots.
func TestPayload(t *testing.T) {
	want := bytes.Repeat([]byte("a kernel "), 1000)
	var gz, zst bytes.Buffer
	z := gzip.NewWriter(&gz)
	z.Write(want)
	z.Close()
	w, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(want)
	w.Close()
	for name, b := range map[string][]byte{"gzip": gz.Bytes(), "zstd": zst.Bytes()} {
		if got := payload(packed(append(b, 0, 0, 0x23, 0x28))); !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, want %d", name, len(got), len(want))
		}
	}
	for name, b := range map[string][]byte{
		"unknown": packed([]byte("unknown packing")), "cut": packed(gz.Bytes())[:600], "broken": packed(gz.Bytes()[:40]), "none": []byte("no kernel"), "empty": nil,
	} {
		if got := payload(b); got != nil {
			t.Errorf("%s: %d bytes", name, len(got))
		}
	}
	if startsPlain(want) || unpack("/nowhere") != nil {
		t.Error("what is no kernel starts")
	}
}

func FuzzPayload(f *testing.F) {
	f.Add(packed([]byte("\x1f\x8b")), []byte("\x04\x00\x00\x00\x04\x00\x00\x00\x12\x00\x00\x00Xen\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, kernel, notes []byte) {
		if !bytes.Contains(kernel, []byte("\xfd7zXZ")) { // runs xz
			payload(kernel)
		}
		pvhNote(notes)
		dependencies(kernel)
	})
}
