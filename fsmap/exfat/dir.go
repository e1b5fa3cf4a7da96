package exfat

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/dos"
	"vmkit/fsmap/internal/names"
	"vmkit/fsmap/mapfile"
)

// doubts about a file's entries, which don't keep it from being used. An Entry's Aux carries them above the position
// of the stream extension in units of an entry.
type doubts uint64

const (
	doubtSum doubts = 1 << (63 - iota)
	doubtCritical
	doubtName
	doubtCount
	auxPosition = 1<<58 - 1
)

func unpackAux(aux uint64) (pos int64, d doubts) {
	return int64(aux&auxPosition) * dos.SlotLen, doubts(aux)
}

func (d doubts) problems(list []error, pos int64) []error {
	for _, x := range [...]struct {
		bit   doubts
		field string
	}{{doubtSum, "checksum of its entries"}, {doubtCritical, "unknown critical entry"}, {doubtName, "length of its name"}, {doubtCount, "number of its entries"}} {
		if d&x.bit != 0 {
			list = append(list, ondisk.Corrupt("file entry", x.field, pos, nil))
		}
	}
	return list
}

// entrySet gathers the entries of one file: the file entry, the stream extension, the name.
type entrySet struct {
	open   bool  // there is one
	pos    int64 // of the file entry
	left   int   // secondary entries that are still to come
	first  bool  // the next secondary entry is the first
	dir    bool
	sum    uint16 // over the entries
	stored uint16
	stream int64 // position of the stream extension, or 0
	length int   // of the name, in units
	units  [maxNameEntries * nameUnitsLen]uint16
	count  int // units that came
	doubts doubts
}

// begin takes a file entry.
func (s *entrySet) begin(e []byte, pos int64) {
	s.open, s.pos, s.left, s.first, s.stream, s.length, s.count, s.doubts = true, pos, int(e[fileSecondaries]), true, 0, 0, 0, 0
	s.dir = binary.LittleEndian.Uint16(e[fileAttrs:])&dos.AttrDirectory != 0
	s.stored = binary.LittleEndian.Uint16(e[fileSum:])
	s.sum = checksum(checksum(0, e[:fileSum]), e[fileSum+2:])
}

// add takes a secondary entry, and reports whether it was the last.
func (s *entrySet) add(e []byte, pos int64) bool {
	s.sum = checksum(s.sum, e)
	switch {
	case e[0] == typeStream && s.first:
		s.stream, s.length = pos, int(e[streamNameLength])
	case e[0] == typeName:
		for i := 0; i < nameUnitsLen && s.count < len(s.units); i++ {
			s.units[s.count] = binary.LittleEndian.Uint16(e[nameUnits+2*i:])
			s.count++
		}
	case e[0]&typeBenign == 0:
		s.doubts |= doubtCritical
	}
	s.first = false
	s.left--
	return s.left == 0
}

// name gives the name, as far as it is there. Linux's first driver wrote names of 256 units, more than a name can have,
// with a length of 0; such a one is cut, with a mark, since another can begin alike.
func (s *entrySet) name() []uint16 {
	if s.length > 0 && s.length <= s.count {
		return s.units[:s.length]
	}
	s.doubts |= doubtName
	n := 0
	for n < s.count && s.units[n] != 0 {
		n++
	}
	if n > maxName {
		n = maxName
		s.units[n-1] = '_'
	}
	return s.units[:n]
}

// checksum goes on with the checksum of an entry set (exFAT specification, 6.3.3).
func checksum(sum uint16, b []byte) uint16 {
	for _, c := range b {
		sum = sum<<15 | sum>>1
		sum += uint16(c)
	}
	return sum
}

// ReadDir implements fsmap.FS.
func (v *volume) ReadDir(n *fsmap.Node, add func(fsmap.Entry) bool) error {
	p, ok := n.Priv.(*inode)
	if !ok {
		return nil
	}
	d := v.rootDir()
	if n.Ref.ID != rootID {
		d = dos.Dir{Owner: n.Ref.ID, Start: p.start, Contiguous: p.contiguous, Size: p.size, Limit: maxDirectory}
	}
	l := lister{add: add}
	err := v.Slots(d, func(b []byte, pos int64) bool {
		for ; len(b) >= dos.SlotLen; b, pos = b[dos.SlotLen:], pos+dos.SlotLen {
			if !l.entry(b[:dos.SlotLen], pos) {
				return false
			}
		}
		return true
	})
	if !l.ended {
		l.flush()
	}
	if err == nil {
		err = l.doubt
	}
	return err
}

// lister turns the entries of a directory into names.
type lister struct {
	add   func(fsmap.Entry) bool
	set   entrySet
	name  []byte
	ended bool
	doubt error // the first that means that names may be lacking
}

func (l *lister) lost(err error) {
	if l.doubt == nil {
		l.doubt = err
	}
}

// entry takes one entry, and reports whether to go on.
func (l *lister) entry(e []byte, pos int64) bool {
	typ := e[0]
	if typ&(typeInUse|typeSecond) == typeInUse|typeSecond {
		// Without its file entry, or with a primary entry that is not known, a secondary entry means nothing.
		return l.set.left == 0 || !l.set.add(e, pos) || l.flush()
	}
	if !l.flush() {
		return false
	}
	switch {
	case typ == typeEnd:
		l.ended = true
		return false
	case typ == typeFile:
		l.set.begin(e, pos)
	case typ&typeInUse == 0, typ&typeBenign != 0, typ == typeBitmap, typ == typeUpcase, typ == typeLabel:
	default:
		l.lost(ondisk.Unsupported("directory", "critical entry", pos, fmt.Sprintf("%#x", typ)))
	}
	return true
}

// flush gives the file whose entries were gathered, if there is one; one that lacks entries is given too.
func (l *lister) flush() bool {
	s := &l.set
	if !s.open {
		return true
	}
	s.open = false
	if s.left > 0 || s.stream == 0 {
		s.doubts |= doubtCount
		s.left = 0
	} else if s.sum != s.stored {
		s.doubts |= doubtSum
	}
	l.name = names.AppendUTF16(l.name[:0], s.name())
	if !names.Usable(l.name) {
		l.lost(ondisk.Corrupt("file entry", "name", s.pos, fmt.Sprintf("%q", l.name)))
		l.name = names.Repair(l.name)
	}
	kind := mapfile.Regular
	if s.dir {
		kind = mapfile.Directory
	}
	return l.add(fsmap.Entry{Name: l.name, Ref: fsmap.Ref{ID: uint64(s.pos) / dos.SlotLen}, Kind: kind,
		Aux: uint64(s.stream)/dos.SlotLen | uint64(s.doubts)})
}
