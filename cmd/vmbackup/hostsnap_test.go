package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/fixtures"
	"vmkit/formats/formatstest"
)

// still is a tree whose backup can be stopped at the guest's image b.qcow2, for which the key is read from a FIFO: of what
// comes before it in the tree reflink copies are made by then, and nothing was read.
type still struct {
	mnt, root, repo, fifo string
}

func newStill(t *testing.T, mkfs string) *still {
	t.Helper()
	s := &still{mnt: formatstest.Mount(t, mkfs, "400M"), repo: filepath.Join(t.TempDir(), "repo"), fifo: filepath.Join(t.TempDir(), "key")}
	s.root = filepath.Join(s.mnt, "srv")
	for i := range 30 {
		write(t, filepath.Join(s.root, fmt.Sprintf("a%d/f-%d", i%3, i)), noise(uint64(i), 1+i*i*300))
	}
	write(t, filepath.Join(s.root, "a"), noise(70, 1_000_000))
	write(t, filepath.Join(s.root, "z"), noise(71, 1_000_000))
	os.Link(filepath.Join(s.root, "a"), filepath.Join(s.root, "a.too"))
	formatstest.Exec(t, "cp", fixtures.Image(t, "gpt-disk", "disk.qcow2.zst"), filepath.Join(s.root, "b.qcow2"))
	if mkfs == "mkfs.btrfs" { // a file of btrfs that is overwritten in place
		nocow := filepath.Join(s.root, "a0", "nocow")
		write(t, nocow, nil)
		formatstest.Exec(t, "chattr", "+C", nocow)
		write(t, nocow, noise(72, 200_000))
	}
	if err := unix.Mkfifo(s.fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// args are those of a backup of the tree.
func (s *still) args(more ...string) []string {
	return append([]string{"--repo", s.repo, "--host", s.root + "=/srv", "--host-name", "base", "--verify", "full"}, more...)
}

// stop waits until a backup asks for the key, does something, and lets it go on.
func (s *still) stop(t *testing.T, do func()) {
	t.Helper()
	key, err := os.OpenFile(s.fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	do()
	key.Close()
}

// left gives the folders of snapshots.
func (s *still) left() []string {
	list, _ := filepath.Glob(filepath.Join(s.mnt, ".vmkit-snapshot-*"))
	return list
}

// TestHostSnapshot: what changes after the snapshot, or the copy, is not in the point, and in the next one it is.
func TestHostSnapshot(t *testing.T) {
	for _, tt := range []struct {
		mkfs, how, said string
		fixed           []string // what is kept as it was before the change
	}{
		{"mkfs.btrfs", "auto", "btrfs", []string{"a", "z"}},
		{"mkfs.btrfs", "btrfs", "btrfs", []string{"a", "z"}},
		{"mkfs.btrfs", "reflink", "reflink", []string{"a"}},
		{"mkfs.xfs", "reflink", "reflink", []string{"a"}},
		{"mkfs.btrfs", "none", "none", nil},
		{"mkfs.xfs", "auto", "none", nil},
	} {
		t.Run(tt.mkfs+"-"+tt.how, func(t *testing.T) {
			s := newStill(t, tt.mkfs)
			// Files whose time is that of the backup are read once more by the next one.
			time.Sleep(50 * time.Millisecond)
			old := map[string][]byte{}
			for _, name := range []string{"a", "z"} {
				old[name], _ = os.ReadFile(filepath.Join(s.root, name))
			}
			before := time.Now()
			type result struct {
				points []*repo.Point
				status int
				stderr string
			}
			ended := make(chan result)
			go func() {
				status, points, stderr := vmbackup(t, "", s.args("--host-snapshot", tt.how, "--key-file", s.fifo)...)
				ended <- result{points, status, stderr}
			}()
			var at time.Time
			s.stop(t, func() {
				at = time.Now()
				if n := len(s.left()); (n == 1) != (tt.said != "none") {
					t.Errorf("%d folders", n)
				}
				for name := range old {
					patch(t, filepath.Join(s.root, name), []byte("changed"), 500_000)
				}
			})
			r := <-ended
			want := cli.Done
			if tt.said == "none" {
				want = cli.Gaps // "a" changed
			}
			if r.status != int(want) || len(r.points) != 2 {
				t.Fatalf("status %d, %d points, %s", r.status, len(r.points), r.stderr)
			}
			p := r.points[1]
			if x := p.Disks[0].Taken; len(x) != 1 || x[0].Path != "/srv" || x[0].How != tt.said || p.Disks[0].OneInstant != (tt.said == "btrfs") {
				t.Errorf("%+v", p.Disks[0])
			}
			if p.At.Before(before) || p.At.After(at) || tt.said == "btrfs" && !r.points[0].At.Equal(p.At) {
				t.Errorf("%v, not between %v and %v; the guest %v", p.At, before, at, r.points[0].At)
			}
			_, content := kept(t, s.repo, p)
			for _, name := range tt.fixed {
				if !bytes.Equal(content["/srv/"+name], old[name]) {
					t.Errorf("%s shows the change", name)
				}
			}
			if len(s.left()) > 0 {
				t.Errorf("left: %q", s.left())
			}

			// From one snapshot to the next, only what changed is read, or what was changed meanwhile.
			time.Sleep(50 * time.Millisecond)
			patch(t, filepath.Join(s.root, "a0/f-27"), noise(9, 5000), 70_000)
			next := backup(t, s.args("--host-snapshot", tt.how, "--exclude", "/srv/b.qcow2")...)
			if next.Parent != p.Name || next.Disks[0].Changes != "times" || next.Read > 3<<20 || next.Stored > 700_000 {
				t.Errorf("%+v", next)
			}
			files, content := kept(t, s.repo, next)
			os.Remove(filepath.Join(s.root, "b.qcow2"))
			same(t, files, content, s.root, "/srv")
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(s.root, "a"), &st); err != nil || files["/srv/a"].Inode != st.Ino || files["/srv/a"].CTime.Sec != st.Ctim.Sec {
				t.Errorf("%v: %+v", err, files["/srv/a"])
			}
			if a, b := files["/srv/a"], files["/srv/a.too"]; a.Extents[0].Disk != b.Extents[0].Disk {
				t.Error("a hard link is kept twice")
			}
			// And where nothing changed, nothing is read.
			if last := backup(t, s.args("--host-snapshot", tt.how, "--sample", "0%", "--verify", "none")...); last.Read > 1<<20 {
				t.Errorf("%+v", last)
			}
		})
	}
}

// TestHostSnapshotKilled: what a run that was killed left is removed by the next one, and that of one that runs is not.
func TestHostSnapshotKilled(t *testing.T) {
	for _, tt := range []struct{ mkfs, how string }{{"mkfs.btrfs", "btrfs"}, {"mkfs.xfs", "reflink"}} {
		t.Run(tt.mkfs, func(t *testing.T) {
			s := newStill(t, tt.mkfs)
			args := s.args("--host-snapshot", tt.how)
			cmd := exec.Command("vmbackup", append(args, "--key-file", s.fifo)...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			s.stop(t, func() {
				// Another run meanwhile, of another machine.
				args[1], args[5] = s.repo+"2", "other"
				status, _, stderr := vmbackup(t, "", append(args, "--exclude", "/srv/b.qcow2")...)
				if status != 0 || len(s.left()) != 1 {
					t.Errorf("status %d, %s; %q", status, stderr, s.left())
				}
				cmd.Process.Signal(syscall.SIGKILL)
				cmd.Wait()
			})
			if len(s.left()) != 1 {
				t.Fatalf("left: %q", s.left())
			}
			// Somebody else's folder is none of our business, whatever its name.
			foreign := filepath.Join(s.mnt, ".vmkit-snapshot-1-x")
			if err := os.Mkdir(foreign, 0o755); err != nil {
				t.Fatal(err)
			}
			status, _, stderr := vmbackup(t, "", s.args("--exclude", "/srv/b.qcow2")...)
			if left := s.left(); status != 0 || len(left) != 1 || left[0] != foreign || !strings.Contains(stderr, "an interrupted run left, was removed") {
				t.Errorf("status %d, %s; left: %q", status, stderr, left)
			}
			p := backup(t, "--repo", s.repo, "--host", s.mnt+"=/mnt", "--host-name", "all", "--host-snapshot", tt.how, "--exclude", "/mnt/srv/b.qcow2")
			files, _ := kept(t, s.repo, p)
			for name := range files {
				if files["/mnt/srv/a"] == nil || strings.Contains(name, "snapshot") {
					t.Errorf("%s is kept", name)
				}
			}
		})
	}
}

// TestHostSnapshotInterrupted: an interrupted run removes its snapshot, as does one that fails.
func TestHostSnapshotInterrupted(t *testing.T) {
	s := newStill(t, "mkfs.btrfs")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan int)
	go func() {
		ended <- run(ctx, s.args("--key-file", s.fifo), strings.NewReader(""), io.Discard, io.Discard)
	}()
	s.stop(t, cancel)
	if status := <-ended; status != int(cli.Interrupted) || len(s.left()) > 0 {
		t.Errorf("status %d, left: %q", status, s.left())
	}
	refused(t, 4, "no point to build upon", s.args("--incremental", "--exclude", "/srv/b.qcow2")...)
	if len(s.left()) > 0 {
		t.Errorf("left: %q", s.left())
	}
}

// TestHostSnapshotNested: a subvolume in the snapshot is a gap, unless it is given, or left out. The repository is left
// out in the snapshot too.
func TestHostSnapshotNested(t *testing.T) {
	s := newStill(t, "mkfs.btrfs")
	formatstest.Tool(t, "btrfs")
	os.Remove(filepath.Join(s.root, "b.qcow2"))
	nested := filepath.Join(s.root, "nested")
	formatstest.Exec(t, "btrfs", "subvolume", "create", nested)
	write(t, filepath.Join(nested, "in"), []byte("in"))
	s.repo = filepath.Join(s.root, "repo")
	for _, how := range []string{"btrfs", "none"} {
		args := s.args("--host-snapshot", how)
		status, points, stderr := vmbackup(t, "", args...)
		if status != 3 || len(points) != 1 || !strings.Contains(stderr, "/srv/nested: directory: it is a btrfs subvolume of its own") {
			t.Errorf("%s: status %d, %s", how, status, stderr)
		}
		backup(t, append(args, "--exclude", "/srv/nested")...)
		p := backup(t, append(args, "--host", nested+"=/srv/nested")...)
		files, content := kept(t, s.repo, p)
		if string(content["/srv/nested/in"]) != "in" || files["/srv/repo/base"] != nil || files["/srv/z"] == nil || p.Disks[0].OneInstant || len(p.Disks[0].Taken) != 2 {
			t.Errorf("%s: %q, %v, %+v", how, content["/srv/nested/in"], files["/srv/repo/base"], p.Disks[0])
		}
	}
	// Two folders of one subvolume are of one instant.
	p := backup(t, "--repo", s.repo, "--host", filepath.Join(s.root, "a0"), "--host", filepath.Join(s.root, "a1"), "--host-name", "two")
	if x := p.Disks[0]; len(x.Taken) != 2 || !x.OneInstant || !x.Taken[0].At.Equal(p.At) {
		t.Errorf("%+v", x)
	}
	if len(s.left()) > 0 {
		t.Errorf("left: %q", s.left())
	}
}

// TestHostSnapshotGuest: an image that somebody writes to is a point of what it was, with a warning, and its backing file
// is found where it lies.
func TestHostSnapshotGuest(t *testing.T) {
	s := newStill(t, "mkfs.btrfs")
	disk := filepath.Join(s.root, "b.qcow2")
	top := filepath.Join(s.root, "top.qcow2")
	formatstest.Exec(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", disk, "-F", "qcow2", top)
	lockImage(t, top)
	status, points, stderr := vmbackup(t, "", s.args()...)
	if status != 0 || len(points) != 3 || !strings.Contains(stderr, "what a loss of power would have left") {
		t.Fatalf("status %d, %d points, %s", status, len(points), stderr)
	}
	formatstest.Exec(t, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", disk, image(s.repo, points[1], 0))
}

// TestHostSnapshotRefused: what can't be had is an error, and no point is made of files that don't stand still.
func TestHostSnapshotRefused(t *testing.T) {
	dir := t.TempDir()
	refused(t, 2, "auto, btrfs, reflink or none", "--repo", dir, "--host", "/etc", "--host-snapshot", "lvm")
	refused(t, 2, "go with --host", "--repo", dir, "--host-snapshot", "none", "a=b")
	s := newStill(t, "mkfs.ext4")
	refused(t, 4, "--host-snapshot btrfs: "+s.root+": it lies on no btrfs", s.args("--host-snapshot", "btrfs")...)
	refused(t, 4, "has no reflinks", s.args("--host-snapshot", "reflink")...)
	if len(s.left()) > 0 {
		t.Errorf("left: %q", s.left())
	}

	// Where the top of a subvolume can't be seen, files are read as they stand, but not where a snapshot was asked for.
	s = newStill(t, "mkfs.btrfs")
	bind := t.TempDir()
	formatstest.Exec(t, "mount", "--bind", s.root, bind)
	t.Cleanup(func() { exec.Command("umount", bind).Run() })
	s.root = bind
	refused(t, 4, "only a folder of its subvolume is mounted", s.args("--host-snapshot", "btrfs")...)
	status, points, stderr := vmbackup(t, "", s.args("--exclude", "/srv/b.qcow2")...)
	if status != 0 || len(points) != 1 || points[0].Disks[0].Taken[0].How != "none" || !strings.Contains(stderr, "is read as it stands: only a folder") {
		t.Errorf("status %d, %d points, %s", status, len(points), stderr)
	}
}
