package main

import (
	"context"
	"fmt"

	"vmkit/cmd/internal/cli"
	"vmkit/formats"
	"vmkit/fsmap/mapfile"
	"vmkit/partition"
	"vmkit/verify"
)

// checkImages checks the structure of images: their own, and that of the partition tables in them. What is wrong is a
// finding.
func (o *options) checkImages(ctx context.Context, t *cli.Term, v verify.Options) (s verify.Summary, err error) {
	images, err := o.input.Open(t, o.images)
	if err != nil {
		return s, err
	}
	defer images.Close()
	report := func(f mapfile.Finding) {
		s.Differences++
		f.Volume = mapfile.None
		t.Warn("%s", verify.Text(&f))
		if v.Out != nil {
			v.Out.Finding(&f)
		}
	}
	for i, img := range images.List {
		if err := ctx.Err(); err != nil {
			return s, err
		}
		s.Checked++
		name := o.images[i]
		for _, err := range img.Problems {
			report(mapfile.Finding{What: "image", Path: name, Expected: "whole", Found: err.Error()})
		}
		if err := images.Check(name, func(f formats.Finding) { report(finding(name, f)) }); err != nil {
			return s, err
		}
		err := partition.Check(img.Disk, partition.Options{Env: images.Env}, func(err error) {
			report(mapfile.Finding{What: "partition table", Path: name, Expected: "sound", Found: err.Error()})
		})
		if err != nil {
			return s, fmt.Errorf("%s: %w", name, err)
		}
	}
	if v.Out != nil {
		err = v.Out.End(&mapfile.End{Kind: mapfile.EndOfFindings, Checked: s.Checked, Differences: s.Differences})
	}
	return s, err
}

// finding renders what a format found.
func finding(name string, f formats.Finding) mapfile.Finding {
	x := mapfile.Finding{What: f.What, Path: name, Expected: f.Expected, Found: f.Found}
	if f.File != nil {
		x.Path = f.File.Path
	}
	if f.Off != formats.NoPos {
		x.What = fmt.Sprintf("%s at byte %#x", f.What, f.Off)
	}
	return x
}
