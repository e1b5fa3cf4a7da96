package xfs

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/fixtures"
	"vmkit/fsmap"
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
	out := run(t, "python3", filepath.Join(fixtures.Dir(t, "xfs-oracle"), "list.py"), mnt, "--times")
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

// TestImages compares images given on the command line.
func TestImages(t *testing.T) {
	if *images == "" {
		t.Skip("no -xfs.images")
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

func compareKernel(t *testing.T, img string) {
	t.Helper()
	fs, r := openImage(t, img, fsmap.Options{Journal: fsmap.JournalReplay})
	for _, err := range fs.Info().Problems {
		t.Error("problem:", err)
	}
	t.Log("journal", fs.Info().Journal, fs.Info().Notes)
	l := list(fs, r, true)
	for _, p := range l.problems {
		t.Error("problem:", p)
	}
	compare(t, l.lines, kernelList(t, img))
	t.Log(len(l.lines), "names")
}
