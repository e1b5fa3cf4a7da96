// Package inuse tells whether a machine's files are in use, by whom, and keeps them from being put to use while they
// are copied.
//
// Three things tell: the locks that QEMU holds on bytes of an image, the files that processes and loop devices have
// open for writing, and the lock files of VMware.
package inuse

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/formats"
)

// Check gives an error, in one line, where a file of paths is in use by somebody who may write to it. Files that are
// not there are free. notes says what could not be looked at.
func Check(paths []string) (notes []string, err error) {
	writers, unseen, err := Writers(paths)
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		for _, w := range writers {
			if w.Path == path {
				return nil, fmt.Errorf("%s is in use: %v has it open for writing", path, w)
			}
		}
		if l := formats.VMwareLock(path); l != "" {
			return nil, fmt.Errorf("%s is there, so VMware may have %s open; where no VMware runs, remove it", l, filepath.Base(path))
		}
		held, err := writerHolds(path)
		if err != nil {
			return nil, err
		}
		if held {
			return nil, fmt.Errorf("%s is in use: a process that can't be seen from here holds the lock of a writer on it", path)
		}
	}
	if unseen > 0 {
		notes = append(notes, fmt.Sprintf("which files %d of the processes have open could not be seen: of those only locks told that they don't write", unseen))
	}
	return notes, nil
}

func writerHolds(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	return formats.WriterHolds(f), nil
}

// Hold keeps files as they are while it is open.
type Hold struct {
	files []held
	// Notes says of which files only a change can be told afterwards, because their file system takes no locks.
	Notes []string
}

type held struct {
	*os.File
	path   string
	size   int64
	mtime  time.Time
	device bool
}

// Take locks files so that QEMU can't open them for writing until Release, or the end of this process. A file that
// somebody writes to is an error.
func Take(paths []string) (*Hold, error) {
	h := &Hold{}
	for _, path := range paths {
		if err := h.take(path); err != nil {
			h.close()
			return nil, err
		}
	}
	// Whoever doesn't know of the locks may have come before them.
	if _, err := Check(paths); err != nil {
		h.close()
		return nil, err
	}
	return h, nil
}

func (h *Hold) take(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	h.files = append(h.files, held{f, path, st.Size(), st.ModTime(), !st.Mode().IsRegular()})
	switch busy, err := formats.HoldReader(f); {
	case err != nil:
		h.Notes = append(h.Notes, fmt.Sprintf("%s can't be locked: %v", path, err))
	case busy:
		return describeBusy(path)
	}
	return nil
}

// describeBusy says who writes to a file on which a writer's lock was found.
func describeBusy(path string) error {
	if _, err := Check([]string{path}); err != nil {
		return err
	}
	return fmt.Errorf("%s is in use: another process is just working on it", path)
}

// Release lets the files go. It gives an error where one of them was changed in the meantime: a copy of it is not to be
// trusted.
func (h *Hold) Release() error {
	var errs []error
	for _, f := range h.files {
		errs = append(errs, f.unchanged())
	}
	h.close()
	return errors.Join(errs...)
}

func (f *held) unchanged() error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !f.device && (st.Size() != f.size || !st.ModTime().Equal(f.mtime)) {
		return fmt.Errorf("%s was changed while it was held", f.path)
	}
	if now, err := os.Stat(f.path); err != nil || !os.SameFile(st, now) {
		return fmt.Errorf("%s was replaced while it was held", f.path)
	}
	return nil
}

func (h *Hold) close() {
	for _, f := range h.files {
		f.Close()
	}
	h.files = nil
}

// Holder is who has a file open.
type Holder struct {
	PID     int    // 0: the kernel
	Program string // "qemu-system-x86_64"
	Path    string // of the file, as it was asked for
}

func (h Holder) String() string {
	if h.PID == 0 {
		return h.Program
	}
	return fmt.Sprintf("%s (pid %d)", h.Program, h.PID)
}

// program names a process.
func program(pid int) string {
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil {
		return filepath.Base(strings.TrimSuffix(exe, " (deleted)"))
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "a process"
	}
	return strings.TrimSpace(string(b))
}
