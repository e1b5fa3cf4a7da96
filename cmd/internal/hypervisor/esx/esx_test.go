package esx

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/drivertest"
	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fsmap/mapfile"
)

const name = `wéb "1" & co`

// full adds to the simulator's machine what it lacks. But with it the simulator can't remove snapshots.
type full struct{ *simulator.VirtualMachine }

// Get is where the simulator looks for the machine's properties.
func (f *full) Get() mo.Reference { return f.VirtualMachine }

func (f *full) SuspendVMTask(*types.SuspendVM_Task) soap.HasFault {
	task := simulator.CreateTask(f, "suspend", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		f.Runtime.PowerState, f.Summary.Runtime.PowerState = suspended, suspended
		return nil, nil
	})
	return &methods.SuspendVM_TaskBody{Res: &types.SuspendVM_TaskResponse{Returnval: task.Run()}}
}

func (f *full) ConsolidateVMDisksTask(*types.ConsolidateVMDisks_Task) soap.HasFault {
	task := simulator.CreateTask(f, "consolidate", func(*simulator.Task) (types.AnyType, types.BaseMethodFault) {
		f.Runtime.ConsolidationNeeded = types.NewBool(false)
		return nil, nil
	})
	return &methods.ConsolidateVMDisks_TaskBody{Res: &types.ConsolidateVMDisks_TaskResponse{Returnval: task.Run()}}
}

// vsphere is govmomi's simulator with a machine that has a disk over another.
type vsphere struct {
	t      *testing.T
	url    string // without a password
	vm     *simulator.VirtualMachine
	target string
}

func newVSphere(t *testing.T) *vsphere {
	t.Helper()
	model := simulator.ESX()
	if err := model.Create(); err != nil {
		t.Fatal(err)
	}
	server := model.Service.NewServer()
	t.Cleanup(func() { server.Close(); model.Remove() })
	password, _ := server.URL.User.Password()
	t.Setenv("GOVC_PASSWORD", password)
	t.Setenv("GOVC_USERNAME", server.URL.User.Username())
	u := *server.URL
	u.User = nil
	v := &vsphere{t: t, url: u.String(), vm: simulator.Map.Any("VirtualMachine").(*simulator.VirtualMachine)}
	v.target = v.url + "/" + name
	v.vm.Name = name
	var disk *types.VirtualDisk
	for _, d := range v.vm.Config.Hardware.Device {
		if k, ok := d.(*types.VirtualDisk); ok {
			disk = k
		}
	}
	disk.CapacityInKB = 8 << 10
	disk.Backing.(types.BaseVirtualDeviceFileBackingInfo).GetVirtualDeviceFileBackingInfo().FileName = "[ds 1] web 1/web-000001.vmdk"
	file := func(key int32, name, kind string) types.VirtualMachineFileLayoutExFileInfo {
		return types.VirtualMachineFileLayoutExFileInfo{Key: key, Name: "[ds 1] web 1/" + name, Type: kind, Size: int64(key)}
	}
	v.vm.LayoutEx = &types.VirtualMachineFileLayoutEx{
		File: []types.VirtualMachineFileLayoutExFileInfo{
			file(1, "web.vmx", "config"), file(2, "web.nvram", "nvram"), file(3, "web.vmdk", "diskDescriptor"), file(4, "web-flat.vmdk", "diskExtent"),
			file(5, "web-000001.vmdk", "diskDescriptor"), file(6, "web-000001-sesparse.vmdk", "diskExtent"), file(7, "web.vswp", "swap"), file(8, "vmware.log", "log"),
		},
		Disk: []types.VirtualMachineFileLayoutExDiskLayout{{Key: disk.Key, Chain: []types.VirtualMachineFileLayoutExDiskUnit{{FileKey: []int32{3, 4}}, {FileKey: []int32{5, 6}}}}},
	}
	return v
}

// fill has the simulator's machine be a full one, or what it was.
func (v *vsphere) fill(yes bool) {
	if yes {
		simulator.Map.Put(&full{v.vm})
	} else {
		simulator.Map.Put(v.vm)
	}
}

func (v *vsphere) open() hypervisor.Machine { return drivertest.Open(v.t, New(), v.target) }

func (v *vsphere) is(state types.VirtualMachinePowerState) {
	v.t.Helper()
	if got := v.vm.Runtime.PowerState; got != state {
		v.t.Errorf("it is %s, want %s", got, state)
	}
	if v.vm.Snapshot != nil {
		v.t.Errorf("left behind: %+v", v.vm.Snapshot.RootSnapshotList)
	}
}

// power changes the machine's state behind the driver's back.
func (v *vsphere) power(state types.VirtualMachinePowerState) {
	v.vm.Runtime.PowerState, v.vm.Summary.Runtime.PowerState = state, state
}

const on, off, suspended = types.VirtualMachinePowerStatePoweredOn, types.VirtualMachinePowerStatePoweredOff, types.VirtualMachinePowerStateSuspended

func TestDescribe(t *testing.T) {
	v := newVSphere(t)
	vm, err := v.open().Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []mapfile.VMFile{
		{Path: "[ds 1] web 1/web-000001.vmdk", Role: "disk", Format: "vmdk", Disk: "scsi0:0", Size: 8 << 20},
		{Path: "[ds 1] web 1/web-000001-sesparse.vmdk", Role: "backing", Disk: "scsi0:0", Size: 6},
		{Path: "[ds 1] web 1/web.vmdk", Role: "backing", Disk: "scsi0:0", Size: 3},
		{Path: "[ds 1] web 1/web-flat.vmdk", Role: "backing", Disk: "scsi0:0", Size: 4},
		{Path: "[ds 1] web 1/web.vmx", Role: "config", Size: 1},
		{Path: "[ds 1] web 1/web.nvram", Role: "firmware", Size: 2},
		{Path: "[ds 1] web 1/vmware.log", Role: "log", Size: 8},
	}
	for i := range vm.Files {
		if vm.Files[i].Disk != "" {
			vm.Files[i].Disk = "scsi0:0" // the simulator's controller may be another
		}
	}
	if d := cmp.Diff(want, vm.Files); d != "" {
		t.Error(d)
	}
	if vm.Name != name || vm.StateFound != "running" || vm.UUID == "" || vm.Versions["VMware ESXi"] == "" || strings.Contains(vm.Target, os.Getenv("GOVC_PASSWORD")+"@") {
		t.Errorf("%+v", vm)
	}
	if len(vm.Notes) != 1 || !strings.Contains(vm.Notes[0], "datastores are mounted") {
		t.Errorf("notes %q", vm.Notes)
	}
}

func TestMounted(t *testing.T) {
	qemutest.Need(t)
	v := newVSphere(t)
	dir := filepath.Join(t.TempDir(), "ds")
	config := drivertest.Write(t, filepath.Join(dir, "web 1", "web.vmx"), "x")
	drivertest.Write(t, filepath.Join(dir, "web 1", "web.nvram"), "x")
	qemutest.Img(t, filepath.Join(dir, "web 1"), "create", "-q", "-f", "vmdk", "web.vmdk", "8M")
	qemutest.Img(t, filepath.Join(dir, "web 1"), "create", "-q", "-f", "vmdk", "-F", "vmdk", "-b", "web.vmdk", "web-000001.vmdk")
	v.target = v.url + "?ds+1=" + dir + "/" + name
	m := v.open()
	vm, p := drivertest.Plan(t, m, hypervisor.Request{Mode: "auto", Work: t.TempDir()})
	if vm.Target != "esx:"+strings.Replace(v.url, "://", "://"+os.Getenv("GOVC_USERNAME")+"@", 1)+"?ds+1="+dir+"/"+name {
		t.Errorf("target %q", vm.Target)
	}
	drivertest.Do(t, m, p, len(p.Steps), false)
	var disks []string
	for _, f := range vm.Files {
		if !strings.HasPrefix(f.Path, "/") {
			t.Errorf("%s is no path", f.Path)
		}
		if f.Role == mapfile.RoleDisk || f.Role == mapfile.RoleBacking {
			disks = append(disks, f.Role+" "+filepath.Base(f.Path))
		}
	}
	if d := cmp.Diff([]string{"disk web-000001.vmdk", "backing web.vmdk"}, disks[:2]); d != "" {
		t.Error(d)
	}
	i := slices.IndexFunc(vm.Files, func(f mapfile.VMFile) bool { return f.Role == mapfile.RoleConfig })
	if b, err := os.ReadFile(vm.Files[i].Path); err != nil || vm.Files[i].Path == config || string(b) != "x" {
		t.Errorf("its configuration is not kept: %v", err)
	}
	drivertest.Undo(t, drivertest.Open(t, New(), strings.TrimPrefix(vm.Target, "esx:")), p)
	v.is(on)
}

func TestModes(t *testing.T) {
	v := newVSphere(t)
	for _, mode := range []hypervisor.Mode{"auto", "snapshot", "suspend"} {
		for _, quiesce := range []bool{false, true} {
			if mode == "suspend" && quiesce {
				continue
			}
			v.fill(mode == "suspend")
			m := v.open()
			_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: mode, Quiesce: quiesce})
			drivertest.Do(t, m, p, len(p.Steps), false)
			switch {
			case p.Mode == hypervisor.Suspend:
				if v.vm.Runtime.PowerState != suspended || !p.Stops {
					t.Errorf("held, it is %s", v.vm.Runtime.PowerState)
				}
			case v.vm.Snapshot == nil || v.vm.Snapshot.RootSnapshotList[0].Quiesced != quiesce || v.vm.Runtime.PowerState != on || p.Stops:
				t.Errorf("held: %+v", v.vm.Snapshot)
			}
			if quiesce != slices.ContainsFunc(p.Steps, func(s hypervisor.Step) bool { return s.Freezes && s.Early }) {
				t.Errorf("steps %+v", p.Steps)
			}
			drivertest.Undo(t, m, p)
			v.is(on)
		}
	}
	m := v.open()
	vm, err := m.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []hypervisor.Request{{Mode: "pause"}, {Mode: "suspend", Quiesce: true}} {
		if _, err := m.Plan(t.Context(), vm, r); err == nil {
			t.Errorf("%+v can be planned", r)
		}
	}
}

func TestFromJournal(t *testing.T) {
	v := newVSphere(t)
	for _, mode := range []hypervisor.Mode{"snapshot", "suspend"} {
		v.fill(mode == "suspend")
		drivertest.FromJournal(t, v.open, hypervisor.Request{Mode: mode, Quiesce: mode == "snapshot"}, func() { v.is(on) })
	}
}

// TestFound: states found are states left, and other people's snapshots too.
func TestFound(t *testing.T) {
	v := newVSphere(t)
	for _, state := range []types.VirtualMachinePowerState{off, suspended} {
		v.power(state)
		m := v.open()
		_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: "suspend"})
		if p.Mode != hypervisor.Off {
			t.Errorf("%s: mode %s", state, p.Mode)
		}
		drivertest.Do(t, m, p, len(p.Steps), false)
		drivertest.Undo(t, v.open(), p)
		v.is(state)
		v.power(on)
		if err := m.Undo(t.Context(), &p.Steps[0]); err == nil || !strings.Contains(err.Error(), "not to be trusted") {
			t.Errorf("it was started meanwhile: %v", err)
		}
		drivertest.Undo(t, m, p)
	}

	m := v.open()
	_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: "suspend"})
	v.power(suspended)
	p.Steps[0].State = "begun"
	if err := m.Do(t.Context(), &p.Steps[0]); err == nil {
		t.Error("it was suspended twice")
	}
	drivertest.Undo(t, m, p)
	v.is(suspended)
	v.power(on)

	task, err := m.(*machine).CreateSnapshot(t.Context(), "mine", "", false, false)
	if err := m.(*machine).wait(t.Context(), task, err); err != nil {
		t.Fatal(err)
	}
	_, p = drivertest.Plan(t, m, hypervisor.Request{Mode: "auto"})
	drivertest.Do(t, m, p, len(p.Steps), false)
	drivertest.Undo(t, v.open(), p)
	if s := v.vm.Snapshot; s == nil || len(s.RootSnapshotList) != 1 || s.RootSnapshotList[0].Name != "mine" || len(s.RootSnapshotList[0].ChildSnapshotList) != 0 {
		t.Errorf("the snapshots became %+v", s)
	}
}

// TestConsolidate: disks that vSphere could not consolidate at once are consolidated, unless they were in that state before.
func TestConsolidate(t *testing.T) {
	v := newVSphere(t)
	for _, found := range []bool{false, true} {
		v.fill(false)
		v.vm.Runtime.ConsolidationNeeded = &found
		m := v.open()
		_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: "snapshot"})
		drivertest.Do(t, m, p, len(p.Steps), false)
		task, err := m.(*machine).RemoveSnapshot(t.Context(), p.Steps[0].Args["name"], false, nil)
		if err := m.(*machine).wait(t.Context(), task, err); err != nil {
			t.Fatal(err)
		}
		v.vm.Runtime.ConsolidationNeeded = types.NewBool(true)
		v.fill(true)
		drivertest.Undo(t, v.open(), p)
		if got := *v.vm.Runtime.ConsolidationNeeded; got != found {
			t.Errorf("needed before: %v, afterwards: %v", found, got)
		}
	}
}

func TestOpen(t *testing.T) {
	v := newVSphere(t)
	if _, err := New().Open(t.Context(), v.url+"/nobody"); !errors.Is(err, hypervisor.ErrNoMachine) {
		t.Error(err)
	}
	for _, bare := range []string{"web1", "backup/web1", "/vms/web1"} {
		if _, err := New().Open(t.Context(), bare); !errors.Is(err, hypervisor.ErrUnavailable) || !strings.Contains(err.Error(), "no URL was given") {
			t.Errorf("%s: %v", bare, err)
		}
	}
	if _, err := New().List(t.Context()); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("a list without a URL: %v", err)
	}
	if _, err := New().Open(t.Context(), "http://127.0.0.1:1/sdk/web1"); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("nobody listens: %v", err)
	}
	t.Setenv("GOVC_URL", v.url)
	list, err := New().List(t.Context())
	want := strings.Replace(v.url, "://", "://"+os.Getenv("GOVC_USERNAME")+"@", 1) + "/" + name
	if err != nil || !slices.Contains(list, want) {
		t.Errorf("%q, %v", list, err)
	}
	m := drivertest.Open(t, New(), name)
	m.(*machine).host.Logout(context.Background()) // as a session that ended
	if _, err := m.Describe(t.Context()); err == nil {
		t.Error("it goes on without a session")
	}
	t.Setenv("GOVC_USERNAME", "")
	t.Setenv("GOVC_PASSWORD", "")
	if _, err := New().Open(t.Context(), v.target); err == nil || !strings.Contains(err.Error(), "GOVC_PASSWORD") {
		t.Errorf("without a password: %v", err)
	}
}
