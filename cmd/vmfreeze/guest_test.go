package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"vmkit/cmd/internal/boot/boottest"
	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/extract"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// console reads what the guest tells: the number of the last record that it had on its disk.
type console struct {
	mu   sync.Mutex
	text []byte
	last int
}

var synced = regexp.MustCompile(`synced (\d+)\r?\n`)

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text = append(c.text, b...)
	for {
		m := synced.FindSubmatchIndex(c.text)
		if m == nil {
			return len(b), nil
		}
		c.last, _ = strconv.Atoi(string(c.text[m[2]:m[3]]))
		c.text = c.text[m[1]:]
	}
}

func (c *console) synced() (last int, rest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, string(c.text)
}

// await waits until the guest has written record n.
func (c *console) await(t *testing.T, n int) {
	t.Helper()
	for begun := time.Now(); time.Since(begun) < 4*time.Minute; time.Sleep(5 * time.Millisecond) {
		if last, _ := c.synced(); last >= n {
			return
		}
	}
	last, rest := c.synced()
	t.Fatalf("the guest stays at record %d: %s", last, rest)
}

// guest is a Linux guest that writes records without end.
type guest struct {
	*lab
	*console
	args []string // but for its disk and sockets
}

// bootGuest boots the guest. Everything that it needs is made or found here.
func bootGuest(t *testing.T) *guest {
	t.Helper()
	if testing.Short() {
		t.Skip("it boots a guest")
	}
	qemutest.Need(t, "qemu-ga", "cpio", "depmod", "mke2fs", "e2fsck", "dumpe2fs", "go")
	kernel := boottest.Kernel(t)
	dir := memoryDir(t)
	initrd := makeInitrd(t, kernel)
	raw := filepath.Join(dir, "guest.raw")
	tool(t, "mke2fs", "-q", "-t", "ext4", "-F", raw, "192M")
	qemutest.Img(t, dir, "convert", "-O", "qcow2", raw, "guest.qcow2")
	remove(t, raw)
	g := &guest{console: &console{}, lab: &lab{t: t, journal: memoryDir(t), name: "guest-" + filepath.Base(dir)}}
	g.args = []string{"-M", "q35", "-cpu", "max", "-accel", "tcg,thread=multi", "-smp", "1", "-m", "160", "-nodefaults", "-display", "none",
		"-no-reboot", "-name", g.name, "-serial", "stdio", "-kernel", kernel, "-initrd", initrd,
		"-append", "console=ttyS0 quiet loglevel=1 panic=-1 random.trust_cpu=on"}
	g.QEMU = g.start2(t, g.console, dir, "guest.qcow2")
	g.await(t, 50)
	return g
}

// start2 starts a machine like the guest's, with its disk in a folder.
func (g *guest) start2(t *testing.T, out *console, dir, disk string, more ...string) *qemutest.QEMU {
	args := append(append([]string{}, g.args...), "-qmp", "unix:qmp,server=on,wait=off", "-qmp", "unix:control,server=on,wait=off",
		"-chardev", "socket,id=ga,path=agent,server=on,wait=off", "-device", "virtio-serial-pci",
		"-device", "virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
		"-drive", "if=none,id=hd,format=qcow2,cache=writeback,file="+disk, "-device", "virtio-blk-pci,drive=hd")
	return qemutest.Custom(t, out, dir, "qmp", "control", append(args, more...)...)
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// unpackers read what distributions compress modules by.
var unpackers = map[string]string{".zst": "zstd", ".xz": "xz", ".gz": "gzip"}

// makeInitrd packs the guest's program, its agent, and the modules that it needs.
func makeInitrd(t *testing.T, kernel string) string {
	t.Helper()
	root := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(root, "init"), "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	copyTo := func(from, to string) {
		b, err := os.ReadFile(from)
		if err == nil {
			os.MkdirAll(filepath.Dir(filepath.Join(root, to)), 0o755)
			err = os.WriteFile(filepath.Join(root, to), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ga, err := exec.LookPath("qemu-ga")
	if err != nil {
		t.Fatal(err)
	}
	copyTo(ga, "qemu-ga")
	for line := range strings.Lines(tool(t, "ldd", ga)) {
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				copyTo(word, word)
			}
		}
	}
	// Modules in the order in which they can be loaded.
	version := strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
	base := filepath.Join(filepath.Dir(kernel), "..")
	modules := filepath.Join(base, "lib/modules", version)
	if _, err := os.Stat(filepath.Join(modules, "modules.dep")); err != nil {
		tool(t, "depmod", "-b", base, version)
	}
	dep, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	needs := map[string][]string{}
	for line := range strings.Lines(string(dep)) {
		if path, rest, ok := strings.Cut(line, ":"); ok {
			name, _, _ := strings.Cut(filepath.Base(path), ".ko")
			needs[name] = append([]string{path}, strings.Fields(rest)...)
		}
	}
	var list []string
	for _, name := range []string{"virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "ext4"} {
		paths := needs[name] // none: it is part of the kernel
		for _, path := range slices.Backward(paths) {
			if slices.Contains(list, "/"+path) {
				continue
			}
			from := filepath.Join(modules, path)
			if unpack := unpackers[filepath.Ext(path)]; unpack != "" {
				plain := filepath.Join(t.TempDir(), "module")
				tool(t, "sh", "-c", unpack+` -dc "$1" > "$2"`, "sh", from, plain)
				from = plain
			}
			copyTo(from, path)
			list = append(list, "/"+path)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "modules"), []byte(strings.Join(list, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	pack := exec.Command("sh", "-c", "find . | cpio -o -H newc --quiet > "+initrd)
	pack.Dir = root
	if out, err := pack.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	return initrd
}

// TestGuest freezes a guest that writes without end, in every mode, and holds each clone against what the guest had
// said that it has on its disk: all of that is there, the file system is sound once it was recovered, and nothing was
// added to the files while they were held.
func TestGuest(t *testing.T) {
	t.Parallel()
	g := bootGuest(t)
	for _, args := range [][]string{
		{"-m", "snapshot"}, {"-m", "pause"}, {"-m", "suspend"}, {"-m", "snapshot", "--quiesce"}, {"-m", "pause", "--quiesce"},
	} {
		t.Run(strings.Join(args[1:], " "), func(t *testing.T) {
			g.t = t
			snapshot, quiesce := args[1] == "snapshot", slices.Contains(args, "--quiesce")
			before, _ := g.synced()
			r := g.lab.start("", append(append([]string{"--allow-long-pause"}, args...), g.target())...)
			vms, _ := r.records()
			if len(vms) != 1 || vms[0].Quiesced != quiesce {
				t.Fatalf("%+v: %s", vms, r.stderr.String())
			}
			dir := memoryDir(t)
			clone := cloneFiles(t, dir, vms[0].Files)
			if snapshot {
				last, _ := g.synced()
				g.await(t, last+20) // it runs on
			}
			if again := cloneFiles(t, memoryDir(t), vms[0].Files); !same(t, clone, again) {
				t.Error("the files changed while they were held")
			}
			after, _ := g.synced()
			if status := r.done(); status != 0 {
				t.Fatalf("status %d: %s", status, r.stderr.String())
			}
			if rel := g.released(); rel.Thawed != quiesce || rel.Resumed == snapshot || rel.Committed != snapshot {
				t.Errorf("%+v", rel)
			} else {
				t.Logf("pause %v, file systems frozen %v", time.Duration(rel.PauseNS), time.Duration(rel.FrozenNS))
			}
			g.clean()
			g.await(t, after+20)
			last := checkClone(t, clone, quiesce)
			if last < before || last > after+1 {
				t.Errorf("the clone has %d records; before the freeze there were %d, at its end %d", last, before, after)
			}
			if args[1] == "suspend" {
				g.wake(t, dir, clone, filepath.Base(vms[0].Files[len(vms[0].Files)-1].Path), last)
			}
		})
	}
	t.Run("overlay full", func(t *testing.T) {
		g.t = t
		r := g.lab.start("", "-m", "snapshot", "--work", mountTmpfs(t, "1m"), g.target())
		r.records()
		for g.Status() == "running" {
			time.Sleep(10 * time.Millisecond)
		}
		if s := g.Status(); s != "io-error" {
			t.Fatalf("the machine is %s", s)
		}
		if status := r.done(); status != 0 || g.Status() != "running" {
			t.Fatalf("status %d, the machine is %s: %s", status, g.Status(), r.stderr.String())
		}
		last, _ := g.synced()
		g.await(t, last+20)
	})
	g.t = t
	g.Quit()
	qemutest.Img(t, g.Dir, "check", "-q", "guest.qcow2")
	checkClone(t, filepath.Join(g.Dir, "guest.qcow2"), false)
}

// wake starts the clone of a suspended machine from its memory: it goes on where it was.
func (g *guest) wake(t *testing.T, dir, disk, memory string, last int) {
	t.Helper()
	c := &console{}
	q := g.start2(t, c, dir, filepath.Base(disk), "-incoming", "exec:cat "+memory)
	for range 500 {
		if q.Status() != "inmigrate" {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	q.Do("cont", nil)
	c.await(t, last+5)
	q.Quit()
	checkClone(t, disk, false)
}

// cloneFiles copies the files of the machine, and gives its disk's copy.
func cloneFiles(t *testing.T, dir string, files []mapfile.VMFile) (disk string) {
	t.Helper()
	for _, f := range files {
		to := filepath.Join(dir, filepath.Base(f.Path))
		tool(t, "cp", "--sparse=always", f.Path, to)
		if f.Role == mapfile.RoleDisk {
			disk = to
		}
	}
	return disk
}

func same(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	return err == nil && bytes.Equal(x, y)
}

// checkClone maps the clone and reads the log out of it, and has e2fsck judge a copy. It gives the number of the last
// record.
func checkClone(t *testing.T, disk string, clean bool) int {
	t.Helper()
	log := catFile(t, disk, "/log")
	last := -1
	for line := range bytes.Lines(log) {
		want := fmt.Sprintf("%08d %x\n", last+1, sha256.Sum256(fmt.Append(nil, last+1)))
		if string(line) != want {
			// What was being written when the machine stood still may be there in part, at the end.
			if !strings.HasPrefix(want, string(line)) {
				t.Fatalf("record %d is %q", last+1, line)
			}
			break
		}
		last++
	}
	raw := filepath.Join(memoryDir(t), "copy.raw")
	qemutest.Img(t, "", "convert", "-O", "raw", disk, raw)
	features := tool(t, "dumpe2fs", "-h", raw)
	if dirty := strings.Contains(features, "needs_recovery"); clean && dirty {
		t.Error("the file systems were frozen, and yet the clone needs recovery")
	}
	// Exit status 1: the journal was replayed. 4 would be errors left.
	replay := exec.Command("e2fsck", "-p", raw)
	if out, err := replay.CombinedOutput(); err != nil && replay.ProcessState.ExitCode() != 1 {
		t.Fatalf("e2fsck -p: %v: %s", err, out)
	}
	tool(t, "e2fsck", "-fn", raw)
	// The kernel's way of recovery gives the same log as the map's.
	if replayed := catFile(t, raw, "/log"); !bytes.Equal(log, replayed) {
		t.Errorf("the log has %d bytes in the map, and %d after e2fsck", len(log), len(replayed))
	}
	return last
}

// catFile reads one file out of an image.
func catFile(t *testing.T, image, path string) []byte {
	t.Helper()
	term := &cli.Term{Name: "vmfreeze", Stderr: io.Discard}
	in := cli.Input{Journal: string(fsmap.JournalReplay)}
	images, err := in.Open(term, []string{image})
	if err != nil {
		t.Fatal(err)
	}
	defer images.Close()
	patterns, err := mapfile.ParsePatterns([]string{path})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	m := images.Reader(ctx, fsmap.Config{Patterns: patterns, Problem: func(_ *mapfile.Names, p *mapfile.Problem) { t.Errorf("%+v", p) }})
	var out bytes.Buffer
	sum, err := extract.Cat(ctx, m.Reader, &out, extract.Options{Patterns: patterns})
	if _, closeErr := m.Close(); err == nil {
		err = closeErr
	}
	if err != nil || sum.Gaps() {
		t.Fatal(errors.Join(err, fmt.Errorf("%+v", sum)))
	}
	return out.Bytes()
}
