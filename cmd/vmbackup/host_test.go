package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/cmd/internal/repo"
	"vmkit/fixtures"
	"vmkit/formats/formatstest"
	"vmkit/fsmap/mapfile"
)

// kept reads the map of a host's point, and each file that it has by its places in the image.
func kept(t *testing.T, repoDir string, p *repo.Point) (files map[string]*mapfile.File, content map[string][]byte) {
	t.Helper()
	s, err := repo.OpenDir(repoDir, false)
	if err != nil {
		t.Fatal(err)
	}
	c, err := repo.OpenDisk(t.Context(), s, p, 0, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	m, err := repo.OpenMap(t.Context(), s, p, p.Disks[0].Map)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	files, content = map[string]*mapfile.File{}, map[string][]byte{}
	for r := mapfile.NewReader(m); ; {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, content
		}
		if err != nil {
			t.Fatal(err)
		}
		x, ok := record.(*mapfile.File)
		if !ok {
			continue
		}
		f := *x
		files[f.Path] = &f
		if f.Kind != mapfile.Regular || len(f.Extents) > 0 && f.Extents[0].Kind != mapfile.Data {
			continue
		}
		b := make([]byte, f.Size)
		for _, e := range f.Extents {
			if _, err := c.ReadAt(b[e.At:e.At+e.Len], e.Disk); err != nil {
				t.Errorf("%s: %v", f.Path, err)
			}
		}
		content[f.Path] = b
	}
}

// same compares what was kept with the files themselves.
func same(t *testing.T, files map[string]*mapfile.File, content map[string][]byte, root, as string) {
	t.Helper()
	n := 0
	if err := filepath.Walk(root, func(path string, st os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		n++
		name := as + strings.TrimPrefix(path, root)
		f := files[name]
		if f == nil {
			t.Errorf("%s is not kept", path)
			return nil
		}
		if st.Mode().IsRegular() {
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, content[name]) {
				t.Errorf("%s: %d bytes are kept, which differ from %d, %v", path, len(content[name]), len(b), err)
			}
		}
		if f.Mode != int64(st.Mode().Perm()) || st.Mode().IsRegular() && f.MTime != mapfile.TimeOf(st.ModTime()) {
			t.Errorf("%s: mode %o and time %v are kept", path, f.Mode, f.MTime)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n < 20 {
		t.Errorf("only %d files", n)
	}
}

// TestHost: this host's files, again with few changes, and each point has what there was.
func TestHost(t *testing.T) {
	dir := t.TempDir()
	root, repoDir := filepath.Join(dir, "srv"), filepath.Join(dir, "srv", "repo")
	for i := range 40 {
		write(t, filepath.Join(root, fmt.Sprintf("d%d/f-%d", i%3, i)), noise(uint64(i), i*i*300))
	}
	big := filepath.Join(root, "big")
	write(t, big, noise(99, 2_000_000))
	os.Symlink("f-1", filepath.Join(root, "link"))
	os.Link(big, filepath.Join(root, "name2"))
	formatstest.Exec(t, "truncate", "-s", "64M", filepath.Join(root, "sparse"))
	write(t, filepath.Join(root, "tmp/x"), []byte("x"))
	args := []string{"--repo", repoDir, "--host", root + "=/srv", "--host-name", "base", "--exclude", "/srv/tmp/**", "--verify", "full"}
	first := backup(t, args...)
	files, content := kept(t, repoDir, first)
	if files["/srv/link"].Target != "f-1" || files["/"] == nil || files["/srv/tmp/x"] != nil || files["/srv/repo/base"] != nil {
		t.Errorf("%d files", len(files))
	}
	if a, b := files["/srv/big"], files["/srv/name2"]; a.Inode != b.Inode || a.Extents[0].Disk != b.Extents[0].Disk {
		t.Error("a hard link is kept twice")
	}
	os.RemoveAll(filepath.Join(root, "tmp"))
	content["/srv/sparse"] = nil
	os.Remove(filepath.Join(root, "sparse"))
	formatstest.Exec(t, "mv", repoDir, dir)
	same(t, files, content, root, "/srv")
	args[1] = filepath.Join(dir, "repo")

	patch(t, big, noise(5, 4096), 1_000_000)
	patch(t, big, noise(6, 90_000), 2_000_000)
	write(t, filepath.Join(root, "d1/f-4"), noise(77, 5000))
	os.Remove(filepath.Join(root, "d0/f-3"))
	os.Chmod(filepath.Join(root, "d2/f-5"), 0o600)
	write(t, filepath.Join(root, "d1/new.d/new"), noise(78, 300_000))
	p := backup(t, args...)
	if p.Parent != first.Name || p.Disks[0].Changes != "times" || p.Stored > 1_200_000 || p.Read > 3<<20 {
		t.Errorf("%+v", p)
	}
	files, content = kept(t, args[1], p)
	same(t, files, content, root, "/srv")
	formatstest.Exec(t, "qemu-img", "check", image(args[1], p, 0))

	// A file whose content changed though its times did not: reread finds it.
	st, _ := os.Stat(big)
	patch(t, big, noise(8, 4096), 0)
	os.Chtimes(big, st.ModTime(), st.ModTime())
	p = backup(t, append(args, "--reread")...)
	files, content = kept(t, args[1], p)
	same(t, files, content, root, "/srv")
	if p.Stored > 1<<20 || p.Disks[0].Changes != "reread" {
		t.Errorf("%+v", p)
	}
	p = backup(t, append(args, "--full")...)
	files, content = kept(t, args[1], p)
	same(t, files, content, root, "/srv")

	// What the point before has is damaged: nothing is built upon it.
	path := filepath.Join(args[1], "base", p.Disks[0].Sums.Name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[300] ^= 1
	write(t, path, b)
	refused(t, 4, "can't be built upon", append(args, "--incremental")...)
	p = backup(t, args...)
	files, content = kept(t, args[1], p)
	same(t, files, content, root, "/srv")
	if p.Parent != "" || !strings.Contains(p.Disks[0].Fallback, "can't be built upon") {
		t.Errorf("parent %q, fallback %q", p.Parent, p.Disks[0].Fallback)
	}
}

// TestHostGuests: a guest's image among the files is a point of its machine, or kept as it is.
func TestHostGuests(t *testing.T) {
	dir := t.TempDir()
	root, repoDir := filepath.Join(dir, "vm"), filepath.Join(dir, "repo")
	disk := fixtures.Image(t, "gpt-disk", "disk.qcow2.zst")
	write(t, filepath.Join(root, "settings"), []byte("x"))
	formatstest.Exec(t, "cp", disk, filepath.Join(root, "web7.qcow2"))
	status, points, stderr := vmbackup(t, "", "--repo", repoDir, "--host", root, "--host-name", "base")
	if status != 0 || len(points) != 2 || points[0].Machine != "web7" || points[1].Machine != "base" || points[0].Run != points[1].Run {
		t.Fatalf("status %d, %d points, %s", status, len(points), stderr)
	}
	formatstest.Exec(t, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", disk, image(repoDir, points[0], 0))
	files, _ := kept(t, repoDir, points[1])
	f := files[filepath.Join(root, "web7.qcow2")]
	want := fmt.Sprintf(`"kept_as":{"machine":"web7","point":%q,"disk":"disk0","format":"qcow2"}`, points[0].Name)
	if f == nil || !strings.Contains(string(f.Rest), want) || f.Extents[0].Kind != mapfile.Missing {
		t.Errorf("%+v, not %s", f, want)
	}
	p := backup(t, "--repo", repoDir, "--host", root, "--host-name", "exact", "--exact")
	_, content := kept(t, repoDir, p)
	if b, err := os.ReadFile(disk); err != nil || !bytes.Equal(b, content[filepath.Join(root, "web7.qcow2")]) {
		t.Error("its own bytes are not kept")
	}
	// One that a machine is writing to is a gap.
	lockImage(t, filepath.Join(root, "web7.qcow2"))
	status, points, stderr = vmbackup(t, "", "--repo", repoDir, "--host", root, "--host-name", "base")
	if status != 3 || len(points) != 1 || !strings.Contains(stderr, "web7.qcow2: content: as a guest's disk: ") || !strings.Contains(stderr, "is in use") {
		t.Errorf("status %d, %d points, %s", status, len(points), stderr)
	}
}

func TestHostUsage(t *testing.T) {
	dir := t.TempDir()
	refused(t, 2, "go with --host", "--repo", dir, "--exact", "a=b")
	refused(t, 2, "no absolute PATH", "--repo", dir, "--host", "etc")
	refused(t, 2, "--exclude", "--repo", dir, "--host", "/etc", "--exclude", "tmp")
	// What isn't there is a gap, as is what can't be read.
	status, points, stderr := vmbackup(t, "", "--repo", filepath.Join(dir, "r"), "--host", "/nowhere/at/all", "--host-name", "h")
	if status != 3 || len(points) != 1 || !strings.Contains(stderr, "no such file") {
		t.Errorf("status %d, %s", status, stderr)
	}
}

// lockImage makes an image look to be written to by a machine, as QEMU does.
func lockImage(t *testing.T, path string) {
	t.Helper()
	cmd := exec.Command("qemu-io", "-f", "qcow2", path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("qemu-io is not installed: %v", err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	fmt.Fprintln(in, "read 0 512")
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has the image open
		t.Fatal(err)
	}
}
