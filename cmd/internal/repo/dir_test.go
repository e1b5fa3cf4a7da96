package repo_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/cmd/internal/repo"
	"vmkit/cmd/internal/repo/repotest"
)

func openDir(t *testing.T, path string) repo.Store {
	t.Helper()
	s, err := repo.OpenDir(path, true)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDir(t *testing.T) {
	root := t.TempDir()
	repotest.Suite(t, func(t *testing.T) repo.Store { return openDir(t, filepath.Join(root, "a", "repo")) })
}

func TestDirAbsent(t *testing.T) {
	dir := t.TempDir()
	if _, err := repo.OpenDir(filepath.Join(dir, "none"), false); !errors.Is(err, repo.ErrNotExist) {
		t.Errorf("a folder that isn't there: %v", err)
	}
	path := filepath.Join(dir, "file")
	repotest.Write(t, path, "")
	if _, err := repo.OpenDir(path, false); err == nil || !strings.Contains(err.Error(), "no folder") {
		t.Errorf("a file: %v", err)
	}
}

// TestDirLeavings: what a writer that was killed left behind goes with the next lock, and is never listed.
func TestDirLeavings(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir)
	w, err := s.Create(t.Context(), "web1/p.config/x", false)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(make([]byte, 2<<20))
	left, _ := filepath.Glob(filepath.Join(dir, "web1/p.config/.tmp-*"))
	if len(left) != 1 {
		t.Fatalf("being written: %q", left)
	}
	if st, err := os.Stat(left[0]); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	unlock, err := s.Lock(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	if left, _ = filepath.Glob(filepath.Join(dir, "web1/p.config/.tmp-*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := s.Lock(t.Context(), "web1"); err == nil || !strings.Contains(err.Error(), "process") {
		t.Errorf("who holds the lock? %v", err)
	}
}
