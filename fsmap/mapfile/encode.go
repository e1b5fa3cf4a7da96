package mapfile

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// reserve is what a line needs behind its last extent: `],"more":true}`, a newline, and room to spare.
const reserve = 64

// AppendFile appends a file record. What of its extents doesn't fit follows in extents records, and with f.More the
// last of them says that the caller goes on with AppendExtents. An xattr or a single extent that is too large for a
// line is left out, or turned into a missing one; the problems that say so are to be written after the file's last
// record.
func AppendFile(dst []byte, f *File) ([]byte, []Problem) {
	var lost []Problem
	line := len(dst)
	dst = append(dst, `{"type":"file","volume":`...)
	dst = strconv.AppendInt(dst, int64(f.Volume), 10)
	dst = appendName(dst, "path", f.Path)
	dst = append(dst, `,"inode":`...)
	dst = strconv.AppendUint(dst, f.Inode, 10)
	if f.Sequence != 0 {
		dst = strconv.AppendUint(append(dst, `,"sequence":`...), f.Sequence, 10)
	}
	dst = append(dst, `,"kind":"`...)
	dst = append(append(dst, f.Kind.String()...), '"')
	dst = appendInt(dst, "size", f.Size)
	dst = appendMode(dst, f.Mode)
	dst = appendNotNone(dst, "uid", f.UID)
	dst = appendNotNone(dst, "gid", f.GID)
	dst = appendNotNone(dst, "links", f.Links)
	dst = appendTimeField(dst, "mtime", f.MTime)
	dst = appendTimeField(dst, "atime", f.ATime)
	dst = appendTimeField(dst, "ctime", f.CTime)
	dst = appendTimeField(dst, "btime", f.BTime)
	if f.Kind == Symlink {
		dst = appendName(dst, "target", f.Target)
	}
	if f.Kind == Char || f.Kind == Block {
		dst = strconv.AppendUint(append(dst, `,"rdev":"`...), uint64(f.Major), 10)
		dst = append(strconv.AppendUint(append(dst, ':'), uint64(f.Minor), 10), '"')
	}
	dst = appendNotEmpty(dst, "owner", f.Owner)
	dst = appendNotEmpty(dst, "group", f.Group)
	if f.Project != 0 {
		dst = appendInt(dst, "project", int64(f.Project))
	}
	dst = appendTexts(dst, "attrs", f.Attrs)
	dst = appendNotEmpty(dst, "reparse", f.Reparse)
	dst = appendNotEmpty(dst, "stream", f.Stream)
	dst = appendNotEmpty(dst, "sha256", f.SHA256)
	dst = append(dst, f.Rest...)
	dst, over := appendXattrs(dst, f.Xattrs, line+MaxLine-reserve)
	for _, x := range over {
		lost = append(lost, f.problem("extended attribute", fmt.Sprintf("%s of %d bytes doesn't fit in a record", x.Name, len(x.Value))))
	}
	if len(f.Extents) == 0 {
		return closeLine(dst, f.More), lost
	}
	x := Extents{f.Volume, f.Path, f.Stream, f.Extents, f.More, nil}
	return appendRuns(dst, line, &x, lost)
}

func (f *File) problem(what, text string) Problem {
	return Problem{Image: None, Volume: f.Volume, Path: f.Path, Stream: f.Stream, What: what, Error: text}
}

// AppendExtents appends as many extents records as x needs. What AppendFile says of problems holds here too.
func AppendExtents(dst []byte, x *Extents) ([]byte, []Problem) {
	line := len(dst)
	dst = appendExtentsHead(dst, x)
	return appendRuns(append(dst, x.Rest...), line, x, nil)
}

func appendExtentsHead(dst []byte, x *Extents) []byte {
	dst = append(dst, `{"type":"extents","volume":`...)
	dst = strconv.AppendInt(dst, int64(x.Volume), 10)
	dst = appendNotEmpty(dst, "path", x.Path)
	return appendNotEmpty(dst, "stream", x.Stream)
}

// appendRuns appends the extents of x to the line that began at line, and to new ones.
func appendRuns(dst []byte, line int, x *Extents, lost []Problem) ([]byte, []Problem) {
	n := 0
	dst = append(dst, `,"extents":[`...)
	for i := range x.Extents {
		e := &x.Extents[i]
		if e.Kind == Inline && len(e.Bytes) > maxInline {
			dst, line, n = appendLongInline(dst, line, n, x, e)
			continue
		}
		start := len(dst)
		if n > 0 {
			dst = append(dst, ',')
		}
		dst = appendExtent(dst, e, true)
		if n < MaxExtents && len(dst)-line <= MaxLine-reserve {
			n++
			continue
		}
		dst = dst[:start]
		if n > 0 || dst[line+len(`{"type":"`)] == 'f' {
			dst, line = nextLine(dst, x)
		}
		start, n = len(dst), 1
		if dst = appendExtent(dst, e, true); len(dst)-line > MaxLine-reserve {
			dst = appendExtent(dst[:start], &Extent{At: e.At, Len: e.Len, Kind: Missing, Disk: None, Image: None}, true)
			f := File{Volume: x.Volume, Path: x.Path, Stream: x.Stream}
			lost = append(lost, f.problem("extent", fmt.Sprintf("at %d: its description doesn't fit in a record", e.At)))
		}
	}
	return closeLine(append(dst, ']'), x.More), lost
}

// nextLine ends a line whose extents go on, and begins the extents record that holds them.
func nextLine(dst []byte, x *Extents) ([]byte, int) {
	dst = closeLine(append(dst, ']'), true)
	line := len(dst)
	return append(appendExtentsHead(dst, x), `,"extents":[`...), line
}

func closeLine(dst []byte, more bool) []byte {
	if more {
		dst = append(dst, `,"more":true`...)
	}
	return append(dst, '}', '\n')
}

// maxInline is how many inline bytes one extent carries at most.
const maxInline = 256 << 10

// appendLongInline cuts an inline extent into ones that fit.
func appendLongInline(dst []byte, line, n int, x *Extents, e *Extent) ([]byte, int, int) {
	for at := 0; at < len(e.Bytes); at += maxInline {
		piece := *e
		piece.Bytes = e.Bytes[at:min(at+maxInline, len(e.Bytes))]
		piece.At, piece.Len = e.At+int64(at), int64(len(piece.Bytes))
		if n >= MaxExtents || len(dst)-line > MaxLine-reserve-maxInline*4/3-128 {
			dst, line = nextLine(dst, x)
			n = 0
		}
		if n > 0 {
			dst = append(dst, ',')
		}
		dst = appendExtent(dst, &piece, true)
		n++
	}
	return dst, line, n
}

// appendExtent appends an extent, or with top false a part.
func appendExtent(dst []byte, e *Extent, top bool) []byte {
	if top {
		dst = append(dst, `{"at":`...)
		dst = strconv.AppendInt(dst, e.At, 10)
		dst = append(dst, `,"len":`...)
	} else {
		dst = append(dst, `{"len":`...)
	}
	dst = strconv.AppendInt(dst, e.Len, 10)
	dst = append(dst, `,"kind":"`...)
	dst = append(append(dst, e.Kind.String()...), '"')
	dst = appendNotNone(dst, "image", int64(e.Image))
	dst = appendNotNone(dst, "disk", e.Disk)
	switch e.Kind {
	case Data:
		if e.File != None {
			dst = strconv.AppendInt(append(dst, `,"file":`...), int64(e.File), 10)
			dst = strconv.AppendInt(append(dst, `,"off":`...), e.Off, 10)
		}
	case Packed:
		dst = appendPack(dst, e)
	case Inline:
		dst = appendBase64(append(dst, `,"base64":`...), e.Bytes)
	}
	return append(dst, '}')
}

func appendPack(dst []byte, e *Extent) []byte {
	p := e.Pack
	dst = appendName(dst, "codec", p.Codec)
	dst = appendInt(dst, "skip", e.Skip)
	dst = appendInt(dst, "full", p.Full)
	if p.Sector != 0 {
		dst = appendInt(dst, "sector", int64(p.Sector))
		dst = strconv.AppendUint(append(dst, `,"iv":`...), p.IV, 10)
		dst = appendName(dst, "key", p.Key)
	}
	if p.Pad {
		dst = append(dst, `,"pad":true`...)
	}
	if len(p.Factors) > 0 {
		dst = append(dst, `,"factors":[`...)
		for i, f := range p.Factors {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = strconv.AppendUint(dst, uint64(f), 10)
		}
		dst = append(dst, ']')
	}
	dst = append(dst, `,"parts":[`...)
	for i := range p.Parts {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendExtent(dst, &p.Parts[i], false)
	}
	return append(dst, ']')
}

func appendMode(dst []byte, mode int64) []byte {
	if mode == None {
		return dst
	}
	return append(append(dst, `,"mode":"`...), '0'+byte(mode>>9&7), '0'+byte(mode>>6&7), '0'+byte(mode>>3&7), '0'+byte(mode&7), '"')
}

func appendTimeField(dst []byte, key string, t Time) []byte {
	if !t.Known {
		return dst
	}
	return append(appendTime(append(appendKey(dst, key), '"'), t), '"')
}

// appendXattrs appends the extended attributes up to position limit of dst and returns those that found no room.
// Values are base64; so are the names of those in xattrs_base64, whose names are not UTF-8.
func appendXattrs(dst []byte, list []Xattr, limit int) (b []byte, over []Xattr) {
	for _, raw := range [...]bool{false, true} {
		open := false
		for i := range list {
			x := &list[i]
			start := len(dst)
			if open {
				dst = append(dst, ',')
			} else if raw {
				dst = append(dst, `,"xattrs_base64":{`...)
			} else {
				dst = append(dst, `,"xattrs":{`...)
			}
			at := len(dst)
			var valid bool
			if dst, valid = appendText(dst, x.Name); valid == raw {
				dst = dst[:start]
				continue
			}
			if raw {
				dst = appendBase64(dst[:at], []byte(x.Name))
			}
			dst = appendBase64(append(dst, ':'), x.Value)
			if len(dst) > limit {
				dst, over = dst[:start], append(over, *x)
				continue
			}
			open = true
		}
		if open {
			dst = append(dst, '}')
		}
	}
	return dst, over
}

// AppendProblem appends a problem record.
func AppendProblem(dst []byte, p *Problem) []byte {
	dst = append(dst, `{"type":"problem"`...)
	dst = appendNotNone(dst, "image", int64(p.Image))
	dst = appendNotNone(dst, "volume", int64(p.Volume))
	dst = appendNotEmpty(dst, "path", p.Path)
	dst = appendNotEmpty(dst, "stream", p.Stream)
	dst = appendNotEmpty(dst, "what", p.What)
	dst = appendNotEmpty(dst, "error", p.Error)
	return append(append(dst, p.Rest...), '}', '\n')
}

// AppendResult appends a result record.
func AppendResult(dst []byte, r *Result) []byte {
	dst = append(dst, `{"type":"result"`...)
	dst = appendNotNone(dst, "volume", int64(r.Volume))
	dst = appendName(dst, "name", r.Name)
	dst = appendName(dst, "path", r.Path)
	dst = appendNotEmpty(dst, "stream", r.Stream)
	if r.Kind != 0 {
		dst = append(dst, `,"kind":"`...)
		dst = append(append(dst, r.Kind.String()...), '"')
	}
	dst = appendNotEmpty(dst, "to", r.To)
	dst = appendNotNone(dst, "size", r.Size)
	dst = appendNotEmpty(dst, "sha256", r.SHA256)
	dst = appendNotEmpty(dst, "status", r.Status)
	dst = appendNotEmpty(dst, "error", r.Error)
	dst = appendMode(dst, r.Mode)
	dst = appendNotNone(dst, "uid", r.UID)
	dst = appendNotNone(dst, "gid", r.GID)
	dst = appendTimeField(dst, "mtime", r.MTime)
	dst = appendNotEmpty(dst, "target", r.Target)
	dst, _ = appendXattrs(dst, r.Xattrs, len(dst)+MaxLine/2)
	return append(append(dst, r.Rest...), '}', '\n')
}

// appendAny appends a value that encoding/json knows how to write, or nothing.
func appendAny(dst []byte, key string, v map[string]any) []byte {
	if len(v) == 0 {
		return dst
	}
	b, err := json.Marshal(v)
	if err != nil {
		return dst
	}
	return append(appendKey(dst, key), b...)
}
