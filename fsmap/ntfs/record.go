package ntfs

import (
	"bytes"
	"encoding/binary"

	"vmkit/formats/ondisk"
	"vmkit/fsmap/internal/names"
)

var le = binary.LittleEndian

// fixup checks and undoes the protection of a record against torn writes, in place: the last two bytes of each stride
// hold a sequence number, and the array at the front what stood there.
func fixup(b []byte, magic, what string, off int64) error {
	if !bytes.Equal(b[:4], []byte(magic)) {
		return ondisk.Corrupt(what, "magic", off, printable(b[:4]))
	}
	start, count := int(le.Uint16(b[msUSAOffset:])), int(le.Uint16(b[msUSACount:]))
	if count != len(b)/stride+1 || start < 8 || start+2*count > len(b) || start+2*count > stride-2 {
		return ondisk.Corrupt(what, "update sequence count", off+msUSACount, count)
	}
	usn := le.Uint16(b[start:])
	for i := 1; i < count; i++ {
		end := i*stride - 2
		if le.Uint16(b[end:]) != usn {
			return ondisk.Corrupt(what, "update sequence (a torn write) in sector", off+int64(end), i-1)
		}
		copy(b[end:end+2], b[start+2*i:])
	}
	return nil
}

func printable(b []byte) string {
	s := make([]byte, 0, 16)
	for _, c := range b {
		if c < 0x20 || c > 0x7e {
			c = '.'
		}
		s = append(s, c)
	}
	return string(s)
}

// mftRef splits a reference into record number and sequence number.
func mftRef(v uint64) (no uint64, seq uint16) { return v & (1<<48 - 1), uint16(v >> 48) }

// recordPos gives where byte b of an MFT record lies in the volume, and how many bytes follow it there.
func (f *fs) recordPos(no uint64, b int64) (pos, n int64, ok bool) {
	at := int64(no)*f.recordSize + b
	return f.mft.at(at)
}

// readRecord reads MFT record no into b and undoes its fixups. Whatever is wrong is an error: a record without its
// magic is not in use, or damaged.
func (f *fs) readRecord(no uint64, b []byte) error {
	if no >= uint64(f.records) {
		return ondisk.Corrupt("mft reference", "record number", -1, no)
	}
	var first int64 = -1
	for n := 0; n < len(b); {
		pos, run, ok := f.recordPos(no, int64(n))
		if !ok {
			return ondisk.Corrupt("mft record", "a hole in the MFT at record", -1, no)
		}
		if first < 0 {
			first = pos
		}
		m := int(min(run, int64(len(b)-n)))
		if err := ondisk.ReadFull(f.r, b[n:n+m], pos, "mft record"); err != nil {
			return err
		}
		n += m
	}
	if err := fixup(b, "FILE", "mft record", first); err != nil {
		return err
	}
	if used := le.Uint32(b[recUsed:]); int64(used) > f.recordSize || used < recHeaderLen {
		return ondisk.Corrupt("mft record", "bytes in use", first+recUsed, used)
	}
	return nil
}

// attr is one attribute of a record, or one segment of a non-resident one.
type attr struct {
	typ    uint32
	flags  uint16
	record uint64 // the MFT record that holds it
	off    int    // its offset there
	length int
	nonRes bool
	unit   uint8
	name   string // bytes, decoded
	// non-resident; sizes are the first segment's
	lowest, highest   int64
	alloc, size, init int64
	// resident
	value, valueLen int // offset in the record, length
}

// nextAttr decodes the attribute at off of the record b. It returns ok false at the end.
func nextAttr(b []byte, no uint64, off int) (a attr, next int, ok bool, err error) {
	used := int(le.Uint32(b[recUsed:]))
	if off+4 > used || le.Uint32(b[off:]) == atEnd {
		return attr{}, 0, false, nil
	}
	bad := func(field string, got any) (attr, int, bool, error) {
		return attr{}, 0, false, ondisk.Corrupt("attribute", field, -1, got)
	}
	if off+attrHeadMin > used {
		return bad("offset in the record", off)
	}
	n := int(le.Uint32(b[off+attrLength:]))
	if n < attrHeadMin || n > used-off || n%8 != 0 {
		return bad("length", n)
	}
	h := b[off : off+n]
	a = attr{typ: le.Uint32(h), flags: le.Uint16(h[attrFlags:]), record: no, off: off, length: n, nonRes: h[attrNonRes] != 0}
	if k := int(h[attrNameLen]); k > 0 {
		at := int(le.Uint16(h[attrNameOff:]))
		if at+2*k > n {
			return bad("name length", k)
		}
		a.name = string(appendUTF16(nil, h[at:at+2*k]))
	}
	if !a.nonRes {
		if n < attrResHead {
			return bad("length", n)
		}
		v, vn := int(le.Uint16(h[attrResOff:])), int(le.Uint32(h[attrResLen:]))
		if vn > n || v > n-vn {
			return bad("value length", vn)
		}
		a.value, a.valueLen = off+v, vn
		a.size, a.init = int64(vn), int64(vn)
		return a, off + n, true, nil
	}
	if n < attrNonHead {
		return bad("length", n)
	}
	a.lowest, a.highest = int64(le.Uint64(h[attrLowest:])), int64(le.Uint64(h[attrHighest:]))
	a.unit = h[attrUnit]
	a.alloc, a.size, a.init = int64(le.Uint64(h[attrAlloc:])), int64(le.Uint64(h[attrSize:])), int64(le.Uint64(h[attrInit:]))
	if a.lowest < 0 || a.highest < a.lowest-1 || int(le.Uint16(h[attrPairs:])) > n {
		return bad("cluster range", a.lowest)
	}
	if a.lowest == 0 && (a.size < 0 || a.init < 0 || a.init > a.size || a.unit > 16) {
		return bad("size", a.size)
	}
	return a, off + n, true, nil
}

// run is a stretch of clusters: lcn is -1 in a hole.
type run struct{ vcn, lcn, n int64 }

// pairs decodes the mapping pairs of an attribute segment (Linux-NTFS, "data runs") and calls add for each run.
func (f *fs) pairs(b []byte, a attr, add func(run) error) error {
	h := b[a.off : a.off+a.length]
	p := h[le.Uint16(h[attrPairs:]):]
	vcn, lcn := a.lowest, int64(0)
	for len(p) > 0 && p[0] != 0 {
		nl, no := int(p[0]&15), int(p[0]>>4)
		if nl == 0 || nl > 8 || no > 8 || 1+nl+no > len(p) {
			return ondisk.Corrupt("data runs", "header byte", -1, p[0])
		}
		n := signed(p[1 : 1+nl])
		if n <= 0 || n > f.clusters+1<<40 || vcn > 1<<52-n {
			return ondisk.Corrupt("data runs", "length in clusters", -1, n)
		}
		r := run{vcn: vcn, lcn: -1, n: n}
		if no > 0 {
			lcn += signed(p[1+nl : 1+nl+no])
			// NTFS 1.x wrote -1 for holes; later ones leave the offset out.
			if r.lcn = lcn; lcn < 0 || lcn > f.clusters || n > f.clusters-lcn {
				return ondisk.Corrupt("data runs", "cluster", -1, lcn)
			}
		}
		if err := add(r); err != nil {
			return err
		}
		vcn += n
		p = p[1+nl+no:]
	}
	if a.highest >= 0 && vcn != a.highest+1 && !(a.highest == 0 && vcn == 0) {
		return ondisk.Corrupt("data runs", "last cluster", -1, vcn-1)
	}
	return nil
}

// signed reads a little-endian two's complement number of 1 to 8 bytes.
func signed(b []byte) int64 {
	v := int64(int8(b[len(b)-1]))
	for i := len(b) - 2; i >= 0; i-- {
		v = v<<8 | int64(b[i])
	}
	return v
}

// appendUTF16 appends a UTF-16LE name as UTF-8.
func appendUTF16(dst, b []byte) []byte {
	var buf [256]uint16 // names are at most 255 units; labels and targets may be longer
	name := buf[:0]
	for ; len(b) >= 2; b = b[2:] {
		name = append(name, le.Uint16(b))
	}
	return names.AppendUTF16(dst, name)
}
