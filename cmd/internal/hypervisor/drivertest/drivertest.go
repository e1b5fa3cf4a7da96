// Package drivertest carries out plans for the tests of drivers, as the engine does, and hands them programs that stand
// in for a hypervisor's own.
package drivertest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/fsmap/mapfile"
)

// Open opens a machine that must be there, and closes it with the test.
func Open(t testing.TB, d hypervisor.Driver, target string) hypervisor.Machine {
	t.Helper()
	m, err := d.Open(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

// Plan describes a machine and plans what is asked for.
func Plan(t testing.TB, m hypervisor.Machine, r hypervisor.Request) (*mapfile.VM, *hypervisor.Plan) {
	t.Helper()
	vm, err := m.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p, err := m.Plan(t.Context(), vm, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := m.(hypervisor.Tracker); !ok {
		t.Error("the machine can't be asked for what changed")
	}
	return vm, p
}

// Do carries out the first n steps of a plan; the last of them only begins where its end is lost: it is as a killed
// process leaves it in its journal.
func Do(t testing.TB, m hypervisor.Machine, p *hypervisor.Plan, n int, lost bool) {
	t.Helper()
	for i := range n {
		s := &p.Steps[i]
		now := time.Now()
		s.State, s.Begun = "begun", &now
		before := Journal(t, *s)
		if err := m.Do(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s.Op, err)
		}
		if lost && i == n-1 {
			*s = before
			return
		}
		now = time.Now()
		s.State, s.Done = "done", &now
	}
}

// Undo takes back what was begun of a plan, the last first, twice, as from a journal.
func Undo(t testing.TB, m hypervisor.Machine, p *hypervisor.Plan) {
	t.Helper()
	for i := len(p.Steps) - 1; i >= 0; i-- {
		if p.Steps[i].State == "" {
			continue
		}
		s := Journal(t, p.Steps[i])
		s.State = "undoing"
		for range 2 {
			if err := m.Undo(t.Context(), &s); err != nil {
				t.Fatalf("taking back %s: %v", s.Op, err)
			}
		}
	}
}

// FromJournal has another process take back what one left that was killed: in each step, when it had done nothing of it
// yet, and when it had done it and could not say so. after looks at the machine each time.
func FromJournal(t testing.TB, open func() hypervisor.Machine, r hypervisor.Request, after func()) {
	t.Helper()
	for n, steps := 1, 1; n <= steps; n++ {
		for _, did := range []bool{false, true} {
			m := open()
			_, p := Plan(t, m, r)
			steps = len(p.Steps)
			if did {
				Do(t, m, p, n, true)
			} else {
				Do(t, m, p, n-1, false)
				p.Steps[n-1].State = "begun"
			}
			m.Close()
			Undo(t, open(), p)
			after()
		}
	}
}

// Journal gives a step as it comes back from a journal.
func Journal(t testing.TB, s hypervisor.Step) (back hypervisor.Step) {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	return back
}

// Program puts a shell script into PATH under a name, with $STATE naming a folder of its own, which it gives. Every call
// is added to the file "calls" in it.
func Program(t testing.TB, name, script string) (state string) {
	t.Helper()
	bin, state := t.TempDir(), t.TempDir()
	text := "#!/bin/sh\nSTATE='" + state + "'\nfor a; do printf '[%s]' \"$a\"; done >>\"$STATE/calls\"; echo >>\"$STATE/calls\"\n" + script
	if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	if tt, ok := t.(*testing.T); ok {
		tt.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	}
	return state
}

// Calls reads the calls of a Program, and forgets them.
func Calls(t testing.TB, state string) string {
	t.Helper()
	path := filepath.Join(state, "calls")
	b, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	os.Remove(path)
	return string(b)
}

// Write makes a file with its folders, and gives its path.
func Write(t testing.TB, path, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
