package boottest

import (
	"bytes"
	"crypto/sha256"
	"fmt"
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

	"vmkit/cmd/internal/hypervisor/qemutest"
)

// Console reads what the guest tells: the number of the last record that it had on its disk.
type Console struct {
	mu   sync.Mutex
	text []byte
	last int
}

var synced = regexp.MustCompile(`synced (\d+)\r?\n`)

// Write implements io.Writer.
func (c *Console) Write(b []byte) (int, error) {
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

// Synced gives the number of the last record, and what the guest said since.
func (c *Console) Synced() (last int, rest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last, string(c.text)
}

// Await waits until the guest has written record n.
func (c *Console) Await(t testing.TB, n int) {
	t.Helper()
	for begun := time.Now(); time.Since(begun) < 4*time.Minute; time.Sleep(5 * time.Millisecond) {
		if last, _ := c.Synced(); last >= n {
			return
		}
	}
	last, rest := c.Synced()
	t.Fatalf("the guest stays at record %d: %s", last, rest)
}

// LastRecord checks the guest's log, the last line of which may be there in part, since the machine stood still while it
// was written, and gives the number of the last whole one, or -1.
func LastRecord(t testing.TB, log []byte) int {
	t.Helper()
	last := -1
	for line := range bytes.Lines(log) {
		want := fmt.Sprintf("%08d %x\n", last+1, sha256.Sum256(fmt.Append(nil, last+1)))
		if string(line) != want {
			if !strings.HasPrefix(want, string(line)) {
				t.Fatalf("record %d is %q", last+1, line)
			}
			break
		}
		last++
	}
	return last
}

// unpackers read what distributions compress modules by.
var unpackers = map[string]string{".zst": "zstd", ".xz": "xz", ".gz": "gzip"}

// Initrd packs the first file system of a guest: its program, which is in the folder guest, the QEMU guest agent, the
// drivers of fileSystems with all that they need, and more programs, which are linked statically, into its root.
func Initrd(t testing.TB, kernel string, fileSystems []string, programs ...string) string {
	t.Helper()
	qemutest.Need(t, "qemu-ga", "cpio", "depmod", "go")
	root := t.TempDir()
	build := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(root, "init"), "vmkit/cmd/internal/boot/boottest/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	add := func(from, to string) {
		to = filepath.Join(root, to)
		b, err := os.ReadFile(from)
		if err == nil {
			os.MkdirAll(filepath.Dir(to), 0o755)
			err = os.WriteFile(to, b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range programs {
		add(p, filepath.Base(p))
	}
	add(filepath.Join(root, "init"), "sbin/shutdown")
	ga, err := exec.LookPath("qemu-ga")
	if err != nil {
		t.Fatal(err)
	}
	add(ga, "qemu-ga")
	for line := range strings.Lines(tool(t, "ldd", ga)) {
		for _, word := range strings.Fields(line) {
			if strings.HasPrefix(word, "/") {
				add(word, word)
			}
		}
	}
	// Modules in the order in which they can be loaded.
	var list []string
	needs, modules := dependencies(t, kernel)
	for _, name := range append([]string{"virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic"}, fileSystems...) {
		for _, path := range slices.Backward(needs[name]) { // none: it is part of the kernel
			if slices.Contains(list, "/"+path) {
				continue
			}
			from := filepath.Join(modules, path)
			if unpack := unpackers[filepath.Ext(path)]; unpack != "" {
				plain := filepath.Join(t.TempDir(), "module")
				tool(t, "sh", "-c", unpack+` -dc "$1" > "$2"`, "sh", from, plain)
				from = plain
			}
			add(from, path)
			list = append(list, "/"+path)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "modules"), []byte(strings.Join(list, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(t.TempDir(), "initrd")
	tool(t, "sh", "-c", `cd "$1" && find . | cpio -o -H newc --quiet > "$2"`, "sh", root, initrd)
	return initrd
}

// dependencies gives each module of a kernel with those that it needs, the last of which is loaded first, and the folder
// that they are in.
func dependencies(t testing.TB, kernel string) (needs map[string][]string, modules string) {
	t.Helper()
	version := strings.TrimPrefix(filepath.Base(kernel), "vmlinuz-")
	base := filepath.Join(filepath.Dir(kernel), "..")
	modules = filepath.Join(base, "lib/modules", version)
	if _, err := os.Stat(filepath.Join(modules, "modules.dep")); err != nil {
		tool(t, "depmod", "-b", base, version)
	}
	dep, err := os.ReadFile(filepath.Join(modules, "modules.dep"))
	if err != nil {
		t.Fatal(err)
	}
	needs = map[string][]string{}
	for line := range strings.Lines(string(dep)) {
		if path, rest, ok := strings.Cut(line, ":"); ok {
			name, _, _ := strings.Cut(filepath.Base(path), ".ko")
			needs[name] = append([]string{path}, strings.Fields(rest)...)
		}
	}
	return needs, modules
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}
