package main

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fsmap/mapfile"
)

// stopped are the options of a freeze in which the machine stands still, on whatever file system the tests run.
var stopped = []string{"-m", "pause", "--allow-long-pause"}

func TestModes(t *testing.T) {
	for mode, want := range map[string]mapfile.Released{
		"auto":    {Committed: true},
		"pause":   {Resumed: true},
		"suspend": {Resumed: true},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.write(1)
			r := l.start("", "-m", mode, "--allow-long-pause", l.name)
			vms, _ := r.records()
			vm := vms[0]
			if vm.Name != l.name || vm.Target != l.target() || vm.StateFound != "running" || vm.FrozenAt == nil || vm.Mode == "auto" {
				t.Errorf("%+v", vm)
			}
			if state := l.Status(); (state == "running") != (mode == "auto") {
				t.Errorf("held, the machine is %s", state)
			}
			var roles []string
			for _, f := range vm.Files {
				roles = append(roles, f.Disk+" "+f.Role+" "+filepath.Base(f.Path))
			}
			got := strings.Join(roles, ", ")
			if !strings.HasPrefix(got, "vda disk top.qcow2, vda backing base.qcow2, vdb disk data.img") || strings.Contains(got, "memory") != (mode == "suspend") {
				t.Errorf("files: %s", got)
			}
			if mode == "suspend" {
				if st, err := os.Stat(vm.Files[3].Path); err != nil || st.Size() == 0 {
					t.Errorf("memory: %v %v", st, err)
				}
			}
			if vm.Dir != l.Dir || len(vm.Command) == 0 || vm.Versions["qemu"] == "" {
				t.Errorf("%s %v %v", vm.Dir, vm.Command, vm.Versions)
			}
			if status := r.done(); status != 0 {
				t.Errorf("status %d: %s", status, r.stderr.String())
			}
			rel := l.released()
			if (rel.PauseNS > 0) != want.Resumed || rel.At == nil || rel.By != "vmfreeze" || rel.Error != "" {
				t.Errorf("%+v", rel)
			}
			if rel.Committed != want.Committed || rel.Resumed != want.Resumed || rel.Thawed {
				t.Errorf("%+v", rel)
			}
			l.sound()
			l.end(1)
		})
	}
}

// TestPipes: filters in between collect their output, and learn late that nobody reads it.
func TestPipes(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, pipe := range []string{"| head -n 1", "| tee log | head -n 1", "| jq . | head -n 1", "| tee log | jq -c . | head -n 1"} {
		if _, err := exec.LookPath("jq"); err != nil && strings.Contains(pipe, "jq") {
			t.Logf("%s: jq is not installed", pipe)
			continue
		}
		for _, mode := range [][]string{{"-m", "snapshot"}, stopped} {
			cmd := exec.Command("sh", "-c", "vmfreeze "+strings.Join(mode, " ")+" "+l.name+" "+pipe)
			cmd.Dir = t.TempDir()
			cmd.Env = append(os.Environ(), "VMKIT_JOURNAL="+l.journal)
			out, err := cmd.Output()
			if err != nil || !strings.HasPrefix(string(out), "{") {
				t.Fatalf("%s: %v %s", pipe, err, out)
			}
			l.sound()
		}
	}
}

func TestInterrupted(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		for _, mode := range [][]string{{"-m", "snapshot"}, stopped} {
			r := l.start("", append(mode, l.target())...)
			r.records()
			r.cmd.Process.Signal(sig)
			if status := r.wait(); status != 130 {
				t.Errorf("status %d: %s", status, r.stderr.String())
			}
			l.sound()
		}
	}
}

// TestHungReader: a reader that neither reads nor leaves does not keep the machine.
func TestHungReader(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.start("", append(stopped, "--max-pause", "300ms", l.target())...)
	if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "--max-pause") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	l.sound()
}

// TestHung: vmfreeze itself hangs past the deadline. Its guard closes the lease, by ending it, before the machine goes
// on.
func TestHung(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.start("", append(stopped, "--max-pause", "500ms", l.target())...)
	r.records()
	r.cmd.Process.Signal(syscall.SIGSTOP)
	for {
		if _, err := r.out.ReadBytes('\n'); err != nil {
			break
		}
	}
	if status := r.wait(); status != -1 || !strings.Contains(r.stderr.String(), "late") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	if rel := l.released(); rel.By != "guard" || !rel.Resumed {
		t.Errorf("%+v", rel)
	}
	l.sound()
}

// TestLeaseFirst: the pipe hangs up before the machine goes on, when the guard lets it go, too.
func TestLeaseFirst(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, crash := range []string{"undo stop", "did stop,guard undo stop"} {
		r := l.start(crash, append(stopped, "--max-pause", "300ms", l.target())...)
		for {
			if _, err := r.out.ReadBytes('\n'); err != nil {
				break
			}
		}
		if strings.Contains(crash, "guard") && l.Status() != "paused" {
			t.Error("the machine runs although the guard died before it let it go")
		}
		r.wait()
		l.recovers("")
		l.sound()
	}
}

// TestGuardKilled: without its guard vmfreeze still lets the machine go.
func TestGuardKilled(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.start("", append(stopped, l.target())...)
	vms, _ := r.records()
	j := journalAt(t, vms[0].Journal)
	if !j.Guard.Alive() {
		t.Fatal("the journal does not tell the guard")
	}
	syscall.Kill(j.Guard.PID, syscall.SIGKILL)
	if status := r.done(); status != 0 {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	l.sound()
}

func journalAt(t *testing.T, path string) *hypervisor.Journal {
	t.Helper()
	list, errs := hypervisor.Journals(filepath.Dir(path))
	for _, j := range list {
		if j.Path() == path {
			return j
		}
	}
	t.Fatalf("no journal %s: %v", path, errs)
	return nil
}

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

func TestCommand(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	env := append(os.Environ(), "VMKIT_JOURNAL="+l.journal)
	command := func(args ...string) (int, string, string) {
		cmd := exec.Command("vmfreeze", append(append(stopped, args[:len(args)-1]...), l.name, "--", "sh", "-c", args[len(args)-1])...)
		var out, errs strings.Builder
		cmd.Env, cmd.Stdout, cmd.Stderr = env, &out, &errs
		cmd.Run()
		return cmd.ProcessState.ExitCode(), out.String(), errs.String()
	}
	control := filepath.Join(l.Dir, "ran")
	// It reads the records, may leave its input early, and its end is the end of the freeze.
	status, out, stderr := command(`head -n 1 | cut -c 1-12; exec 0<&-; sleep 0.2; echo more; touch ` + control)
	if status != 0 || out != "{\"type\":\"vm\"\nmore\n" {
		t.Errorf("status %d: %s %s", status, out, stderr)
	}
	if rel := l.released(); rel.PauseNS < 200e6 {
		t.Errorf("the machine went on before the command ended: %+v", rel)
	}
	if _, err := os.Stat(control); err != nil {
		t.Error(err)
	}
	l.sound()
	if status, _, stderr := command("exit 7"); status != 4 || !strings.Contains(stderr, "exit status 7") {
		t.Errorf("status %d: %s", status, stderr)
	}
	l.sound()
	// A command that is late is ended.
	os.Remove(control)
	status, _, stderr = command("--max-pause", "300ms", "sleep 60; touch "+control)
	if status != 4 || !strings.Contains(stderr, "--max-pause") {
		t.Errorf("status %d: %s", status, stderr)
	}
	if _, err := os.Stat(control); err == nil {
		t.Error("the command went on")
	}
	l.sound()
}

// TestRegularFile: a file never hangs up.
func TestRegularFile(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	f, err := os.Create(filepath.Join(t.TempDir(), "records"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var errs strings.Builder
	cmd := exec.Command("vmfreeze", l.name)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), "VMKIT_JOURNAL="+l.journal), f, &errs
	cmd.Run()
	if cmd.ProcessState.ExitCode() != 4 || !strings.Contains(errs.String(), "stdout is a file") {
		t.Errorf("%s", errs.String())
	}
	// With a command there is another lease.
	cmd = exec.Command("vmfreeze", l.name, "--", "true")
	cmd.Env, cmd.Stdout = append(os.Environ(), "VMKIT_JOURNAL="+l.journal), f
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	l.sound()
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

// wait2 waits for a vmfreeze that ends by itself, while nobody reads.
func (r *freezing) wait2() int {
	r.t.Helper()
	timer := time.AfterFunc(time.Minute, func() { r.cmd.Process.Kill() })
	defer timer.Stop()
	return r.wait()
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
