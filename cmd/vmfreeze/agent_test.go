package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// agent stands in for the guest's agent: what it froze is all that it knows.
type agent struct {
	socket string
	mu     sync.Mutex
	frozen bool
	log    []string
	refuse string // a command that it refuses
	mute   bool
	listen net.Listener
}

func newAgent(t *testing.T) *agent {
	t.Helper()
	a := &agent{socket: filepath.Join(memoryDir(t), "agent")}
	var err error
	if a.listen, err = net.Listen("unix", a.socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.listen.Close() })
	go func() {
		for { // one client at a time, as QEMU's character devices have it
			conn, err := a.listen.Accept()
			if err != nil {
				return
			}
			// An earlier client left before its answer came.
			fmt.Fprintf(conn, "{\"return\": 12345}\n")
			a.serve(conn)
			conn.Close()
		}
	}()
	return a
}

func (a *agent) serve(conn net.Conn) {
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var c struct {
			Execute   string
			Arguments struct{ ID json.Number }
		}
		if json.Unmarshal(bytes.TrimPrefix(line, []byte{0xff}), &c) != nil || a.mute {
			continue
		}
		a.mu.Lock()
		answer := a.answer(c.Execute, c.Arguments.ID)
		a.mu.Unlock()
		fmt.Fprintf(conn, "%s\n", answer)
	}
}

func (a *agent) answer(command string, id json.Number) string {
	if command == a.refuse {
		return `{"error": {"class": "GenericError", "desc": "not today"}}`
	}
	switch command {
	case "guest-sync-delimited":
		return "\xff" + `{"return": ` + id.String() + `}`
	case "guest-fsfreeze-status":
		if a.frozen {
			return `{"return": "frozen"}`
		}
		return `{"return": "thawed"}`
	case "guest-fsfreeze-freeze", "guest-fsfreeze-thaw":
		a.frozen = command == "guest-fsfreeze-freeze"
		a.log = append(a.log, strings.TrimPrefix(command, "guest-fsfreeze-"))
		return `{"return": 2}`
	}
	return `{"error": {"class": "CommandNotFound", "desc": "unknown"}}`
}

// did gives what it did since it was last asked, and whether file systems are frozen.
func (a *agent) did() (log []string, frozen bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	log, a.log = a.log, nil
	return log, a.frozen
}

func TestQuiesce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := newAgent(t)
	for _, mode := range []string{"snapshot", "pause", "suspend"} {
		r := l.start("", "-m", mode, "--allow-long-pause", "--quiesce", "--agent", a.socket, l.target())
		vms, _ := r.records()
		if !vms[0].Quiesced {
			t.Errorf("%+v", vms[0])
		}
		// A guest that runs on is thawed at once; one that stands still can't be.
		if log, frozen := a.did(); frozen == (mode == "snapshot") || !slices.Equal(log, []string{"freeze", "thaw"}[:len(log)]) {
			t.Errorf("%s: held, %v, frozen: %v", mode, log, frozen)
		}
		if status := r.done(); status != 0 {
			t.Errorf("status %d: %s", status, r.stderr.String())
		}
		if _, frozen := a.did(); frozen {
			t.Errorf("%s: still frozen", mode)
		}
		if rel := l.released(); !rel.Thawed || rel.FrozenNS == 0 || (rel.PauseNS > 0) != (mode != "snapshot") {
			t.Errorf("%s: %+v", mode, rel)
		}
		l.sound()
	}

	// What can't be quiesced is not frozen at all.
	for refuse, want := range map[string]string{"guest-fsfreeze-freeze": "not today", "guest-fsfreeze-status": "not today", "": "frozen already"} {
		a.mu.Lock()
		a.refuse, a.frozen = refuse, refuse == ""
		a.mu.Unlock()
		r := l.start("", "--quiesce", "--agent", a.socket, l.target())
		if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), want) {
			t.Errorf("status %d: %s", status, r.stderr.String())
		}
		// What somebody else froze stays frozen.
		if _, frozen := a.did(); frozen != (refuse == "") && refuse != "guest-fsfreeze-status" {
			t.Errorf("%q: frozen: %v", refuse, frozen)
		}
		a.mu.Lock()
		a.refuse, a.frozen = "", false
		a.mu.Unlock()
		l.recovers("")
		l.sound()
	}
	// A guest that thawed by itself was not quiesced, whatever was said before.
	r := l.start("", append(stopped, "--quiesce", "--agent", a.socket, l.target())...)
	r.records()
	a.mu.Lock()
	a.frozen = false
	a.mu.Unlock()
	if status := r.done(); status != 4 || !strings.Contains(r.stderr.String(), "thawed before their time") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	l.sound()
	r = l.start("", "--quiesce", l.target())
	if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "no port for a guest agent") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	a.mute = true
	r = l.start("", "--quiesce", "--agent", a.socket, l.target())
	if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "does not answer") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	l.sound()
}

// TestQuiescedKilled: a guest whose file systems are frozen is thawed whoever dies.
func TestQuiescedKilled(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	a := newAgent(t)
	const fs = "freeze file systems"
	for _, mode := range []string{"snapshot", "pause"} {
		for _, place := range []string{"begun " + fs, "did " + fs, "did snapshot", "did stop", "undo " + fs, "undone " + fs} {
			if strings.HasSuffix(place, " stop") == (mode == "snapshot") && !strings.HasSuffix(place, fs) {
				continue
			}
			for _, both := range []string{"", ",guard takes over"} {
				r := l.start(place+both, "-m", mode, "--allow-long-pause", "--quiesce", "--agent", a.socket, l.target())
				r.records()
				if r.done(); !strings.Contains(r.stderr.String(), "killed at") {
					t.Fatalf("%s was not reached: %s", place, r.stderr.String())
				}
				if both != "" {
					if status, _, stderr := l.recovers(""); status != 0 {
						t.Errorf("status %d: %s", status, stderr)
					}
				}
				if _, frozen := a.did(); frozen {
					t.Errorf("%s, %s%s: still frozen: %s", mode, place, both, r.stderr.String())
				}
				l.sound()
			}
		}
	}
	l.end()
}
