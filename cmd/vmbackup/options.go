package main

import (
	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/hostsnap"
)

const help = `Usage: vmbackup --repo REPO [OPTION]... MACHINE=IMAGE...
       vmfreeze VM | vmclone -C DIR | vmbackup --repo REPO [OPTION]...
       vmbackup --repo REPO --host PATH [OPTION]...

Makes a point of each machine in a repository: a QCOW2 image of every disk, which QEMU can
open and boot, with a map of the guest's files and a hash of every cluster. The first point
is full; later ones hold only what changed. Images are only read. Without a MACHINE=IMAGE,
clone records are read from stdin. A point is there when it is whole, or not at all.

      --repo REPO          the repository: a folder, or s3://BUCKET/PREFIX
      --full               make full points, even where there is one to build upon
      --incremental        fail where a full point would have to be made
      --reread             read everything and compare it, whatever tells what changed
      --sample SHARE       how much of what should not have changed is read all the same, and
                           how many files are read back afterwards (1%)
      --changed-ranges FILE
                           what changed since the last point: records, or the JSON of
                           qemu-img map or nbdinfo --map
      --bitmap NAME        believe this persistent bitmap of the images
      --all-blocks         keep what no file and no file system uses too
      --without-swap       leave out swap space and hibernation files
      --compression KIND   zstd (QEMU 5.1 and later), zlib, none
      --cluster SIZE       cluster size of full points: 4K to 2M (64K)
      --chain N            make a full point where N points build on one another (30)
      --verify HOW         read back files of the point: sample, full, none

Options for this host's own files:
      --host PATH          back up this host's PATH, a folder or a file, too; as PATH=NAME under
                           the name NAME, as which a snapshot's folder is kept (repeatable)
      --host-name NAME     the machine that they are a point of, instead of the host's name
      --host-snapshot HOW  read them from a btrfs snapshot, from reflink copies, or as they stand:
                           btrfs, reflink, none; auto is btrfs for root where they lie on one
      --exclude PATTERN    leave out what matches: an absolute path with *, ?, [] and **
                           (repeatable)
      --exact              keep guests' disk images among them as they are, byte for byte, instead
                           of as points of their machines
` + cli.InputHelp + cli.CommonHelp + `
Examples:
  vmbackup --repo /backup web1=web1.qcow2
  vmfreeze --track web1 | vmclone -C /fast --keep-previous 1 | vmbackup --repo /backup
  vmbackup --repo s3://backup/site1 --verify full db1=system.raw db1=data.raw
  vmbackup --repo /backup --host /etc --host /srv --exclude '/srv/tmp/**'
  qemu-img check /backup/web1/20261122T090000Z.disk0.qcow2
`

// options are those of vmbackup alone.
type options struct {
	input        cli.Input
	repo         string
	full         bool
	incremental  bool
	reread       bool
	sample       string
	ranges       string
	bitmap       string
	allBlocks    bool
	withoutSwap  bool
	compression  string
	cluster      string
	chain        int
	verify       string
	host         []string
	hostName     string
	hostSnapshot string
	exclude      []string
	exact        bool
}

func command() *cli.Command {
	c := cli.New("vmbackup", help)
	o := &options{}
	f := c.Flags
	f.StringVar(&o.repo, "repo", "", "")
	f.BoolVar(&o.full, "full", false, "")
	f.BoolVar(&o.incremental, "incremental", false, "")
	f.BoolVar(&o.reread, "reread", false, "")
	f.StringVar(&o.sample, "sample", "1%", "")
	f.StringVar(&o.ranges, "changed-ranges", "", "")
	f.StringVar(&o.bitmap, "bitmap", "", "")
	f.BoolVar(&o.allBlocks, "all-blocks", false, "")
	f.BoolVar(&o.withoutSwap, "without-swap", false, "")
	f.StringVar(&o.compression, "compression", "zstd", "")
	f.StringVar(&o.cluster, "cluster", "", "")
	f.IntVar(&o.chain, "chain", 30, "")
	f.StringVar(&o.verify, "verify", "sample", "")
	f.StringArrayVar(&o.host, "host", nil, "")
	f.StringVar(&o.hostName, "host-name", "", "")
	f.StringVar(&o.hostSnapshot, "host-snapshot", string(hostsnap.Auto), "")
	f.StringArrayVar(&o.exclude, "exclude", nil, "")
	f.BoolVar(&o.exact, "exact", false, "")
	o.input.Register(f)
	c.Run = o.run
	return c
}
