package mapfile

import (
	"encoding/json"
	"fmt"
	"time"
)

// The records of the streams that tell of machines: few and small, so they are ordinary JSON structs. Reader gives
// them as *Other; Other.Decode takes them apart.

// VM is a machine that was identified and, where Mode is set, frozen.
type VM struct {
	Type       string            `json:"type"` // "vm"
	Name       string            `json:"name"`
	Driver     string            `json:"driver"`         // "qmp", "libvirt", "vmx", "esx", "vbox", "files"
	Target     string            `json:"target"`         // what finds it again: "qmp:/run/web1.sock"
	UUID       string            `json:"uuid,omitempty"` // as the hypervisor tells it
	StateFound string            `json:"state_found"`    // "running", "paused", "off", "suspended", or the hypervisor's own word
	Mode       string            `json:"mode,omitempty"` // "snapshot", "pause", "suspend", "off"
	Method     string            `json:"method,omitempty"`
	Quiesced   bool              `json:"quiesced"`            // the guest agent froze the guest's file systems
	FrozenAt   *time.Time        `json:"frozen_at,omitempty"` // the instant that the files show
	Journal    string            `json:"journal,omitempty"`   // path of the journal, in which what happened at release stands
	Files      []VMFile          `json:"files"`
	Changed    []Changed         `json:"changed,omitempty"`
	Versions   map[string]string `json:"versions,omitempty"`
	Notes      []string          `json:"notes,omitempty"`
	// Command is how the hypervisor was started, where that and no file is the machine's configuration (QEMU); names
	// in it that are relative begin in Dir.
	Command []string `json:"command,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	// ReflinkOnly says that the machine stands still and nobody allowed a long pause: its disks are cloned by reflink,
	// or not at all.
	ReflinkOnly bool `json:"reflink_only,omitempty"`
	// Release is a FIFO into which who reads the records writes a byte when the clone stands on its own. Closing the pipe
	// says so too, unless somebody in between keeps it open (tee, sudo, a shell).
	// Following is how many machines come then, each a stream of its own (vm, end, hold...): who wants them says it by
	// the FIFO and reads on; closing the pipe gives them up.
	Following int    `json:"following,omitempty"`
	Release   string `json:"release,omitempty"`
}

// VMFile is a file of a machine.
type VMFile struct {
	Path   string `json:"path"`
	Role   string `json:"role"` // one of the Role constants
	Format string `json:"format,omitempty"`
	Disk   string `json:"disk,omitempty"` // the machine's name of the disk it belongs to: "vda"
	Size   int64  `json:"size,omitempty"` // of the virtual disk where Role is RoleDisk, else of the file
}

// Roles of a machine's files.
const (
	RoleDisk     = "disk"     // the image that a disk's clone opens
	RoleBacking  = "backing"  // a layer or extent below it
	RoleConfig   = "config"   // settings
	RoleFirmware = "firmware" // variables of the firmware, a TPM's state
	RoleMemory   = "memory"   // memory or device state of a suspended machine
	RoleLock     = "lock"     // what says that it is in use
	RoleLog      = "log"      // what the hypervisor writes about it
	RoleMedia    = "media"    // a read-only image in a drive that it can be taken out of: no clone needs its own
)

// Changed says which bytes of a disk changed since a point that was tracked. It is a hint: never short of the truth if
// all that kept it was honest, and coarsened where there were too many ranges.
type Changed struct {
	Disk        string     `json:"disk"`
	State       string     `json:"state"`           // "complete", "first" (nothing was tracked before), "lost" (with Reason)
	Since       string     `json:"since,omitempty"` // the point from which changes were tracked
	Point       string     `json:"point,omitempty"` // the point that this freeze begins, to be named by vmfreeze --tracked
	Granularity int64      `json:"granularity,omitempty"`
	Reason      string     `json:"reason,omitempty"`
	Ranges      [][2]int64 `json:"ranges,omitempty"` // offset and length in the virtual disk, in order, apart from one another
}

// MaxRanges bounds the ranges of all disks in one record, so that it fits into a line.
const MaxRanges = 16384

// Hold says that a machine is still held.
type Hold struct {
	Type    string `json:"type"` // "hold"
	Seconds int64  `json:"seconds"`
	// Pad makes the line as long as the buffers of filters in between, so that they pass each on, and notice that
	// their reader has left.
	Pad string `json:"pad,omitempty"`
}

// Clone is a finished copy of a machine's files.
type Clone struct {
	Type     string          `json:"type"` // "clone"
	Name     string          `json:"name"`
	Folder   string          `json:"folder"`
	Of       json.RawMessage `json:"of,omitempty"` // the vm record as it came, or absent
	Released *Released       `json:"released,omitempty"`
	Files    []CloneFile     `json:"files"`
	Images   []string        `json:"images"` // the disks' images, in the order of the machine's disks
	// Registered says with whom the clone is registered: "virsh", "VBoxManage", "vmrun", or the list it is in.
	Registered string   `json:"registered,omitempty"`
	Notes      []string `json:"notes,omitempty"`
}

// Released is what happened when the machine was let go, as its journal tells it.
type Released struct {
	// At is when the release began. What was read from the machine's files later may not fit together, however the
	// pipe looked then: with a filter in between its end comes late.
	At        *time.Time `json:"at,omitempty"`
	PauseNS   int64      `json:"pause_ns"` // how long the machine stood still, as the host saw it; 0 where it never did
	FrozenNS  int64      `json:"frozen_ns,omitempty"`
	Thawed    bool       `json:"thawed"`
	Resumed   bool       `json:"resumed"`
	Committed bool       `json:"committed"`
	// Spoiled says that the machine's files changed while they were held, as Error tells: a clone of them is no good.
	// Any other error is one of letting the machine go, and nothing to its clone.
	Spoiled bool   `json:"spoiled,omitempty"`
	By      string `json:"by,omitempty"` // "vmfreeze", "guard", "recover"
	Error   string `json:"error,omitempty"`
}

// CloneFile is a file of a clone.
type CloneFile struct {
	Path   string `json:"path"`
	Role   string `json:"role"`
	Disk   string `json:"disk,omitempty"`
	From   string `json:"from"`
	Method string `json:"method"` // "reflink", "copy", "rewritten", "made" (without a source)
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"`
}

// Decode takes a record apart into one of the structs of this file, whose Type it must have.
func (o *Other) Decode(v any) error {
	if err := json.Unmarshal(o.Raw, v); err != nil {
		return fmt.Errorf("%s record: %w", o.Type, err)
	}
	return nil
}

// Record writes one of the structs of this file.
func (w *Writer) Record(v any) error {
	b, err := json.Marshal(v)
	switch {
	case err != nil:
		return err
	case len(b) >= MaxLine:
		return fmt.Errorf("a record of %d bytes: a line holds %d", len(b), MaxLine)
	}
	w.buf = append(append(w.buf, b...), '\n')
	return w.spill()
}
