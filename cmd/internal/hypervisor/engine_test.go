package hypervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmkit/fsmap/mapfile"
)

// fake is a driver with one machine. What is done to it is logged; Do and Undo fail where told.
type fake struct {
	name  string
	log   []string
	fail  map[string]error // "do a", "undo a"
	gone  bool
	opens int
	steps []Step
}

func (f *fake) Name() string { return f.name }

func (f *fake) Open(_ context.Context, target string) (Machine, error) {
	f.opens++
	switch {
	case f.gone:
		return nil, ErrUnavailable
	case target != "m":
		return nil, ErrNoMachine
	}
	return f, nil
}

func (f *fake) List(context.Context) ([]string, error) { return []string{"m"}, f.fail["list"] }

func (f *fake) Describe(context.Context) (*mapfile.VM, error) {
	return &mapfile.VM{Type: "vm", Name: "m/1", Driver: f.name, Target: f.name + ":m", StateFound: "running"}, nil
}

func (f *fake) Plan(context.Context, *mapfile.VM, Request) (*Plan, error) {
	return &Plan{Mode: Pause, Steps: slices.Clone(f.steps), Stops: true}, nil
}

func (f *fake) Do(_ context.Context, s *Step) error {
	f.log = append(f.log, "do "+s.Op)
	return f.fail["do "+s.Op]
}

func (f *fake) Undo(_ context.Context, s *Step) error {
	f.log = append(f.log, "undo "+s.Op)
	return f.fail["undo "+s.Op]
}

func (f *fake) Close() error { return nil }

// survivor is a fake whose machine can be taken back without its hypervisor.
type survivor struct{ *fake }

func (s survivor) Gone(*mapfile.VM) (Machine, error) {
	s.log = append(s.log, "gone")
	return &fake{log: nil, fail: map[string]error{}}, nil
}

func (f *fake) did() string {
	s := strings.Join(f.log, ", ")
	f.log = nil
	return s
}

func newEngine(t *testing.T, d Driver) *Engine {
	return &Engine{Drivers: Drivers{d}, Dir: filepath.Join(t.TempDir(), "journal"), Tool: "test", By: "vmfreeze", Warn: t.Logf}
}

// freeze claims the machine and carries out its plan.
func freeze(t *testing.T, e *Engine, m Machine) (*Freeze, error) {
	t.Helper()
	f, err := e.Claim(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	p, err := m.Plan(t.Context(), f.VM, Request{})
	if err != nil {
		t.Fatal(err)
	}
	return f, f.Run(t.Context(), p, nil, Terms{})
}

var threeSteps = []Step{{Op: "a"}, {Op: "b", Holds: true, Freezes: true}, {Op: "c", Holds: true, Instant: true}}

func TestSteps(t *testing.T) {
	d := &fake{name: "x", steps: threeSteps, fail: map[string]error{}}
	e := newEngine(t, d)
	f, err := freeze(t, e, d)
	if err != nil || d.did() != "do a, do b, do c" {
		t.Fatal(err, d.log)
	}
	if f.VM.FrozenAt == nil || !f.VM.Quiesced || f.VM.Mode != "pause" || !f.VM.ReflinkOnly {
		t.Errorf("%+v", f.VM)
	}
	if rel, err := ReadJournal(f.VM.Journal); rel != nil || err != nil {
		t.Errorf("released before the release: %+v %v", rel, err)
	}
	// The machine is held: nobody else gets it, and a recovery leaves it alone.
	if _, err := e.Claim(t.Context(), d); !errors.Is(err, ErrBusy) {
		t.Errorf("claimed twice: %v", err)
	}
	var reported []error
	if err := e.Recover(t.Context(), nil, func(_ Recovered, err error) { reported = append(reported, err) }); err != nil || len(reported) != 1 || !errors.Is(reported[0], ErrBusy) {
		t.Errorf("%v %v", err, reported)
	}
	f.Settle()
	time.Sleep(2 * time.Millisecond)
	rel := f.Release(t.Context())
	if d.did() != "undo c, undo b, undo a" || !rel.Resumed || !rel.Thawed || rel.PauseNS < 2e6 || rel.FrozenNS < rel.PauseNS || rel.Error != "" {
		t.Errorf("%v %+v", d.log, rel)
	}
	if again, err := ReadJournal(f.VM.Journal); err != nil || again == nil || again.PauseNS != rel.PauseNS {
		t.Errorf("%+v %v", again, err)
	}
}

func TestEarly(t *testing.T) {
	d := &fake{name: "x", steps: []Step{{Op: "a"}, {Op: "b", Holds: true, Freezes: true, Early: true}, {Op: "c", Commits: true}}, fail: map[string]error{}}
	f, err := freeze(t, newEngine(t, d), d)
	if err != nil || d.did() != "do a, do b, do c, undo b" {
		t.Fatal(err, d.log)
	}
	rel := f.Release(t.Context())
	if d.did() != "undo c, undo a" || !rel.Thawed || !rel.Committed || rel.Resumed || rel.PauseNS != 0 || f.VM.ReflinkOnly != true {
		t.Errorf("%+v", rel)
	}
}

// TestStepFails: what was begun is taken back, the last first, the failed one too.
func TestStepFails(t *testing.T) {
	for i, want := range []string{"do a, undo a", "do a, do b, undo b, undo a", "do a, do b, do c, undo c, undo b, undo a"} {
		broken := errors.New("broken")
		d := &fake{name: "x", steps: threeSteps, fail: map[string]error{"do " + threeSteps[i].Op: broken}}
		f, err := freeze(t, newEngine(t, d), d)
		if !errors.Is(err, broken) || d.did() != want || !f.Journal.Ended {
			t.Errorf("step %d: %v, %v", i, err, f.Journal)
		}
	}
	d := &fake{name: "x", steps: threeSteps, fail: map[string]error{}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	f, err := newEngine(t, d).Claim(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, _ := d.Plan(ctx, f.VM, Request{})
	if err := f.Run(ctx, p, nil, Terms{}); !errors.Is(err, context.Canceled) || d.did() != "do a, undo a" {
		t.Errorf("interrupted: %v, %v", err, d.log)
	}
}

// TestUndoFails: what holds the machine up is taken back all the same; what lies below the failed step waits for a
// recovery.
func TestUndoFails(t *testing.T) {
	steps := []Step{{Op: "a"}, {Op: "b", Holds: true}, {Op: "c"}, {Op: "d"}}
	d := &fake{name: "x", steps: steps, fail: map[string]error{"undo c": errors.New("stuck")}}
	e := newEngine(t, d)
	f, err := freeze(t, e, d)
	if err != nil {
		t.Fatal(err)
	}
	d.did()
	rel := f.Release(t.Context())
	if d.did() != "undo d, undo c, undo b" || !rel.Resumed || rel.Error != "c: stuck" || f.Journal.Ended || f.Stands() {
		t.Errorf("%v %+v", d.log, rel)
	}
	f.Close()
	for _, want := range []struct{ undone, left string }{{"d b", "c a"}, {"d c b a", ""}} {
		e.Recover(t.Context(), []string{"x:m"}, func(r Recovered, err error) {
			if strings.Join(r.Undone, " ") != want.undone || strings.Join(r.Left, " ") != want.left || (err == nil) != (want.left == "") {
				t.Errorf("%+v %v, want %+v", r, err, want)
			}
		})
		delete(d.fail, "undo c")
	}
	if d.did() != "undo c, undo c, undo a" {
		t.Error(d.log)
	}
	// A machine of another name is not meant; nothing is left of this one.
	for _, names := range [][]string{{"other"}, {"m/1"}} {
		e.Recover(t.Context(), names, func(r Recovered, err error) { t.Errorf("%+v %v", r, err) })
	}
}

func TestSpoiled(t *testing.T) {
	d := &fake{name: "x", steps: threeSteps, fail: map[string]error{"undo c": fmt.Errorf("%w: it ran", ErrSpoiled)}}
	f, err := freeze(t, newEngine(t, d), d)
	if err != nil {
		t.Fatal(err)
	}
	d.did()
	rel := f.Release(t.Context())
	if d.did() != "undo c, undo b, undo a" || !rel.Spoiled || !strings.Contains(rel.Error, "it ran") || !f.Journal.Ended {
		t.Errorf("%v %+v", d.log, rel)
	}
}

// TestGone: the hypervisor ended; its driver can do without it, or can't.
func TestGone(t *testing.T) {
	d := &fake{name: "x", steps: threeSteps, fail: map[string]error{"undo c": ErrUnavailable}}
	s := survivor{d}
	f, err := freeze(t, newEngine(t, s), s)
	if err != nil {
		t.Fatal(err)
	}
	d.did()
	d.gone = true
	if rel := f.Release(t.Context()); d.did() != "undo c, gone" || rel.Error != "" || !f.Journal.Ended {
		t.Errorf("%v %+v", d.log, rel)
	}
}

// TestNextFreezeRecovers: with no process left that holds it, a claim first takes back what is in the journal.
func TestNextFreezeRecovers(t *testing.T) {
	d := &fake{name: "x", steps: threeSteps, fail: map[string]error{}}
	e := newEngine(t, d)
	f, err := freeze(t, e, d)
	if err != nil {
		t.Fatal(err)
	}
	f.Close() // as the end of its process does
	d.did()
	f, err = e.Claim(t.Context(), d)
	if err != nil || d.did() != "undo c, undo b, undo a" || len(f.Recovered) != 1 {
		t.Errorf("%v %v", err, d.log)
	}
	f.Close()
}

func TestDrivers(t *testing.T) {
	broken := errors.New("broken")
	a, b := &fake{name: "a", fail: map[string]error{}}, &fake{name: "b", fail: map[string]error{"list": broken}}
	d := Drivers{a, b}
	for target, want := range map[string]string{
		"m": "several machines have this name: say which one: a:m or b:m", "n": "no hypervisor that answers knows it", "a:n": "a:n: no such machine", "a:m": "", "c:m": "no hypervisor",
	} {
		_, err := d.Open(t.Context(), target)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", target, err)
		}
	}
	b.gone = true
	if _, err := d.Open(t.Context(), "m"); err != nil {
		t.Error(err)
	}
	targets, errs := d.List(t.Context())
	if !slices.Equal(targets, []string{"a:m", "b:m"}) || len(errs) != 1 || !errors.Is(errs[0], broken) {
		t.Errorf("%v %v", targets, errs)
	}
}

// TestLease: a slow reader gets all, in pieces; one that hangs doesn't keep us.
func TestLease(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLease(w)
	if err != nil {
		t.Fatal(err)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	got := make(chan []byte)
	go func() {
		var all []byte
		buf := make([]byte, 3000)
		for len(all) < len(big) {
			n, err := r.Read(buf)
			if all = append(all, buf[:n]...); err != nil {
				break
			}
		}
		got <- all
	}()
	if end, err := l.Write(t.Context(), big, Term{}); err != nil || end != "" {
		t.Errorf("%q %v", end, err)
	}
	if !bytes.Equal(<-got, big) {
		t.Error("not what was written")
	}
	if end, err := l.Write(t.Context(), big, Term{Deadline: time.Now().Add(20 * time.Millisecond)}); err != nil || end != TimeUp {
		t.Errorf("hung: %q %v", end, err)
	}
	if end, err := l.Hold(t.Context(), Term{Deadline: time.Now().Add(20 * time.Millisecond)}); err != nil || end != TimeUp {
		t.Errorf("hung: %q %v", end, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if end, err := l.Hold(ctx, Term{}); err != nil || end != Interrupted {
		t.Errorf("interrupted: %q %v", end, err)
	}
	ended := make(chan struct{})
	close(ended)
	if end, err := l.Hold(t.Context(), Term{Command: ended}); err != nil || end != CommandEnded {
		t.Errorf("command: %q %v", end, err)
	}
	r.Close()
	if end, err := l.Hold(t.Context(), Term{}); err != nil || end != ReaderLeft {
		t.Errorf("left: %q %v", end, err)
	}
	if end, err := l.Write(t.Context(), big, Term{}); err != nil || end != ReaderLeft {
		t.Errorf("left: %q %v", end, err)
	}
	if err := l.Close(); err != nil || l.Close() != nil || !l.Closed() {
		t.Error(err)
	}
	if _, err := NewLease(io.Discard); err == nil {
		t.Error("a lease without a pipe")
	}
}

// TestHoldRecord: it fills what filters collect, however long a machine is held.
func TestHoldRecord(t *testing.T) {
	for _, n := range []int64{0, 59, 1 << 40} {
		b := holdRecord(n)
		var h mapfile.Hold
		if err := json.Unmarshal(b, &h); err != nil || h.Type != "hold" || h.Seconds != n || len(b) != pipeBuf || b[len(b)-1] != '\n' {
			t.Errorf("%d bytes, %+v, %v", len(b), h, err)
		}
	}
}

func TestJournalDir(t *testing.T) {
	t.Setenv("VMKIT_JOURNAL", "/some/where")
	if dir, err := JournalDir(); err != nil || dir != "/some/where" {
		t.Error(dir, err)
	}
	t.Setenv("VMKIT_JOURNAL", "")
	dir, err := JournalDir()
	if os.Geteuid() == 0 && (err != nil || dir != "/var/lib/vmkit/journal") {
		t.Error(dir, err)
	}
}

// TestPrune: journals are kept for a while, and the ones that still hold something for ever.
func TestPrune(t *testing.T) {
	dir := t.TempDir()
	old, now := time.Now().Add(-2*keepJournals), time.Now()
	for name, j := range map[string]*Journal{
		"old": {Begun: old, Ended: true}, "new": {Begun: now, Ended: true}, "held": {Begun: old},
	} {
		j.Version, j.VM, j.path = 1, &mapfile.VM{Name: name}, filepath.Join(dir, name+".json")
		if err := j.write(); err != nil {
			t.Fatal(err)
		}
	}
	list, errs := Journals(dir)
	prune(list)
	list, _ = Journals(dir)
	if len(errs) > 0 || len(list) != 2 || list[0].VM.Name != "held" || list[1].VM.Name != "new" {
		t.Errorf("%v %v", list, errs)
	}
}

// TestNoReflink: only disks count, by what they have allocated.
func TestNoReflink(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"disk", "base", "vars"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		f.Write(make([]byte, 64<<10))
		f.Truncate(1 << 30)
		f.Close()
	}
	vm := &mapfile.VM{Files: []mapfile.VMFile{
		{Path: filepath.Join(dir, "disk"), Role: mapfile.RoleDisk}, {Path: filepath.Join(dir, "base"), Role: mapfile.RoleBacking},
		{Path: filepath.Join(dir, "vars"), Role: mapfile.RoleFirmware}, {Path: "/dev/null", Role: mapfile.RoleDisk, Size: 7},
	}}
	can, err := CanReflink(dir)
	if err != nil {
		t.Fatal(err)
	}
	paths, n := NoReflink(vm)
	want := 3
	if can {
		want = 1
	}
	if len(paths) != want || n < 7 || n > 1<<20 {
		t.Errorf("%q, %d bytes", paths, n)
	}
	if left, _ := os.ReadDir(dir); len(left) != 3 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := CanReflink(filepath.Join(dir, "none")); err == nil {
		t.Error("a folder that is not there")
	}
}
