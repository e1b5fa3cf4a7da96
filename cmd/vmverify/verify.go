package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
	"vmkit/verify"
)

func (o *options) run(ctx context.Context, t *cli.Term, args []string) error {
	if o.child {
		return verify.SecondReaderChild(t.Stdin, t.Stdout)
	}
	if err := o.check(args); err != nil {
		return err
	}
	out, err := t.Create(o.output)
	if err != nil {
		return err
	}
	progress := t.Progress("verified", -1, false)
	defer progress.Done()
	v := verify.Options{
		Dir: o.dir, Extra: o.extra, Images: o.input.Folder, AnyMTime: o.ignoreMTime, Warn: t.Warn,
		Progress: func(_, bytes int64) { progress.Add(bytes) },
	}
	people := t.People && o.output == ""
	if !people {
		v.Out = mapfile.NewWriter(out)
	}
	s, err := o.compare(ctx, t, args, v)
	if err != nil {
		return err
	}
	if err := out.Commit(); err != nil {
		return err
	}
	if s.Problems > 0 {
		t.Warn("%d problems were met or passed on", s.Problems)
		t.Note(cli.Gaps)
	}
	if s.Differences > 0 {
		t.Note(cli.Differs)
	}
	if s.Locked() {
		t.Note(cli.Locked)
		t.Hint("give the passphrase or key with --key-file")
	}
	if people {
		progress.Done()
		_, err = fmt.Fprintf(t.Stdout, "%d compared, %d differences, %d problems\n", s.Checked, s.Differences, s.Problems)
	}
	return err
}

func (o *options) check(args []string) error {
	switch {
	case o.repo != "":
		if o.mapFile != "" || len(o.images) > 0 || o.against != "" || o.secondReader {
			return cli.Usagef("--repo stands by itself")
		}
		return nil
	case o.sample != wholeSample:
		return cli.Usagef("--sample goes with --repo")
	case len(args) > 1:
		return cli.Usagef("one FILE at a time")
	case o.mapFile != "" && len(args) > 0, len(o.images) > 0 && len(args) > 0, o.mapFile != "" && len(o.images) > 0:
		return cli.Usagef("FILE, --map and --image exclude each other")
	case o.secondReader && o.against != "":
		return cli.Usagef("--second-reader and --against exclude each other")
	case o.against != "" && o.mapFile == "" && len(o.images) == 0:
		return cli.Usagef("--against goes with --map or --image")
	}
	return nil
}

// compare does what was asked for.
func (o *options) compare(ctx context.Context, t *cli.Term, args []string, v verify.Options) (s verify.Summary, err error) {
	switch {
	case o.repo != "":
		return o.checkRepo(ctx, t, args, v)
	case len(o.images) > 0 && o.against == "" && !o.secondReader:
		return o.checkImages(ctx, t, v)
	}
	in, err := o.open(ctx, t, args, &v)
	if err != nil {
		return s, err
	}
	defer func() {
		if e := in.close(); e != nil && (err == nil || errors.Is(err, e)) {
			err = e
		}
	}()
	switch {
	case in.sums != nil:
		return verify.Sums(ctx, in.sums, v)
	case o.against != "":
		other, err := t.Input(o.against)
		if err != nil {
			return s, err
		}
		defer other.Close()
		return verify.Maps(ctx, in.records, mapfile.NewReader(other), v)
	case o.secondReader:
		return verify.SecondReader(ctx, in.records, childCommand(), v)
	}
	return verify.Records(ctx, in.records, v)
}

// childCommand is how this program is started as a second reader's child.
func childCommand() []string { return []string{os.Args[0], "--second-reader-child"} }

// input is what is compared: records, or a list of sums.
type input struct {
	records *mapfile.Reader
	sums    io.Reader
	close   func() error
}

// open opens it; of images a map is made.
func (o *options) open(ctx context.Context, t *cli.Term, args []string, v *verify.Options) (*input, error) {
	if len(o.images) > 0 {
		images, err := o.input.Open(t, o.images)
		if err != nil {
			return nil, err
		}
		v.Keys = images.Env.Keys()
		m := images.Reader(ctx, fsmap.Config{Problem: t.Problem})
		return &input{records: m.Reader, close: func() error {
			_, err := m.Close()
			return errors.Join(err, images.Close())
		}}, nil
	}
	name := o.mapFile
	if len(args) > 0 {
		name = args[0]
	}
	f, err := t.Input(name)
	if err != nil {
		return nil, err
	}
	keys, hosts := o.input.Keyring(t), repo.Hosts{Context: ctx}
	v.Keys, v.Image, v.Open = keys.Get, keys.See, hosts.Open
	in := &input{close: func() error { return errors.Join(f.Close(), keys.Close(), hosts.Close()) }}
	b := bufio.NewReader(f)
	if first, err := b.Peek(1); err == nil && first[0] != '{' && o.mapFile == "" && !o.secondReader {
		in.sums = b
	} else {
		in.records = mapfile.NewReader(b)
	}
	return in, nil
}
