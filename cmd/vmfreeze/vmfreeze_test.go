package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vmkit/cmd/internal/cli/clitest"
	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fsmap/mapfile"
)

func TestMain(m *testing.M) { clitest.Main(m, map[string]func(){"vmfreeze": main}) }

func TestScripts(t *testing.T) { clitest.Scripts(t, "testdata", nil) }

func TestDocs(t *testing.T) { clitest.Docs(t, command(), "vmfreeze.1") }

// A lab is a machine and a folder of journals.
type lab struct {
	*qemutest.QEMU
	t       *testing.T
	name    string // no other machine on this host has it
	journal string
}

var labs atomic.Int64

// newLab starts a machine with a QCOW2 disk vda over a backing file, and a raw disk vdb.
func newLab(t *testing.T) *lab {
	t.Helper()
	return newLabIn(t, memoryDir(t))
}

// memoryDir gives a folder in which fsync costs nothing, where there is room for one: the journal asks for it all the
// time.
func memoryDir(t *testing.T) string {
	t.Helper()
	const shm = "/dev/shm"
	var fs syscall.Statfs_t
	if err := syscall.Statfs(shm, &fs); err != nil || fs.Bavail*uint64(fs.Bsize) < 2<<30 {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(shm, "vmkit-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

var labDrives = []string{
	"-drive", "if=none,id=vda,file=top.qcow2,format=qcow2", "-drive", "if=none,id=vdb,file=data.img,format=raw",
}

func newLabIn(t *testing.T, dir string) *lab {
	t.Helper()
	qemutest.Need(t, "qemu-io")
	qemutest.Img(t, dir, "create", "-q", "-f", "qcow2", "base.qcow2", "64M")
	qemutest.Img(t, dir, "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", "base.qcow2", "top.qcow2")
	qemutest.Img(t, dir, "create", "-q", "-f", "raw", "data.img", "64M")
	l := &lab{t: t, journal: memoryDir(t), name: fmt.Sprintf("web%d-%d", os.Getpid(), labs.Add(1))}
	l.QEMU = qemutest.Start(t, dir, l.name, labDrives...)
	return l
}

func (l *lab) target() string { return "qmp:" + l.Socket }

// freezing is a vmfreeze that runs.
type freezing struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    *bufio.Reader
	pipe   *os.File
	stderr bytes.Buffer
	ended  bool
}

// start starts vmfreeze with its stdout in a pipe. crash is where it, or its guard, is killed.
func (l *lab) start(crash string, args ...string) *freezing {
	l.t.Helper()
	r := &freezing{t: l.t, cmd: exec.Command("vmfreeze", args...)}
	r.cmd.Env = append(os.Environ(), "VMKIT_JOURNAL="+l.journal, "VMFREEZE_CRASH_AT="+crash)
	pr, pw, err := os.Pipe()
	if err != nil {
		l.t.Fatal(err)
	}
	r.pipe, r.out = pr, bufio.NewReaderSize(pr, 1<<20)
	r.cmd.Stdout, r.cmd.Stderr = pw, &r.stderr
	if err := r.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	pw.Close()
	l.t.Cleanup(func() {
		if !r.ended {
			r.pipe.Close()
			r.cmd.Process.Kill()
			r.wait()
		}
	})
	return r
}

// records reads the vm records up to their end, or what came before the stream was cut.
func (r *freezing) records() (vms []mapfile.VM, whole bool) {
	r.t.Helper()
	r.pipe.SetReadDeadline(time.Now().Add(time.Minute))
	for {
		line, err := r.out.ReadBytes('\n')
		if err == io.EOF {
			return vms, false
		}
		if err != nil {
			r.t.Fatalf("%v; %s", err, r.stderr.String())
		}
		var vm mapfile.VM
		if err := json.Unmarshal(line, &vm); err != nil {
			r.t.Fatal(err)
		}
		switch vm.Type {
		case "vm":
			vms = append(vms, vm)
		case "end":
			return vms, true
		}
	}
}

// wait waits for vmfreeze and its guard, which holds stderr open, and gives the exit status (-1: killed).
func (r *freezing) wait() int {
	r.ended = true
	r.cmd.Wait()
	r.pipe.Close()
	return r.cmd.ProcessState.ExitCode()
}

// done closes the lease as a reader does that has all it wanted, and waits.
func (r *freezing) done() int {
	r.pipe.Close()
	return r.wait()
}

// recovers runs --recover, and gives its exit status and records.
func (l *lab) recovers(crash string) (status int, got []hypervisor.Recovered, stderr string) {
	l.t.Helper()
	r := l.start(crash, "--recover")
	all, err := io.ReadAll(r.out)
	if err != nil {
		l.t.Fatal(err)
	}
	status = r.wait()
	for line := range bytes.Lines(all) {
		var rec hypervisor.Recovered
		if err := json.Unmarshal(line, &rec); err != nil {
			l.t.Fatal(err)
		}
		got = append(got, rec)
	}
	return status, got, r.stderr.String()
}

// released reads what the only journal says.
func (l *lab) released() *mapfile.Released {
	l.t.Helper()
	list, errs := hypervisor.Journals(l.journal)
	if len(list) != 1 || len(errs) > 0 {
		l.t.Fatalf("%d journals, %v", len(list), errs)
	}
	rel, err := hypervisor.ReadJournal(list[0].Path())
	if err != nil {
		l.t.Fatal(err)
	}
	return rel
}

// sound makes sure that the machine runs as it did before any freeze, and that nothing was left beside its disks.
func (l *lab) sound() {
	l.t.Helper()
	if s := l.Status(); s != "running" {
		l.t.Fatalf("the machine is %s", s)
	}
	for drive, want := range map[string]string{"vda": "top.qcow2", "vdb": "data.img"} {
		if got := filepath.Base(l.Top(drive)); got != want {
			l.t.Fatalf("%s uses %s", drive, got)
		}
	}
	l.clean()
}

func (l *lab) clean() {
	l.t.Helper()
	left, err := filepath.Glob(filepath.Join(l.Dir, "*vmfreeze*"))
	if err != nil || len(left) > 0 {
		l.t.Fatalf("left behind: %v %v", left, err)
	}
	list, errs := hypervisor.Journals(l.journal)
	for _, j := range list {
		if !j.Ended {
			l.t.Fatalf("journal %s: not ended", j.Path())
		}
		os.Remove(j.Path())
	}
	if len(errs) > 0 {
		l.t.Fatal(errs)
	}
}

// write writes a pattern to both disks and has it reach their images.
func (l *lab) write(pattern int) {
	l.t.Helper()
	for _, drive := range []string{"vda", "vdb"} {
		l.IO(drive, fmt.Sprintf("write -P %d %dk 64k", pattern%250+1, pattern*64))
		l.IO(drive, "flush")
	}
}

// end quits QEMU and makes sure that images are sound and hold all patterns.
func (l *lab) end(patterns ...int) {
	l.t.Helper()
	l.Quit()
	l.holds(patterns...)
}

func (l *lab) holds(patterns ...int) {
	l.t.Helper()
	qemutest.Img(l.t, l.Dir, "check", "-q", "top.qcow2")
	for _, image := range [][]string{{"-f", "qcow2", "top.qcow2"}, {"-f", "raw", "data.img"}} {
		args := []string{"-r"}
		for _, p := range patterns {
			args = append(args, "-c", fmt.Sprintf("read -P %d %dk 64k", p%250+1, p*64))
		}
		cmd := exec.Command("qemu-io", append(args, image...)...)
		cmd.Dir = l.Dir
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "failed") || strings.Contains(string(out), "rror") {
			l.t.Fatalf("%s lost a write: %v %s", image[2], err, out)
		}
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// mountTmpfs gives a file system of a size.
func mountTmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("vmkit", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("no tmpfs: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

func remount(t *testing.T, dir, size string) {
	t.Helper()
	if err := syscall.Mount("vmkit", dir, "tmpfs", syscall.MS_REMOUNT, "size="+size); err != nil {
		t.Fatal(err)
	}
}
