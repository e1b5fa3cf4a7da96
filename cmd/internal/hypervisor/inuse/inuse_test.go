package inuse

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain lets the test program be the other process: it opens a file, says so, and stays until its input ends.
func TestMain(m *testing.M) {
	if how, path, ok := strings.Cut(os.Getenv("INUSE_TEST"), ":"); ok {
		if err := other(how, path); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready")
		io.Copy(io.Discard, os.Stdin)
		return
	}
	os.Exit(m.Run())
}

func other(how, path string) error {
	flags := os.O_RDWR
	if how == "read" {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(path, flags, 0)
	if err != nil || how != "map" {
		return err
	}
	defer f.Close()
	_, err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	return err
}

// start runs another process with a file open and gives its process id.
func start(t *testing.T, how, path string) int {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "INUSE_TEST="+how+":"+path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the other process said %q: %v", line, err)
	}
	return cmd.Process.Pid
}

func image(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantError checks that err names each of the words, in one line.
func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q doesn't say %q in one line", err, w)
		}
	}
}

func TestProcesses(t *testing.T) {
	self := filepath.Base(os.Args[0])
	for _, how := range []string{"write", "map"} {
		path := image(t, "a disk.img")
		pid := start(t, how, path)
		_, err := Check([]string{path})
		wantError(t, err, path, self, strconv.Itoa(pid))
		if _, err := Take([]string{path}); err == nil {
			t.Errorf("%s: a file in use was held", how)
		}
	}
	path := image(t, "disk.img")
	start(t, "read", path)
	if _, err := Check([]string{path, path + ".absent"}); err != nil {
		t.Errorf("a reader: %v", err)
	}
}

func TestQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Skip("needs qemu-io (package qemu-utils)")
	}
	path := image(t, "disk.img")
	in, out := io.Pipe()
	qemu := exec.Command("qemu-io", "-f", "raw", path)
	qemu.Stdin = in
	said, err := qemu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(out, "read 0 512")
	if _, err := bufio.NewReader(said).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	_, err = Check([]string{path})
	wantError(t, err, path, "qemu-io", strconv.Itoa(qemu.Process.Pid))
	if held, err := writerHolds(path); err != nil || !held {
		t.Errorf("its lock is not seen: %v", err)
	}
	if _, err := Take([]string{path}); err == nil {
		t.Error("a file that QEMU writes to was held")
	}
	out.Close()
	io.Copy(io.Discard, said)
	qemu.Wait()

	h, err := Take([]string{path})
	if err != nil {
		t.Fatal(err)
	}
	write := func() error { return exec.Command("qemu-io", "-f", "raw", "-c", "write 0 512", path).Run() }
	if write() == nil {
		t.Error("QEMU wrote to a file that was held")
	}
	if err := h.Release(); err != nil || len(h.Notes) > 0 {
		t.Error(err, h.Notes)
	}
	if err := write(); err != nil {
		t.Errorf("QEMU can't write to a file that was let go: %v", err)
	}
}

func TestLoop(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("loop devices need root")
	}
	path := image(t, "disk.img")
	for _, option := range []string{"--nooverlap", "--read-only"} {
		out, err := exec.Command("losetup", "--find", "--show", option, path).Output()
		if err != nil {
			t.Skipf("no loop device can be had: %v", err)
		}
		dev := strings.TrimSpace(string(out))
		_, err = Check([]string{path})
		if e := exec.Command("losetup", "--detach", dev).Run(); e != nil {
			t.Error(e)
		}
		if option == "--read-only" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		wantError(t, err, path, dev)
	}
}

func TestVMware(t *testing.T) {
	path := image(t, "disk.vmdk")
	if err := os.MkdirAll(path+".lck", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Check([]string{path}); err != nil {
		t.Errorf("an empty folder locks: %v", err)
	}
	if err := os.WriteFile(path+".lck/M1.lck", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Check([]string{path})
	wantError(t, err, path+".lck")
	if err := os.RemoveAll(path + ".lck"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".WRITELOCK", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Check([]string{path})
	wantError(t, err, path+".WRITELOCK")
}

func TestChanges(t *testing.T) {
	change := map[string]func(path string) error{
		"":             func(string) error { return nil },
		"was changed":  func(path string) error { return os.Chtimes(path, time.Time{}, time.Unix(1, 0)) },
		"was replaced": func(path string) error { return os.Rename(image(t, "new"), path) },
	}
	for want, f := range change {
		path := image(t, "disk.img")
		h, err := Take([]string{path})
		if err != nil {
			t.Fatal(err)
		}
		if err := f(path); err != nil {
			t.Fatal(err)
		}
		err = h.Release()
		if want != "" {
			wantError(t, err, path, want)
		} else if err != nil {
			t.Error(err)
		}
		if err := h.Release(); err != nil {
			t.Errorf("again: %v", err)
		}
	}
}
