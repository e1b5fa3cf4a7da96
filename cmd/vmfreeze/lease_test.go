package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmkit/cmd/internal/hypervisor"
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
			if vm.Dir != l.Dir || len(vm.Command) == 0 || vm.Versions["qemu"] == "" || !strings.HasPrefix(vm.Versions["tool"], "vmfreeze ") {
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
		t.Run(pipe, func(t *testing.T) {
			if _, err := exec.LookPath("jq"); err != nil && strings.Contains(pipe, "jq") {
				t.Skip("jq is not installed")
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
		})
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

// TestLateFreeze: the time is up before the machine is frozen.
func TestLateFreeze(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	for _, mode := range [][]string{{"-m", "snapshot"}, stopped} {
		r := l.start("", append(mode, "--max-pause", "1ns", l.target())...)
		if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "before it was frozen") {
			t.Errorf("status %d: %s", status, r.stderr.String())
		}
		l.sound()
	}
}

// TestHung: vmfreeze itself hangs, past the deadline or for too long. Its guard closes the lease, by ending it, before
// the machine goes on.
func TestHung(t *testing.T) {
	for _, limit := range []string{"500ms", "0"} {
		t.Run(limit, func(t *testing.T) {
			if testing.Short() && limit == "0" {
				t.Skip("a hang is told from a pause by 15 seconds")
			}
			t.Parallel()
			l := newLab(t)
			r := l.start("", append(stopped, "--max-pause", limit, l.target())...)
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
		})
	}
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

// TestGuardHung: a guard that hangs keeps neither the machine nor the pipe.
func TestGuardHung(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.start("", append(stopped, "--max-pause", "500ms", l.target())...)
	vms, _ := r.records()
	syscall.Kill(journalAt(t, vms[0].Journal).Guard.PID, syscall.SIGSTOP)
	if _, err := io.Copy(io.Discard, r.out); err != nil {
		t.Error(err)
	}
	if status := r.wait(); status != 4 {
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
	// So is one of a vmfreeze that is interrupted.
	r := l.start("", append(stopped, l.name, "--", "sh", "-c", "echo begun; sleep 60")...)
	r.out.ReadString('\n')
	r.cmd.Process.Signal(syscall.SIGTERM)
	if status := r.wait2(); status != 130 {
		t.Errorf("status %d: %s", status, r.stderr.String())
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

// wait2 waits for a vmfreeze that ends by itself, while nobody reads.
func (r *freezing) wait2() int {
	r.t.Helper()
	timer := time.AfterFunc(time.Minute, func() { r.cmd.Process.Kill() })
	defer timer.Stop()
	return r.wait()
}
