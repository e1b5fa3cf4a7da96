package main

import (
	"context"

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
	for i, img := range images.List {
		if err := ctx.Err(); err != nil {
			return s, err
		}
		s.Checked++
		report := func(what string) func(error) {
			return func(err error) {
				s.Differences++
				f := mapfile.Finding{What: what, Volume: mapfile.None, Path: o.images[i], Expected: "sound", Found: err.Error()}
				t.Warn("%s", verify.Text(&f))
				if v.Out != nil {
					v.Out.Finding(&f)
				}
			}
		}
		if err := checkImage(img, images, report); err != nil {
			return s, err
		}
	}
	if v.Out != nil {
		err = v.Out.End(&mapfile.End{Kind: mapfile.EndOfFindings, Checked: s.Checked, Differences: s.Differences})
	}
	return s, err
}

func checkImage(img *formats.Image, images *cli.Images, report func(what string) func(error)) error {
	for _, err := range img.Problems {
		report("image")(err)
	}
	return partition.Check(img.Disk, partition.Options{Env: images.Env}, report("partition table"))
}
