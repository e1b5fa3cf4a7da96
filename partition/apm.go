package partition

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// readAPM reads an Apple partition map: block 0 says how long a block is, the entries lie one a block behind it.
// Compact discs state 2048 and may have their entries 512 bytes apart all the same.
func readAPM(d formats.Disk, head []byte) (*table, error) {
	be := binary.BigEndian
	if be.Uint16(head) != apmDriverMagic {
		return nil, ondisk.ErrNot
	}
	block := int64(be.Uint16(head[2:]))
	if block < 512 || block > 4096 || block&(block-1) != 0 || be.Uint16(at(head, block)) != apmMagic {
		block = 512
		if be.Uint16(at(head, block)) != apmMagic {
			return nil, ondisk.ErrNot
		}
	}
	t := &table{scheme: "apm"}
	t.own(0, block, "driver descriptor")
	buf := make([]byte, binary.Size(apmEntry{}))
	count := int64(1)
	for i := int64(1); i <= count; i++ {
		if err := ondisk.ReadFull(d, buf, i*block, "Apple partition map"); err != nil {
			t.problem(err)
			break
		}
		var e apmEntry
		if _, err := binary.Decode(buf, be, &e); err != nil || e.Magic != apmMagic {
			t.problem(ondisk.Corrupt("Apple partition map", "magic", i*block, fmt.Sprintf("%#x", e.Magic)))
			break
		}
		if i == 1 {
			count = int64(e.MapBlocks)
			if count < 1 || count > apmMax {
				t.problem(ondisk.Corrupt("Apple partition map", "number of entries", i*block+4, count))
				count = min(max(count, 1), apmMax)
			}
		}
		typ := text(e.Type[:])
		v := Volume{
			Kind: KindPartition, Scheme: "apm", Number: int(i), Start: int64(e.Start) * block, Size: int64(e.Count) * block,
			TypeID: typ, Type: typ, Label: text(e.Name[:]),
		}
		switch typ {
		case "Apple_Free", "Apple_Void", "Apple_Scratch", "Apple_Extra":
			continue // a gap
		case "Apple_partition_map":
			v = Volume{Kind: KindTable, Scheme: "apm", Start: v.Start, Size: v.Size, Type: typ}
		}
		if v.Size > 0 {
			t.entries = append(t.entries, entry{Volume: v})
		}
	}
	return t, nil
}

// at gives two bytes at off, or zeros where head is too short.
func at(head []byte, off int64) []byte {
	if off+2 > int64(len(head)) {
		return []byte{0, 0}
	}
	return head[off:]
}

// text is a string that ends at the first NUL.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(bytes.ToValidUTF8(b, []byte("_")))
}
