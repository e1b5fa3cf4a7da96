package boot_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"vmkit/cmd/internal/boot/boottest"
	"vmkit/cmd/internal/live/livetest"
	"vmkit/fixtures"
	"vmkit/formats"
	formatsall "vmkit/formats/all"
	"vmkit/fsmap/mapfile"
	"vmkit/partition"
)

// build makes vmmap so that it runs by itself.
func build(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmmap")
	c := exec.Command("go", "build", "-o", path, "vmkit/cmd/vmmap")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return path
}

func need(t *testing.T, name string, args ...string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed", name)
	}
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// TestBoot maps, with one boot, disks whose logs hold work, what lies on LVM and in partitions of other formats, and a
// file system that vmkit doesn't read. Where vmkit does, the map is file by file the one that it makes itself.
func TestBoot(t *testing.T) {
	if testing.Short() {
		t.Skip("it boots a machine")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("qemu-system-x86_64 is not installed")
	}
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	for i := range 60 {
		name := filepath.Join(tree, fmt.Sprintf("d%d/f%d", i%3, i))
		os.MkdirAll(filepath.Dir(name), 0o755)
		if err := os.WriteFile(name, bytes.Repeat([]byte{byte(i), 'x', '\n'}, i*i*10), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	images := []string{"ext4.img", "data.img", "xfs.img", "btrfs.img", "parts.qcow2", "f2fs.img", "m0.img", "m1.img", "m2.img"}
	stored(t, dir, "ext4.img", "ext4-journal", "csum3-64bit.img.zst")
	stored(t, dir, "data.img", "ext4-journal", "data.img.zst")
	stored(t, dir, "xfs.img", "xfs-v4-dirty", "disk.img.zst")
	stored(t, dir, "btrfs.img", "btrfs", "log.img.zst")
	stored(t, dir, "parts.qcow2", "gpt-disk", "disk.qcow2.zst")
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("f2fs.img"), nil, 0o644); err != nil || os.Truncate(at("f2fs.img"), 128<<20) != nil {
		t.Fatal("f2fs.img can't be made")
	}
	need(t, "mkfs.f2fs", "-q", at("f2fs.img"))
	need(t, "sload.f2fs", "-f", tree, at("f2fs.img"))
	onLVM(t, dir, tree)
	forget(t, at("data.img"))
	before := contents(t, dir, images)

	vmmap := build(t)
	args := append([]string{"--boot", "--kernel", boottest.Kernel(t), "--accel", "tcg", "--boot-timeout", "5m"}, images...)
	begin := time.Now()
	inside, said := mapped(t, vmmap, dir, args)
	t.Logf("%.1f s, a map of %d bytes; %s", time.Since(begin).Seconds(), len(inside), said)
	outside, said := mapped(t, vmmap, dir, images)
	if hint := "vmmap: hint: a kernel may read f2fs: vmmap --boot " + strings.Join(images, " ") + "\n"; !strings.HasSuffix(said, hint) {
		t.Errorf("no hint: %s", said)
	}

	got, problems := livetest.Read(t, inside)
	want, _ := livetest.Read(t, outside)
	if len(problems) != 2 { // noise on the logical volumes renamed-linear and striped
		t.Errorf("problems: %q", problems)
	}
	for path, w := range want { // of FAT the kernel makes things up
		if g := got[path]; g != nil && strings.HasPrefix(path, "parts/p1/") {
			g.Inode, g.CTime, g.Attrs = w.Inode, w.CTime, w.Attrs
			if w.Kind == mapfile.Directory {
				g.Size, g.MTime, g.ATime, g.BTime = w.Size, w.MTime, w.ATime, w.BTime
			}
		}
	}
	onF2FS := 0
	for path := range maps.Clone(got) {
		if strings.HasPrefix(path, "f2fs/disk/") {
			onF2FS++
			delete(got, path)
		}
	}
	livetest.Compare(t, got, want, func(path string) bool { return strings.HasPrefix(path, "data/") })
	script := filepath.Join(fixtures.Dir(t, "."), "closure.py")
	sums, should := livetest.Closure(t, script, dir, inside), livetest.Closure(t, script, dir, outside)
	for path, sum := range livetest.Closure(t, script, dir, fakeMap(t, tree)) {
		should["f2fs/disk"+path] = sum
	}
	if len(sums) < 700 || onF2FS != 64 { // 60 files in 3 folders below the root
		t.Errorf("%d files, %d of them on f2fs", len(sums), onF2FS)
	}
	for path, sum := range should {
		if sums[path] != sum {
			t.Errorf("%q: %s, should be %s", path, sums[path], sum)
		}
	}
	if !bytes.Contains(inside, []byte(`"path":"/plain"`)) || !regexp.MustCompile(`"path":"/plain"[^\n]*"kind":"inline"`).Match(inside) {
		t.Error("what the kernel replayed into a file is not carried")
	}
	if after := contents(t, dir, images); !maps.Equal(before, after) {
		t.Error("the images were written to")
	}
}

// mapped runs vmmap, which may find problems.
func mapped(t *testing.T, vmmap, dir string, args []string) (stream []byte, said string) {
	t.Helper()
	c := exec.Command(vmmap, args...)
	var out, errs bytes.Buffer
	c.Dir, c.Stdout, c.Stderr = dir, &out, &errs
	if err := c.Run(); err != nil && c.ProcessState.ExitCode() != 3 {
		t.Fatalf("vmmap %q: %v: %s", args, err, errs.String())
	}
	return out.Bytes(), errs.String()
}

// stored unpacks a stored image under another name.
func stored(t *testing.T, dir, name, fixture, file string) {
	t.Helper()
	if err := os.Rename(fixtures.Image(t, fixture, file), filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func contents(t *testing.T, dir string, images []string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, name := range images {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		all[name] = fmt.Sprintf("%x", sha256.Sum256(b))
	}
	return all
}

// onLVM puts a file system onto a logical volume of two segments, of which one is striped.
func onLVM(t *testing.T, dir, tree string) {
	t.Helper()
	first := fixtures.Image(t, "lvm", "plain.tar.zst")
	src := &formats.OSSource{}
	defer src.Close()
	o := &formats.Opener{Formats: formatsall.Formats, Source: src, Format: "raw"}
	var list []*formats.Image
	for i := range 3 {
		name := fmt.Sprintf("m%d.img", i)
		path := filepath.Join(dir, name)
		if err := os.Rename(filepath.Join(filepath.Dir(first), name), path); err != nil {
			t.Fatal(err)
		}
		img, err := o.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, img)
	}
	vols, err := partition.Scan(list, partition.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range vols {
		v := &vols[i]
		if v.Name != "vg/two" {
			continue
		}
		fs := filepath.Join(dir, "lv")
		if err := os.WriteFile(fs, make([]byte, v.Size), 0o600); err != nil {
			t.Fatal(err)
		}
		need(t, "mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", filepath.Join(tree, "d0"), fs)
		b, err := os.ReadFile(fs)
		if err != nil {
			t.Fatal(err)
		}
		for at := int64(0); at < v.Size; {
			e, err := v.Disk.ExtentAt(at, v.Size-at)
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("m%d.img", e.Image)), os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.WriteAt(b[at:at+e.Len], e.Disk)
			f.Close()
			at += e.Len
		}
		return
	}
	t.Fatal("no vg/two")
}

// forget wipes where a file that lies in the journal is to go: its bytes are there only once the journal was replayed.
func forget(t *testing.T, image string) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const plain = 7454720 // debugfs says where /plain goes
	if _, err := f.WriteAt(make([]byte, 16384), plain); err != nil {
		t.Fatal(err)
	}
}

// fakeMap makes a map of a folder of the host, so that its files are hashed like those of any other.
func fakeMap(t *testing.T, tree string) []byte {
	t.Helper()
	var host, files bytes.Buffer
	n := 0
	err := filepath.WalkDir(tree, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		st, err := e.Info()
		extents := ""
		if st.Size() > 0 {
			extents = fmt.Sprintf(`{"at":0,"len":%d,"kind":"data","file":%d,"off":0}`, st.Size(), n)
		}
		fmt.Fprintf(&host, `,{"id":%d,"path":%q}`, n, path)
		fmt.Fprintf(&files, `{"type":"file","volume":0,"path":%q,"kind":"regular","size":%d,"extents":[%s]}`+"\n", strings.TrimPrefix(path, tree), st.Size(), extents)
		n++
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Appendf(nil, `{"type":"image","id":0,"name":"","files":[%s]}`+"\n"+`{"type":"volume","id":0,"name":""}`+"\n%s"+`{"type":"end"}`+"\n",
		strings.TrimPrefix(host.String(), ","), files.String())
}

// TestOptions: what the command line says of the machine reaches QEMU, and limits hold.
func TestOptions(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	vmmap, dir := build(t), t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	play := "#!" + python + "\nimport os, sys, time\nopen('args', 'w').write(' '.join(sys.argv))\n"
	write("hangs", play+"time.sleep(1000)")
	write("floods", play+"while True: os.write(4, b'x' * 65536)")
	write("panics", play+"print('Kernel panic - not syncing: x')")
	write("x.img", strings.Repeat("x", 1<<20))
	write("kernel", "")
	write("boot/vmlinuz-6.1", "")
	write("lib/modules/6.1/kernel/x", "")
	for _, tt := range []struct{ options, args, said string }{
		{"--qemu ./hangs --boot-timeout 1s", "", "the machine did not end within 1s and was stopped: --boot-timeout gives it more time"},
		{"--qemu ./floods --boot-output 2", "", "the machine sent more than 2 MiB and was stopped: --boot-output allows more"},
		{"--qemu ./panics --boot-memory 200", " -m 200 ", "the machine ended without a word; the last on its console: Kernel panic - not syncing: x"},
		{"--qemu ./panics --accel kvm", " -accel kvm ", "Kernel panic"},
		{"--qemu ./panics --kernel kernel --modules lib/modules/6.1", " -kernel kernel ", "Kernel panic"},
		{"--qemu ./nowhere", "", "install QEMU (qemu-system-x86), or name its program with --qemu"},
	} {
		c := exec.Command(vmmap, append([]string{"--boot", "--accel", "tcg", "--kernel", "boot/vmlinuz-6.1"}, append(strings.Fields(tt.options), "x.img")...)...)
		var out, said bytes.Buffer
		c.Dir, c.Stdout, c.Stderr = dir, &out, &said
		c.Run()
		if c.ProcessState.ExitCode() != 4 || out.Len() > 0 || strings.Count(said.String(), "\n") != 1 || !strings.Contains(said.String(), tt.said) {
			t.Errorf("%s: %v, said %q, want %q; %d bytes of a map", tt.options, c.ProcessState, said.String(), tt.said, out.Len())
		}
		if args, _ := os.ReadFile(filepath.Join(dir, "args")); !strings.Contains(string(args), tt.args) {
			t.Errorf("%s: QEMU got %s", tt.options, args)
		}
	}
}
