// Package vmware freezes machines of VMware Workstation, Player and Fusion, through vmrun.
//
// It follows VMware's documentation of vmrun; it has not met the products themselves.
package vmware

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/files"
	"vmkit/cmd/internal/hypervisor/hostfiles"
	"vmkit/cmd/internal/hypervisor/program"
	"vmkit/cmd/internal/hypervisor/vmx"
	"vmkit/fsmap/mapfile"
)

// New gives the driver. A target is the path of a .vmx file, or the name of a machine that runs or stands in the user's
// inventory.
func New() hypervisor.Driver { return driver{} }

type driver struct{}

func (driver) Name() string { return "vmx" }

type machine struct {
	hostfiles.Untracked
	vmrun *program.Program
	path  string // of the .vmx
	own   hostfiles.Steps
}

// products are the kinds of host that vmrun connects to on this computer: Workstation, Player, Fusion.
var products = []string{"ws", "player", "fusion"}

// connect finds the product that is installed, and the machines that run there.
func connect(ctx context.Context) (vmrun *program.Program, running []string, err error) {
	for _, product := range products {
		vmrun = &program.Program{Name: "vmrun", Args: []string{"-T", product}}
		if running, err = list(ctx, vmrun); err == nil || errors.Is(err, hypervisor.ErrUnavailable) {
			return vmrun, running, err
		}
	}
	return nil, nil, fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, err)
}

// list gives the .vmx files of the machines that run: a line that counts them, then one each.
func list(ctx context.Context, vmrun *program.Program) ([]string, error) {
	out, err := vmrun.Run(ctx, "list")
	if err != nil {
		return nil, err
	}
	var paths []string
	for line := range strings.Lines(out) {
		if line = strings.TrimRight(line, "\r\n"); strings.EqualFold(filepath.Ext(line), ".vmx") {
			paths = append(paths, line)
		}
	}
	return paths, nil
}

func (driver) Open(ctx context.Context, target string) (hypervisor.Machine, error) {
	vmrun, running, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	path := target
	if !strings.EqualFold(filepath.Ext(target), ".vmx") {
		if path, err = named(target, append(running, inventory()...)); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s is not there", hypervisor.ErrNoMachine, path)
		}
		return nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	return &machine{vmrun: vmrun, path: path}, nil
}

// named finds the one machine that is called so, by its display name or its file's.
func named(name string, paths []string) (string, error) {
	var hits []string
	for _, p := range paths {
		f, err := read(p)
		if err != nil || slices.ContainsFunc(hits, func(h string) bool { return same(h, p) }) {
			continue
		}
		if f.Value("displayName") == name || strings.TrimSuffix(filepath.Base(p), filepath.Ext(p)) == name {
			hits = append(hits, p)
		}
	}
	switch len(hits) {
	case 0:
		return "", hypervisor.ErrNoMachine
	case 1:
		return hits[0], nil
	}
	return "", fmt.Errorf("several machines are called so: name one of %s", strings.Join(hits, ", "))
}

// inventory gives the .vmx files of the user's library.
func inventory() (paths []string) {
	home, err := os.UserHomeDir()
	if err != nil {
		return nil
	}
	f, err := read(filepath.Join(home, ".vmware", "inventory.vmls"))
	if err != nil {
		return nil
	}
	for key, value := range f.All() {
		if key = strings.ToLower(key); strings.HasPrefix(key, "vmlist") && strings.HasSuffix(key, ".config") && value != "" {
			paths = append(paths, value)
		}
	}
	return paths
}

func read(path string) (*vmx.File, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return vmx.Parse(b)
}

// same tells whether two paths are one file.
func same(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

func (driver) List(ctx context.Context) ([]string, error) {
	_, running, err := connect(ctx)
	if err != nil {
		return nil, err
	}
	var targets []string
	for _, p := range append(running, inventory()...) {
		if _, err := os.Stat(p); err == nil && !slices.ContainsFunc(targets, func(t string) bool { return same(t, p) }) {
			targets = append(targets, p)
		}
	}
	return targets, nil
}

// runs tells whether the machine runs. One that is paused does, as far as vmrun tells.
func (m *machine) runs(ctx context.Context) (bool, error) {
	running, err := list(ctx, m.vmrun)
	return slices.ContainsFunc(running, func(p string) bool { return same(p, m.path) }), err
}

// suspended tells whether the configuration names a state to go on from.
func (m *machine) suspended() (bool, error) {
	f, err := read(m.path)
	if err != nil {
		return false, err
	}
	state := f.Value("checkpoint.vmState")
	if state == "" {
		return false, nil
	}
	if !filepath.IsAbs(state) {
		state = filepath.Join(filepath.Dir(m.path), state)
	}
	_, err = os.Stat(state)
	return err == nil, nil
}

var versionRE = regexp.MustCompile(`vmrun version (\S+(?: build-\d+)?)`)

func (m *machine) Describe(ctx context.Context) (*mapfile.VM, error) {
	vm := &mapfile.VM{Type: "vm", Driver: "vmx", Target: "vmx:" + m.path, StateFound: "off"}
	if err := files.Collect(vm, []string{m.path}, hostfiles.Anywhere); err != nil {
		return nil, err
	}
	runs, err := m.runs(ctx)
	if err != nil {
		return nil, err
	}
	if runs {
		vm.StateFound = "running"
	}
	// Without a verb it prints its version and how it is used, and fails.
	out, err := m.vmrun.Run(ctx)
	if err != nil {
		out = err.Error()
	}
	if v := versionRE.FindStringSubmatch(out); v != nil {
		vm.Versions = map[string]string{"vmrun": v[1]}
	}
	return vm, nil
}

const (
	opSnapshot = "snapshot"
	opPause    = "pause"
	opSuspend  = "suspend"
)

func (m *machine) Plan(_ context.Context, vm *mapfile.VM, r hypervisor.Request) (*hypervisor.Plan, error) {
	m.Of = vm
	hold := hostfiles.HoldStep(vm)
	if vm.StateFound != "running" {
		return &hypervisor.Plan{Mode: hypervisor.Off, Method: "off, and seen to stay so", Steps: []hypervisor.Step{hold}}, nil
	}
	if r.Quiesce {
		return nil, errors.New("vmrun can't have the guest freeze its file systems; leave out --quiesce")
	}
	switch r.Mode {
	case hypervisor.Auto, hypervisor.Snapshot:
		name := "vmfreeze-" + strconv.FormatInt(time.Now().UnixNano(), 36)
		return &hypervisor.Plan{
			Mode: hypervisor.Snapshot, Method: "vmrun snapshot, then deleteSnapshot",
			Steps: []hypervisor.Step{
				hostfiles.KeepStep(vm, hostfiles.WorkDir(vm, r.Work), hostfiles.Small(vm)),
				{Op: opSnapshot, Args: map[string]string{"name": name}, Instant: true, Commits: true},
			},
			Notes: []string{"VMware saves the memory of a running machine with a snapshot, which halts it for a while"},
		}, nil
	case hypervisor.Pause:
		return &hypervisor.Plan{
			Mode: hypervisor.Pause, Method: "vmrun pause, then unpause", Stops: true,
			Steps: []hypervisor.Step{{Op: opPause, Args: map[string]string{}, Holds: true, Instant: true}},
		}, nil
	case hypervisor.Suspend:
		still := *vm // without the memory of the machine that runs, whose files go
		still.Files = slices.DeleteFunc(slices.Clone(vm.Files), func(f mapfile.VMFile) bool { return f.Role == mapfile.RoleMemory })
		hold = hostfiles.HoldStep(&still)
		hold.Instant = false
		return &hypervisor.Plan{
			Mode: hypervisor.Suspend, Method: "vmrun suspend, then start nogui", Stops: true,
			Steps: []hypervisor.Step{{Op: opSuspend, Args: map[string]string{}, Holds: true, Instant: true}, hold},
		}, nil
	}
	return nil, fmt.Errorf("mode %q is not known", r.Mode)
}

func (m *machine) Do(ctx context.Context, s *hypervisor.Step) error {
	if mine, err := m.own.Do(ctx, s); mine {
		return err
	}
	runs, err := m.runs(ctx)
	if err == nil && !runs {
		err = errors.New("it does not run any more")
	}
	if err != nil {
		s.Args["undo"] = "nothing"
		return err
	}
	switch s.Op {
	case opSnapshot:
		_, err = m.vmrun.Run(ctx, "snapshot", m.path, s.Args["name"])
	case opPause:
		_, err = m.vmrun.Run(ctx, "pause", m.path)
		if err != nil && ctx.Err() == nil {
			s.Args["undo"] = "nothing" // it was paused by somebody else
		}
	case opSuspend:
		_, err = m.vmrun.Run(ctx, "suspend", m.path, "soft")
		if program.Said(err, "Tools") { // a soft one has VMware Tools run the guest's own scripts
			_, err = m.vmrun.Run(ctx, "suspend", m.path, "hard")
		}
	default:
		return fmt.Errorf("step %q is not known", s.Op)
	}
	return err
}

func (m *machine) Undo(ctx context.Context, s *hypervisor.Step) error {
	if mine, err := m.own.Undo(ctx, s); mine || s.Args["undo"] == "nothing" {
		return err
	}
	switch s.Op {
	case opSnapshot:
		has, err := m.hasSnapshot(ctx, s.Args["name"])
		if err != nil || !has {
			return err
		}
		if _, err := m.vmrun.Run(ctx, "deleteSnapshot", m.path, s.Args["name"]); err != nil {
			return err
		}
		if has, err = m.hasSnapshot(ctx, s.Args["name"]); err == nil && has {
			err = fmt.Errorf("the snapshot %s is still there", s.Args["name"])
		}
		return err
	case opPause:
		runs, err := m.runs(ctx)
		if err != nil || !runs {
			return err
		}
		if _, err = m.vmrun.Run(ctx, "unpause", m.path); program.Said(err, "not paused") {
			return nil
		}
		return err
	case opSuspend:
		return m.start(ctx, s.Done == nil)
	}
	return fmt.Errorf("step %q is not known", s.Op)
}

func (m *machine) hasSnapshot(ctx context.Context, name string) (bool, error) {
	out, err := m.vmrun.Run(ctx, "listSnapshots", m.path)
	for line := range strings.Lines(out) {
		if strings.TrimSpace(line) == name {
			return true, nil
		}
	}
	return false, err
}

// settling is how long a suspension may take to show that was begun by somebody who was killed.
var settling = 10 * time.Second

// poll is how often it is looked for.
const poll = 200 * time.Millisecond

// start starts the machine if it is suspended. Where that was begun only it may be about to be.
func (m *machine) start(ctx context.Context, begun bool) error {
	for until := time.Now().Add(settling); ; {
		runs, err := m.runs(ctx)
		if err != nil {
			return err
		}
		if !runs {
			break
		}
		if !begun || time.Now().After(until) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(poll):
		}
	}
	suspended, err := m.suspended()
	if err != nil || !suspended {
		return err // it was shut down, which nobody here did
	}
	_, err = m.vmrun.Run(ctx, "start", m.path, "nogui")
	return err
}

func (m *machine) Close() error {
	m.own.Close()
	return nil
}
