package main

import (
	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/copyout"
)

const help = `Usage: vmrestore --repo REPO [MACHINE]
       vmrestore --repo REPO MACHINE@POINT:PATTERN [PATTERN]... (-C DIR | --tar FILE | --cat)
       vmrestore --repo REPO MACHINE@POINT:PATTERN [PATTERN]... --into GUEST [--to DIR]
       vmrestore --repo REPO --map MACHINE@POINT
       vmrestore --repo REPO --image MACHINE@POINT (-o FILE | -C DIR) [OPTION]...
       vmrestore --repo REPO --boot-command MACHINE@POINT
       vmrestore --repo REPO --history PATTERN MACHINE
       vmrestore --repo REPO --diff MACHINE@POINT MACHINE@POINT

Brings back files and machines from the backups of vmbackup, and lists what there is. REPO is
a folder or s3://BUCKET/PREFIX. A POINT is a point's name, "latest", or the beginning of a time
(2026-11-20), which stands for the newest point of that time. Every block that is read is
compared with its hash before any of it is used.

      --repo REPO        the repository
      --hidden           list points too that were dropped and are kept for others

Files, chosen by patterns as vmextract has them:
  -C, --directory DIR    into DIR, each volume into the folder of its name
      --tar FILE         into a pax tar ("-": stdout)
      --cat              the content of the files, one after another, to stdout
      --into GUEST       into a running guest through its agent: qga:SOCKET or libvirt:NAME
      --to DIR           with --into: below this folder of the guest instead of in their place
      --results FILE     write the result records to FILE instead of stdout
      --force            overwrite files that are there
      --owner            restore owners, as is done for root anyway
      --no-owner         don't restore owners
      --special          make device nodes and sockets; keep set-id bits and capabilities
      --streams          copy alternate streams too, as NAME:STREAM
      --key-file FILE    the passphrase or key of what is encrypted ("-": stdin)

Instead of files:
      --map              print the point's map, whose host files are the repository's
      --history PATTERN  list the versions that the points have of a file
      --diff             list what differs between two points: added, removed, changed
      --image            the machine's disks, with its configuration
  -o, --output FILE      --image: the machine's one disk, or the one that --disk names
      --disk NAME        --image: this disk only
      --format FORMAT    --image: qcow2, raw or vmdk, instead of what FILE's name ends with
      --boot-command     print the command that boots the machine where it lies, by an overlay
                         that is thrown away
` + cli.CommonHelp + `
Examples:
  vmrestore --repo /backup
  vmrestore --repo /backup web1@latest:/etc/nginx -C out
  vmrestore --repo s3://backups/site1 web1@2026-11-20:/etc/passwd --cat
  vmrestore --repo /backup --map web1@latest | vmextract -C out '/etc/**' | vmverify
  vmrestore --repo /backup web1@latest:/srv/www --into libvirt:web1
  vmrestore --repo /backup --history /etc/passwd web1
  vmrestore --repo /backup --image web1@latest -o web1.qcow2
`

// options are those of vmrestore.
type options struct {
	out                              copyout.Options
	repo, keyFile                    string
	asMap, diff, image, boot, hidden bool
	history, into, to                string
	output, disk, format             string
}

func command() *cli.Command {
	c := cli.New("vmrestore", help)
	o, f := &options{}, c.Flags
	f.StringVar(&o.repo, "repo", "", "")
	f.BoolVar(&o.hidden, "hidden", false, "")
	o.out.Register(f)
	f.StringVar(&o.into, "into", "", "")
	f.StringVar(&o.to, "to", "", "")
	f.StringVar(&o.keyFile, "key-file", "", "")
	f.BoolVar(&o.asMap, "map", false, "")
	f.StringVar(&o.history, "history", "", "")
	f.BoolVar(&o.diff, "diff", false, "")
	f.BoolVar(&o.image, "image", false, "")
	f.StringVarP(&o.output, "output", "o", "", "")
	f.StringVar(&o.disk, "disk", "", "")
	f.StringVar(&o.format, "format", "", "")
	f.BoolVar(&o.boot, "boot-command", false, "")
	c.Run = o.run
	return c
}
