package hypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"vmkit/fsmap/mapfile"
)

// Engine freezes machines and lets them go.
type Engine struct {
	Drivers Drivers
	Dir     string // of the journals
	Tool    string
	By      string // who takes back: "vmfreeze", "guard", "recover"
	Warn    func(format string, args ...any)
}

// Freeze is a machine that this process has for itself, and later its freeze.
type Freeze struct {
	Machine Machine
	VM      *mapfile.VM
	Journal *Journal
	// Recovered tells what an earlier freeze had left and was taken back first.
	Recovered []Recovered

	engine  *Engine
	lock    *os.File
	guard   *Guard
	settled chan error // the journal's last write, which goes on meanwhile
}

// Claim describes the machine and excludes all others from it. What an earlier freeze left of it is taken back first.
// It takes over the machine: Close closes it.
func (e *Engine) Claim(ctx context.Context, m Machine) (*Freeze, error) {
	f := &Freeze{Machine: m, engine: e}
	if err := f.claim(ctx); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (f *Freeze) claim(ctx context.Context) (err error) {
	if f.VM, err = f.Machine.Describe(ctx); err != nil {
		return err
	}
	if f.lock, err = lockMachine(f.engine.Dir, f.VM); err != nil {
		return err
	}
	list, unread := Journals(f.engine.Dir)
	prune(list)
	var errs []error
	for _, err := range unread {
		// One of this machine may hold what has to be taken back; another machine's is none of its business.
		if strings.Contains(err.Error(), key(f.VM)) {
			errs = append(errs, err)
		} else {
			f.engine.Warn("%v", err)
		}
	}
	for _, j := range list {
		if j.VM.Target != f.VM.Target || j.Ended {
			continue
		}
		f.engine.Warn("%s: %s of %s left it frozen: taking that back first", f.VM.Name, j.Tool, j.Begun.Format(time.RFC3339))
		f.Machine, _ = f.engine.takeBack(ctx, f.Machine, j)
		f.Recovered = append(f.Recovered, recovered(j))
		if !j.Ended {
			errs = append(errs, fmt.Errorf("%s: %s", f.VM.Name, j.Released.Error))
		}
	}
	if err := errors.Join(errs...); err != nil || len(f.Recovered) == 0 {
		return err
	}
	f.VM, err = f.Machine.Describe(ctx)
	return err
}

// Terms are how a machine is held.
type Terms struct {
	Deadline  time.Duration // how long at most; 0: as long as its reader wants
	LongPause bool          // its files may be copied in full while it stands still
	Track     bool          // tell what changed
}

// Run carries out the plan, watched by the guard. Where a step fails, all are taken back. After it, Settle is due.
func (f *Freeze) Run(ctx context.Context, plan *Plan, guard *Guard, t Terms) error {
	now := time.Now()
	owner, err := ProcessOf(os.Getpid())
	if err != nil {
		return err
	}
	f.VM.Mode, f.VM.Method, f.VM.Type = string(plan.Mode), plan.Method, "vm"
	f.VM.Notes = append(f.VM.Notes, plan.Notes...)
	f.VM.ReflinkOnly = plan.Stops && !t.LongPause
	if f.VM.Versions == nil {
		f.VM.Versions = map[string]string{}
	}
	f.VM.Versions["tool"] = f.engine.Tool
	of := *f.VM // what changed is not for the journal
	f.Journal = &Journal{Version: 1, Tool: f.engine.Tool, VM: &of, Steps: plan.Steps, Owner: owner, Begun: now.UTC()}
	f.Journal.path = filepath.Join(f.engine.Dir, key(f.VM)+"-"+now.UTC().Format("20060102T150405.000000000Z")+".json")
	f.VM.Journal = f.Journal.path
	if guard != nil {
		f.Journal.Guard = &guard.Process
	}
	if t.Deadline > 0 {
		at := now.Add(t.Deadline).UTC()
		f.Journal.Deadline = &at
	}
	if err := f.Journal.write(); err != nil {
		return err
	}
	if f.guard = guard; guard != nil {
		if err := guard.watch(f, t.Deadline); err != nil {
			f.Journal.Ended = true
			return errors.Join(err, f.Journal.write())
		}
	}
	err = f.steps(ctx)
	if tracker, ok := f.Machine.(Tracker); ok && t.Track && err == nil {
		f.VM.Changed, err = tracker.Changed(ctx, f.Journal.Steps)
	}
	if err != nil {
		f.Release(context.WithoutCancel(ctx))
		if e := f.Journal.Released.Error; e != "" {
			err = errors.Join(err, fmt.Errorf("%s: and taking back what was done failed: %s; run vmfreeze --recover", f.VM.Name, e))
		}
		return err
	}
	f.VM.Files = append(f.VM.Files, plan.Files...)
	return nil
}

func (f *Freeze) steps(ctx context.Context) error {
	steps := f.Journal.Steps
	for i := range steps {
		s := &steps[i]
		s.save = func() { f.engine.save(f.Journal) }
		s.State, s.Begun = "begun", stamp()
		if err := f.Journal.write(); err != nil {
			s.State = ""
			return err
		}
		crash("begun", s)
		args := maps.Clone(s.Args)
		s.Begun, s.clock = stamp(), time.Now()
		err := f.Machine.Do(ctx, s)
		s.Done = stamp()
		crash("did", s)
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", f.VM.Name, s.Op, err)
		}
		s.State = "done"
		if s.Instant {
			f.VM.FrozenAt = s.Begun
		}
		f.VM.Quiesced = f.VM.Quiesced || s.Freezes
		// What undoing needs has to be in the journal at once, also after the last step.
		if !maps.Equal(args, s.Args) {
			if err := f.Journal.write(); err != nil {
				return err
			}
		}
	}
	for i := len(steps) - 1; i >= 0; i-- {
		if s := &steps[i]; s.Early {
			if err := f.engine.undo(ctx, f.Machine, s); err != nil {
				return fmt.Errorf("%s: ending %s: %w", f.VM.Name, s.Op, err)
			}
		}
	}
	return nil
}

// Settle has the journal say that all steps are done, while the caller goes on: the machine's pause is not the time to
// wait for a disk. The journal of before is enough to take everything back.
func (f *Freeze) Settle() {
	b, err := json.MarshalIndent(f.Journal, "", " ")
	if err != nil {
		return
	}
	settled := make(chan error, 1)
	f.settled = settled
	go func() { settled <- writeDurably(f.Journal.path, b) }()
}

// Release takes back all steps and tells what happened. Whoever holds the machine's lease has closed it before.
func (f *Freeze) Release(ctx context.Context) *mapfile.Released {
	if f.settled != nil {
		f.Journal.wait = f.settled
		f.settled = nil
	}
	f.Machine = f.engine.insist(ctx, f.Machine, f.Journal)
	if f.guard != nil {
		f.guard.ended(f)
	}
	return f.Journal.Released
}

// Stands tells whether the machine still stands still by this freeze.
func (f *Freeze) Stands() bool { return f.Journal.stands() }

// Close gives the machine free for others. It does not let it go: that is Release.
func (f *Freeze) Close() error {
	if f.lock != nil {
		f.lock.Close()
		f.lock = nil
	}
	if f.Machine == nil {
		return nil
	}
	return f.Machine.Close()
}

// tries is how often letting a machine go is tried.
const tries = 4

// insist takes back what a journal holds, more than once where the machine still stands still, or somebody else is in
// the way: QEMU may not have noticed yet that its last client died.
func (e *Engine) insist(ctx context.Context, m Machine, j *Journal) Machine {
	for try := 1; ; try++ {
		var err error
		m, err = e.takeBack(ctx, m, j)
		if !j.stands() && !errors.Is(err, ErrBusy) || try == tries {
			return m
		}
		time.Sleep(time.Duration(try) * time.Second)
	}
}

// takeBack undoes what the journal says was begun, the last first, and writes the outcome into the journal. A step that
// can't be undone keeps those before it, but for the ones that hold the machine up: these are tried whatever happens.
// It gives the machine, which may have been opened anew, and the error that the outcome tells.
func (e *Engine) takeBack(ctx context.Context, m Machine, j *Journal) (Machine, error) {
	at := stamp()
	if j.Released != nil && j.Released.At != nil {
		at = j.Released.At
	}
	rel := &mapfile.Released{At: at, By: e.By}
	var errs []error
	left := false
	for i := len(j.Steps) - 1; i >= 0; i-- {
		s := &j.Steps[i]
		if s.State == "" || s.State == "undone" || left && !s.Holds {
			continue
		}
		s.save = func() { e.save(j) }
		if !s.Holds {
			s.State = "undoing"
			e.save(j)
		}
		err := e.undo(ctx, m, s)
		if errors.Is(err, ErrUnavailable) {
			// The connection may be gone, or the hypervisor.
			if m, err = e.reopen(ctx, m, j.VM); err == nil {
				err = e.undo(ctx, m, s)
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", s.Op, err))
			s.Error = err.Error()
		}
		if s.State == "undone" {
			e.save(j)
		} else {
			left = true
		}
	}
	j.Ended = !left
	for i := range j.Steps {
		j.Steps[i].tell(rel)
	}
	err := errors.Join(errs...)
	if err != nil {
		rel.Error, rel.Spoiled = err.Error(), errors.Is(err, ErrSpoiled)
	}
	j.Released = rel
	e.save(j)
	return m, err
}

// undo takes one step back.
func (e *Engine) undo(ctx context.Context, m Machine, s *Step) error {
	if m == nil {
		return ErrUnavailable
	}
	crash("undo", s)
	err := m.Undo(ctx, s)
	if err != nil && !errors.Is(err, ErrSpoiled) {
		return err
	}
	s.State, s.Ended, s.Error = "undone", stamp(), ""
	switch {
	case !s.clock.IsZero():
		s.Took = time.Since(s.clock).Nanoseconds()
	case s.Begun != nil:
		s.Took = s.Ended.Sub(*s.Begun).Nanoseconds()
	}
	crash("undone", s)
	return err
}

func (e *Engine) reopen(ctx context.Context, m Machine, vm *mapfile.VM) (Machine, error) {
	if m != nil {
		m.Close()
	}
	m, err := e.Drivers.reach(ctx, vm)
	if err != nil {
		return nil, err // no typed nil
	}
	return m, nil
}

// save writes the journal during a release, which goes on whether or not that works: what is done can be done again.
func (e *Engine) save(j *Journal) {
	if err := j.write(); err != nil {
		e.Warn("%s: %v", j.VM.Name, err)
	}
}

// tell adds to the outcome what taking back the step meant.
func (s *Step) tell(rel *mapfile.Released) {
	if s.State != "undone" {
		return
	}
	switch {
	case s.Freezes:
		rel.Thawed, rel.FrozenNS = true, max(rel.FrozenNS, s.Took)
	case s.Holds:
		rel.Resumed, rel.PauseNS = true, max(rel.PauseNS, s.Took)
	}
	rel.Committed = rel.Committed || s.Commits
}

func stamp() *time.Time {
	t := time.Now().UTC()
	return &t
}
