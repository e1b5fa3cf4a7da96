package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/qemutest"
)

// bothDie freezes the machine by a snapshot and has vmfreeze and its guard die, so that its overlays stay active.
func (l *lab) bothDie() {
	l.t.Helper()
	r := l.start("did snapshot,guard takes over", "-m", "snapshot", l.target())
	r.records()
	if r.wait(); l.Top("vda") == "top.qcow2" {
		l.t.Fatal("no overlay is active")
	}
}

// again starts the machine once more as it was defined.
func (l *lab) again(args ...string) {
	l.t.Helper()
	l.Run(filepath.Join(l.Dir, l.name+".control"), append(qemutest.Args(l.name), args...)...)
}

// TestQEMUKilled: QEMU died, and everything since the snapshot is in overlays that no command line names.
func TestQEMUKilled(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.write(1)
	l.bothDie()
	l.write(2)
	l.Kill()
	for _, place := range []string{"before qemu-img commit", "after qemu-img commit", "before unlink"} {
		if _, _, stderr := l.recovers(place); !strings.Contains(stderr, "killed at") {
			t.Fatalf("%s was not reached: %s", place, stderr)
		}
	}
	status, got, stderr := l.recovers("")
	if status != 0 || len(got) != 1 || len(got[0].Undone) != 3 || !got[0].Released.Committed || got[0].Released.By != "recover" {
		t.Errorf("status %d, %+v, %s", status, got, stderr)
	}
	l.clean()
	l.holds(1, 2)
	// There is nothing to do twice.
	if status, got, _ := l.recovers(""); status != 0 || len(got) != 0 {
		t.Errorf("status %d, %+v", status, got)
	}
}

// TestReboot: no process of the journal is there any more, whatever has its number.
func TestReboot(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.write(1)
	l.bothDie()
	l.write(2)
	list, _ := hypervisor.Journals(l.journal)
	b, err := os.ReadFile(list[0].Path())
	if err != nil {
		t.Fatal(err)
	}
	l.Kill()
	// Their numbers are those of processes that live, in another boot.
	b = regexp.MustCompile(`(pid\\?": ?)\d+`).ReplaceAll(b, fmt.Appendf(nil, "${1}%d", os.Getpid()))
	b = bytes.ReplaceAll(b, []byte(list[0].Owner.Boot), []byte("00000000-0000-0000-0000-000000000000"))
	if err := os.WriteFile(list[0].Path(), b, 0o600); err != nil {
		t.Fatal(err)
	}
	if status, got, stderr := l.recovers(""); status != 0 || len(got) != 1 || !got[0].Released.Committed {
		t.Errorf("status %d, %+v, %s", status, got, stderr)
	}
	l.clean()
	l.holds(1, 2)
}

// TestQEMUKilledWhileHeld: vmfreeze itself puts the writes back.
func TestQEMUKilledWhileHeld(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"snapshot", "pause", "suspend"} {
		l := newLab(t)
		l.write(1)
		r := l.start("", "-m", mode, "--allow-long-pause", l.target())
		r.records()
		if mode == "snapshot" {
			l.write(2)
		}
		l.Kill()
		if status := r.done(); status != 0 {
			t.Errorf("%s: status %d: %s", mode, status, r.stderr.String())
		}
		l.clean()
		if l.holds(1); mode == "snapshot" {
			l.holds(2)
		}
	}
}

// TestStartedAgain: the machine was started from its disks, without the overlays that hold its last writes. Nobody but
// its owner can choose between the two histories.
func TestStartedAgain(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.write(1)
	l.bothDie()
	l.write(2)
	l.Kill()
	// The machine's disks are older than anything that is written from now on.
	time.Sleep(4 * time.Second)
	l.again(labDrives...)
	status, got, stderr := l.recovers("")
	if status != 3 || !strings.Contains(stderr, "shut it down") || len(got) != 1 || len(got[0].Left) != 3 {
		t.Errorf("status %d, %+v, %s", status, got, stderr)
	}
	// A new freeze first has to take back the old one, which it can't.
	r := l.start("", l.target())
	if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "shut it down") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	l.write(3)
	l.Quit()
	status, _, stderr = l.recovers("")
	if status != 3 || !strings.Contains(stderr, "two histories") || !strings.Contains(stderr, "remove "+l.Dir) {
		t.Errorf("status %d, %s", status, stderr)
	}
	l.holds(1, 3)
	overlays, err := filepath.Glob(filepath.Join(l.Dir, "*.vmfreeze-*"))
	if err != nil || len(overlays) != 2 {
		t.Fatalf("%v %v", overlays, err)
	}
	for _, path := range overlays {
		remove(t, path)
	}
	if status, _, stderr := l.recovers(""); status != 0 {
		t.Errorf("status %d, %s", status, stderr)
	}
	l.clean()
	l.holds(1, 3)
}

// TestNextRunRecovers: a new freeze takes back what was left, and says so.
func TestNextRunRecovers(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.write(1)
	l.bothDie()
	l.write(2)
	r := l.start("", l.target())
	vms, _ := r.records()
	if len(vms) != 1 || len(vms[0].Files) != 3 || strings.Contains(vms[0].Files[0].Path, "vmfreeze-") {
		t.Fatalf("%+v %s", vms, r.stderr.String())
	}
	if status := r.done(); status != 0 || !strings.Contains(r.stderr.String(), "taking that back first") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	l.sound()
	l.end(1, 2)
}

// TestCommitFails: the disk that the writes go back to has no room. The machine runs on, and a recovery tries again.
func TestCommitFails(t *testing.T) {
	t.Parallel()
	qemutest.Need(t)
	small := mountTmpfs(t, "1m")
	dir := memoryDir(t)
	l := &lab{t: t, journal: memoryDir(t), name: "small-" + filepath.Base(dir)}
	qemutest.Img(t, small, "create", "-q", "-f", "qcow2", "top.qcow2", "64M")
	l.QEMU = qemutest.Start(t, dir, l.name, "-drive", "if=none,id=vda,format=qcow2,file="+filepath.Join(small, "top.qcow2"))
	r := l.start("", "-m", "snapshot", "--work", dir, l.target())
	r.records()
	l.IO("vda", "write -P 7 0 4M")
	if status := r.done(); status != 3 || !strings.Contains(r.stderr.String(), "putting") || l.Status() != "running" {
		t.Errorf("status %d, the machine is %s: %s", status, l.Status(), r.stderr.String())
	}
	l.IO("vda", "read -P 7 0 4M")
	if status, _, stderr := l.recovers(""); status != 3 || !strings.Contains(stderr, "space") {
		t.Errorf("status %d: %s", status, stderr)
	}
	remount(t, small, "32m")
	if status, _, stderr := l.recovers(l.name); status != 0 {
		t.Errorf("status %d: %s", status, stderr)
	}
	if top := l.Top("vda"); filepath.Base(top) != "top.qcow2" {
		t.Errorf("the machine uses %s", top)
	}
	l.clean()
	l.IO("vda", "read -P 7 0 4M")
}
