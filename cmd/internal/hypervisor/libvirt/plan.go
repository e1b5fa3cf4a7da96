package libvirt

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/domain"
	"vmkit/cmd/internal/hypervisor/hostfiles"
	"vmkit/cmd/internal/hypervisor/program"
	"vmkit/fsmap/mapfile"
)

const (
	opFreeze  = "fsfreeze"
	opOverlay = "overlay"
	opPause   = "stop"
	opSave    = "managedsave"
)

func (m *machine) Plan(ctx context.Context, vm *mapfile.VM, r hypervisor.Request) (*hypervisor.Plan, error) {
	m.Of = vm
	d, err := m.definition(ctx)
	if err != nil {
		return nil, err
	}
	keep, err := m.keep(ctx, vm, r, d)
	if err != nil {
		return nil, err
	}
	switch vm.StateFound {
	case "running", "paused":
	case "off", "suspended":
		return &hypervisor.Plan{
			Mode: hypervisor.Off, Method: "off, its images locked against a start",
			Steps: []hypervisor.Step{keep, hostfiles.HoldStep(vm)},
		}, nil
	default:
		return nil, fmt.Errorf("it is %q: wait until it is running, paused or off", vm.StateFound)
	}
	for _, k := range d.Images() {
		if k.Shareable != nil {
			return nil, fmt.Errorf("%s is shared with other machines, which go on writing: it can be frozen only with all of them off", k.Target.Dev)
		}
	}
	p := &hypervisor.Plan{Mode: r.Mode, Steps: []hypervisor.Step{keep}}
	if r.Mode == hypervisor.Auto {
		p.Mode = hypervisor.Snapshot
	}
	// What is done to this run of the machine is not undone on another.
	run := map[string]string{"run": runOf(d)}
	if r.Quiesce {
		if vm.StateFound != "running" {
			return nil, errors.New("it is paused, so its guest agent can't freeze file systems; leave out --quiesce")
		}
		p.Steps = append(p.Steps, hypervisor.Step{Op: opFreeze, Args: run, Holds: true, Freezes: true, Early: p.Mode == hypervisor.Snapshot})
	}
	switch p.Mode {
	case hypervisor.Snapshot:
		s, err := m.overlay(ctx, d, vm, r.Work)
		if err != nil {
			return nil, err
		}
		p.Method = "external snapshot by libvirt, then block-commit"
		p.Steps = append(p.Steps, s)
	case hypervisor.Pause:
		p.Method, p.Stops = "paused as it was found", true
		if vm.StateFound == "running" {
			p.Method = "virsh suspend, then resume"
			p.Steps = append(p.Steps, hypervisor.Step{Op: opPause, Args: run, Holds: true, Instant: true})
		}
	case hypervisor.Suspend:
		info, err := m.info(ctx)
		if err != nil {
			return nil, err
		}
		if info["Persistent"] != "yes" {
			return nil, errors.New("it is a transient machine, which ends when it is saved: use -m snapshot or -m pause")
		}
		p.Method, p.Stops = "managedsave, then start", true
		hold := hostfiles.HoldStep(vm)
		hold.Instant = false
		p.Steps = append(p.Steps, hypervisor.Step{Op: opSave, Args: run, Holds: true, Instant: true}, hold)
		p.Files = []mapfile.VMFile{{Path: m.saveFile(), Role: mapfile.RoleMemory}}
	default:
		return nil, fmt.Errorf("mode %q is not known", r.Mode)
	}
	return p, nil
}

// keep plans to keep the definition, and what else of small files a running machine may change.
func (m *machine) keep(ctx context.Context, vm *mapfile.VM, r hypervisor.Request, d *domain.Domain) (hypervisor.Step, error) {
	text, err := m.run(ctx, "dumpxml", m.uuid, "--inactive")
	if err != nil {
		return hypervisor.Step{}, err
	}
	dir := hostfiles.WorkDir(vm, r.Work)
	for i, f := range vm.Files {
		if f.Role == mapfile.RoleConfig {
			vm.Files = append(vm.Files[:i], vm.Files[i+1:]...)
			break
		}
	}
	kept := []hostfiles.Kept{{Path: m.name + ".xml", Text: text, Role: mapfile.RoleConfig}}
	for _, path := range m.firmware(d) {
		if _, err := os.Stat(path); err == nil {
			kept = append(kept, hostfiles.Kept{Path: path, Role: mapfile.RoleFirmware})
		}
	}
	return hostfiles.KeepStep(vm, dir, kept), nil
}

// runOf names a run of a domain: its number counts its starts, until the host is started anew.
func runOf(d *domain.Domain) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || d.ID == "" {
		return ""
	}
	return d.ID + "@" + strings.TrimSpace(string(boot))
}

// layer is an overlay that is to take a disk's writes, and what lies below it.
type layer struct {
	disk, overlay      string
	base, format, kind string // kind: "file" or "block"
	mtime              string // of the base, when the overlay took over
}

func layerOf(s *hypervisor.Step, disk string) layer {
	a := func(name string) string { return s.Args[name+"."+disk] }
	return layer{disk, a("overlay"), a("base"), a("format"), a("kind"), a("mtime")}
}

// overlay plans an overlay for each disk that can be written.
func (m *machine) overlay(ctx context.Context, d *domain.Domain, vm *mapfile.VM, work string) (hypervisor.Step, error) {
	s := hypervisor.Step{Op: opOverlay, Args: map[string]string{"run": runOf(d), "was": vm.StateFound}, Instant: true, Commits: true}
	suffix := ".vmfreeze-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	for i := range d.Disks {
		k := &d.Disks[i]
		dev, path := k.Target.Dev, m.path(ctx, k)
		if path == "" || k.ReadOnly != nil || k.Device != "" && k.Device != "disk" {
			s.Args["not."+dev] = "yes"
			continue
		}
		if k.Mirror != nil {
			return s, fmt.Errorf("%w: a block job (%s) runs on %s: wait for its end", hypervisor.ErrBusy, k.Mirror.Job, dev)
		}
		st, err := os.Stat(path)
		if err != nil {
			return s, err
		}
		dir := work
		switch {
		case dir != "":
		case st.Mode().IsRegular():
			dir = filepath.Dir(path)
		default:
			return s, fmt.Errorf("%s is a device, beside which no overlay can lie: say with --work where it may", path)
		}
		kind := "file"
		if k.Source.Dev != "" {
			kind = "block"
		}
		s.Args["overlay."+dev], s.Args["base."+dev] = filepath.Join(dir, filepath.Base(path)+"."+dev+suffix), path
		s.Args["format."+dev], s.Args["kind."+dev] = diskFormat(k), kind
	}
	if len(hostfiles.Disks(s.Args, "overlay")) == 0 {
		return s, errors.New("it has no disk that an overlay could be laid over: use -m pause")
	}
	return s, nil
}

func (m *machine) Do(ctx context.Context, s *hypervisor.Step) error {
	if mine, err := m.own.Do(ctx, s); mine {
		return err
	}
	if s.Op == opPause {
		return m.pause(ctx, s)
	}
	d, err := m.definition(ctx)
	if err != nil {
		return err
	}
	if s.Args["run"] != runOf(d) {
		return errors.New("it was restarted, or has ended, in the meantime")
	}
	switch s.Op {
	case opFreeze:
		return m.freeze(ctx, s)
	case opOverlay:
		return m.doOverlay(ctx, s)
	case opSave:
		_, err := m.run(ctx, "managedsave", m.uuid)
		return err
	}
	return fmt.Errorf("step %q is not known", s.Op)
}

// pause stops this run of the machine, and looks at its state before in the same breath: suspending it twice is no error.
func (m *machine) pause(ctx context.Context, s *hypervisor.Step) error {
	id, _, _ := strings.Cut(s.Args["run"], "@")
	out, err := m.run(ctx, "domstate --reason "+id+"; suspend "+id)
	if err != nil {
		return err
	}
	if state, _, _ := strings.Cut(strings.TrimSpace(out), "\n"); !strings.HasPrefix(state, "running") {
		s.Args["found"] = state // by somebody else: left so
		return fmt.Errorf("it is %s by now", state)
	}
	m.done(s)
	return nil
}

// done notes what this process did to the run of the machine that it is about.
func (m *machine) done(s *hypervisor.Step) {
	if m.did == nil {
		m.did = map[string]string{}
	}
	m.did[s.Op] = s.Args["run"]
}

func (m *machine) freeze(ctx context.Context, s *hypervisor.Step) error {
	_, err := m.run(ctx, "domfsfreeze", m.uuid)
	if program.Said(err, "disabled", "already frozen") {
		s.Args["found"] = "frozen" // by somebody else, who will thaw it
	}
	if err != nil {
		return fmt.Errorf("the guest's file systems can't be frozen: %w", err)
	}
	m.done(s)
	return nil
}

func (m *machine) doOverlay(ctx context.Context, s *hypervisor.Step) error {
	args := []string{"snapshot-create-as", "--domain", m.uuid, "--name", "vmfreeze", "--disk-only", "--atomic", "--no-metadata"}
	spec := func(disk, rest string) {
		args = append(args, "--diskspec", strings.ReplaceAll(disk, ",", ",,")+","+rest)
	}
	for _, disk := range hostfiles.Disks(s.Args, "not") {
		spec(disk, "snapshot=no")
	}
	layers := hostfiles.Disks(s.Args, "overlay")
	for _, disk := range layers {
		l := layerOf(s, disk)
		if _, err := os.Lstat(l.overlay); !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s is there already", l.overlay)
		}
		spec(disk, "snapshot=external,file="+strings.ReplaceAll(l.overlay, ",", ",,"))
	}
	if _, err := m.run(ctx, args...); err != nil {
		return err
	}
	for _, disk := range layers {
		if l := layerOf(s, disk); l.kind == "file" {
			mtime, err := modified(l.base)
			if err != nil {
				return err
			}
			s.Args["mtime."+disk] = mtime
		}
	}
	return nil
}

// modified tells when a file was last written to, as an argument of a step.
func modified(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	return strconv.FormatInt(st.ModTime().UnixNano(), 10), nil
}
