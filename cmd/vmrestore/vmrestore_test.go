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
	clitest.Main(m, map[string]func(){"vmrestore": main, "mkpoint": repotest.MakePoint, "virsh": virsh})
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

// TestBoot runs the command that --boot-command prints, without a guest to run: QEMU opens the images, and writes to none.
func TestBoot(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Skip("no qemu-system-x86_64 to boot with")
	}
	repo := filepath.Join(repository(t, "repo"), "repo")
	status, command, errs := vmrestore(t, "--repo", repo, "--boot-command", "web1@latest")
	if status != 0 {
		t.Fatal(errs)
	}
	image := filepath.Join(repo, "web1", "20261122T090000Z.disk0.qcow2")
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("sh", "-c", strings.TrimSpace(command)+" -S -display none -monitor stdio")
	c.Stdin = strings.NewReader("info block\nquit\n")
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "backing file") && !strings.Contains(string(out), "Backing file") {
		t.Errorf("%v: %s", err, out)
	}
	if after, err := os.ReadFile(image); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the image was written to: %v", err)
	}
}
