package main

import (
	"context"
	"errors"
	"fmt"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/fsmap/mapfile"
)

func (o *options) run(ctx context.Context, t *cli.Term, args []string) error {
	waste, err := cli.Share(o.waste)
	switch {
	case err != nil:
		return cli.Usagef("--waste: %w", err)
	case o.repo == "":
		return cli.Usagef("--repo names the repository")
	case min(o.keep.Last, o.keep.Daily, o.keep.Weekly, o.keep.Monthly) < 0:
		return cli.Usagef("--keep-last, --keep-daily, --keep-weekly and --keep-monthly are not negative")
	case !o.keep.Any():
		return cli.Usagef("what is to be kept? one of --keep-last, --keep-daily, --keep-weekly and --keep-monthly says it")
	case o.chain < 2:
		return cli.Usagef("--chain is 2 or more")
	}
	s, err := repo.OpenStore(ctx, o.repo, false)
	if err != nil {
		return err
	}
	defer s.Close()
	machines := args
	if len(args) == 0 {
		if machines, err = repo.Machines(ctx, s); err != nil {
			return err
		}
	}
	out := mapfile.NewWriter(t.Stdout)
	p := repo.PruneOptions{Keep: o.keep, DryRun: o.dryRun, Waste: waste, Chain: o.chain}
	p.Tell = func(a repo.Action) error { return o.tell(t, out, a) }
	progress := t.Progress("compacted", -1, false)
	defer progress.Done()
	p.Progress = progress.Add
	var errs []error
	for _, machine := range machines { // one that can't be pruned keeps none from being
		if err := repo.Prune(ctx, s, machine, p); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 && len(errs) == len(machines) {
		return errors.Join(errs...)
	}
	for _, err := range errs {
		t.Warn("%v", err)
		t.Note(cli.Gaps)
	}
	if t.People {
		return nil
	}
	if err := out.Record(struct {
		Type     string `json:"type"`
		Machines int    `json:"machines"`
		Problems int    `json:"problems"`
	}{"end", len(machines), len(errs)}); err != nil {
		return err
	}
	return out.Flush()
}

// tell tells of an action: a record, or a line for people, who want to know of what is kept only before it is done.
func (o *options) tell(t *cli.Term, out *mapfile.Writer, a repo.Action) error {
	if !t.People {
		if err := out.Record(a); err != nil {
			return err
		}
		return out.Flush()
	}
	if a.What == "keep" && !o.dryRun {
		return nil
	}
	line := fmt.Sprintf("%-7s %s %s: %s", a.What, cli.Printable(a.Machine), a.Point, a.Why)
	if a.Freed > 0 {
		line += ", frees " + cli.Size(a.Freed)
	}
	if a.Written > 0 {
		line += ", writes " + cli.Size(a.Written)
	}
	_, err := fmt.Fprintln(t.Stdout, line)
	return err
}
