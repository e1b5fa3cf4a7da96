// Package qmp freezes QEMU machines through their QMP sockets.
//
// QEMU serves one client a socket, so a second vmfreeze, or whoever manages the machine, finds it busy meanwhile. The
// machines of libvirt are left to the driver that asks libvirt.
package qmp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/fsmap/mapfile"
)

// Driver is the driver of QEMU. Targets are the paths of QMP sockets, or machines' names as -name gives them.
type Driver struct{}

func (Driver) Name() string { return "qmp" }

// Open connects to the machine's QMP socket.
func (d Driver) Open(ctx context.Context, target string) (hypervisor.Machine, error) {
	socket, err := d.socket(target)
	if err != nil {
		return nil, err
	}
	c, err := dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	m := &machine{socket: socket, c: c}
	if err := m.look(); err != nil {
		c.Close()
		return nil, err
	}
	return m, nil
}

// socket gives the canonical path of a target's socket.
func (d Driver) socket(target string) (string, error) {
	if !strings.ContainsRune(target, '/') {
		if _, err := os.Lstat(target); err != nil {
			return d.named(target)
		}
	}
	path, err := filepath.Abs(target)
	if err != nil {
		return "", err
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	if libvirts(path) {
		return "", fmt.Errorf("%s is libvirt's own: use libvirt:NAME", path)
	}
	return path, nil
}

// libvirts tells whether a socket is libvirt's, which must not be used behind its back.
func libvirts(path string) bool { return strings.Contains(path, "/libvirt/qemu/") }

// named finds the socket of a machine by its name.
func (d Driver) named(name string) (string, error) {
	found := ""
	for _, q := range running() {
		if q.name != name || q.socket == "" {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("two QEMUs have this name: %s and %s", found, q.socket)
		}
		found = q.socket
	}
	if found == "" {
		return "", fmt.Errorf("%w: no QEMU with a QMP socket has this name", hypervisor.ErrNoMachine)
	}
	return found, nil
}

// List gives the QMP sockets of all QEMUs that run.
func (d Driver) List(context.Context) ([]string, error) {
	var list []string
	for _, q := range running() {
		if q.socket != "" {
			list = append(list, q.socket)
		}
	}
	return list, nil
}

// process is a QEMU that runs, as its command line tells it.
type process struct{ name, socket string }

func running() []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var list []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		command, err := commandLine(pid)
		if err != nil || len(command) == 0 || !strings.Contains(filepath.Base(command[0]), "qemu") {
			continue
		}
		dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err != nil {
			continue
		}
		if socket := qmpSocket(command); socket != "" {
			m := machine{dir: dir}
			path := m.resolve(socket)
			if _, err := os.Lstat(path); err == nil && !libvirts(path) {
				list = append(list, process{machineName(command), path})
			}
		}
	}
	slices.SortFunc(list, func(a, b process) int { return cmp.Compare(a.socket, b.socket) })
	return list
}

// machineName gives the name that -name gives.
func machineName(command []string) string {
	for _, option := range optionsOf(command, "-name") {
		guest, head := keyOf(option, "guest")
		return cmp.Or(guest, head)
	}
	return ""
}

// qmpSocket gives the first unix socket of QMP on a command line.
func qmpSocket(command []string) string {
	for _, option := range append(optionsOf(command, "-qmp"), optionsOf(command, "-qmp-pretty")...) {
		if _, head := keyOf(option, ""); strings.HasPrefix(head, "unix:") {
			return strings.TrimPrefix(head, "unix:")
		}
	}
	for _, mon := range optionsOf(command, "-mon") {
		mode, _ := keyOf(mon, "mode")
		id, head := keyOf(mon, "chardev")
		if id = cmp.Or(id, head); mode != "control" {
			continue
		}
		for _, dev := range optionsOf(command, "-chardev") {
			if have, head := keyOf(dev, "id"); have == id && head == "socket" {
				path, _ := keyOf(dev, "path")
				return path
			}
		}
	}
	return ""
}

// machine is a QEMU that is connected to; of one that is gone, c is nil.
type machine struct {
	socket  string
	c       *client
	process hypervisor.Process
	dir     string   // QEMU's own folder
	command []string // its command line
	disks   []disk
	foreign []string // what lies where it can't be cloned from
	resumes int      // RESUME events that had come when the machine was stopped
}

// look finds out about the process at the other end.
func (m *machine) look() (err error) {
	if m.process, err = hypervisor.ProcessOf(m.c.peer); err != nil {
		return fmt.Errorf("QEMU's process: %w", err)
	}
	if m.dir, err = os.Readlink(fmt.Sprintf("/proc/%d/cwd", m.c.peer)); err != nil {
		return fmt.Errorf("QEMU's folder: %w", err)
	}
	m.command, err = commandLine(m.c.peer)
	return err
}

func (m *machine) status(ctx context.Context) (string, error) {
	var s struct{ Status string }
	err := m.c.run(ctx, "query-status", nil, &s)
	return s.Status, err
}

func (m *machine) Close() error {
	if m.c == nil {
		return nil
	}
	return m.c.Close()
}

// Gone gives what stands for a machine whose QEMU ended.
func (Driver) Gone(vm *mapfile.VM) (hypervisor.Machine, error) {
	socket, ok := strings.CutPrefix(vm.Target, "qmp:")
	if !ok {
		return nil, errors.New("no QEMU machine")
	}
	return &machine{socket: socket}, nil
}
