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
	"slices"
	"strings"
	"testing"
	"time"

	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fixtures"
	"vmkit/fsmap/mapfile"
)

// TestFreeze is the tests with a vmfreeze, and with machines of QEMU.
func TestFreeze(t *testing.T) {
	qemutest.Need(t, "qemu-io")
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin+"/", "vmkit/cmd/vmfreeze", "vmkit/cmd/vmmap").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for name, test := range map[string]func(*testing.T){
		"map": testMap, "clone": testClone, "in use": testInUse, "several": testSeveral, "late filter": testLateFilter,
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("VMKIT_JOURNAL", t.TempDir())
			t.Chdir(t.TempDir())
			test(t)
		})
	}
}

// newVM starts a machine with a disk of two layers in a folder of its own, to which it has written, and gives its
// target.
func newVM(t *testing.T, name string, pattern int) (*qemutest.QEMU, string) {
	t.Helper()
	dir := t.TempDir()
	qemutest.Img(t, dir, "create", "-q", "-f", "qcow2", "base.qcow2", "16M")
	qemutest.Img(t, dir, "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", name+".qcow2")
	q := qemutest.Start(t, dir, name, "-drive", "if=none,id=vda,format=qcow2,file="+name+".qcow2")
	q.IO("vda", fmt.Sprintf("write -P %d 1M 2M", pattern))
	return q, "qmp:" + q.Socket
}

// pipe runs a line of the shell, with its output and exit status.
func pipe(t *testing.T, line string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command("bash", append([]string{"-c", "set -o pipefail; " + line, "bash"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// clones reads the clone records of a stream.
func clones(t *testing.T, stream string) (list []mapfile.Clone) {
	t.Helper()
	for r := mapfile.NewReader(strings.NewReader(stream)); ; {
		record, err := r.Next()
		if err == io.EOF {
			return list
		}
		if err != nil {
			t.Fatalf("%v: %s", err, stream)
		}
		if o, ok := record.(*mapfile.Other); ok {
			var c mapfile.Clone
			if err := o.Decode(&c); err != nil {
				t.Fatal(err)
			}
			list = append(list, c)
		}
	}
}

// holds checks that a clone's disk has a pattern and no other.
func holds(t *testing.T, c *mapfile.Clone, pattern int) {
	t.Helper()
	out, err := exec.Command("qemu-io", "-r", "-f", "qcow2", "-c", fmt.Sprintf("read -P %d 1M 2M", pattern), c.Images[0]).CombinedOutput()
	if err != nil || strings.Contains(string(out), "verification failed") {
		t.Errorf("%s: %v: %s", c.Images[0], err, out)
	}
	qemutest.Img(t, ".", "check", c.Images[0])
}

// runs checks that a machine goes on as it was, and takes writes.
func runs(t *testing.T, q *qemutest.QEMU, name string) {
	t.Helper()
	if s := q.Status(); s != "running" {
		t.Errorf("the machine is %s", s)
	}
	if top := filepath.Base(q.Top("vda")); top != name+".qcow2" {
		t.Errorf("its disk is %s", top)
	}
	q.IO("vda", "write -P 99 4M 64k")
}

// testMap is the first half of the whole way, with a machine that runs on.
func testMap(t *testing.T) {
	dir := t.TempDir()
	qemutest.Img(t, dir, "create", "-q", "-f", "qcow2", "-b", fixtures.Image(t, "gpt-disk", "disk.qcow2.zst"), "-F", "qcow2", "web1.qcow2")
	q := qemutest.Start(t, dir, "web1", "-drive", "if=none,id=vda,format=qcow2,file=web1.qcow2")
	out, stderr, status := pipe(t, `vmfreeze "$1" | vmclone -C out | vmmap`, "qmp:"+q.Socket)
	if status != 0 || !strings.Contains(out, `"clone":{"type":"clone"`) || strings.Count(out, `"type":"file"`) < 10 || !strings.Contains(out, `"type":"end"`) {
		t.Fatalf("status %d: %s%s", status, out, stderr)
	}
	runs(t, q, "web1")
	// The clone's own record is as good.
	again, stderr, status := pipe(t, `vmmap < out/*/clone.json`)
	if status != 0 || strings.Count(again, "\n") != strings.Count(out, "\n") {
		t.Errorf("status %d: %s", status, stderr)
	}
}

func testClone(t *testing.T) {
	q, target := newVM(t, "web1", 1)
	if _, stderr, status := pipe(t, `vmfreeze "$1" | vmclone -C out`, target); status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	runs(t, q, "web1")
	q.IO("vda", "write -P 2 1M 2M")

	// The record tells the whole way, and what happened at the release.
	out, stderr, status := pipe(t, `vmfreeze "$1" | vmclone -C out --name later --checksum`, target)
	if status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	c := clones(t, out)[0]
	var vm mapfile.VM
	if err := json.Unmarshal(c.Of, &vm); err != nil || vm.Driver != "qmp" || vm.Mode != "snapshot" || vm.FrozenAt == nil {
		t.Errorf("of %+v, %v", vm, err)
	}
	if r := c.Released; r == nil || !r.Committed || r.By != "vmfreeze" || r.PauseNS != 0 || r.At == nil {
		t.Errorf("released %+v", r)
	}
	holds(t, &c, 2)
	first, err := filepath.Glob("out/web1-2*/web1.qcow2")
	if err != nil || len(first) != 1 {
		t.Fatal(first, err)
	}
	holds(t, &mapfile.Clone{Images: first}, 1)

	// It can be started: by its script, beside the machine.
	script := exec.Command(filepath.Join(c.Folder, "run.sh"), "-qmp", "stdio")
	in, err := script.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	script.Stdout, script.Stderr = &said, &said
	if err := script.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, `{"execute":"qmp_capabilities"}{"execute":"query-block"}{"execute":"quit"}`)
	if err := script.Wait(); err != nil || !strings.Contains(said.String(), `later/./later.qcow2`) && !strings.Contains(said.String(), `"./later.qcow2"`) {
		t.Errorf("run.sh: %v: %s", err, said.String())
	}
	runs(t, q, "web1")
	q.Quit()
	qemutest.Img(t, q.Dir, "check", "web1.qcow2")

	// Off, it is cloned without a hypervisor.
	out, stderr, status = pipe(t, `vmclone -C out --name off "$1"`, filepath.Join(q.Dir, "web1.qcow2"))
	if status != 0 || len(clones(t, out)) != 1 {
		t.Errorf("status %d: %s", status, stderr)
	}
}

// testInUse: a machine that runs is not cloned as it stands.
func testInUse(t *testing.T) {
	q, _ := newVM(t, "web1", 1)
	out, stderr, status := pipe(t, `vmclone -C out "$1"`, filepath.Join(q.Dir, "web1.qcow2"))
	if status != 4 || out != "" || !strings.Contains(stderr, "not off") {
		t.Errorf("status %d: %s%s", status, out, stderr)
	}
	if _, err := os.Stat("out"); err == nil {
		t.Error("there is a folder of clones")
	}
}

// testSeveral: one machine after the other, each released as soon as it is cloned; and two at one instant.
func testSeveral(t *testing.T) {
	var vms []*qemutest.QEMU
	var targets []string
	names := []string{"web1", "db1", "mail1"}
	for i, name := range names {
		q, target := newVM(t, name, i+1)
		vms, targets = append(vms, q), append(targets, target)
	}
	for _, how := range []string{"", "--together"} {
		out, stderr, status := pipe(t, `vmfreeze `+how+` "$@" | vmclone -C "out`+how+`"`, targets...)
		list := clones(t, out)
		if status != 0 || len(list) != 3 {
			t.Fatalf("%q: status %d, %d clones: %s", how, status, len(list), stderr)
		}
		for i := range list {
			holds(t, &list[i], i+1)
			runs(t, vms[i], names[i])
		}
		a, b := list[0].Released, list[1].Of
		var second mapfile.VM
		if err := json.Unmarshal(b, &second); err != nil {
			t.Fatal(err)
		}
		if after := second.FrozenAt.After(*a.At); after != (how == "") {
			t.Errorf("%q: the second was frozen at %v, the first released at %v", how, second.FrozenAt, a.At)
		}
	}
	// One of them is not there: the clones of the others are, and the gap is told at the end of the pipe.
	out, stderr, status := pipe(t, `vmfreeze "$1" qmp:/nowhere "$2" | vmclone -C gap`, targets[:2]...)
	if status != 3 || len(clones(t, out)) != 2 || !strings.Contains(stderr, "vmclone: warning: clone: stdin: machines that vmfreeze could not freeze: 1") {
		t.Errorf("status %d: %s%s", status, out, stderr)
	}
	// With a command each machine has a vmclone of its own.
	out, stderr, status = pipe(t, `vmfreeze "$@" -- vmclone -C command`, targets[:2]...)
	if status != 0 || strings.Count(out, `"type":"end"`) != 2 || strings.Count(out, "waits for this vmclone to end") != 2 {
		t.Errorf("status %d: %s%s", status, out, stderr)
	}
	for i := range 2 {
		runs(t, vms[i], names[i])
	}
}

// testLateFilter: what stands between vmfreeze and vmclone keeps the pipe open after vmfreeze was killed. The journal
// tells that the machine had been let go.
func testLateFilter(t *testing.T) {
	q, target := newVM(t, "web1", 1)
	freeze := exec.Command("vmfreeze", target)
	records, err := freeze.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := freeze.Start(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	in := bufio.NewReader(records)
	for len(lines) < 2 {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	freeze.Process.Kill()
	io.Copy(io.Discard, in) // until the guard, too, has closed its end
	freeze.Wait()
	for range 12000 { // the guard brings the machine back
		if left, err := filepath.Glob(filepath.Join(q.Dir, "*vmfreeze*")); err == nil && len(left) == 0 && filepath.Base(q.Top("vda")) == "web1.qcow2" {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	runs(t, q, "web1")
	cmd := exec.Command("vmclone", "-C", "out")
	pipeIn, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipeIn.Close()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	io.WriteString(pipeIn, strings.Join(lines, ""))
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 4 || !strings.Contains(stderr.String(), "was let go before its files were copied: its release began at") {
		t.Errorf("status %d: %s", code, stderr.String())
	}
	if got := left(t); !slices.Equal(got, nil) {
		t.Errorf("left behind: %q", got)
	}
}
