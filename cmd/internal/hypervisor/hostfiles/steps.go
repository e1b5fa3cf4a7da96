package hostfiles

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/inuse"
	"vmkit/fsmap/mapfile"
)

// The steps that any driver may plan and then hand to Steps.
const (
	opHold = "hold"
	opKeep = "keep"
)

// Steps carries out the steps that drivers share. The zero value is ready.
type Steps struct {
	hold *inuse.Hold
}

// HoldStep plans to keep a machine that is off from being started: files are locked for as long as the process lives, so
// that there is nothing to take back afterwards.
func HoldStep(vm *mapfile.VM) hypervisor.Step {
	return hypervisor.Step{
		Op: opHold, Instant: true,
		Args: List("path", Paths(vm, mapfile.RoleDisk, mapfile.RoleBacking, mapfile.RoleConfig, mapfile.RoleFirmware, mapfile.RoleMemory)),
	}
}

// Kept is a small file to be kept as it is now.
type Kept struct {
	Path string // of the file, or, where Text is set, just a name
	Text string
	Role string
}

// Small gives those files of a machine that are to be kept while it goes on: its configuration and the variables of its
// firmware.
func Small(vm *mapfile.VM) (kept []Kept) {
	for _, f := range vm.Files {
		if f.Role == mapfile.RoleConfig || f.Role == mapfile.RoleFirmware {
			kept = append(kept, Kept{Path: f.Path, Role: f.Role})
		}
	}
	return kept
}

// KeepStep plans to copy small files into a folder of their own below dir, because the machine goes on to change them, or
// because there is no file yet. It replaces them in vm.Files by their copies to come.
func KeepStep(vm *mapfile.VM, dir string, files []Kept) hypervisor.Step {
	folder := filepath.Join(dir, ".vmfreeze-"+strconv.FormatInt(time.Now().UnixNano(), 36))
	args := map[string]string{"folder": folder}
	var names []string
	for i, k := range files {
		name := filepath.Base(k.Path)
		for slices.Contains(names, name) {
			name = "_" + name
		}
		names = append(names, name)
		n := strconv.Itoa(i)
		args["name."+n] = name
		if k.Text != "" {
			args["text."+n] = k.Text
		} else {
			args["path."+n] = k.Path
		}
		vm.Files = slices.DeleteFunc(vm.Files, func(f mapfile.VMFile) bool { return f.Path == k.Path })
		vm.Files = append(vm.Files, mapfile.VMFile{Path: filepath.Join(folder, name), Role: k.Role, Size: int64(len(k.Text))})
	}
	return hypervisor.Step{Op: opKeep, Args: args}
}

// Do carries out s if it is one of the shared steps, and tells whether it is.
func (h *Steps) Do(_ context.Context, s *hypervisor.Step) (mine bool, err error) {
	switch s.Op {
	case opHold:
		h.hold, err = inuse.Take(Strings(s.Args, "path"))
		return true, err
	case opKeep:
		return true, keep(s.Args)
	}
	return false, nil
}

// Undo takes s back if it is one of the shared steps.
func (h *Steps) Undo(_ context.Context, s *hypervisor.Step) (mine bool, err error) {
	switch s.Op {
	case opHold:
		if h.hold != nil {
			err = h.hold.Release()
			h.hold = nil
		}
		return true, err
	case opKeep:
		return true, drop(s.Args)
	}
	return false, nil
}

// Close lets go what is held.
func (h *Steps) Close() {
	if h.hold != nil {
		h.hold.Release()
		h.hold = nil
	}
}

// maxKept bounds a kept file: configuration, firmware variables, the state of a TPM.
const maxKept = 256 << 20

func keep(args map[string]string) error {
	folder := args["folder"]
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for i := range len(args) {
		n := strconv.Itoa(i)
		name, ok := args["name."+n]
		if !ok {
			break
		}
		text := []byte(args["text."+n])
		if path, ok := args["path."+n]; ok {
			var err error
			if text, err = stable(path); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(folder, name), text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// stable reads a file that somebody may be writing: twice the same is one state of it.
func stable(path string) ([]byte, error) {
	last, err := readSmall(path)
	for range 20 {
		if err != nil {
			return nil, err
		}
		var now []byte
		if now, err = readSmall(path); err == nil && bytes.Equal(now, last) {
			return now, nil
		}
		last = now
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("%s changes all the time: no one state of it could be read", path)
}

func readSmall(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKept+1))
	if err == nil && len(b) > maxKept {
		err = fmt.Errorf("%s has more than %d MiB: no small file", path, maxKept>>20)
	}
	return b, err
}

// drop removes what keep made, and nothing else.
func drop(args map[string]string) error {
	for key, name := range args {
		if !strings.HasPrefix(key, "name.") {
			continue
		}
		if err := os.Remove(filepath.Join(args["folder"], filepath.Base(name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := os.Remove(args["folder"]); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// List makes the arguments of a step that are a list: "path.0", "path.1", ….
func List(prefix string, values []string) map[string]string {
	args := map[string]string{}
	for i, v := range values {
		args[prefix+"."+strconv.Itoa(i)] = v
	}
	return args
}

// Strings reads such a list.
func Strings(args map[string]string, prefix string) (values []string) {
	for i := range len(args) {
		v, ok := args[prefix+"."+strconv.Itoa(i)]
		if !ok {
			break
		}
		values = append(values, v)
	}
	return values
}

// Disks reads the arguments of a step that are named by a disk, "base.vda", in the order of the disks' names.
func Disks(args map[string]string, prefix string) (disks []string) {
	for _, key := range slices.Sorted(maps.Keys(args)) {
		if disk, ok := strings.CutPrefix(key, prefix+"."); ok {
			disks = append(disks, disk)
		}
	}
	return disks
}
