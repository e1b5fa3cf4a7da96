// Package libvirt freezes machines of libvirt's QEMU driver, through virsh alone: never behind libvirt's back.
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/domain"
	"vmkit/cmd/internal/hypervisor/hostfiles"
	"vmkit/cmd/internal/hypervisor/program"
	"vmkit/fsmap/mapfile"
)

// New gives the driver. A target is a machine's name or UUID, behind a connection URI and "/" where it isn't virsh's
// default: "qemu:///session/web1".
func New() hypervisor.Driver { return driver{} }

type driver struct{}

func (driver) Name() string { return "libvirt" }

// machine is a domain.
type machine struct {
	hostfiles.Untracked
	virsh *program.Program
	uri   string
	uuid  string
	name  string
	own   hostfiles.Steps
	did   map[string]string // runs, by the steps that were done to them by this process
}

func (driver) Open(ctx context.Context, target string) (hypervisor.Machine, error) {
	m := &machine{}
	name, err := m.connect(ctx, target)
	if err != nil {
		return nil, err
	}
	names, err := m.list(ctx)
	if err != nil {
		return nil, err
	}
	for uuid, n := range names {
		if n == name || uuid == strings.ToLower(name) {
			m.uuid, m.name = uuid, n
			return m, nil
		}
	}
	return nil, fmt.Errorf("%w at %s", hypervisor.ErrNoMachine, m.uri)
}

// connect takes the connection's URI off a target, and finds out the default one.
func (m *machine) connect(ctx context.Context, target string) (name string, err error) {
	m.virsh = &program.Program{Name: "virsh", Args: []string{"-q"}}
	name = target
	if i := strings.LastIndexByte(target, '/'); i >= 0 && strings.Contains(target[:i], ":") {
		m.uri, name = target[:i], target[i+1:]
	} else {
		out, err := m.run(ctx, "uri")
		if err != nil {
			return "", err
		}
		m.uri = strings.TrimSpace(out)
	}
	m.virsh.Args = []string{"-q", "-c", m.uri}
	u, err := url.Parse(m.uri)
	switch {
	case err != nil:
		return "", fmt.Errorf("the connection's URI: %w", err)
	case u.Scheme != "qemu" && !strings.HasPrefix(u.Scheme, "qemu+"):
		return "", fmt.Errorf("%w: %s leads to no QEMU machines, and no others can be frozen through libvirt", hypervisor.ErrUnavailable, m.uri)
	case u.Host != "" && u.Hostname() != "localhost":
		return "", fmt.Errorf("the machines of %s have their files there: run vmfreeze on %s", m.uri, u.Hostname())
	}
	return name, nil
}

// list gives the names of all domains by their UUIDs.
func (m *machine) list(ctx context.Context) (map[string]string, error) {
	out, err := m.run(ctx, "list", "--all", "--uuid", "--name")
	if err != nil {
		return nil, err
	}
	const uuidLen = 36
	names := map[string]string{}
	for line := range strings.Lines(out) {
		if len(line) > uuidLen && line[uuidLen] == ' ' {
			names[line[:uuidLen]] = strings.TrimSpace(line[uuidLen:])
		}
	}
	return names, nil
}

func (driver) List(ctx context.Context) ([]string, error) {
	m := &machine{}
	if _, err := m.connect(ctx, ""); err != nil {
		return nil, err
	}
	names, err := m.list(ctx)
	if err != nil {
		return nil, err
	}
	var list []string
	for _, n := range names {
		list = append(list, n)
	}
	slices.Sort(list)
	return list, nil
}

// run runs virsh, and tells from its message whether libvirt is there and has the machine.
func (m *machine) run(ctx context.Context, args ...string) (string, error) {
	return m.feed(ctx, "", args...)
}

func (m *machine) feed(ctx context.Context, input string, args ...string) (string, error) {
	out, err := m.virsh.Feed(ctx, input, args...)
	switch {
	case program.Said(err, "failed to connect to the hypervisor", "client socket is closed", "End of file while reading data"):
		return "", fmt.Errorf("%w: %w", hypervisor.ErrUnavailable, err)
	case program.Said(err, "failed to get domain", "Domain not found"):
		return "", fmt.Errorf("%w: %w", hypervisor.ErrNoMachine, err)
	}
	return out, err
}

// definition reads what the domain is now; with "--inactive", what it will be when it is started anew.
func (m *machine) definition(ctx context.Context, options ...string) (*domain.Domain, error) {
	text, err := m.run(ctx, append([]string{"dumpxml", m.uuid}, options...)...)
	if err != nil {
		return nil, err
	}
	return domain.Parse(text)
}

// state gives the state and its reason, in virsh's words: "paused", "user".
func (m *machine) state(ctx context.Context) (state, reason string, err error) {
	out, err := m.run(ctx, "domstate", m.uuid, "--reason")
	if err != nil {
		return "", "", err
	}
	state, reason, _ = strings.Cut(strings.TrimSpace(out), " (")
	return state, strings.TrimSuffix(reason, ")"), nil
}

// info reads what dominfo prints.
func (m *machine) info(ctx context.Context) (map[string]string, error) {
	return m.table(ctx, "dominfo", m.uuid)
}

// table reads what virsh prints as lines of "Name:  value".
func (m *machine) table(ctx context.Context, args ...string) (map[string]string, error) {
	out, err := m.run(ctx, args...)
	if err != nil {
		return nil, err
	}
	t := map[string]string{}
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(line, ":")
		t[name] = strings.TrimSpace(value)
	}
	return t, nil
}

func (m *machine) Describe(ctx context.Context) (*mapfile.VM, error) {
	d, err := m.definition(ctx)
	if err != nil {
		return nil, err
	}
	vm := &mapfile.VM{Type: "vm", Name: m.name, Driver: "libvirt", Target: "libvirt:" + m.uri + "/" + m.name, UUID: m.uuid}
	if vm.StateFound, err = m.stateFound(ctx); err != nil {
		return nil, err
	}
	for _, k := range d.Images() {
		m.addDisk(ctx, vm, k)
	}
	hostfiles.Add(vm, m.configFile(), mapfile.RoleConfig)
	for _, path := range m.firmware(d) {
		if !hostfiles.Add(vm, path, mapfile.RoleFirmware) {
			vm.Notes = append(vm.Notes, path+" is not there, or can't be seen")
		}
	}
	if vm.StateFound == "suspended" && !hostfiles.Add(vm, m.saveFile(), mapfile.RoleMemory) {
		vm.Notes = append(vm.Notes, "its memory was saved, in a file that can't be seen")
	}
	versions, err := m.table(ctx, "version")
	if err != nil {
		return nil, err
	}
	vm.Versions = map[string]string{"libvirt": strings.TrimPrefix(versions["Using library"], "libvirt ")}
	if name, version, ok := strings.Cut(versions["Running hypervisor"], " "); ok {
		vm.Versions[strings.ToLower(name)] = version
	}
	return vm, nil
}

// stateFound gives the state in the words of records.
func (m *machine) stateFound(ctx context.Context) (string, error) {
	state, _, err := m.state(ctx)
	if err != nil {
		return "", err
	}
	switch state {
	case "running", "idle": // QEMU's machines are never "blocked"
		return "running", nil
	case "shut off":
		info, err := m.info(ctx)
		if err != nil {
			return "", err
		}
		if info["Managed save"] == "yes" {
			return "suspended", nil
		}
		return "off", nil
	}
	return state, nil
}

// addDisk adds a disk's files, or a note that says why it has none.
func (m *machine) addDisk(ctx context.Context, vm *mapfile.VM, k *domain.Disk) {
	note := func(format string, args ...any) {
		vm.Notes = append(vm.Notes, k.Target.Dev+": "+fmt.Sprintf(format, args...))
	}
	path := m.path(ctx, k)
	if path == "" {
		note("it is no file of this host (%s %s %s), so it is not among the machine's files", k.Type, k.Source.Protocol, k.Source.Name)
		return
	}
	if err := hostfiles.AddDisk(vm, path, diskFormat(k), k.Target.Dev, hostfiles.Anywhere); err != nil {
		note("%v", err)
		vm.Files = append(vm.Files, mapfile.VMFile{Path: path, Role: mapfile.RoleDisk, Format: diskFormat(k), Disk: k.Target.Dev})
	}
}

// diskFormat is a disk's format. Where none is said libvirt takes raw and probes nothing.
func diskFormat(k *domain.Disk) string {
	if k.Driver.Type == "" {
		return "raw"
	}
	return k.Driver.Type
}

// path gives the file or device of a disk, or "" where it has none on this host.
func (m *machine) path(ctx context.Context, k *domain.Disk) string {
	if k.Type == "volume" {
		out, err := m.run(ctx, "vol-path", "--pool", k.Source.Pool, "--vol", k.Source.Volume)
		if err != nil {
			return ""
		}
		return strings.TrimSuffix(out, "\n")
	}
	return k.Source.Path()
}

// firmware gives the files of the firmware's variables and of an emulated TPM.
func (m *machine) firmware(d *domain.Domain) (paths []string) {
	if p := d.NVRAMPath(); p != "" {
		paths = append(paths, p)
	}
	for _, t := range d.TPMs {
		if t.Backend.Type != "emulator" {
			continue
		}
		_, _, dir := m.dirs()
		file := "tpm2/tpm2-00.permall"
		if t.Backend.Version == "1.2" {
			file = "tpm1.2/tpm-00.permall"
		}
		paths = append(paths, filepath.Join(dir, m.uuid, file))
	}
	return paths
}

// dirs gives libvirt's own folders (virQEMUDriverConfigNew in src/qemu/qemu_conf.c): of definitions, of saved memory, of
// emulated TPMs. Those of a user's own libvirt are in his.
func (m *machine) dirs() (config, save, tpm string) {
	if u, err := url.Parse(m.uri); err == nil && u.Path == "/session" {
		if base, err := os.UserConfigDir(); err == nil {
			config = filepath.Join(base, "libvirt", "qemu")
			return config, filepath.Join(config, "save"), filepath.Join(config, "swtpm")
		}
	}
	return "/etc/libvirt/qemu", "/var/lib/libvirt/qemu/save", "/var/lib/libvirt/swtpm"
}

func (m *machine) configFile() string {
	dir, _, _ := m.dirs()
	return filepath.Join(dir, m.name+".xml")
}

func (m *machine) saveFile() string {
	_, dir, _ := m.dirs()
	return filepath.Join(dir, m.name+".save")
}

func (m *machine) Close() error {
	m.own.Close()
	return nil
}

// Gone implements hypervisor.Survivor: a machine that libvirt doesn't know any more, as one that was never defined and
// has ended. As long as libvirt doesn't answer nothing is known.
func (driver) Gone(vm *mapfile.VM) (hypervisor.Machine, error) {
	ctx := context.Background()
	m := &machine{name: vm.Name, uuid: vm.UUID}
	if _, err := m.connect(ctx, strings.TrimPrefix(vm.Target, "libvirt:")); err != nil {
		return nil, err
	}
	names, err := m.list(ctx)
	if err != nil {
		return nil, err
	}
	if _, ok := names[m.uuid]; ok {
		return m, nil
	}
	return &gone{machine: m}, nil
}

// gone is a machine that is no more.
type gone struct{ *machine }

func (m *gone) Undo(ctx context.Context, s *hypervisor.Step) error {
	if mine, err := m.own.Undo(ctx, s); mine {
		return err
	}
	if s.Op != opOverlay {
		return nil
	}
	var errs []error
	for _, disk := range hostfiles.Disks(s.Args, "overlay") {
		errs = append(errs, m.commitFile(ctx, layerOf(s, disk), false))
	}
	return errors.Join(errs...)
}
