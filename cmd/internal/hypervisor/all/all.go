// Package all is the one table of hypervisors.
package all

import (
	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/esx"
	"vmkit/cmd/internal/hypervisor/files"
	"vmkit/cmd/internal/hypervisor/libvirt"
	"vmkit/cmd/internal/hypervisor/qmp"
	"vmkit/cmd/internal/hypervisor/vbox"
	"vmkit/cmd/internal/hypervisor/vmware"
)

// Drivers are all drivers, in the order in which a bare name is looked up.
var Drivers = hypervisor.Drivers{
	qmp.Driver{},
	libvirt.New(),
	vmware.New(),
	esx.New(),
	vbox.New(),
	files.New(),
}
