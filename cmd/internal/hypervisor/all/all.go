// Package all is the one table of hypervisors.
package all

import (
	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/qmp"
)

// Drivers are all drivers, in the order in which a bare name is looked up.
var Drivers = hypervisor.Drivers{
	qmp.Driver{},
}
