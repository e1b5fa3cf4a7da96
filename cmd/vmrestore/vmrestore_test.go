package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmkit/cmd/internal/cli/clitest"
	"vmkit/cmd/internal/repo"
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
		"ntfs.img":   fixtures.Image(t, "ntfs-3g", "ntfs.img.zst"),
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
	dir := filepath.Join(repository(t, "repo"), "repo")
	status, command, errs := vmrestore(t, "--repo", dir, "--boot-command", "web1@latest")
	if status != 0 {
		t.Fatal(errs)
	}
	image := filepath.Join(dir, "web1", "20261122T090000Z.disk0.qcow2")
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

// TestHidden: a point that was dropped and that others build on shows when it's asked for, and can't be restored.
func TestHidden(t *testing.T) {
	dir := filepath.Join(repository(t, "repo"), "repo")
	s, err := repo.OpenDir(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	err = repo.Prune(t.Context(), s, "web1", repo.PruneOptions{Keep: repo.Keep{Last: 1}, Waste: 1000, Tell: func(repo.Action) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, out, _ := vmrestore(t, "--repo", dir, "web1"); strings.Count(out, `"type":"point"`) != 1 {
		t.Errorf("listed are %s", out)
	}
	if _, out, _ := vmrestore(t, "--repo", dir, "web1", "--hidden"); strings.Count(out, `"type":"point"`) != 3 || !strings.Contains(out, `"hidden":true`) {
		t.Errorf("with --hidden: %s", out)
	}
	if status, _, errs := vmrestore(t, "--repo", dir, "web1@20261120T090000Z:/etc", "--cat"); status != 4 || !strings.Contains(errs, "was dropped") {
		t.Errorf("status %d: %s", status, errs)
	}
}

// TestKill: an image that is restored has its name when it is whole, or not at all.
func TestKill(t *testing.T) {
	dir := repository(t, "repo")
	whole := 0
	for i := range 10 {
		to := filepath.Join(dir, fmt.Sprintf("%d.raw", i))
		c := exec.Command("vmrestore", "--repo", filepath.Join(dir, "repo"), "--image", "web1@latest", "-o", to)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			time.AfterFunc(time.Duration(i)*15*time.Millisecond, func() { c.Process.Kill() })
		}
		c.Wait()
		b, err := os.ReadFile(to)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		first, e := os.ReadFile(filepath.Join(dir, "0.raw"))
		if whole++; err != nil || e != nil || !bytes.Equal(b, first) {
			t.Errorf("run %d leaves %d bytes that are others, %v", i, len(b), err)
		}
	}
	if whole == 0 {
		t.Error("no run was left to end")
	}
}

// TestFull: where there is no room, one line says so, and nothing is left.
func TestFull(t *testing.T) {
	dir := repository(t, "repo")
	small := filepath.Join(dir, "small")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no small file system: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(small, 0) })
	for _, args := range [][]string{{"--image", "web1@latest", "-o", small + "/x.qcow2"}, {"web1@latest:/home/user/**", "-C", small + "/out"}} {
		status, _, errs := vmrestore(t, append([]string{"--repo", filepath.Join(dir, "repo")}, args...)...)
		if status != 4 || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, "no space left") {
			t.Errorf("%q: status %d: %s", args, status, errs)
		}
		os.RemoveAll(small + "/out")
		if left, _ := os.ReadDir(small); len(left) > 0 {
			t.Errorf("%q leaves %v", args, left)
		}
	}
}
