package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmkit/fsmap/mapfile"
)

// Drivers is the table of drivers, in the order in which a bare name is looked up.
type Drivers []Driver

// Open finds the machine of a target: "qmp:/run/web1.sock", or a bare name that one driver knows.
func (d Drivers) Open(ctx context.Context, target string) (Machine, error) {
	if driver, rest := d.split(target); driver != nil {
		m, err := driver.Open(ctx, rest)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", target, err)
		}
		return m, nil
	}
	var found []Machine
	var where []string
	var errs []error
	for _, driver := range d {
		m, err := driver.Open(ctx, target)
		switch {
		case err == nil:
			found, where = append(found, m), append(where, driver.Name()+":"+target)
		case !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrNoMachine):
			errs = append(errs, fmt.Errorf("%s:%s: %w", driver.Name(), target, err))
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	for _, m := range found {
		m.Close()
	}
	switch {
	case len(found) > 1:
		return nil, fmt.Errorf("%s: several machines have this name: say which one: %s", target, strings.Join(where, " or "))
	case len(errs) > 0:
		return nil, errors.Join(errs...)
	}
	return nil, fmt.Errorf("%s: %w: no hypervisor that answers knows it; vmfreeze --list shows what is found", target, ErrNoMachine)
}

// split takes a driver's prefix off a target.
func (d Drivers) split(target string) (Driver, string) {
	prefix, rest, ok := strings.Cut(target, ":")
	i := slices.IndexFunc(d, func(x Driver) bool { return x.Name() == prefix })
	if !ok || i < 0 {
		return nil, ""
	}
	return d[i], rest
}

// reach opens the machine of a journal anew, or what stands for it where its hypervisor is gone.
func (d Drivers) reach(ctx context.Context, vm *mapfile.VM) (Machine, error) {
	driver, rest := d.split(vm.Target)
	if driver == nil {
		return nil, fmt.Errorf("%s: there is no driver %q", vm.Target, vm.Driver)
	}
	m, err := driver.Open(ctx, rest)
	if s, ok := driver.(Survivor); ok && (errors.Is(err, ErrUnavailable) || errors.Is(err, ErrNoMachine)) {
		return s.Gone(vm)
	}
	return m, err
}

// List gives the targets of all machines that can be found without being told where. A driver that isn't there has
// none; another failure is told in errs.
func (d Drivers) List(ctx context.Context) (targets []string, errs []error) {
	for _, driver := range d {
		names, err := driver.List(ctx)
		if err != nil && !errors.Is(err, ErrUnavailable) {
			errs = append(errs, fmt.Errorf("%s: %w", driver.Name(), err))
		}
		for _, name := range names {
			targets = append(targets, driver.Name()+":"+name)
		}
	}
	return targets, errs
}
