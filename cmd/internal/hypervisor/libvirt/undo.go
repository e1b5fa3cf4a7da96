package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/beevik/etree"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/domain"
	"vmkit/cmd/internal/hypervisor/hostfiles"
	"vmkit/cmd/internal/hypervisor/program"
)

func (m *machine) Undo(ctx context.Context, s *hypervisor.Step) error {
	if mine, err := m.own.Undo(ctx, s); mine {
		return err
	}
	if m.undoAtOnce(ctx, s) {
		return nil
	}
	if s.Done == nil {
		// Whoever did it was killed, and libvirt may be at it still. A query waits for the end of what runs.
		m.run(ctx, "domblkerror", m.uuid)
	}
	d, err := m.definition(ctx)
	if errors.Is(err, hypervisor.ErrNoMachine) {
		return (&gone{m}).Undo(ctx, s)
	}
	if err != nil {
		return err
	}
	same := runOf(d) == s.Args["run"] && d.ID != ""
	switch s.Op {
	case opFreeze:
		if !same || s.Args["found"] != "" {
			return nil
		}
		_, err := m.run(ctx, "domfsthaw", m.uuid)
		return err
	case opPause:
		state, reason, err := m.state(ctx)
		if err != nil || !same || s.Args["found"] != "" || state != "paused" || reason != "user" {
			return err
		}
		_, err = m.run(ctx, "resume", m.uuid)
		return err
	case opSave:
		return m.start(ctx, s.Done)
	case opOverlay:
		var errs []error
		for _, disk := range hostfiles.Disks(s.Args, "overlay") {
			errs = append(errs, m.commit(ctx, layerOf(s, disk)))
		}
		if same && s.Args["was"] == "running" && errors.Join(errs...) == nil {
			errs = append(errs, m.afterError(ctx))
		}
		return errors.Join(errs...)
	}
	return fmt.Errorf("step %q is not known", s.Op)
}

// afterError resumes a machine that QEMU stopped because an overlay could not be written: for want of room, as a rule.
func (m *machine) afterError(ctx context.Context) error {
	state, reason, err := m.state(ctx)
	if err != nil || state != "paused" || reason != "I/O error" {
		return err
	}
	_, err = m.run(ctx, "resume", m.uuid)
	return err
}

// atOnce are the steps that this process takes back without a look: the machine stands still meanwhile.
var atOnce = map[string]string{opPause: "resume", opFreeze: "domfsthaw"}

// undoAtOnce takes back a step that this process did, of the run of the machine that it was done to, and tells whether
// that worked. A run is found by its number, which no other has before the host is started anew.
func (m *machine) undoAtOnce(ctx context.Context, s *hypervisor.Step) bool {
	if m.did[s.Op] == "" || m.did[s.Op] != s.Args["run"] {
		return false
	}
	delete(m.did, s.Op)
	id, _, _ := strings.Cut(s.Args["run"], "@")
	_, err := m.run(ctx, atOnce[s.Op], id)
	return err == nil
}

// poll is how often the end of a job is looked for.
const poll = 50 * time.Millisecond

func wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(poll):
		return nil
	}
}

// start starts a machine that was saved, unless somebody saved it again after done, where that is known. A save that still
// runs is given up, which lets the machine go on.
func (m *machine) start(ctx context.Context, done *time.Time) error {
	for {
		job, err := m.table(ctx, "domjobinfo", m.uuid)
		if err != nil && !program.Said(err, "domain is not running") {
			return err
		}
		if job["Operation"] != "Save" {
			break
		}
		if _, err := m.run(ctx, "domjobabort", m.uuid); err != nil && !program.Said(err, "no job is active", "cannot abort", "domain is not running") {
			return err
		}
		if err := wait(ctx); err != nil {
			return err
		}
	}
	found, err := m.stateFound(ctx)
	if err != nil || found != "suspended" {
		return err
	}
	if st, err := os.Stat(m.saveFile()); err == nil && done != nil && st.ModTime().After(*done) {
		return nil
	}
	_, err = m.run(ctx, "start", m.uuid)
	return err
}

// commit puts what an overlay holds into the disk below it, has the machine go on with that one, and removes the overlay.
func (m *machine) commit(ctx context.Context, l layer) error {
	for {
		d, err := m.definition(ctx)
		if err != nil {
			return err
		}
		k := d.Disk(l.disk)
		switch {
		case k == nil:
			return m.parted(l, "it is no disk of the machine any more")
		case d.ID == "":
			return m.commitOff(ctx, l, k)
		case m.path(ctx, k) == l.base:
			return m.commitFile(ctx, l, true)
		case k.Mirror != nil && k.Mirror.Job != "active-commit":
			return fmt.Errorf("%w: a block job (%s) runs on %s", hypervisor.ErrBusy, k.Mirror.Job, l.disk)
		case k.Mirror != nil && k.Mirror.Ready == "yes":
			// From here on the base is what counts as soon as the machine uses it.
			if err := mark(l); err != nil {
				return err
			}
			_, err = m.run(ctx, "blockjob", m.uuid, "--path", l.disk, "--pivot")
		case k.Mirror != nil: // on its way
			err = wait(ctx)
		case k.Source.Path() == l.overlay:
			_, err = m.run(ctx, "blockcommit", m.uuid, "--path", l.disk, "--base", l.base, "--top", l.overlay, "--active", "--wait")
		case inChain(k, l.overlay):
			// Somebody laid another overlay over ours.
			if _, err = m.run(ctx, "blockcommit", m.uuid, "--path", l.disk, "--base", l.base, "--top", l.overlay, "--wait"); err == nil {
				return removeOverlay(l)
			}
		default:
			return m.parted(l, fmt.Sprintf("the machine uses %s by now", k.Source.Path()))
		}
		if err != nil {
			return err
		}
	}
}

// inChain tells whether a file is a layer below a drive's image.
func inChain(k *domain.Disk, path string) bool {
	for b := k.Backing; b != nil; b = b.Backing {
		if b.Source.Path() == path {
			return true
		}
	}
	return false
}

// commitOff is commit for a machine that is off. Each part of it may be done twice.
func (m *machine) commitOff(ctx context.Context, l layer, k *domain.Disk) error {
	switch m.path(ctx, k) {
	case l.base:
		return m.commitFile(ctx, l, false)
	case l.overlay:
	default:
		return m.parted(l, fmt.Sprintf("the machine's definition names %s by now", m.path(ctx, k)))
	}
	if err := imgCommit(ctx, l); err != nil {
		return err
	}
	text, err := m.run(ctx, "dumpxml", m.uuid, "--inactive", "--security-info")
	if err != nil {
		return err
	}
	if text, err = redefine(text, l); err != nil {
		return err
	}
	if _, err := m.feed(ctx, text, "define", "/dev/stdin"); err != nil {
		return err
	}
	return removeOverlay(l)
}

// redefine has a definition name a disk's base again.
func redefine(text string, l layer) (string, error) {
	doc := etree.NewDocument()
	if err := doc.ReadFromString(text); err != nil {
		return "", fmt.Errorf("the definition: %w", err)
	}
	for _, disk := range doc.FindElements("/domain/devices/disk") {
		target, source := disk.SelectElement("target"), disk.SelectElement("source")
		if target == nil || source == nil || target.SelectAttrValue("dev", "") != l.disk {
			continue
		}
		attr := "file"
		if l.kind == "block" {
			attr = "dev"
		}
		source.RemoveAttr("file")
		source.CreateAttr(attr, l.base)
		disk.CreateAttr("type", l.kind)
		if driver := disk.SelectElement("driver"); driver != nil {
			driver.CreateAttr("type", l.format)
		}
		if backing := disk.SelectElement("backingStore"); backing != nil {
			disk.RemoveChild(backing)
		}
	}
	return doc.WriteToString()
}

// commitFile deals with an overlay that nothing uses, while the machine has its base. It was never used, or the machine
// went back from it, and then it goes; else, where the base is as the overlay found it, what it holds belongs there.
func (m *machine) commitFile(ctx context.Context, l layer, running bool) error {
	_, err := os.Stat(l.overlay)
	if errors.Is(err, fs.ErrNotExist) {
		return removeOverlay(l)
	}
	if err != nil {
		return err
	}
	if marked(l) {
		return removeOverlay(l)
	}
	used, err := holdsData(ctx, l.overlay)
	if err != nil {
		return err
	}
	if used {
		if running {
			return m.parted(l, "the machine was started without it")
		}
		if now, err := modified(l.base); err != nil {
			return err
		} else if now != l.mtime {
			return m.parted(l, "its base was written to since")
		}
		if err := imgCommit(ctx, l); err != nil {
			return err
		}
	}
	return removeOverlay(l)
}

// parted is the error that says what only its owner can decide.
func (m *machine) parted(l layer, why string) error {
	return fmt.Errorf("%s holds what %s wrote to %s while it was frozen, but %s: put it back with "+
		"qemu-img commit -b '%s' '%s' if nothing newer is there, or remove it", l.overlay, m.name, l.disk, why, l.base, l.overlay)
}

// imgCommit commits an overlay that no machine uses: QEMU's locks see to that.
func imgCommit(ctx context.Context, l layer) error {
	if _, err := os.Stat(l.overlay); err != nil {
		return err
	}
	_, err := (&program.Program{Name: "qemu-img"}).Run(ctx, "commit", "-q", "-f", "qcow2", "-b", l.base, l.overlay)
	return err
}

// holdsData tells whether an overlay has clusters of its own.
func holdsData(ctx context.Context, overlay string) (bool, error) {
	out, err := (&program.Program{Name: "qemu-img"}).Run(ctx, "map", "-U", "--output=json", "-f", "qcow2", overlay)
	if err != nil {
		return false, err
	}
	var stretches []struct {
		Depth   int
		Present bool
	}
	if err := json.Unmarshal([]byte(out), &stretches); err != nil {
		return false, fmt.Errorf("qemu-img map: %w", err)
	}
	for _, s := range stretches {
		if s.Depth == 0 && s.Present {
			return true, nil
		}
	}
	return false, nil
}

// The mark of an overlay is an empty file beside it: all that it holds is in its base too, so that it may go once the
// machine uses the base.

func markPath(l layer) string { return l.overlay + ".committed" }

func mark(l layer) error {
	f, err := os.OpenFile(markPath(l), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(l.overlay))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func marked(l layer) bool {
	_, err := os.Lstat(markPath(l))
	return err == nil
}

// removeOverlay removes an overlay, then its mark.
func removeOverlay(l layer) error {
	for _, path := range []string{l.overlay, markPath(l)} {
		if !strings.Contains(filepath.Base(path), ".vmfreeze-") {
			return fmt.Errorf("%s is no overlay of vmfreeze's", path)
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
