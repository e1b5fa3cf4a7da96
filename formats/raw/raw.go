// Package raw reads a raw image: the host file is the virtual disk, byte for byte. Its holes are zeros.
package raw

import (
	"vmkit/formats"
)

// Format is the row of the table. It has no probe: raw is what no other format claims.
var Format = formats.Format{Name: "raw", Open: open}

func open(f *formats.File, o *formats.Opener) (*formats.Image, error) {
	d := &disk{f: f}
	return &formats.Image{
		Disk: formats.NewDisk(d, o.Env), Format: "raw", State: formats.StateClean, Files: []*formats.File{f},
	}, nil
}

type disk struct{ f *formats.File }

func (d *disk) Size() int64 { return d.f.Size }

func (d *disk) ExtentAt(off, max int64) (formats.Extent, error) {
	return formats.Extent{Len: min(max, d.f.Size-off), Kind: formats.Data, Disk: off, File: d.f, Off: off}, nil
}
