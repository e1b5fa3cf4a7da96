package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmkit/cmd/internal/hypervisor"
)

// places are all the places of a mode at which a process can die, in the order in which they are reached.
func places(mode string) (forward, backward []string) {
	steps := map[string][]string{
		"snapshot": {"make overlays", "add overlays", "snapshot"},
		"pause":    {"stop"},
		"suspend":  {"make memory file", "lift bandwidth limit", "stop", "save memory"},
	}[mode]
	for _, s := range steps {
		forward = append(forward, "begun "+s, "did "+s)
	}
	for i := len(steps) - 1; i >= 0; i-- {
		backward = append(backward, "undo "+steps[i])
		switch steps[i] {
		case "snapshot":
			backward = append(backward, "commit begun", "commit ready", "commit completing")
		case "make overlays":
			backward = append(backward, "before unlink")
		}
		backward = append(backward, "undone "+steps[i])
	}
	return forward, backward
}

// TestKilled kills vmfreeze, its guard and a recovery at every step of every mode. The machine has to run again each
// time, on its own disks, with every write in them.
func TestKilled(t *testing.T) {
	for _, mode := range []string{"snapshot", "pause", "suspend"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			var patterns []int
			write := func() {
				patterns = append(patterns, len(patterns))
				l.write(len(patterns) - 1)
			}
			forward, backward := places(mode)
			last := forward[len(forward)-1]
			// killed runs vmfreeze with one place, and says whether it hit. What is written while the machine is frozen,
			// or left so, has to be there in the end.
			killed := func(t *testing.T, crash string, recoveries ...string) {
				t.Helper()
				l.t = t
				write()
				r := l.start(crash, "-m", mode, "--allow-long-pause", l.target())
				if _, whole := r.records(); whole && mode == "snapshot" {
					write()
				}
				r.done()
				for _, place := range strings.Split(crash, ",") {
					if !strings.Contains(r.stderr.String(), fmt.Sprintf("killed at %q", place)) {
						t.Fatalf("%s was not reached: %s", place, r.stderr.String())
					}
				}
				for _, place := range recoveries {
					if l.Status() == "running" {
						write()
					}
					status, _, stderr := l.recovers(place)
					if place != "" && !strings.Contains(stderr, fmt.Sprintf("killed at %q", place)) {
						t.Fatalf("%s was not reached: %s", place, stderr)
					}
					if place == "" && status != 0 {
						t.Fatalf("recovery: status %d, %s", status, stderr)
					}
				}
				l.sound()
			}
			for _, place := range append(append([]string{}, forward...), backward...) {
				t.Run("vmfreeze "+place, func(t *testing.T) { killed(t, place) })
				t.Run("both "+place, func(t *testing.T) { killed(t, place+",guard takes over", "") })
			}
			for _, place := range backward {
				t.Run("guard "+place, func(t *testing.T) { killed(t, last+",guard "+place, "") })
				t.Run("recover "+place, func(t *testing.T) { killed(t, last+",guard takes over", place, "") })
			}
			l.t = t
			l.end(patterns...)
		})
	}
}

// TestKilledAnywhere kills vmfreeze at any moment, and every other time its guard a moment later. $VMKIT_STRESS is how
// often.
func TestKilledAnywhere(t *testing.T) {
	t.Parallel()
	n := 12
	if s := os.Getenv("VMKIT_STRESS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	l := newLab(t)
	random := rand.New(rand.NewPCG(1, uint64(n)))
	modes := []string{"snapshot", "pause", "suspend"}
	var patterns []int
	for i := range n {
		patterns = append(patterns, i%500)
		l.write(i % 500)
		r := l.start("", "-m", modes[i%3], "--allow-long-pause", l.target())
		leave := time.AfterFunc(time.Duration(random.IntN(100))*time.Millisecond, func() { r.pipe.Close() })
		time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond)
		r.cmd.Process.Kill()
		if i%2 == 0 {
			time.Sleep(time.Duration(random.IntN(30)) * time.Millisecond)
			list, _ := hypervisor.Journals(l.journal)
			for _, j := range list {
				if !j.Ended && j.Guard != nil && j.Guard.Alive() {
					syscall.Kill(j.Guard.PID, syscall.SIGKILL)
				}
			}
		}
		leave.Stop()
		r.done()
		if status, _, stderr := l.recovers(""); status != 0 {
			t.Fatalf("round %d: status %d: %s", i, status, stderr)
		}
		l.sound()
	}
	l.end(patterns[max(0, len(patterns)-500):]...)
}
