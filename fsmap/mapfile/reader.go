package mapfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"
)

// Reader reads a stream of records. It trusts none of them: an error from Next means that the stream is not what this
// package describes, and nothing after it can be used.
type Reader struct {
	br    *bufio.Reader
	long  []byte // a line that didn't fit br's buffer
	line  []byte
	no    int
	ended bool
	err   error
	s     scan

	// What a record may refer to, of the map that is being read.
	inMap   bool
	images  map[int]bool
	hosts   map[int]bool
	volumes map[int]*volume
	cur     *volume // whose files are being read
	open    run     // the run list that goes on in the next record

	file    File
	extents Extents
	problem Problem
	result  Result
}

type volume struct {
	id   int
	size int64
	done bool // its files came, and others after them
}

// run is where a run list stands that is not whole yet.
type run struct {
	more         bool
	volume       int
	path, stream string
	next, size   int64
}

// maxIDs bounds how many images, host files and volumes one map names.
const maxIDs = 1 << 20

// NewReader returns a Reader from r. It reads ahead.
func NewReader(r io.Reader) *Reader {
	return &Reader{br: bufio.NewReaderSize(r, 256<<10)}
}

// Next gives the next record: a *Map, *Image, *Volume, *File, *Extents, *Problem, *Result, *Finding, *End, or an
// *Other of a type that isn't among these. It returns io.EOF only where an end record came last, and
// io.ErrUnexpectedEOF where the stream was cut.
//
// The record and its Extents are valid until the next call. What they refer to (strings, bytes, Packs, Xattrs) is new
// and the caller's to keep.
//
// What a record says is checked against those before it: ids are known, run lists are in order, without gaps, and as
// long as the file.
func (r *Reader) Next() (any, error) {
	if r.err != nil {
		return nil, r.err
	}
	rec, err := r.next()
	if err != nil {
		if err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("line %d: %w", r.no, err)
		}
		r.err = err
		return nil, err
	}
	return rec, nil
}

// Line gives the last record's line without its newline; valid until the next call of Next.
func (r *Reader) Line() []byte { return r.line }

func (r *Reader) next() (any, error) {
	if err := r.readLine(); err != nil {
		return nil, err
	}
	if !utf8.Valid(r.line) {
		return nil, errors.New("not UTF-8")
	}
	s := &r.s
	s.reset(r.line)
	typ := s.typ()
	if s.err != nil {
		return nil, s.err
	}
	s.reset(r.line)
	wasEnded := r.ended
	r.ended = false
	if r.open.more && typ != "extents" {
		return nil, fmt.Errorf("%s: its extents are said to go on, but a %s record follows", r.open.path, typ)
	}
	var rec any
	switch typ {
	case "file":
		rec = r.decodeFile()
		s.end()
		r.checkFile()
	case "extents":
		rec = r.decodeExtents()
		s.end()
		r.checkExtents()
	case "result":
		rec = r.decodeResult()
	case "problem":
		rec = r.decodeProblem()
	case "finding":
		rec = r.decodeFinding()
	case "map":
		rec = r.decodeMap()
		if r.inMap {
			s.fail("a map record before the end of the one before")
		}
		r.inMap, r.cur = true, nil
		r.images, r.hosts, r.volumes = map[int]bool{}, map[int]bool{}, map[int]*volume{}
	case "image":
		m := r.decodeImage()
		r.checkImage(m)
		rec = m
	case "volume":
		v := r.decodeVolume()
		r.checkVolume(v)
		rec = v
	case "end":
		rec = r.decodeEnd()
		r.ended, r.inMap = true, false
	default:
		s.skip()
		rec = &Other{Type: typ, Raw: append([]byte(nil), r.line...)}
		r.ended = wasEnded && typ == "hold"
	}
	s.end()
	return rec, s.err
}

// readLine reads the next line into r.line.
func (r *Reader) readLine() error {
	line, err := r.br.ReadSlice('\n')
	if err == bufio.ErrBufferFull {
		r.long = append(r.long[:0], line...)
		for err == bufio.ErrBufferFull && len(r.long) <= MaxLine {
			line, err = r.br.ReadSlice('\n')
			r.long = append(r.long, line...)
		}
		line = r.long
	}
	r.no++
	switch {
	case len(line) > MaxLine:
		return fmt.Errorf("longer than %d bytes", MaxLine)
	case err == io.EOF && len(line) == 0 && r.ended && !r.open.more:
		return io.EOF
	case err == io.EOF:
		return fmt.Errorf("the stream ends without an end record, after line %d: %w", r.no-1, io.ErrUnexpectedEOF)
	case err != nil:
		return err
	}
	r.line = line[:len(line)-1]
	return nil
}

// typ finds the record's type.
func (s *scan) typ() string {
	const head = `{"type":"`
	if len(s.b) > len(head) && string(s.b[:len(head)]) == head {
		s.i = len(head) - 1
		return s.name()
	}
	typ := ""
	for s.begin('{'); s.field(); {
		if string(s.key) == "type" {
			typ = s.name()
		} else {
			s.skip()
		}
	}
	if typ == "" {
		s.fail("not an object with a type")
	}
	return typ
}

func (r *Reader) checkImage(m *Image) {
	s := &r.s
	switch {
	case s.err != nil:
	case !r.inMap:
		s.fail("image record outside a map")
	case r.images[m.ID]:
		s.fail("image id %d used twice", m.ID)
	case len(r.images) >= maxIDs:
		s.fail("more than %d images", maxIDs)
	default:
		r.images[m.ID] = true
		for _, h := range m.Files {
			if r.hosts[h.ID] || len(r.hosts) >= maxIDs {
				s.fail("host file id %d used twice", h.ID)
				return
			}
			r.hosts[h.ID] = true
		}
	}
}

func (r *Reader) checkVolume(v *Volume) {
	s := &r.s
	switch {
	case s.err != nil:
	case !r.inMap:
		s.fail("volume record outside a map")
	case r.volumes[v.ID] != nil:
		s.fail("volume id %d used twice", v.ID)
	case len(r.volumes) >= maxIDs:
		s.fail("more than %d volumes", maxIDs)
	case v.Image != None && !r.images[v.Image]:
		s.fail("volume %s lies on image %d, which the map doesn't name", v.Name, v.Image)
	case v.In != None && r.volumes[v.In] == nil:
		s.fail("volume %s lies in volume %d, which the map doesn't name", v.Name, v.In)
	default:
		r.volumes[v.ID] = &volume{id: v.ID, size: v.Size}
	}
}

func (r *Reader) checkFile() {
	s, f := &r.s, &r.file
	if s.err != nil {
		return
	}
	if r.cur == nil || r.cur.id != f.Volume {
		v := r.volumes[f.Volume]
		switch {
		case !r.inMap:
			s.fail("file record outside a map")
			return
		case v == nil:
			s.fail("%s: of volume %d, which the map doesn't name", f.Path, f.Volume)
			return
		case v.done:
			s.fail("%s: the files of volume %d are not together", f.Path, f.Volume)
			return
		}
		if r.cur != nil {
			r.cur.done = true
		}
		r.cur = v
	}
	r.open = run{more: f.More, volume: f.Volume, path: f.Path, stream: f.Stream, size: f.Size}
	if len(f.Extents) > 0 || f.More {
		r.advance(f.Extents)
	}
}

func (r *Reader) checkExtents() {
	s, x := &r.s, &r.extents
	switch {
	case s.err != nil:
		return
	case r.open.more:
		if x.Volume != r.open.volume || x.Path != r.open.path || x.Stream != "" && x.Stream != r.open.stream {
			s.fail("%s: its extents are said to go on, but those of %q follow", r.open.path, x.Path)
			return
		}
	case x.Path != "" || x.Stream != "":
		s.fail("extents record of %q continues nothing", x.Path)
		return
	case r.volumes[x.Volume] == nil:
		s.fail("extents of volume %d, which the map doesn't name", x.Volume)
		return
	default:
		r.open = run{volume: x.Volume, size: r.volumes[x.Volume].size}
	}
	r.open.more = x.More
	r.advance(x.Extents)
}

// advance checks that list goes on where the run list stands.
func (r *Reader) advance(list []Extent) {
	o := &r.open
	for i := range list {
		e := &list[i]
		switch {
		case e.At != o.next:
			r.s.fail("%s: extent at %d, expected at %d", o.path, e.At, o.next)
			return
		case e.Len > o.size-e.At:
			r.s.fail("%s: extents go past the size, which is %d", o.path, o.size)
			return
		}
		o.next = e.At + e.Len
		r.known(e)
	}
	if !o.more && o.next != o.size {
		r.s.fail("%s: extents end at %d, the size is %d", o.path, o.next, o.size)
	}
}

// known checks that what an extent refers to was named.
func (r *Reader) known(e *Extent) {
	switch {
	case e.Image != None && !r.images[e.Image]:
		r.s.fail("%s: extent on image %d, which the map doesn't name", r.open.path, e.Image)
	case e.Kind == Data && e.File != None && !r.hosts[e.File]:
		r.s.fail("%s: extent in host file %d, which the map doesn't name", r.open.path, e.File)
	case e.Kind == Packed:
		for i := range e.Pack.Parts {
			r.known(&e.Pack.Parts[i])
		}
	}
}
