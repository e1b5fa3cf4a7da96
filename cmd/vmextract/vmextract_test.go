package main

import (
	"path/filepath"
	"testing"

	"vmkit/cmd/internal/cli/clitest"
	"vmkit/fixtures"
)

func TestMain(m *testing.M) {
	clitest.Main(m, map[string]func(){"vmextract": main, "mkmap": clitest.MakeMap})
}

func TestScripts(t *testing.T) {
	disk := fixtures.Dir(t, "gpt-disk")
	clitest.Scripts(t, "testdata", map[string]string{
		"disk.qcow2": fixtures.Image(t, "gpt-disk", "disk.qcow2.zst"),
		"ntfs.img":   fixtures.Image(t, "ntfs-3g", "ntfs.img.zst"),
		"now.sums":   filepath.Join(disk, "now.sums"),
		"disk.sums":  filepath.Join(disk, "disk.sums"),
	})
}

func TestDocs(t *testing.T) { clitest.Docs(t, command(), "vmextract.1") }
