package clone

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"vmkit/cmd/internal/hypervisor/program"
	"vmkit/fsmap/mapfile"
)

// DefaultVMList is where VMware's servers list their machines, one "config" line each.
const DefaultVMList = "/etc/vmware/vm-list"

// ErrNoRegister means that nothing lists machines of this kind.
var ErrNoRegister = errors.New("a machine of this kind has no list to be registered in")

// Register adds a clone of vm to the machines that its hypervisor knows, and tells where. For machines of VMware that
// is the list, where there is one, else vmrun.
func Register(ctx context.Context, record *mapfile.Clone, vm *mapfile.VM, vmList string) (where string, err error) {
	config, kind, err := configOf(record)
	if err != nil {
		return "", err
	}
	switch kind {
	case ".vmx":
		if _, err := os.Stat(vmList); err == nil {
			return vmList, appendVMList(vmList, config)
		}
		return "vmrun", vmrun(ctx, "register", config)
	case ".vbox":
		_, err = vboxManage().Run(ctx, "registervm", config)
		return "VBoxManage", err
	case ".xml":
		_, err = virsh(vm).Run(ctx, "define", config)
		return "virsh", err
	}
	return "", ErrNoRegister
}

// Boot starts a clone, which was registered where its hypervisor wants that. Its configuration has to be isolated.
func Boot(ctx context.Context, record *mapfile.Clone, vm *mapfile.VM) error {
	config, kind, err := configOf(record)
	if err != nil {
		return err
	}
	switch kind {
	case ".vmx":
		err = vmrun(ctx, "start", config, "nogui")
	case ".vbox":
		_, err = vboxManage().Run(ctx, "startvm", record.Name, "--type", "headless")
	case ".xml":
		_, err = virsh(vm).Run(ctx, "start", libvirtName(record.Name))
	default:
		script := &program.Program{Name: config}
		_, err = script.Run(ctx, "-daemonize", "-pidfile", "qemu.pid", "-qmp", "unix:qmp.sock,server=on,wait=off")
	}
	return err
}

// NeedsRegister tells whether a clone has to be registered before it can be started.
func NeedsRegister(record *mapfile.Clone) bool {
	_, kind, err := configOf(record)
	return err == nil && (kind == ".vbox" || kind == ".xml")
}

// configOf finds the file that a clone is started by, and tells its kind by its extension.
func configOf(record *mapfile.Clone) (path, kind string, err error) {
	for _, f := range record.Files {
		kind := strings.ToLower(filepath.Ext(f.Path))
		switch {
		case f.Role == mapfile.RoleConfig && (kind == ".vmx" || kind == ".vbox" || kind == ".xml"), f.Role == roleCommand:
			path, err := filepath.Abs(f.Path)
			return path, kind, err
		}
	}
	return "", "", errors.New("it has no configuration that it could be started by")
}

// appendVMList adds a machine to VMware's list.
func appendVMList(list, config string) error {
	if strings.ContainsAny(config, "\"\n\r") {
		return fmt.Errorf("%s: a path with quotes or line ends can't stand in it: %q", list, config)
	}
	f, err := os.OpenFile(list, os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	line := "config \"" + config + "\"\n"
	if st, err := f.Stat(); err == nil && st.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, st.Size()-1); err == nil && last[0] != '\n' {
			line = "\n" + line
		}
	}
	if _, err := f.WriteString(line); err != nil {
		return err
	}
	return f.Sync()
}

// vmrun has Workstation do something, or Player where that is what there is.
func vmrun(ctx context.Context, args ...string) error {
	var first error
	for _, product := range []string{"ws", "player"} {
		p := &program.Program{Name: "vmrun", Args: []string{"-T", product}}
		_, err := p.Run(ctx, args...)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func vboxManage() *program.Program { return &program.Program{Name: "VBoxManage"} }

// virsh speaks with the libvirt that has the machine.
func virsh(vm *mapfile.VM) *program.Program {
	p := &program.Program{Name: "virsh", Args: []string{"-q"}}
	target := strings.TrimPrefix(vm.Target, "libvirt:")
	if i := strings.LastIndexByte(target, '/'); i > 0 && vm.Driver == "libvirt" {
		p.Args = append(p.Args, "-c", target[:i])
	}
	return p
}
