package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/formats"
	"vmkit/fsmap/mapfile"
	"vmkit/partition"
)

// printMap prints the map of a point, whose host files are those of the repository.
func (o *options) printMap(ctx context.Context, t *cli.Term, s repo.Store, args []string) error {
	p, err := findPoint(ctx, t, s, args[0])
	if err != nil {
		return err
	}
	env := formats.NewEnv(0)
	var images []*formats.Image
	files := 0
	for n := range p.Disks {
		var c *repo.Chain
		if err := again(func() (err error) {
			c, err = repo.OpenDisk(ctx, s, p.Point, n, true, env)
			return err
		}); err != nil {
			return err
		}
		defer c.Close()
		c.Number, c.Disk = n, formats.Numbered(c.Disk, n)
		for _, f := range c.Files { // numbers of host files are unique within a map
			f.Image, f.ID = n, files
			files++
		}
		images = append(images, c.Image)
	}
	return rebase(ctx, t, s, p, images, env, mapfile.Patterns{}, mapfile.NewWriter(t.Stdout))
}

// target takes MACHINE@POINT:PATTERN and further patterns apart. Names of machines and points have no colon.
func target(args []string) (point string, patterns mapfile.Patterns, err error) {
	point, first, ok := strings.Cut(args[0], ":")
	if !ok {
		return "", patterns, cli.Usagef("%q is not of the form MACHINE@POINT:/PATH or MACHINE@POINT:VOLUME:/PATH", args[0])
	}
	if patterns, err = mapfile.ParsePatterns(append([]string{first}, args[1:]...)); err != nil {
		err = cli.Usagef("%w", err)
	}
	return point, patterns, err
}

// restoreFiles copies chosen files of a point to where they are wanted.
func (o *options) restoreFiles(ctx context.Context, t *cli.Term, s repo.Store, args []string) error {
	name, patterns, err := target(args)
	if err != nil {
		return err
	}
	p, err := findPoint(ctx, t, s, name)
	if err != nil {
		return err
	}
	d, err := openDisks(ctx, s, p)
	if err != nil {
		return err
	}
	defer d.close()
	if o.into != "" {
		return o.intoGuest(ctx, t, s, d, patterns)
	}
	x := o.out.Settings(t)
	x.Patterns, x.Open = patterns, d.open
	in := d.reader(ctx, t, s, patterns)
	if x.Keys, err = o.keys(t, d); err != nil {
		return err
	}
	sum, err := o.out.Extract(ctx, t, in.Reader, x)
	if e := in.close(); e != nil && (err == nil || errors.Is(err, e)) {
		err = e
	}
	if err != nil {
		return err
	}
	return o.out.Tell(t, sum, false)
}

// mapReader reads the map of the disks that is being made.
type mapReader struct {
	*mapfile.Reader
	close func() error
}

// reader makes the map of what patterns select, and reads it at the same time. Its host files are the disks.
func (d *disks) reader(ctx context.Context, t *cli.Term, s repo.Store, patterns mapfile.Patterns) *mapReader {
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		out := mapfile.NewWriter(&keptWriter{Writer: w, tell: d.kept(t)})
		err := rebase(ctx, t, s, d.p, d.images, d.env, patterns, out)
		if err == nil {
			err = out.Flush()
		}
		w.CloseWithError(err)
		done <- err
	}()
	return &mapReader{mapfile.NewReader(r), func() error {
		r.Close()
		if err := <-done; !errors.Is(err, io.ErrClosedPipe) {
			return err
		}
		return nil
	}}
}

// kept gives what tells of files whose bytes are kept as a disk of a machine.
func (d *disks) kept(t *cli.Term) func(path string, k *repo.Kept) {
	told := 0
	return func(path string, k *repo.Kept) {
		if told++; told <= 10 {
			t.Hint("%s is kept as a disk: --image %s@%s --disk %s brings it back", path, k.Machine, k.Point, k.Disk)
		}
	}
}

// keptWriter passes a map on, and tells of the files in it that are kept as disks.
type keptWriter struct {
	io.Writer
	tell func(path string, k *repo.Kept)
}

// Write gets whole lines.
func (w *keptWriter) Write(p []byte) (int, error) {
	mark := []byte(`"kept_as":{`)
	for rest := p; bytes.Contains(rest, mark); {
		line, after, _ := bytes.Cut(rest, []byte("\n"))
		rest = after
		var f struct {
			Path string
			Kept *repo.Kept `json:"kept_as"`
		}
		if bytes.Contains(line, mark) && json.Unmarshal(line, &f) == nil && f.Kept != nil {
			w.tell(f.Path, f.Kept)
		}
	}
	return w.Writer.Write(p)
}

// keys opens what lies encrypted on the disks, where a key was given.
func (o *options) keys(t *cli.Term, d *disks) (func(string) ([]byte, bool), error) {
	if o.keyFile == "" {
		return nil, nil
	}
	ask, err := (&cli.Input{KeyFile: o.keyFile}).Passphrase(t)
	if err != nil {
		return nil, err
	}
	if _, err := partition.Scan(d.images, partition.Options{Env: d.env, Passphrase: ask}); err != nil {
		return nil, err
	}
	return d.env.Keys(), nil
}
