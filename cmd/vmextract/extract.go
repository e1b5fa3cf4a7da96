package main

import (
	"context"
	"errors"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/extract"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

func (o *options) run(ctx context.Context, t *cli.Term, args []string) error {
	patterns, err := o.check(args)
	if err != nil {
		return err
	}
	x := o.out.Settings(t)
	x.Patterns, x.Images, x.AnyMTime = patterns, o.input.Folder, o.ignoreMTime
	in, err := o.open(ctx, t, &x)
	if err != nil {
		return err
	}
	s, err := o.out.Extract(ctx, t, in.Reader, x)
	locked, e := in.close()
	if e != nil && (err == nil || errors.Is(err, e)) {
		err = e // what kept the map from being made says more than that there is none
	}
	if err != nil {
		return err
	}
	if s.Problems > 0 && len(o.images) == 0 {
		t.Warn("%d problems that the map tells of are passed on", s.Problems)
	}
	return o.out.Tell(t, s, locked)
}

// check checks what belongs together.
func (o *options) check(args []string) (mapfile.Patterns, error) {
	patterns, err := mapfile.ParsePatterns(args)
	switch {
	case err != nil:
		err = cli.Usagef("%w", err)
	case o.out.Ways() != 1:
		err = cli.Usagef("one of -C, --tar and --cat says where the files go")
	case o.out.Volume != "" && (!o.out.Cat || len(args) > 0):
		err = cli.Usagef("--volume goes with --cat, and without patterns")
	case len(o.images) > 0 && o.mapFile != "":
		err = cli.Usagef("--image and --map exclude each other")
	default:
		err = o.out.Check()
	}
	return patterns, err
}

// input is where the map comes from.
type input struct {
	*mapfile.Reader
	close func() (locked bool, err error)
}

// open opens the map, or the images that one is made of.
func (o *options) open(ctx context.Context, t *cli.Term, x *extract.Options) (*input, error) {
	if len(o.images) == 0 {
		f, err := t.Input(o.mapFile)
		if err != nil {
			return nil, err
		}
		keys, hosts := o.input.Keyring(t), repo.Hosts{Context: ctx}
		x.Keys, x.Image, x.Open = keys.Get, keys.See, hosts.Open
		return &input{mapfile.NewReader(f), func() (bool, error) { return false, errors.Join(f.Close(), keys.Close(), hosts.Close()) }}, nil
	}
	images, err := o.input.Open(t, o.images)
	if err != nil {
		return nil, err
	}
	x.Keys = images.Env.Keys()
	c := fsmap.Config{Patterns: x.Patterns, Problem: t.Problem}
	if o.out.Volume != "" {
		c.NoFS = true
		c.VolumeExtents = func(name string) bool { return name == o.out.Volume }
	}
	m := images.Reader(ctx, c)
	return &input{m.Reader, func() (bool, error) {
		s, err := m.Close()
		return s.Encrypted, errors.Join(err, images.Close())
	}}, nil
}
