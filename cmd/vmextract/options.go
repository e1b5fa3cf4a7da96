package main

import (
	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/copyout"
)

const help = `Usage: vmmap IMAGE... | vmextract (-C DIR | --tar FILE | --cat) [OPTION]... [PATTERN...]
       vmextract -i IMAGE (-C DIR | --tar FILE | --cat) [OPTION]... [PATTERN...]
       vmextract -i IMAGE --volume NAME --cat

Copies files of a guest out of its disk images, as a map from stdin tells where they lie,
or a map that is made of the images on the spot. Writes a result record for each file.
A PATTERN is /PATH on any volume or VOLUME:/PATH, with *, ?, [] and **; a folder brings what
is in it. Without a PATTERN all files are copied.

  -C, --directory DIR    into DIR, each volume into the folder of its name
      --tar FILE         into a pax tar ("-": stdout)
      --cat              the content of the files, one after another, to stdout
      --volume NAME      with --cat: the content of a whole volume ("disk" is all of it)
  -i, --image IMAGE      map IMAGE instead of reading a map from stdin (repeatable)
      --map FILE         read the map from FILE instead of stdin
      --results FILE     write the result records to FILE instead of stdout
      --force            overwrite files that are there
      --owner            restore owners, as is done for root anyway
      --no-owner         don't restore owners
      --special          make device nodes and sockets; keep set-id bits and capabilities
      --streams          copy alternate streams too, as NAME:STREAM
      --ignore-mtime     take host files that have another time than in the map
` + cli.InputHelp + cli.CommonHelp + `
Examples:
  vmmap web1.qcow2 | vmextract -C out | vmverify
  vmextract -i web1.qcow2 --cat /etc/passwd
  vmextract -i web1.qcow2 -C out 'p2:/var/log/**' '/home/*/.ssh'
  vmmap web1.qcow2 | vmextract --tar - --results web1.results | tar -xf - -C out
  vmextract -i web1.qcow2 --snapshot before-update --volume disk --cat > before.img
`

// options are those of vmextract.
type options struct {
	input       cli.Input
	out         copyout.Options
	mapFile     string
	ignoreMTime bool
	images      []string
}

func command() *cli.Command {
	c := cli.New("vmextract", help)
	o, f := &options{}, c.Flags
	o.out.Register(f)
	f.StringVar(&o.out.Volume, "volume", "", "")
	f.StringArrayVarP(&o.images, "image", "i", nil, "")
	f.StringVar(&o.mapFile, "map", "", "")
	f.BoolVar(&o.ignoreMTime, "ignore-mtime", false, "")
	o.input.Register(f)
	c.Run = o.run
	return c
}
