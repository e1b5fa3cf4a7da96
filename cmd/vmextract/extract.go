package main

import (
	"context"
	"errors"
	"fmt"
	"os"

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
	x := extract.Options{
		Patterns: patterns, Owner: (o.owner || os.Geteuid() == 0) && !o.noOwner,
		Special: o.special, Streams: o.streams, Force: o.force,
		Images: o.input.Folder, AnyMTime: o.ignoreMTime, Warn: t.Warn,
	}
	in, err := o.open(ctx, t, &x)
	if err != nil {
		return err
	}
	s, err := o.extract(ctx, t, in.Reader, x)
	locked, e := in.close()
	if e != nil && (err == nil || errors.Is(err, e)) {
		err = e // what kept the map from being made says more than that there is none
	}
	if err != nil {
		return err
	}
	if s.Gaps() {
		t.Note(cli.Gaps)
	}
	if locked || s.Locked() {
		t.Note(cli.Locked)
		t.Hint("give the passphrase or key with --key-file")
	}
	if s.Problems > 0 && len(o.images) == 0 {
		t.Warn("%d problems that the map tells of are passed on", s.Problems)
	}
	if o.cat && s.OK+s.Partial+s.Failed == 0 && s.Skipped > 0 {
		return errors.New("nothing that was chosen has content")
	}
	return nil
}

// check checks what belongs together.
func (o *options) check(args []string) (mapfile.Patterns, error) {
	patterns, err := mapfile.ParsePatterns(args)
	ways := 0
	for _, way := range []bool{o.dir != "", o.tar != "", o.cat} {
		if way {
			ways++
		}
	}
	switch {
	case err != nil:
		err = cli.Usagef("%w", err)
	case ways != 1:
		err = cli.Usagef("one of -C, --tar and --cat says where the files go")
	case o.volume != "" && (!o.cat || len(args) > 0):
		err = cli.Usagef("--volume goes with --cat, and without patterns")
	case o.owner && o.noOwner:
		err = cli.Usagef("--owner and --no-owner exclude each other")
	case len(o.images) > 0 && o.mapFile != "":
		err = cli.Usagef("--image and --map exclude each other")
	case o.results == "-" && (o.cat || o.tar == "-"):
		err = cli.Usagef("--results: stdout is taken by the files")
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
	if o.volume != "" {
		c.NoFS = true
		c.VolumeExtents = func(name string) bool { return name == o.volume }
	}
	m := images.Reader(ctx, c)
	return &input{m.Reader, func() (bool, error) {
		s, err := m.Close()
		return s.Encrypted, errors.Join(err, images.Close())
	}}, nil
}

// extract runs the extraction that was asked for. What it writes to files of its own appears when it is whole.
func (o *options) extract(ctx context.Context, t *cli.Term, in *mapfile.Reader, x extract.Options) (s extract.Summary, err error) {
	progress := t.Progress("extracted", -1, false)
	defer progress.Done()
	x.Progress = func(_, bytes int64) { progress.Add(bytes) }
	toStdout := o.cat || o.tar == "-"
	var outputs []*cli.Output
	create := func(path string) (*cli.Output, error) {
		out, err := t.Create(path)
		outputs = append(outputs, out)
		return out, err
	}
	if o.results != "" || !toStdout && !t.People {
		out, err := create(o.results)
		if err != nil {
			return s, err
		}
		x.Results = mapfile.NewWriter(out)
	}
	switch {
	case o.dir != "":
		s, err = extract.ToDir(ctx, in, o.dir, x)
	case o.tar != "":
		out, e := create(o.tar)
		if e != nil {
			return s, e
		}
		s, err = extract.ToTar(ctx, in, out, x)
	case o.volume != "":
		s, err = extract.CatVolume(ctx, in, t.Stdout, o.volume, x)
	default:
		s, err = extract.Cat(ctx, in, t.Stdout, x)
	}
	if err != nil {
		return s, err
	}
	for _, out := range outputs {
		if err := out.Commit(); err != nil {
			return s, err
		}
	}
	if t.People && !toStdout {
		progress.Done()
		_, err = fmt.Fprintf(t.Stdout, "%d files extracted, %d bytes; %d left out, %d partial, %d failed\n", s.OK, s.Bytes, s.Skipped, s.Partial, s.Failed)
	}
	return s, err
}
