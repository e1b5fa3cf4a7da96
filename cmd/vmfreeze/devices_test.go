package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmkit/cmd/internal/hypervisor/qemutest"
)

// TestDevices: disks of real devices, defined by -blockdev and -drive, with names that have to be looked up in QEMU's
// own folder: flash memory, a CD, an external data file, VMDK extents, names with blanks and colons.
func TestDevices(t *testing.T) {
	t.Parallel()
	qemutest.Need(t)
	dir := memoryDir(t)
	l := &lab{t: t, journal: memoryDir(t), name: "dev-" + filepath.Base(dir)}
	img := func(args ...string) { qemutest.Img(t, dir, append([]string{"create", "-q"}, args...)...) }
	img("-f", "qcow2", "./a base: 1.qcow2", "16M")
	img("-f", "qcow2", "-F", "qcow2", "-b", "./a base: 1.qcow2", "mid.qcow2")
	img("-f", "qcow2", "-F", "qcow2", "-b", "mid.qcow2", "top, äöü.qcow2")
	img("-f", "qcow2", "-o", "data_file=bulk.raw", "bulk.qcow2", "16M")
	img("-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat", "split.vmdk", "16M")
	for name, size := range map[string]int64{"cd.iso": 1 << 20, "code.fd": 1 << 20, "vars.fd": 1 << 18} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		f.Truncate(size)
		f.Close()
	}
	l.QEMU = qemutest.Custom(t, nil, dir, "q.sock", "control",
		"-M", "q35", "-accel", "tcg", "-nodefaults", "-display", "none", "-name", "guest="+l.name+",debug-threads=on", "-m", "32",
		"-chardev", "socket,id=mon,path=q.sock,server=on,wait=off", "-mon", "chardev=mon,mode=control", "-qmp", "unix:control,server=on,wait=off",
		"-uuid", "0b0c3d6e-5a1c-4f4e-8d3b-0123456789ab",
		"-drive", "if=pflash,unit=0,format=raw,file=code.fd,readonly=on", "-drive", "if=pflash,unit=1,format=raw,file=vars.fd",
		"-blockdev", "driver=file,filename=top,, äöü.qcow2,node-name=f0,cache.direct=off", "-blockdev", "driver=qcow2,file=f0,node-name=d0",
		"-device", "virtio-blk-pci,drive=d0,id=root",
		"-blockdev", "driver=qcow2,node-name=d1,file.driver=file,file.filename=bulk.qcow2", "-device", "virtio-blk-pci,drive=d1",
		"-drive", "if=none,id=hd2,format=vmdk,file=split.vmdk", "-device", "ide-hd,drive=hd2,bus=ide.0",
		"-drive", "if=none,id=cd,format=raw,file=cd.iso,media=cdrom,readonly=on", "-device", "ide-cd,drive=cd,bus=ide.1")
	for _, mode := range []string{"snapshot", "pause"} {
		r := l.start("", "-m", mode, "--allow-long-pause", l.name)
		vms, _ := r.records()
		if len(vms) != 1 {
			t.Fatal(r.stderr.String())
		}
		if vms[0].UUID != "0b0c3d6e-5a1c-4f4e-8d3b-0123456789ab" || vms[0].Name != l.name {
			t.Errorf("%s, %s", vms[0].Name, vms[0].UUID)
		}
		var got []string
		for _, f := range vms[0].Files {
			name := filepath.Base(f.Path)
			if !filepath.IsAbs(f.Path) {
				t.Errorf("%s is no absolute path", f.Path)
			}
			got = append(got, fmt.Sprintf("%s %s %s", f.Disk, f.Role, name))
		}
		slices.Sort(got)
		want := []string{
			"cd media cd.iso", "hd2 backing split-f001.vmdk", "hd2 disk split.vmdk", "pflash0 firmware code.fd", "pflash1 firmware vars.fd",
			"root backing a base: 1.qcow2", "root backing mid.qcow2", "root disk top, äöü.qcow2",
		}
		bulk := slices.IndexFunc(got, func(s string) bool { return strings.HasSuffix(s, " disk bulk.qcow2") })
		if bulk < 0 {
			t.Fatalf("%q", got)
		}
		disk, _, _ := strings.Cut(got[bulk], " ")
		want = append(want, disk+" backing bulk.raw", disk+" disk bulk.qcow2")
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		if status := r.done(); status != 0 || l.Status() != "running" {
			t.Errorf("%s: status %d: %s", mode, status, r.stderr.String())
		}
		l.clean()
	}
	l.Quit()
	for _, image := range []string{"top, äöü.qcow2", "bulk.qcow2"} {
		qemutest.Img(t, dir, "check", "-q", image)
	}
}

// TestForeign: what can't be cloned is said before anything is done.
func TestForeign(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	// The file under the disk's name is another one by now.
	path := filepath.Join(l.Dir, "data.img")
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(path, nil, 0o600)
	r := l.start("", l.target())
	if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "is not the file that QEMU") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	// A part of a file is no disk's image, nor is what lies on another host.
	l.Quit()
	os.Rename(path+".old", path)
	for _, drive := range []string{
		`file=json:{"driver":"raw",,"offset":1048576,,"file":{"driver":"file",,"filename":"data.img"}}`,
		"file=json:{\"driver\":\"null-co\"}", "file=fat:rw:.,format=raw",
	} {
		l.again("-drive", "if=none,id=vda,"+drive)
		r := l.start("", l.target())
		if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "vmkit can't clone it") {
			t.Errorf("%s: status %d: %s", drive, status, r.stderr.String())
		}
		l.Quit()
	}
}

// TestEncrypted: what is written to an encrypted disk never lies in the clear.
func TestEncrypted(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	l := &lab{t: t, journal: memoryDir(t), name: "secret-" + filepath.Base(dir)}
	qemutest.Need(t)
	qemutest.Img(t, dir, "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=geheim",
		"-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "disk.qcow2", "1M")
	l.QEMU = qemutest.Start(t, dir, l.name, "-object", "secret,id=s,data=geheim",
		"-drive", "if=none,id=vda,format=qcow2,encrypt.format=luks,encrypt.key-secret=s,file=disk.qcow2")
	r := l.start("", "-m", "snapshot", l.target())
	if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "in the clear") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	r = l.start("", "--allow-long-pause", l.target())
	vms, _ := r.records()
	if len(vms) != 1 || vms[0].Mode != "pause" || !strings.Contains(strings.Join(vms[0].Notes, " "), "in the clear") || r.done() != 0 {
		t.Errorf("%+v %s", vms, r.stderr.String())
	}
	l.clean()
}
