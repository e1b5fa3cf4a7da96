package clone

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/fsmap/mapfile"
)

const (
	// releaseWait bounds the wait for the end of a release: writes of hours may have to be put back into the disks.
	releaseWait = 10 * time.Minute
	// deadWait is how long a release may have no process that works on it.
	deadWait = 5 * time.Second
	// releasePoll is how often the journal is looked at.
	releasePoll = 20 * time.Millisecond
)

// released tells what the journal says of the release, once it is over. What was read after it began is no clone.
func (c *Clone) released(ctx context.Context) (*mapfile.Released, error) {
	path := c.vm.Journal
	if path == "" {
		return nil, nil
	}
	if j := journal(path); j != nil && j.Owner.Alive() && descends(j.Owner.PID) {
		c.note("vmfreeze waits for this vmclone to end: what happens when it lets the machine go then is in its journal")
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, releaseWait)
	defer cancel()
	var r *mapfile.Released
	var err error
	seen := time.Now()
	for wait := time.Millisecond; ; wait = min(2*wait, releasePoll) {
		if r, err = hypervisor.ReadJournal(path); err != nil || r != nil {
			break
		}
		if working(path) {
			seen = time.Now()
		}
		if time.Since(seen) > deadWait {
			err = errors.New("vmfreeze and its guard ended without letting the machine go: run vmfreeze --recover")
			break
		}
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(wait):
			continue
		}
		break
	}
	switch {
	case errors.Is(err, context.Canceled):
		return nil, err
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("not over after %v", releaseWait)
	case err == nil && r.At != nil && r.At.Before(c.read):
		return nil, fmt.Errorf("%w: its release began at %s, and the last byte was read at %s",
			ErrReleased, r.At.Format(time.RFC3339Nano), c.read.UTC().Format(time.RFC3339Nano))
	case err == nil && r.Spoiled:
		return nil, fmt.Errorf("%w: %s", ErrReleased, r.Error)
	case err == nil && r.Error != "":
		err = errors.New(r.Error)
	}
	if err != nil {
		c.problem("", "the machine's release: %v", err)
	}
	return r, nil
}

// working tells whether a process that the journal names is still there to let the machine go.
func working(path string) bool {
	j := journal(path)
	return j != nil && (j.Owner.Alive() || j.Guard != nil && j.Guard.Alive())
}

// journal reads a journal, or gives nil.
func journal(path string) *hypervisor.Journal {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	j := new(hypervisor.Journal)
	if json.Unmarshal(b, j) != nil {
		return nil
	}
	return j
}

// descends tells whether this process was started by another, or by one that it started.
func descends(from int) bool {
	for pid := os.Getppid(); pid > 1; {
		if pid == from {
			return true
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		// The name, in parentheses, may hold anything; the state and the parent follow.
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if err != nil || len(f) < 2 {
			return false
		}
		if pid, err = strconv.Atoi(f[1]); err != nil {
			return false
		}
	}
	return false
}
