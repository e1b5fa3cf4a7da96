package fat

import (
	"encoding/binary"
	"fmt"
	"unicode"
	"unicode/utf8"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/dos"
	"vmkit/fsmap/internal/names"
	"vmkit/fsmap/mapfile"
)

// slots calls fn with pieces of a directory: whole entries, and their position.
func (v *volume) slots(id uint64, start uint32, fn func(b []byte, pos int64) bool) error {
	if id != rootID || v.width == 32 {
		return v.Slots(dos.Dir{Owner: id, Start: start, Size: -1, Limit: maxDirectory}, fn)
	}
	// FAT12 and FAT16 have the root directory before the heap; 65,535 entries at most.
	b, err := ondisk.Read(v.Meta, v.root, v.rootLen, "fat root directory")
	if err != nil {
		return err
	}
	fn(b, v.root)
	return nil
}

// ReadDir implements fsmap.FS.
func (v *volume) ReadDir(n *fsmap.Node, add func(fsmap.Entry) bool) error {
	p, ok := n.Priv.(*inode)
	if !ok {
		return nil
	}
	var (
		long  longName
		name  []byte
		doubt error
	)
	err := v.slots(n.Ref.ID, p.start, func(b []byte, pos int64) bool {
		for ; len(b) >= dos.SlotLen; b, pos = b[dos.SlotLen:], pos+dos.SlotLen {
			e := b[:dos.SlotLen]
			switch {
			case e[0] == nameEnd:
				return false
			case e[0] == nameDeleted:
				long.left = 0
				long.whole = false
				continue
			case e[entAttr]&attrMask == attrLong:
				long.add(e)
				continue
			}
			units := long.take(e)
			if e[entAttr]&attrVolume != 0 || string(e[:11]) == ".          " || string(e[:11]) == "..         " {
				continue
			}
			if name = names.AppendUTF16(name[:0], units); !names.Usable(name) {
				name = appendShort(name[:0], e)
			}
			if !names.Usable(name) {
				if doubt == nil {
					doubt = ondisk.Corrupt("directory entry", "name", pos, fmt.Sprintf("%q", e[:11]))
				}
				name = names.Repair(name)
			}
			kind := mapfile.Regular
			if e[entAttr]&dos.AttrDirectory != 0 {
				kind = mapfile.Directory
			}
			if !add(fsmap.Entry{Name: name, Ref: fsmap.Ref{ID: uint64(pos) / dos.SlotLen}, Kind: kind}) {
				return false
			}
		}
		return true
	})
	if err == nil {
		err = doubt
	}
	return err
}

// longName gathers the pieces of a long name, which lie before the entry that it is of, the last first.
type longName struct {
	units [maxPieces * longUnits]uint16
	count int  // pieces
	left  int  // pieces that are still to come
	whole bool // all came
	sum   byte // of the short name
}

// add takes a piece. One that is out of order is an orphan, and ends what came before.
func (l *longName) add(e []byte) {
	no := int(e[longOrder] & longNumber)
	switch {
	case no == 0 || no > maxPieces:
		l.left, l.whole = 0, false
		return
	case e[longOrder]&longLast != 0:
		l.count, l.left, l.sum = no, no, e[longSum]
	case no != l.left || e[longSum] != l.sum:
		l.left, l.whole = 0, false
		return
	}
	for i, at := range longAt {
		l.units[(no-1)*longUnits+i] = binary.LittleEndian.Uint16(e[at:])
	}
	l.left--
	l.whole = l.left == 0
}

// take gives the long name of entry e, or nil, and begins anew.
func (l *longName) take(e []byte) []uint16 {
	whole := l.whole
	l.left, l.whole = 0, false
	if !whole || l.sum != checksum(e[:11]) {
		return nil
	}
	units := l.units[:l.count*longUnits]
	for i, u := range units {
		if u == 0 {
			units = units[:i]
			break
		}
	}
	return units[:min(len(units), maxLongUnits)]
}

// checksum ties long names to a short one (FAT specification, "Long directory entries": ChkSum).
func checksum(name []byte) byte {
	var sum byte
	for _, c := range name {
		sum = sum<<7 + sum>>1 + c
	}
	return sum
}

// appendShort appends the 8.3 name of entry e.
func appendShort(dst, e []byte) []byte {
	base, ext := trim(e[:8]), trim(e[8:11])
	for i, c := range base {
		if i == 0 && c == nameE5 {
			c = nameDeleted
		}
		dst = appendChar(dst, c, e[entCase]&caseBase != 0)
	}
	if len(ext) > 0 {
		dst = append(dst, '.')
	}
	for _, c := range ext {
		dst = appendChar(dst, c, e[entCase]&caseExt != 0)
	}
	return dst
}

func appendChar(dst []byte, c byte, lower bool) []byte {
	r := rune(c)
	if c >= utf8.RuneSelf {
		r = codePage850[c-utf8.RuneSelf]
	}
	if lower {
		r = unicode.ToLower(r)
	}
	return utf8.AppendRune(dst, r)
}

func trim(b []byte) []byte {
	for len(b) > 0 && b[len(b)-1] == ' ' {
		b = b[:len(b)-1]
	}
	return b
}

// labelText gives a label's 11 characters as text.
func labelText(b []byte) string {
	var text []byte
	for i, c := range trim(b) {
		if c == 0 {
			break
		}
		if i == 0 && c == nameE5 {
			c = nameDeleted
		}
		text = appendChar(text, c, false)
	}
	return string(text)
}
