// Package files finds the files of machines that are off, in a folder or from images and configurations that are named,
// and keeps them from being started while they are copied.
package files

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/hostfiles"
	"vmkit/cmd/internal/hypervisor/inuse"
	"vmkit/fsmap/mapfile"
)

// New gives the driver. A target is paths with commas between them; a comma in a path is written twice. One path that is
// a folder means the machine in it.
func New() hypervisor.Driver { return driver{} }

type driver struct{}

func (driver) Name() string { return "files" }

// List finds nothing: which folders hold machines has to be said.
func (driver) List(context.Context) ([]string, error) { return nil, nil }

type machine struct {
	hostfiles.Untracked
	paths []string
	own   hostfiles.Steps
	busy  error // why it isn't off
}

func (driver) Open(_ context.Context, target string) (hypervisor.Machine, error) {
	m := &machine{}
	for _, path := range Paths(target) {
		if _, err := os.Stat(path); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("%w: %s is not there", hypervisor.ErrNoMachine, path)
			}
			return nil, err
		}
		path, err := filepath.Abs(path)
		if err != nil {
			return nil, err
		}
		m.paths = append(m.paths, path)
	}
	return m, nil
}

// Target gives the target, without the driver's name, of paths.
func Target(paths ...string) string {
	escaped := make([]string, len(paths))
	for i, p := range paths {
		escaped[i] = strings.ReplaceAll(p, ",", ",,")
	}
	return strings.Join(escaped, ",")
}

// Paths is the inverse of Target. A target that is itself a path is one path, commas or not.
func Paths(target string) (paths []string) {
	if _, err := os.Lstat(target); err == nil {
		return []string{target}
	}
	const comma = "\x00" // no path has it
	for p := range strings.SplitSeq(strings.ReplaceAll(target, ",,", comma), ",") {
		paths = append(paths, strings.ReplaceAll(p, comma, ","))
	}
	return paths
}

func (m *machine) Describe(context.Context) (*mapfile.VM, error) {
	vm := &mapfile.VM{Type: "vm", Driver: "files", Target: "files:" + Target(m.paths...), StateFound: "off"}
	if err := Collect(vm, m.paths, nil); err != nil {
		return nil, err
	}
	if len(hostfiles.Paths(vm, mapfile.RoleDisk)) == 0 {
		return nil, fmt.Errorf("%w: there is no disk image among its files", hypervisor.ErrNoMachine)
	}
	notes, err := inuse.Check(hostfiles.Paths(vm))
	if m.busy = err; err != nil {
		vm.StateFound = "running"
		notes = append(notes, err.Error())
	}
	vm.Notes = append(vm.Notes, notes...)
	return vm, nil
}

// Collect adds the files of the machine that paths name to vm, and what its configuration says of it: name, UUID, whether
// it was suspended. What is named there is followed into the folders of allow, besides those that are named themselves.
func Collect(vm *mapfile.VM, paths, allow []string) error {
	c := &collector{vm: vm, allow: allow}
	return c.collect(paths)
}

func (m *machine) Plan(_ context.Context, vm *mapfile.VM, _ hypervisor.Request) (*hypervisor.Plan, error) {
	m.Of = vm
	if m.busy != nil {
		return nil, fmt.Errorf("it is not off: %w; name the machine at its hypervisor, or shut it down", m.busy)
	}
	return &hypervisor.Plan{
		Mode: hypervisor.Off, Method: "off, its images locked against a start",
		Steps: []hypervisor.Step{hostfiles.HoldStep(vm)},
	}, nil
}

func (m *machine) Do(ctx context.Context, s *hypervisor.Step) error {
	if mine, err := m.own.Do(ctx, s); mine {
		return err
	}
	return fmt.Errorf("step %q is not known", s.Op)
}

func (m *machine) Undo(ctx context.Context, s *hypervisor.Step) error {
	if mine, err := m.own.Undo(ctx, s); mine {
		return err
	}
	return fmt.Errorf("step %q is not known", s.Op)
}

func (m *machine) Close() error {
	m.own.Close()
	return nil
}

// Gone implements hypervisor.Survivor: there is nothing to take back of files that are gone.
func (driver) Gone(*mapfile.VM) (hypervisor.Machine, error) { return &machine{}, nil }
