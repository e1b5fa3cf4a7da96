package main

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/cli/clitest"
	"vmkit/cmd/internal/repo/repotest"
	"vmkit/extract"
	"vmkit/fixtures"
	"vmkit/fsmap/mapfile"
)

func TestMain(m *testing.M) {
	clitest.Main(m, map[string]func(){"vmverify": main, "mkmap": clitest.MakeMap, "copyout": copyOut, "mkpoint": repotest.MakePoint})
}

// copyOut extracts the map on stdin into a folder, for scripts.
func copyOut() {
	c := cli.New("copyout", "")
	c.Run = func(ctx context.Context, t *cli.Term, args []string) error {
		_, err := extract.ToDir(ctx, mapfile.NewReader(t.Stdin), args[0], extract.Options{Results: mapfile.NewWriter(t.Stdout)})
		return err
	}
	os.Exit(c.Exec(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

func TestScripts(t *testing.T) {
	disk := fixtures.Dir(t, "gpt-disk")
	clitest.Scripts(t, "testdata", map[string]string{
		"disk.qcow2": fixtures.Image(t, "gpt-disk", "disk.qcow2.zst"),
		"now.sums":   filepath.Join(disk, "now.sums"),
	})
}

func TestDocs(t *testing.T) { clitest.Docs(t, command(), "vmverify.1") }
