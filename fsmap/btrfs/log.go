package btrfs

import (
	"fmt"
	"slices"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
)

// overlay holds what the replay of a log changes in a subvolume: items put in or over others, and keys taken out.
// It is filled while the file system is opened, and read-only after.
type overlay struct {
	changed map[key]*item    // nil: taken out
	keys    map[uint64][]key // of changed, by object id, in order
	sorted  []key            // all of them, once frozen
}

func newOverlay() *overlay { return &overlay{changed: map[key]*item{}, keys: map[uint64][]key{}} }

func (o *overlay) put(k key, data []byte, at int64) { o.set(k, &item{k, data, at}) }
func (o *overlay) drop(k key)                       { o.set(k, nil) }

func (o *overlay) set(k key, x *item) {
	if _, ok := o.changed[k]; !ok {
		i, _ := slices.BinarySearchFunc(o.keys[k.id], k, key.compare)
		o.keys[k.id] = slices.Insert(o.keys[k.id], i, k)
	}
	o.changed[k] = x
}

func (o *overlay) freeze() {
	for _, keys := range o.keys {
		o.sorted = append(o.sorted, keys...)
	}
	slices.SortFunc(o.sorted, key.compare)
}

// merge scans the tree with the changes. Until those are frozen, a scan stays within one object id, and sees those that
// were there when it began.
func (o *overlay) merge(t *tree, from, to key, fn func(item) bool) error {
	keys := o.sorted
	if from.id == to.id {
		keys = o.keys[from.id]
	}
	i, _ := slices.BinarySearchFunc(keys, from, key.compare)
	more := true
	emit := func(before *key) bool { // changes before a key of the tree, or up to the end
		for ; more && i < len(keys) && keys[i].compare(to) <= 0 && (before == nil || keys[i].compare(*before) < 0); i++ {
			if x := o.changed[keys[i]]; x != nil {
				more = fn(*x)
			}
		}
		return more
	}
	_, err := t.walk(t.root, t.level, t.gen, from, to, func(x item) bool {
		if !emit(&x.key) {
			return false
		}
		if _, ok := o.changed[x.key]; ok {
			return true // put over it, or taken out
		}
		more = fn(x)
		return more
	})
	emit(nil)
	return err
}

// replay applies the log trees, which hold what was fsynced since the last commit (fs/btrfs/tree-log.c), to the
// subvolumes, in memory.
func (f *fs) replay(sb []byte, mode fsmap.JournalMode) error {
	at := int64(le.Uint64(sb[sbLogRoot:]))
	if at == 0 {
		f.info.Journal = "clean"
		return nil
	}
	switch mode {
	case fsmap.JournalFail:
		return ondisk.Unsupported("btrfs log tree", "it holds work", superPos+sbLogRoot, nil)
	case fsmap.JournalIgnore:
		f.info.Journal = "ignored"
		f.note("the log tree holds work and was ignored: this is the state of the last commit")
		return nil
	}
	logRoot := &tree{fs: f, id: idLog, root: at, level: int(sb[sbLogLevel])}
	var logs []*tree
	err := logRoot.scan(key{idLog, tRootItem, 0}, key{idLog, tRootItem, maxOff}, func(x item) bool {
		if len(x.data) >= rtMin && x.data[rtLevel] <= maxLevel {
			logs = append(logs, &tree{fs: f, id: x.off, root: int64(le.Uint64(x.data[rtBytenr:])), level: int(x.data[rtLevel])})
		}
		return true
	})
	for _, log := range logs {
		if err != nil {
			break
		}
		r := replayer{fs: f, log: log, over: newOverlay(), fixup: map[uint64]bool{}}
		if r.sub, err = f.tree(log.id); err == nil {
			r.sub.over = r.over
			if err = r.run(); err == nil {
				r.over.freeze()
				f.over[log.id] = r.over
			}
		}
	}
	if err != nil {
		// Half a replay is a state that never was.
		f.over, f.trees = map[uint64]*overlay{}, map[uint64]*tree{}
		f.info.Journal = "unreplayed"
		f.problem(fmt.Errorf("btrfs log tree can't be replayed, this is the state of the last commit: %w", err))
		return nil
	}
	f.info.Journal = "replayed"
	return nil
}
