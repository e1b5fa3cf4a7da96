// Package vbox freezes machines of VirtualBox, through VBoxManage, and reads their settings.
//
// It follows VirtualBox's manual and the sources of VBoxManage; it has not met the product itself.
package vbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/hostfiles"
	"vmkit/cmd/internal/hypervisor/program"
	"vmkit/fsmap/mapfile"
)

// New gives the driver. A target is a machine's name or UUID.
func New() hypervisor.Driver { return driver{} }

type driver struct{}

func (driver) Name() string { return "vbox" }

type machine struct {
	hostfiles.Untracked
	manage *program.Program
	uuid   string
	name   string
	own    hostfiles.Steps
}

// entry is a machine that VBoxManage lists.
type entry struct{ name, uuid string }

// list reads lines of the form "name" {uuid}.
func list(ctx context.Context, manage *program.Program) (machines []entry, err error) {
	out, err := manage.Run(ctx, "list", "vms")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\r\n")
		i := strings.LastIndex(line, "\" {")
		if i < 1 || line[0] != '"' || !strings.HasSuffix(line, "}") {
			continue // <inaccessible> {…}: its settings can't be read
		}
		machines = append(machines, entry{line[1:i], line[i+3 : len(line)-1]})
	}
	return machines, nil
}

func (driver) Open(ctx context.Context, target string) (hypervisor.Machine, error) {
	m := &machine{manage: &program.Program{Name: "VBoxManage"}}
	machines, err := list(ctx, m.manage)
	if err != nil {
		return nil, err
	}
	for _, e := range machines {
		if e.name == target || strings.EqualFold(e.uuid, strings.Trim(target, "{}")) {
			m.name, m.uuid = e.name, e.uuid
			return m, nil
		}
	}
	return nil, hypervisor.ErrNoMachine
}

func (driver) List(ctx context.Context) (names []string, err error) {
	machines, err := list(ctx, &program.Program{Name: "VBoxManage"})
	for _, e := range machines {
		names = append(names, e.name)
	}
	return names, err
}

// info reads what showvminfo prints of the machine. The first of a name counts: a description of several lines, which
// comes later, may hold what it likes.
func (m *machine) info(ctx context.Context) (map[string]string, error) {
	out, err := m.manage.Run(ctx, "showvminfo", m.uuid, "--machinereadable")
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\r\n")
		key, rest, ok := word(line)
		if !ok || !strings.HasPrefix(rest, "=") {
			continue
		}
		value, _, ok := word(rest[1:])
		if _, known := info[key]; ok && !known {
			info[key] = value
		}
	}
	return info, nil
}

// word takes a word off a line: up to "=", or in quotes, with quotes and backslashes escaped.
func word(s string) (w, rest string, ok bool) {
	if s == "" || s[0] != '"' {
		i := strings.IndexByte(s, '=')
		if i < 0 {
			i = len(s)
		}
		return s[:i], s[i:], true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:], true
		case s[i] == '\\' && i+1 < len(s) && (s[i+1] == '"' || s[i+1] == '\\'):
			i++
		}
		b.WriteByte(s[i])
	}
	return "", "", false
}

// poll is how often a state that passes is looked at.
const poll = 200 * time.Millisecond

// state gives the machine's state, once it is one that lasts: VirtualBox's server goes on with what a VBoxManage began
// that was killed.
func (m *machine) state(ctx context.Context) (string, error) {
	for {
		info, err := m.info(ctx)
		if err != nil {
			return "", err
		}
		state := info["VMState"]
		passing := slices.Contains([]string{"saving", "restoring", "starting", "stopping"}, state)
		if !passing && !strings.Contains(state, "snapshot") {
			return state, nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(poll):
		}
	}
}

// words are VirtualBox's states in the words of records.
var words = map[string]string{"poweroff": "off", "aborted": "off", "saved": "suspended", "aborted-saved": "suspended"}

func (m *machine) Describe(ctx context.Context) (*mapfile.VM, error) {
	info, err := m.info(ctx)
	if err != nil {
		return nil, err
	}
	vm := &mapfile.VM{Type: "vm", Name: m.name, Driver: "vbox", Target: "vbox:" + m.name, UUID: m.uuid, StateFound: info["VMState"]}
	if w := words[vm.StateFound]; w != "" {
		vm.StateFound = w
	}
	config := info["CfgFile"]
	b, err := os.ReadFile(config)
	if err != nil {
		return nil, err
	}
	s, err := ParseSettings(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", config, err)
	}
	hostfiles.Add(vm, config, mapfile.RoleConfig)
	place := func(name string) (string, error) {
		if filepath.IsAbs(name) {
			return name, nil
		}
		return filepath.Join(filepath.Dir(config), name), nil
	}
	if err := s.AddFiles(vm, place, hostfiles.Anywhere); err != nil {
		return nil, fmt.Errorf("%s: %w", config, err)
	}
	version, err := m.manage.Run(ctx, "--version")
	if err != nil {
		return nil, err
	}
	vm.Versions = map[string]string{"virtualbox": strings.TrimSpace(version)}
	return vm, nil
}

const (
	opSnapshot = "snapshot"
	opPause    = "pause"
	opSave     = "savestate"
)

func (m *machine) Plan(_ context.Context, vm *mapfile.VM, r hypervisor.Request) (*hypervisor.Plan, error) {
	m.Of = vm
	hold := hostfiles.HoldStep(vm)
	switch vm.StateFound {
	case "off", "suspended":
		return &hypervisor.Plan{Mode: hypervisor.Off, Method: "off, and seen to stay so", Steps: []hypervisor.Step{hold}}, nil
	case "running", "paused":
	default:
		return nil, fmt.Errorf("it is %q: wait until it is running, paused or off", vm.StateFound)
	}
	if r.Quiesce {
		return nil, errors.New("VBoxManage can't have the guest freeze its file systems; leave out --quiesce")
	}
	found := map[string]string{"found": vm.StateFound}
	switch r.Mode {
	case hypervisor.Auto, hypervisor.Snapshot:
		found["name"] = "vmfreeze-" + strconv.FormatInt(time.Now().UnixNano(), 36)
		return &hypervisor.Plan{
			Mode: hypervisor.Snapshot, Method: "snapshot take --live, then snapshot delete",
			Steps: []hypervisor.Step{
				hostfiles.KeepStep(vm, hostfiles.WorkDir(vm, r.Work), hostfiles.Small(vm)),
				{Op: opSnapshot, Args: found, Instant: true, Commits: true},
			},
		}, nil
	case hypervisor.Pause:
		p := &hypervisor.Plan{Mode: hypervisor.Pause, Method: "paused as it was found", Stops: true}
		if vm.StateFound == "running" {
			p.Method = "controlvm pause, then resume"
			p.Steps = []hypervisor.Step{{Op: opPause, Args: found, Holds: true, Instant: true}}
		}
		return p, nil
	case hypervisor.Suspend:
		if vm.StateFound == "paused" {
			return nil, errors.New("it is paused, and would run after a savestate: use -m snapshot or -m pause")
		}
		hold.Instant = false
		return &hypervisor.Plan{
			Mode: hypervisor.Suspend, Method: "controlvm savestate, then startvm", Stops: true,
			Steps: []hypervisor.Step{{Op: opSave, Args: found, Holds: true, Instant: true}, hold},
		}, nil
	}
	return nil, fmt.Errorf("mode %q is not known", r.Mode)
}

func (m *machine) Do(ctx context.Context, s *hypervisor.Step) error {
	if mine, err := m.own.Do(ctx, s); mine {
		return err
	}
	state, err := m.state(ctx)
	if err == nil && state != s.Args["found"] {
		err = fmt.Errorf("it is %s by now", state)
	}
	if err != nil {
		s.Args["undo"] = "nothing"
		return err
	}
	switch s.Op {
	case opSnapshot:
		_, err = m.manage.Run(ctx, "snapshot", m.uuid, "take", s.Args["name"], "--live")
	case opPause:
		_, err = m.manage.Run(ctx, "controlvm", m.uuid, "pause")
	case opSave:
		_, err = m.manage.Run(ctx, "controlvm", m.uuid, "savestate")
	default:
		return fmt.Errorf("step %q is not known", s.Op)
	}
	return err
}

func (m *machine) Undo(ctx context.Context, s *hypervisor.Step) error {
	if mine, err := m.own.Undo(ctx, s); mine || s.Args["undo"] == "nothing" {
		return err
	}
	state, err := m.state(ctx)
	if err != nil {
		return err
	}
	switch s.Op {
	case opSnapshot:
		has, err := m.hasSnapshot(ctx, s.Args["name"])
		if err != nil || !has {
			return err
		}
		if _, err := m.manage.Run(ctx, "snapshot", m.uuid, "delete", s.Args["name"]); err != nil {
			return err
		}
		if has, err = m.hasSnapshot(ctx, s.Args["name"]); err == nil && has {
			err = fmt.Errorf("the snapshot %s is still there", s.Args["name"])
		}
		return err
	case opPause:
		if state == "paused" {
			_, err = m.manage.Run(ctx, "controlvm", m.uuid, "resume")
		}
		return err
	case opSave:
		if state == "saved" {
			_, err = m.manage.Run(ctx, "startvm", m.uuid, "--type", "headless")
		}
		return err
	}
	return fmt.Errorf("step %q is not known", s.Op)
}

// hasSnapshot looks for a snapshot among lines like SnapshotName-1="name".
func (m *machine) hasSnapshot(ctx context.Context, name string) (bool, error) {
	out, err := m.manage.Run(ctx, "snapshot", m.uuid, "list", "--machinereadable")
	if program.Said(err, "does not have any snapshots") || strings.Contains(out, "does not have any snapshots") {
		return false, nil
	}
	for line := range strings.Lines(out) {
		key, rest, ok := word(strings.TrimRight(line, "\r\n"))
		if !ok || !strings.HasPrefix(key, "SnapshotName") || !strings.HasPrefix(rest, "=") {
			continue
		}
		if value, _, ok := word(rest[1:]); ok && value == name {
			return true, nil
		}
	}
	return false, err
}

func (m *machine) Close() error {
	m.own.Close()
	return nil
}
