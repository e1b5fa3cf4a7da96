// Package qemutest runs QEMU without any guest, for tests: its monitors answer, and its disks are written through them.
package qemutest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// QEMU is a machine without a processor. Its folder is its own current one, so relative names begin there.
type QEMU struct {
	Dir    string
	Socket string // for the program under test; the helper has another one
	Cmd    *exec.Cmd
	Output io.Writer // what it prints goes there, where set before Run

	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
	done chan struct{}
}

// Need skips the test where QEMU is not installed.
func Need(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range append([]string{"qemu-system-x86_64", "qemu-img"}, tools...) {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

// Start starts a machine named name in dir with more arguments ("-drive", "if=none,id=vda,…"). It ends with the test.
func Start(t testing.TB, dir, name string, args ...string) *QEMU {
	t.Helper()
	Need(t)
	q := &QEMU{Dir: dir, Socket: filepath.Join(dir, name+".qmp"), t: t}
	control := filepath.Join(dir, name+".control")
	q.Run(control, append(Args(name), args...)...)
	return q
}

// Args gives the arguments that Start begins with. There is a third monitor, NAME.spare.
func Args(name string) []string {
	args := []string{"-M", "none", "-accel", "tcg", "-nodefaults", "-display", "none", "-name", name}
	for _, socket := range []string{".qmp", ".control", ".spare"} {
		args = append(args, "-qmp", "unix:"+name+socket+",server=on,wait=off")
	}
	return args
}

// Custom starts a machine with these arguments alone, which have to make a socket for the program under test and one
// for this helper. What it prints goes to out, which may be nil.
func Custom(t testing.TB, out io.Writer, dir, socket, control string, args ...string) *QEMU {
	t.Helper()
	Need(t)
	q := &QEMU{Dir: dir, Socket: filepath.Join(dir, socket), Output: out, t: t}
	q.Run(filepath.Join(dir, control), args...)
	return q
}

// Run starts QEMU with these arguments alone, which have its control socket made.
func (q *QEMU) Run(control string, args ...string) {
	q.t.Helper()
	q.Cmd = exec.Command("qemu-system-x86_64", args...)
	q.Cmd.Dir = q.Dir
	q.Cmd.Stdout, q.Cmd.Stderr = q.Output, os.Stderr
	os.Remove(control)
	if err := q.Cmd.Start(); err != nil {
		q.t.Fatal(err)
	}
	q.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) { cmd.Wait(); close(done) }(q.Cmd, q.done)
	q.t.Cleanup(q.Kill)
	if err := q.connect(control); err != nil {
		q.t.Fatal(err)
	}
}

// connect connects to the control socket. QEMU forgets a first command that comes while it parts with a client before,
// such as a search for machines that a test beside this one makes: so it is tried again.
func (q *QEMU) connect(control string) (err error) {
	for range 1000 {
		select {
		case <-q.done:
			return errors.New("QEMU ended at once")
		case <-time.After(10 * time.Millisecond):
		}
		if q.conn, err = net.Dial("unix", control); err != nil {
			continue
		}
		q.conn.SetDeadline(time.Now().Add(10 * time.Second))
		q.in = bufio.NewReader(q.conn)
		if _, err = q.in.ReadBytes('\n'); err == nil {
			_, err = q.conn.Write([]byte(`{"execute":"qmp_capabilities"}` + "\n"))
		}
		if err == nil {
			if _, err = q.in.ReadBytes('\n'); err == nil {
				return nil
			}
		}
		q.conn.Close()
	}
	return err
}

// Do gives a command, which must succeed, and gives what it returned.
func (q *QEMU) Do(command string, args any) json.RawMessage {
	q.t.Helper()
	b, err := json.Marshal(map[string]any{"execute": command, "arguments": args, "id": 1})
	if args == nil {
		b, err = json.Marshal(map[string]any{"execute": command, "id": 1})
	}
	if err != nil {
		q.t.Fatal(err)
	}
	q.conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := q.conn.Write(append(b, '\n')); err != nil {
		q.t.Fatal(err)
	}
	for {
		line, err := q.in.ReadBytes('\n')
		if err != nil {
			q.t.Fatalf("%s: %v", command, err)
		}
		var r struct {
			ID            int
			Return, Error json.RawMessage
		}
		if err := json.Unmarshal(line, &r); err != nil {
			q.t.Fatalf("%s: %v: %s", command, err, line)
		}
		if r.ID == 0 {
			continue // an event
		}
		if r.Error != nil {
			q.t.Fatalf("%s: %s", command, r.Error)
		}
		return r.Return
	}
}

// IO runs a command of qemu-io on a drive: "write -P 7 0 64k", "read -P 7 0 64k".
func (q *QEMU) IO(drive, command string) {
	q.t.Helper()
	var out string
	if err := json.Unmarshal(q.Do("human-monitor-command", map[string]string{"command-line": fmt.Sprintf("qemu-io %s %q", drive, command)}), &out); err != nil {
		q.t.Fatal(err)
	}
	// Only errors come back; the rest goes to QEMU's stdout.
	if strings.TrimSpace(out) != "" {
		q.t.Fatalf("qemu-io %s %s: %s", drive, command, out)
	}
}

// Status gives the machine's state.
func (q *QEMU) Status() string {
	q.t.Helper()
	var s struct{ Status string }
	if err := json.Unmarshal(q.Do("query-status", nil), &s); err != nil {
		q.t.Fatal(err)
	}
	return s.Status
}

// Top gives the name of the image that a drive uses.
func (q *QEMU) Top(drive string) string {
	q.t.Helper()
	var all []struct {
		Device   string
		Inserted struct{ File string }
	}
	if err := json.Unmarshal(q.Do("query-block", nil), &all); err != nil {
		q.t.Fatal(err)
	}
	for _, d := range all {
		if d.Device == drive {
			return d.Inserted.File
		}
	}
	q.t.Fatalf("no drive %s", drive)
	return ""
}

// Kill ends QEMU as a crash would.
func (q *QEMU) Kill() {
	q.Cmd.Process.Kill()
	<-q.done
}

// Quit ends QEMU in the ordinary way.
func (q *QEMU) Quit() {
	q.t.Helper()
	q.Do("quit", nil)
	<-q.done
}

// Img runs qemu-img, or another tool, in dir, which must succeed, and gives what it printed.
func Img(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("qemu-img", args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
