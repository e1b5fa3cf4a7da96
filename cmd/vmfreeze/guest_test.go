package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmkit/cmd/internal/boot/boottest"
	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/extract"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// guest is a Linux guest that writes records without end.
type guest struct {
	*lab
	*boottest.Console
	args []string // but for its disk and sockets
}

// bootGuest boots the guest. Everything that it needs is made or found here.
func bootGuest(t *testing.T) *guest {
	t.Helper()
	if testing.Short() {
		t.Skip("it boots a guest")
	}
	qemutest.Need(t, "mke2fs", "e2fsck", "dumpe2fs")
	kernel := boottest.Kernel(t)
	dir := memoryDir(t)
	initrd := boottest.Initrd(t, kernel, []string{"ext4"})
	raw := filepath.Join(dir, "guest.raw")
	tool(t, "mke2fs", "-q", "-t", "ext4", "-F", raw, "192M")
	qemutest.Img(t, dir, "convert", "-O", "qcow2", raw, "guest.qcow2")
	remove(t, raw)
	g := &guest{Console: &boottest.Console{}, lab: &lab{t: t, journal: memoryDir(t), name: "guest-" + filepath.Base(dir)}}
	g.args = []string{"-M", "q35", "-cpu", "max", "-accel", "tcg,thread=multi", "-smp", "1", "-m", "160", "-nodefaults", "-display", "none",
		"-no-reboot", "-name", g.name, "-serial", "stdio", "-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet loglevel=1 panic=-1 random.trust_cpu=on"}
	g.QEMU = g.start2(t, g.Console, dir, "guest.qcow2")
	g.Await(t, 50)
	return g
}

// start2 starts a machine like the guest's, with its disk in a folder.
func (g *guest) start2(t *testing.T, out *boottest.Console, dir, disk string, more ...string) *qemutest.QEMU {
	args := append(append([]string{}, g.args...), "-qmp", "unix:qmp,server=on,wait=off", "-qmp", "unix:control,server=on,wait=off",
		"-chardev", "socket,id=ga,path=agent,server=on,wait=off", "-device", "virtio-serial-pci",
		"-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
		"-drive", "if=none,id=hd,format=qcow2,cache=writeback,file="+disk, "-device", "virtio-blk-pci,drive=hd")
	return qemutest.Custom(t, out, dir, "qmp", "control", append(args, more...)...)
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// TestGuest freezes a guest that writes without end, in every mode, and holds each clone against what the guest had
// said that it has on its disk: all of that is there, the file system is sound once it was recovered, and nothing was
// added to the files while they were held.
func TestGuest(t *testing.T) {
	t.Parallel()
	g := bootGuest(t)
	for _, args := range [][]string{
		{"-m", "snapshot"}, {"-m", "pause"}, {"-m", "suspend"}, {"-m", "snapshot", "--quiesce"}, {"-m", "pause", "--quiesce"},
	} {
		t.Run(strings.Join(args[1:], " "), func(t *testing.T) {
			g.t = t
			snapshot, quiesce := args[1] == "snapshot", slices.Contains(args, "--quiesce")
			before, _ := g.Synced()
			r := g.lab.start("", append(append([]string{"--allow-long-pause"}, args...), g.target())...)
			vms, _ := r.records()
			if len(vms) != 1 || vms[0].Quiesced != quiesce {
				t.Fatalf("%+v: %s", vms, r.stderr.String())
			}
			dir := memoryDir(t)
			clone := cloneFiles(t, dir, vms[0].Files)
			if snapshot {
				last, _ := g.Synced()
				g.Await(t, last+20) // it runs on
			}
			if again := cloneFiles(t, memoryDir(t), vms[0].Files); !same(t, clone, again) {
				t.Error("the files changed while they were held")
			}
			after, _ := g.Synced()
			if status := r.done(); status != 0 {
				t.Fatalf("status %d: %s", status, r.stderr.String())
			}
			if rel := g.released(); rel.Thawed != quiesce || rel.Resumed == snapshot || rel.Committed != snapshot {
				t.Errorf("%+v", rel)
			} else {
				t.Logf("pause %v, file systems frozen %v", time.Duration(rel.PauseNS), time.Duration(rel.FrozenNS))
			}
			g.clean()
			g.Await(t, after+20)
			last := checkClone(t, clone, quiesce)
			if last < before || last > after+1 {
				t.Errorf("the clone has %d records; before the freeze there were %d, at its end %d", last, before, after)
			}
			if args[1] == "suspend" {
				g.wake(t, dir, clone, filepath.Base(vms[0].Files[len(vms[0].Files)-1].Path), last)
			}
		})
	}
	t.Run("overlay full", func(t *testing.T) {
		g.t = t
		r := g.lab.start("", "-m", "snapshot", "--work", mountTmpfs(t, "1m"), g.target())
		r.records()
		for g.Status() == "running" {
			time.Sleep(10 * time.Millisecond)
		}
		if s := g.Status(); s != "io-error" {
			t.Fatalf("the machine is %s", s)
		}
		if status := r.done(); status != 0 || g.Status() != "running" {
			t.Fatalf("status %d, the machine is %s: %s", status, g.Status(), r.stderr.String())
		}
		last, _ := g.Synced()
		g.Await(t, last+20)
	})
	g.t = t
	g.Quit()
	qemutest.Img(t, g.Dir, "check", "-q", "guest.qcow2")
	checkClone(t, filepath.Join(g.Dir, "guest.qcow2"), false)
}

// wake starts the clone of a suspended machine from its memory: it goes on where it was.
func (g *guest) wake(t *testing.T, dir, disk, memory string, last int) {
	t.Helper()
	c := &boottest.Console{}
	q := g.start2(t, c, dir, filepath.Base(disk), "-incoming", "exec:cat "+memory)
	for range 500 {
		if q.Status() != "inmigrate" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	q.Do("cont", nil)
	c.Await(t, last+5)
	q.Quit()
	checkClone(t, disk, false)
}

// cloneFiles copies the files of the machine, and gives its disk's copy.
func cloneFiles(t *testing.T, dir string, files []mapfile.VMFile) (disk string) {
	t.Helper()
	for _, f := range files {
		to := filepath.Join(dir, filepath.Base(f.Path))
		tool(t, "cp", "--sparse=always", f.Path, to)
		if f.Role == mapfile.RoleDisk {
			disk = to
		}
	}
	return disk
}

func same(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	return err == nil && bytes.Equal(x, y)
}

// checkClone maps the clone and reads the log out of it, and has e2fsck judge a copy. It gives the number of the last
// record.
func checkClone(t *testing.T, disk string, clean bool) int {
	t.Helper()
	log := catFile(t, disk, "/log")
	last := boottest.LastRecord(t, log)
	raw := filepath.Join(memoryDir(t), "copy.raw")
	qemutest.Img(t, "", "convert", "-O", "raw", disk, raw)
	features := tool(t, "dumpe2fs", "-h", raw)
	if dirty := strings.Contains(features, "needs_recovery"); clean && dirty {
		t.Error("the file systems were frozen, and yet the clone needs recovery")
	}
	// Exit status 1: the journal was replayed. 4 would be errors left.
	replay := exec.Command("e2fsck", "-p", raw)
	if out, err := replay.CombinedOutput(); err != nil && replay.ProcessState.ExitCode() != 1 {
		t.Fatalf("e2fsck -p: %v: %s", err, out)
	}
	tool(t, "e2fsck", "-fn", raw)
	// The kernel's way of recovery gives the same log as the map's.
	if replayed := catFile(t, raw, "/log"); !bytes.Equal(log, replayed) {
		t.Errorf("the log has %d bytes in the map, and %d after e2fsck", len(log), len(replayed))
	}
	return last
}

// catFile reads one file out of an image.
func catFile(t *testing.T, image, path string) []byte {
	t.Helper()
	term := &cli.Term{Name: "vmfreeze", Stderr: io.Discard}
	in := cli.Input{Journal: string(fsmap.JournalReplay)}
	images, err := in.Open(term, []string{image})
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	patterns, err := mapfile.ParsePatterns([]string{path})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	m := images.Reader(ctx, fsmap.Config{Patterns: patterns, Problem: func(_ *mapfile.Names, p *mapfile.Problem) { t.Errorf("%+v", p) }})
	var out bytes.Buffer
	sum, err := extract.Cat(ctx, m.Reader, &out, extract.Options{Patterns: patterns})
	if _, closeErr := m.Close(); err == nil {
		err = closeErr
	}
	if err != nil || sum.Gaps() {
		t.Fatal(errors.Join(err, fmt.Errorf("%+v", sum)))
	}
	return out.Bytes()
}
