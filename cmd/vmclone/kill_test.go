package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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
	journal(t, hypervisor.Journal{})
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

// journal writes the journal of a vmfreeze that lives as long as the test.
func journal(t *testing.T, j hypervisor.Journal) {
	t.Helper()
	freeze := exec.Command("sleep", "1000")
	if err := freeze.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { freeze.Process.Kill(); freeze.Wait() })
	var err error
	if j.Owner, err = hypervisor.ProcessOf(freeze.Process.Pid); err != nil {
		t.Fatal(err)
	}
	j.Version, j.VM = 1, &mapfile.VM{}
	b, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile("journal.new", b, 0o600), os.Rename("journal.new", "journal.json")); err != nil {
		t.Fatal(err)
	}
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

// TestKilledAnywhere kills vmclone at any moment, as often as VMCLONE_KILLS says: what has the clone's name is whole.
func TestKilledAnywhere(t *testing.T) {
	kills := 5
	if n := os.Getenv("VMCLONE_KILLS"); n != "" {
		var err error
		if kills, err = strconv.Atoi(n); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(t.TempDir())
	content := make([]byte, 12<<20)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	if err := os.WriteFile("disk.img", content, 0o600); err != nil {
		t.Fatal(err)
	}
	took, whole := time.Duration(0), 0
	for i := range kills {
		cmd := exec.Command("vmclone", "-C", "out", "--name", "c", "--checksum", "disk.img")
		begun := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if i > 0 { // the first shows how long it takes
			time.AfterFunc(time.Duration(rand.Int64N(int64(took*5/4))), func() { cmd.Process.Kill() })
		}
		if cmd.Wait(); i == 0 {
			took = time.Since(begun)
		}
		switch got, err := os.ReadFile("out/c/c.img"); {
		case err == nil:
			record, err := os.ReadFile("out/c/clone.json")
			sums, err2 := os.ReadFile("out/c/SHA256SUMS")
			if !bytes.Equal(got, content) || errors.Join(err, err2) != nil || !bytes.HasSuffix(record, []byte("\"problems\":0}\n")) || !bytes.HasSuffix(sums, []byte("  c.img\n")) {
				t.Fatalf("kill %d: half a clone: %d bytes, record %s, %v", i, len(got), record, err)
			}
			whole++
			if err := os.RemoveAll("out/c"); err != nil {
				t.Fatal(err)
			}
		case !errors.Is(err, fs.ErrNotExist):
			t.Fatal(err)
		}
	}
	t.Logf("%d of %d runs came to their end", whole, kills)
	if out, err := exec.Command("vmclone", "-C", "out", "--name", "c", "disk.img").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got := left(t); !slices.Equal(got, []string{"c"}) {
		t.Errorf("after the last run: %q", got)
	}
}

// TestNextIsNotKept: a machine is not held for longer because the release of the one before takes its time. One that
// does not come is a gap.
func TestNextIsNotKept(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := errors.Join(os.WriteFile("disk.img", make([]byte, 3<<20), 0o600), syscall.Mkfifo("release", 0o600)); err != nil {
		t.Fatal(err)
	}
	release, err := os.OpenFile("release", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer release.Close()
	journal(t, hypervisor.Journal{})
	cmd := exec.Command("vmclone", "-C", "out")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(in, strings.Replace(record, `"files"`, `"following":2,"release":"release","files"`, 1))
	if n, err := release.Read(make([]byte, 9)); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	fmt.Fprint(in, strings.NewReplacer("web1", "db1", "journal.json", "").Replace(record))
	for err = nil; err == nil; _, err = fmt.Fprintln(in, `{"type":"hold","seconds":1}`) {
		time.Sleep(5 * time.Millisecond) // until the second machine is let go, too
	}
	if got, err := filepath.Glob("out/[a-z]*/disk.img"); err != nil || len(got) != 0 {
		t.Errorf("finished although the first release is not over: %q, %v", got, err)
	}
	at := time.Now().Add(time.Hour)
	journal(t, hypervisor.Journal{Ended: true, Released: &mapfile.Released{At: &at}})
	cmd.Wait()
	// One was to come in between.
	if code := cmd.ProcessState.ExitCode(); code != 3 || !strings.Contains(stderr.String(), "machines that vmfreeze could not freeze: 1") {
		t.Errorf("status %d: %s", code, stderr.String())
	}
	if list := clones(t, out.String()); len(list) != 2 || list[0].Name != "web1-20261122T090000Z" || list[1].Name != "db1-20261122T090000Z" {
		t.Errorf("clones %+v", list)
	}
}
