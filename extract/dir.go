package extract

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// ToDir extracts into the folder dir, each volume into the folder of its name. dir is made where it isn't there. An
// error means that the run stopped: the map is not sound, a host file changed, the output is full, ctx ended.
func ToDir(ctx context.Context, in *mapfile.Reader, dir string, o Options) (Summary, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := newRun(ctx, o)
	d := &dirSink{run: r, dir: dir, prefix: strings.TrimRight(dir, "/") + "/", cancel: cancel, links: make(map[linkKey]*linkGroup), seed: maphash.MakeSeed()}
	d.noTmp.Store(forceNamed)
	if err := d.start(); err != nil {
		return r.sum, err
	}
	err := r.read(in, d)
	if err == nil {
		err = d.settle()
	}
	d.close()
	if cause := context.Cause(ctx); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = cause
	}
	if err == nil {
		err = r.endResults()
	}
	return r.sum, err
}

// forceNamed makes tests take the way of file systems without O_TMPFILE.
var forceNamed bool

// Limits of the window of a map that is worked on at once.
const (
	batchItems   = 512
	batchFolders = 64
	batchExtents = 16 << 10
	batchBytes   = 4 << 20 // inline
	batches      = 6       // waiting for their turn
	taskItems    = 8       // files that a worker takes at once, neighbours in the host file
)

// dirSink writes into a folder. One goroutine goes through the map: it makes folders, and gathers what is to be
// written into batches. Workers write the files of a batch in the order of their places in the host files. Another
// goroutine takes the batches in order, links the further names of files, sets what folders get last, and writes the
// results in the order of the map.
type dirSink struct {
	*run
	dir    string
	prefix string // dir, with a slash at its end
	cancel context.CancelCauseFunc
	root   *folder
	born   unix.StatxTimestamp // what the output's file system said when the run began
	noTmp  atomic.Bool         // it has no unnamed files
	tmpNo  atomic.Int64
	umask  uint32

	stack  []*folder // the output folder, and those down to where the map stands
	batch  *batch
	tasks  chan task
	retire chan *batch
	group  sync.WaitGroup // workers and the finisher
	filler *filler        // for what the first goroutine writes itself
	fin    *filler        // for what the last one does
	open   *writing       // a long file
	openIt *item

	links map[linkKey]*linkGroup
	seed  maphash.Seed
}

type batch struct {
	items   []item
	jobs    []int // items that workers do
	leave   []*folder
	extents []mapfile.Extent
	bytes   int
	folders int     // that items are in, one after another
	last    *folder // the last of these
	wg      sync.WaitGroup
	settled chan struct{} // closed when the batch is done
}

// item is one record of the results, and the work that it stands for.
type item struct {
	file   mapfile.File
	folder *folder // held; nil where nothing is to be made
	name   string
	link   *linkGroup // a further name of a file
	res    mapfile.Result
	locked bool // not whole only for want of a key
	cut    bool // its name is another one here

	line     []byte // what is passed on, in place of a result
	problems int64
}

type task struct {
	b     *batch
	items []int
}

type linkKey struct {
	volume int
	inode  uint64
}

// linkGroup is a file with several names.
type linkGroup struct {
	content uint64 // a hash of what the map says that it holds
	names   int64  // that are still to come
	from    string // path below the output folder of the first name that is whole
	res     mapfile.Result
}

// start opens the output folder and the goroutines.
func (d *dirSink) start() error {
	if err := os.MkdirAll(d.dir, 0o777); err != nil {
		return err
	}
	fd, err := unix.Open(d.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%s: %w", d.dir, err)
	}
	d.root = &folder{fd: fd, made: true, acl: inherits(fd)}
	d.root.hold()
	d.stack = []*folder{d.root}
	d.umask = umask()
	if d.born, err = d.now(); err != nil {
		d.root.drop()
		return fmt.Errorf("%s: %w", d.dir, err)
	}
	d.batch = newBatch()
	d.tasks = make(chan task, 2*d.Workers)
	d.retire = make(chan *batch, batches)
	d.filler, d.fin = newFiller(&d.src), newFiller(&d.src)
	for range d.Workers {
		d.group.Go(d.work)
	}
	d.group.Go(d.finish)
	return nil
}

// now asks the output's file system what time it is: what it writes from now on carries no earlier one.
func (d *dirSink) now() (unix.StatxTimestamp, error) {
	out, err := d.create(d.root, 0o600)
	if err != nil {
		return unix.StatxTimestamp{}, err
	}
	defer out.abandon()
	var st unix.Statx_t
	err = unix.Statx(out.fd, "", unix.AT_EMPTY_PATH, unix.STATX_BTIME|unix.STATX_CTIME, &st)
	return birth(&st), err
}

func newBatch() *batch {
	return &batch{items: make([]item, 0, batchItems), settled: make(chan struct{})}
}

func (d *dirSink) close() {
	close(d.tasks)
	close(d.retire)
	d.group.Wait()
	if d.open != nil {
		d.open.abandon()
	}
	d.batch.discard()
	for _, f := range d.stack {
		f.drop()
	}
	d.filler.close()
	d.fin.close()
}

// discard lets go of what a batch holds that is not going to be done.
func (b *batch) discard() {
	for i := range b.items {
		if f := b.items[i].folder; f != nil {
			f.drop()
		}
	}
	for _, f := range b.leave {
		f.drop()
	}
	close(b.settled)
}

// settle sends what waits on its way and waits until it is done. All folders but the output folder are left.
func (d *dirSink) settle() error {
	for len(d.stack) > 1 {
		d.pop()
	}
	b := d.batch
	if err := d.send(); err != nil {
		return err
	}
	select {
	case <-b.settled:
	case <-d.ctx.Done():
		return context.Cause(d.ctx)
	}
	clear(d.links)
	return context.Cause(d.ctx)
}

// next gives a new item of the batch. Its address stays.
func (d *dirSink) next() (*item, error) {
	b := d.batch
	if len(b.items) == cap(b.items) || len(b.extents) > batchExtents || b.bytes > batchBytes || b.folders >= batchFolders {
		if err := d.send(); err != nil {
			return nil, err
		}
		b = d.batch
	}
	b.items = append(b.items, item{})
	return &b.items[len(b.items)-1], nil
}

// send gives the batch to the workers, in disk order.
func (d *dirSink) send() error {
	b := d.batch
	d.batch = newBatch()
	place := func(i int) (int, int64) {
		for k := range b.items[i].file.Extents {
			if e := &b.items[i].file.Extents[k]; e.Kind == mapfile.Data {
				return e.File, e.Off
			} else if e.Kind == mapfile.Packed && e.Pack.Parts[0].Kind == mapfile.Data {
				return e.Pack.Parts[0].File, e.Pack.Parts[0].Off
			}
		}
		return mapfile.None, 0
	}
	slices.SortStableFunc(b.jobs, func(i, j int) int {
		f, o := place(i)
		g, p := place(j)
		return cmp.Or(cmp.Compare(f, g), cmp.Compare(o, p))
	})
	tasks := slices.Collect(slices.Chunk(b.jobs, taskItems))
	b.wg.Add(len(tasks))
	select {
	case d.retire <- b:
	case <-d.ctx.Done():
		b.discard()
		return context.Cause(d.ctx)
	}
	for i, items := range tasks {
		select {
		case d.tasks <- task{b, items}:
		case <-d.ctx.Done():
			b.wg.Add(i - len(tasks)) // these are never done
			return context.Cause(d.ctx)
		}
	}
	return nil
}

// file takes up one file of the map.
func (d *dirSink) file(v *mapfile.Volume, f *mapfile.File, chosen bool) error {
	if err := badRelative(v.Name); err != nil {
		return d.refuse(v, f, chosen, fmt.Errorf("the volume's name: %w", err))
	}
	if err := badPath(f.Path); err != nil {
		return d.refuse(v, f, chosen, err)
	}
	name := d.enter(strings.TrimSuffix(v.Name+f.Path, "/"))
	if f.Kind == mapfile.Directory && f.Stream == "" {
		return d.folder(v, f, name, chosen)
	}
	if !chosen {
		return nil
	}
	it, err := d.next()
	if err != nil {
		return err
	}
	d.prepare(it, v, f, name)
	if it.folder == nil {
		return nil
	}
	b := d.batch
	n := len(b.extents)
	b.extents = append(b.extents, f.Extents...)
	it.file.Extents = b.extents[n:len(b.extents):len(b.extents)]
	for i := range f.Extents {
		b.bytes += len(f.Extents[i].Bytes)
	}
	if f.Kind == mapfile.Regular && f.Stream == "" && f.Links > 1 {
		key, content := linkKey{f.Volume, f.Inode}, hashContent(d.seed, f)
		if g := d.links[key]; g != nil && g.content == content {
			if g.names--; g.names == 0 {
				delete(d.links, key)
			}
			it.link = g
			return nil
		}
		it.link = &linkGroup{content: content, names: f.Links - 1}
		d.links[key] = it.link
	}
	b.jobs = append(b.jobs, len(b.items)-1)
	return nil
}

// prepare fills in an item for a file that isn't a folder. Where nothing is to be made its folder stays nil.
func (d *dirSink) prepare(it *item, v *mapfile.Volume, f *mapfile.File, name string) {
	if f.Stream != "" {
		name += ":" + f.Stream
	}
	it.file, it.name, it.res = *f, hostName(name), result(v, f)
	it.cut = it.name != name
	it.file.Extents = nil
	if why := d.left(f); why != "" {
		it.res.Status, it.res.Error = statusSkipped, why
		return
	}
	top := d.top()
	err := top.make(d)
	if err == nil {
		err = top.clash(it.name, false)
	} else {
		err = fmt.Errorf("its folder: %w", err)
	}
	if err == nil && strings.ContainsAny(name, "/\x00") {
		err = errors.New("the stream's name can't be part of a file's name")
	}
	if err != nil {
		it.res.Status, it.res.Error = statusFailed, err.Error()
		return
	}
	it.folder = top
	it.folder.hold()
	if d.batch.last != top {
		d.batch.last = top
		d.batch.folders++
	}
}

// refuse makes a file failed that can't be placed.
func (d *dirSink) refuse(v *mapfile.Volume, f *mapfile.File, chosen bool, err error) error {
	if !chosen {
		return nil
	}
	it, e := d.next()
	if e != nil {
		return e
	}
	it.res = result(v, f)
	it.res.Status, it.res.Error = statusFailed, err.Error()
	return nil
}

// folder takes up a folder. One that isn't chosen is made when something in it is.
func (d *dirSink) folder(v *mapfile.Volume, f *mapfile.File, name string, chosen bool) error {
	rec := *f
	rec.Extents = nil
	dir := d.push(name, &rec)
	if !chosen {
		return nil
	}
	it, err := d.next()
	if err != nil {
		return err
	}
	it.res = result(v, f)
	if err := dir.make(d); err != nil {
		it.res.Status, it.res.Error = statusFailed, err.Error()
		return nil
	}
	it.res.Status, it.res.To, it.cut = statusOK, d.prefix+dir.path, dir.name != name
	it.res.Error = d.restore(dir, dir.fd, &rec, &it.res)
	return nil
}

// long takes up a file whose extents don't fit in memory: it is written here and now, while they are read. Further
// names of it become files of their own.
func (d *dirSink) long(v *mapfile.Volume, f *mapfile.File, chosen bool) error {
	d.openIt = nil
	if !chosen {
		return nil
	}
	if err := errors.Join(badRelative(v.Name), badPath(f.Path)); err != nil {
		return d.refuse(v, f, chosen, err)
	}
	name := d.enter(strings.TrimSuffix(v.Name+f.Path, "/"))
	it, err := d.next()
	if err != nil {
		return err
	}
	if d.prepare(it, v, f, name); it.folder == nil {
		return nil
	}
	d.openIt = it
	if d.open, err = d.begin(d.filler, it); err != nil {
		return d.failed(it, err)
	}
	return d.more(f.Extents, false)
}

func (d *dirSink) extents(x *mapfile.Extents) error {
	if d.open == nil {
		return nil
	}
	return d.more(x.Extents, !x.More)
}

func (d *dirSink) own(*mapfile.Volume, *mapfile.Extents, bool) error { return nil }

func (d *dirSink) more(list []mapfile.Extent, last bool) error {
	err := d.filler.add(list)
	if err == nil && last {
		err = d.complete(d.filler, d.open)
	}
	if err != nil {
		d.open.abandon()
		err = d.failed(d.openIt, err)
	}
	if err != nil || last || d.openIt.res.Status != "" {
		d.open = nil
	}
	if last && d.openIt.file.Links > 1 && d.openIt.res.Status == statusOK {
		remark(&d.openIt.res, fmt.Sprintf("more than %d extents: its other names are files of their own", maxHeld))
	}
	return err
}

// pass puts a line among the results.
func (d *dirSink) pass(line []byte, problems int64) error {
	it, err := d.next()
	if err == nil {
		it.line, it.problems = line, problems
	}
	return err
}
