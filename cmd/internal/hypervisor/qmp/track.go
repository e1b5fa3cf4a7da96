package qmp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/formats"
	formatsall "vmkit/formats/all"
	"vmkit/fsmap/mapfile"
)

// A bitmap named vmkit-POINT marks what was written from that point on until the next one's began: at each freeze all
// are disabled and a new one is added, in the transaction that makes the snapshot, or while the machine is stopped. All
// of them together are what was written since the oldest. Only Tracked removes any: those of before a point that is safe
// in a backup.
const (
	bitmapPrefix = "vmkit-"
	// pointForm gives points whose order is that of their names.
	pointForm = "20060102T150405.000000000Z"
	// maxBitmaps bounds a disk's bitmaps: beyond it the two oldest become one.
	maxBitmaps = 8
)

// bitmapInfo is a dirty bitmap, as query-block tells it.
type bitmapInfo struct {
	Name         string `json:"name"`
	Recording    bool   `json:"recording"`
	Persistent   bool   `json:"persistent"`
	Inconsistent bool   `json:"inconsistent"`
	Granularity  int64  `json:"granularity"`
}

// tracked is what is kept of a disk's changes.
type tracked struct {
	Disk   string   `json:"disk"`
	Node   string   `json:"node"`
	Path   string   `json:"path"`
	Old    []string `json:"old,omitempty"`   // bitmaps, the oldest first
	Merge  bool     `json:"merge,omitempty"` // the second oldest into the oldest
	Drop   []string `json:"drop,omitempty"`  // those that can't be trusted any more
	Reason string   `json:"reason,omitempty"`
	None   bool     `json:"none,omitempty"` // the disk can keep no bitmaps

	Granularity int64 `json:"granularity,omitempty"` // the coarsest of the old ones
}

// ours gives the disk's bitmaps that are vmkit's, the oldest first.
func ours(all []bitmapInfo) []bitmapInfo {
	list := slices.DeleteFunc(slices.Clone(all), func(b bitmapInfo) bool {
		_, err := time.Parse(pointForm, strings.TrimPrefix(b.Name, bitmapPrefix))
		return err != nil || !strings.HasPrefix(b.Name, bitmapPrefix)
	})
	slices.SortFunc(list, func(a, b bitmapInfo) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// planTrack adds to a step's arguments what becomes of each disk's bitmaps.
func (m *machine) planTrack(args map[string]string) (map[string]string, error) {
	var list []tracked
	for _, d := range m.disks {
		if d.Inserted.RO {
			continue
		}
		t := tracked{Disk: d.name, Node: d.Inserted.Node, Path: d.path}
		var q struct{ Compat string }
		json.Unmarshal(d.Inserted.Image.Specific.Data, &q) // other formats say nothing like it
		switch {
		case d.Inserted.Image.Format != "qcow2":
			t.None, t.Reason = true, d.Inserted.Image.Format+" images keep no bitmaps"
		case q.Compat == "0.10":
			t.None, t.Reason = true, "QCOW2 images of compat level 0.10 keep no bitmaps: qemu-img amend -o compat=1.1 makes it a newer one"
		}
		for _, b := range ours(d.Inserted.Bitmaps) {
			if b.Inconsistent || !b.Persistent {
				t.Reason = "the bitmaps were not stored when QEMU last ended"
				t.Drop = append(t.Drop, b.Name)
				continue
			}
			t.Old = append(t.Old, b.Name)
			t.Granularity = max(t.Granularity, b.Granularity)
		}
		if len(t.Drop) > 0 { // what the others mark is not all
			t.Drop, t.Old = append(t.Drop, t.Old...), nil
		}
		t.Merge = len(t.Old) >= maxBitmaps
		list = append(list, t)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	return with(with(args, "tracked", string(b)), "point", time.Now().UTC().Format(pointForm)), nil
}

func trackedOf(s *hypervisor.Step) ([]tracked, error) {
	text, ok := s.Args["tracked"]
	if !ok {
		return nil, nil
	}
	var list []tracked
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("journal: bitmaps: %w", err)
	}
	return list, nil
}

// trackActions gives the part of a snapshot's transaction that begins a new bitmap on each disk.
func trackActions(s *hypervisor.Step) ([]action, error) {
	list, err := trackedOf(s)
	if err != nil {
		return nil, err
	}
	var actions []action
	for _, t := range list {
		if t.None {
			continue
		}
		of := func(name string) map[string]string { return map[string]string{"node": t.Node, "name": name} }
		for _, name := range t.Drop {
			actions = append(actions, action{"block-dirty-bitmap-remove", of(name)})
		}
		for _, name := range t.Old {
			actions = append(actions, action{"block-dirty-bitmap-disable", of(name)})
		}
		actions = append(actions, action{"block-dirty-bitmap-add",
			map[string]any{"node": t.Node, "name": bitmapPrefix + s.Args["point"], "persistent": true}})
		if t.Merge {
			actions = append(actions,
				action{"block-dirty-bitmap-merge", map[string]any{"node": t.Node, "target": t.Old[0], "bitmaps": t.Old[1:2]}},
				action{"block-dirty-bitmap-remove", of(t.Old[1])})
		}
	}
	return actions, nil
}

// begin begins the new bitmaps of a machine that is stopped, and reads the old ones: from QEMU itself, as they are not
// in the disks' files while these are written to.
func (m *machine) begin(ctx context.Context, s *hypervisor.Step) error {
	actions, err := trackActions(s)
	if err != nil {
		return err
	}
	if len(actions) > 0 {
		if err := m.c.run(ctx, "transaction", map[string]any{"actions": actions}, nil); err != nil {
			return err
		}
	}
	list, err := trackedOf(s)
	if err != nil {
		return err
	}
	m.live = map[string]reading{}
	for i := range list {
		if t := &list[i]; t.Reason == "" && len(t.Old) > 0 {
			ranges, err := m.export(ctx, s, t)
			m.live[t.Disk] = reading{ranges, t.Granularity, err}
		}
	}
	return nil
}

// reading is what a disk's bitmaps mark.
type reading struct {
	ranges      [][2]int64
	granularity int64
	err         error
}

// export has QEMU tell a disk's bitmaps through an NBD server that only this process can reach.
func (m *machine) export(ctx context.Context, s *hypervisor.Step, t *tracked) (ranges [][2]int64, err error) {
	old := t.present()
	file, conns, err := listener(len(old))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for _, conn := range conns {
		defer conn.Close()
	}
	name := overlayPrefix + s.Args["run"]
	if err := m.c.runFile(ctx, "getfd", map[string]string{"fdname": name}, file); err != nil {
		return nil, err
	}
	err = m.c.run(ctx, "nbd-server-start", map[string]any{"addr": map[string]any{"type": "fd", "data": map[string]string{"str": name}}}, nil)
	if err != nil {
		// Somebody else's server runs. It is not to be stopped.
		return nil, errors.Join(err, m.c.run(ctx, "closefd", map[string]string{"fdname": name}, nil))
	}
	defer func() {
		if e := m.endExport(context.WithoutCancel(ctx), s, true); err == nil {
			err = e
		}
	}()
	err = m.c.run(ctx, "block-export-add", map[string]any{"type": "nbd", "id": name, "node-name": t.Node, "name": name, "bitmaps": old}, nil)
	if err != nil {
		return nil, err
	}
	hypervisor.Crash("exporting")
	for i, bitmap := range old {
		more, err := dirty(conns[i], name, bitmap)
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, more...)
	}
	return ranges, nil
}

// listener gives a listening socket without a name, and n connections to it that wait to be accepted.
func listener(n int) (file *os.File, conns []net.Conn, err error) {
	dir, err := os.MkdirTemp("", "vmfreeze-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "nbd")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	for range n {
		conn, err := net.Dial("unix", path)
		if err != nil {
			return nil, nil, err
		}
		conns = append(conns, conn)
	}
	file, err = l.File()
	return file, conns, err
}

// endExport ends what export began: if ours says that the server is, or where there is the export that proves it.
func (m *machine) endExport(ctx context.Context, s *hypervisor.Step, ours bool) error {
	var all []struct{ ID string }
	if err := m.c.run(ctx, "query-block-exports", nil, &all); err != nil {
		return err
	}
	name := overlayPrefix + s.Args["run"]
	for _, e := range all {
		if ours = ours || e.ID == name; e.ID != name {
			continue
		}
		if err := m.c.run(ctx, "block-export-del", map[string]string{"id": name, "mode": "hard"}, nil); err != nil {
			return err
		}
	}
	if !ours {
		return nil
	}
	return m.c.run(ctx, "nbd-server-stop", nil, nil)
}

// Changed tells what the bitmaps mark. After a snapshot they are in the disks' files: QEMU stored them when that made
// these read-only.
func (m *machine) Changed(_ context.Context, steps []hypervisor.Step) ([]mapfile.Changed, error) {
	var all []mapfile.Changed
	for i := range steps {
		s := &steps[i]
		list, err := trackedOf(s)
		if err != nil {
			return nil, err
		}
		for _, t := range list {
			live, ok := m.live[t.Disk]
			all = append(all, t.changed(s.Args["point"], mapfile.MaxRanges/len(list), func() ([][2]int64, int64, error) {
				if ok {
					return live.ranges, live.granularity, live.err
				}
				return t.read()
			}))
		}
	}
	return all, nil
}

// changed tells what became of a disk since its oldest point, for which read reads the bitmaps.
func (t *tracked) changed(point string, limit int, read func() ([][2]int64, int64, error)) mapfile.Changed {
	c := mapfile.Changed{Disk: t.Disk, State: "lost", Point: point, Reason: t.Reason}
	switch {
	case t.None:
		c.Point = ""
		return c
	case t.Reason != "":
		return c
	case len(t.Old) == 0:
		c.State = "first"
		return c
	}
	c.Since = strings.TrimPrefix(t.Old[0], bitmapPrefix)
	ranges, granularity, err := read()
	if err != nil {
		c.Reason = err.Error()
		return c
	}
	c.State, c.Granularity = "complete", granularity
	c.Ranges = mergeRanges(ranges, limit)
	return c
}

// present gives the old bitmaps that are there after the transaction: the second oldest may be in the oldest by then.
func (t *tracked) present() []string {
	if t.Merge {
		return slices.Delete(slices.Clone(t.Old), 1, 2)
	}
	return t.Old
}

// read gives the marked stretches of all old bitmaps.
func (t *tracked) read() (ranges [][2]int64, granularity int64, err error) {
	source := &formats.OSSource{AllowDirs: []string{"/"}, ForceShare: true}
	defer source.Close()
	o := &formats.Opener{Formats: formatsall.Formats, Source: source, Env: formats.NewEnv(0), AllowMissing: true, Format: "qcow2"}
	img, err := o.Open(t.Path)
	if err != nil {
		return nil, 0, err
	}
	for _, name := range t.present() {
		i := slices.IndexFunc(img.Bitmaps, func(b formats.Bitmap) bool { return b.Name == name })
		if i < 0 {
			return nil, 0, fmt.Errorf("bitmap %s is not in the file", name)
		}
		b := img.Bitmaps[i]
		if b.InUse {
			return nil, 0, fmt.Errorf("bitmap %s is marked as in use in the file", name)
		}
		granularity = max(granularity, b.Granularity)
		err := b.Marked(func(off, n int64) bool {
			ranges = append(ranges, [2]int64{off, n})
			return true
		})
		if err != nil {
			return nil, 0, fmt.Errorf("bitmap %s: %w", name, err)
		}
	}
	return ranges, granularity, nil
}

// mergeRanges puts ranges in order and together, and where there are more than limit, closes the smallest gaps.
func mergeRanges(ranges [][2]int64, limit int) [][2]int64 {
	slices.SortFunc(ranges, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	for gap := int64(0); ; gap = max(2*gap, 64<<10) {
		var out [][2]int64
		for _, r := range ranges {
			if n := len(out) - 1; n >= 0 && r[0] <= out[n][0]+out[n][1]+gap {
				out[n][1] = max(out[n][1], r[0]+r[1]-out[n][0])
				continue
			}
			out = append(out, r)
		}
		if ranges = out; len(out) <= limit {
			return out
		}
	}
}

// Tracked forgets what was written before a point that is safe in a backup.
func (m *machine) Tracked(ctx context.Context, point string) error {
	drives, err := m.drives(ctx)
	if err != nil {
		return err
	}
	var actions []action
	known := false
	for i := range drives {
		d := &drives[i]
		list := ours(d.Inserted.Bitmaps)
		at := slices.IndexFunc(list, func(b bitmapInfo) bool { return b.Name == bitmapPrefix+point })
		if at < 0 {
			continue
		}
		known = true
		for _, b := range list[:at] {
			actions = append(actions, action{"block-dirty-bitmap-remove", map[string]string{"node": d.Inserted.Node, "name": b.Name}})
		}
	}
	switch {
	case !known:
		return fmt.Errorf("no disk tracks changes since %s: nothing was forgotten", point)
	case len(actions) == 0:
		return nil
	}
	return m.c.run(ctx, "transaction", map[string]any{"actions": actions}, nil)
}
