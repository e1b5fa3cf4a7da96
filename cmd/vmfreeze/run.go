package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"text/tabwriter"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/all"
	"vmkit/fsmap/mapfile"
)

func (o *options) run(ctx context.Context, t *cli.Term, targets, command []string) error {
	if err := o.check(targets, command); err != nil {
		return err
	}
	// Whoever takes things back may be in another folder.
	for _, path := range []*string{&o.work, &o.agent} {
		if *path != "" {
			abs, err := filepath.Abs(*path)
			if err != nil {
				return err
			}
			*path = abs
		}
	}
	dir, err := hypervisor.JournalDir()
	if err != nil {
		return err
	}
	e := &hypervisor.Engine{Drivers: all.Drivers, Dir: dir, Tool: cli.Tool("vmfreeze"), By: "vmfreeze", Warn: t.Warn}
	if o.recover {
		e.By = "recover"
		return recoverAll(ctx, t, e, targets)
	}
	if o.all || o.list {
		found, errs := e.Drivers.List(ctx)
		for _, err := range errs {
			t.Warn("%v", err)
			t.Note(cli.Gaps)
		}
		targets = append(targets, found...)
	}
	switch {
	case o.list:
		return list(ctx, t, e, targets)
	case len(targets) == 0:
		return errors.New("no machine was found")
	case o.tracked != "":
		return o.forget(ctx, e, targets)
	}
	return o.freeze(ctx, t, e, targets, command)
}

// check refuses what makes no sense together.
func (o *options) check(targets, command []string) error {
	switch hypervisor.Mode(o.mode) {
	case hypervisor.Auto, hypervisor.Snapshot, hypervisor.Pause, hypervisor.Suspend:
	default:
		return cli.Usagef("--mode is snapshot, pause, suspend or auto, not %q", o.mode)
	}
	does := 0
	for _, set := range []bool{o.list, o.recover, o.tracked != ""} {
		if set {
			does++
		}
	}
	switch {
	case does > 1:
		return cli.Usagef("--list, --recover and --tracked exclude each other")
	case does == 1 && len(command) > 0:
		return cli.Usagef("a COMMAND is for a machine that is frozen")
	case o.list && len(targets) > 0:
		return cli.Usagef("--list shows all machines; it takes no TARGET")
	case o.maxPause < 0:
		return cli.Usagef("--max-pause can't be negative")
	case o.all && len(targets) > 0:
		return cli.Usagef("--all takes no TARGET")
	case does == 0 && len(targets) == 0 && !o.all, o.tracked != "" && len(targets) == 0 && !o.all:
		return cli.Usagef("no TARGET: which machine?")
	}
	return nil
}

func (o *options) request() hypervisor.Request {
	return hypervisor.Request{Mode: hypervisor.Mode(o.mode), Quiesce: o.quiesce, Track: o.track, Work: o.work, Agent: o.agent}
}

// list shows machines with their files.
func list(ctx context.Context, t *cli.Term, e *hypervisor.Engine, targets []string) error {
	var vms []*mapfile.VM
	for _, target := range targets {
		m, err := e.Drivers.Open(ctx, target)
		if err == nil {
			var vm *mapfile.VM
			if vm, err = m.Describe(ctx); err == nil {
				vms = append(vms, vm)
			}
			m.Close()
		}
		if err != nil {
			t.Warn("%v", err)
			t.Note(cli.Gaps)
		}
	}
	if !t.People {
		b, err := hypervisor.Records(vms...)
		if err == nil {
			_, err = t.Stdout.Write(b)
		}
		return err
	}
	w := tabwriter.NewWriter(t.Stdout, 0, 8, 2, ' ', 0)
	for _, vm := range vms {
		fmt.Fprintf(w, "%s\t%s\t%s\n", cli.Printable(vm.Name), cli.Printable(vm.Target), vm.StateFound)
		for _, f := range vm.Files {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", cli.Printable(f.Disk), cli.Printable(f.Path), describe(f))
		}
	}
	return w.Flush()
}

func describe(f mapfile.VMFile) string {
	s := f.Role
	if f.Format != "" {
		s += ", " + f.Format
	}
	if f.Size > 0 {
		s += fmt.Sprintf(", %d bytes", f.Size)
	}
	return s
}

// recoverAll takes back what earlier runs left, and says what it did.
func recoverAll(ctx context.Context, t *cli.Term, e *hypervisor.Engine, names []string) error {
	found := 0
	var writeErr error
	err := e.Recover(ctx, names, func(r hypervisor.Recovered, err error) {
		found++
		if err != nil {
			t.Warn("%v", err)
			t.Note(cli.Gaps)
			if errors.Is(err, hypervisor.ErrBusy) {
				return
			}
		}
		writeErr = errors.Join(writeErr, report(t, &r))
	})
	if found == 0 && err == nil && t.People {
		fmt.Fprintln(t.Stdout, "nothing was left to recover")
	}
	return errors.Join(err, writeErr)
}

// report says what was taken back of an earlier freeze.
func report(t *cli.Term, r *hypervisor.Recovered) error {
	if !t.People {
		w := mapfile.NewWriter(t.Stdout)
		return errors.Join(w.Record(r), w.Flush())
	}
	for _, what := range r.Undone {
		fmt.Fprintf(t.Stdout, "%s: took back: %s\n", cli.Printable(r.Name), what)
	}
	for _, what := range r.Left {
		fmt.Fprintf(t.Stdout, "%s: still to be taken back: %s\n", cli.Printable(r.Name), what)
	}
	return nil
}

// forget tells machines that a point is safe.
func (o *options) forget(ctx context.Context, e *hypervisor.Engine, targets []string) error {
	for _, target := range targets {
		m, err := e.Drivers.Open(ctx, target)
		if err != nil {
			return err
		}
		f, err := e.Claim(ctx, m)
		if err != nil {
			return err
		}
		tracker, ok := f.Machine.(hypervisor.Tracker)
		if !ok {
			err = fmt.Errorf("%s: this hypervisor's driver keeps no track of changes", target)
		} else if err = tracker.Tracked(ctx, o.tracked); err != nil {
			err = fmt.Errorf("%s: %w", target, err)
		}
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// unique leaves out targets that were named before.
func unique(targets []string) []string {
	var out []string
	for _, target := range targets {
		if !slices.Contains(out, target) {
			out = append(out, target)
		}
	}
	return out
}
