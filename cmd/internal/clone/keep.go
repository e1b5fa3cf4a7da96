package clone

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/hypervisor/inuse"
	"vmkit/fsmap/mapfile"
)

// earlier is a clone that lies in a folder.
type earlier struct {
	path   string
	record *mapfile.Clone
	vm     mapfile.VM
	at     time.Time // the instant that it shows, or when it was made
}

// Prune removes all but n of the clones in the folder of clone that are older than it, of the same machine, and made by
// vmclone. It gives the paths of those that it removed. One that holds files besides, is in use, or was registered with
// a hypervisor stays: an error each.
func Prune(clone *mapfile.Clone, n int) (removed []string, err error) {
	me, err := readClone(clone.Folder)
	if err != nil {
		return nil, err
	}
	dir := filepath.Dir(clone.Folder)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var older []*earlier
	for _, e := range entries {
		o, err := readClone(filepath.Join(dir, e.Name()))
		if err != nil || o.path == me.path || !me.sameMachine(o) || !o.at.Before(me.at) {
			continue
		}
		older = append(older, o)
	}
	slices.SortFunc(older, func(a, b *earlier) int { return b.at.Compare(a.at) })
	var errs []error
	for _, o := range older[min(n, len(older)):] {
		if err := o.remove(); err != nil {
			errs = append(errs, fmt.Errorf("%s stays: %w", o.path, err))
			continue
		}
		removed = append(removed, o.path)
	}
	return removed, errors.Join(errs...)
}

// readClone reads the record that says that a folder is a clone.
func readClone(path string) (*earlier, error) {
	f, err := os.OpenFile(filepath.Join(path, RecordName), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	e := &earlier{path: path, at: st.ModTime()}
	for r := mapfile.NewReader(f); ; {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if o, ok := record.(*mapfile.Other); ok && o.Type == "clone" {
			e.record = new(mapfile.Clone)
			if err := o.Decode(e.record); err != nil {
				return nil, err
			}
			if err := (&mapfile.Other{Type: "vm", Raw: e.record.Of}).Decode(&e.vm); err != nil {
				return nil, err
			}
		}
	}
	// A folder that was copied or renamed since is somebody's own.
	if e.record == nil || e.record.Name != filepath.Base(path) {
		return nil, fmt.Errorf("%s: no record of this folder", f.Name())
	}
	if e.vm.FrozenAt != nil {
		e.at = *e.vm.FrozenAt
	}
	return e, nil
}

func (e *earlier) sameMachine(o *earlier) bool {
	return e.vm.Driver == o.vm.Driver && e.vm.Name == o.vm.Name && e.vm.Target == o.vm.Target && e.vm.UUID == o.vm.UUID
}

// remove removes the clone, and nothing else.
func (e *earlier) remove() error {
	ours := []string{RecordName}
	var images []string
	for _, f := range e.record.Files {
		name := filepath.Base(f.Path)
		ours = append(ours, name)
		images = append(images, filepath.Join(e.path, name))
	}
	entries, err := os.ReadDir(e.path)
	if err != nil {
		return err
	}
	for _, d := range entries {
		if !d.Type().IsRegular() || !slices.Contains(ours, d.Name()) {
			return fmt.Errorf("%s in it is not vmclone's", d.Name())
		}
	}
	if e.record.Registered != "" {
		return fmt.Errorf("it is registered (%s)", e.record.Registered)
	}
	if _, err := inuse.Check(images); err != nil {
		return err
	}
	// What is removed only in part has to be known as such.
	sum := sha256.Sum256([]byte(e.path))
	half := filepath.Join(filepath.Dir(e.path), tempPrefix+hex.EncodeToString(sum[:8]))
	if err := renameNew(e.path, half); err != nil {
		return err
	}
	return removeFolder(half)
}
