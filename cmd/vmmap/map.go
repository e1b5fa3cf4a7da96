package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"vmkit/cmd/internal/cli"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// machine is the images that are taken together.
type machine struct {
	images []string
	clone  json.RawMessage // the record that named them, or nil
}

func (o *options) run(ctx context.Context, t *cli.Term, args []string) error {
	if o.appliance {
		return o.inMachine(ctx, t)
	}
	patterns, err := mapfile.ParsePatterns(o.only)
	switch {
	case err != nil:
		return cli.Usagef("--only: %w", err)
	case o.list && o.bodyfile:
		return cli.Usagef("--list and --bodyfile exclude each other")
	case o.volumes && (o.bodyfile || o.hash || len(o.only) > 0):
		return cli.Usagef("--volumes leaves out the files: it goes with neither --bodyfile, --hash nor --only")
	case o.live && (len(args) == 0 || len(o.rebase) > 0 || len(o.only) > 0):
		return cli.Usagef("--live takes the PATHs to map, and neither --rebase nor --only")
	case o.boot && (o.live || len(o.rebase) > 0 || o.volumes || o.volumeExtents):
		return cli.Usagef("--boot goes with neither --live, --rebase, --volumes nor --volume-extents")
	case !slices.Contains([]string{"auto", "kvm", "tcg"}, o.machine.Accel):
		return cli.Usagef("--accel is auto, kvm or tcg, not %q", o.machine.Accel)
	case o.machine.Timeout <= 0 || o.machine.Memory < 128 || o.machine.Output < 1 || o.machine.Output > 1<<30:
		return cli.Usagef("--boot-timeout is a time above 0, --boot-memory at least 128 and --boot-output at least 1 MiB")
	case len(o.rebase) > 0 && (len(args) > 0 || o.volumes || o.volumeExtents || o.hash || len(o.only) > 0):
		return cli.Usagef("--rebase takes the map from stdin as it is")
	}
	machines := []machine{{images: args}}
	if len(args) == 0 && len(o.rebase) == 0 {
		if machines, err = readClones(t); err != nil {
			return err
		}
	}
	out, err := t.Create(o.output)
	if err != nil {
		return err
	}
	write := func(w io.Writer) error {
		if len(o.rebase) > 0 {
			return o.rebaseTo(ctx, t, out, w)
		}
		if o.live {
			return o.liveTo(ctx, t, args, out, w)
		}
		for _, m := range machines {
			if err := o.mapMachine(ctx, t, m, patterns, out, w); err != nil {
				return err
			}
		}
		return nil
	}
	if o.bodyfile || o.list || t.People && o.output == "" {
		err = o.render(out, write)
	} else {
		err = write(out)
	}
	if err != nil {
		return err
	}
	return out.Commit()
}

// mapMachine writes the map of one machine's images to w.
func (o *options) mapMachine(ctx context.Context, t *cli.Term, m machine, patterns mapfile.Patterns, out *cli.Output, w io.Writer) error {
	images, err := o.input.Open(t, m.images)
	if err != nil {
		return err
	}
	defer images.Close()
	if o.boot {
		return o.bootTo(ctx, t, images, m.clone, out, w)
	}
	progress := t.Progress("files", -1, true)
	defer progress.Done()
	c := o.config(t, progress)
	c.Clone, c.Patterns = m.clone, patterns
	s, err := images.Map(ctx, c, mapfile.NewWriter(w))
	if err != nil {
		return err
	}
	out.Private = out.Private || s.Secret
	o.hint(t, m.images, s.Unread)
	if s.Encrypted {
		t.Note(cli.Locked)
		t.Hint("give the passphrase or key with --key-file")
	}
	return nil
}

// rebaseTo completes the map that stdin holds.
func (o *options) rebaseTo(ctx context.Context, t *cli.Term, out *cli.Output, w io.Writer) error {
	in, err := t.Input("-")
	if err != nil {
		return err
	}
	defer in.Close()
	images, err := o.input.Open(t, o.rebase)
	if err != nil {
		return err
	}
	defer images.Close()
	out.Private = true // it may be of what was encrypted
	_, err = images.Rebase(ctx, mapfile.NewReader(in), fsmap.Config{Problem: t.Problem}, mapfile.NewWriter(w))
	return err
}

// readClones gives the images of the clone records on stdin, once their stream is whole.
func readClones(t *cli.Term) ([]machine, error) {
	in, err := t.Input("-")
	if err != nil {
		return nil, cli.Usagef("no image is named, and stdin is a terminal")
	}
	defer in.Close()
	var machines []machine
	for r := mapfile.NewReader(in); ; {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("stdin: %w", err)
		}
		switch x := record.(type) {
		case *mapfile.Problem:
			t.Problem(&mapfile.Names{}, x)
		case *mapfile.Map:
			return nil, errors.New("stdin: a map, where clone records are expected")
		case *mapfile.Other:
			if x.Type != "clone" {
				continue
			}
			var clone struct {
				Name   string
				Images []string
			}
			if err := json.Unmarshal(x.Raw, &clone); err != nil {
				return nil, fmt.Errorf("stdin: clone record: %w", err)
			}
			if len(clone.Images) == 0 {
				return nil, fmt.Errorf("stdin: clone %s has no image", clone.Name)
			}
			machines = append(machines, machine{images: clone.Images, clone: x.Raw})
		}
	}
	if len(machines) == 0 {
		return nil, errors.New("stdin: no clone record, and no image is named")
	}
	return machines, nil
}

// render passes what write makes through the rendering that was asked for.
func (o *options) render(out io.Writer, write func(io.Writer) error) error {
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := write(pw)
		pw.CloseWithError(err)
		done <- err
	}()
	buf := bufio.NewWriterSize(out, 64<<10)
	var err error
	switch r := mapfile.NewReader(pr); {
	case o.bodyfile:
		err = bodyfile(buf, r)
	case o.volumes:
		err = table(buf, r)
	default:
		err = list(buf, r)
	}
	if err == nil {
		err = buf.Flush()
	}
	pr.CloseWithError(err)
	if e := <-done; e != nil && err == nil {
		err = e
	}
	return err
}
