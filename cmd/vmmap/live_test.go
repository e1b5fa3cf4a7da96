package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestLive maps a mounted file system, lays the map over the image, and sees it refused by another.
func TestLive(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may mount")
	}
	dir := t.TempDir()
	images := []string{filepath.Join(dir, "one.img"), filepath.Join(dir, "two.img")}
	for i, image := range images {
		if err := os.WriteFile(image, nil, 0o600); err != nil || os.Truncate(image, 16<<20) != nil {
			t.Fatal(err)
		}
		args := []string{"-q", "-F", "-U", fmt.Sprintf("00000000-0000-0000-0000-00000000000%d", i+1), image}
		if out, err := exec.Command("mke2fs", args...).CombinedOutput(); err != nil {
			t.Skipf("mke2fs makes no file system: %v: %s", err, out)
		}
	}
	at := filepath.Join(dir, "at")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-o", "loop", images[0], at).CombinedOutput(); err != nil {
		t.Skipf("mount: %v: %s", err, out)
	}
	defer exec.Command("umount", at).Run()
	if err := os.MkdirAll(filepath.Join(at, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc/one", "two"} {
		if err := os.WriteFile(filepath.Join(at, name), bytes.Repeat([]byte(name), 1000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	call := func(status int, stdin string, args ...string) (string, string) {
		t.Helper()
		var out, errs bytes.Buffer
		if got := run(t.Context(), args, strings.NewReader(stdin), &out, &errs); got != status {
			t.Fatalf("vmmap %q ended with status %d, not %d: %s", args, got, status, errs.String())
		}
		return out.String(), errs.String()
	}
	whole, _ := call(0, "", "--live", "--hash", at)
	part, _ := call(0, "", "--live", filepath.Join(at, "etc"))
	bad, _ := call(0, "", "--live", "--volumes", at)
	if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
		t.Fatalf("umount: %v: %s", err, out)
	}
	if strings.Contains(whole, `"off":`) || strings.Count(whole, `"sha256"`) != 2 || !strings.Contains(whole, `"files":[],"identity":`) {
		t.Errorf("not with hashes and without host files: %s", whole)
	}
	if !strings.Contains(part, `"path":"/etc/one"`) || strings.Contains(part, `"path":"/two"`) {
		t.Errorf("not what lies below the path: %s", part)
	}
	if strings.Contains(bad, `"type":"file"`) || !strings.Contains(bad, `"fs":"ext2"`) {
		t.Errorf("not the volumes alone: %s", bad)
	}
	got, _ := call(0, whole, "--rebase", images[1], "--rebase", images[0])
	if strings.Count(got, `"off":`) != 2 || !strings.Contains(got, `"path":`+fmt.Sprintf("%q", images[0])) {
		t.Errorf("not completed: %s", got)
	}
	_, said := call(4, whole, "--rebase", images[1])
	if !regexp.MustCompile(`^vmmap: error: image loop\d+: two is another disk: its partitions, or the ids of what they hold, are others than the map's\n$`).MatchString(said) {
		t.Errorf("not refused in one line: %s", said)
	}
}
