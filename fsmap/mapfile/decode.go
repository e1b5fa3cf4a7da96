package mapfile

import (
	"bytes"
	"encoding/json"
)

// The decode methods read a record whose type is known from s into r's own record of that type. They check what can
// be told from the record alone; Reader checks it against what came before.

func (r *Reader) decodeFile() *File {
	s, f := &r.s, &r.file
	*f = File{Volume: None, Mode: None, UID: None, GID: None, Links: None, Extents: f.Extents[:0]}
	var path64, target64, stream64 bool
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "type":
			s.raw()
		case "volume":
			f.Volume = s.id()
		case "path":
			s.bytesUnless(&f.Path, path64)
		case "path_base64":
			f.Path, path64 = string(s.base64()), true
		case "inode":
			f.Inode = s.uint()
		case "kind":
			f.Kind = s.fileKind()
		case "size":
			f.Size = s.size()
		case "mode":
			f.Mode = s.mode()
		case "uid":
			f.UID = s.size()
		case "gid":
			f.GID = s.size()
		case "links":
			f.Links = s.size()
		case "mtime":
			f.MTime = s.time()
		case "atime":
			f.ATime = s.time()
		case "ctime":
			f.CTime = s.time()
		case "btime":
			f.BTime = s.time()
		case "target":
			s.bytesUnless(&f.Target, target64)
		case "target_base64":
			f.Target, target64 = string(s.base64()), true
		case "rdev":
			f.Major, f.Minor = s.rdev()
		case "xattrs":
			f.Xattrs = s.xattrs(f.Xattrs, false)
		case "xattrs_base64":
			f.Xattrs = s.xattrs(f.Xattrs, true)
		case "stream":
			s.bytesUnless(&f.Stream, stream64)
		case "stream_base64":
			f.Stream, stream64 = string(s.base64()), true
		case "sha256":
			f.SHA256 = s.sha256()
		case "sequence":
			f.Sequence = s.uint()
		case "owner":
			f.Owner = s.name()
		case "group":
			f.Group = s.name()
		case "project":
			f.Project = uint32(s.below(1 << 32))
		case "attrs":
			f.Attrs = s.texts()
		case "reparse":
			f.Reparse = s.name()
		case "extents":
			f.Extents = s.extents(f.Extents[:0])
		case "more":
			f.More = s.bool()
		default:
			f.Rest = s.rest(f.Rest)
		}
	}
	if f.Kind == 0 || f.Path == "" {
		s.fail("file record without its kind and path")
	}
	return f
}

func (r *Reader) decodeExtents() *Extents {
	s, x := &r.s, &r.extents
	*x = Extents{Volume: None, Extents: x.Extents[:0]}
	var path64, stream64 bool
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "type":
			s.raw()
		case "volume":
			x.Volume = s.id()
		case "path":
			s.bytesUnless(&x.Path, path64)
		case "path_base64":
			x.Path, path64 = string(s.base64()), true
		case "stream":
			s.bytesUnless(&x.Stream, stream64)
		case "stream_base64":
			x.Stream, stream64 = string(s.base64()), true
		case "extents":
			x.Extents = s.extents(x.Extents[:0])
		case "more":
			x.More = s.bool()
		default:
			x.Rest = s.rest(x.Rest)
		}
	}
	if len(x.Extents) == 0 {
		s.fail("extents record without extents")
	}
	return x
}

// bytesUnless reads a string into v, unless its bytes were already given in base64.
func (s *scan) bytesUnless(v *string, given bool) {
	if b := s.raw(); !given {
		*v = string(b)
	}
}

func (s *scan) fileKind() FileKind {
	k := ParseFileKind(string(s.raw()))
	if k == 0 {
		s.fail("unknown file kind")
	}
	return k
}

func (s *scan) sha256() string {
	b := s.raw()
	for _, c := range b {
		if !digit(c) && (c < 'a' || c > 'f') {
			b = nil
			break
		}
	}
	if len(b) != 64 {
		s.fail("%s: not 64 hexadecimal digits", s.key)
		return ""
	}
	return string(b)
}

func (s *scan) below(limit int64) int64 {
	v := s.size()
	if v >= limit {
		s.fail("%s: %d is too large", s.key, v)
		return 0
	}
	return v
}

func (s *scan) xattrs(list []Xattr, raw bool) []Xattr {
	for s.begin('{'); s.field(); {
		x := Xattr{Name: s.shared(s.key)}
		if raw {
			x.Name = string(s.decode64(s.key))
		}
		x.Value = s.base64()
		list = append(list, x)
	}
	return list
}

func (s *scan) extents(list []Extent) []Extent {
	for s.begin('['); s.more(']'); {
		if len(list) == MaxExtents {
			s.fail("more than %d extents in a record", MaxExtents)
			break
		}
		list = append(list, Extent{})
		s.extent(&list[len(list)-1], 0)
	}
	return list
}

// extent reads an extent, or with a depth above 0 a part.
func (s *scan) extent(e *Extent, depth int) {
	*e = Extent{At: None, Disk: None, Image: None, File: None, Off: None}
	var p *Pack
	pack := func() *Pack {
		if p == nil {
			p = new(Pack)
		}
		return p
	}
	inline := false
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "at":
			e.At = s.size()
		case "len":
			e.Len = s.size()
		case "kind":
			e.Kind = parseKind(s.raw())
		case "disk":
			e.Disk = s.size()
		case "image":
			e.Image = s.id()
		case "file":
			e.File = s.id()
		case "off":
			e.Off = s.size()
		case "skip":
			e.Skip = s.size()
		case "base64":
			e.Bytes, inline = s.base64(), true
		case "codec":
			pack().Codec = s.name()
		case "full":
			pack().Full = s.size()
		case "sector":
			pack().Sector = s.id()
		case "iv":
			pack().IV = s.uint()
		case "key":
			pack().Key = s.name()
		case "pad":
			pack().Pad = s.bool()
		case "factors":
			q := pack()
			for s.begin('['); s.more(']'); {
				f := s.id()
				if f > 0xff {
					s.fail("factor %d", f)
				}
				q.Factors = append(q.Factors, byte(f))
			}
		case "parts":
			if depth >= MaxDepth {
				s.fail("parts nested deeper than %d", MaxDepth)
				return
			}
			q := pack()
			for s.begin('['); s.more(']'); {
				q.Parts = append(q.Parts, Extent{})
				s.extent(&q.Parts[len(q.Parts)-1], depth+1)
			}
		default:
			s.skip()
		}
	}
	if s.err == nil {
		s.checkExtent(e, p, inline, depth)
	}
}

func (s *scan) checkExtent(e *Extent, p *Pack, inline bool, depth int) {
	switch {
	case e.Kind == 0:
		s.fail("extent of an unknown kind")
	case e.Len <= 0:
		s.fail("extent of length %d", e.Len)
	case depth == 0 && e.At < 0:
		s.fail("extent without its position")
	case depth > 0 && e.At >= 0:
		s.fail("part with a position in the file")
	case e.At+e.Len < 0, e.Off+e.Len < 0, e.Disk+e.Len < 0:
		s.fail("extent at %d: positions too large", e.At)
	case e.Kind == Data && (e.File == None) != (e.Off == None):
		s.fail("data with one of file and off")
	case e.Kind == Data && e.File == None && e.Disk == None:
		s.fail("data without a place")
	case (e.Kind == Inline) != inline || inline && int64(len(e.Bytes)) != e.Len:
		s.fail("inline extent of %d bytes holds %d", e.Len, len(e.Bytes))
	case (e.Kind == Packed) != (p != nil):
		s.fail("packed extent without codec, full and parts")
	case p == nil:
	case p.Codec == "" || len(p.Parts) == 0 || p.Full <= 0:
		s.fail("packed extent without codec, full and parts")
	case e.Skip > p.Full-e.Len:
		s.fail("packed extent: skip and len reach past full")
	default:
		e.Pack = p
	}
}

func parseKind(b []byte) Kind {
	switch string(b) {
	case "data":
		return Data
	case "hole":
		return Hole
	}
	return ParseKind(string(b))
}

func (r *Reader) decodeProblem() *Problem {
	s, p := &r.s, &r.problem
	*p = Problem{Image: None, Volume: None}
	var path64, stream64 bool
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "type":
			s.raw()
		case "image":
			p.Image = s.id()
		case "volume":
			p.Volume = s.id()
		case "path":
			s.bytesUnless(&p.Path, path64)
		case "path_base64":
			p.Path, path64 = string(s.base64()), true
		case "stream":
			s.bytesUnless(&p.Stream, stream64)
		case "stream_base64":
			p.Stream, stream64 = string(s.base64()), true
		case "what":
			p.What = s.text()
		case "error":
			p.Error = s.text()
		default:
			p.Rest = s.rest(p.Rest)
		}
	}
	return p
}

func (r *Reader) decodeResult() *Result {
	s, x := &r.s, &r.result
	*x = Result{Volume: None, Size: None, Mode: None, UID: None, GID: None}
	var path64, stream64, to64, target64 bool
	for s.begin('{'); s.field(); {
		switch string(s.key) {
		case "type":
			s.raw()
		case "volume":
			x.Volume = s.id()
		case "name":
			x.Name = s.name()
		case "path":
			s.bytesUnless(&x.Path, path64)
		case "path_base64":
			x.Path, path64 = string(s.base64()), true
		case "stream":
			s.bytesUnless(&x.Stream, stream64)
		case "stream_base64":
			x.Stream, stream64 = string(s.base64()), true
		case "kind":
			x.Kind = s.fileKind()
		case "to":
			s.bytesUnless(&x.To, to64)
		case "to_base64":
			x.To, to64 = string(s.base64()), true
		case "size":
			x.Size = s.size()
		case "sha256":
			x.SHA256 = s.sha256()
		case "status":
			x.Status = s.name()
		case "error":
			x.Error = s.text()
		case "mode":
			x.Mode = s.mode()
		case "uid":
			x.UID = s.size()
		case "gid":
			x.GID = s.size()
		case "mtime":
			x.MTime = s.time()
		case "target":
			s.bytesUnless(&x.Target, target64)
		case "target_base64":
			x.Target, target64 = string(s.base64()), true
		case "xattrs":
			x.Xattrs = s.xattrs(x.Xattrs, false)
		case "xattrs_base64":
			x.Xattrs = s.xattrs(x.Xattrs, true)
		default:
			x.Rest = s.rest(x.Rest)
		}
	}
	if x.Path == "" || x.Status == "" {
		s.fail("result record without its path and status")
	}
	return x
}

// object reads a value that is an object into Go's own types, with exact numbers.
func (s *scan) object() (m map[string]any) {
	b := s.value()
	if s.err == nil {
		if err := unmarshalExact(b, &m); err != nil {
			s.fail("%s: %w", s.key, err)
		}
	}
	return m
}

func unmarshalExact(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return d.Decode(v)
}
