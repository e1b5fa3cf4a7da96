package xfs

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"vmkit/fixtures"
	"vmkit/fsmap"
	"vmkit/fsmap/fsmaptest"
)

// The oracle of these tests is the kernel: it makes the images, and its mount of a copy tells what they hold.

var images = flag.String("xfs.images", "", "compare these images (a glob) with the kernel's mount of them")

// needKernel skips without root or the tools.
func needKernel(t *testing.T, tools ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	for _, x := range append(tools, "mount", "umount", "python3", "mkfs.xfs") {
		if _, err := exec.LookPath(x); err != nil {
			t.Skipf("%s is not here", x)
		}
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// kernelList mounts a copy of an image and lists it.
func kernelList(t *testing.T, image string) []string {
	t.Helper()
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "copy.img"), filepath.Join(dir, "mnt")
	run(t, "cp", "--sparse=always", image, img)
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "xfs", "-o", "loop,noatime,nouuid", img, mnt).CombinedOutput(); err != nil {
		t.Skipf("the kernel doesn't mount it: %v: %s", err, out)
	}
	defer run(t, "umount", mnt)
	return mountedList(t, mnt)
}

func mountedList(t *testing.T, mnt string) []string {
	t.Helper()
	out := run(t, "python3", filepath.Join(fixtures.Dir(t, "xfs-oracle"), "list.py"), mnt, "--times")
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

// TestImages compares images given on the command line.
func TestImages(t *testing.T) {
	if *images == "" {
		return // nothing was asked for
	}
	needKernel(t)
	list1, err := filepath.Glob(*images)
	if err != nil || len(list1) == 0 {
		t.Fatal("no such images", err)
	}
	for _, img := range list1 {
		t.Run(filepath.Base(img), func(t *testing.T) { compareKernel(t, img) })
	}
}

// storedList reads what list.py said of an image, if that lies beside it: of one that another kernel mounted.
func storedList(img string) []string {
	b, err := os.ReadFile(strings.TrimSuffix(img, ".img") + ".tsv")
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func compareKernel(t *testing.T, img string) {
	t.Helper()
	fs, r := openImage(t, img, fsmap.Options{Journal: fsmap.JournalReplay})
	for _, err := range fs.Info().Problems {
		t.Error("problem:", err)
	}
	f := fs.(*fsys)
	t.Log("journal", fs.Info().Journal, fs.Info().Notes)
	if l, err := openLog(r, f.geometry, f.size); err == nil {
		if st, err := l.find(); err == nil {
			t.Logf("log of %d blocks, work from %d to %d; %d inodes with open intents, %d with a new owner", l.n, st.tail, st.head, len(f.patches), len(f.reowned))
		}
	}
	l := fsmaptest.List(fs, true, fsmap.Member{R: r})
	for _, p := range l.Problems {
		t.Error("problem:", p)
	}
	want := storedList(img)
	if want == nil {
		want = kernelList(t, img)
	}
	fsmaptest.CompareLists(t, l.Lines, want)
	t.Log(len(l.Lines), "names")
}

var rounds = flag.Int("xfs.rounds", 0, "rounds of TestDirtyLog and TestOpenIntents with each shape; 0: a short one with few")

// shapes are ways of making a file system, in mkfs.xfs's words; bits are incompatible feature bits that the mkfs.xfs at
// hand may not know.
var shapes = []struct {
	name, opts string
	bits       uint32
}{
	{"default", "", 0},
	{"1k", "-b size=1024 -i nrext64=1", 0},
	{"64k", "-b size=65536", 0},
	{"bigdirs", "-b size=1024 -n size=16384 -m reflink=0,finobt=0", 0},
	{"4ksectors", "-s size=4096 -n size=65536 -i size=2048", 0},
	{"rmapbt", "-m rmapbt=1,bigtime=0,inobtcount=0 -i sparse=0", 0},
	{"stripe", "-l su=256k -d su=64k,sw=2", 0},
	{"exchange", "-b size=2048 -m rmapbt=1", incompatExchRange},
	{"parents", "-l size=8m", incompatExchRange | incompatParent},
}

// TestDirtyLog makes file systems, stops them at a random moment of random work, and compares what is read with what
// the kernel shows after its own recovery.
func TestDirtyLog(t *testing.T) {
	needKernel(t, "xfs_io", "xfs_db")
	chosen, n := shapes, *rounds
	if n == 0 {
		chosen, n = shapes[:2], 1
	}
	for _, s := range chosen {
		for i := range n {
			t.Run(fmt.Sprintf("%s-%d", s.name, i), func(t *testing.T) {
				seed := rand.Int64N(1 << 40)
				img := dirtyImage(t, s.opts, s.bits, seed)
				if t.Failed() || t.Skipped() {
					return
				}
				compareKernel(t, img)
				if t.Failed() {
					t.Log("seed", seed)
					if dir := os.Getenv("XFS_KEEP"); dir != "" {
						run(t, "cp", "--sparse=always", img, filepath.Join(dir, fmt.Sprintf("%s-%d.img", s.name, seed)))
					}
				}
			})
		}
	}
}

// dirtyImage makes an image whose log holds work.
func dirtyImage(t *testing.T, opts string, bits uint32, seed int64) string {
	t.Helper()
	r := rand.New(rand.NewPCG(uint64(seed), 1))
	img, mnt := mountNew(t, opts, bits)
	churn := exec.Command("python3", filepath.Join(fixtures.Dir(t, "xfs-oracle"), "churn.py"), mnt, strconv.FormatInt(seed, 10), strconv.Itoa(20000))
	churn.Stderr = os.Stderr
	if err := churn.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- churn.Wait() }()
	select {
	case <-done:
	case <-time.After(time.Duration(500+r.IntN(500+min(*rounds, 1)*5500)) * time.Millisecond):
	}
	down := "shutdown"
	if r.IntN(2) == 0 {
		down = "shutdown -f" // the log is written out first
	}
	run(t, "xfs_io", "-x", "-c", down, mnt)
	select {
	case <-done:
	case <-time.After(time.Minute):
		churn.Process.Kill()
		<-done
	}
	run(t, "umount", mnt)
	return img
}

// mountNew makes a file system and mounts it.
func mountNew(t *testing.T, opts string, bits uint32) (img, mnt string) {
	t.Helper()
	dir := t.TempDir()
	img, mnt = filepath.Join(dir, "x.img"), filepath.Join(dir, "mnt")
	args := append([]string{"-q", "-f"}, append(strings.Fields(opts), img)...)
	// Small logs, which wrap soon, are called unsupported by newer versions and are all that older ones know.
	run(t, "truncate", "-s", "160m", img)
	if exec.Command("mkfs.xfs", append([]string{"--unsupported"}, args...)...).Run() != nil {
		run(t, "truncate", "-s", "320m", img)
		run(t, "mkfs.xfs", args...)
	}
	if bits != 0 {
		setIncompat(t, img, bits)
	}
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "xfs", "-o", "loop", img, mnt).CombinedOutput(); err != nil {
		t.Skipf("the kernel doesn't mount it: %v: %s", err, out)
	}
	return img, mnt
}

// setIncompat sets feature bits in the first superblock.
func setIncompat(t *testing.T, img string, bits uint32) {
	t.Helper()
	writeIncompat(t, img, func(x uint32) uint32 { return x | bits })
}

func writeIncompat(t *testing.T, img string, change func(uint32) uint32) {
	t.Helper()
	h, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	b := make([]byte, sbLen)
	if _, err := h.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	b = make([]byte, be.Uint16(b[102:]))
	if _, err := h.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	be.PutUint32(b[sbIncompatOff:], change(be.Uint32(b[sbIncompatOff:])))
	binary.LittleEndian.PutUint32(b[sbCRCOff:], checksum(b, sbCRCOff))
	if _, err := h.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
}

// TestOpenIntents stops file systems in the middle of changes of many transactions, until logs announce what was not
// done; the kernel does it after its recovery, and so does the driver.
func TestOpenIntents(t *testing.T) {
	needKernel(t)
	kinds := []struct {
		name, kind, flags string
	}{{"clone", "clone", "0"}, {"exchange", "exchange", "0"}, {"exchange-to-eof", "exchange", "1"}, {"exchange-written", "exchange", "8"}}
	extents := "3000"
	if *rounds == 0 {
		kinds, extents = kinds[:2], "500"
	}
	for _, x := range kinds {
		t.Run(x.name, func(t *testing.T) {
			bits := uint32(0)
			if x.kind == "exchange" {
				bits = incompatExchRange
			}
			found, want, tries := 0, *rounds, 24
			if want == 0 {
				want, tries = 1, 1
			}
			for try := 0; try < tries && found < want; try++ {
				img, mnt := mountNew(t, "-b size=1024", bits)
				wait := strconv.FormatFloat(0.003+rand.Float64()*0.03, 'f', 4, 64)
				out := run(t, "python3", filepath.Join(fixtures.Dir(t, "xfs-oracle"), "intents.py"), mnt, x.kind, extents, wait, x.flags)
				run(t, "umount", mnt)
				if strings.Contains(out, "not supported") {
					t.Skip("the kernel doesn't know this change")
				}
				fs, _ := openImage(t, img, fsmap.Options{})
				if len(fs.(*fsys).patches) > 0 {
					found++
					compareKernel(t, img)
				}
				os.Remove(img)
			}
			if found == 0 {
				t.Log("no log was caught with an open intent") // the stored case xfs-intents has one
			}
		})
	}
}

// TestOwnerChange exchanges the block maps of two files the old way: the log tells recovery to rewrite their owners.
func TestOwnerChange(t *testing.T) {
	needKernel(t, "xfs_io")
	img, mnt := mountNew(t, "-b size=1024 -m rmapbt=0,reflink=0", 0)
	a, b := filepath.Join(mnt, "a"), filepath.Join(mnt, "b")
	for i, p := range []string{a, b} {
		h, err := os.Create(p)
		if err != nil {
			t.Fatal(err)
		}
		for k := range 400 {
			if _, err := h.WriteAt([]byte(strings.Repeat(strconv.Itoa(i), 1024)), int64(k)*4096); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "sync", "-f", mnt)
	run(t, "umount", mnt)
	run(t, "mount", "-t", "xfs", "-o", "loop,noatime", img, mnt)
	out, err := exec.Command("xfs_io", "-c", "swapext "+b, a).CombinedOutput()
	// Linux 6.18 can't recover such a log itself: it verifies the inode before it gives it its checksum. So this compares
	// with what was there before the end.
	want := mountedList(t, mnt)
	run(t, "xfs_io", "-x", "-c", "shutdown -f", mnt)
	run(t, "umount", mnt)
	if err != nil || strings.TrimSpace(string(out)) != "" {
		t.Skipf("no swapext: %s", out)
	}
	fs, r := openImage(t, img, fsmap.Options{})
	if n := len(fs.(*fsys).reowned); n != 2 {
		t.Error("inodes with a new owner:", n)
	}
	l := fsmaptest.List(fs, true, fsmap.Member{R: r})
	for _, p := range l.Problems {
		t.Error("problem:", p)
	}
	fsmaptest.CompareLists(t, l.Lines, want)
}

func openFile(t *testing.T, path string) *os.File {
	t.Helper()
	h, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return h
}
