package clone

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// TestStale: what a killed run left goes with the next run; what a run is just making, and what is somebody else's,
// stays.
func TestStale(t *testing.T) {
	t.Chdir(t.TempDir())
	killed, err := newStage("out", "one")
	if err != nil {
		t.Fatal(err)
	}
	write(t, killed.path("disk.raw"), "half")
	killed.record.Close() // as the end of its process does
	busy, err := newStage("out", "two")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.discard()
	if _, err := newStage("out", "two"); err == nil || !strings.Contains(err.Error(), "is just making it") {
		t.Errorf("two runs make one clone: %v", err)
	}
	foreign := "out/" + tempPrefix + "0123456789abcdef"
	write(t, foreign+"/mine", "kept")
	if err := os.MkdirAll("out/"+tempPrefix+"0000000000000000", 0o755); err != nil { // killed before it had a record
		t.Fatal(err)
	}
	if err := Sweep("out"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(killed.temp); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", killed.temp, err)
	}
	for range 2 { // the second one meets what the first left
		again, err := newStage("out", "one")
		if err != nil {
			t.Fatal(err)
		}
		again.record.Close()
	}
	if err := errors.Join(Sweep("out"), Sweep("nowhere")); err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Base(foreign), filepath.Base(busy.temp)}
	slices.Sort(want)
	if got := left(t, "out"); !slices.Equal(got, want) {
		t.Errorf("in the folder: %q, want %q", got, want)
	}
}

func TestNeverOverwrites(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "d.raw", "d")
	write(t, "out/old/mine", "x")
	m := machine(t, "m", "d.raw|disk|raw")
	if _, _, err := tryClone(t, m, Options{Name: "old"}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an existing folder: %v", err)
	}
	// It appears while the clone is being built.
	c, err := Start(t.Context(), m, &Options{Dir: "out", Name: "new"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("out/new", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Finish(t.Context()); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a folder that appeared: %v", err)
	}
	if got := left(t, "out"); !slices.Equal(got, []string{"new", "old"}) || len(left(t, "out/new")) > 0 {
		t.Errorf("in the folder: %q", got)
	}
}

func TestInterrupted(t *testing.T) {
	t.Chdir(t.TempDir())
	noise(t, "d.raw", 8<<20, 1)
	ctx, cancel := context.WithCancel(t.Context())
	o := &Options{Dir: "out", Workers: 1, Progress: func(string, int64) (func(int64), func()) {
		return func(int64) { cancel() }, func() {}
	}}
	if _, err := Start(ctx, machine(t, "m", "d.raw|disk|raw"), o); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	if got := left(t, "out"); len(got) > 0 {
		t.Errorf("left behind: %q", got)
	}
}

// TestFull: too little room is told before anything is copied, and a disk that gets full leaves nothing.
func TestFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a small file system")
	}
	t.Chdir(t.TempDir())
	if err := os.Mkdir("out", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("none", "out", "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("no tmpfs can be mounted: %v", err)
	}
	defer unix.Unmount("out", unix.MNT_DETACH)
	write(t, "d.raw", strings.Repeat("data", 1<<20))
	_, _, err := tryClone(t, machine(t, "m", "d.raw|disk|raw"), Options{})
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "2 MiB free, and 4 MiB") {
		t.Errorf("too little room: %v", err)
	}
	p, err := newPair("d.raw", "out/full")
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	if err := copyAll(t.Context(), []*pair{p}, 2, func(int64) {}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full disk: %v", err)
	}
	if err := os.Remove("out/full"); err != nil {
		t.Fatal(err)
	}
	if got := left(t, "out"); len(got) > 0 {
		t.Errorf("left behind: %q", got)
	}
}

// TestBlockDevice: a disk on a block device becomes a file, and zeros become holes.
func TestBlockDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a loop device")
	}
	t.Chdir(t.TempDir())
	noise(t, "d.raw", 16<<20, 1)
	out, err := exec.Command("losetup", "--show", "-f", "d.raw").CombinedOutput()
	device := strings.TrimSpace(string(out))
	if err != nil {
		t.Skipf("no loop device: %v: %s", err, out)
	}
	defer exec.Command("losetup", "-d", device).Run()
	r := mustClone(t, machine(t, "m", device+"|disk|raw"), Options{})
	if out, err := exec.Command("cmp", "d.raw", r.Images[0]).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	var st unix.Stat_t
	if err := unix.Stat(r.Images[0], &st); err != nil || st.Blocks*512 > 2<<20 {
		t.Errorf("the clone takes %d bytes, %v", st.Blocks*512, err)
	}
}

// reflinks mounts a file system that clones by reflink, and goes into it; the test is skipped where none can be had.
func reflinks(t *testing.T, mkfs ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a file system that clones by reflink")
	}
	dir := t.TempDir()
	image, mount := filepath.Join(dir, "fs"), filepath.Join(dir, "mnt")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 320<<20), os.Mkdir(mount, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{append(mkfs, image), {"mount", "-o", "loop", image, mount}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%q: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mount).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	t.Chdir(mount)
	t.Cleanup(func() { os.Chdir("/") }) // or it can't be unmounted
}

func TestReflink(t *testing.T) {
	for _, mkfs := range [][]string{{"mkfs.xfs", "-q", "-m", "reflink=1"}, {"mkfs.btrfs", "-q"}} {
		t.Run(mkfs[0], func(t *testing.T) {
			reflinks(t, mkfs...)
			noise(t, "base.raw", 32<<20, 1)
			qemuImg(t, "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "web1.qcow2")
			scribble(t, "qcow2", "web1.qcow2", 1)
			write(t, "web1.xml", "<other/>")
			before := sums(t, ".")
			m := machine(t, "web1", "web1.qcow2|disk|qcow2", "base.raw|backing", "web1.xml|config")
			m.VM.ReflinkOnly = true
			for _, o := range []Options{{Name: "new"}, {Method: Reflink}} {
				r := mustClone(t, m, o)
				for _, f := range r.Files {
					if f.Method != "reflink" {
						t.Errorf("%s: %s", f.Path, f.Method)
					}
				}
				sameLayers(t, "web1.qcow2", r.Images[0], 2)
			}
			if after := sums(t, "."); !strings.HasSuffix(after, before[strings.Index(before, "web1.qcow2"):]) {
				t.Errorf("the machine's files were changed:\n%s\n%s", before, after)
			}
			if r := mustClone(t, machine(t, "web1", "base.raw|disk|raw"), Options{Name: "copied", Method: Copy}); r.Files[0].Method != "copy" {
				t.Errorf("a copy was asked for: %s", r.Files[0].Method)
			}
		})
	}
}

// TestNoReflink: where a machine stands still nothing is copied, and where only reflinks were asked for neither.
func TestNoReflink(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "d.raw", "d")
	probe, err := newPair("d.raw", "probe")
	if err != nil {
		t.Fatal(err)
	}
	defer probe.close()
	if probe.reflink() == nil {
		t.Skip("this file system clones by reflink")
	}
	m := machine(t, "m", "d.raw|disk|raw")
	if _, _, err := tryClone(t, m, Options{Method: Reflink}); err == nil || !strings.Contains(err.Error(), "by reflink") {
		t.Errorf("only reflinks: %v", err)
	}
	m.VM.ReflinkOnly = true
	for _, method := range []Method{Auto, Copy} {
		if _, _, err := tryClone(t, m, Options{Method: method}); err == nil || !strings.Contains(err.Error(), "standing still") {
			t.Errorf("a machine that stands still: %v", err)
		}
	}
	if got := left(t, "out"); len(got) > 0 {
		t.Errorf("left behind: %q", got)
	}
}

func TestPrune(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "d.raw", "d")
	at := func(hour int, name string) *mapfile.Clone {
		m := machine(t, name, "d.raw|disk|raw")
		when := instant.Add(time.Duration(hour) * time.Hour)
		m.VM.FrozenAt = &when
		return mustClone(t, wrap(t, m.VM), Options{})
	}
	var clones []*mapfile.Clone
	for hour := range 6 {
		clones = append(clones, at(hour, "m"))
	}
	other := at(0, "m2")
	write(t, clones[0].Folder+"/mine", "x")
	clones[1].Registered = "virsh"
	if err := Save(clones[1], nil); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(clones[2].Folder, "out/renamed"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("m-20261122T090000Z", "out/link"); err != nil {
		t.Fatal(err)
	}
	removed, err := Prune(clones[4], 0)
	if !slices.Equal(removed, []string{clones[3].Folder}) {
		t.Errorf("removed %q", removed)
	}
	for _, want := range []string{"m-20261122T090000Z stays: mine in it is not vmclone's", "m-20261122T100000Z stays: it is registered (virsh)"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	want := []string{"link", filepath.Base(clones[0].Folder), filepath.Base(clones[1].Folder), filepath.Base(clones[4].Folder), filepath.Base(clones[5].Folder), filepath.Base(other.Folder), "renamed"}
	if got := left(t, "out"); !slices.Equal(got, want) {
		t.Errorf("there are %q, want %q", got, want)
	}
	// In use, the newest of those that may stay, and then free.
	clones = append(clones, at(7, "m"))
	f, err := os.OpenFile(clones[5].Images[0], os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 101, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		t.Fatal(err)
	}
	if removed, err := Prune(clones[6], 0); err == nil || !strings.Contains(err.Error(), "T140000Z stays") || !slices.Equal(removed, []string{clones[4].Folder}) {
		t.Errorf("in use: removed %q, %v", removed, err)
	}
	f.Close()
	if removed, _ := Prune(clones[6], 3); len(removed) > 0 {
		t.Errorf("three may stay: removed %q", removed)
	}
	if removed, _ := Prune(clones[6], 0); !slices.Equal(removed, []string{clones[5].Folder}) {
		t.Errorf("free again: removed %q", removed)
	}
}

// TestConcurrent: runs in one folder don't take one another's clones for left over.
func TestConcurrent(t *testing.T) {
	t.Chdir(t.TempDir())
	g := new(errgroup.Group)
	for worker := range 4 {
		g.Go(func() error {
			for i := range 25 {
				s, err := newStage("out", fmt.Sprintf("%d-%d", worker, i))
				if err != nil {
					return err
				}
				if err := os.WriteFile(s.path("disk"), []byte("x"), 0o600); err != nil {
					return err
				}
				if i%2 == 0 {
					s.discard()
				} else if err := s.commit([]byte("record")); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Error(err)
	}
	if got := left(t, "out"); len(got) != 4*12 {
		t.Errorf("%d clones: %q", len(got), got)
	}
}
