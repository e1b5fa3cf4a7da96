package qmp

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/fsmap/mapfile"
)

// The steps.
const (
	opFsfreeze = "freeze file systems" // through the guest's agent
	opStop     = "stop"
	opWatch    = "watch" // nothing is done: the machine stands still already
	opOverlay  = "make overlays"
	opAdd      = "add overlays"
	opSnapshot = "snapshot"
	opBitmaps  = "begin bitmaps"
	opMemory   = "make memory file"
	opSpeed    = "lift bandwidth limit"
	opMigrate  = "save memory"
)

// overlay is an image that takes a disk's writes for a while.
type overlay struct {
	Disk   string `json:"disk"`
	Base   string `json:"base"`      // path of the image that is frozen
	Node   string `json:"base_node"` // its node
	Format string `json:"format"`
	Size   int64  `json:"size"`
	Path   string `json:"path"`
	Over   string `json:"node"` // the overlay's node
	Direct bool   `json:"direct,omitempty"`
	Unsafe bool   `json:"no_flush,omitempty"`
}

// overlayPrefix begins the names of overlays' nodes.
const overlayPrefix = "vmfreeze-"

// byBitmaps adds to a method how it tells changes.
const byBitmaps = "; changes by dirty bitmaps"

// errNoOverlays says why a machine can't be frozen by a snapshot.
var errNoOverlays = errors.New("no snapshot")

// Plan gives the steps.
func (m *machine) Plan(ctx context.Context, vm *mapfile.VM, r hypervisor.Request) (*hypervisor.Plan, error) {
	if len(m.foreign) > 0 {
		return nil, errors.New(strings.Join(m.foreign, "; "))
	}
	for _, d := range m.disks {
		if strings.HasPrefix(d.Inserted.Node, overlayPrefix) {
			return nil, fmt.Errorf("%w: %s is an overlay of a vmfreeze that reached the machine in another way: if it doesn't run any more, "+
				"use vmfreeze --recover", hypervisor.ErrBusy, d.path)
		}
	}
	id, err := m.args()
	if err != nil {
		return nil, err
	}
	if vm.StateFound != "running" {
		return m.standing(vm, r, id)
	}
	var quiesce []hypervisor.Step
	if r.Quiesce {
		socket, err := m.agentSocket(ctx, r.Agent)
		if err != nil {
			return nil, err
		}
		if err := ping(ctx, socket); err != nil {
			return nil, fmt.Errorf("the guest's agent: %w", err)
		}
		quiesce = []hypervisor.Step{{Op: opFsfreeze, Args: with(id, "agent", socket), Holds: true, Freezes: true}}
	}
	p := &hypervisor.Plan{Mode: r.Mode}
	if r.Mode == hypervisor.Snapshot || r.Mode == hypervisor.Auto {
		p, err = m.planSnapshot(r, id, quiesce)
		if !errors.Is(err, errNoOverlays) || r.Mode == hypervisor.Snapshot {
			return p, err
		}
		p = &hypervisor.Plan{Mode: hypervisor.Pause, Notes: []string{err.Error()}}
	}
	p.Stops = true
	still := append(quiesce, hypervisor.Step{Op: opStop, Args: id, Holds: true, Instant: true})
	p.Method = "stop, then cont"
	if r.Track {
		args, err := m.planTrack(id)
		if err != nil {
			return nil, err
		}
		still = append(still, hypervisor.Step{Op: opBitmaps, Args: args, Holds: true})
		p.Method += byBitmaps
	}
	if p.Mode == hypervisor.Pause {
		p.Steps = still
		return p, nil
	}
	p.Method = "migration to a file: " + p.Method
	memory := filepath.Join(m.work(r), "vmfreeze-"+id["run"]+".memory")
	p.Files = []mapfile.VMFile{{Path: memory, Role: mapfile.RoleMemory, Format: "qemu migration stream"}}
	args := with(id, "memory", memory)
	p.Steps = append([]hypervisor.Step{{Op: opMemory, Args: args}, {Op: opSpeed, Args: id}}, still...)
	p.Steps = append(p.Steps, hypervisor.Step{Op: opMigrate, Args: args, Holds: true})
	return p, nil
}

// standing plans for a machine that stands still by itself: it is left as it was found.
func (m *machine) standing(vm *mapfile.VM, r hypervisor.Request, id map[string]string) (*hypervisor.Plan, error) {
	switch {
	case r.Mode != hypervisor.Auto && r.Mode != hypervisor.Pause:
		return nil, fmt.Errorf("the machine is %s, not running: it is left so, and only its files are watched (mode auto or pause)", vm.StateFound)
	case r.Quiesce:
		return nil, fmt.Errorf("the machine is %s: its guest can't freeze its file systems", vm.StateFound)
	case r.Track:
		return nil, fmt.Errorf("the machine is %s: changes are tracked from a running one", vm.StateFound)
	case vm.StateFound == "inmigrate" || vm.StateFound == "finish-migrate" || vm.StateFound == "save-vm" || vm.StateFound == "restore-vm":
		return nil, fmt.Errorf("the machine is in state %s: wait until that is over", vm.StateFound)
	}
	return &hypervisor.Plan{
		Mode: hypervisor.Pause, Method: "found " + vm.StateFound + ", and left so",
		Steps: []hypervisor.Step{{Op: opWatch, Args: with(id, "state", vm.StateFound), Instant: true}},
	}, nil
}

// args gives what every step carries: which QEMU it was done to, and a name for what this run makes.
func (m *machine) args() (map[string]string, error) {
	b, err := json.Marshal(m.process)
	if err != nil {
		return nil, err
	}
	var run [4]byte
	rand.Read(run[:])
	return map[string]string{"qemu": string(b), "run": hex.EncodeToString(run[:])}, nil
}

// with gives the arguments with one more.
func with(args map[string]string, key, value string) map[string]string {
	all := map[string]string{key: value}
	for k, v := range args {
		all[k] = v
	}
	return all
}

// work gives the folder for the files that the steps make.
func (m *machine) work(r hypervisor.Request) string {
	if r.Work != "" {
		return r.Work
	}
	for _, d := range m.disks {
		if d.role == mapfile.RoleDisk && d.path != "" {
			return filepath.Dir(d.path)
		}
	}
	return m.dir
}

func (m *machine) planSnapshot(r hypervisor.Request, id map[string]string, quiesce []hypervisor.Step) (*hypervisor.Plan, error) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return nil, fmt.Errorf("%w: qemu-img, which makes overlays, is not installed", errNoOverlays)
	}
	var list []overlay
	for _, d := range m.disks {
		if d.Inserted.RO {
			continue
		}
		if d.Inserted.Drv != d.Inserted.Image.Format {
			return nil, fmt.Errorf("%w: above the image of %s is a filter, %s", errNoOverlays, d.name, d.Inserted.Drv)
		}
		if d.Inserted.Encrypted {
			return nil, fmt.Errorf("%w: %s is encrypted, and an overlay would hold what is written to it in the clear", errNoOverlays, d.name)
		}
		dir := r.Work
		if dir == "" {
			dir = filepath.Dir(d.path)
		}
		n := len(list)
		list = append(list, overlay{
			Disk: d.name, Base: d.path, Node: d.Inserted.Node, Format: d.Inserted.Image.Format, Size: d.Inserted.Image.Size,
			Path: filepath.Join(dir, fmt.Sprintf("%s.vmfreeze-%s.%d.qcow2", strings.TrimSuffix(filepath.Base(d.path), filepath.Ext(d.path)), id["run"], n)),
			Over: fmt.Sprintf("%s%s-%d", overlayPrefix, id["run"], n), Direct: d.Inserted.Cache.Direct, Unsafe: d.Inserted.Cache.NoFlush,
		})
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: the machine writes to no disk", errNoOverlays)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	args := with(id, "overlays", string(b))
	p := &hypervisor.Plan{Mode: hypervisor.Snapshot, Method: "overlays by blockdev-snapshot, then block-commit"}
	p.Steps = []hypervisor.Step{{Op: opOverlay, Args: args}, {Op: opAdd, Args: args}}
	for _, s := range quiesce {
		s.Early = true
		p.Steps = append(p.Steps, s)
	}
	snapshot := hypervisor.Step{Op: opSnapshot, Args: args, Instant: true, Commits: true}
	if r.Track {
		if snapshot.Args, err = m.planTrack(args); err != nil {
			return nil, err
		}
		p.Method += byBitmaps
	}
	p.Steps = append(p.Steps, snapshot)
	return p, nil
}

// Do carries out a step.
func (m *machine) Do(ctx context.Context, s *hypervisor.Step) error {
	switch s.Op {
	case opFsfreeze:
		return m.freezeGuest(ctx, s)
	case opStop:
		return m.stop(ctx)
	case opWatch:
		m.resumes = m.c.count("RESUME")
		return m.still(ctx, s)
	case opOverlay:
		return m.makeOverlays(ctx, s)
	case opAdd:
		return m.addOverlays(ctx, s)
	case opSnapshot:
		return m.snapshot(ctx, s)
	case opBitmaps:
		return m.begin(ctx, s)
	case opMemory:
		return m.makeMemory(s)
	case opSpeed:
		return m.liftLimit(ctx, s)
	case opMigrate:
		return m.saveMemory(ctx, s)
	}
	return fmt.Errorf("unknown step %q", s.Op)
}

// Undo takes a step back.
func (m *machine) Undo(ctx context.Context, s *hypervisor.Step) error {
	same, err := m.same(s)
	if err != nil {
		return err
	}
	if s.Op == opMemory {
		return removeFile(s.Args["memory"])
	}
	if !same {
		// What was in the memory of that QEMU is gone with it; files stay.
		switch s.Op {
		case opOverlay:
			return m.removeOverlays(s)
		case opSnapshot:
			return m.commitOffline(ctx, s)
		case opStop, opWatch:
			if m.c != nil && m.process.Alive() {
				return fmt.Errorf("%w: the machine was started anew", hypervisor.ErrSpoiled)
			}
		}
		return nil
	}
	switch s.Op {
	case opFsfreeze:
		return m.thawGuest(ctx, s)
	case opStop:
		return m.cont(ctx)
	case opWatch:
		return m.still(ctx, s)
	case opOverlay:
		return m.removeOverlays(s)
	case opAdd:
		return m.dropOverlays(ctx, s)
	case opSnapshot:
		return m.commit(ctx, s)
	case opBitmaps:
		return m.endExport(ctx, s, false) // the bitmaps stay: nothing is forgotten
	case opSpeed:
		return m.restoreLimit(ctx, s)
	case opMigrate:
		return m.endMigration(ctx)
	}
	return fmt.Errorf("unknown step %q", s.Op)
}

// same tells whether the QEMU that a step was done to is the one that is connected to. A QEMU that runs and can't be
// reached is an error.
func (m *machine) same(s *hypervisor.Step) (bool, error) {
	var was hypervisor.Process
	if err := json.Unmarshal([]byte(s.Args["qemu"]), &was); err != nil {
		return false, fmt.Errorf("journal: which QEMU: %w", err)
	}
	switch {
	case m.c != nil && m.process == was:
		select {
		case <-m.c.gone:
			if was.Alive() {
				return false, m.c.lost()
			}
			return false, nil
		default:
			return true, nil
		}
	case was.Alive():
		return false, fmt.Errorf("%w: QEMU (process %d) runs, but not behind its QMP socket %s", hypervisor.ErrBusy, was.PID, m.socket)
	}
	return false, nil
}

func (m *machine) stop(ctx context.Context) error {
	m.resumes = m.c.count("RESUME")
	return m.c.run(ctx, "stop", nil, nil)
}

// cont has the machine run again, if it stands as stop or a migration leaves it.
func (m *machine) cont(ctx context.Context) error {
	status, err := m.status(ctx)
	if err != nil {
		return err
	}
	switch status {
	case "paused", "postmigrate":
		return m.c.run(ctx, "cont", nil, nil)
	case "running":
		if m.c.count("RESUME") != m.resumes {
			return fmt.Errorf("%w: somebody else had the machine go on", hypervisor.ErrSpoiled)
		}
		return nil
	}
	return fmt.Errorf("the machine is in state %s by now, and is left so", status)
}

// still makes sure that a machine is still in the state in which it was found.
func (m *machine) still(ctx context.Context, s *hypervisor.Step) error {
	status, err := m.status(ctx)
	switch {
	case err != nil:
		return err
	case status != s.Args["state"] || m.c.count("RESUME") != m.resumes:
		return fmt.Errorf("%w: somebody else had the machine go on: it was %s and is %s", hypervisor.ErrSpoiled, s.Args["state"], status)
	}
	return nil
}
