package main

import (
	"context"
	"time"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/clone"
)

const help = `Usage: vmfreeze TARGET... | vmclone [OPTION]...
       vmclone [OPTION]... SOURCE...

Clones the files of a machine into a new folder, under a new name, with its configuration
rewritten so that the clone could be started. With no SOURCE the machines are those that
vmfreeze holds; each is let go as soon as its data is copied. A SOURCE is a disk image, a
configuration file or a folder of a machine that is off; several make up one machine.

  -C, --directory DIR    put the clone into a new folder in DIR, not in the current one
      --name NEW         call the clone NEW, and its files too where their names begin with
                         the machine's; else it is called after the machine and the instant
      --method METHOD    reflink (share the bytes), copy (holes stay holes), or auto: reflink
                         where the file system can, else copy (the default)
      --checksum         write SHA256SUMS into the clone, for sha256sum and vmverify
      --keep-previous N  then remove all but N of the older clones in DIR that vmclone made
                         of the same machine
      --register         add the clone to the machines that its hypervisor knows
      --vm-list FILE     VMware's list of machines (/etc/vmware/vm-list); without it vmrun
                         is asked
      --start            start the clone, with its network disconnected
` + cli.CommonHelp + `
Examples:
  vmfreeze web1 | vmclone -C /evidence | vmmap | vmextract -C out | vmverify
  vmfreeze --all | vmclone -C /backup --keep-previous 3
  vmclone -C /evidence --checksum --name "Virtual 03" "/vms/Virtual 01"
  vmfreeze vmx:"/vms/Virtual 01/Virtual 01.vmx" | vmclone -C /vms --register --start
`

// options are those of vmclone alone.
type options struct {
	dir      string
	name     string
	method   string
	checksum bool
	keep     int
	register bool
	vmList   string
	start    bool
}

// keepAll is the number of previous clones to keep where none was given.
const keepAll = -1

// patience is how long an interrupted vmclone may take to remove what it copied.
const patience = time.Minute

func command() *cli.Command {
	c := cli.New("vmclone", help)
	c.Grace = patience
	o := &options{}
	f := c.Flags
	f.StringVarP(&o.dir, "directory", "C", ".", "")
	f.StringVar(&o.name, "name", "", "")
	f.StringVar(&o.method, "method", string(clone.Auto), "")
	f.BoolVar(&o.checksum, "checksum", false, "")
	f.IntVar(&o.keep, "keep-previous", keepAll, "")
	f.BoolVar(&o.register, "register", false, "")
	f.StringVar(&o.vmList, "vm-list", clone.DefaultVMList, "")
	f.BoolVar(&o.start, "start", false, "")
	c.Run = func(ctx context.Context, t *cli.Term, args []string) error {
		if f.Changed("keep-previous") && o.keep < 0 {
			return cli.Usagef("--keep-previous is 0 or more, not %d", o.keep)
		}
		if f.Changed("name") && clone.CheckName(o.name) != nil {
			return cli.Usagef("--name: %w", clone.CheckName(o.name))
		}
		return o.run(ctx, t, args)
	}
	return c
}
