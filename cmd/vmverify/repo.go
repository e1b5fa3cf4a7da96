package main

import (
	"context"
	"fmt"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/fsmap/mapfile"
	"vmkit/verify"
)

// checkRepo checks the points of a repository's machines, or of those that are named. What is damaged is a finding.
func (o *options) checkRepo(ctx context.Context, t *cli.Term, machines []string, v verify.Options) (s verify.Summary, err error) {
	sample, err := cli.Share(o.sample)
	if err != nil {
		return s, cli.Usagef("--sample: %w", err)
	}
	store, err := repo.OpenStore(ctx, o.repo, false)
	if err != nil {
		return s, err
	}
	defer store.Close()
	if len(machines) == 0 {
		if machines, err = repo.Machines(ctx, store); err != nil {
			return s, err
		}
	}
	c := repo.CheckOptions{Sample: sample, Progress: func(n int64) { v.Progress(0, n) }}
	c.Report = func(f mapfile.Finding) error {
		s.Differences++
		t.Warn("%s", verify.Text(&f))
		if v.Out == nil {
			return nil
		}
		return v.Out.Finding(&f)
	}
	for _, machine := range machines {
		checked, err := repo.Check(ctx, store, machine, c)
		if s.Checked += checked; err != nil {
			return s, fmt.Errorf("%s: %w", machine, err)
		}
	}
	if v.Out != nil {
		err = v.Out.End(&mapfile.End{Kind: mapfile.EndOfFindings, Checked: s.Checked, Differences: s.Differences})
	}
	return s, err
}
