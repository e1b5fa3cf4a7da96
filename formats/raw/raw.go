// Package raw reads a raw image: the host file is the virtual disk, byte for byte. Its holes are zeros.
package raw

import "vmkit/formats"

// Format is the row of the table. It has no probe: raw is what no other format claims.
var Format = formats.Format{Name: "raw", Open: open}

func open(f *formats.File, o *formats.Opener) (*formats.Image, error) {
	return &formats.Image{
		Disk: formats.NewDisk(formats.Plain(f), o.Env), Format: "raw", State: formats.StateClean, Files: []*formats.File{f},
	}, nil
}
