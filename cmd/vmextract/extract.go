package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"vmkit/cmd/internal/cli"
	"vmkit/extract"
	"vmkit/formats/codec"
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
		k := o.keys(t, x)
		return &input{mapfile.NewReader(f), func() (bool, error) { return false, errors.Join(f.Close(), k.close()) }}, nil
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

// keyring finds the keys of a map that was read, which never holds them: the images that it names are opened for that.
type keyring struct {
	o      *options
	t      *cli.Term
	once   sync.Once
	names  []string
	images *cli.Images
	keys   codec.Keys
}

// keys makes x take keys from the images of the map, where the user gave a way to open them.
func (o *options) keys(t *cli.Term, x *extract.Options) *keyring {
	k := &keyring{o: o, t: t}
	if o.input.KeyFile != "" {
		x.Keys = k.get
		x.Image = func(m *mapfile.Image) {
			if len(m.Files) > 0 {
				k.names = append(k.names, m.Files[0].Path)
			}
		}
	}
	return k
}

func (k *keyring) get(id string) ([]byte, bool) {
	k.once.Do(func() {
		images, err := k.o.input.Open(k.t, k.names)
		if err == nil {
			k.images = images
			k.keys, err = images.Keys()
		}
		if err != nil {
			k.t.Warn("%v", err)
		}
	})
	if k.keys == nil {
		return nil, false
	}
	return k.keys(id)
}

func (k *keyring) close() error {
	if k.images == nil {
		return nil
	}
	return k.images.Close()
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
