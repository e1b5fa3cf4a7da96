package clone

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// Options say how machines are cloned.
type Options struct {
	Dir     string // that clones appear in
	Name    string // of the clone, and of its files; "": the machine's with the instant, and files keep their names
	Method  Method
	Sums    bool // write a list of the files' SHA-256 into the clone
	Isolate bool // have its configuration disconnect its network
	Workers int  // 0: as many as suit the host
	// Progress begins to show progress of total bytes, or does nothing.
	Progress func(what string, total int64) (add func(int64), done func())
}

// Clone is a clone that is being made. Whoever made it calls Finish or Discard.
type Clone struct {
	o        *Options
	vm       *mapfile.VM
	raw      []byte
	name     string
	stage    *stage
	items    []*item
	read     time.Time // when the last byte of the sources was read
	uuids    map[string]string
	notes    []string
	problems []*mapfile.Problem
	made     []mapfile.CloneFile // files that no file of the machine is the source of
}

// item is a file of the machine that becomes one of the clone.
type item struct {
	mapfile.VMFile
	*pair
	abs    string // its path
	info   fs.FileInfo
	name   string // in the clone
	method string
	format string // as what refers to it says; set when it was gone through
	seen   bool
	sum    string
}

// staysBehind says which files are no part of a clone.
func staysBehind(f mapfile.VMFile) bool {
	switch f.Role {
	case mapfile.RoleLock, mapfile.RoleLog, mapfile.RoleMedia:
		return true
	case mapfile.RoleMemory:
		// A snapshot of VMware has its configuration in there; without its memory it is one of a machine that is off.
		return !strings.EqualFold(filepath.Ext(f.Path), ".vmsn")
	}
	return false
}

// Start clones the data of a machine's files. The machine has to be held until it returns.
func Start(ctx context.Context, m *Machine, o *Options) (*Clone, error) {
	c := &Clone{o: o, vm: m.VM, raw: m.Raw, name: cmp.Or(o.Name, DefaultName(m.VM, time.Now())), uuids: map[string]string{}}
	var err error
	if c.stage, err = newStage(o.Dir, c.name); err != nil {
		return nil, err
	}
	if err := c.data(ctx); err != nil {
		c.Discard()
		return nil, err
	}
	return c, nil
}

// Discard gives the clone up. After Finish it does nothing.
func (c *Clone) Discard() {
	if c.stage != nil {
		c.stage.discard()
		c.stage = nil
	}
	for _, it := range c.items {
		it.close()
	}
	c.items = nil
}

// data clones the files' data.
func (c *Clone) data(ctx context.Context) error {
	if err := c.open(); err != nil {
		return err
	}
	var pairs []*pair
	need, total := int64(0), int64(0)
	for _, it := range c.items {
		if err := ctx.Err(); err != nil {
			return err
		}
		var why error
		if it.method = string(Reflink); c.o.Method != Copy {
			if why = it.reflink(); why == nil {
				continue
			}
		}
		disk := it.Role == mapfile.RoleDisk || it.Role == mapfile.RoleBacking
		switch {
		case disk && c.o.Method == Reflink:
			return fmt.Errorf("%s can't be cloned into %s by reflink: %w", it.Path, c.o.Dir, why)
		case disk && c.vm.ReflinkOnly:
			if why == nil {
				why = errors.New("--method copy was asked for")
			}
			return fmt.Errorf("%s can't be cloned into %s by reflink (%w), and a copy would keep the machine standing still: "+
				"name a folder on the same file system, or use vmfreeze -m snapshot, or its --allow-long-pause", it.Path, c.o.Dir, why)
		}
		it.method = string(Copy)
		pairs = append(pairs, it.pair)
		need, total = need+it.used, total+min(it.used, it.size)
	}
	if err := room(c.o.Dir, need); err != nil {
		return err
	}
	add, done := func(int64) {}, func() {}
	if c.o.Progress != nil {
		add, done = c.o.Progress(c.name, total)
	}
	defer done()
	err := copyAll(ctx, pairs, cmp.Or(c.o.Workers, max(2, min(8, runtime.NumCPU()))), add)
	c.read = time.Now()
	if errors.Is(err, unix.ENOSPC) {
		err = fmt.Errorf("%s is full: %w", c.o.Dir, err)
	}
	return err
}

// open opens all files of the machine and makes those of the clone.
func (c *Clone) open() error {
	to := ""
	if c.o.Name != "" {
		to = c.name
	}
	names := newNames(c.vm, to)
	var left []string
	for _, f := range c.vm.Files {
		if staysBehind(f) {
			left = append(left, fmt.Sprintf("%s (%s)", filepath.Base(f.Path), f.Role))
			continue
		}
		it, err := c.item(f, names)
		if err != nil {
			return err
		}
		if it != nil {
			c.items = append(c.items, it)
		}
	}
	if len(c.items) == 0 {
		return fmt.Errorf("%s: the vm record names no file to clone", c.vm.Name)
	}
	if len(left) > 0 {
		c.note("left behind: %s", strings.Join(left, ", "))
	}
	return nil
}

// item opens one file of the machine; nil where it is one that was opened already, under another name.
func (c *Clone) item(f mapfile.VMFile, names *names) (*item, error) {
	abs, err := filepath.Abs(f.Path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(abs)
	if err != nil && strings.HasPrefix(f.Path, "[") && c.vm.Driver == "esx" {
		return nil, fmt.Errorf("%s lies on a datastore that is not mounted here: name its folder, esx:URL?DATASTORE=FOLDER/NAME", f.Path)
	}
	if err != nil {
		return nil, err
	}
	for _, o := range c.items {
		if os.SameFile(o.info, info) {
			if f.Role == mapfile.RoleDisk {
				o.VMFile = f // a disk, and besides a layer of another one
			}
			return nil, nil
		}
	}
	it := &item{VMFile: f, abs: abs, info: info, name: names.name(f)}
	it.pair, err = newPair(abs, c.stage.path(it.name))
	return it, err
}

// find gives the file of the clone that a name in a file in folder means, or nil. Files that vmfreeze copied are
// known by their names alone, and so is a disk whose own path is of another host.
func (c *Clone) find(folder, name string) *item {
	if name == "" {
		return nil
	}
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(folder, name)
	}
	path = filepath.Clean(path)
	info, err := os.Stat(path)
	for _, it := range c.items {
		if it.abs == path || err == nil && os.SameFile(it.info, info) {
			return it
		}
	}
	var hits []*item
	for _, it := range c.items {
		kept := it.Role == mapfile.RoleConfig || it.Role == mapfile.RoleFirmware
		if filepath.Base(it.abs) == lastName(name) && (kept || errors.Is(err, fs.ErrNotExist)) {
			hits = append(hits, it)
		}
	}
	if len(hits) == 1 {
		return hits[0]
	}
	return nil
}

func (c *Clone) note(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(c.notes, s) {
		c.notes = append(c.notes, s)
	}
}

// problem tells what could not be done about a file of the clone.
func (c *Clone) problem(name, format string, args ...any) {
	p := &mapfile.Problem{
		Image: mapfile.None, Volume: mapfile.None, Path: filepath.Join(c.stage.final(), name),
		What: "clone", Error: fmt.Sprintf(format, args...),
	}
	c.problems = append(c.problems, p)
}
