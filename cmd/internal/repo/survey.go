package repo

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"io"
	"path"
	"strings"

	"vmkit/formats"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// knowledge is what the map of a machine, held against the one of the parent point, says of a disk.
type knowledge struct {
	free  *ranges // nothing uses it
	quiet *ranges // of files that are as the parent's map has them, or free: only a hint's word is needed
	loud  *ranges // of files that are not, or that there wasn't
}

// spaceUnit is the unit in which file systems allocate, or a multiple of it.
const spaceUnit = 4 << 10

func newKnowledge(size int64) *knowledge {
	return &knowledge{newRanges(size, spaceUnit), newRanges(size, spaceUnit), newRanges(size, spaceUnit)}
}

// survey makes the map of a machine's disks, writes it to out, and learns what it says of them.
type survey struct {
	images []*formats.Image
	disks  []*knowledge
	parent *parentMap // nil: there is none
	// withoutSwap leaves out what swap and hibernation hold.
	withoutSwap bool
	leftOut     []string // what that found

	volumes map[int]*surveyVolume
	names   map[string]*mapfile.Volume // of the volumes that hold files, to tell another disk
	summary fsmap.Summary

	// Of the file whose records are being read.
	file   fileKey
	print  uint64
	placed []placed
	many   bool // too many to be held in placed
}

type surveyVolume struct {
	mapfile.Volume
	order int
}

// placed is a stretch of the disk of an image.
type placed struct {
	image  int
	off, n int64
}

// maxPlaced bounds the stretches of one file that are held until it's known whether it changed. Of a file with more, all
// are compared.
const maxPlaced = 1 << 16

// swapHead is how much of swap space is kept: its header, by which a guest finds it.
const swapHead = 64 << 10

// run makes the map by build and reads it as it is made.
func (s *survey) run(ctx context.Context, build func(context.Context, fsmap.Config, *mapfile.Writer) (fsmap.Summary, error), c fsmap.Config, out io.Writer) error {
	s.volumes, s.names = map[int]*surveyVolume{}, map[string]*mapfile.Volume{}
	for _, img := range s.images {
		s.disks = append(s.disks, newKnowledge(img.Size()))
	}
	c.DiskOnly = true
	c.Space = func(image int, off, n int64, free bool) {
		if free {
			s.disks[image].free.inner(off, n)
		} else {
			s.disks[image].free.outer(off, n, false)
		}
	}
	z, err := newMapWriter(out)
	if err != nil {
		return err
	}
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		var err error
		s.summary, err = build(ctx, c, mapfile.NewWriter(pw))
		pw.CloseWithError(err)
		done <- err
	}()
	err = s.read(mapfile.NewReader(io.TeeReader(pr, z)))
	pr.CloseWithError(err)
	if e := <-done; e != nil {
		return e
	}
	if err == nil {
		err = z.Close()
	}
	for _, k := range s.disks {
		k.quiet.add(k.free.bitset)
		k.quiet.take(k.loud.bitset)
		k.loud = nil
	}
	return err
}

func (s *survey) read(r *mapfile.Reader) error {
	for {
		record, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch x := record.(type) {
		case *mapfile.Volume:
			s.volume(x)
		case *mapfile.File:
			v := s.volumes[x.Volume]
			s.file = fileKey{v.order, x.Path, x.Stream}
			s.print, s.placed, s.many = printFile(x), s.placed[:0], false
			s.extents(v, x.Size, x.Extents, x.More)
		case *mapfile.Extents:
			s.extents(s.volumes[x.Volume], -1, x.Extents, x.More)
		}
	}
}

func (s *survey) volume(x *mapfile.Volume) {
	v := &surveyVolume{*x, len(s.volumes)}
	s.volumes[x.ID] = v
	s.names[x.Name] = &v.Volume
	if s.parent != nil {
		s.parent.order(&v.Volume, v.order)
	}
	if s.withoutSwap && x.FS == "swap" {
		s.leave(x.Name, s.onDisk(v, 0, x.Size))
	}
}

// onDisk gives where a stretch of a volume lies, as far as the volume lies on the disks in one piece, or in several one
// after another.
func (s *survey) onDisk(v *surveyVolume, off, n int64) []placed {
	if v.Start != mapfile.None && v.Image != mapfile.None {
		return []placed{{v.Image, v.Start + off, n}}
	}
	var list []placed
	for _, g := range v.Segments {
		a, b := max(g.At, off), min(g.At+g.Len, off+n)
		if in := s.volumes[first(g.Volumes)]; g.Kind == "linear" && in != nil && a < b && len(g.Starts) == 1 {
			list = append(list, s.onDisk(in, g.Starts[0]+a-g.At, b-a)...)
		}
	}
	return list
}

func first(list []int) int {
	if len(list) == 0 {
		return mapfile.None
	}
	return list[0]
}

// leave takes what swap space holds for free, all but its head.
func (s *survey) leave(what string, list []placed) {
	head := int64(swapHead)
	for _, p := range list {
		k := min(head, p.n)
		head -= k
		s.disks[p.image].free.inner(p.off+k, p.n-k)
	}
	s.leftOut = append(s.leftOut, what)
}

// extents takes a file's next extents. size is the file's, or -1 in records that go on with it.
func (s *survey) extents(v *surveyVolume, size int64, list []mapfile.Extent, more bool) {
	s.print = printExtents(s.print, list)
	for i := range list {
		s.place(v, &list[i], v.Image)
	}
	if more {
		return
	}
	changed := true
	if s.parent != nil {
		was, ok := s.parent.find(s.file)
		changed = !ok || was != s.print
	}
	if s.withoutSwap && !s.many && s.swapFile(v) {
		s.leave(v.Name+":"+s.file.path, s.placed)
		return
	}
	for _, p := range s.placed {
		s.mark(p, changed || s.many)
	}
}

// mark notes a stretch of a file.
func (s *survey) mark(p placed, changed bool) {
	k := s.disks[p.image]
	k.free.outer(p.off, p.n, false)
	if changed {
		k.loud.outer(p.off, p.n, true)
	} else {
		k.quiet.inner(p.off, p.n)
	}
}

// place gathers where an extent lies on the disks, its parts too.
func (s *survey) place(v *surveyVolume, x *mapfile.Extent, around int) {
	image := x.Image
	if image == mapfile.None {
		image = around
	}
	if x.Disk != mapfile.None && x.Kind != mapfile.Hole && image >= 0 && image < len(s.disks) {
		p := placed{image, x.Disk, x.Len}
		// What is behind a file's end in its last block is the file's too.
		if bs := v.BlockSize; bs > 0 && bs <= spaceUnit && bs&(bs-1) == 0 && p.off%bs == 0 && x.Kind != mapfile.Packed {
			p.n = (p.n + bs - 1) &^ (bs - 1)
		}
		if len(s.placed) < maxPlaced {
			s.placed = append(s.placed, p)
		} else {
			s.many = true
			s.mark(p, true)
		}
	}
	if x.Pack != nil {
		for i := range x.Pack.Parts {
			s.place(v, &x.Pack.Parts[i], image)
		}
	}
}

// swapFile tells whether the file is one that holds nothing but what memory held.
func (s *survey) swapFile(v *surveyVolume) bool {
	switch v.FS {
	case "ntfs":
		switch strings.ToLower(s.file.path) {
		case "/pagefile.sys", "/swapfile.sys", "/hiberfil.sys":
			return true
		}
	default:
		name := path.Base(s.file.path)
		if !strings.Contains(strings.ToLower(name), "swap") || len(s.placed) == 0 || s.placed[0].n < 4096 {
			return false
		}
		var mark [10]byte
		p := s.placed[0]
		_, err := s.images[p.image].ReadAt(mark[:], p.off+4096-int64(len(mark)))
		return err == nil && string(mark[:]) == "SWAPSPACE2"
	}
	return false
}

// fileKey is a file's place in a map. Maps have files in the order of their keys.
type fileKey struct {
	volume       int
	path, stream string
}

// compare gives the order in which a map has files: depth first, names in byte order.
func (k *fileKey) compare(o *fileKey) int {
	if k.volume != o.volume {
		return k.volume - o.volume
	}
	for i := 0; i < len(k.path) && i < len(o.path); i++ {
		a, b := k.path[i], o.path[i]
		if a != b {
			switch {
			case a == '/':
				return -1
			case b == '/':
				return 1
			}
			return int(a) - int(b)
		}
	}
	if d := len(k.path) - len(o.path); d != 0 {
		return d
	}
	return strings.Compare(k.stream, o.stream)
}

var printSeed = maphash.MakeSeed()

// printFile gives a number for what a file's record says that a change of its content changes too.
func printFile(f *mapfile.File) uint64 {
	var b [64]byte
	p := b[:0]
	for _, n := range []int64{int64(f.Inode), f.Size, f.MTime.Sec, int64(f.MTime.Nsec), f.CTime.Sec, int64(f.CTime.Nsec), int64(f.Kind)} {
		p = binary.LittleEndian.AppendUint64(p, uint64(n))
	}
	return maphash.Bytes(printSeed, p)
}

// printExtents goes on with where the file lies.
func printExtents(before uint64, list []mapfile.Extent) uint64 {
	for i := range list {
		x := &list[i]
		var b [72]byte
		p := binary.LittleEndian.AppendUint64(b[:0], before)
		for _, n := range []int64{x.At, x.Len, int64(x.Kind), x.Disk, int64(x.Image), x.Skip} {
			p = binary.LittleEndian.AppendUint64(p, uint64(n))
		}
		before = maphash.Bytes(printSeed, p)
		if x.Pack != nil {
			before = printExtents(before, x.Pack.Parts)
		}
	}
	return before
}

// parentMap reads the map of the parent point along with the new one.
type parentMap struct {
	r       *mapfile.Reader
	stop    func()
	orders  map[string]int  // of volumes in the new map
	same    map[string]bool // volumes that are what they were
	volumes map[int]*mapfile.Volume
	next    fileKey
	print   uint64
	ahead   any // a record that was read and not used yet; none was read since
	done    bool
}

// openMap reads the map of a point, which several disks may share.
func openMap(ctx context.Context, s Store, p *Point, f StoredFile) (*mapfile.Reader, func(), error) {
	m, err := OpenMap(ctx, s, p, f)
	if err != nil {
		return nil, nil, err
	}
	return mapfile.NewReader(m), func() { m.Close() }, nil
}

// openParent opens the parent's map, as far as its volumes.
func openParent(ctx context.Context, s Store, p *Point, f StoredFile) (*parentMap, error) {
	r, stop, err := openMap(ctx, s, p, f)
	if err != nil {
		return nil, err
	}
	m := &parentMap{r: r, stop: stop, orders: map[string]int{}, same: map[string]bool{}, volumes: map[int]*mapfile.Volume{}}
	for {
		record, err := r.Next()
		if err != nil {
			stop()
			return nil, fmt.Errorf("the parent's map: %w", err)
		}
		switch x := record.(type) {
		case *mapfile.File, *mapfile.End:
			m.ahead = record
			return m, nil
		case *mapfile.Volume:
			v := *x
			m.volumes[x.ID] = &v
		}
	}
}

// order notes which volume of the new map has which place, and whether it is the one that the parent had.
func (m *parentMap) order(v *mapfile.Volume, n int) {
	m.orders[v.Name] = n
	for _, old := range m.volumes {
		if old.Name == v.Name {
			m.same[v.Name] = old.FS == v.FS && old.UUID == v.UUID && old.Start == v.Start && old.Size == v.Size
		}
	}
}

// find gives the number of the parent's file of that key. Keys come in order; where they don't, or a map can't be read
// on, no file is found.
func (m *parentMap) find(k fileKey) (uint64, bool) {
	for !m.done && m.next.compare(&k) < 0 {
		m.step()
	}
	if m.done || m.next != k {
		return 0, false
	}
	return m.print, true
}

// step reads the next file.
func (m *parentMap) step() {
	for {
		record, err := m.ahead, error(nil)
		if m.ahead = nil; record == nil {
			record, err = m.r.Next()
		}
		if err != nil {
			m.done = true
			return
		}
		f, ok := record.(*mapfile.File)
		if !ok {
			continue
		}
		print := printExtents(printFile(f), f.Extents)
		key := fileKey{0, f.Path, f.Stream}
		v := m.volumes[f.Volume]
		for more := f.More; more; {
			record, err := m.r.Next()
			x, ok := record.(*mapfile.Extents)
			if err != nil || !ok {
				m.done = true
				return
			}
			print, more = printExtents(print, x.Extents), x.More
		}
		if order, ok := m.orders[v.Name]; ok && m.same[v.Name] {
			key.volume = order
			m.next, m.print = key, print
			return
		}
	}
}

// another tells whether the new map is that of another disk: both know file systems, and share none.
func (m *parentMap) another(now map[string]*mapfile.Volume) bool {
	before := map[string]bool{}
	for _, v := range m.volumes {
		if v.UUID != "" {
			before[v.UUID] = true
		}
	}
	found := false
	for _, v := range now {
		if v.UUID == "" {
			continue
		}
		if before[v.UUID] {
			return false
		}
		found = true
	}
	return found && len(before) > 0
}
