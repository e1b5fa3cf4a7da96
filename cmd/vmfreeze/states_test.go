package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/qemutest"
)

func TestBusy(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.start("", append(stopped, l.target())...)
	r.records()
	// The socket has its client: QEMU does not greet a second one. Nor does it on its other sockets, which are the test's.
	second := l.start("", l.target())
	if status := second.wait2(); status != 4 || !strings.Contains(second.stderr.String(), "busy") {
		t.Errorf("status %d: %s", status, second.stderr.String())
	}
	// A machine may have another socket.
	second = l.start("", "qmp:"+filepath.Join(l.Dir, l.name+".spare"))
	if vms, _ := second.records(); len(vms) != 1 || vms[0].StateFound != "paused" {
		t.Errorf("%+v", vms)
	}
	if status := second.done(); status != 0 || l.Status() != "paused" {
		t.Errorf("status %d: %s", status, second.stderr.String())
	}
	if status, got, stderr := l.recovers(""); status != 3 || !strings.Contains(stderr, "another vmfreeze holds it") || len(got) != 0 {
		t.Errorf("recovery of what is held: status %d, %v, %s", status, got, stderr)
	}
	if r.done() != 0 {
		t.Error(r.stderr.String())
	}
	l.sound()
	r = l.start("", "-m", "snapshot", l.target())
	r.records()
	second = l.start("", "qmp:"+filepath.Join(l.Dir, l.name+".spare"))
	if status := second.wait2(); status != 4 || !strings.Contains(second.stderr.String(), "is an overlay of a vmfreeze") {
		t.Errorf("status %d: %s", status, second.stderr.String())
	}
	if r.done() != 0 {
		t.Error(r.stderr.String())
	}
	l.sound()
}

// TestOthersClient: somebody else is connected to the machine's only socket.
func TestOthersClient(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	conn, err := net.Dial("unix", l.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := l.start("", l.target())
	if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "another client is connected") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	// By its name it is found behind a socket that is free.
	r = l.start("", l.name)
	if vms, _ := r.records(); len(vms) != 1 || !strings.HasSuffix(vms[0].Target, ".spare") || r.done() != 0 {
		t.Errorf("%+v %s", vms, r.stderr.String())
	}
	l.sound()
}

// TestStatesFound: a machine that stands still is left so, and somebody else's having it go on is noticed.
func TestStatesFound(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.Do("stop", nil)
	r := l.start("", l.name)
	vms, _ := r.records()
	if vms[0].StateFound != "paused" || vms[0].ReflinkOnly {
		t.Errorf("%+v", vms[0])
	}
	if r.done() != 0 || l.Status() != "paused" {
		t.Errorf("it is %s: %s", l.Status(), r.stderr.String())
	}
	l.clean()
	r = l.start("", l.name)
	r.records()
	l.Do("cont", nil)
	if status := r.done(); status != 4 || !strings.Contains(r.stderr.String(), "somebody else") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	for _, args := range [][]string{{"-m", "suspend"}, {"--quiesce"}, {"--track"}} {
		l.Do("stop", nil)
		r := l.start("", append(args, l.name)...)
		if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "paused") {
			t.Errorf("%v: status %d: %s", args, status, r.stderr.String())
		}
	}
}

// TestResumedBySomebody: the machine that vmfreeze stopped ran in between.
func TestResumedBySomebody(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.start("", append(stopped, l.name)...)
	r.records()
	l.Do("cont", nil)
	status := r.done()
	if rel := l.released(); status != 4 || !strings.Contains(r.stderr.String(), "somebody else") || !rel.Spoiled {
		t.Errorf("status %d: %s %+v", status, r.stderr.String(), rel)
	}
	l.sound()
}

// TestReflinkOnly: a pause in which files would have to be copied is refused, and not by guessing at a file system.
func TestReflinkOnly(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ok, err := hypervisor.CanReflink(l.Dir)
	if err != nil {
		t.Fatal(err)
	}
	r := l.start("", "-m", "pause", l.name)
	vms, _ := r.records()
	status := r.done()
	switch {
	case ok && (status != 0 || !vms[0].ReflinkOnly):
		t.Errorf("status %d, %+v", status, vms)
	case !ok && (status != 4 || !strings.Contains(r.stderr.String(), "--allow-long-pause") || len(vms) != 0):
		t.Errorf("status %d, %s", status, r.stderr.String())
	}
	l.sound()
	r = l.start("", append(stopped, l.name)...)
	if vms, _ := r.records(); vms[0].ReflinkOnly {
		t.Error("--allow-long-pause, and yet only reflinks are allowed")
	}
	r.done()
}

// TestJournalFull: where the journal can't be written nothing is begun.
func TestJournalFull(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	dir := mountTmpfs(t, "16k")
	fill, err := os.Create(filepath.Join(dir, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := fill.Write(make([]byte, 4096)); err != nil {
			break
		}
	}
	fill.Close()
	kept := l.journal
	l.journal = dir
	r := l.start("", append(stopped, l.name)...)
	if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "no space left") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	if l.Status() != "running" {
		t.Error("it was stopped all the same")
	}
	// It fills up while the machine is frozen: letting it go does not wait for room.
	os.Remove(fill.Name())
	for _, mode := range [][]string{stopped, {"-m", "snapshot"}} {
		r = l.start("", append(mode, l.name)...)
		r.records()
		fill, _ = os.Create(fill.Name())
		for {
			if _, err := fill.Write(make([]byte, 4096)); err != nil {
				break
			}
		}
		fill.Close()
		if status := r.done(); status != 0 {
			t.Errorf("status %d: %s", status, r.stderr.String())
		}
		os.Remove(fill.Name())
		// The journal may not say that all is well; a recovery finds nothing to do.
		if status, _, stderr := l.recovers(""); status != 0 {
			t.Errorf("recovery: status %d: %s", status, stderr)
		}
		l.sound()
	}
	l.journal = kept
}

// TestProcessNames: a number that came again is another process.
func TestProcessNames(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := hypervisor.ProcessOf(cmd.Process.Pid)
	if err != nil || !p.Alive() {
		t.Fatal(err, strconv.Itoa(p.PID))
	}
	other := p
	other.Start++
	booted := p
	booted.Boot = "another"
	if other.Alive() || booted.Alive() {
		t.Error("another start time, or another boot, and yet the same process")
	}
	cmd.Process.Kill()
	for range 100 {
		if !p.Alive() { // a zombie isn't
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if p.Alive() {
		t.Error("alive after its end")
	}
	cmd.Wait()
}

// TestReflink: where files can be cloned by reflink a pause needs no permission, and its clone is what the disk was.
func TestReflink(t *testing.T) {
	t.Parallel()
	for _, tool := range []string{"mkfs.xfs", "mount", "umount"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("mounting a file system with reflinks needs root")
	}
	work, dir := memoryDir(t), t.TempDir()
	image := filepath.Join(work, "xfs.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil || os.Truncate(image, 512<<20) != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1", image}, {"mount", "-o", "loop", image, dir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%q: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { exec.Command("umount", "-l", dir).Run() })
	l := newLabIn(t, dir)
	for pattern, mode := range []string{"pause", "suspend"} {
		l.write(pattern)
		r := l.start("", "-m", mode, l.target())
		vms, _ := r.records()
		if len(vms) != 1 || !vms[0].ReflinkOnly {
			t.Fatalf("%+v %s", vms, r.stderr.String())
		}
		clones := filepath.Join(dir, "clone-"+mode)
		if err := os.Mkdir(clones, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range vms[0].Files {
			if out, err := exec.Command("cp", "--reflink=always", f.Path, clones).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		if status := r.done(); status != 0 {
			t.Errorf("status %d: %s", status, r.stderr.String())
		}
		l.sound()
		l.write(100 + pattern)
		cloned := &lab{t: t, QEMU: &qemutest.QEMU{Dir: clones}}
		cloned.holds(pattern)
		if out, err := exec.Command("qemu-io", "-r", "-f", "raw", "-c", fmt.Sprintf("read -P 0 %dk 64k", (100+pattern)*64),
			filepath.Join(clones, "data.img")).CombinedOutput(); err != nil || strings.Contains(string(out), "failed") {
			t.Errorf("the clone holds what was written after it: %s", out)
		}
	}
}

// TestBadJournal: of this machine it has to be looked at; of another it doesn't matter.
func TestBadJournal(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.start("", "-m", "snapshot", l.target())
	vms, _ := r.records()
	r.done()
	other := filepath.Join(l.journal, "other-0123456789ab-x.json")
	os.WriteFile(other, []byte("{"), 0o600)
	r = l.start("", "-m", "snapshot", l.target())
	r.records()
	if status := r.done(); status != 0 || !strings.Contains(r.stderr.String(), "warning: journal: "+other) {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	if status, _, stderr := l.recovers(""); status != 4 || !strings.Contains(stderr, other) {
		t.Errorf("status %d: %s", status, stderr)
	}
	os.WriteFile(vms[0].Journal, []byte(`{"version":2,"vm":{}}`), 0o600)
	r = l.start("", "-m", "snapshot", l.target())
	if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "version 2") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	if l.Status() != "running" {
		t.Error(l.Status())
	}
}
