package fsmap

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"

	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

// Limits of a tree. What goes beyond is a problem, and left out.
const (
	maxDepth   = 4096     // directories within one another; PATH_MAX allows half as many
	maxName    = 4096     // bytes in a name; the longest that a file system has are 255 characters of UTF-16
	maxEntries = 32 << 20 // names in one directory
	maxNames   = 2 << 30  // bytes in them
)

// walker goes through one file system, depth first, with names in byte order, and cuts it into batches of names. It
// reads directories only; what the names stand for is read by those who work off the batches.
type walker struct {
	fs   FS
	size int64 // of the volume
	on   mapfile.Patterns
	// hit is told the text of each pattern that selects something.
	hit func(text string)
	// send hands over a batch and gives an empty one.
	send      func(*batch) *batch
	batch     *batch
	batchSize int

	path  []byte
	stack []frame
	lists []*list // by depth, used again
	seen  map[Ref]struct{}
	node  Node
}

// frame is a directory that is being walked.
type frame struct {
	*list
	next  int // index of the entry to go on with
	path  int // length of its path
	entry dirent
	sent  bool // its own record was
}

// list is a directory's names.
type list struct {
	names []byte
	ents  []dirent
}

type dirent struct {
	key      uint64 // the name's first bytes, to sort by
	ref      Ref
	aux      uint64
	off      uint32
	len      uint16
	kind     mapfile.FileKind
	selected bool
}

func (l *list) name(e *dirent) []byte { return l.names[e.off : e.off+uint32(e.len)] }

// sort brings the names into byte order; equal ones stay as they were found.
func (l *list) sort() {
	slices.SortFunc(l.ents, func(a, b dirent) int {
		if a.key != b.key {
			return cmp.Compare(a.key, b.key)
		}
		return cmp.Or(bytes.Compare(l.name(&a), l.name(&b)), cmp.Compare(a.off, b.off))
	})
}

// prefix gives the first bytes of a name as a number of the same order.
func prefix(name []byte) (key uint64) {
	for i := range 8 {
		key <<= 8
		if i < len(name) {
			key |= uint64(name[i])
		}
	}
	return key
}

// walk goes through the file system. Its only error is that of ctx.
func (w *walker) walk(ctx context.Context) error {
	root := dirent{ref: w.fs.Info().Root, kind: mapfile.Directory}
	w.seen = make(map[Ref]struct{})
	w.path = append(w.path[:0], '/')
	switch w.on.Match("/") {
	case mapfile.Inside:
		root.selected = true
		w.hits()
	case mapfile.Outside:
		return nil
	}
	w.visit(&root)
	for len(w.stack) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		f := &w.stack[len(w.stack)-1]
		if f.next == len(f.ents) {
			w.leave()
			continue
		}
		e := &f.ents[f.next]
		f.next++
		if w.path = w.path[:f.path]; f.path > 1 {
			w.path = append(w.path, '/')
		}
		w.path = append(w.path, f.name(e)...)
		if f.next > 1 && bytes.Equal(f.name(e), f.name(&f.ents[f.next-2])) {
			// A path stands for one file; which of them a guest would see is not known.
			w.problem("directory entry", ondisk.Corrupt("directory", "name that occurs twice, left out for inode", -1, e.ref.ID))
			continue
		}
		w.visit(e)
	}
	w.flush()
	return nil
}

// visit takes one name, whose path is w.path, into the batch, and enters it where it is a directory.
func (w *walker) visit(e *dirent) {
	if len(w.path) > mapfile.MaxPath {
		w.path = w.path[:w.stack[len(w.stack)-1].path]
		w.problem("directory", ondisk.Unsupported("path", "length", -1, len(w.path)+int(e.len)))
		return
	}
	dir := e.kind == mapfile.Directory || e.kind == 0
	if dir {
		w.node.Reset()
		w.node.Aux, w.node.Ref = e.aux, e.ref
		err := w.fs.Node(w.entry(e), &w.node)
		if err != nil && !e.selected { // else whoever makes its record tells
			w.problem("inode", err)
		}
		dir = err == nil && w.node.Kind == mapfile.Directory
	}
	if e.selected {
		w.above()
		w.add(e, dir)
	}
	if dir {
		w.enter(e)
	}
}

// entry makes the Entry that the driver gave out again. The name is the last component of the path.
func (w *walker) entry(e *dirent) Entry {
	return Entry{Name: w.path[len(w.path)-int(e.len):], Ref: e.ref, Kind: e.kind, Aux: e.aux, Path: w.path}
}

// enter reads the directory that w.node holds and puts it onto the stack.
func (w *walker) enter(e *dirent) {
	if _, twice := w.seen[e.ref]; twice {
		w.problem("directory", ondisk.Corrupt("directory", "it is met a second time, as inode", -1, w.node.Inode))
		return
	}
	if len(w.stack) >= maxDepth {
		w.problem("directory", ondisk.Unsupported("directory", "depth", -1, maxDepth+1))
		return
	}
	w.seen[e.ref] = struct{}{}
	depth := len(w.stack)
	if depth == len(w.lists) {
		w.lists = append(w.lists, new(list))
	}
	l := w.lists[depth]
	l.names, l.ents = l.names[:0], l.ents[:0]
	var odd []error // what its entries have wrong
	// Names take up room on the volume, so that those of one directory can't be larger than it.
	room := min(w.size, maxNames)
	err := w.fs.ReadDir(&w.node, func(x Entry) bool {
		if bad := nameError(x.Name); bad != nil {
			if len(odd) < 100 {
				odd = append(odd, bad)
			}
			return true
		}
		if room -= int64(len(x.Name)) + 1; room < 0 || len(l.ents) >= maxEntries {
			odd = append(odd, ondisk.Corrupt("directory", "number of entries, at least", -1, len(l.ents)))
			return false
		}
		d := dirent{key: prefix(x.Name), ref: x.Ref, aux: x.Aux, off: uint32(len(l.names)), len: uint16(len(x.Name)), kind: x.Kind, selected: e.selected}
		if !e.selected {
			r := w.reach(x.Name)
			if d.selected = r == mapfile.Inside; r == mapfile.Outside || r == mapfile.Above && x.Kind != mapfile.Directory && x.Kind != 0 {
				return true
			}
		}
		l.names = append(l.names, x.Name...)
		l.ents = append(l.ents, d)
		return true
	})
	if err != nil {
		w.problem("directory", err)
	}
	for _, err := range odd {
		w.problem("directory entry", err)
	}
	l.sort()
	w.stack = append(w.stack, frame{list: l, path: len(w.path), entry: *e, sent: e.selected})
}

// reach tells what the patterns say of a name in the directory at w.path.
func (w *walker) reach(name []byte) mapfile.Reach {
	dir := len(w.path)
	if dir > 1 {
		w.path = append(w.path, '/')
	}
	w.path = append(w.path, name...)
	r := w.on.Match(string(w.path))
	if r == mapfile.Inside {
		w.hits()
	}
	w.path = w.path[:dir]
	return r
}

// nameError says why no file can have such a name.
func nameError(name []byte) error {
	switch {
	case len(name) == 0 || len(name) > maxName:
		return ondisk.Corrupt("directory entry", "length of its name", -1, len(name))
	case bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0 || name[0] == '.' && (len(name) == 1 || len(name) == 2 && name[1] == '.'):
		return ondisk.Corrupt("directory entry", "name", -1, fmt.Sprintf("%.300q", name))
	}
	return nil
}

// leave ends the directory on top of the stack.
func (w *walker) leave() {
	top := len(w.stack) - 1
	l := w.stack[top].list
	w.stack = w.stack[:top]
	if cap(l.names) > 1<<20 || cap(l.ents) > 1<<16 { // not kept for the next one at this depth
		*l = list{}
	}
}

// above sends the records of the directories that lead to w.path and were not selected by themselves.
func (w *walker) above() {
	if n := len(w.stack); n == 0 || w.stack[n-1].sent {
		return
	}
	path := w.path
	for i := range w.stack {
		if f := &w.stack[i]; !f.sent {
			f.sent = true
			w.path = path[:f.path]
			w.add(&f.entry, true)
		}
	}
	w.path = path
}

// add puts the name with path w.path into the batch.
func (w *walker) add(e *dirent, dir bool) {
	b := w.batch
	b.items = append(b.items, item{ref: e.ref, aux: e.aux, kind: e.kind, dir: dir, name: uint16(e.len), start: len(b.paths), end: len(b.paths) + len(w.path)})
	b.paths = append(b.paths, w.path...)
	w.full()
}

// problem puts a problem with the directory or file at w.path into the batch.
func (w *walker) problem(what string, err error) {
	b := w.batch
	b.items = append(b.items, item{what: what, err: err, start: len(b.paths), end: len(b.paths) + len(w.path)})
	b.paths = append(b.paths, w.path...)
	w.full()
}

func (w *walker) full() {
	if len(w.batch.items) >= w.batchSize || len(w.batch.paths) >= maxBatchPaths {
		w.flush()
	}
}

func (w *walker) flush() {
	if len(w.batch.items) > 0 {
		w.batch = w.send(w.batch)
	}
}

// hits tells which patterns select w.path.
func (w *walker) hits() {
	if w.hit != nil {
		w.on.Hits(string(w.path), w.hit)
	}
}
