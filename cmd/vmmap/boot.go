package main

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"slices"
	"strings"

	"vmkit/cmd/internal/boot"
	"vmkit/cmd/internal/cli"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// bootTo writes the map that a small machine makes of the images.
func (o *options) bootTo(ctx context.Context, t *cli.Term, images *cli.Images, clone json.RawMessage, out *cli.Output, w io.Writer) error {
	c := o.machine
	c.Images, c.Only, c.Hash, c.Created, c.SectorSize = images.List, o.only, o.hash, o.input.Created, o.input.SectorSize
	c.Output <<= 20
	m, err := c.Run(ctx)
	if err != nil {
		return err
	}
	defer m.Close()
	out.Private = true // the machine's kernel may have read what others may not
	_, err = images.Rebase(ctx, mapfile.NewReader(m.Map()), fsmap.Config{Clone: clone, Problem: t.Problem, Changes: m.Changes}, mapfile.NewWriter(w))
	return err
}

// inMachine is the first and only program of such a machine.
func (o *options) inMachine(ctx context.Context, t *cli.Term) error {
	if os.Getpid() != 1 {
		return cli.Usagef("--appliance is for the first process of a machine that vmmap --boot starts")
	}
	a, err := boot.Begin()
	if err == nil {
		err = o.mapMounted(ctx, t, a)
	}
	a.Halt(err)
	return err
}

func (o *options) mapMounted(ctx context.Context, t *cli.Term, a *boot.Appliance) error {
	patterns, err := mapfile.ParsePatterns(a.Only)
	if err != nil {
		return err
	}
	o.input.Format, o.input.Created, o.input.SectorSize = "raw", a.Created, a.SectorSize
	images, err := o.input.Open(t, a.Devices())
	if err != nil {
		return err
	}
	defer images.Close()
	o.input.Format = "" // the map needn't say so
	a.Name(images.List)
	c := fsmap.Config{DiskOnly: true, Mounts: a.Mounts, Patterns: patterns}
	_, err = images.Map(ctx, c, mapfile.NewWriter(a.Port()))
	return err
}

// hint tells how a kernel may read file systems that vmkit doesn't.
func (o *options) hint(t *cli.Term, images, unread []string) {
	if len(unread) == 0 {
		return
	}
	slices.Sort(unread)
	words := []string{"vmmap", "--boot"}
	for _, name := range images {
		words = append(words, quote(name))
	}
	t.Hint("a kernel may read %s: %s", strings.Join(slices.Compact(unread), ", "), strings.Join(words, " "))
}

// quote writes a word as a shell takes it.
func quote(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("%+,-./:=@_", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
