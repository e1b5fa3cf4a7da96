package extract

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/maphash"
	"io"
	"strconv"
	"strings"

	"vmkit/fsmap/mapfile"
)

// ToTar writes the chosen files to w as a pax tar, named VOLUME/PATH. A large file of which something can't be read
// although the host file has it ends the run with an error: its header is out, and tar can't take back what was said.
func ToTar(ctx context.Context, in *mapfile.Reader, w io.Writer, o Options) (Summary, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := newRun(ctx, o)
	t := &tarSink{run: r, w: bufio.NewWriterSize(w, pieceSize), hash: sha256.New(), links: make(map[linkKey]*tarLink), seed: maphash.MakeSeed()}
	t.line = newLine(ctx, cancel, t.take)
	t.reading = newReading(ctx, &r.src, r.Workers)
	err := r.read(in, t)
	t.line.close()
	t.reading.close()
	if cause := context.Cause(ctx); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = cause
	}
	if err == nil {
		t.w.Write(zeros[:2*tarBlock])
		err = t.w.Flush()
	}
	if err == nil {
		err = r.endResults()
	}
	return r.sum, err
}

const (
	smallFile  = 1 << 20  // up to this length a file is read whole before its header is written
	sparseFrom = 16 << 10 // with as many bytes of holes a file is written as a sparse one
)

// tarSink writes a tar: one goroutine goes through the map, workers read, another writes the members in order.
type tarSink struct {
	*run
	w       *bufio.Writer
	line    *line
	reading *reading
	trail   trail
	seed    maphash.Seed
	links   map[linkKey]*tarLink

	// Of the goroutine that writes.
	hash hash.Hash
	now  *tarFile // whose pieces are coming
	at   int64    // up to where it is hashed
	pos  int64    // and written, holes left out
	todo []stretch
	sums budget
	head []byte
}

// tarFile is a file on its way.
type tarFile struct {
	rec    mapfile.File // without its extents
	res    mapfile.Result
	data   []mapfile.Extent // what the member holds; the rest of the file is holes
	sparse bool
	size   int64 // of what follows the header, the sparse map apart
	gaps   gaps
	piece  *piece // all data of a small file
	link   *tarLink
}

// tarLink is a file with several names, all of whose bytes can be read.
type tarLink struct {
	content uint64
	names   int64 // that are still to come
	first   *tarFile
}

func (t *tarSink) pass(b []byte, problems int64) error { return t.line.pass(t.run, b, problems) }

func (t *tarSink) settle() error {
	clear(t.links)
	t.trail = nil
	return t.line.settle()
}

func (t *tarSink) own(*mapfile.Volume, *mapfile.Extents, bool) error { return nil }
func (t *tarSink) extents(*mapfile.Extents) error                    { return nil }

// long refuses a file: a sparse member's map comes before its data, and this one doesn't fit in memory.
func (t *tarSink) long(v *mapfile.Volume, f *mapfile.File, chosen bool) error {
	if !chosen {
		return nil
	}
	x := &tarFile{res: result(v, f)}
	x.res.Status, x.res.Error = statusFailed, fmt.Sprintf("more than %d extents are too many for a tar member (a folder takes it)", maxHeld)
	return t.line.send(x)
}

func (t *tarSink) file(v *mapfile.Volume, f *mapfile.File, chosen bool) error {
	err := t.trail.enter(v, f)
	if !chosen {
		return nil
	}
	x := &tarFile{rec: *f, res: result(v, f)}
	x.rec.Extents = nil
	why := t.left(f)
	if f.Kind == mapfile.Socket && why == "" {
		why = "socket: tar has none"
	}
	switch {
	case err != nil:
		x.res.Status, x.res.Error = statusFailed, err.Error()
	case why != "":
		x.res.Status, x.res.Error = statusSkipped, why
	case f.Kind == mapfile.Regular:
		return t.regular(x, f)
	}
	return t.line.send(x)
}

func (t *tarSink) regular(x *tarFile, f *mapfile.File) error {
	holes := int64(0)
	for i := range f.Extents {
		if e := &f.Extents[i]; readsZero(e) && e.Len >= smallHole {
			holes += e.Len
		}
	}
	x.sparse = holes >= sparseFrom
	size := int64(0)
	for _, e := range f.Extents {
		if !x.sparse || !readsZero(&e) || e.Len < smallHole {
			x.data = append(x.data, e)
			size += e.Len
		}
	}
	if len(f.Extents) == 0 && f.Size > 0 {
		x.gaps.add(0, f.Size, errNoExtents)
	}
	links := f.Links > 1 && f.Stream == ""
	if size <= smallFile && !links {
		if size > 0 {
			var err error
			if x.piece, err = t.reading.start(x.data, size, size == f.Size, true); err != nil {
				return err
			}
		}
		return t.line.send(x)
	}
	if links {
		key, content := linkKey{f.Volume, f.Inode}, hashContent(t.seed, f)
		if g := t.links[key]; g != nil && g.content == content {
			if g.names--; g.names == 0 {
				delete(t.links, key)
			}
			x.link = g
			return t.line.send(x)
		}
		defer func() {
			if !x.gaps.any() {
				t.links[key] = &tarLink{content, f.Links - 1, x}
			}
		}()
	}
	if err := t.prove(x); err != nil {
		return err
	}
	if err := t.line.send(x); err != nil {
		return err
	}
	return t.pieces(x)
}

// prove finds out what of a file can't be had before its header is written. What isn't coded only has to be there.
func (t *tarSink) prove(x *tarFile) error {
	bad := make([]bool, len(x.data))
	lost := func(e *mapfile.Extent, err error) {
		x.gaps.add(e.At, e.Len, err)
		bad[search(x.data, e.At)] = true
	}
	var waiting []*piece
	take := func() {
		p := waiting[0]
		waiting = waiting[1:]
		<-p.done
		for i := range p.list {
			if p.bad != nil && p.bad[i] {
				lost(&p.list[i], p.gaps.list[0].err)
			}
		}
		t.reading.finish(p)
	}
	var coded []mapfile.Extent
	for i := range x.data {
		e := &x.data[i]
		if e.Kind == mapfile.Packed {
			coded = append(coded, *e)
		} else if err := t.src.there(e); err != nil {
			lost(e, err)
		}
	}
	never := func(*mapfile.Extent) bool { return false }
	err := split(coded, never, func(l []mapfile.Extent, n int64, _ bool) error {
		if len(waiting) >= 2*t.Workers {
			take()
		}
		p, err := t.reading.start(l, n, false, false)
		waiting = append(waiting, p)
		return err
	})
	if err != nil {
		return err
	}
	for len(waiting) > 0 {
		take()
	}
	if x.gaps.any() {
		x.drop(bad)
	}
	return nil
}

// drop takes extents out of what the member holds.
func (x *tarFile) drop(bad []bool) {
	var rest []mapfile.Extent
	for i, b := range bad {
		if !b {
			rest = append(rest, x.data[i])
		}
	}
	x.data, x.sparse = rest, true
}

// pieces has a large file's data read, and sends them on.
func (t *tarSink) pieces(x *tarFile) error {
	never := func(*mapfile.Extent) bool { return false }
	err := split(x.data, never, func(l []mapfile.Extent, n int64, _ bool) error {
		p, err := t.reading.start(l, n, false, false)
		if err == nil {
			err = t.line.send(p)
		}
		return err
	})
	if err == nil {
		err = t.line.send(zeroPiece(0, true))
	}
	return err
}

// take writes what comes next.
func (t *tarSink) take(it any) error {
	switch x := it.(type) {
	case *tarFile:
		return t.member(x)
	case *piece:
		return t.piece(x)
	}
	return nil
}

// member writes a member, of a large file only its header.
func (t *tarSink) member(x *tarFile) error {
	if x.res.Status != "" {
		t.report(&x.res, false)
		return nil
	}
	if g := x.link; g != nil {
		res := g.first.res
		res.Path = x.res.Path
		x.res = res
		m := t.describe(x, '1')
		m.link, m.name, m.xattrs = g.first.res.To, x.name(), nil
		x.res.To = m.name
		return t.finish(x, t.write(m.appendTo(t.head[:0])))
	}
	if p := x.piece; p != nil {
		<-p.done
		defer t.reading.finish(p)
		if p.bad != nil {
			x.gaps = p.gaps
			x.drop(p.bad)
		}
	}
	if x.gaps.any() {
		x.res.Status, x.res.Error = statusPartial, x.gaps.String()
		if x.gaps.bytes == x.rec.Size {
			x.res.Status = statusFailed
			t.now = nil
			t.report(&x.res, x.gaps.encrypted == x.gaps.bytes)
			return nil
		}
	}
	flag, ok := tarFlags[x.rec.Kind]
	if !ok {
		return fmt.Errorf("tar has no %s", x.rec.Kind)
	}
	m := t.describe(x, flag)
	var sparse []byte
	t.todo = stretches(x.data, x.rec.Size)
	for _, s := range t.todo {
		m.size += s.end - s.at
	}
	x.size = m.size
	if x.sparse {
		sparse = sparseMap(t.todo, x.rec.Size)
		m.sparse, m.real = true, x.rec.Size
		m.size += int64(len(sparse))
	}
	if err := t.write(append(m.appendTo(t.head[:0]), sparse...)); err != nil {
		return err
	}
	if x.rec.Kind != mapfile.Regular {
		return t.finish(x, nil)
	}
	t.now, t.at, t.pos, t.sums = x, 0, 0, budget{}
	t.hash.Reset()
	if len(x.data) > 0 && x.piece == nil {
		return nil // the data follow
	}
	return t.small(x)
}

var tarFlags = map[mapfile.FileKind]byte{mapfile.Regular: '0', mapfile.Symlink: '2', mapfile.Char: '3', mapfile.Block: '4', mapfile.Directory: '5', mapfile.FIFO: '6'}

// name gives the member's name.
func (x *tarFile) name() string {
	name := x.res.Name + x.rec.Path
	switch {
	case x.rec.Kind == mapfile.Directory:
		return strings.TrimSuffix(name, "/") + "/"
	case x.rec.Stream != "":
		name += ":" + x.rec.Stream
	}
	if x.gaps.any() {
		i := strings.LastIndexByte(name, '/') + 1
		name = name[:i] + partialName(name[i:])
	}
	return name
}

// describe makes the header of a member without content, and notes in the result what it says.
func (t *tarSink) describe(x *tarFile, flag byte) member {
	f, res := &x.rec, &x.res
	m := member{name: x.name(), link: f.Target, flag: flag, uid: f.UID, gid: f.GID, mtime: f.MTime, atime: f.ATime, major: f.Major, minor: f.Minor}
	res.To = m.name
	note := ""
	for _, a := range f.Xattrs {
		if a.Name == capability && !t.Special {
			note = "file capabilities left out (--special keeps them)"
			continue
		}
		m.xattrs = append(m.xattrs, a)
	}
	switch {
	case f.Mode != mapfile.None:
		m.mode = uint32(f.Mode) & 0o7777
		if f.Mode&setID != 0 && !t.Special {
			m.mode &^= setID
			note = join(note, "; ", "set-id bits left out (--special keeps them)")
		}
		res.Mode = int64(m.mode)
	case f.Kind == mapfile.Directory:
		m.mode = 0o755
	default:
		m.mode = 0o644
	}
	if f.Kind == mapfile.Symlink {
		res.Mode = mapfile.None // it has none
	}
	res.UID, res.GID, res.MTime, res.Target, res.Xattrs = f.UID, f.GID, f.MTime, f.Target, m.xattrs
	if res.Error == "" {
		res.Error = note
	}
	return m
}

// small writes the data of a small file.
func (t *tarSink) small(x *tarFile) error {
	if p := x.piece; p != nil {
		if err := t.runs(p, p.sum == ""); err != nil {
			return err
		}
		x.res.SHA256 = p.sum
	}
	return t.last(x)
}

// piece writes a piece of a large file.
func (t *tarSink) piece(p *piece) error {
	x := t.now
	if x == nil { // nothing of it could be had
		<-p.done
		t.reading.finish(p)
		return nil
	}
	if p.last {
		if len(x.data) == 0 {
			return nil
		}
		return t.last(x)
	}
	<-p.done
	defer t.reading.finish(p)
	if p.bad != nil {
		return fmt.Errorf("%s: %s", where(&x.res), p.gaps.String())
	}
	return t.runs(p, true)
}

// runs writes what was read of a piece and, with sum, hashes it and the holes before.
func (t *tarSink) runs(p *piece, sum bool) error {
	at := int64(0)
	for i := range p.list {
		e := &p.list[i]
		b := p.buf[at : at+e.Len]
		if at += e.Len; p.bad != nil && p.bad[i] {
			continue
		}
		if sum && t.Results != nil && !t.now.gaps.any() {
			t.hole(e.At)
			t.hash.Write(b)
			t.sums.data += e.Len
			t.at = e.At + e.Len
		}
		if err := t.zeros(e.At); err != nil {
			return err
		}
		if err := t.write(b); err != nil {
			return err
		}
		t.pos += e.Len
	}
	return nil
}

// zeros writes those that lie before position to of the file and belong to a stretch that is written.
func (t *tarSink) zeros(to int64) error {
	for ; len(t.todo) > 0 && t.todo[0].at < to; t.todo = t.todo[1:] {
		s := t.todo[0]
		for t.pos = max(t.pos, s.at); t.pos < min(to, s.end); {
			n := min(min(to, s.end)-t.pos, int64(len(zeros)))
			if err := t.write(zeros[:n]); err != nil {
				return err
			}
			t.pos += n
		}
		if s.end > to {
			break
		}
	}
	t.pos = max(t.pos, to)
	return nil
}

// hole hashes zeros up to a position.
func (t *tarSink) hole(to int64) {
	if t.at < to && !t.sums.hole(to-t.at) {
		t.at = to
		return
	}
	for t.at < to {
		n := min(to-t.at, int64(len(zeros)))
		t.hash.Write(zeros[:n])
		t.at += n
	}
}

// last ends a regular member.
func (t *tarSink) last(x *tarFile) error {
	if err := t.zeros(x.rec.Size); err != nil {
		return err
	}
	if err := t.write(zeros[:padding(x.size)]); err != nil {
		return err
	}
	if x.res.SHA256 == "" && t.Results != nil && !x.gaps.any() {
		if t.hole(x.rec.Size); t.sums.spent {
			remark(&x.res, noSum)
		} else {
			x.res.SHA256 = hex.EncodeToString(t.hash.Sum(nil))
		}
	}
	return t.finish(x, nil)
}

func (t *tarSink) finish(x *tarFile, err error) error {
	if err == nil {
		if x.res.Status == "" {
			x.res.Status = statusOK
		}
		t.report(&x.res, x.gaps.any() && x.gaps.encrypted == x.gaps.bytes)
		t.Progress(1, max(x.res.Size, 0))
	}
	return err
}

func (t *tarSink) write(p []byte) error {
	_, err := t.w.Write(p)
	return err
}

// stretch is a part of a file that a sparse member holds.
type stretch struct{ at, end int64 }

// stretches gives what a member that holds data consists of. GNU tar begins each stretch with a new block, other
// programs put one right behind the other: with whole blocks these are the same.
func stretches(data []mapfile.Extent, size int64) (list []stretch) {
	for i := range data {
		e := &data[i]
		at, end := e.At&^(tarBlock-1), size
		if n := e.At + e.Len; n <= size-tarBlock {
			end = (n + tarBlock - 1) &^ (tarBlock - 1)
		}
		if n := len(list); n > 0 && list[n-1].end >= at {
			list[n-1].end = end
		} else {
			list = append(list, stretch{at, end})
		}
	}
	return list
}

// sparseMap lists where a sparse member's data belong: how many stretches, and of each the position and the length, in
// decimal, a line each, filled up to a whole block.
func sparseMap(list []stretch, size int64) []byte {
	if n := len(list); n == 0 || list[n-1].end < size {
		list = append(list[:n:n], stretch{size, size})
	}
	b := append(strconv.AppendInt(nil, int64(len(list)), 10), '\n')
	for _, s := range list {
		b = append(strconv.AppendInt(b, s.at, 10), '\n')
		b = append(strconv.AppendInt(b, s.end-s.at, 10), '\n')
	}
	return append(b, zeros[:padding(int64(len(b)))]...)
}

// trail remembers the names on the way to where the map stands. A member whose name came before, or that lies beneath
// what is no folder, would be extracted over or through another one.
type trail []step

type step struct {
	full  string // of the folder, "" at the top
	last  string // the name in it that came last
	isDir bool
	err   error // why nothing can be in it
}

// enter goes on to a file and tells why it can't be a member.
func (t *trail) enter(v *mapfile.Volume, f *mapfile.File) error {
	if err := badRelative(v.Name); err != nil {
		return fmt.Errorf("the volume's name: %w", err)
	}
	if err := badPath(f.Path); err != nil {
		return err
	}
	if f.Stream != "" {
		if strings.ContainsAny(f.Stream, "/\x00") {
			return errors.New("the stream's name can't be part of a file's name")
		}
		return nil
	}
	if len(*t) == 0 {
		*t = trail{{}}
	}
	path := strings.TrimSuffix(v.Name+f.Path, "/")
	for {
		top := &(*t)[len(*t)-1]
		rest, ok := within(path, top.full)
		if !ok {
			*t = (*t)[:len(*t)-1]
			continue
		}
		name, _, more := strings.Cut(rest, "/")
		isDir := more || f.Kind == mapfile.Directory
		err := top.err
		if err == nil {
			err = clash(&top.last, &top.isDir, name, isDir)
		}
		if !isDir {
			return err
		}
		*t = append(*t, step{full: path[:len(path)-len(rest)+len(name)], err: err})
		if !more {
			return err
		}
	}
}
