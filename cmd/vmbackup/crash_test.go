package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/formats/formatstest"
)

// root computes the root of a disk that nothing is left out of.
func root(t *testing.T, r io.ReaderAt, size int64) string {
	t.Helper()
	tree, b := repo.NewTree(), make([]byte, 64<<10)
	for at := int64(0); at < size; at += int64(len(b)) {
		clear(b)
		n := min(int64(len(b)), size-at)
		if k, err := r.ReadAt(b[:n], at); int64(k) < n {
			t.Fatalf("byte %d: %v", at+int64(k), err)
		}
		tree.Add(sha256.Sum256(b), 1)
	}
	return tree.Root()
}

// done tells whether a run ended well. A disk without a file system is a gap in its map.
func done(err error) bool {
	var exit *exec.ExitError
	return err == nil || errors.As(err, &exit) && exit.ExitCode() == int(cli.Gaps)
}

// kills gives how many times TestKilled kills: VMKIT_KILLS, or a few.
func kills() int {
	if n, err := strconv.Atoi(os.Getenv("VMKIT_KILLS")); err == nil {
		return n
	}
	return 12
}

// TestKilled: killed at any moment, vmbackup leaves each point that it committed as it was, and no other.
func TestKilled(t *testing.T) {
	dir := t.TempDir()
	img, repoDir := filepath.Join(dir, "disk.img"), filepath.Join(dir, "repo")
	disk := noise(1, 12<<20)
	write(t, img, disk)
	r := rand.New(rand.NewPCG(4, 2))
	made := map[string]string{} // roots of the points that were committed
	took := time.Second
	lost := 0
	for i := range kills() {
		for range 1 + r.IntN(30) {
			copy(disk[r.IntN(len(disk)):], noise(r.Uint64(), 1+r.IntN(100_000)))
		}
		write(t, img, disk)
		now := root(t, bytes.NewReader(disk), int64(len(disk)))
		args := []string{"--repo", repoDir, "--all-blocks", "--sample", "10%", "--chain", "8", "m=" + img}
		if i%5 == 4 {
			args = append(args, "--full")
		}
		cmd := exec.Command("vmbackup", args...)
		start := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		alive := make(chan error, 1)
		go func() { alive <- cmd.Wait() }()
		var err error
		wait := time.Duration(r.Int64N(int64(took) * 6 / 5))
		if i == 0 { // how long does it take?
			wait = time.Hour
		}
		select {
		case err = <-alive:
		case <-time.After(wait):
			cmd.Process.Signal(syscall.SIGKILL)
			err = <-alive
		}
		if done(err) {
			took = time.Since(start)
		}
		check(t, repoDir, made, now, done(err))
		if !done(err) {
			lost++
			took += took / 10 // some have to come to their end
		}
	}
	t.Logf("killed %d of %d times, %d points", lost, kills(), len(made))
	// What is left over goes with the next run, after which nothing is there but points.
	vmbackup(t, "", "--repo", repoDir, "--all-blocks", "m="+img)
	s, err := repo.OpenDir(repoDir, false)
	if err != nil {
		t.Fatal(err)
	}
	points, err := repo.Points(t.Context(), s, "m")
	if err != nil {
		t.Fatal(err)
	}
	if left, err := repo.Unfinished(t.Context(), s, "m", points); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	if left, _ := filepath.Glob(filepath.Join(repoDir, "m", ".tmp-*")); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	for _, p := range points {
		formatstest.Exec(t, "qemu-img", "check", image(repoDir, p, 0))
	}
}

// check finds all points that were committed before, with what they had, and perhaps a new one with what the disk has
// now, which has to be there when whole is set.
func check(t *testing.T, repoDir string, made map[string]string, now string, whole bool) {
	t.Helper()
	s, err := repo.OpenDir(repoDir, true)
	if err != nil {
		t.Fatal(err)
	}
	points, err := repo.Points(t.Context(), s, "m")
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	fresh := false
	for _, p := range points {
		want, old := made[p.Name]
		if !old {
			want, fresh = now, true
			made[p.Name] = now
		}
		found[p.Name] = true
		c, err := repo.OpenDisk(t.Context(), s, p, 0, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := root(t, c.Disk, c.Size()); got != want || p.Disks[0].Root != want {
			t.Errorf("point %s has root %s, and says %s; it was %s", p.Name, got, p.Disks[0].Root, want)
		}
		c.Close()
	}
	for name := range made {
		if !found[name] {
			t.Errorf("point %s is lost", name)
		}
	}
	if whole && !fresh {
		t.Error("a run that ended well made no point")
	}
}

// maxMemory is what a backup of a disk of any size stays below.
const maxMemory = 256 << 20

// allocated makes an image of a disk of size bytes whose tables are all allocated, one cluster after another, as
// qemu-img's preallocation=metadata does, which takes it hours; the clusters are a hole of the file.
func allocated(t *testing.T, path string, size, cluster int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	be := binary.BigEndian
	per := cluster / 8 // entries in a table
	tables := size / cluster / per
	l2 := cluster + (8*tables+cluster-1)&^(cluster-1)
	data := l2 + tables*cluster
	b := []byte("QFI\xfb")
	for _, n := range []uint32{3, 0, 0, 0, uint32(bits.TrailingZeros64(uint64(cluster)))} {
		b = be.AppendUint32(b, n)
	}
	b = be.AppendUint32(be.AppendUint64(b, uint64(size)), 0)
	b = be.AppendUint64(be.AppendUint32(b, uint32(tables)), uint64(cluster))
	b = append(b, make([]byte, 100-len(b))...)
	b = be.AppendUint32(b, 104)
	w := bufio.NewWriterSize(f, 1<<20)
	w.Write(append(b, make([]byte, cluster-int64(len(b)))...))
	entries := func(n, at int64) {
		for i := range n {
			w.Write(be.AppendUint64(nil, uint64(at+i*cluster)|1<<63))
		}
	}
	entries(tables, l2)
	w.Write(make([]byte, l2-cluster-8*tables))
	entries(tables*per, data)
	if err := errors.Join(w.Flush(), f.Truncate(data+size)); err != nil {
		t.Skipf("no file of %d bytes: %v", data+size, err)
	}
}

// TestMemory: 15 TiB (ext4's files end before 16) whose tables are all allocated. With VMKIT_HUGE set they are those of
// clusters of 64 KiB, 2 GiB long.
func TestMemory(t *testing.T) {
	const size = 15 << 40
	cluster := int64(2 << 20)
	if os.Getenv("VMKIT_HUGE") != "" {
		cluster = 64 << 10
	}
	dir := t.TempDir()
	img, repoDir := filepath.Join(dir, "huge.qcow2"), filepath.Join(dir, "repo")
	allocated(t, img, size, cluster)
	for i := range 2 {
		f, err := os.OpenFile(img, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt(noise(uint64(i), 1<<20), size/4*int64(i+1))
		f.Close()
		cmd := exec.Command("vmbackup", "--repo", repoDir, "--cluster", fmt.Sprint(cluster), "huge="+img)
		if out, err := cmd.CombinedOutput(); !done(err) {
			t.Fatalf("%v: %s", err, out)
		}
		if ru, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); !ok || ru.Maxrss<<10 > maxMemory {
			t.Errorf("it took %d KiB", ru.Maxrss)
		} else {
			t.Logf("%d MiB, %v", ru.Maxrss>>10, cmd.ProcessState.UserTime())
		}
	}
}
