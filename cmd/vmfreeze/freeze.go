package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/hypervisor"
	"vmkit/fsmap/mapfile"
)

// How long a machine is held at most, where nothing was said.
const (
	pauseLimit   = time.Minute
	suspendLimit = 10 * time.Minute
	// copySpeed is what a full copy is estimated by, in bytes a second: that of one good disk.
	copySpeed = 200 << 20
)

// session is one run that freezes machines.
type session struct {
	*options
	t       *cli.Term
	engine  *hypervisor.Engine
	command []string
	lease   *hypervisor.Lease
	guard   *hypervisor.Guard
}

func (o *options) freeze(ctx context.Context, t *cli.Term, e *hypervisor.Engine, targets, command []string) error {
	s := &session{options: o, t: t, engine: e, command: command}
	targets = unique(targets)
	if command == nil {
		lease, err := hypervisor.NewLease(t.Stdout)
		if err != nil {
			return err
		}
		if t.People {
			lease.Quiet()
		}
		if err := s.open(lease); err != nil {
			return err
		}
		defer s.close()
	}
	if o.together {
		return s.round(ctx, targets, 0)
	}
	var errs []error
	for i, target := range targets {
		err := s.round(ctx, []string{target}, len(targets)-i-1)
		if err != nil {
			errs = append(errs, err)
		}
		if i+1 < len(targets) && (ctx.Err() != nil || s.command == nil && s.lease.Closed()) {
			errs = append(errs, fmt.Errorf("the lease ended before %s, which was not frozen", targets[i+1]))
			break
		}
	}
	if len(errs) > 0 && len(errs) < len(targets) && ctx.Err() == nil {
		t.Error(errors.Join(errs...))
		t.Note(cli.Gaps)
		return nil
	}
	return errors.Join(errs...)
}

// open takes a lease, and starts the guard that shares it.
func (s *session) open(lease *hypervisor.Lease) (err error) {
	s.lease = lease
	if s.guard, err = hypervisor.StartGuard(lease.File()); err != nil {
		lease.Close()
	}
	return err
}

func (s *session) close() {
	s.lease.Close()
	s.guard.Close()
}

// round freezes machines together, holds them as long as their reader wants, and lets them go.
func (s *session) round(ctx context.Context, targets []string, following int) (err error) {
	var held []*hypervisor.Freeze
	defer func() {
		for _, f := range held {
			f.Close()
		}
	}()
	var plans []*hypervisor.Plan
	for _, target := range targets {
		f, plan, err := s.claim(ctx, target)
		if err != nil {
			return err
		}
		held, plans = append(held, f), append(plans, plan)
	}
	term := hypervisor.Term{}
	var child *child
	if s.command != nil {
		var reader *os.File
		if reader, err = s.pipe(); err != nil {
			return err
		}
		defer s.close()
		defer reader.Close()
		child = newChild(s.command, reader, s.t)
		term.Command = child.done
	} else {
		fifo, err := hypervisor.NewRelease(s.engine.Dir)
		if err != nil {
			return err
		}
		defer fifo.Close()
		term.Release = fifo.File
		for _, f := range held {
			f.VM.Following, f.VM.Release = following, fifo.Path
		}
	}
	frozen := 0
	for i, f := range held {
		terms := s.terms(plans[i])
		if terms.Deadline > 0 {
			if at := time.Now().Add(terms.Deadline); term.Deadline.IsZero() || at.Before(term.Deadline) {
				term.Deadline = at
			}
		}
		if err = s.run(ctx, f, plans[i], terms, term.Deadline); err != nil {
			break
		}
		frozen++
	}
	end := hypervisor.Interrupted
	told := err == nil
	if told {
		end, err = s.hold(ctx, held, child, term)
	}
	// A reader that was told nothing of this machine, or is done with it, gets the next one by the same lease.
	if following == 0 || told && end != hypervisor.ReaderDone {
		if child != nil && end != hypervisor.CommandEnded {
			child.kill()
		}
		s.guard.CloseLease()
		s.lease.Close()
	}
	for i := frozen - 1; i >= 0; i-- {
		err = errors.Join(err, s.release(held[i]))
	}
	return errors.Join(err, s.outcome(ctx, end, held[:frozen], child, term))
}

// outcome says what the end of a lease means.
func (s *session) outcome(ctx context.Context, end hypervisor.End, held []*hypervisor.Freeze, child *child, term hypervisor.Term) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case end == hypervisor.TimeUp:
		return fmt.Errorf("%s: let go when the time was up (--max-pause), before its reader was done: what was copied does not count", held[0].VM.Name)
	case end == hypervisor.CommandEnded && child.err != nil:
		return fmt.Errorf("%s: %w", s.command[0], child.err)
	}
	return nil
}

// claim opens a machine and plans its freeze.
func (s *session) claim(ctx context.Context, target string) (*hypervisor.Freeze, *hypervisor.Plan, error) {
	m, err := s.engine.Drivers.Open(ctx, target)
	if err != nil {
		return nil, nil, err
	}
	f, err := s.engine.Claim(ctx, m)
	if err != nil {
		return nil, nil, err
	}
	plan, err := f.Machine.Plan(ctx, f.VM, s.request())
	if err == nil && plan.Stops {
		err = s.mayStop(f, plan)
	}
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("%s: %w", f.VM.Name, err)
	}
	return f, plan, nil
}

// mayStop refuses a pause in which files would have to be copied, unless that was allowed.
func (s *session) mayStop(f *hypervisor.Freeze, plan *hypervisor.Plan) error {
	paths, bytes := hypervisor.NoReflink(f.VM)
	if len(paths) == 0 {
		return nil
	}
	estimate := fmt.Sprintf("%s can't be cloned by reflink where it lies: copying %.1f GiB takes about %v, for which the machine stands still",
		paths[0], float64(bytes)/(1<<30), (time.Duration(bytes/copySpeed)*time.Second + time.Second).Round(time.Second))
	if !s.longPause {
		return fmt.Errorf("%s: use mode snapshot, or --allow-long-pause", estimate)
	}
	s.t.Warn("%s: %s", f.VM.Name, estimate)
	return nil
}

// terms tells how a machine is held.
func (s *session) terms(plan *hypervisor.Plan) hypervisor.Terms {
	t := hypervisor.Terms{Deadline: s.maxPause, LongPause: s.longPause, Track: s.track}
	if !s.limited && plan.Stops && !s.longPause {
		t.Deadline = pauseLimit
		if plan.Mode == hypervisor.Suspend {
			t.Deadline = suspendLimit
		}
	}
	return t
}

func (s *session) run(ctx context.Context, f *hypervisor.Freeze, plan *hypervisor.Plan, terms hypervisor.Terms, deadline time.Time) error {
	if !deadline.IsZero() {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	err := f.Run(ctx, plan, s.guard, terms)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: the time was up (--max-pause) before it was frozen", err)
	}
	return err
}

// hold tells the reader of the machines, and holds them.
func (s *session) hold(ctx context.Context, held []*hypervisor.Freeze, child *child, term hypervisor.Term) (hypervisor.End, error) {
	var vms []*mapfile.VM
	for _, f := range held {
		vms = append(vms, f.VM)
	}
	records, err := hypervisor.Records(vms...)
	if err != nil {
		return hypervisor.Interrupted, err
	}
	if child != nil {
		if err := child.start(); err != nil {
			return hypervisor.Interrupted, err
		}
	}
	if s.t.People && child == nil {
		for _, vm := range vms {
			fmt.Fprintf(s.t.Stdout, "%s: frozen (%s, %s); Ctrl-C lets it go\n", cli.Printable(vm.Name), vm.Mode, vm.Method)
			for _, file := range vm.Files {
				fmt.Fprintf(s.t.Stdout, "  %s  %s\n", cli.Printable(file.Path), describe(file))
			}
		}
		records = nil
	}
	end, err := s.lease.Write(ctx, records, term)
	for _, f := range held {
		f.Settle()
	}
	if err == nil && end == "" {
		end, err = s.lease.Hold(ctx, term)
	}
	if err != nil {
		end = hypervisor.Interrupted
	}
	return end, err
}

// release lets a machine go.
func (s *session) release(f *hypervisor.Freeze) error {
	r := f.Release(context.Background())
	switch {
	case r.Error == "":
		return nil
	case r.Spoiled:
		return fmt.Errorf("%s: %s", f.VM.Name, r.Error)
	case f.Stands():
		return fmt.Errorf("%s stands still: %s; run vmfreeze --recover", f.VM.Name, r.Error)
	}
	s.t.Warn("%s: %s; vmfreeze --recover tries again", f.VM.Name, r.Error)
	s.t.Note(cli.Gaps)
	return nil
}

// pipe makes the lease to the command.
func (s *session) pipe() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	lease, err := hypervisor.NewLease(w)
	if err == nil {
		err = s.open(lease)
	}
	if err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// child is the command given after --. It reads the records.
type child struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // after done
}

func newChild(command []string, stdin *os.File, t *cli.Term) *child {
	c := &child{cmd: exec.Command(command[0], command[1:]...), done: make(chan struct{})}
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = stdin, t.Stdout, t.Stderr
	// A group of its own, to be ended as a whole; and it must not go on when vmfreeze is killed, as the machine does.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	return c
}

// start starts the command. Its parent, of whose death it hears, is a thread, which has to stay.
func (c *child) start() error {
	begun := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := c.cmd.Start()
		c.cmd.Stdin.(*os.File).Close()
		begun <- err
		if err == nil {
			c.err = c.cmd.Wait()
		}
		close(c.done)
	}()
	return <-begun
}

// kill ends the command, whose copy is worth nothing any more.
func (c *child) kill() {
	if c.cmd.Process == nil {
		return
	}
	unix.Kill(-c.cmd.Process.Pid, unix.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(time.Second):
		unix.Kill(-c.cmd.Process.Pid, unix.SIGKILL)
	}
}
