package main

import (
	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
)

const help = `Usage: vmprune --repo REPO [OPTION]... [MACHINE]...

Drops the points of each machine (all without MACHINE) that no rule keeps, and compacts what is
left. The newest point always stays. A point that others build on is hidden first; later, when
enough of it is waste, it is folded into the point that builds on it, whose image is replaced by
a whole, verified new one. Whenever it is interrupted, every point that is listed restores.

      --repo REPO         the repository: a folder, or s3://BUCKET/PREFIX
      --keep-last N       keep the newest N points
      --keep-daily N      keep the newest point of each of the last N days that have one
      --keep-weekly N     the same for weeks, from Monday on
      --keep-monthly N    the same for months
      --waste SHARE       compact when that frees so much of what has to be written (33%)
      --chain N           make the newest point full when more points build on one another (60)
  -n, --dry-run           tell what would be done, and do nothing
` + cli.CommonHelp + `
Examples:
  vmprune --repo /backup --keep-daily 7 --keep-weekly 4 --keep-monthly 12
  vmprune --repo s3://backups/site1 --keep-last 30 --dry-run web1
`

// options are those of vmprune.
type options struct {
	repo, waste string
	keep        repo.Keep
	chain       int
	dryRun      bool
}

func command() *cli.Command {
	c := cli.New("vmprune", help)
	o, f := &options{}, c.Flags
	f.StringVar(&o.repo, "repo", "", "")
	f.IntVar(&o.keep.Last, "keep-last", 0, "")
	f.IntVar(&o.keep.Daily, "keep-daily", 0, "")
	f.IntVar(&o.keep.Weekly, "keep-weekly", 0, "")
	f.IntVar(&o.keep.Monthly, "keep-monthly", 0, "")
	f.StringVar(&o.waste, "waste", "33%", "")
	f.IntVar(&o.chain, "chain", 60, "")
	f.BoolVarP(&o.dryRun, "dry-run", "n", false, "")
	c.Run = o.run
	return c
}
