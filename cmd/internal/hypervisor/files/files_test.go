package files

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/drivertest"
	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fsmap/mapfile"
)

// qemuImg makes an image, and gives its path.
func qemuImg(t *testing.T, path string, args ...string) string {
	t.Helper()
	qemutest.Need(t, "qemu-io")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(args, "-b") {
		args = append(args, path, "8M")
	} else {
		args = append(args, path)
	}
	qemutest.Img(t, "", append([]string{"create", "-q"}, args...)...)
	return path
}

// describe gives the record, and its files as "role disk name", names relative to dir.
func describe(t *testing.T, dir, target string) (*mapfile.VM, []string) {
	t.Helper()
	vm, err := drivertest.Open(t, New(), target).Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, f := range vm.Files {
		rel, err := filepath.Rel(dir, f.Path)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, strings.Join([]string{f.Role, f.Disk, rel}, " "))
	}
	return vm, list
}

// refused checks that describing fails with a one-line error that says why.
func refused(t *testing.T, target, why string) {
	t.Helper()
	m, err := New().Open(t.Context(), target)
	if err == nil {
		_, err = m.Describe(t.Context())
	}
	if err == nil || !strings.Contains(err.Error(), why) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: %v, want %q", target, err, why)
	}
}

func TestTargets(t *testing.T) {
	dir := t.TempDir()
	odd := drivertest.Write(t, filepath.Join(dir, "a,b ,, \"ü\"\n.img"), "")
	for _, paths := range [][]string{{"/a"}, {"/a", "/b c"}, {"/a,b,", "/,c"}, {odd}} {
		if got := Paths(Target(paths...)); !slices.Equal(got, paths) {
			t.Errorf("%q became %q", paths, got)
		}
	}
	if got := Paths(odd); !slices.Equal(got, []string{odd}) {
		t.Errorf("a path with commas became %q", got)
	}
	for _, target := range []string{filepath.Join(dir, "nothing"), "web1"} {
		if _, err := New().Open(t.Context(), target); !errors.Is(err, hypervisor.ErrNoMachine) {
			t.Errorf("%s: %v", target, err)
		}
	}
}

func TestVMware(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "Virtual 01")
	qemuImg(t, filepath.Join(dir, "Virtual 01.vmdk"), "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse")
	qemuImg(t, filepath.Join(dir, "data.vmdk"), "-f", "vmdk", "-o", "subformat=monolithicFlat")
	qemuImg(t, filepath.Join(dir, "Virtual 01-000001.vmdk"), "-f", "vmdk", "-F", "vmdk", "-b", "Virtual 01.vmdk")
	qemuImg(t, filepath.Join(dir, "Virtual 01-000002.vmdk"), "-f", "vmdk", "-F", "vmdk", "-b", "Virtual 01.vmdk")
	for _, name := range []string{"Virtual 01.vmxf", "Virtual 01.vmsd", "Virtual 01.nvram", "Virtual 01-Snapshot1.vmsn", "vmware.log", "notes.txt", "data-ctk.vmdk", "tools.iso"} {
		drivertest.Write(t, filepath.Join(dir, name), "x")
	}
	config := `displayName = "Web, the 1st"
uuid.bios = "56 4d 2c 06 7f 1d aa bb-cc dd ee ff 00 11 22 33"
scsi0:1.fileName = "data.vmdk"
scsi0:0.fileName = "Virtual 01-000002.vmdk"
ide1:0.fileName = "tools.iso"
ide1:0.deviceType = "cdrom-image"
nvram = "Virtual 01.nvram"
checkpoint.vmState = ""
`
	vmxPath := drivertest.Write(t, filepath.Join(dir, "Virtual 01.vmx"), config)
	want := []string{
		"config  Virtual 01.vmx",
		"disk scsi0:1 data.vmdk", "backing scsi0:1 data-flat.vmdk",
		"disk scsi0:0 Virtual 01-000002.vmdk", "backing scsi0:0 Virtual 01.vmdk", "backing scsi0:0 Virtual 01-s001.vmdk",
		"backing ide1:0 tools.iso",
		"firmware  Virtual 01.nvram",
		"backing Virtual 01-000001 Virtual 01-000001.vmdk",
		"memory  Virtual 01-Snapshot1.vmsn", "config  Virtual 01.vmsd", "config  Virtual 01.vmxf", "log  vmware.log",
	}
	for _, target := range []string{dir, vmxPath} {
		vm, got := describe(t, dir, Target(target))
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", target, d)
		}
		if vm.Name != "Web, the 1st" || vm.UUID != "564d2c06-7f1d-aabb-ccdd-eeff00112233" || vm.StateFound != "off" {
			t.Errorf("%+v", vm)
		}
		if d := cmp.Diff([]string{"files that are no part of a machine stay behind: data-ctk.vmdk, notes.txt"}, withoutUnseen(vm.Notes)); d != "" {
			t.Error(d)
		}
	}

	drivertest.Write(t, filepath.Join(dir, "Virtual 01.vmss"), "x")
	drivertest.Write(t, vmxPath, strings.Replace(config, `vmState = ""`, `vmState = "Virtual 01.vmss"`, 1))
	if vm, got := describe(t, dir, Target(dir)); vm.StateFound != "suspended" || !slices.Contains(got, "memory  Virtual 01.vmss") {
		t.Errorf("suspended: %s, %q", vm.StateFound, got)
	}

	other := drivertest.Write(t, filepath.Join(dir, "other.vmx"), config)
	refused(t, Target(dir), "several machines")
	if _, got := describe(t, dir, Target(other)); slices.Contains(got, "config  Virtual 01.vmsd") || !slices.Contains(got, "disk scsi0:1 data.vmdk") {
		t.Errorf("one of two machines: %q", got)
	}
	drivertest.Write(t, other, "encryption.data = \"x\"\n")
	refused(t, Target(other), "encrypted")
	drivertest.Write(t, filepath.Join(dir, "data.vmdk.lck", "M1.lck"), "")
	vm, got := describe(t, dir, Target(vmxPath))
	if vm.StateFound != "running" {
		t.Errorf("locked by VMware, it is %s: %q", vm.StateFound, got)
	}
}

// withoutUnseen drops the note that depends on where the test runs.
func withoutUnseen(notes []string) []string {
	return slices.DeleteFunc(notes, func(n string) bool { return strings.Contains(n, "could not be seen") })
}

func TestImages(t *testing.T) {
	dir := t.TempDir()
	base := qemuImg(t, filepath.Join(dir, "base", "base.qcow2"), "-f", "qcow2")
	web := qemuImg(t, filepath.Join(dir, "web", "web 1,2.qcow2"), "-f", "qcow2", "-F", "qcow2", "-b", base)
	refused(t, Target(web), "name it, too")
	vm, got := describe(t, dir, Target(web, base))
	if d := cmp.Diff([]string{"disk web 1,2 web/web 1,2.qcow2", "backing web 1,2 base/base.qcow2"}, got); d != "" || vm.Name != "web 1,2" {
		t.Error(vm.Name, d)
	}
	again, _ := describe(t, dir, strings.TrimPrefix(vm.Target, "files:"))
	if d := cmp.Diff(vm, again); d != "" {
		t.Errorf("from its own target: %s", d)
	}

	qemuImg(t, filepath.Join(dir, "vm.1", "b.raw"), "-f", "raw")
	qemuImg(t, filepath.Join(dir, "vm.1", "a.qcow2"), "-f", "qcow2")
	qemuImg(t, filepath.Join(dir, "vm.1", "top.qcow2"), "-f", "qcow2", "-F", "qcow2", "-b", "a.qcow2")
	vm, got = describe(t, dir, Target(filepath.Join(dir, "vm.1")))
	if d := cmp.Diff([]string{"disk b vm.1/b.raw", "disk top vm.1/top.qcow2", "backing top vm.1/a.qcow2"}, got); d != "" || vm.Name != "vm.1" {
		t.Error(vm.Name, d)
	}
	refused(t, t.TempDir(), "no disk image")
}

// TestHostile: what evidence names does not make us copy the host's own files.
func TestHostile(t *testing.T) {
	dir := t.TempDir()
	secret := drivertest.Write(t, filepath.Join(t.TempDir(), "secret.img"), strings.Repeat("x", 4096))
	refused(t, drivertest.Write(t, filepath.Join(dir, "a", "a.vmx"), fmt.Sprintf("scsi0:0.fileName = %q\n", secret)), "outside of what was named")
	refused(t, drivertest.Write(t, filepath.Join(dir, "a2", "a.vmx"), "scsi0:0.fileName = \"../../../../../../../../../../etc/hostname\"\n"), "outside of what was named")
	refused(t, drivertest.Write(t, filepath.Join(dir, "b", "b.xml"),
		fmt.Sprintf("<domain><name>b</name><devices><disk><source file='%s'/><target dev='vda'/></disk></devices></domain>", secret)), "outside of what was named")
	refused(t, drivertest.Write(t, filepath.Join(dir, "c", "c.vbox"), fmt.Sprintf(`<VirtualBox><Machine name="c"><MediaRegistry><HardDisks>
<HardDisk uuid="{1}" location="%s"/></HardDisks></MediaRegistry><StorageControllers><StorageController name="S">
<AttachedDevice type="HardDisk" port="0" device="0"><Image uuid="{1}"/></AttachedDevice></StorageController></StorageControllers></Machine></VirtualBox>`, secret)), "outside of what was named")
	link := filepath.Join(dir, "d", "disk.img")
	if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o700), os.Symlink(secret, link)); err != nil {
		t.Fatal(err)
	}
	refused(t, drivertest.Write(t, filepath.Join(dir, "d", "d.vmx"), "scsi0:0.fileName = \"disk.img\"\n"), "outside of what was named")
	refused(t, filepath.Dir(link), "outside of what was named")
	if err := os.Remove(filepath.Join(dir, "d", "d.vmx")); err != nil {
		t.Fatal(err)
	}
	refused(t, filepath.Dir(link), "no disk image")
	refused(t, qemuImg(t, filepath.Join(dir, "e", "e.qcow2"), "-f", "qcow2", "-F", "raw", "-b", secret), "outside")
}

// TestGathered: a definition names paths of the host that it came from, and the files lie beside it.
func TestGathered(t *testing.T) {
	dir := t.TempDir()
	qemuImg(t, filepath.Join(dir, "web.qcow2"), "-f", "qcow2")
	drivertest.Write(t, filepath.Join(dir, "web_VARS.fd"), "x")
	drivertest.Write(t, filepath.Join(dir, "web.xml"), `<?xml version="1.0"?><!-- saved -->
<domain type="kvm"><name>web 1</name><uuid>60522a58-c73d-4051-ba3f-235f0ecd5bbc</uuid><os><nvram>/gone/web_VARS.fd</nvram></os><devices>
<disk type="file"><driver type="qcow2"/><source file="/gone/web.qcow2"/><target dev="vda"/></disk>
<disk type="network"><source protocol="rbd" name="x"/><target dev="vdb"/></disk>
<disk type="file" device="cdrom"><source file="/gone/x.iso"/><target dev="sda"/></disk></devices></domain>`)
	vm, got := describe(t, dir, Target(dir))
	if d := cmp.Diff([]string{"config  web.xml", "disk vda web.qcow2", "firmware  web_VARS.fd"}, got); d != "" {
		t.Error(d)
	}
	if notes := withoutUnseen(vm.Notes); vm.Name != "web 1" || vm.UUID == "" || len(notes) != 1 || !strings.Contains(notes[0], "vdb") {
		t.Errorf("%+v", vm)
	}
}

func TestVirtualBox(t *testing.T) {
	dir := t.TempDir()
	qemuImg(t, filepath.Join(dir, "web.vdi"), "-f", "vdi")
	// qemu-img makes no differencing ones; the settings say what this is.
	qemuImg(t, filepath.Join(dir, "Snapshots", "{2}.vdi"), "-f", "vdi")
	drivertest.Write(t, filepath.Join(dir, "Snapshots", "{2}.sav"), "x")
	drivertest.Write(t, filepath.Join(dir, "web.nvram"), "x")
	drivertest.Write(t, filepath.Join(dir, "Logs", "VBox.log"), "x")
	drivertest.Write(t, filepath.Join(dir, "web.vbox-prev"), "x")
	drivertest.Write(t, filepath.Join(dir, "web.vbox"), `<VirtualBox xmlns="http://www.virtualbox.org/" version="1.19-linux">
<Machine uuid="{60522a58-c73d-4051-ba3f-235f0ecd5bbc}" name="web" stateFile="Snapshots/{2}.sav" snapshotFolder="Snapshots"><MediaRegistry><HardDisks>
<HardDisk uuid="{1}" location="web.vdi" format="VDI"><HardDisk uuid="{2}" location="Snapshots/{2}.vdi" format="VDI"/></HardDisk>
</HardDisks></MediaRegistry><Hardware><BIOS><NVRAM path="web.nvram"/></BIOS><StorageControllers><StorageController name="SATA">
<AttachedDevice type="HardDisk" port="0" device="0"><Image uuid="{2}"/></AttachedDevice>
<AttachedDevice type="DVD" port="1" device="0"/></StorageController></StorageControllers></Hardware></Machine></VirtualBox>`)
	vm, got := describe(t, dir, Target(dir))
	want := []string{
		"config  web.vbox", "disk SATA-0-0 Snapshots/{2}.vdi", "backing SATA-0-0 web.vdi", "firmware  web.nvram", "memory  Snapshots/{2}.sav",
		"log  Logs/VBox.log", "config  web.vbox-prev",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if vm.Name != "web" || vm.StateFound != "suspended" || vm.UUID != "60522a58-c73d-4051-ba3f-235f0ecd5bbc" {
		t.Errorf("%+v", vm)
	}
}

func TestInUse(t *testing.T) {
	path := qemuImg(t, filepath.Join(t.TempDir(), "disk.qcow2"), "-f", "qcow2")
	in, out := io.Pipe()
	qemu := exec.Command("qemu-io", path)
	qemu.Stdin = in
	said, err := qemu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { out.Close(); io.Copy(io.Discard, said); qemu.Wait() }()
	fmt.Fprintln(out, "read 0 512")
	if _, err := bufio.NewReader(said).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	m := drivertest.Open(t, New(), path)
	vm, err := m.Describe(t.Context())
	if err != nil || vm.StateFound != "running" {
		t.Fatalf("%+v, %v", vm, err)
	}
	_, err = m.Plan(t.Context(), vm, hypervisor.Request{})
	for _, want := range []string{path, "qemu-io", strconv.Itoa(qemu.Process.Pid)} {
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: want %q", err, want)
		}
	}
}

func TestHold(t *testing.T) {
	path := qemuImg(t, filepath.Join(t.TempDir(), "disk.qcow2"), "-f", "qcow2")
	write := func() error { return exec.Command("qemu-io", "-c", "write 0 64k", path).Run() }
	m := drivertest.Open(t, New(), path)
	for range 2 {
		_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: hypervisor.Pause})
		if p.Mode != hypervisor.Off || p.Stops {
			t.Errorf("%+v", p)
		}
		drivertest.Do(t, m, p, 1, false)
		if write() == nil {
			t.Error("QEMU wrote to what was held")
		}
		drivertest.Undo(t, drivertest.Open(t, New(), path), p) // another process holds nothing
		if write() == nil {
			t.Error("another process let go what it did not hold")
		}
		drivertest.Undo(t, m, p)
		if err := write(); err != nil {
			t.Errorf("after it: %v", err)
		}
	}
	_, p := drivertest.Plan(t, m, hypervisor.Request{})
	drivertest.Do(t, m, p, 1, false)
	if err := os.WriteFile(path, []byte("new"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Undo(t.Context(), &p.Steps[0]); err == nil || !strings.Contains(err.Error(), "was changed while it was held") {
		t.Errorf("it was changed: %v", err)
	}
	if err := m.Undo(t.Context(), &p.Steps[0]); err != nil {
		t.Errorf("again: %v", err)
	}
}
