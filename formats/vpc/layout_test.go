package vpc

import (
	"encoding/binary"
	"reflect"
	"testing"
)

func TestLayout(t *testing.T) {
	if n := binary.Size(footer{}); n != footerLen {
		t.Errorf("footer has %d bytes", n)
	}
	if n := binary.Size(dynHeader{}); n != dynHeaderLen {
		t.Errorf("dynHeader has %d bytes", n)
	}
	for _, c := range []struct {
		v     any
		field string
		off   int // of the last byte
	}{
		{new(footer), "Version", 15}, {new(footer), "HeaderOff", 23}, {new(footer), "Timestamp", 27}, {new(footer), "OrigSize", 47},
		{new(footer), "Size", 55}, {new(footer), "Cylinders", 57}, {new(footer), "Heads", 58}, {new(footer), "Sectors", 59},
		{new(footer), "Type", 63}, {new(footer), "Checksum", checksumAt + 3}, {new(footer), "SavedState", 84},
		{new(dynHeader), "TableOff", 23}, {new(dynHeader), "Version", 27}, {new(dynHeader), "Entries", 31},
		{new(dynHeader), "BlockSize", 35}, {new(dynHeader), "Checksum", dynChecksumAt + 3}, {new(dynHeader), "ParentTime", 59},
	} {
		b := make([]byte, dynHeaderLen)
		b[c.off] = 1
		if _, err := binary.Decode(b, binary.BigEndian, c.v); err != nil {
			t.Fatal(err)
		}
		if reflect.ValueOf(c.v).Elem().FieldByName(c.field).Uint() != 1 {
			t.Errorf("%T: %s does not end at byte %d", c.v, c.field, c.off)
		}
	}
}
