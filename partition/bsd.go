package partition

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// bsdTypes names file-system types of a BSD label; FreeBSD's, NetBSD's and OpenBSD's lists agree in these.
var bsdTypes = map[uint8]string{
	1: "swap", 5: "System V", 7: "4.2BSD FFS", 8: "MS-DOS", 9: "4.4LFS", 10: "unknown", 11: "HPFS", 12: "ISO 9660", 13: "boot",
	14: "vinum", 15: "RAID", 17: "ext2", 18: "NTFS", 20: "ccd", 21: "JFS", 27: "ZFS",
}

// readSlices reads the BSD label in an MBR partition of a BSD's type. Linux numbers what it finds on behind the logical
// partitions.
func readSlices(d formats.Disk, e *entry, next int, ss int64) int {
	if e.Number > 4 {
		return next
	}
	switch e.TypeID {
	case fmt.Sprintf("0x%02x", typeFreeBSD), fmt.Sprintf("0x%02x", typeOpenBSD), fmt.Sprintf("0x%02x", typeNetBSD):
	default:
		return next
	}
	if e.Start > d.Size()-2*mbrSize {
		return next
	}
	size := min(e.Size, d.Size()-e.Start)
	t, err := readBSD(formats.Section(d, e.Start, size), e.Start, ss, e.TypeID == fmt.Sprintf("0x%02x", typeFreeBSD), next)
	if err != nil {
		if !errors.Is(err, ondisk.ErrNot) {
			e.Problems = append(e.Problems, err)
		}
		return next
	}
	e.sub = t
	for _, x := range t.entries {
		if x.Kind == KindPartition {
			next++
		}
	}
	return next
}

// readBSDDisk reads a BSD label on a disk without an MBR; partition a is number 1.
func readBSDDisk(d formats.Disk, _ []byte) (*table, error) {
	return readBSD(d, 0, 512, false, 0)
}

// readBSD reads the label of the slice d, which lies at base of its disk. Offsets count from the start of the disk; in
// FreeBSD's labels from that of the slice if partition c starts at 0. Numbers go on from next, or are the letters'
// places in the alphabet when next is 0.
func readBSD(d formats.Disk, base, ss int64, relative bool, next int) (*table, error) {
	const what = "BSD label"
	if d.Size() < bsdOff+mbrSize {
		return nil, ondisk.ErrNot
	}
	b, err := ondisk.Read(d, bsdOff, mbrSize, what)
	if err != nil {
		return nil, err
	}
	var h bsdHead
	n, err := binary.Decode(b, binary.LittleEndian, &h)
	if err != nil || h.Magic != bsdMagic || h.Magic2 != bsdMagic {
		return nil, ondisk.ErrNot
	}
	count := min(int(h.Count), (len(b)-n)/binary.Size(bsdEntry{}))
	parts := make([]bsdEntry, count)
	m, err := binary.Decode(b[n:], binary.LittleEndian, parts)
	if err != nil {
		return nil, err
	}
	t := &table{scheme: "bsd"}
	t.own(bsdOff, mbrSize, what)
	if count < int(h.Count) {
		t.problem(ondisk.Corrupt(what, "number of partitions", base+bsdOff+138, h.Count))
	}
	var sum uint16
	for i := 0; i < n+m; i += 2 {
		sum ^= binary.LittleEndian.Uint16(b[i:])
	}
	if sum != 0 && count == int(h.Count) {
		t.problem(ondisk.Corrupt(what, "checksum", base+bsdOff+136, fmt.Sprintf("%#x", h.Checksum)))
	}
	relative = relative && count > bsdRaw && parts[bsdRaw].Offset == 0
	for i, p := range parts {
		start, size := int64(p.Offset), int64(p.Size)
		if h.Version == 1 {
			start, size = start|int64(p.OffsetH)<<32, size|int64(p.SizeH)<<32
		}
		start, size = start*ss, size*ss
		if !relative {
			start -= base
		}
		if p.FSType == bsdUnused || size == 0 || start == 0 && size >= d.Size() && i == bsdRaw {
			continue
		}
		letter := string(rune('a' + i))
		if start < 0 || start >= d.Size() {
			t.note("partition %s lies outside the slice, at byte %d of the disk", letter, start+base)
			continue
		}
		number := i + 1
		if next > 0 {
			number = next
			next++
		}
		t.entries = append(t.entries, entry{Volume: Volume{
			Kind: KindPartition, Scheme: "bsd", Number: number, Start: start, Size: size, Label: letter,
			TypeID: fmt.Sprint(p.FSType), Type: bsdTypes[p.FSType],
		}})
	}
	return t, nil
}
