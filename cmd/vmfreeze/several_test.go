package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fsmap/mapfile"
)

// say tells vmfreeze that the clone stands on its own.
func say(t *testing.T, fifo string) {
	t.Helper()
	f, err := os.OpenFile(fifo, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.Write([]byte("\n"))
	f.Close()
}

// TestSaid: somebody keeps the pipe open, and yet the reader is done.
func TestSaid(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.start("", append(stopped, l.target())...)
	vms, _ := r.records()
	say(t, vms[0].Release)
	if status := r.wait2(); status != 0 {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	l.sound()
}

// TestSeveral: machines one after the other, each released when its reader says so, and all at one instant.
func TestSeveral(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	dir := t.TempDir()
	qemutest.Img(t, dir, "create", "-q", "-f", "qcow2", "db.qcow2", "64M")
	db := qemutest.Start(t, dir, "db1", "-drive", "if=none,id=vda,file=db.qcow2,format=qcow2")
	targets := []string{l.target(), "qmp:" + db.Socket}

	r := l.start("", append(stopped, targets...)...)
	vms, _ := r.records()
	if len(vms) != 1 || vms[0].Following != 1 || vms[0].Release == "" || db.Status() != "running" || l.Status() != "paused" {
		t.Fatalf("%+v", vms)
	}
	say(t, vms[0].Release)
	var next mapfile.VM
	for {
		line, err := r.out.ReadBytes('\n')
		if err != nil {
			t.Fatal(err, r.stderr.String())
		}
		if json.Unmarshal(line, &next); next.Type == "vm" {
			break
		}
	}
	if next.Name != "db1" || next.Following != 0 || l.Status() != "running" || db.Status() != "paused" {
		t.Errorf("%+v; %s and %s", next, l.Status(), db.Status())
	}
	if status := r.done(); status != 0 || db.Status() != "running" {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	left, _ := filepath.Glob(filepath.Join(l.journal, "*.fifo"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	l.sound()

	// Its reader leaves after the first: the second is not frozen, and that is said.
	r = l.start("", append(stopped, targets...)...)
	r.records()
	if status := r.done(); status != 3 || !strings.Contains(r.stderr.String(), "was not frozen") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	l.sound()

	r = l.start("", append(append(stopped, "--together"), targets...)...)
	vms, _ = r.records()
	if len(vms) != 2 || db.Status() != "paused" || l.Status() != "paused" {
		t.Errorf("%+v; %s and %s", vms, l.Status(), db.Status())
	}
	if status := r.done(); status != 0 || db.Status() != "running" {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	l.sound()

	// Both die with vmfreeze, and both are let go by its one guard.
	r = l.start("undo stop", append(append(stopped, "--together"), targets...)...)
	r.records()
	if status := r.done(); status != -1 || db.Status() != "running" {
		t.Errorf("status %d, the other one is %s: %s", status, db.Status(), r.stderr.String())
	}
	l.sound()

	// One of them can't be frozen: none is.
	r = l.start("", append(append(stopped, "--together"), l.target(), "qmp:/nowhere/x.qmp")...)
	if vms, _ := r.records(); len(vms) != 0 || r.done() != 4 {
		t.Errorf("%+v %s", vms, r.stderr.String())
	}
	l.sound()

	// A command is run for each machine.
	counted := filepath.Join(dir, "counted")
	cmd := exec.Command("vmfreeze", append(append([]string{}, targets...), "--", "sh", "-c", "echo >> "+counted)...)
	cmd.Env = append(os.Environ(), "VMKIT_JOURNAL="+l.journal)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v %s", err, out)
	}
	if b, err := os.ReadFile(counted); err != nil || len(b) != 2 {
		t.Errorf("the command ran %d times", len(b))
	}
	l.sound()
}

func TestList(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.start("", "--list")
	vms, whole := r.records()
	status := r.wait2()
	found := false
	for _, vm := range vms {
		found = found || vm.Target == l.target() && vm.Mode == "" && vm.Name == l.name && len(vm.Files) == 3
	}
	// Others' machines on this host may be busy, which is a gap.
	if !found || !whole || status != 0 && status != 3 {
		t.Errorf("status %d, %+v, %s", status, vms, r.stderr.String())
	}
}

// TestFirstFails: a step fails for the first machine, for lack of room; the second is frozen all the same.
func TestFirstFails(t *testing.T) {
	t.Parallel()
	full := mountTmpfs(t, "1m")
	qemutest.Img(t, full, "create", "-q", "-f", "qcow2", "disk.qcow2", "64M")
	broken := qemutest.Start(t, full, "broken", "-drive", "if=none,id=vda,file=disk.qcow2,format=qcow2")
	os.WriteFile(filepath.Join(full, "fill"), make([]byte, 1<<20), 0o600)
	l := newLab(t)
	r := l.start("", "-m", "snapshot", "qmp:"+broken.Socket, l.target())
	vms, _ := r.records()
	if len(vms) != 1 || vms[0].Name != l.name {
		t.Fatalf("%+v %s", vms, r.stderr.String())
	}
	if status := r.done(); status != 3 || !strings.Contains(r.stderr.String(), "broken: make overlays") || broken.Status() != "running" {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	l.sound()
}

// TestAll runs where no other machine is to be seen.
func TestAll(t *testing.T) {
	t.Parallel()
	qemutest.Need(t, "unshare")
	dir, bin := memoryDir(t), t.TempDir()
	// No other hypervisor's tools either.
	for _, tool := range []string{"vmfreeze", "qemu-img", "qemu-system-x86_64", "sh", "sleep", "kill"} {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(bin, tool)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"a", "b"} {
		qemutest.Img(t, dir, "create", "-q", "-f", "qcow2", name+".qcow2", "1M")
	}
	script := `cd ` + dir + `
for m in a b; do
	qemu-system-x86_64 -M none -accel tcg -nodefaults -display none -name $m -qmp unix:$m.sock,server=on,wait=off -drive if=none,id=hd,file=$m.qcow2,format=qcow2 &
done
while [ ! -S a.sock ] || [ ! -S b.sock ]; do sleep 0.1; done
vmfreeze --all --together -- sh -c 'while read -r line; do echo "$line"; case $line in *end*) exit; esac; done'
echo status $?
kill %1 %2`
	cmd := exec.Command("unshare", "--fork", "--pid", "--mount-proc", "--kill-child", filepath.Join(bin, "sh"), "-c", script)
	cmd.Env = []string{"PATH=" + bin, "VMKIT_JOURNAL=" + filepath.Join(dir, "journal")}
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil && strings.Contains(errs.String(), "Operation not permitted") {
		t.Skipf("no namespace of its own: %s", errs.String())
	}
	if got := string(out); strings.Count(got, `"type":"vm"`) != 2 || !strings.Contains(got, `"name":"a"`) || !strings.Contains(got, `"name":"b"`) || !strings.HasSuffix(got, "status 0\n") {
		t.Errorf("%v %s %s", err, got, errs.String())
	}
}

// TestTerminal: people get a list, and let go by Ctrl-C.
func TestTerminal(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	qemutest.Need(t, "script")
	at := func(command string) *exec.Cmd {
		cmd := exec.Command("script", "-qec", command, "/dev/null")
		cmd.Env = append(os.Environ(), "VMKIT_JOURNAL="+l.journal)
		return cmd
	}
	out, err := at("vmfreeze --list").Output()
	if s := string(out); !strings.Contains(s, l.name) || !strings.Contains(s, "top.qcow2") || strings.Contains(s, "{") {
		t.Errorf("%v %s", err, s)
	}
	out, err = at("vmfreeze --json --list").Output()
	if !strings.Contains(string(out), `{"type":"vm"`) {
		t.Errorf("%v %s", err, out)
	}
	hold := at("vmfreeze -m snapshot " + l.target())
	in, err := hold.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	shown, err := hold.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := hold.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := shown.Read(buf)
	if s := string(buf[:n]); err != nil || !strings.Contains(s, "frozen (snapshot") {
		t.Errorf("%v %s", err, s)
	}
	in.Write([]byte{3})
	for {
		if _, err := shown.Read(buf); err != nil {
			break
		}
	}
	if hold.Wait(); hold.ProcessState.ExitCode() != 130 {
		t.Errorf("status %d", hold.ProcessState.ExitCode())
	}
	l.sound()
	l.bothDie()
	if out, err := at("vmfreeze --recover").Output(); err != nil || !strings.Contains(string(out), "took back: snapshot") {
		t.Errorf("%v %s", err, out)
	}
	if out, err := at("vmfreeze --recover").Output(); err != nil || !strings.Contains(string(out), "nothing was left") {
		t.Errorf("%v %s", err, out)
	}
	l.sound()
}
