package clitest

import (
	"context"
	"io"
	"os"

	"vmkit/cmd/internal/cli"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// MakeMap is a command for scripts of commands that read maps: it writes the map of the images that it's given, with
// the extents of volumes and the sums of files.
func MakeMap() {
	c := cli.New("mkmap", "")
	var in cli.Input
	in.Register(c.Flags)
	c.Run = func(ctx context.Context, t *cli.Term, args []string) error {
		images, err := in.Open(t, args)
		if err != nil {
			return err
		}
		defer images.Close()
		all := func(string) bool { return true }
		_, err = images.Map(ctx, fsmap.Config{VolumeExtents: all, Hash: true, Problem: t.Problem}, mapfile.NewWriter(t.Stdout))
		return err
	}
	os.Exit(c.Exec(context.Background(), os.Args[1:], io.Reader(os.Stdin), os.Stdout, os.Stderr))
}
