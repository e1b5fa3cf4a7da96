// Package copyout is what the commands that copy files out of images have in common: where the files go, what is
// restored of them, and the results.
package copyout

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/pflag"

	"vmkit/cmd/internal/cli"
	"vmkit/extract"
	"vmkit/fsmap/mapfile"
)

// Options are the options that say where files go, and how.
type Options struct {
	Dir, Tar, Results string
	Cat, Force        bool
	Owner, NoOwner    bool
	Special, Streams  bool
	Volume            string // whose content Cat writes, instead of files; no option of its own here
}

// Register defines the options.
func (o *Options) Register(f *pflag.FlagSet) {
	f.StringVarP(&o.Dir, "directory", "C", "", "")
	f.StringVar(&o.Tar, "tar", "", "")
	f.BoolVar(&o.Cat, "cat", false, "")
	f.StringVar(&o.Results, "results", "", "")
	f.BoolVar(&o.Force, "force", false, "")
	f.BoolVar(&o.Owner, "owner", false, "")
	f.BoolVar(&o.NoOwner, "no-owner", false, "")
	f.BoolVar(&o.Special, "special", false, "")
	f.BoolVar(&o.Streams, "streams", false, "")
}

// Ways tells how many of the options that say where files go were given.
func (o *Options) Ways() (n int) {
	for _, way := range []bool{o.Dir != "", o.Tar != "", o.Cat} {
		if way {
			n++
		}
	}
	return n
}

// Check checks what belongs together, the Ways apart.
func (o *Options) Check() error {
	switch {
	case o.Owner && o.NoOwner:
		return cli.Usagef("--owner and --no-owner exclude each other")
	case o.Results == "-" && o.toStdout():
		return cli.Usagef("--results: stdout is taken by the files")
	}
	return nil
}

func (o *Options) toStdout() bool { return o.Cat || o.Tar == "-" }

// Settings gives what the extraction is to know of the options.
func (o *Options) Settings(t *cli.Term) extract.Options {
	return extract.Options{
		Owner:   (o.Owner || os.Geteuid() == 0) && !o.NoOwner,
		Special: o.Special, Streams: o.Streams, Force: o.Force, Warn: t.Warn,
	}
}

// Extract runs the extraction. What it writes to files of its own appears when it is whole.
func (o *Options) Extract(ctx context.Context, t *cli.Term, in *mapfile.Reader, x extract.Options) (s extract.Summary, err error) {
	progress := t.Progress("extracted", -1, false)
	defer progress.Done()
	x.Progress = func(_, bytes int64) { progress.Add(bytes) }
	var outputs []*cli.Output
	create := func(path string) (*cli.Output, error) {
		out, err := t.Create(path)
		outputs = append(outputs, out)
		return out, err
	}
	if o.Results != "" || !o.toStdout() && !t.People {
		out, err := create(o.Results)
		if err != nil {
			return s, err
		}
		x.Results = mapfile.NewWriter(out)
	}
	switch {
	case o.Dir != "":
		s, err = extract.ToDir(ctx, in, o.Dir, x)
	case o.Tar != "":
		out, e := create(o.Tar)
		if e != nil {
			return s, e
		}
		s, err = extract.ToTar(ctx, in, out, x)
	case o.Volume != "":
		s, err = extract.CatVolume(ctx, in, t.Stdout, o.Volume, x)
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
	if t.People && !o.toStdout() {
		progress.Done()
		_, err = fmt.Fprintf(t.Stdout, "%d files extracted, %d bytes; %d left out, %d partial, %d failed\n", s.OK, s.Bytes, s.Skipped, s.Partial, s.Failed)
	}
	return s, err
}

// Tell makes what came of the extraction count. locked says that the map was made of what is encrypted, without a key.
func (o *Options) Tell(t *cli.Term, s extract.Summary, locked bool) error {
	if s.Gaps() {
		t.Note(cli.Gaps)
	}
	if locked || s.Locked() {
		t.Note(cli.Locked)
		t.Hint("give the passphrase or key with --key-file")
	}
	if o.Cat && s.OK+s.Partial+s.Failed == 0 && s.Skipped > 0 {
		return errors.New("nothing that was chosen has content")
	}
	return nil
}
