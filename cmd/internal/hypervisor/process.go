package hypervisor

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Process names a process so that no later one is taken for it: numbers come again, with another start time or after
// another boot.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks after the boot, as /proc/PID/stat has it
	Boot  string `json:"boot"`
}

// ProcessOf gives the process that has the number now.
func ProcessOf(pid int) (Process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, err
	}
	// The name, in parentheses, may hold anything: fields are counted from its end, where the third begins.
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 {
		return Process{}, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(f)+2)
	}
	start, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return Process{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, Start: start, Boot: strings.TrimSpace(string(boot))}, nil
}

// Alive tells whether this very process runs. One that has ended and that nobody waited for is not alive.
func (p Process) Alive() bool {
	now, err := ProcessOf(p.PID)
	if err != nil || now != p {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	return err == nil && len(f) > 0 && f[0][0] != 'Z' && f[0][0] != 'X'
}

func (p Process) String() string { return fmt.Sprintf("process %d", p.PID) }
