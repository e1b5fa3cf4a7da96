package esx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/hostfiles"
	"vmkit/fsmap/mapfile"
)

const (
	opQuiesce  = "quiesce" // done within the snapshot that follows
	opSnapshot = "snapshot"
	opSuspend  = "suspend"
	opStay     = "stay-off"
)

func (m *machine) Plan(_ context.Context, vm *mapfile.VM, r hypervisor.Request) (*hypervisor.Plan, error) {
	m.Of = vm
	if vm.StateFound != "running" {
		return &hypervisor.Plan{
			Mode: hypervisor.Off, Method: "off, and seen to stay so",
			Steps: []hypervisor.Step{{Op: opStay, Args: map[string]string{"state": vm.StateFound}, Instant: true}},
		}, nil
	}
	switch r.Mode {
	case hypervisor.Auto, hypervisor.Snapshot:
		p := &hypervisor.Plan{Mode: hypervisor.Snapshot, Method: "CreateSnapshot without memory, then RemoveSnapshot"}
		if m.mounted(vm) {
			p.Steps = append(p.Steps, hostfiles.KeepStep(vm, cmp.Or(r.Work, os.TempDir()), hostfiles.Small(vm)))
		} else {
			p.Notes = append(p.Notes, "its configuration is changed by the snapshot: the clone's names the disks that the snapshot made")
		}
		if r.Quiesce {
			p.Steps = append(p.Steps, hypervisor.Step{Op: opQuiesce, Early: true, Freezes: true})
		}
		args := map[string]string{
			"name": "vmfreeze-" + strconv.FormatInt(time.Now().UnixNano(), 36), "quiesce": strconv.FormatBool(r.Quiesce),
		}
		p.Steps = append(p.Steps, hypervisor.Step{Op: opSnapshot, Args: args, Instant: true, Commits: true})
		return p, nil
	case hypervisor.Pause:
		return nil, errors.New("vSphere can't pause a machine: use -m snapshot or -m suspend")
	case hypervisor.Suspend:
		if r.Quiesce {
			return nil, errors.New("vSphere freezes the guest's file systems with a snapshot only; leave out --quiesce")
		}
		return &hypervisor.Plan{
			Mode: hypervisor.Suspend, Method: "SuspendVM, then PowerOnVM", Stops: true,
			Steps: []hypervisor.Step{{Op: opSuspend, Args: map[string]string{}, Holds: true, Instant: true}},
		}, nil
	}
	return nil, fmt.Errorf("mode %q is not known", r.Mode)
}

func (m *machine) Do(ctx context.Context, s *hypervisor.Step) error {
	if mine, err := m.own.Do(ctx, s); mine {
		return err
	}
	state, err := m.PowerState(ctx)
	if err != nil {
		return m.gone(err)
	}
	switch s.Op {
	case opQuiesce:
		return nil
	case opStay:
		if states[state] != s.Args["state"] {
			return fmt.Errorf("it is %s by now", state)
		}
		m.watched = true
		return nil
	case opSnapshot:
		quiesce := s.Args["quiesce"] == "true"
		vm, err := m.properties(ctx, "runtime")
		if err != nil {
			return err
		}
		if needed := vm.Runtime.ConsolidationNeeded; needed != nil && *needed {
			s.Args["found"] = "consolidation needed" // and left so
		}
		task, err := m.CreateSnapshot(ctx, s.Args["name"], "made by vmfreeze while the machine is copied", false, quiesce)
		return m.wait(ctx, task, err)
	case opSuspend:
		if state != types.VirtualMachinePowerStatePoweredOn {
			s.Args["undo"] = "nothing"
			return fmt.Errorf("it is %s by now", state)
		}
		task, err := m.Suspend(ctx)
		return m.wait(ctx, task, err)
	}
	return fmt.Errorf("step %q is not known", s.Op)
}

func (m *machine) Undo(ctx context.Context, s *hypervisor.Step) error {
	if mine, err := m.own.Undo(ctx, s); mine || s.Op == opQuiesce || s.Args["undo"] == "nothing" {
		return err
	}
	if s.Done == nil {
		if err := m.settle(ctx); err != nil {
			return err
		}
	}
	switch s.Op {
	case opStay:
		return m.stayed(ctx, s.Args["state"])
	case opSnapshot:
		return m.remove(ctx, s.Args["name"], s.Args["found"] == "")
	case opSuspend:
		state, err := m.PowerState(ctx)
		if err != nil || state != types.VirtualMachinePowerStateSuspended {
			return m.gone(err)
		}
		task, err := m.PowerOn(ctx)
		return m.wait(ctx, task, err)
	}
	return fmt.Errorf("step %q is not known", s.Op)
}

// settle waits for the tasks that run on the machine: one of them may be what somebody began who was killed.
func (m *machine) settle(ctx context.Context) error {
	vm, err := m.properties(ctx, "recentTask")
	if err != nil {
		return err
	}
	for _, ref := range vm.RecentTask {
		var task mo.Task
		if err := m.Properties(ctx, ref, []string{"info"}, &task); err != nil {
			continue // it is over, and forgotten
		}
		if s := task.Info.State; s == types.TaskInfoStateQueued || s == types.TaskInfoStateRunning {
			object.NewTask(m.Client(), ref).Wait(ctx) // how it ends shows in the machine
		}
	}
	return ctx.Err()
}

// stayed tells whether a machine that this process watches stayed off.
func (m *machine) stayed(ctx context.Context, found string) error {
	if !m.watched {
		return nil
	}
	m.watched = false
	state, err := m.PowerState(ctx)
	if err != nil {
		return m.gone(err)
	}
	if states[state] != found {
		return fmt.Errorf("it was %s, and is %s by now: what was copied is not to be trusted", found, state)
	}
	return nil
}

// remove removes a snapshot, which puts what was written since into the disks below, and sees to it that it did.
func (m *machine) remove(ctx context.Context, name string, consolidate bool) error {
	vm, err := m.properties(ctx, "snapshot", "runtime")
	if err != nil {
		return err
	}
	if vm.Snapshot != nil && named(vm.Snapshot.RootSnapshotList, name) {
		task, err := m.RemoveSnapshot(ctx, name, false, &consolidate)
		if err := m.wait(ctx, task, err); err != nil {
			return err
		}
		if vm, err = m.properties(ctx, "snapshot", "runtime"); err != nil {
			return err
		}
		if vm.Snapshot != nil && named(vm.Snapshot.RootSnapshotList, name) {
			return fmt.Errorf("the snapshot %s is still there", name)
		}
	}
	if !consolidate || vm.Runtime.ConsolidationNeeded == nil || !*vm.Runtime.ConsolidationNeeded {
		return nil
	}
	res, err := methods.ConsolidateVMDisks_Task(ctx, m.Client(), &types.ConsolidateVMDisks_Task{This: m.Reference()})
	if err != nil {
		return m.gone(err)
	}
	return object.NewTask(m.Client(), res.Returnval).Wait(ctx)
}

// named looks for a snapshot.
func named(tree []types.VirtualMachineSnapshotTree, name string) bool {
	for _, s := range tree {
		if s.Name == name || named(s.ChildSnapshotList, name) {
			return true
		}
	}
	return false
}
