package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/cmd/internal/cli/clitest"
	"vmkit/cmd/internal/repo/repotest"
	"vmkit/fixtures"
)

func TestMain(m *testing.M) {
	clitest.Main(m, map[string]func(){"vmrestore": main, "mkpoint": repotest.MakePoint})
}

// needTools skips the test where a disk can't be changed.
func needTools(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"debugfs", "qemu-img"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s to change a disk with", tool)
		}
	}
}

func TestScripts(t *testing.T) {
	needTools(t)
	clitest.Scripts(t, "testdata", map[string]string{
		"disk.qcow2": fixtures.Image(t, "gpt-disk", "disk.qcow2.zst"),
		"now.sums":   filepath.Join(fixtures.Dir(t, "gpt-disk"), "now.sums"),
		"mkrepo.sh":  "testdata/mkrepo.sh",
	})
}

func TestDocs(t *testing.T) { clitest.Docs(t, command(), "vmrestore.1") }

// repository makes the repository of mkrepo.sh at a URL, or in a folder below the one that it gives.
func repository(t *testing.T, url string) (dir string) {
	t.Helper()
	needTools(t)
	dir = t.TempDir()
	script, err := filepath.Abs("testdata/mkrepo.sh")
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.ReadFile(fixtures.Image(t, "gpt-disk", "disk.qcow2.zst"))
	if err != nil {
		t.Fatal(err)
	}
	repotest.Write(t, filepath.Join(dir, "disk.qcow2"), string(disk))
	c := exec.Command("sh", script, url)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("mkrepo.sh: %v: %s", err, out)
	}
	return dir
}

// vmrestore runs the command in process.
func vmrestore(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(t.Context(), args, strings.NewReader(""), &out, &errs)
	return status, out.String(), errs.String()
}
