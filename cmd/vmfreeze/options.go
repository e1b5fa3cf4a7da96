package main

import (
	"context"
	"time"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/hypervisor"
)

const help = `Usage: vmfreeze [OPTION]... TARGET... | vmclone -C DIR
       vmfreeze [OPTION]... TARGET... -- COMMAND [ARG]...
       vmfreeze --list | --recover [TARGET]... | --tracked POINT TARGET...

Finds out which files a machine consists of, makes them immutable, and holds them so until
the reader of its pipe is done, COMMAND ends, or a time is up. Then the machine goes on as
it was found. The pipe is the lease: who reads the records lets go by closing it.

A TARGET is qmp:SOCKET, libvirt:[URI/]NAME, vmx:PATH, esx:URL/NAME, vbox:NAME,
files:PATH[,PATH]... (a machine that is off), or a bare name, looked up in all that answer.

  -m, --mode MODE        snapshot (an overlay takes the writes, the machine runs on),
                         pause (it is stopped while its files are cloned by reflink),
                         suspend (stopped, its memory saved too), or auto (the default)
      --quiesce          have the guest's agent freeze its file systems around the freeze
      --agent SOCKET     the socket of the guest's agent, where QEMU can't tell it
      --work DIR         put overlays and saved memory into DIR, not beside the disks
      --max-pause TIME   let go after TIME whatever the reader does (1m for a machine that
                         is stopped, 10m for one that is suspended; else no limit; 0: none)
      --allow-long-pause let a stopped machine's files be copied where no reflink can be
                         made; how long that may take is told first
      --all              every machine that --list shows
      --together         freeze all machines first, so that they show one instant
      --track            keep track of changed blocks from here on, and tell those since
                         the last point
      --tracked POINT    the backup of POINT is safe: forget what changed before it
      --list             show the machines that are found, with their files
      --recover          take back, or finish, what an earlier run left of these machines
                         or of all
` + cli.CommonHelp + `
Examples:
  vmfreeze web1 | vmclone -C /evidence | vmmap | vmextract -C out | vmverify
  vmfreeze --quiesce libvirt:web1 | vmclone -C /backup
  vmfreeze -m pause qmp:/run/web1.qmp -- cp --reflink=always web1.qcow2 /srv/clones/
  vmfreeze --together web1 db1 | vmclone -C /evidence
  vmfreeze --list
  vmfreeze --recover
`

// options are those of vmfreeze alone.
type options struct {
	mode      string
	quiesce   bool
	agent     string
	work      string
	maxPause  time.Duration
	limited   bool // --max-pause was given
	longPause bool
	all       bool
	together  bool
	track     bool
	tracked   string
	list      bool
	recover   bool
}

// patience is how long an interrupted vmfreeze may take to put writes back. A second signal leaves that to the guard.
const patience = 24 * time.Hour

func command() *cli.Command {
	c := cli.New("vmfreeze", help)
	c.Grace = patience
	o := &options{}
	f := c.Flags
	f.StringVarP(&o.mode, "mode", "m", string(hypervisor.Auto), "")
	f.BoolVar(&o.quiesce, "quiesce", false, "")
	f.StringVar(&o.agent, "agent", "", "")
	f.StringVar(&o.work, "work", "", "")
	f.DurationVar(&o.maxPause, "max-pause", 0, "")
	f.BoolVar(&o.longPause, "allow-long-pause", false, "")
	f.BoolVar(&o.all, "all", false, "")
	f.BoolVar(&o.together, "together", false, "")
	f.BoolVar(&o.track, "track", false, "")
	f.StringVar(&o.tracked, "tracked", "", "")
	f.BoolVar(&o.list, "list", false, "")
	f.BoolVar(&o.recover, "recover", false, "")
	c.Run = func(ctx context.Context, t *cli.Term, args []string) error {
		o.limited = f.Changed("max-pause")
		var command []string
		if n := f.ArgsLenAtDash(); n >= 0 {
			args, command = args[:n:n], args[n:]
			if len(command) == 0 {
				return cli.Usagef("no COMMAND after --")
			}
		}
		return o.run(ctx, t, args, command)
	}
	return c
}
