package ntfs

import (
	"fmt"

	"vmkit/formats/ondisk"
)

// What operations do to a record of the MFT or to a block of an index, whose fixups are undone. What doesn't fit its
// target exactly is an error: then the log isn't understood, or the volume isn't the one that it was written for.

func opCorrupt(field string, got any) error {
	return ondisk.Corrupt(logWhat+" operation", field, -1, got)
}

// changeRecord applies the step to an MFT record.
func (s *step) changeRecord(b []byte) error {
	switch s.op {
	case opInitRecord:
		if s.recordOff+s.n > len(b) {
			return opCorrupt("bytes of a new record", s.n)
		}
		copy(b[s.recordOff:], s.data)
		return checkRecord(b)
	case opFreeRecord:
		le.PutUint16(b[recFlags:], le.Uint16(b[recFlags:])&^recInUse)
		le.PutUint16(b[recSequence:], max(1, le.Uint16(b[recSequence:])+1))
		return nil
	case opZeroRecord:
		if s.recordOff < int(le.Uint32(b[recUsed:])) || s.recordOff+s.n > len(b) {
			return opCorrupt("bytes to clear", fmt.Sprintf("%d+%d", s.recordOff, s.n))
		}
		clear(b[s.recordOff : s.recordOff+s.n])
		return nil
	}
	if err := checkRecord(b); err != nil {
		return err
	}
	a, end, err := attrAt(b, s.recordOff)
	if err != nil {
		return err
	}
	switch {
	case s.op == opEndRecord:
		if s.recordOff+s.n > len(b) {
			return opCorrupt("bytes of a record's end", s.n)
		}
		copy(b[s.recordOff:], s.data)
		le.PutUint32(b[recUsed:], uint32(s.recordOff+s.n+7)&^7)
	case s.op == opCreateAttr:
		err = s.createAttr(b)
	case end:
		err = opCorrupt("offset of an attribute", s.recordOff)
	default:
		err = s.changeAttr(b, a)
	}
	if err != nil {
		return err
	}
	return checkRecord(b)
}

func (s *step) changeAttr(b []byte, a attr) error {
	h := b[a.off : a.off+a.length]
	switch s.op {
	case opDeleteAttr:
		if !a.nonRes && h[attrIndexed] != 0 {
			le.PutUint16(b[recLinks:], le.Uint16(b[recLinks:])-1)
		}
		return splice(b, a.off, a.length, nil)
	case opResident:
		return s.changeValue(b, a)
	case opPairs:
		return s.changePairs(b, a)
	case opSizes:
		if !a.nonRes || s.n != 24 && s.n != 32 || a.length < attrAlloc+s.n {
			return opCorrupt("bytes of an attribute's sizes", s.n)
		}
		// The log has the valid data length before the size.
		copy(h[attrAlloc:], s.data[:8])
		copy(h[attrInit:], s.data[8:16])
		copy(h[attrSize:], s.data[16:24])
		copy(h[attrInit+8:], s.data[24:])
		return nil
	}
	if a.nonRes || a.typ != atIndexRoot || a.valueLen < irHeader+ihLen {
		return opCorrupt("operation on an index root, in attribute", fmt.Sprintf("%#x", a.typ))
	}
	x := indexNode{b: b[a.value+irHeader : a.value+a.valueLen]}
	at := a.off + s.attrOff - (a.value + irHeader)
	var delta int
	switch s.op {
	case opAddRoot:
		e, err := s.entry()
		if err == nil {
			err = x.find(at, true)
		}
		if err != nil {
			return err
		}
		if err := splice(b, a.off+s.attrOff, 0, e); err != nil {
			return err
		}
		delta = len(e)
	case opDeleteRoot:
		if err := x.find(at, false); err != nil {
			return err
		}
		n := int(le.Uint16(x.b[at+ieLength:]))
		if err := splice(b, a.off+s.attrOff, n, nil); err != nil {
			return err
		}
		delta = -n
	case opVCNRoot, opNameRoot, opDataRoot:
		return x.change(s, at)
	default:
		return ondisk.Unsupported(logWhat, "operation", -1, fmt.Sprintf("%#x", s.op))
	}
	add := func(field []byte) { le.PutUint32(field, uint32(int(le.Uint32(field))+delta)) }
	add(b[a.off+attrLength:])
	add(b[a.off+attrResLen:])
	add(b[a.value+irHeader+ihUsed:])
	add(b[a.value+irHeader+ihAlloc:])
	return nil
}

// changeValue writes into a resident value; where the lengths to redo and to undo differ, it ends behind what is
// written.
func (s *step) changeValue(b []byte, a attr) error {
	value, end := a.value-a.off, s.attrOff+s.n
	if a.nonRes || s.attrOff < value {
		return opCorrupt("offset in a resident value", s.attrOff)
	}
	if s.n == s.other {
		if s.blank || end > a.length {
			return opCorrupt("bytes of a resident value", s.n)
		}
		copy(b[a.off+s.attrOff:], s.data)
		return nil
	}
	if s.attrOff > value+a.valueLen || s.blank && s.other != 0 {
		return opCorrupt("offset in a resident value", s.attrOff)
	}
	if err := resize(b, a, (end+7)&^7); err != nil {
		return err
	}
	at := a.off + s.attrOff
	clear(b[at : a.off+(end+7)&^7])
	copy(b[at:], s.data)
	le.PutUint32(b[a.off+attrResLen:], uint32(end-value))
	return nil
}

// changePairs writes mapping pairs, which end the attribute.
func (s *step) changePairs(b []byte, a attr) error {
	h := b[a.off : a.off+a.length]
	end := s.attrOff + s.n
	if !a.nonRes || s.attrOff < int(le.Uint16(h[attrPairs:])) || s.attrOff > a.length {
		return opCorrupt("offset in mapping pairs", s.attrOff)
	}
	if err := resize(b, a, (end+7)&^7); err != nil {
		return err
	}
	clear(b[a.off+s.attrOff : a.off+(end+7)&^7])
	copy(b[a.off+s.attrOff:], s.data)
	h = b[a.off : a.off+(end+7)&^7]
	vcn := a.lowest
	for p := h[le.Uint16(h[attrPairs:]):]; len(p) > 0 && p[0] != 0; {
		nl, no := int(p[0]&15), int(p[0]>>4)
		if nl == 0 || nl > 8 || no > 8 || 1+nl+no > len(p) {
			return opCorrupt("mapping pairs", fmt.Sprintf("%#x", p[0]))
		}
		n := signed(p[1 : 1+nl])
		if n <= 0 || vcn > 1<<52-n {
			return opCorrupt("mapping pairs: clusters", n)
		}
		vcn += n
		p = p[1+nl+no:]
	}
	le.PutUint64(h[attrHighest:], uint64(vcn-1))
	return nil
}

// createAttr inserts an attribute at the step's offset.
func (s *step) createAttr(b []byte) error {
	d := s.data
	if len(d) < attrHeadMin || int(le.Uint32(d[attrLength:])) != len(d) || len(d)%8 != 0 {
		return opCorrupt("bytes of a new attribute", len(d))
	}
	if err := splice(b, s.recordOff, 0, d); err != nil {
		return err
	}
	if id := le.Uint16(d[attrID:]); id >= le.Uint16(b[recNextID:]) {
		le.PutUint16(b[recNextID:], id+1)
	}
	if len(d) >= attrResHead && d[attrNonRes] == 0 && d[attrIndexed] != 0 {
		le.PutUint16(b[recLinks:], le.Uint16(b[recLinks:])+1)
	}
	return nil
}

// resize gives an attribute another length.
func resize(b []byte, a attr, length int) error {
	var err error
	if n := length - a.length; n > 0 {
		err = splice(b, a.off+a.length, 0, make([]byte, n))
	} else if n < 0 {
		err = splice(b, a.off+length, -n, nil)
	}
	if err == nil {
		le.PutUint32(b[a.off+attrLength:], uint32(length))
	}
	return err
}

// splice replaces n bytes of the used part of a record by others.
func splice(b []byte, at, n int, with []byte) error {
	used := int(le.Uint32(b[recUsed:]))
	now := used - n + len(with)
	if at+n > used || now > len(b) || (len(with)-n)%8 != 0 {
		return opCorrupt("bytes that a record would hold", now)
	}
	copy(b[at+len(with):], b[at+n:used])
	copy(b[at:], with)
	if now < used {
		clear(b[now:used])
	}
	le.PutUint32(b[recUsed:], uint32(now))
	return nil
}

// checkRecord makes sure that the attributes of a record are whole, up to the mark behind the last one.
func checkRecord(b []byte) error {
	_, _, err := attrAt(b, -1)
	return err
}

// attrAt gives the attribute at off, or end where the mark behind the last one stands there; -1 checks only.
func attrAt(b []byte, off int) (found attr, end bool, err error) {
	used := int(le.Uint32(b[recUsed:]))
	if used < recHeaderLen || used > len(b) {
		return attr{}, false, opCorrupt("bytes in use of a record", used)
	}
	at := int(le.Uint16(b[recAttrs:]))
	if at < recHeaderLen {
		return attr{}, false, opCorrupt("offset of the first attribute", at)
	}
	for {
		a, next, ok, err := nextAttr(b, 0, at)
		switch {
		case err != nil:
			return attr{}, false, err
		case !ok && (at > used-4 || le.Uint32(b[at:]) != atEnd):
			return attr{}, false, opCorrupt("end of a record's attributes", at)
		case !ok && (off == at || off < 0):
			return attr{}, true, nil
		case !ok:
			return attr{}, false, opCorrupt("offset of an attribute", off)
		case off == at:
			return a, false, nil
		}
		at = next
	}
}

// indexNode is a node of an index, from its header on.
type indexNode struct{ b []byte }

// check makes sure that the entries of a node are whole.
func (x indexNode) check() error {
	_, err := x.walk(-1)
	return err
}

// find makes sure too that an entry begins at off; the one that ends the node counts where last is set.
func (x indexNode) find(off int, last bool) error {
	flags, err := x.walk(off)
	if err == nil && (flags < 0 || flags&ieLast != 0 && !last) {
		err = opCorrupt("offset of an index entry", off)
	}
	return err
}

// walk goes through the entries and gives the flags of the one at off, or -1.
func (x indexNode) walk(off int) (found int, err error) {
	found = -1
	at, used := int64(le.Uint32(x.b[ihFirst:])), int64(le.Uint32(x.b[ihUsed:]))
	if at < ihLen || used > int64(len(x.b)) || used > int64(le.Uint32(x.b[ihAlloc:])) {
		return -1, opCorrupt("bytes in use of an index node", used)
	}
	for {
		if at > used-ieKey {
			return -1, opCorrupt("end of an index node", at)
		}
		e := x.b[at:used]
		n, key, flags := int(le.Uint16(e[ieLength:])), int(le.Uint16(e[ieKeyLen:])), le.Uint16(e[ieFlags:])
		if flags&ieSub != 0 {
			key += 8
		}
		if n < ieKey || n%8 != 0 || n > len(e) || flags&ieLast == 0 && key > n-ieKey {
			return -1, opCorrupt("length of an index entry", n)
		}
		if at == int64(off) {
			found = int(flags)
		}
		if at += int64(n); flags&ieLast != 0 {
			return found, nil
		}
	}
}

// entry gives the index entry that a step inserts.
func (s *step) entry() ([]byte, error) {
	if len(s.data) < ieKey || int(le.Uint16(s.data[ieLength:])) != len(s.data) || len(s.data)%8 != 0 || le.Uint16(s.data[ieFlags:])&ieLast != 0 {
		return nil, opCorrupt("length of a new index entry", len(s.data))
	}
	return s.data, nil
}

// change writes into the entry at off without changing its length.
func (x indexNode) change(s *step, off int) error {
	if err := x.find(off, s.op == opVCNRoot || s.op == opVCNIndex); err != nil {
		return err
	}
	e := x.b[off:]
	e = e[:le.Uint16(e[ieLength:])]
	var at int
	switch s.op {
	case opVCNRoot, opVCNIndex:
		if at = len(e) - 8; le.Uint16(e[ieFlags:])&ieSub == 0 || at < ieKey || s.n != 8 {
			return opCorrupt("bytes of a block's number", s.n)
		}
	case opNameRoot, opNameIndex:
		if at = ieKey + fnTimes; le.Uint16(e[ieKeyLen:]) < fnName || s.n != fnNameLen-fnTimes {
			return opCorrupt("bytes of a file's times and sizes", s.n)
		}
	case opDataRoot, opDataIndex:
		if at = int(le.Uint16(e[ieDataOff:])); at < ieKey || s.n > len(e)-at {
			return opCorrupt("bytes of an index entry's data", s.n)
		}
	}
	copy(e[at:], s.data)
	return nil
}

// changeIndex applies the step to a block of an index.
func (s *step) changeIndex(b []byte) error {
	if s.op == opNonresident {
		if at := s.recordOff + s.attrOff; at+s.n > len(b) || s.blank {
			return opCorrupt("bytes of an index block", fmt.Sprintf("%d+%d", at, s.n))
		}
		copy(b[s.recordOff+s.attrOff:], s.data)
		return indexNode{b[ibHeader:]}.check()
	}
	if s.recordOff != 0 {
		return opCorrupt("offset of an index block", s.recordOff)
	}
	x := indexNode{b[ibHeader:]}
	at, used := s.attrOff-ibHeader, int(le.Uint32(b[ibHeader+ihUsed:]))
	switch s.op {
	case opAddIndex:
		e, err := s.entry()
		if err == nil {
			err = x.find(at, true)
		}
		if err != nil {
			return err
		}
		if used+len(e) > int(le.Uint32(x.b[ihAlloc:])) || used+len(e) > len(x.b) {
			return opCorrupt("bytes that an index block would hold", used+len(e))
		}
		copy(x.b[at+len(e):], x.b[at:used])
		copy(x.b[at:], e)
		le.PutUint32(x.b[ihUsed:], uint32(used+len(e)))
	case opDeleteIndex:
		if err := x.find(at, false); err != nil {
			return err
		}
		n := int(le.Uint16(x.b[at+ieLength:]))
		copy(x.b[at:], x.b[at+n:used])
		le.PutUint32(x.b[ihUsed:], uint32(used-n))
	case opEndIndex:
		if err := x.find(at, true); err != nil {
			return err
		}
		if at+s.n > len(x.b) || at+s.n > int(le.Uint32(x.b[ihAlloc:])) {
			return opCorrupt("bytes that an index block would hold", at+s.n)
		}
		copy(x.b[at:], s.data)
		le.PutUint32(x.b[ihUsed:], uint32(at+s.n))
	case opVCNIndex, opNameIndex, opDataIndex:
		if err := x.change(s, at); err != nil {
			return err
		}
	default:
		return ondisk.Unsupported(logWhat, "operation", -1, fmt.Sprintf("%#x", s.op))
	}
	return x.check()
}
