package repotest

import (
	"context"
	"os"
	"time"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// MakePoint is a command for scripts of commands that work on repositories: mkpoint REPO MACHINE TIME IMAGE... makes a
// point that shows the images at that time. --config FILE takes a file of the machine's configuration along;
// --all-blocks leaves out nothing.
func MakePoint() {
	c := cli.New("mkpoint", "")
	var in cli.Input
	in.Register(c.Flags)
	all := c.Flags.Bool("all-blocks", false, "")
	config := c.Flags.String("config", "", "")
	c.Run = func(ctx context.Context, t *cli.Term, args []string) error {
		s, err := repo.OpenStore(ctx, args[0], true)
		if err != nil {
			return err
		}
		defer s.Close()
		at, err := time.Parse(time.RFC3339, args[2])
		if err != nil {
			return err
		}
		images, err := in.Open(t, args[3:])
		if err != nil {
			return err
		}
		defer images.Close()
		m := &repo.Machine{Name: args[1], Images: images.List, Build: images.Map, At: at, Config: fsmap.Config{Problem: t.Problem}}
		if len(args) == 4 {
			m.Disks = []string{"vda"}
		}
		if *config != "" {
			m.Files = []repo.ConfigFile{{Path: *config, Role: mapfile.RoleConfig}}
		}
		_, err = repo.Backup(ctx, s, m, repo.Options{AllBlocks: *all, Sample: 0.01, Verify: "none", Compression: "zstd", Tool: "test", Warn: t.Warn})
		return err
	}
	os.Exit(c.Exec(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
