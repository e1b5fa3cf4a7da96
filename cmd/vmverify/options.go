package main

import (
	"vmkit/cmd/internal/cli"
)

const help = `Usage: vmextract -C DIR ... | vmverify [OPTION]...
       vmverify [OPTION]... [FILE]
       vmverify [--second-reader] --map MAP
       vmverify --map OLD --against NEW
       vmverify -i IMAGE... [--second-reader | --against MAP]
       vmverify --repo REPO [--sample SHARE] [MACHINE]...

Compares, and writes a finding record for each difference. FILE, or stdin, holds the result
records of vmextract or a list of sha256sum, which are compared with the files that they
name; or a map, which is compared with its disk images: they must be those that were mapped,
and every file must be readable and, where the map has its sum, have it.

      --map MAP          a map ("-": stdin)
      --against MAP      compare the map or the images with this other map
  -i, --image IMAGE      check the structure of IMAGE itself, as qemu-img check does, and its
                         partition table; or map it for --against or --second-reader
                         (repeatable)
      --second-reader    read the guest once more through other people's libraries, and
                         compare names and bytes
      --repo REPO        check a backup repository: chains, maps, images and the hash of every
                         block; what is damaged, and which files of which points that touches
      --sample SHARE     with --repo: read only so much of the images' blocks (100%)
  -C, --directory DIR    relative names of files lie below DIR
      --extra            files that lie there and aren't named are differences too
      --ignore-mtime     take host files that have another time than in the map
  -o, --output FILE      write to FILE, which appears when it is whole
` + cli.InputHelp + cli.CommonHelp + `
Examples:
  vmmap web1.qcow2 | vmextract -C out | vmverify
  vmverify --extra -C out web1.sha256
  vmverify --map web1.map
  vmverify --map monday.map --against tuesday.map
  vmverify -i web1.qcow2
  vmmap web1.qcow2 | vmverify --second-reader
  vmverify --repo /backup
`

// wholeSample is all of it.
const wholeSample = "100%"

// options are those of vmverify.
type options struct {
	input               cli.Input
	mapFile, against    string
	images              []string
	secondReader, child bool
	dir, output         string
	extra, ignoreMTime  bool
	repo, sample        string
}

func command() *cli.Command {
	c := cli.New("vmverify", help)
	o, f := &options{}, c.Flags
	f.StringVar(&o.mapFile, "map", "", "")
	f.StringVar(&o.against, "against", "", "")
	f.StringArrayVarP(&o.images, "image", "i", nil, "")
	f.BoolVar(&o.secondReader, "second-reader", false, "")
	f.BoolVar(&o.child, "second-reader-child", false, "")
	f.MarkHidden("second-reader-child")
	f.StringVar(&o.repo, "repo", "", "")
	f.StringVar(&o.sample, "sample", wholeSample, "")
	f.StringVarP(&o.dir, "directory", "C", "", "")
	f.BoolVar(&o.extra, "extra", false, "")
	f.BoolVar(&o.ignoreMTime, "ignore-mtime", false, "")
	f.StringVarP(&o.output, "output", "o", "", "")
	o.input.Register(f)
	c.Run = o.run
	return c
}
