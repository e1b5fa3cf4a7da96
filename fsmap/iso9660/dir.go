package iso9660

import (
	"bytes"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/names"
	"vmkit/fsmap/mapfile"
)

// record gives the directory record at a position.
func (v *volume) record(pos int64) ([]byte, error) {
	room := sectorLen - int(pos%sectorLen)
	b, err := v.meta.Slice(pos, min(room, minRecord))
	if err != nil {
		return nil, err
	}
	n := int(b[recLen])
	if n < minRecord || n > room || recName+int(b[recNameLen]) > n {
		return nil, ondisk.Corrupt("directory record", "length", pos, n)
	}
	return v.meta.Slice(pos, n)
}

// records calls fn with each record of a directory and its position until it returns false. An error means that
// records may be lacking; those that could be read were given.
func (v *volume) records(s section, fn func(rec []byte, pos int64) bool) error {
	return v.claimed(s, 0, fn)
}

// claimed is records for a directory that has a number of its own: blocks that are another's end it.
func (v *volume) claimed(s section, owner uint64, fn func(rec []byte, pos int64) bool) error {
	var first error
	bad := func(err error) {
		if first == nil {
			first = err
		}
	}
	start, size := int64(s.extent)*v.block, int64(s.size)
	if size > maxDirectory {
		bad(ondisk.Unsupported("directory", "length", start, size))
		size = maxDirectory
	}
	for off := int64(0); off < size; off += sectorLen {
		pos := start + off
		for b := int64(0); owner != 0 && b < sectorLen; b += v.block {
			if !v.claims.Take(uint64((pos+b)/v.block), owner, off+b) {
				return ondisk.Corrupt("directory", "loop, or shared with another directory, at block", pos, (pos+b)/v.block)
			}
		}
		sector, err := v.meta.Slice(pos, int(min(sectorLen, max(v.size-pos, 0))))
		if err != nil || len(sector) == 0 {
			bad(ondisk.Truncated("directory", "sector", pos, nil))
			return first
		}
		for i := 0; i < len(sector) && sector[i] != 0; {
			rec := sector[i:]
			n := int(rec[recLen])
			if n < minRecord || n > len(rec) || recName+int(rec[recNameLen]) > n {
				bad(ondisk.Corrupt("directory record", "length", pos+int64(i), n))
				break
			}
			if !fn(rec[:n:n], pos+int64(i)) {
				return first
			}
			i += n
		}
	}
	return first
}

// sameFile reports whether two records are of one file: sections of it, or the file and what is associated with it.
func sameFile(a, b []byte) bool {
	return bytes.Equal(a[recName:recName+int(a[recNameLen])], b[recName:recName+int(b[recNameLen])])
}

// ReadDir implements fsmap.FS.
func (v *volume) ReadDir(n *fsmap.Node, add func(fsmap.Entry) bool) error {
	p, ok := n.Priv.(*inode)
	if !ok || len(p.sections) == 0 {
		return nil
	}
	var (
		a          attributes
		name       []byte
		doubt      error
		goesOn     bool  // the record before is of the same file
		associated int64 // position of an associated file's record, or 0
		of         []byte
	)
	err := v.claimed(p.sections[0], n.Ref.ID, func(rec []byte, pos int64) bool {
		first := !goesOn
		goesOn = rec[recFlags]&flagMulti != 0
		if !first || isDot(rec) {
			return true
		}
		if rec[recFlags]&flagAssociated != 0 {
			associated, of = pos, append(of[:0], rec...)
			return true
		}
		e := fsmap.Entry{Ref: fsmap.Ref{ID: uint64(pos)}}
		if associated != 0 && sameFile(of, rec) {
			e.Aux = uint64(associated)
		}
		associated = 0
		if v.tree == rockRidge {
			_ = v.rockRidgeOf(rec, pos, &a) // Node tells what is wrong
			if a.relocated {
				return true
			}
		}
		raw := rec[recName : recName+int(rec[recNameLen])]
		switch {
		case v.tree == rockRidge && a.hasName:
			name = append(name[:0], a.name...)
		case v.tree == joliet:
			name = appendJoliet(name[:0], raw)
		default:
			name = appendPlain(name[:0], raw)
		}
		if !names.Usable(name) {
			if doubt == nil {
				doubt = ondisk.Corrupt("directory record", "name", pos, fmt.Sprintf("%q", name))
			}
			name = names.Repair(name)
		}
		e.Name, e.Kind = name, v.kind(rec, &a)
		return add(e)
	})
	if err == nil {
		err = doubt
	}
	return err
}

// kind tells what a record is of.
func (v *volume) kind(rec []byte, a *attributes) mapfile.FileKind {
	if v.tree == rockRidge {
		if a.child != 0 {
			return mapfile.Directory
		}
		if k := fsmap.ModeKind(a.mode); a.hasMode && k != 0 {
			return k
		}
	}
	if rec[recFlags]&flagDirectory != 0 {
		return mapfile.Directory
	}
	return mapfile.Regular
}

// appendPlain appends a name of the primary tree as Linux shows it: in lower case, without ".;1" and ";1" at its end.
func appendPlain(dst, b []byte) []byte {
	if n := len(b); n > 2 && b[n-2] == ';' && b[n-1] == '1' {
		b = b[:n-2]
		if b[len(b)-1] == '.' && len(b) > 1 {
			b = b[:len(b)-1]
		}
	}
	for _, c := range b {
		switch {
		case c >= 'A' && c <= 'Z':
			c |= 0x20
		case c == ';', c == '/':
			c = '.'
		case c == 0:
			return dst
		}
		dst = append(dst, c)
	}
	return dst
}
