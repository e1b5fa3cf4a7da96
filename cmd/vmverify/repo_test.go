package main

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/cmd/internal/repo/repotest"
	"vmkit/fixtures"
)

// TestRepoFlips turns over bits of every file of a repository: each is found.
func TestRepoFlips(t *testing.T) {
	dir := t.TempDir()
	repotest.Write(t, filepath.Join(dir, "web1.xml"), "<domain/>\n")
	disk := fixtures.Image(t, "gpt-disk", "disk.qcow2.zst")
	for _, at := range []string{"2026-11-20T09:00:00Z", "2026-11-21T09:00:00Z"} {
		c := exec.Command("mkpoint", "--config", "web1.xml", "repo", "web1", at, disk)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("mkpoint: %v: %s", err, out)
		}
	}
	root := filepath.Join(dir, "repo")
	check := func() (status int, findings string) {
		t.Helper()
		var out, errs bytes.Buffer
		status = run(t.Context(), []string{"--repo", root}, strings.NewReader(""), &out, &errs)
		return status, out.String() + errs.String()
	}
	if status, findings := check(); status != 0 {
		t.Fatalf("undamaged: status %d: %s", status, findings)
	}
	r := rand.New(rand.NewPCG(4, 2))
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			return err
		}
		old, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for range 10 {
			b, at := bytes.Clone(old), r.IntN(len(old))
			b[at] ^= 1 << r.IntN(8)
			repotest.Write(t, path, string(b))
			if status, findings := check(); status != 1 || !strings.Contains(findings, strings.TrimSuffix(e.Name(), ".json")) {
				t.Errorf("%s, byte %d: status %d: %s", path, at, status, findings)
			}
		}
		repotest.Write(t, path, string(old))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if status, findings := check(); status != 0 {
		t.Errorf("undamaged again: status %d: %s", status, findings)
	}
}
