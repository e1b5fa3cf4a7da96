package iso9660

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

// entries calls fn with each system use entry of a record, continuation areas included, until it returns false.
func (v *volume) entries(rec []byte, pos int64, skip int, fn func(sig uint16, data []byte, pos int64) bool) error {
	const what = "system use entry"
	start := recName + int(rec[recNameLen])
	start += start & 1
	start += skip
	if start >= len(rec) {
		return nil
	}
	area, pos := rec[start:], pos+int64(start)
	for n := 0; ; n++ {
		var next, offset, size uint32
		for len(area) >= suHead {
			length := int(area[2])
			if area[0] == 0 { // padding
				break
			}
			if length < suHead || length > len(area) {
				return ondisk.Corrupt(what, fmt.Sprintf("length of %q", area[:2]), pos, length)
			}
			sig := binary.BigEndian.Uint16(area)
			if sig == suSL {
				length = targetLen(area, length)
			}
			data := area[suHead:length]
			switch sig {
			case suCE:
				if len(data) < 24 {
					return ondisk.Corrupt(what, "length of CE", pos, length)
				}
				next, offset, size = binary.LittleEndian.Uint32(data), binary.LittleEndian.Uint32(data[8:]), binary.LittleEndian.Uint32(data[16:])
			case suST:
				area = nil
				continue
			default:
				if !fn(sig, data, pos) {
					return nil
				}
			}
			area, pos = area[length:], pos+int64(length)
		}
		if size == 0 {
			return nil
		}
		if n == maxAreas {
			return ondisk.Corrupt(what, "more continuation areas than", pos, maxAreas)
		}
		if offset >= sectorLen || size > sectorLen-offset {
			return ondisk.Corrupt(what, fmt.Sprintf("continuation area of %d bytes at", size), pos, offset)
		}
		pos = int64(next)*v.block + int64(offset)
		b, err := v.meta.Slice(pos, int(size))
		if err != nil {
			return err
		}
		area = b
	}
}

// rockRidge finds out by the root's own record whether the primary tree has Rock Ridge, and how many bytes lie before
// each record's entries.
func (v *volume) rockRidge() (bool, error) {
	pos := int64(v.root.extent) * v.block
	rec, err := v.record(pos)
	if err != nil {
		return false, err
	}
	found := false
	err = v.entries(rec, pos, 0, func(sig uint16, data []byte, _ int64) bool {
		switch sig {
		case suSP:
			if len(data) >= 3 && data[0] == 0xBE && data[1] == 0xEF {
				v.skip = int(data[2])
			}
		case suER, suRR, suPX: // old disks lack one or the other
			found = true
		}
		return true
	})
	return found, err
}

// attributes is what Rock Ridge says of one record.
type attributes struct {
	name, target             []byte
	hasName, hasTarget       bool
	mode, links, uid, gid    uint32
	hasMode                  bool
	times                    [tfTimes]mapfile.Time
	major, minor             uint32
	child                    uint32 // CL: block of the directory that was moved away
	relocated, sparse        bool
	zAlgorithm               string // ZF
	zHeader, zLog            uint8
	zSize                    uint64
	zPos                     int64
	nameOn, targetOn, joined bool // NM and SL: more follows
}

// rockRidgeOf reads the Rock Ridge entries of a record. What could be read is kept when an error comes.
func (v *volume) rockRidgeOf(rec []byte, pos int64, a *attributes) error {
	*a = attributes{name: a.name[:0], target: a.target[:0]}
	var bad error
	err := v.entries(rec, pos, v.skip, func(sig uint16, d []byte, pos int64) bool {
		short := func(n int) bool {
			if len(d) < n && bad == nil {
				bad = ondisk.Corrupt("Rock Ridge entry", fmt.Sprintf("length of %c%c", sig>>8, sig&0xFF), pos, len(d)+suHead)
			}
			return len(d) < n
		}
		le := binary.LittleEndian
		switch sig {
		case suNM:
			if !short(1) {
				a.addName(d)
			}
		case suPX:
			if !short(32) {
				a.hasMode, a.mode, a.links, a.uid, a.gid = true, le.Uint32(d), le.Uint32(d[8:]), le.Uint32(d[16:]), le.Uint32(d[24:])
			}
		case suPN:
			if !short(16) {
				// Some writers put the whole number into the low half.
				if a.major, a.minor = le.Uint32(d), le.Uint32(d[8:]); a.major == 0 && a.minor > 0xFF {
					a.major, a.minor = a.minor>>8, a.minor&0xFF
				}
			}
		case suSL:
			if !short(1) && !a.addTarget(d) && bad == nil {
				bad = ondisk.Corrupt("Rock Ridge entry", "components of SL", pos, nil)
			}
		case suTF:
			if !short(1) && !a.addTimes(d) && bad == nil {
				bad = ondisk.Corrupt("Rock Ridge entry", "length of TF", pos, len(d)+suHead)
			}
		case suCL:
			if !short(8) {
				a.child = le.Uint32(d)
			}
		case suRE:
			a.relocated = true
		case suSF:
			a.sparse = true
		case suZF, suZ2:
			if !short(12) {
				a.zAlgorithm, a.zHeader, a.zLog, a.zPos = string(d[:2]), d[2], d[3], pos
				if a.zSize = uint64(le.Uint32(d[4:])); a.zAlgorithm == "PZ" {
					a.zSize = le.Uint64(d[4:])
				}
			}
		}
		return true
	})
	if err == nil {
		err = bad
	}
	return err
}

func (a *attributes) addName(d []byte) {
	if a.hasName && !a.nameOn {
		return
	}
	switch {
	case d[0]&nmCurrent != 0:
		a.name = append(a.name, '.')
	case d[0]&nmParent != 0:
		a.name = append(a.name, ".."...)
	default:
		a.name = append(a.name, d[1:]...)
	}
	a.hasName, a.nameOn = true, d[0]&continues != 0
}

// addTarget takes the components of an SL entry: a symlink's target without its slashes.
func (a *attributes) addTarget(d []byte) bool {
	if a.hasTarget && !a.targetOn {
		return true
	}
	a.hasTarget, a.targetOn = true, d[0]&continues != 0
	for d = d[1:]; len(d) > 0; {
		if len(d) < 2 || int(d[1]) > len(d)-2 || d[0]&^slKnown != 0 {
			return false
		}
		flags, text := d[0], d[2:2+int(d[1])]
		d = d[2+int(d[1]):]
		if n := len(a.target); n > 0 && !a.joined && a.target[n-1] != '/' {
			a.target = append(a.target, '/')
		}
		switch {
		case flags&slRoot != 0:
			a.target = append(a.target[:0], '/')
		case flags&slParent != 0:
			a.target = append(a.target, ".."...)
		case flags&slCurrent != 0:
			a.target = append(a.target, '.')
		default:
			a.target = append(a.target, text...)
		}
		a.joined = flags&continues != 0
	}
	return true
}

// targetLen gives the length of the SL entry that area begins with. genisoimage (1.1.11) writes entries above 255 bytes,
// of whose length only the low byte is there: the components then fill a longer entry exactly.
func targetLen(area []byte, length int) int {
	for n := length; n <= len(area); n += 256 {
		at := suHead + 1
		for at+2 <= n {
			at += 2 + int(area[at+1])
		}
		if at == n && (n == length || n == len(area) || area[n] == 0 || len(area)-n >= suHead && area[n+3] == 1) {
			return n
		}
	}
	return length
}

func (a *attributes) addTimes(d []byte) bool {
	flags, width := d[0], 7
	if flags&tfLong != 0 {
		width = 17
	}
	for i, d := 0, d[1:]; i < tfTimes; i++ {
		if flags>>i&1 == 0 {
			continue
		}
		if len(d) < width {
			return false
		}
		if width == 7 {
			a.times[i] = recordTime(d)
		} else {
			a.times[i] = longStamp(d)
		}
		d = d[width:]
	}
	return true
}
