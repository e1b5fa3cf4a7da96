package qmp

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/program"
	"vmkit/formats"
)

func overlaysOf(s *hypervisor.Step) ([]overlay, error) {
	var list []overlay
	if err := json.Unmarshal([]byte(s.Args["overlays"]), &list); err != nil {
		return nil, fmt.Errorf("journal: overlays: %w", err)
	}
	return list, nil
}

// makeOverlays makes the overlays' files. Their backing names are absolute: a relative one would dangle for whoever
// opens the file from elsewhere.
func (m *machine) makeOverlays(ctx context.Context, s *hypervisor.Step) error {
	list, err := overlaysOf(s)
	if err != nil {
		return err
	}
	for _, o := range list {
		if _, err := os.Lstat(o.Path); err == nil {
			return fmt.Errorf("%s exists", o.Path)
		}
		err := qemuImg(ctx, "create", "-q", "-f", "qcow2", "-u", "-F", o.Format, "-b", o.Base, o.Path, fmt.Sprint(o.Size))
		if err != nil {
			return err
		}
		if err := likeBase(o); err != nil {
			return err
		}
	}
	return nil
}

// likeBase lets QEMU, which may have given up its privileges, open the overlay as it could open the base.
func likeBase(o overlay) error {
	st, err := os.Stat(o.Base)
	if err != nil {
		return err
	}
	owner, ok := st.Sys().(*syscall.Stat_t)
	if !ok || !st.Mode().IsRegular() {
		return nil
	}
	if err := os.Chown(o.Path, int(owner.Uid), int(owner.Gid)); err != nil && os.Geteuid() == 0 {
		return err
	}
	return os.Chmod(o.Path, st.Mode().Perm())
}

// qemuImg runs qemu-img.
func qemuImg(ctx context.Context, args ...string) error {
	tool := program.Program{Name: "qemu-img"}
	_, err := tool.Run(ctx, args...)
	return err
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// removeOverlays removes the overlays' files, which no machine writes to any more.
func (m *machine) removeOverlays(s *hypervisor.Step) error {
	list, err := overlaysOf(s)
	if err != nil {
		return err
	}
	for _, o := range list {
		if held, err := written(o.Path); err != nil {
			return err
		} else if held {
			return fmt.Errorf("%s is still written to", o.Path)
		}
		hypervisor.Crash("before unlink")
		if err := removeFile(o.Path); err != nil {
			return err
		}
	}
	return nil
}

// written tells whether somebody has an image open for writing, and not only for a moment: a qemu-img whose vmfreeze was
// killed dies a little later.
func written(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	for until := time.Now().Add(moment); formats.WriterHolds(f); time.Sleep(askEvery) {
		if time.Now().After(until) {
			return true, nil
		}
	}
	return false, nil
}

// addOverlays has QEMU open the overlays, without what lies below them.
func (m *machine) addOverlays(ctx context.Context, s *hypervisor.Step) error {
	list, err := overlaysOf(s)
	if err != nil {
		return err
	}
	for _, o := range list {
		cache := map[string]bool{"direct": o.Direct, "no-flush": o.Unsafe}
		err := m.c.run(ctx, "blockdev-add", map[string]any{
			"driver": "qcow2", "node-name": o.Over, "backing": nil, "cache": cache, "discard": "unmap",
			"file": map[string]any{"driver": "file", "filename": o.Path, "cache": cache, "discard": "unmap"},
		}, nil)
		if err != nil {
			return err
		}
	}
	return nil
}

// nodes gives the names of all block nodes.
func (m *machine) nodes(ctx context.Context) (map[string]bool, error) {
	var all []struct {
		Node string `json:"node-name"`
	}
	if err := m.c.run(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &all); err != nil {
		return nil, err
	}
	set := map[string]bool{}
	for _, n := range all {
		set[n.Node] = true
	}
	return set, nil
}

// dropOverlays has QEMU close the overlays.
func (m *machine) dropOverlays(ctx context.Context, s *hypervisor.Step) error {
	list, err := overlaysOf(s)
	if err != nil {
		return err
	}
	nodes, err := m.nodes(ctx)
	if err != nil {
		return err
	}
	for _, o := range list {
		if nodes[o.Over] {
			if err := m.c.run(ctx, "blockdev-del", map[string]string{"node-name": o.Over}, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// action is one of a transaction.
type action struct {
	Type string `json:"type"`
	Data any    `json:"data"`
}

// snapshot has the overlays take the writes, of all disks at one instant.
func (m *machine) snapshot(ctx context.Context, s *hypervisor.Step) error {
	list, err := overlaysOf(s)
	if err != nil {
		return err
	}
	actions, err := trackActions(s)
	if err != nil {
		return err
	}
	for _, o := range list {
		actions = append(actions, action{"blockdev-snapshot", map[string]string{"node": o.Node, "overlay": o.Over}})
	}
	return m.c.run(ctx, "transaction", map[string]any{"actions": actions}, nil)
}

// job is a job of QEMU's.
type job struct {
	ID     string `json:"id"`
	Status string `json:"status"`
	Error  string `json:"error"`
}

// maxAsked is how often a job is asked to complete before its refusal counts.
const maxAsked = 500

// commit puts what the overlays hold back into the disks, and these back into the drives. A commit that another process
// had begun is brought to its end.
func (m *machine) commit(ctx context.Context, s *hypervisor.Step) error {
	list, err := overlaysOf(s)
	if err != nil {
		return err
	}
	left := map[string]overlay{}
	for _, o := range list {
		left[o.Over] = o
	}
	var errs []error
	asked := map[string]int{}
	err = m.c.await(ctx, func() (bool, error) {
		tops, err := m.tops(ctx)
		if err != nil {
			return false, err
		}
		var jobs []job
		if err := m.c.run(ctx, "query-jobs", nil, &jobs); err != nil {
			return false, err
		}
		mine := map[string]job{}
		for _, j := range jobs {
			mine[j.ID] = j
		}
		for node, o := range left {
			j, works := mine[o.Over]
			switch {
			case !works && !tops[node]:
				delete(left, node) // never taken into use, or committed
			case !works:
				s.Keep("committing", "yes")
				err = m.c.run(ctx, "block-commit", map[string]any{
					"job-id": o.Over, "device": o.Over, "base-node": o.Node, "auto-dismiss": false,
				}, nil)
				hypervisor.Crash("commit begun")
			case j.Status == "ready":
				hypervisor.Crash("commit ready")
				err = m.c.run(ctx, "job-complete", map[string]string{"id": j.ID}, nil)
				hypervisor.Crash("commit completing")
				// A job that was asked before, by us or by who came before us, shows as ready for a moment more.
				if asked[node]++; refused(err) && asked[node] < maxAsked {
					err = nil
				}
			case j.Status == "concluded":
				err = m.c.run(ctx, "job-dismiss", map[string]string{"id": j.ID}, nil)
				if j.Error != "" {
					err = errors.New(j.Error)
				}
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("putting %s back into %s: %w; the machine runs on, and the former holds its writes", o.Path, o.Base, err))
				delete(left, node)
			}
			err = nil
		}
		return len(left) == 0, nil
	})
	if err = errors.Join(append(errs, err)...); err != nil {
		return err
	}
	if err := m.based(ctx, list); err != nil {
		return err
	}
	// An overlay had no room: QEMU stopped the machine, which ran before, and has the write done again when it goes on.
	status, err := m.status(ctx)
	if err == nil && status == "io-error" {
		err = m.c.run(ctx, "cont", nil, nil)
	}
	return err
}

// tops gives the nodes that drives use.
func (m *machine) tops(ctx context.Context) (map[string]bool, error) {
	drives, err := m.drives(ctx)
	if err != nil {
		return nil, err
	}
	tops := map[string]bool{}
	for _, d := range drives {
		tops[d.Inserted.Node] = true
	}
	return tops, nil
}

// based makes sure that the drives use the disks themselves again.
func (m *machine) based(ctx context.Context, list []overlay) error {
	tops, err := m.tops(ctx)
	if err != nil {
		return err
	}
	for _, o := range list {
		if tops[o.Over] || !tops[o.Node] {
			return fmt.Errorf("%s is not the image of %s after the commit", o.Base, o.Disk)
		}
	}
	return nil
}

// moment is how long an image may be open for writing before that counts.
const moment = 2 * time.Second

// slack is how much later than the snapshot a base may have been written: it takes its time, and file systems have
// clocks of their own. More of it would take a machine that was started again for one that was not.
const slack = 3 * time.Second

// commitOffline puts back what the overlays of a QEMU that ended hold. The machine's definition names the base: where
// somebody started it from that, there are two histories, between which nobody but its owner can choose.
func (m *machine) commitOffline(ctx context.Context, s *hypervisor.Step) error {
	list, err := overlaysOf(s)
	if err != nil {
		return err
	}
	for _, o := range list {
		if err := m.checkOffline(s, o); err != nil {
			return err
		}
	}
	s.Keep("committing", "yes")
	for _, o := range list {
		if _, err := os.Lstat(o.Path); errors.Is(err, fs.ErrNotExist) {
			continue // somebody chose the other history
		}
		hypervisor.Crash("before qemu-img commit")
		if err := qemuImg(ctx, "commit", "-q", "-f", "qcow2", "-d", o.Path); err != nil {
			return fmt.Errorf("%w; %s holds what the machine wrote since %s: don't start it before vmfreeze --recover worked", err, o.Path, since(s))
		}
		hypervisor.Crash("after qemu-img commit")
	}
	return nil
}

func since(s *hypervisor.Step) string {
	if s.Begun == nil {
		return "the snapshot"
	}
	return s.Begun.Format(time.RFC3339)
}

func (m *machine) checkOffline(s *hypervisor.Step, o overlay) error {
	if _, err := os.Stat(o.Path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	for _, path := range []string{o.Base, o.Path} {
		if held, err := written(path); err != nil {
			return err
		} else if held {
			return fmt.Errorf("%s is in use: the machine was started again; %s holds what it wrote before, since %s: "+
				"shut it down, then run vmfreeze --recover", path, o.Path, since(s))
		}
	}
	st, err := os.Stat(o.Base)
	if err != nil {
		return err
	}
	// Until the commit begins nobody but us could have written to the base.
	limit := cmp.Or(s.Done, s.Begun)
	if s.Args["committing"] == "" && limit != nil && st.ModTime().After(limit.Add(slack)) {
		return fmt.Errorf("%s was written to at %s, after %s took over: the machine was started without the latter, and there are two histories. "+
			"to keep what %[1]s holds, remove %[3]s; to keep what that holds, put the former back as it was then (a clone will do) "+
			"and run qemu-img commit on the latter; after either run vmfreeze --recover",
			o.Base, st.ModTime().UTC().Format(time.RFC3339), o.Path)
	}
	return nil
}
