package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/clone"
	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/files"
	"vmkit/fsmap/mapfile"
)

// session is one run. Clones are finished, in their order, while the next machine is already being copied: it must not
// be held for longer because of the one before.
type session struct {
	*options
	t     *cli.Term
	clone clone.Options
	last  chan struct{} // closed when all clones that were started so far are finished

	mu       sync.Mutex
	w        *mapfile.Writer
	clones   int64
	problems int64
	failed   []error // machines of which there is no clone
	err      error   // why the run can't go on
}

func (o *options) run(ctx context.Context, t *cli.Term, args []string) error {
	switch clone.Method(o.method) {
	case clone.Auto, clone.Reflink, clone.Copy:
	default:
		return cli.Usagef("--method is auto, reflink or copy, not %q", o.method)
	}
	if err := clone.Sweep(o.dir); err != nil {
		return err
	}
	s := &session{options: o, t: t, w: mapfile.NewWriter(t.Stdout)}
	s.clone = clone.Options{
		Dir: o.dir, Name: o.name, Method: clone.Method(o.method), Sums: o.checksum, Isolate: o.start,
		Progress: func(what string, total int64) (func(int64), func()) {
			p := t.Progress(what, total, false)
			return p.Add, p.Done
		},
	}
	s.last = make(chan struct{})
	close(s.last)
	var err error
	if len(args) > 0 {
		err = s.off(ctx, args)
	} else {
		err = s.held(ctx)
	}
	<-s.last
	if err == nil {
		err = s.err
	}
	if err != nil {
		return errors.Join(append(s.failed, err)...)
	}
	if s.clones == 0 {
		return errors.Join(s.failed...)
	}
	for _, err := range s.failed {
		s.problem(&mapfile.Problem{Image: mapfile.None, Volume: mapfile.None, What: "clone", Error: err.Error()})
	}
	if t.People {
		return nil
	}
	return s.w.End(&mapfile.End{Kind: mapfile.EndOfClones, Clones: s.clones, Problems: s.problems})
}

// held clones the machines that vmfreeze holds.
func (s *session) held(ctx context.Context) error {
	in, err := s.t.Input("-")
	if err != nil {
		return cli.Usagef("no source is named, and stdin is a terminal")
	}
	in.Close()
	file, ok := s.t.Stdin.(*os.File)
	if !ok {
		return errors.New("stdin is no file")
	}
	stream, err := clone.Open(file)
	if err != nil {
		return err
	}
	defer stream.Close()
	stream.Problem = s.problem
	following := 0
	for first := true; ; first = false {
		machines, err := stream.Next(ctx)
		if errors.Is(err, io.EOF) {
			if first {
				return errors.New("stdin: no vm record, and no source is named")
			}
			s.missed(following)
			return nil
		}
		if err != nil {
			return err
		}
		vm := machines[0].VM
		if s.name != "" && (!first || len(machines) > 1 || vm.Following > 0) {
			return cli.Usagef("--name is for one machine, and there are several")
		}
		if !first {
			s.missed(following - 1 - vm.Following)
		}
		following = vm.Following
		if err := s.round(ctx, machines, stream); err != nil {
			return err
		}
	}
}

// missed takes note of machines that were to come and did not.
func (s *session) missed(n int) {
	if n > 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.failed = append(s.failed, fmt.Errorf("stdin: machines that vmfreeze could not freeze: %d", n))
	}
}

// lease is what holds machines while their data is copied.
type lease interface {
	Held() error    // an error where they are not held any more
	Release() error // lets them go; an error where it turns out that they had not been held
}

// watchEvery is how often a lease is looked at while data is copied.
const watchEvery = 200 * time.Millisecond

// watch gives a context that ends when machines are held no more: what is copied after that is for nothing.
func watch(ctx context.Context, held lease) (context.Context, func()) {
	watched, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-watched.Done():
				return
			case <-time.After(watchEvery):
				if err := held.Held(); err != nil {
					cancel(err)
				}
			}
		}
	}()
	return watched, func() {
		cancel(nil)
		<-done
	}
}

// started is a clone of which the data is there.
type started struct {
	*clone.Clone
	vm *mapfile.VM
}

// round clones the data of machines that are held together, and has the clones finished later.
func (s *session) round(ctx context.Context, machines []*clone.Machine, held lease) error {
	var list []started
	discard := func() {
		for _, c := range list {
			c.Discard()
		}
	}
	watched, stop := watch(ctx, held)
	defer stop()
	for _, m := range machines {
		c, err := clone.Start(watched, m, &s.clone)
		if err != nil && ctx.Err() != nil {
			discard()
			return ctx.Err()
		}
		if err != nil && watched.Err() != nil {
			err = fmt.Errorf("%w; its clone was discarded", context.Cause(watched))
		}
		if err != nil {
			s.fail(m.VM, err)
			continue
		}
		list = append(list, started{c, m.VM})
	}
	stop()
	err := held.Held()
	if err == nil {
		err = held.Release()
	}
	if err == nil {
		s.finishLater(ctx, list)
		return nil
	}
	discard()
	if !errors.Is(err, clone.ErrReleased) {
		return err
	}
	for _, c := range list {
		s.fail(c.vm, fmt.Errorf("%w; its clone was discarded", err))
	}
	return nil
}

// fail takes note of a machine of which there is no clone.
func (s *session) fail(vm *mapfile.VM, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = append(s.failed, fmt.Errorf("%s: %w", vm.Name, err))
}

// finishLater finishes clones when those before them are finished.
func (s *session) finishLater(ctx context.Context, list []started) {
	before, done := s.last, make(chan struct{})
	s.last = done
	go func() {
		defer close(done)
		<-before
		for _, c := range list {
			if s.err != nil {
				c.Discard()
				continue
			}
			record, problems, err := c.Finish(ctx)
			switch {
			case ctx.Err() != nil:
				s.err = ctx.Err()
			case err != nil:
				s.fail(c.vm, err)
			default:
				s.err = s.finish(ctx, record, problems, c.vm)
			}
		}
	}()
}

// finish does what comes after a clone is whole, and tells of it.
func (s *session) finish(ctx context.Context, record *mapfile.Clone, problems []*mapfile.Problem, vm *mapfile.VM) error {
	later := func(what string, err error) {
		if err != nil {
			problems = append(problems, &mapfile.Problem{Image: mapfile.None, Volume: mapfile.None, Path: record.Folder, What: what, Error: err.Error()})
		}
	}
	needed := s.start && clone.NeedsRegister(record)
	if s.register || needed {
		where, err := clone.Register(ctx, record, vm, s.vmList)
		if err == nil {
			record.Registered = where
			err = clone.Save(record, problems)
		}
		later("register", err)
	}
	if s.start && (!needed || record.Registered != "") {
		later("start", clone.Boot(ctx, record, vm))
	}
	if s.keep != keepAll {
		removed, err := clone.Prune(record, s.keep)
		for _, path := range removed {
			record.Notes = append(record.Notes, "removed the older clone "+path)
		}
		later("older clones", err)
	}
	if err := s.tell(record); err != nil {
		return err
	}
	for _, p := range problems {
		s.problem(p)
	}
	return ctx.Err()
}

// tell writes the record of a clone.
func (s *session) tell(record *mapfile.Clone) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clones++
	if s.t.People {
		describe(s.t.Stdout, record)
		return nil
	}
	return errors.Join(s.w.Record(record), s.w.Flush())
}

// problem passes on a gap.
func (s *session) problem(p *mapfile.Problem) {
	s.t.Problem(&mapfile.Names{}, p)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problems++
	if !s.t.People {
		s.w.Problem(p)
	}
}

// off clones a machine that is off, which the sources make up. Nobody can start it meanwhile.
func (s *session) off(ctx context.Context, sources []string) error {
	m, err := files.New().Open(ctx, files.Target(sources...))
	if err != nil {
		return err
	}
	defer m.Close()
	vm, err := m.Describe(ctx)
	if err != nil {
		return err
	}
	plan, err := m.Plan(ctx, vm, hypervisor.Request{Mode: hypervisor.Auto})
	if err != nil {
		return fmt.Errorf("%s: %w", vm.Name, err)
	}
	l := &still{m, plan.Steps}
	now := time.Now().UTC()
	for i := range plan.Steps {
		if err := m.Do(ctx, &plan.Steps[i]); err != nil {
			return fmt.Errorf("%s: %w", vm.Name, err)
		}
	}
	vm.Mode, vm.Method, vm.FrozenAt = string(plan.Mode), plan.Method, &now
	raw, err := json.Marshal(vm)
	if err != nil {
		return err
	}
	return s.round(ctx, []*clone.Machine{{VM: vm, Raw: raw}}, l)
}

// still is the lease of a machine that is off: its files must not have changed when it ends.
type still struct {
	m     hypervisor.Machine
	steps []hypervisor.Step
}

func (l *still) Held() error { return nil }

func (l *still) Release() error {
	for i := range l.steps {
		if err := l.m.Undo(context.Background(), &l.steps[i]); err != nil {
			return fmt.Errorf("%w: %w", clone.ErrReleased, err)
		}
	}
	return nil
}

// describe tells people of a clone.
func describe(w io.Writer, r *mapfile.Clone) {
	var total int64
	methods := map[string]int{}
	for _, f := range r.Files {
		total += f.Size
		methods[f.Method]++
	}
	fmt.Fprintf(w, "%s: %d files, %s", cli.Printable(r.Folder), len(r.Files), cli.Size(total))
	for _, m := range []string{"reflink", "copy", "rewritten"} {
		if n := methods[m]; n > 0 {
			fmt.Fprintf(w, ", %d %s", n, map[string]string{"reflink": "by reflink", "copy": "copied", "rewritten": "rewritten"}[m])
		}
	}
	fmt.Fprintln(w)
	if rel := r.Released; rel != nil {
		switch {
		case rel.PauseNS > 0:
			fmt.Fprintf(w, "  the machine stood still for %v\n", time.Duration(rel.PauseNS).Round(time.Millisecond))
		case rel.Error == "":
			fmt.Fprintln(w, "  the machine was not stopped")
		}
	}
	for _, path := range r.Images {
		fmt.Fprintf(w, "  disk %s\n", cli.Printable(path))
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "  %s\n", cli.Printable(n))
	}
}
