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

// Open connects to a QMP socket of the machine, of several to the first that nobody else uses.
func (d Driver) Open(ctx context.Context, target string) (hypervisor.Machine, error) {
	sockets, err := d.sockets(target)
	if err != nil {
		return nil, err
	}
	for i, socket := range sockets {
		m, err := open(ctx, socket)
		if err == nil {
			return m, nil
		}
		if !errors.Is(err, hypervisor.ErrBusy) || i+1 == len(sockets) {
			return nil, err
		}
	}
	return nil, hypervisor.ErrNoMachine
}

func open(ctx context.Context, socket string) (*machine, error) {
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

// sockets gives the canonical paths of a target's sockets.
func (d Driver) sockets(target string) ([]string, error) {
	if !strings.ContainsRune(target, '/') {
		if _, err := os.Lstat(target); err != nil {
			return d.named(target)
		}
	}
	path, err := filepath.Abs(target)
	if err != nil {
		return nil, err
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	if libvirts(path) {
		return nil, fmt.Errorf("%s is libvirt's own: use libvirt:NAME", path)
	}
	return []string{path}, nil
}

// libvirts tells whether a socket is libvirt's, which must not be used behind its back.
func libvirts(path string) bool { return strings.Contains(path, "/libvirt/qemu/") }

// named finds the sockets of a machine by its name.
func (d Driver) named(name string) ([]string, error) {
	var found []string
	for _, q := range running() {
		if q.name != name {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("two QEMUs have this name: %s and %s", found[0], q.sockets[0])
		}
		found = q.sockets
	}
	if found == nil {
		return nil, fmt.Errorf("%w: no QEMU with a QMP socket has this name", hypervisor.ErrNoMachine)
	}
	return found, nil
}

// List gives all QEMUs that run and have a QMP socket: by their names, where no other has the same, else by their
// sockets.
func (d Driver) List(context.Context) ([]string, error) {
	all := running()
	named := map[string]int{}
	for _, q := range all {
		named[q.name]++
	}
	var list []string
	for _, q := range all {
		if q.name != "" && named[q.name] == 1 && !strings.Contains(q.name, "/") {
			list = append(list, q.name)
		} else {
			list = append(list, q.sockets[0])
		}
	}
	return list, nil
}

// process is a QEMU that runs, as its command line tells it.
type process struct {
	name    string
	sockets []string
}

// running gives the QEMUs that have a QMP socket, but for libvirt's.
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
		m := machine{dir: dir}
		q := process{name: machineName(command)}
		for _, socket := range qmpSockets(command) {
			path := m.resolve(socket)
			if _, err := os.Lstat(path); err == nil && !libvirts(path) {
				q.sockets = append(q.sockets, path)
			}
		}
		if q.sockets != nil {
			list = append(list, q)
		}
	}
	slices.SortFunc(list, func(a, b process) int { return cmp.Compare(a.sockets[0], b.sockets[0]) })
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

// qmpSockets gives the unix sockets of QMP on a command line.
func qmpSockets(command []string) (list []string) {
	for _, option := range append(optionsOf(command, "-qmp"), optionsOf(command, "-qmp-pretty")...) {
		if _, head := keyOf(option, ""); strings.HasPrefix(head, "unix:") {
			list = append(list, strings.TrimPrefix(head, "unix:"))
		}
	}
	for _, mon := range optionsOf(command, "-mon") {
		mode, _ := keyOf(mon, "mode")
		id, head := keyOf(mon, "chardev")
		if id = cmp.Or(id, head); mode != "control" {
			continue
		}
		for _, dev := range optionsOf(command, "-chardev") {
			path, _ := keyOf(dev, "path")
			if have, head := keyOf(dev, "id"); have == id && head == "socket" && path != "" {
				list = append(list, path)
			}
		}
	}
	return list
}

// machine is a QEMU that is connected to; of one that is gone, c is nil.
type machine struct {
	socket  string
	c       *client
	process hypervisor.Process
	dir     string   // QEMU's own folder
	command []string // its command line
	disks   []disk
	foreign []string           // what lies where it can't be cloned from
	notes   []string           // the same of what needs no clone
	live    map[string]reading // what bitmaps told while the machine was stopped, by disk
	froze   bool               // its guest's file systems
	resumes int                // RESUME events that had come when the machine was stopped
}

// look finds out about the process at the other end.
func (m *machine) look() (err error) {
	if m.c.peer <= 0 {
		return errors.New("QEMU runs where its process can't be seen from here (in a container?): run vmfreeze there")
	}
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
