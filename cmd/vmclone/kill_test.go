package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/fsmap/mapfile"
)

// waiting starts a vmclone that has copied all data, and waits for the end of a release that never comes. It gives the
// folder in which it builds the clone.
func waiting(t *testing.T) (cmd *exec.Cmd, temp string) {
	t.Helper()
	if err := os.WriteFile("disk.img", make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	me, err := hypervisor.ProcessOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(hypervisor.Journal{Version: 1, VM: &mapfile.VM{}, Owner: me})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("journal.json", b, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("vmclone", "-C", "out", "--checksum")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(in, record)
	for range 12000 {
		found, err := filepath.Glob("out/.vmclone-*/SHA256SUMS")
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 1 {
			return cmd, filepath.Dir(found[0])
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("vmclone never came to its wait")
	return nil, ""
}

const record = `{"type":"vm","name":"web1","driver":"x","target":"x:web1","state_found":"running","quiesced":false,"frozen_at":"2026-11-22T09:00:00Z","journal":"journal.json",` +
	`"files":[{"path":"disk.img","role":"disk","format":"raw"}]}` + "\n" + `{"type":"end","vms":1}` + "\n"

func left(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir("out")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestKilled: what a killed run leaves has no clone's name, and the next run removes it.
func TestKilled(t *testing.T) {
	t.Chdir(t.TempDir())
	cmd, temp := waiting(t)
	cmd.Process.Kill()
	cmd.Wait()
	if got := left(t); !slices.Equal(got, []string{filepath.Base(temp)}) {
		t.Errorf("left behind: %q", got)
	}
	if out, err := exec.Command("vmclone", "-C", "out", "--name", "other", "disk.img").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := left(t); !slices.Equal(got, []string{"other"}) {
		t.Errorf("after the next run: %q", got)
	}
}

// TestInterrupted: nothing is left at all.
func TestInterrupted(t *testing.T) {
	t.Chdir(t.TempDir())
	cmd, _ := waiting(t)
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit status %d", code)
	}
	if got := left(t); len(got) > 0 {
		t.Errorf("left behind: %q", got)
	}
}
