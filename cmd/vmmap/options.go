package main

import (
	"time"

	"vmkit/cmd/internal/boot"
	"vmkit/cmd/internal/cli"
)

const help = `Usage: vmmap [OPTION]... IMAGE...
       vmmap --boot [OPTION]... IMAGE...
       vmmap --live [OPTION]... PATH...
       vmfreeze VM | vmclone -C DIR | vmmap [OPTION]...

Writes the map of the disk images, which are taken together as the disks of one machine:
a record for every volume and every file, with the bytes of the host files that hold it.
Images are only read. Without an IMAGE, clone records are read from stdin, and a map is
written for each. At a terminal the files are listed for people.

      --only PATTERN     map only files that match: /PATH on any volume, or VOLUME:/PATH,
                         with *, ?, [] and **; a folder brings what is in it (repeatable)
      --volumes          only the volumes, not the files in them
      --volume-extents   with the extents of the volumes themselves
      --hash             with the SHA-256 of every file, for which all of them are read
      --rebase IMAGE     complete a map from stdin: the same disks now lie in IMAGE
                         (repeatable)
      --live             map this running Linux machine's own file systems: those that each
                         PATH lies on or that are mounted below it (root; for --rebase)
      --boot             let a kernel read what vmkit can't: a small machine under QEMU mounts
                         the images' file systems; the images are not written to
  -l, --list             list for people instead of writing records
      --bodyfile         write a bodyfile for mactime instead of records
  -o, --output FILE      write to FILE, which appears when it is whole

Options for --boot:
      --kernel FILE      the kernel, instead of the newest in /boot
      --modules DIR      its /lib/modules/VERSION
      --qemu PROGRAM     the emulator, instead of QEMU's for this processor
      --accel NAME       kvm, tcg, or auto: kvm where it works (the default)
      --boot-timeout D   stop the machine after this time (10m)
      --boot-memory N    its memory in MiB (512)
      --boot-output N    how many MiB it may send (1024)
` + cli.InputHelp + cli.CommonHelp + `
Examples:
  vmmap web1.qcow2 > web1.map
  vmmap web1.qcow2 | vmextract -C out | vmverify
  vmmap --volumes -l web1.qcow2 web1-data.vmdk
  vmmap --only 'p2:/etc/**' -l web1.qcow2
  vmmap --snapshot before-update --bodyfile web1.qcow2 | mactime -d -y
  vmmap --rebase web1.vmdk < web1.map
  vmmap --boot photos.img | vmextract -C out
  ssh clone vmmap --live / | vmmap --rebase clone.qcow2 | vmextract -C out '/srv/**'
`

// options are those of vmmap alone.
type options struct {
	input         cli.Input
	only          []string
	volumes       bool
	volumeExtents bool
	hash          bool
	rebase        []string
	live          bool
	boot          bool
	machine       boot.Config
	output        string
	appliance     bool
	list          bool
	bodyfile      bool
}

func command() *cli.Command {
	c := cli.New("vmmap", help)
	o := &options{}
	f := c.Flags
	f.StringArrayVar(&o.only, "only", nil, "")
	f.BoolVar(&o.volumes, "volumes", false, "")
	f.BoolVar(&o.volumeExtents, "volume-extents", false, "")
	f.BoolVar(&o.hash, "hash", false, "")
	f.StringArrayVar(&o.rebase, "rebase", nil, "")
	f.BoolVar(&o.live, "live", false, "")
	f.BoolVar(&o.boot, "boot", false, "")
	f.StringVar(&o.machine.Kernel, "kernel", "", "")
	f.StringVar(&o.machine.Modules, "modules", "", "")
	f.StringVar(&o.machine.Program, "qemu", boot.Program, "")
	f.StringVar(&o.machine.Accel, "accel", "auto", "")
	f.DurationVar(&o.machine.Timeout, "boot-timeout", 10*time.Minute, "")
	f.IntVar(&o.machine.Memory, "boot-memory", 512, "")
	f.Int64Var(&o.machine.Output, "boot-output", 1024, "")
	f.BoolVar(&o.appliance, "appliance", false, "")
	f.MarkHidden("appliance")
	f.BoolVarP(&o.list, "list", "l", false, "")
	f.BoolVar(&o.bodyfile, "bodyfile", false, "")
	f.StringVarP(&o.output, "output", "o", "", "")
	o.input.Register(f)
	c.Run = o.run
	return c
}
