package vdi

import (
	"encoding/binary"
	"reflect"
	"testing"
)

func TestLayout(t *testing.T) {
	for name, off := range map[string]int{
		"Signature": 64, "Version": 68, "HeaderSize": 72, "Type": 76, "Flags": 80, "BlocksOffset": 340, "DataOffset": 344,
		"SectorSize": 360, "DiskSize": 368, "BlockSize": 376, "BlockExtra": 380, "Blocks": 384, "BlocksAllocated": 388,
	} {
		var h header
		b := make([]byte, sectorSize)
		b[off] = 1
		if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
			t.Fatal(err)
		}
		if reflect.ValueOf(h).FieldByName(name).Uint() != 1 {
			t.Errorf("%s is not at byte %d", name, off)
		}
	}
	var h header
	b := make([]byte, sectorSize)
	b[392], b[408], b[424], b[440] = 1, 2, 3, 4
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
		t.Fatal(err)
	}
	if h.UUID[0] != 1 || h.ModifyUUID[0] != 2 || h.ParentUUID[0] != 3 || h.ParentModify[0] != 4 {
		t.Errorf("UUIDs %v", h)
	}
}
