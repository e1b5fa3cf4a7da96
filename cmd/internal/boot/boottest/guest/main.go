// The first and only program of the guest in tests: it writes records to the file systems of its disks, each of which is
// on them before it is told on the console, and runs the guest agent. With vmkit.idle on the kernel's command line it
// writes nothing, and its file systems are mounted read-only. Called shutdown, it ends the machine.
package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
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
	if filepath.Base(os.Args[0]) != "shutdown" {
		fmt.Println("guest: failed:", run())
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
	told, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	idle := bytes.Contains(told, []byte("vmkit.idle"))
	dirs, err := mount(idle)
	if err != nil {
		return err
	}
	// A clone's first port, which the machine's agent had, leads nowhere: the last is the one that was added.
	if ports, _ := filepath.Glob("/dev/vport*"); len(ports) > 0 {
		agent := exec.Command("/qemu-ga", "-m", "virtio-serial", "-p", ports[len(ports)-1], "-f", "/run/qga.pid", "-t", "/run")
		agent.Stdout, agent.Stderr = os.Stdout, os.Stdout
		if err := agent.Start(); err != nil {
			return fmt.Errorf("agent: %w", err)
		}
	}
	if idle {
		return unix.Pause()
	}
	return write(dirs)
}

// mount mounts each disk, and gives the folders.
func mount(readOnly bool) ([]string, error) {
	var flags uintptr
	if readOnly {
		flags = syscall.MS_RDONLY
	}
	var disks, dirs []string
	for try := 0; len(disks) == 0; try++ {
		if try == 100 {
			return nil, errors.New("no disk comes up")
		}
		time.Sleep(50 * time.Millisecond)
		disks, _ = filepath.Glob("/dev/vd?")
	}
	for _, disk := range disks {
		dir := filepath.Join("/mnt", filepath.Base(disk))
		os.MkdirAll(dir, 0o755)
		err := syscall.Mount(disk, dir, "ext4", flags, "")
		if err != nil {
			err = syscall.Mount(disk, dir, "xfs", flags, "")
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", disk, err)
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// write writes records without end, each to every file system.
func write(dirs []string) error {
	var logs []*os.File
	for _, dir := range dirs {
		f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return err
		}
		logs = append(logs, f)
	}
	for n := 0; ; n++ {
		// In the log and in a file of its own, which an older one makes room for.
		for i, dir := range dirs {
			if _, err := logs[i].Write(record(n)); err != nil {
				return err
			}
			if err := logs[i].Sync(); err != nil {
				return err
			}
			if err := change(dir, n); err != nil {
				return err
			}
		}
		fmt.Println("synced", n)
		time.Sleep(5 * time.Millisecond)
	}
}

// change makes, overwrites and removes files of many kinds.
func change(dir string, n int) error {
	sub := filepath.Join(dir, fmt.Sprint("d", n%7))
	os.Mkdir(sub, 0o755)
	name := filepath.Join(sub, fmt.Sprint("f", n%100))
	if err := put(name, n, bytes.Repeat(record(n), 1+n%40), 0); err != nil {
		return err
	}
	other := name + "-"
	os.Remove(other)
	switch n % 11 {
	case 1:
		return os.Symlink(strings.Repeat("to/", n%50)+filepath.Base(name), other)
	case 3:
		return os.Link(name, other)
	case 5: // holes, and an end that nothing was written to
		return errors.Join(put(other, n, record(n), int64(n%5)<<16), os.Truncate(other, 1<<20))
	case 7:
		return errors.Join(os.Chmod(name, 0o4751), os.Chown(name, n, 7), unix.Setxattr(name, "trusted.n", record(n), 0))
	case 9:
		return os.Rename(name, other)
	}
	return nil
}

// put writes a file. Two of three are on the disk then, the rest when the kernel gets to it.
func put(name string, n int, data []byte, at int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	if at > 0 { // with room behind it that nothing is written to
		if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 512<<10, 64<<10); err != nil {
			return err
		}
	}
	if _, err := f.WriteAt(data, at); err != nil || n%3 == 0 {
		return err
	}
	return f.Sync()
}

// record is line n of the log.
func record(n int) []byte {
	sum := sha256.Sum256([]byte(fmt.Sprint(n)))
	return fmt.Appendf(nil, "%08d %x\n", n, sum)
}
