package ntfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"vmkit/formats/ondisk"
)

// testRecord makes an MFT record of 1 KiB in use with these attributes.
func testRecord(attrs ...[]byte) []byte {
	b := make([]byte, 1024)
	copy(b, "FILE")
	put := func(at int, v uint16) { le.PutUint16(b[at:], v) }
	put(msUSAOffset, 48)
	put(msUSACount, 3)
	put(recSequence, 5)
	put(recLinks, 1)
	put(recAttrs, 56)
	put(recFlags, recInUse)
	at := 56
	for _, a := range attrs {
		at += copy(b[at:], a)
	}
	le.PutUint32(b[at:], atEnd)
	le.PutUint32(b[recUsed:], uint32(at+8))
	return b
}

// testAttr makes a resident attribute.
func testAttr(typ uint32, value []byte) []byte {
	b := make([]byte, (attrResHead+len(value)+7)&^7)
	le.PutUint32(b, typ)
	le.PutUint32(b[attrLength:], uint32(len(b)))
	le.PutUint32(b[attrResLen:], uint32(len(value)))
	le.PutUint16(b[attrResOff:], attrResHead)
	copy(b[attrResHead:], value)
	return b
}

// testEntry makes an index entry; a number of a block of entries before it is its last 8 bytes.
func testEntry(key []byte, flags uint16, sub uint64) []byte {
	b := make([]byte, (ieKey+len(key)+7)&^7)
	copy(b[ieKey:], key)
	if flags&ieSub != 0 {
		b = le.AppendUint64(b, sub)
	}
	le.PutUint16(b[ieLength:], uint16(len(b)))
	le.PutUint16(b[ieKeyLen:], uint16(len(key)))
	le.PutUint16(b[ieFlags:], flags)
	return b
}

// testNode makes an index node from its header on, with room for more.
func testNode(room int, entries ...[]byte) []byte {
	b := make([]byte, ihLen)
	for _, e := range entries {
		b = append(b, e...)
	}
	le.PutUint32(b[ihFirst:], ihLen)
	le.PutUint32(b[ihUsed:], uint32(len(b)))
	le.PutUint32(b[ihAlloc:], uint32(len(b)+room))
	return append(b, make([]byte, room)...)
}

func testRoot(entries ...[]byte) []byte {
	return testAttr(atIndexRoot, append(make([]byte, irHeader), testNode(0, entries...)...))
}

func testBlock(entries ...[]byte) []byte {
	b := make([]byte, 4096)
	copy(b, "INDX")
	le.PutUint16(b[msUSAOffset:], 40)
	le.PutUint16(b[msUSACount:], 9)
	copy(b[ibHeader:], testNode(0, entries...))
	le.PutUint32(b[ibHeader+ihAlloc:], 4096-ibHeader)
	return b
}

// TestOperations applies those that the logs of the fixtures don't hold, and each where it doesn't fit.
func TestOperations(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 16)
	last, sub := testEntry(nil, ieLast, 0), testEntry(nil, ieLast|ieSub, 3)
	view := testEntry(append(bytes.Clone(key), 1, 2, 3, 4, 5, 6, 7, 8), 0, 0) // 16 bytes of key, 8 of data
	le.PutUint16(view[ieKeyLen:], 16)
	le.PutUint16(view[ieDataOff:], ieKey+16)
	changed := bytes.Clone(view)
	copy(changed[ieKey+16:], "newdata!")
	seven := le.AppendUint64(nil, 7)
	data := testAttr(atData, []byte("some data"))
	const rootOff = 56
	const entryOff = attrResHead + irHeader + ihLen // of an index root's first entry, in the attribute
	for _, x := range []struct {
		name         string
		op           uint16
		record, attr int // offsets
		data         []byte
		n            int
		block, want  []byte // want is nil where the step doesn't fit
	}{
		{"end of a record", opEndRecord, 56, 0, []byte("\xFF\xFF\xFF\xFF\x00\x00\x00\x00"), 8, testRecord(data), testRecord()},
		{"end of a record, inside an attribute", opEndRecord, 64, 0, []byte("\xFF\xFF\xFF\xFF\x00\x00\x00\x00"), 8, testRecord(data), nil},
		{"end of a record, behind it", opEndRecord, 56, 0, make([]byte, 1000), 1000, testRecord(data), nil},
		{"zeros", opZeroRecord, 200, 0, nil, 824, append(testRecord(data)[:1000], bytes.Repeat([]byte{9}, 24)...), testRecord(data)},
		{"zeros in the used part", opZeroRecord, 56, 0, nil, 968, testRecord(data), nil},
		{"zeros behind the record", opZeroRecord, 200, 0, nil, 825, testRecord(data), nil},
		{"root's block number", opVCNRoot, rootOff, entryOff, seven, 8, testRecord(testRoot(sub)), testRecord(testRoot(testEntry(nil, ieLast|ieSub, 7)))},
		{"root without blocks", opVCNRoot, rootOff, entryOff, seven, 8, testRecord(testRoot(last)), nil},
		{"root's data", opDataRoot, rootOff, entryOff, []byte("newdata!"), 8, testRecord(testRoot(view, last)), testRecord(testRoot(changed, last))},
		{"root's data, too long", opDataRoot, rootOff, entryOff, make([]byte, 9), 9, testRecord(testRoot(view, last)), nil},
		{"root's data, of the last entry", opDataRoot, rootOff, entryOff, nil, 0, testRecord(testRoot(last)), nil},
		{"root's name, of another key", opNameRoot, rootOff, entryOff, make([]byte, 56), 56, testRecord(testRoot(view, last)), nil},
		{"root that isn't one", opAddRoot, rootOff, entryOff, view, len(view), testRecord(data), nil},
		{"entry that is cut", opAddRoot, rootOff, entryOff, view[:len(view)-8], len(view) - 8, testRecord(testRoot(last)), nil},
		{"last entry deleted", opDeleteRoot, rootOff, entryOff, nil, 0, testRecord(testRoot(last)), nil},
		{"quota", opRelativeRoot, rootOff, entryOff, nil, 0, testRecord(testRoot(view, last)), nil},
		{"pairs of a resident attribute", opPairs, rootOff, 64, nil, 0, testRecord(data), nil},
		{"sizes of a resident attribute", opSizes, rootOff, 0, make([]byte, 24), 24, testRecord(data), nil},
		{"value before it", opResident, rootOff, 8, make([]byte, 4), 4, testRecord(data), nil},
		{"value behind it", opResident, rootOff, attrResHead + 20, make([]byte, 4), 4, testRecord(data), nil},
		{"record that gets too long", opCreateAttr, rootOff, 0, testAttr(atData, make([]byte, 960)), 984, testRecord(data), nil},
		{"attribute that is cut", opCreateAttr, rootOff, 0, data[:16], 16, testRecord(data), nil},
		{"block's number", opVCNIndex, 0, ibHeader + ihLen, seven, 8, testBlock(sub), testBlock(testEntry(nil, ieLast|ieSub, 7))},
		{"block's data", opDataIndex, 0, ibHeader + ihLen, []byte("newdata!"), 8, testBlock(view, last), testBlock(changed, last)},
		{"block's data, between entries", opDataIndex, 0, ibHeader + ihLen + 8, []byte("newdata!"), 8, testBlock(view, last), nil},
		{"before the entries", opAddIndex, 0, 8, view, len(view), testBlock(last), nil},
		{"end without a last entry", opEndIndex, 0, ibHeader + ihLen, view, len(view), testBlock(view, last), nil},
		{"block at an offset", opAddIndex, 8, ibHeader + ihLen, view, len(view), testBlock(last), nil},
		{"block's quota", opRelativeIndex, 0, ibHeader + ihLen, nil, 0, testBlock(view, last), nil},
	} {
		s := &step{change: &change{recordOff: x.record, attrOff: x.attr}, op: x.op, data: x.data, n: x.n}
		b := slices.Clone(x.block)
		err := s.changeRecord
		if string(b[:4]) == "INDX" {
			err = s.changeIndex
		}
		switch e := err(b); {
		case x.want == nil && !errors.Is(e, ondisk.ErrCorrupt) && !errors.Is(e, ondisk.ErrUnsupported):
			t.Errorf("%s: %v", x.name, e)
		case x.want != nil && (e != nil || !bytes.Equal(used(b, x.op), used(x.want, x.op))):
			t.Errorf("%s: %v, or other bytes", x.name, e)
		}
	}
}

// used gives what of a record or block counts after an operation.
func used(b []byte, op uint16) []byte {
	switch {
	case string(b[:4]) == "INDX":
		return b[:ibHeader+le.Uint32(b[ibHeader+ihUsed:])]
	case op == opZeroRecord:
		return b
	}
	return b[:le.Uint32(b[recUsed:])]
}

// TestFreeRecord frees a record, whose next user gets another sequence number, never 0.
func TestFreeRecord(t *testing.T) {
	for was, now := range map[uint16]uint16{5: 6, 0xFFFF: 1} {
		b := testRecord()
		le.PutUint16(b[recSequence:], was)
		s := &step{change: &change{}, op: opFreeRecord}
		if err := s.changeRecord(b); err != nil || le.Uint16(b[recSequence:]) != now || le.Uint16(b[recFlags:]) != 0 {
			t.Errorf("%v, sequence %d, flags %d", err, le.Uint16(b[recSequence:]), le.Uint16(b[recFlags:]))
		}
	}
}

// TestProtect protects a record and undoes it.
func TestProtect(t *testing.T) {
	b := testRecord(testAttr(atData, bytes.Repeat([]byte{0xAB}, 900)))
	binary.LittleEndian.PutUint16(b[48:], 0x1234)
	want := slices.Clone(b)
	if err := protect(b, "FILE", "record", 0); err != nil || le.Uint16(b[stride-2:]) != 0x1234 || le.Uint16(b[50:]) != 0xABAB {
		t.Fatal(err)
	}
	if err := fixup(b, "FILE", "record", 0); err != nil || !bytes.Equal(b[56:], want[56:]) {
		t.Error(err)
	}
	le.PutUint16(b[msUSACount:], 2)
	if protect(b, "FILE", "record", 0) == nil {
		t.Error("a wrong count is protected")
	}
}
