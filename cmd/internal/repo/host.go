package repo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/hostsnap"
	"vmkit/formats"
	"vmkit/formats/qcow2"
	"vmkit/fsmap/mapfile"
)

// HostOptions says what of this host is backed up.
type HostOptions struct {
	Paths   []HostPath
	Exclude mapfile.Patterns // where On gives any
	// Files say how files stand still while they are read, or are nil.
	Files *hostsnap.Set
	// Guest makes the point of a file that is a guest's disk image; nil, without an error, for one that is none.
	Guest func(ctx context.Context, path string) (*Kept, error)
	// Problem is told what goes into the map as problems.
	Problem func(*mapfile.Names, *mapfile.Problem)
}

// Kept says which disk of which point holds the same as a guest's image among the files. It is a field of the file's
// record, "kept_as"; the record's extents are missing, as the file's own bytes are not kept.
type Kept struct {
	Machine string `json:"machine"`
	Point   string `json:"point"`
	Disk    string `json:"disk"`
	Format  string `json:"format"`
}

// The files of a host lie in one disk, one after another, and its map is the folder of them. A file of a cluster and more
// begins with a cluster, and keeps its place as long as it is there; what of it changed is found by the sums of its
// clusters. Smaller ones are packed, and one that changed gets a new place behind all others.
const hostAlign = 512

// hostMaker makes a point of this host's files.
type hostMaker struct {
	*maker
	HostOptions
	parent *hostParent
	end    int64 // where the next file is placed
	used   []placed
	disk   *hostDisk
	links  map[hostInode]link // files with several names
	first  map[string]string  // the other names of them, and their first
	kept   map[string]*Kept
	failed map[string]error // files, and why nothing of them is kept
	doubts map[string]error // files, and why what is kept of them may not fit together
}

type hostInode struct{ dev, ino uint64 }

type link struct {
	name    string
	extents []mapfile.Extent
}

var errFileChanged = errors.New("it changed while it was backed up: what is kept may not fit together")

// BackupHost makes a point of files of this host, which m names and gives the time of.
func BackupHost(ctx context.Context, s Store, m *Machine, h HostOptions, o Options) (*Point, error) {
	b := &hostMaker{
		maker: &maker{Options: o, s: s, m: m, host: true}, HostOptions: h,
		links: map[hostInode]link{}, first: map[string]string{}, kept: map[string]*Kept{}, failed: map[string]error{}, doubts: map[string]error{},
	}
	return b.run(ctx, b.make)
}

func (b *hostMaker) make(ctx context.Context, points []*Point) error {
	b.p.Disks = []Disk{{Name: "files", Format: "files"}}
	why, err := b.choose(ctx, points)
	if err == nil {
		err = b.fall(why, len(points) > 0)
	}
	if err == nil {
		err = b.once(ctx)
	}
	if x := (*wrongParent)(nil); errors.As(err, &x) && !b.Incremental {
		if err := b.s.Remove(ctx, b.names...); err != nil {
			return err
		}
		b.Warn("%s: a full point is made: %v", b.m.Name, x)
		b.names, b.chain, b.fallback = nil, nil, x.Error()
		return b.once(ctx)
	}
	return err
}

// once makes the point upon the chain that was chosen.
func (b *hostMaker) once(ctx context.Context) error {
	d := &b.p.Disks[0]
	b.end, b.used, b.disk, b.parent, b.p.Parent = 0, nil, &hostDisk{}, nil, ""
	clear(b.links)
	clear(b.first)
	d.Cluster, d.Changes, d.Fallback = b.Cluster, changesFull, b.fallback
	d.Taken, d.OneInstant = b.taken()
	if d.Cluster == 0 {
		d.Cluster = qcow2.DefaultCluster
	}
	if len(b.chain) > 0 {
		last := b.chain[len(b.chain)-1]
		d.Cluster, d.Changes, b.end, b.p.Parent = last.Disks[0].Cluster, changesTimes, last.Disks[0].Size, last.Name
		if b.Reread {
			d.Changes = changesReread
		}
		var err error
		if b.parent, err = openHostParent(ctx, b.s, last); err != nil {
			return notParent(err)
		}
		defer b.parent.stop()
		old, err := OpenDisk(ctx, b.s, last, 0, false, nil)
		if err != nil {
			return notParent(err)
		}
		defer old.Close()
		b.disk.below = old
	}
	spool, err := os.CreateTemp("", "vmbackup-")
	if err != nil {
		return err
	}
	defer spool.Close()
	if err := os.Remove(spool.Name()); err != nil {
		return err
	}
	if err := b.plan(ctx, spool); err != nil {
		return err
	}
	if err := b.store(ctx); err != nil {
		return err
	}
	if err := b.writeMap(ctx, spool); err != nil {
		return err
	}
	b.p.Totals = d.Totals
	return b.readFiles(ctx)
}

// taken tells of the paths how they were read, and whether all files are of one instant.
func (b *hostMaker) taken() (list []Taken, whole bool) {
	if b.Files == nil {
		return nil, false
	}
	for i, p := range b.Files.Paths {
		list = append(list, Taken{b.Paths[i].As, string(p.How), p.At.UTC()})
	}
	return list, b.Files.Whole
}

// chosen gives the paths as they are read.
func (b *hostMaker) chosen() []HostPath {
	list := slices.Clone(b.Paths)
	if b.Files != nil {
		for i, p := range b.Files.Paths {
			list[i].Path = p.Read
		}
	}
	return list
}

// plan walks over the files, places them, and writes their records to the spool.
func (b *hostMaker) plan(ctx context.Context, spool io.Writer) error {
	z, err := zstd.NewWriter(spool, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	w := mapfile.NewWriter(z)
	b.head(w, 1<<60)
	walk := &hostWalk{ctx: ctx, files: b.Files, paths: b.chosen(), file: func(f *mapfile.File, path string, dev uint64) error { return b.file(ctx, w, f, path, dev) }}
	if len(b.Exclude.Texts()) > 0 {
		on, _ := b.Exclude.On("disk")
		walk.exclude = func(name string) bool { return on.Match(name) == mapfile.Inside }
	}
	if dir, ok := b.s.(*Dir); ok {
		if walk.skip, err = os.Stat(dir.root); err != nil {
			return err
		}
	}
	walk.problem = func(name, what string, err error) error {
		return w.Problem(&mapfile.Problem{Image: mapfile.None, Path: name, What: what, Error: err.Error()})
	}
	if err := walk.run(); err != nil {
		return err
	}
	end := w.Count()
	if err := w.End(&end); err != nil {
		return err
	}
	return z.Close()
}

// head writes what a map begins with.
func (b *hostMaker) head(w *mapfile.Writer, size int64) {
	w.Map(&mapfile.Map{Version: mapfile.Version, Tool: b.Tool, Created: mapfile.TimeOf(b.m.At)})
	w.Image(&mapfile.Image{Name: b.p.Disks[0].Name, Format: b.p.Disks[0].Format, Size: size, State: string(formats.StateClean)})
	w.Volume(&mapfile.Volume{Name: "disk", Kind: "disk", Size: size, In: mapfile.None, FS: "files", Used: mapfile.None})
}

// file places a file and writes its record.
func (b *hostMaker) file(ctx context.Context, w *mapfile.Writer, f *mapfile.File, path string, dev uint64) error {
	if f.Kind != mapfile.Regular || f.Size == 0 {
		return w.File(f)
	}
	id := hostInode{dev, f.Inode}
	source := hostSource{path: path, size: f.Size, mtime: f.MTime, inode: f.Inode}
	if x, ok := b.links[id]; ok && f.Links > 1 {
		f.Extents, b.first[f.Path] = x.extents, x.name
		return w.File(f)
	}
	old, same, likely := b.parent.find(f)
	if !same && b.Guest != nil && b.kept[f.Path] == nil {
		switch kept, err := b.Guest(ctx, path); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			b.failed[f.Path] = err
		case kept != nil:
			b.kept[f.Path] = kept
		}
	}
	if b.failed[f.Path] != nil || b.kept[f.Path] != nil {
		return w.File(f)
	}
	if b.Files != nil && (!same || b.Reread) {
		if err := b.copy(f, &source); err != nil {
			b.failed[f.Path] = err
			return w.File(f)
		}
		likely = likely && b.parent.alike(f)
		id.ino = f.Inode
		if f.Size == 0 {
			return w.File(f)
		}
	}
	if f.Extents = old; !likely {
		f.Extents = b.place(f.Size, old)
	}
	if !same || b.Reread {
		for i := range f.Extents {
			x := &f.Extents[i]
			b.disk.jobs = append(b.disk.jobs, &hostJob{hostSource: source, pos: x.Disk, n: x.Len, at: x.At, name: f.Path})
		}
	}
	for i := range f.Extents {
		b.use(f.Extents[i].Disk, f.Extents[i].Len)
	}
	if f.Links > 1 {
		b.links[id] = link{f.Path, slices.Clone(f.Extents)}
	}
	return w.File(f)
}

// copy lets a file's reflink copy be read instead of it, where there are to be any, and f be as the file then was.
func (b *hostMaker) copy(f *mapfile.File, source *hostSource) error {
	path, st, err := b.Files.Copy(source.path)
	if err != nil || st == nil {
		return err
	}
	var own unix.Stat_t
	if err := unix.Lstat(path, &own); err != nil {
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	now, of := hostRecord(f.Path, st), hostRecord(f.Path, &own)
	now.Xattrs = f.Xattrs
	*f = *now
	source.path, source.size, source.mtime, source.inode = path, of.Size, of.MTime, of.Inode
	return nil
}

// use notes that a file lies there.
func (b *hostMaker) use(off, n int64) {
	if k := len(b.used); k > 0 && b.used[k-1].off+b.used[k-1].n == off {
		b.used[k-1].n += n
		return
	}
	b.used = append(b.used, placed{0, off, n})
}

// place finds room for a file: where it lay before, as far as clusters were its own, and behind all others.
func (b *hostMaker) place(size int64, old []mapfile.Extent) (list []mapfile.Extent) {
	cluster := b.p.Disks[0].Cluster
	put := func(at, n, disk int64) {
		list = append(list, mapfile.Extent{At: at, Len: n, Kind: mapfile.Data, Disk: disk, Image: mapfile.None, File: mapfile.None, Off: mapfile.None})
	}
	var at int64
	if size < cluster {
		put(0, size, b.end)
		b.end += (size + hostAlign - 1) &^ (hostAlign - 1)
		return list
	}
	whole := func(n int64) int64 { return (n + cluster - 1) &^ (cluster - 1) }
	var had int64
	for i := range old {
		had += old[i].Len
	}
	for i := range old {
		x := &old[i]
		if had < cluster || x.Disk%cluster != 0 || at == size || at%cluster != 0 {
			break
		}
		n := min(whole(x.Len), size-at)
		put(at, n, x.Disk)
		at += n
	}
	if at < size {
		b.end = whole(b.end)
		put(at, size-at, b.end)
		b.end += whole(size - at)
	}
	return list
}

// store writes the image.
func (b *hostMaker) store(ctx context.Context) error {
	d := &b.p.Disks[0]
	b.end = max((b.end+d.Cluster-1)&^(d.Cluster-1), d.Cluster)
	d.Size, b.disk.size = b.end, b.end
	slices.SortFunc(b.disk.jobs, func(x, y *hostJob) int { return int(min(max(x.pos-y.pos, -1), 1)) })
	know := newKnowledge(d.Size)
	know.free.inner(0, d.Size)
	know.quiet.inner(0, d.Size)
	for _, u := range b.used {
		know.free.outer(u.off, u.n, false)
	}
	b.used = nil
	hint := newRanges(d.Size, d.Cluster)
	for _, j := range b.disk.jobs {
		hint.outer(j.pos, j.n, true)
	}
	b.survey.disks = []*knowledge{know}
	b.m.Images = []*formats.Image{{Disk: b.disk, Name: d.Name}}
	defer b.disk.close()
	share := b.Sample
	b.Sample = 0 // what is as it was can't be read: nothing says which file lies where
	defer func() { b.Sample = share }()
	if err := b.image(ctx, 0, hint); err != nil {
		return err
	}
	for _, j := range b.disk.jobs {
		if j.err != nil {
			b.failed[j.name] = j.err
		} else if !j.unchanged() {
			b.doubts[j.name] = errFileChanged
		}
	}
	return nil
}

// writeMap writes the map, now that it is known what of it could be read.
func (b *hostMaker) writeMap(ctx context.Context, spool *os.File) error {
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return err
	}
	in, err := zstd.NewReader(spool, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := b.create(ctx, b.stem(0)+mapEnd)
	if err != nil {
		return err
	}
	defer out.Abort()
	z, err := newMapWriter(out)
	if err != nil {
		return err
	}
	var names mapfile.Names
	w := mapfile.NewWriter(z)
	b.head(w, b.end)
	names.See(&mapfile.Map{})
	names.See(&mapfile.Volume{Name: "disk"})
	problem := func(p *mapfile.Problem) error {
		if b.Problem != nil {
			b.Problem(&names, p)
		}
		return w.Problem(p)
	}
	for r := mapfile.NewReader(in); ; {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		switch x := record.(type) {
		case *mapfile.File:
			if err := b.finish(w, x, problem); err != nil {
				return err
			}
		case *mapfile.Problem:
			if err := problem(x); err != nil {
				return err
			}
		case *mapfile.End:
			end := w.Count()
			if err := w.End(&end); err != nil {
				return err
			}
		}
	}
	if err := z.Close(); err != nil {
		return err
	}
	d := &b.p.Disks[0]
	d.Map, err = out.commit(ctx)
	d.Stored += d.Map.Size
	return err
}

// finish writes a file's record as it is in the end.
func (b *hostMaker) finish(w *mapfile.Writer, f *mapfile.File, problem func(*mapfile.Problem) error) error {
	name := cmp.Or(b.first[f.Path], f.Path)
	kept, err := b.kept[name], b.failed[name]
	if kept != nil || err != nil {
		f.Extents = []mapfile.Extent{{Len: f.Size, Kind: mapfile.Missing, Disk: mapfile.None, Image: mapfile.None}}
	}
	if kept != nil {
		text, err := json.Marshal(kept)
		if err != nil {
			return err
		}
		f.Rest = append(f.Rest, `,"kept_as":`+string(text)...)
	}
	if e := w.File(f); e != nil {
		return e
	}
	if err = cmp.Or(err, b.doubts[name]); err == nil {
		return nil
	}
	return problem(&mapfile.Problem{Image: mapfile.None, Path: f.Path, What: "content", Error: err.Error()})
}

// hostParent reads the map of the point before along with the walk.
type hostParent struct {
	at   time.Time // the point's
	r    *mapfile.Reader
	stop func()
	cur  mapfile.File
	list []mapfile.Extent
	done bool
}

func openHostParent(ctx context.Context, s Store, p *Point) (*hostParent, error) {
	r, stop, err := openMap(ctx, s, p, p.Disks[0].Map)
	if err != nil {
		return nil, err
	}
	return &hostParent{at: p.At, r: r, stop: stop}, nil
}

// find gives where a file lay, whether it is as it was (of the same inode, size and times), and whether its content is
// likely to be: of the same size and time of change, though it was moved or its mode was set.
func (h *hostParent) find(f *mapfile.File) (old []mapfile.Extent, same, likely bool) {
	if h == nil {
		return nil, false, false
	}
	key := fileKey{path: f.Path}
	for !h.done && (&fileKey{path: h.cur.Path}).compare(&key) < 0 {
		h.step()
	}
	if h.done || h.cur.Path != f.Path || h.cur.Kind != mapfile.Regular {
		return nil, false, false
	}
	for i := range h.list {
		if h.list[i].Kind != mapfile.Data || h.list[i].Disk == mapfile.None {
			return nil, false, false
		}
	}
	c := &h.cur
	likely = h.alike(f) && len(h.list) > 0
	return slices.Clone(h.list), likely && c.Inode == f.Inode && c.CTime == f.CTime && h.settled(c.CTime), likely
}

// alike tells whether the file that find met last has the size and the time of change of f.
func (h *hostParent) alike(f *mapfile.File) bool {
	return h.cur.Size == f.Size && h.cur.MTime == f.MTime
}

// clockTick is at least how far the times of files lag behind the clock: a hundredth of a second, with a kernel of 100 Hz.
const clockTick = 20 * time.Millisecond

// settled tells whether a change after the point before would have given a file another time than this.
func (h *hostParent) settled(t mapfile.Time) bool {
	return time.Unix(t.Sec, int64(t.Nsec)).Before(h.at.Add(-clockTick))
}

// step reads the next file.
func (h *hostParent) step() {
	for {
		record, err := h.r.Next()
		if err != nil {
			h.done = true
			return
		}
		switch x := record.(type) {
		case *mapfile.File:
			h.cur, h.list = *x, append(h.list[:0], x.Extents...)
			if !x.More {
				return
			}
		case *mapfile.Extents:
			if h.list = append(h.list, x.Extents...); !x.More {
				return
			}
		}
	}
}
