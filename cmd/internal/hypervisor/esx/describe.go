package esx

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"vmkit/cmd/internal/hypervisor/hostfiles"
	"vmkit/fsmap/mapfile"
)

// states are vSphere's states in the words of records.
var states = map[types.VirtualMachinePowerState]string{
	types.VirtualMachinePowerStatePoweredOn:  "running",
	types.VirtualMachinePowerStatePoweredOff: "off",
	types.VirtualMachinePowerStateSuspended:  "suspended",
}

// roles are the kinds of a machine's files that it consists of. Others, such as its swap file, are made anew.
var roles = map[types.VirtualMachineFileLayoutExFileType]string{
	types.VirtualMachineFileLayoutExFileTypeConfig:               mapfile.RoleConfig,
	types.VirtualMachineFileLayoutExFileTypeExtendedConfig:       mapfile.RoleConfig,
	types.VirtualMachineFileLayoutExFileTypeSnapshotList:         mapfile.RoleConfig,
	types.VirtualMachineFileLayoutExFileTypeSnapshotManifestList: mapfile.RoleConfig,
	types.VirtualMachineFileLayoutExFileTypeNvram:                mapfile.RoleFirmware,
	types.VirtualMachineFileLayoutExFileTypeLog:                  mapfile.RoleLog,
	types.VirtualMachineFileLayoutExFileTypeSuspend:              mapfile.RoleMemory,
	types.VirtualMachineFileLayoutExFileTypeSuspendMemory:        mapfile.RoleMemory,
	types.VirtualMachineFileLayoutExFileTypeSnapshotData:         mapfile.RoleMemory,
	types.VirtualMachineFileLayoutExFileTypeSnapshotMemory:       mapfile.RoleMemory,
	types.VirtualMachineFileLayoutExFileTypeDiskDescriptor:       mapfile.RoleBacking,
	types.VirtualMachineFileLayoutExFileTypeDiskExtent:           mapfile.RoleBacking,
}

func (m *machine) Describe(ctx context.Context) (*mapfile.VM, error) {
	o, err := m.properties(ctx, "name", "config", "layoutEx", "runtime")
	if err != nil {
		return nil, err
	}
	vm := &mapfile.VM{
		Type: "vm", Name: m.name, Driver: "esx", Target: "esx:" + m.host.url.String() + "/" + m.name,
		StateFound: states[o.Runtime.PowerState],
		Versions:   map[string]string{m.host.ServiceContent.About.Name: m.host.ServiceContent.About.Version},
	}
	if o.Config == nil {
		return nil, fmt.Errorf("the machine is %s: its configuration can't be read", o.Runtime.ConnectionState)
	}
	vm.UUID = o.Config.Uuid
	m.disks(vm, o)
	if o.LayoutEx != nil {
		for _, f := range o.LayoutEx.File {
			if role := roles[types.VirtualMachineFileLayoutExFileType(f.Type)]; role != "" {
				m.add(vm, mapfile.VMFile{Path: f.Name, Role: role, Size: f.Size})
			}
		}
	}
	if !m.mounted(vm) {
		vm.Notes = append(vm.Notes, "its files can be copied only where their datastores are mounted: name the folders in the target, esx:URL?DATASTORE=FOLDER/NAME")
	}
	return vm, nil
}

// disks adds each disk with its chain.
func (m *machine) disks(vm *mapfile.VM, o *mo.VirtualMachine) {
	devices := object.VirtualDeviceList(o.Config.Hardware.Device)
	for _, d := range devices {
		disk, ok := d.(*types.VirtualDisk)
		if !ok {
			continue
		}
		name := node(devices, disk)
		b, ok := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo)
		if !ok {
			vm.Notes = append(vm.Notes, name+": it is no file, so it is not among the machine's files")
			continue
		}
		top := b.GetVirtualDeviceFileBackingInfo().FileName
		if raw, ok := disk.Backing.(*types.VirtualDiskRawDiskMappingVer1BackingInfo); ok {
			vm.Notes = append(vm.Notes, fmt.Sprintf("%s: it is a mapping of the device %s, which is not among the machine's files", name, raw.DeviceName))
		}
		if path, ok := m.local(top); ok {
			err := hostfiles.AddDisk(vm, path, "", name, hostfiles.Anywhere)
			if err == nil {
				continue
			}
			vm.Notes = append(vm.Notes, fmt.Sprintf("%s: %v", name, err))
		}
		m.add(vm, mapfile.VMFile{Path: top, Role: mapfile.RoleDisk, Format: "vmdk", Disk: name, Size: disk.CapacityInKB << 10})
		if o.LayoutEx == nil {
			continue
		}
		for _, f := range chain(o.LayoutEx, disk.Key) {
			m.add(vm, mapfile.VMFile{Path: f.Name, Role: mapfile.RoleBacking, Disk: name, Size: f.Size})
		}
	}
}

// chain gives the files of a disk, from its top down. vSphere lists them from the base on.
func chain(l *types.VirtualMachineFileLayoutEx, disk int32) (files []types.VirtualMachineFileLayoutExFileInfo) {
	for _, d := range l.Disk {
		if d.Key != disk {
			continue
		}
		for _, unit := range slices.Backward(d.Chain) {
			for _, key := range unit.FileKey {
				i := slices.IndexFunc(l.File, func(f types.VirtualMachineFileLayoutExFileInfo) bool { return f.Key == key })
				if i >= 0 {
					files = append(files, l.File[i])
				}
			}
		}
	}
	return files
}

// node names a disk by its place, as a .vmx does: "scsi0:1".
func node(devices object.VirtualDeviceList, disk *types.VirtualDisk) string {
	bus, number, unit := "disk", int32(0), int32(0)
	if disk.UnitNumber != nil {
		unit = *disk.UnitNumber
	}
	c, ok := devices.FindByKey(disk.ControllerKey).(types.BaseVirtualController)
	if ok {
		number = c.GetVirtualController().BusNumber
	}
	switch c.(type) {
	case types.BaseVirtualSCSIController:
		bus = "scsi"
	case types.BaseVirtualSATAController:
		bus = "sata"
	case *types.VirtualIDEController:
		bus = "ide"
	case *types.VirtualNVMEController:
		bus = "nvme"
	}
	return fmt.Sprintf("%s%d:%d", bus, number, unit)
}

// add appends a file that isn't there yet, by its path on this computer where it has one.
func (m *machine) add(vm *mapfile.VM, f mapfile.VMFile) {
	f.Path, _ = m.local(f.Path)
	hostfiles.Merge(vm, []mapfile.VMFile{f})
}

// local gives the path on this computer of "[datastore1] web1/web1.vmdk", where that datastore is mounted.
func (m *machine) local(path string) (string, bool) {
	store, rest, ok := strings.Cut(strings.TrimPrefix(path, "["), "] ")
	dir, mounted := m.host.mounts[store]
	if !ok || !mounted || !filepath.IsLocal(filepath.FromSlash(rest)) {
		return path, false
	}
	return filepath.Join(dir, rest), true
}

// mounted tells whether all files have a path on this computer.
func (m *machine) mounted(vm *mapfile.VM) bool {
	return !slices.ContainsFunc(vm.Files, func(f mapfile.VMFile) bool { return strings.HasPrefix(f.Path, "[") })
}
