package main

import (
	"context"
	"io"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/live"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// liveTo writes the map of this machine's own file systems: those that paths lie on, and those mounted below them.
func (o *options) liveTo(ctx context.Context, t *cli.Term, paths []string, out *cli.Output, w io.Writer) error {
	plan, err := live.Find(paths, live.Options{Hash: o.hash})
	if err != nil {
		return err
	}
	defer plan.Close()
	o.input.Format = "raw"
	images, err := o.input.Open(t, plan.Disks())
	if err != nil {
		return err
	}
	defer images.Close()
	o.input.Format = "" // the map needn't say so
	plan.Name(images.List)
	progress := t.Progress("files", -1, true)
	defer progress.Done()
	c := o.config(t, progress)
	c.DiskOnly, c.Mounts, c.Hash = true, plan.Mounts, false
	c.Partition.Opened = plan.Opened
	out.Private = true // root reads what others may not
	_, err = images.Map(ctx, c, mapfile.NewWriter(w))
	return err
}

// config says what every map has in common.
func (o *options) config(t *cli.Term, progress *cli.Progress) fsmap.Config {
	c := fsmap.Config{
		NoFiles: o.volumes, Hash: o.hash, Problem: t.Problem, Progress: progress.Add,
		Note: func(where, note string) { t.Warn("%s: %s", where, note) },
	}
	if o.volumeExtents {
		c.VolumeExtents = func(string) bool { return true }
	}
	return c
}
