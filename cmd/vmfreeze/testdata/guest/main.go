// The first and only program of the guest that TestGuest freezes: it writes records to a file system, each of which is
// on the disk before it is told on the console, and runs the guest agent.
package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(); err != nil {
		fmt.Println("guest: failed:", err)
	}
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	for _, m := range []struct{ dir, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}, {"/run", "tmpfs"}} {
		os.MkdirAll(m.dir, 0o755)
		if err := syscall.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("%s: %w", m.dir, err)
		}
	}
	list, err := os.ReadFile("/modules")
	if err != nil {
		return err
	}
	for _, path := range strings.Fields(string(list)) {
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := unix.InitModule(b, ""); err != nil && err != unix.EEXIST {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	os.Mkdir("/mnt", 0o755)
	for try := 0; ; try++ {
		if err = syscall.Mount("/dev/vda", "/mnt", "ext4", 0, ""); err == nil {
			break
		}
		if try == 100 {
			return fmt.Errorf("/dev/vda: %w", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if ports, _ := filepath.Glob("/dev/vport*"); len(ports) > 0 {
		agent := exec.Command("/qemu-ga", "-m", "virtio-serial", "-p", ports[0], "-f", "/run/qga.pid", "-t", "/run")
		agent.Stdout, agent.Stderr = os.Stdout, os.Stdout
		if err := agent.Start(); err != nil {
			return fmt.Errorf("agent: %w", err)
		}
	}
	log, err := os.OpenFile("/mnt/log", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	for n := 0; ; n++ {
		// In the log and in a file of its own, which an older one makes room for.
		if _, err := log.Write(record(n)); err != nil {
			return err
		}
		if err := log.Sync(); err != nil {
			return err
		}
		name := fmt.Sprintf("/mnt/d%d/f%d", n%7, n%100)
		os.Mkdir(filepath.Dir(name), 0o755)
		if err := os.WriteFile(name, bytes.Repeat(record(n), 1+n%40), 0o644); err != nil {
			return err
		}
		fmt.Println("synced", n)
		time.Sleep(5 * time.Millisecond)
	}
}

// record is line n of the log.
func record(n int) []byte {
	sum := sha256.Sum256([]byte(fmt.Sprint(n)))
	return fmt.Appendf(nil, "%08d %x\n", n, sum)
}
