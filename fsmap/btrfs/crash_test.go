package btrfs

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmkit/fixtures"
	"vmkit/fsmap"
	"vmkit/fsmap/fsmaptest"
)

var (
	rounds = flag.Int("btrfs.rounds", 1, "rounds of TestCrash with each shape")
	images = flag.String("btrfs.images", "", "compare these images (a glob) with the kernel's mount of them")
	keep   = flag.String("btrfs.keep", "", "a folder where TestCrash leaves the images that it failed with")
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestCrash works at random on a mounted file system, with many an fsync, and takes copies of its device between two
// system calls: what a machine would find that stopped there. The map of each copy, log tree replayed, is compared with
// the kernel's mount of it.
func TestCrash(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	for _, x := range []string{"mount", "umount", "python3", "mkfs.btrfs", "btrfs"} {
		if _, err := exec.LookPath(x); err != nil {
			t.Skipf("%s is not here", x)
		}
	}
	for name, options := range map[string][]string{"default": nil, "holes": {"-O", "^no-holes", "-n", "4096"}} {
		for i := range *rounds {
			t.Run(fmt.Sprintf("%s-%d", name, i), func(t *testing.T) { crash(t, name, options, rand.Int64N(1<<40)) })
		}
	}
}

// copies is how many are taken of a file system.
const copies = 3

func crash(t *testing.T, name string, options []string, seed int64) {
	r := rand.New(rand.NewPCG(uint64(seed), 1))
	dir := t.TempDir()
	img, mnt := filepath.Join(dir, "live.img"), filepath.Join(dir, "mnt")
	run(t, "truncate", "-s", "400m", img)
	run(t, "mkfs.btrfs", append(append([]string{"-q"}, options...), img)...)
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	mount := "loop,commit=300"
	if r.IntN(2) == 0 {
		mount += ",compress-force=zstd"
	}
	if out, err := exec.Command("mount", "-t", "btrfs", "-o", mount, img, mnt).CombinedOutput(); err != nil {
		t.Skipf("the kernel doesn't mount it: %v: %s", err, out)
	}
	run(t, "btrfs", "subvolume", "create", filepath.Join(mnt, "t1")) // the second worker's: it has a log tree of its own
	churn := exec.Command("python3", filepath.Join(fixtures.Dir(t, "xfs-oracle"), "churn.py"), mnt, strconv.FormatInt(seed, 10), "1000000", "2", "0.4")
	churn.Stderr = os.Stderr
	n := copies
	if testing.Short() {
		n = 1
	}
	var stills []string
	func() {
		if err := churn.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			churn.Process.Kill()
			churn.Wait()
			run(t, "umount", mnt)
		}()
		for i := range n {
			time.Sleep(time.Duration(100+r.IntN(400)) * time.Millisecond)
			stop(t, churn.Process)
			still := filepath.Join(dir, fmt.Sprintf("%s-%d-%d.img", name, seed, i))
			run(t, "cp", "--sparse=always", img, still)
			stills = append(stills, still)
			if err := churn.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
		}
	}()
	replayed := 0
	for _, still := range stills {
		t.Run(filepath.Base(still), func(t *testing.T) {
			if compareKernel(t, still, mnt) == "replayed" {
				replayed++
			}
			if t.Failed() && *keep != "" {
				run(t, "cp", "--sparse=always", still, *keep)
			}
		})
	}
	t.Logf("%d of %d copies had a log tree", replayed, len(stills))
}

// TestImages compares images given on the command line.
func TestImages(t *testing.T) {
	if *images == "" {
		return // nothing was asked for
	}
	list, err := filepath.Glob(*images)
	if err != nil || len(list) == 0 {
		t.Fatal("no such images", err)
	}
	for _, img := range list {
		t.Run(filepath.Base(img), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), filepath.Base(img))
			run(t, "cp", "--sparse=always", img, path)
			compareKernel(t, path, t.TempDir())
		})
	}
}

// stop stops a process: all of its threads are out of their system calls then.
func stop(t *testing.T, p *os.Process) {
	t.Helper()
	if err := p.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Pid))
		if err != nil || len(tasks) == 0 {
			t.Fatal("the process is gone")
		}
		stopped := 0
		for _, task := range tasks {
			b, _ := os.ReadFile(task)
			if i := strings.LastIndexByte(string(b), ')'); i > 0 && strings.HasPrefix(string(b[i:]), ") T") {
				stopped++
			}
		}
		if stopped == len(tasks) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the process doesn't stop")
}

// compareKernel compares an image's map with the kernel's mount of a copy, and tells the state of the log.
func compareKernel(t *testing.T, img, mnt string) (journal string) {
	t.Helper()
	m := member(t, img)
	fs, err := openSet([]fsmap.Member{m}, fsmap.Options{Journal: fsmap.JournalReplay})
	if err != nil {
		t.Error(err)
		return ""
	}
	scratch := img + ".copy"
	run(t, "cp", "--sparse=always", img, scratch)
	defer os.Remove(scratch)
	start := time.Now().UnixNano()
	if out, err := exec.Command("mount", "-t", "btrfs", "-o", "loop,noatime", scratch, mnt).CombinedOutput(); err != nil {
		t.Logf("the kernel doesn't mount it, so there is nothing to compare with: %v: %s", err, out)
		return ""
	}
	defer run(t, "umount", mnt)
	for _, err := range fs.Info().Problems {
		t.Error("problem:", err)
	}
	got := fsmaptest.List(fs, true, m)
	for _, p := range got.Problems {
		t.Error("problem:", p)
	}
	out := run(t, "python3", filepath.Join(fixtures.Dir(t, "xfs-oracle"), "list.py"), mnt, "--times")
	want := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	for _, lines := range [][]string{got.Lines, want} {
		for i, s := range lines { // the kernel tells logical addresses, the map places on the device
			lines[i] = s[:strings.LastIndexByte(s, '\t')]
		}
	}
	replayTimes(got.Lines, want, start)
	fsmaptest.CompareLists(t, got.Lines, want)
	return fs.Info().Journal
}

// replayTimes gives the files of want, whose ctime the kernel's replay set when it took a link from them, the one of got.
func replayTimes(got, want []string, start int64) {
	const ctime = 9
	stored := map[string]string{}
	for _, s := range got {
		c := strings.Split(s, "\t")
		stored[c[0]] = c[ctime]
	}
	for i, s := range want {
		c := strings.Split(s, "\t")
		if n, err := strconv.ParseInt(c[ctime], 10, 64); err == nil && n >= start-1e9 && stored[c[0]] != "" {
			c[ctime] = stored[c[0]]
			want[i] = strings.Join(c, "\t")
		}
	}
}
