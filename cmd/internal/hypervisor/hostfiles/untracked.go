package hostfiles

import (
	"context"
	"errors"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/fsmap/mapfile"
)

// Untracked is the hypervisor.Tracker of a driver that can't keep track of changes, and says so.
type Untracked struct {
	Of *mapfile.VM // set by Plan
}

// Changed implements hypervisor.Tracker.
func (u *Untracked) Changed(context.Context, []hypervisor.Step) (lost []mapfile.Changed, err error) {
	for _, f := range u.Of.Files {
		if f.Role == mapfile.RoleDisk {
			lost = append(lost, mapfile.Changed{Disk: f.Disk, State: "lost", Reason: "not offered by this driver"})
		}
	}
	return lost, nil
}

// Tracked implements hypervisor.Tracker.
func (u *Untracked) Tracked(context.Context, string) error {
	return errors.New("this hypervisor's driver keeps no track of changes")
}
