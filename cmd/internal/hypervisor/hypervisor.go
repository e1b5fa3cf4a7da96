// Package hypervisor finds machines, tells which files they are, and makes those files immutable for as long as
// somebody copies them.
//
// A [Driver] speaks with one hypervisor. It plans a freeze as [Step]s, each of which can be undone at any later time by
// any process from what the journal holds, whether or not it was done: so a guard, or a later run, can always bring
// the machine back.
package hypervisor

import (
	"context"
	"errors"
	"maps"
	"time"

	"vmkit/fsmap/mapfile"
)

// Mode is how the files are made immutable.
type Mode string

const (
	// Auto picks what suits the driver and the file system.
	Auto Mode = "auto"
	// Snapshot has an overlay take the machine's writes; the machine is not stopped.
	Snapshot Mode = "snapshot"
	// Pause stops the machine while its files are cloned.
	Pause Mode = "pause"
	// Suspend has the hypervisor save the machine with its memory.
	Suspend Mode = "suspend"
	// Off is the mode of a machine that does not run; nobody chooses it.
	Off Mode = "off"
)

// What a driver may answer.
var (
	// ErrUnavailable: the hypervisor isn't there. A bare name goes on to the next driver.
	ErrUnavailable = errors.New("not available")
	// ErrNoMachine: the hypervisor answers and has no such machine.
	ErrNoMachine = errors.New("no such machine")
	// ErrBusy: somebody else is talking to it, or has it frozen.
	ErrBusy = errors.New("busy")
	// ErrSpoiled is for Undo: nothing is left to take back, but the files changed while they were held.
	ErrSpoiled = errors.New("what was copied meanwhile does not count")
)

// Driver speaks with one hypervisor.
type Driver interface {
	// Name is the prefix of its targets: "qmp".
	Name() string
	// Open finds the machine of a target without its prefix. It gives ErrUnavailable and ErrNoMachine.
	Open(ctx context.Context, target string) (Machine, error)
	// List gives the targets, without the prefix, of all machines that can be found without being told where.
	List(ctx context.Context) ([]string, error)
}

// Machine is a machine that was found. It is not safe for concurrent use.
type Machine interface {
	// Describe tells what the machine is and which files it consists of, without changing anything.
	Describe(ctx context.Context) (*mapfile.VM, error)
	// Plan gives the steps that carry out the request, in their order. It changes nothing.
	Plan(ctx context.Context, vm *mapfile.VM, r Request) (*Plan, error)
	// Do carries out a step. It may add to its Args what Undo will need; they are in the journal before the next step.
	Do(ctx context.Context, s *Step) error
	// Undo takes a step back, and is content where it was never done, or taken back already. It must work on a
	// Machine that was opened anew, and leaves alone what it did not do.
	Undo(ctx context.Context, s *Step) error
	Close() error
}

// Survivor is a Driver whose steps can be taken back when the hypervisor is gone: it died, or the host was restarted.
type Survivor interface {
	// Gone gives a Machine of which only Undo and Close are called.
	Gone(vm *mapfile.VM) (Machine, error)
}

// Tracker is a Machine that can keep track of changed blocks.
type Tracker interface {
	// Changed tells what changed, after all steps of a plan that tracks are done.
	Changed(ctx context.Context, steps []Step) ([]mapfile.Changed, error)
	// Tracked says that the point is safe in a backup: what led up to it may be forgotten.
	Tracked(ctx context.Context, point string) error
}

// Request is what is to be done to a machine.
type Request struct {
	Mode    Mode
	Quiesce bool // freeze the guest's file systems through its agent around it
	Track   bool // keep track of changes from here on, and tell those since the last time
	// Work is a folder in which the driver may keep files until the steps are undone (overlays, scratch images), on
	// the file system of the machine's disks where "".
	Work string
	// Agent is the socket of the guest's agent, where the hypervisor can't be asked for it.
	Agent string
}

// Plan is how a request will be carried out.
type Plan struct {
	Mode   Mode
	Method string // in a few words, for the record: "overlay by blockdev-snapshot, then block-commit"
	Steps  []Step
	// Stops says that the machine stands still until the steps are undone.
	Stops bool
	// Files are the files of the machine that the steps make: its memory.
	Files []mapfile.VMFile
	Notes []string
}

// Step is one change to a machine. It is plain data, for the journal.
type Step struct {
	Op   string            `json:"op"` // the driver's own word: "stop", "overlay", "fsfreeze"
	Args map[string]string `json:"args,omitempty"`
	// State goes from "" over "begun", "done" and "undoing" to "undone"; the journal holds "begun" before the step is
	// tried, and, unless it holds the machine up, "undoing" before it is taken back.
	State string     `json:"state,omitempty"`
	Begun *time.Time `json:"begun,omitempty"`
	Done  *time.Time `json:"done,omitempty"`
	Ended *time.Time `json:"ended,omitempty"`
	Took  int64      `json:"took_ns,omitempty"` // from Begun to Ended
	Error string     `json:"error,omitempty"`
	// Holds says that the machine, or its guest's I/O, stands still from this step until it is undone.
	Holds bool `json:"holds,omitempty"`
	// Early says that the step is undone as soon as the last one is done, not only at the release: a guest that was
	// quiesced for a snapshot.
	Early bool `json:"early,omitempty"`
	// Commits says that taking it back puts what the machine wrote meanwhile into its disks.
	Commits bool `json:"commits,omitempty"`
	// Freezes says that of the machine only its file systems stand still by this step.
	Freezes bool `json:"freezes,omitempty"`
	// Instant says that the files show the instant at which this step was done.
	Instant bool `json:"instant,omitempty"`

	clock time.Time // Begun, as the monotonic clock has it
	save  func()    // writes the journal
}

// Keep notes in the journal, in the middle of Do or Undo, what a later attempt has to know.
func (s *Step) Keep(key, value string) {
	if s.Args[key] == value {
		return
	}
	s.Args = maps.Clone(s.Args) // steps may share them
	s.Args[key] = value
	if s.save != nil {
		s.save()
	}
}
