package boot

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/formats"
)

// standIn makes a program that plays QEMU, in Python: the port is descriptor 4, the first disk 5.
func standIn(t *testing.T, play string) *Config {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("python3 is not installed")
	}
	dir := host(t, "6.1+modules")
	path := filepath.Join(dir, "qemu")
	script := "#!" + python + "\n" + `import os, sys, time
open(os.path.join(os.path.dirname(sys.argv[0]), "pids"), "a").write("%d\n" % os.getpid())
hello, end = b'{"type":"appliance"}\n', b'{"type":"end","files":0,"bytes":0,"problems":0}\n'
say = lambda b: os.write(4, b)
accel = sys.argv[sys.argv.index("-accel") + 1]
` + play + "\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	f := &formats.File{ReaderAt: bytes.NewReader(make([]byte, 1<<20)), Path: "x.img", Size: 1 << 20}
	img := &formats.Image{Disk: formats.NewDisk(formats.Plain(f), formats.NewEnv(0)), Name: "x", Files: []*formats.File{f}}
	return &Config{
		Images: []*formats.Image{img}, Kernel: filepath.Join(dir, "boot/vmlinuz-6.1"), Program: path, Accel: "tcg",
		Memory: 128, Output: 1 << 20, Timeout: time.Minute, init: []byte{0},
	}
}

// TestMachine: whatever the machine does, it ends in a map or in one clear line, and nothing is left.
func TestMachine(t *testing.T) {
	for name, tt := range map[string]struct{ play, want string }{
		"a map":        {"say(hello + end)", ""},
		"hangs":        {"time.sleep(1000)", "the machine did not end within 1s and was stopped: --boot-timeout gives it more time"},
		"leaves child": {"os.fork() or time.sleep(1000)\nsay(hello + end)", ""},
		"floods":       {"while True: say(b'x' * 65536)", "the machine sent more than 1 MiB and was stopped: --boot-output allows more"},
		"panics":       {"print('[1.0] Kernel panic - not syncing: bad'); print('[1.1] ---[ end')", "the machine ended without a word; the last on its console: [1.0] Kernel panic - not syncing: bad"},
		"panics later": {"say(hello + b'{\"type\":\"map\",\"version\":1}\\n'); print('Kernel panic')", "the machine ended before its map did; the last on its console: Kernel panic"},
		"fails":        {"sys.stderr.write('no such machine\\n'); sys.exit(1)", "exit status 1: no such machine"},
		"lies":         {"say(b'{\"type\":\"map\",\"version\":1}\\n' + end)", "what the machine sent is no map"},
		"tells why":    {"say(hello + b'{\"type\":\"appliance\",\"error\":\"no disks\"}\\n')", "in the machine: no disks"},
		"breaks nbd":   {"os.write(5, b'x' * 100)\ntime.sleep(1000)", "serving x to the machine: nbd: the client breaks the protocol"},
		"closes nbd":   {"os.close(5); say(hello + end)", ""},
	} {
		t.Run(name, func(t *testing.T) {
			temp := t.TempDir()
			t.Setenv("TMPDIR", temp)
			c := standIn(t, tt.play)
			if name == "hangs" {
				c.Timeout = time.Second
			}
			m, err := c.Run(t.Context())
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if err == nil {
				b, err := io.ReadAll(m.Map())
				if err != nil || string(b) != `{"type":"end","files":0,"bytes":0,"problems":0}`+"\n" {
					t.Errorf("%q, %v", b, err)
				}
				m.Close()
			}
			gone(t, c)
			if left, _ := os.ReadDir(temp); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

// gone sees that no process of the machine is left.
func gone(t *testing.T, c *Config) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(c.Program), "pids"))
	if err != nil {
		t.Error(err)
	}
	for pid := range strings.FieldsSeq(string(b)) {
		n, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 { // a child that was killed is waited for by another
			if err = unix.Kill(-n, 0); errors.Is(err, unix.ESRCH) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if !errors.Is(err, unix.ESRCH) {
			t.Errorf("process group %d is there: %v", n, err)
		}
	}
}

// TestInterrupt: the machine is gone when its starter is interrupted.
func TestInterrupt(t *testing.T) {
	c := standIn(t, "time.sleep(1000)")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		for {
			if b, _ := os.ReadFile(filepath.Join(filepath.Dir(c.Program), "pids")); len(b) > 0 {
				cancel()
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	if _, err := c.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	gone(t, c)
}

// TestAuto: KVM that doesn't bring the machine up is given up for emulation.
func TestAuto(t *testing.T) {
	if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		t.Skip("there is no KVM to be given up: " + err.Error())
	} else {
		f.Close()
	}
	c := standIn(t, "if accel == 'kvm': sys.exit(1)\nsay(hello + end)")
	c.Accel = "auto"
	m, err := c.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m.Close()
}

// TestTooMany: a machine has room for so many disks.
func TestTooMany(t *testing.T) {
	c := &Config{Images: make([]*formats.Image, maxDisks+1)}
	if _, err := c.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "25 images: the machine has room for 24") {
		t.Error(err)
	}
}
