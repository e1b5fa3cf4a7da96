package partition

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// mbr is a sector 0 that ends in 55 AA and is not another system's.
type mbr struct{ mbrSector }

func parseMBR(head []byte) *mbr {
	m := new(mbr)
	if _, err := binary.Decode(head, binary.LittleEndian, &m.mbrSector); err != nil || m.Magic != mbrMagic {
		return nil
	}
	if binary.BigEndian.Uint32(head) == aixMagic {
		return nil
	}
	return m
}

// protective says that an entry announces a GPT.
func (m *mbr) protective() bool {
	if m == nil {
		return false
	}
	for _, e := range m.Entries {
		if e.Type == typeGPT && e.Count != 0 {
			return true
		}
	}
	return false
}

// empty says that it names no partition; so does a sector that is no MBR.
func (m *mbr) empty() bool {
	if m == nil {
		return true
	}
	for _, e := range m.Entries {
		if e.Count != 0 {
			return false
		}
	}
	return true
}

// sane tells a table from boot code and text: the boot flags are 0 or 80, and a partition starts on the disk. An empty
// table is one only if its flags are in order.
func (m *mbr) sane(size int64) bool {
	starts := m.empty()
	for _, e := range m.Entries {
		if e.Boot != 0 && e.Boot != mbrActive {
			return false
		}
		starts = starts || e.Count != 0 && int64(e.Start) < size/512
	}
	return starts
}

func extended(typ uint8) bool {
	return typ == typeExtended || typ == typeExtLBA || typ == typeExtLinux
}

// partition makes the volume of an entry whose positions count from base, a sector number.
func (m *mbr) partition(e mbrEntry, number int, base, ss int64) entry {
	v := Volume{
		Kind: KindPartition, Scheme: "mbr", Number: number, Start: (base + int64(e.Start)) * ss, Size: int64(e.Count) * ss,
		TypeID: fmt.Sprintf("0x%02x", e.Type), Type: mbrTypes[e.Type],
	}
	if m.DiskID != 0 {
		v.UUID = fmt.Sprintf("%08x-%02x", m.DiskID, number)
	}
	if e.Boot == mbrActive {
		v.Attrs = []string{"active"}
	}
	return entry{Volume: v}
}

// table reads the whole of it: primaries, the logical partitions of each extended one, and BSD labels in slices. g is
// a GPT that does not count, or nil.
func (m *mbr) table(d formats.Disk, sectors []int64, g *gpt) *table {
	t := &table{scheme: "mbr"}
	ss := m.sectorSize(d, sectors)
	if ss != sectors[0] {
		t.note("positions are taken to count sectors of %d bytes: so the partitions start where something is recognised", ss)
	}
	if m.DiskID != 0 {
		t.id = fmt.Sprintf("%08x", m.DiskID)
	}
	t.own(0, ss, "MBR")
	if g != nil {
		t.note("there is a GUID partition table too; no protective entry of the MBR announces it, so it is not used")
	} else if m.protective() {
		t.problem(ondisk.Corrupt("gpt", "the MBR announces a GUID partition table, and there is no usable one", -1, nil))
	}
	for i, e := range m.Entries {
		if e.Count != 0 && !extended(e.Type) && e.Type != typeGPT {
			t.entries = append(t.entries, m.partition(e, i+1, 0, ss))
		}
		if b, err := ondisk.Read(d, ldmPrivOff, int64(len(ldmMagic)), "sector 6"); e.Type == typeLDM && err == nil && string(b) == ldmMagic {
			t.problem(ondisk.Unsupported("Windows dynamic disk", "", -1, nil))
		}
	}
	next := 5
	seen := make(map[int64]bool)
	for i, e := range m.Entries {
		if e.Count != 0 && extended(e.Type) {
			next = m.logical(d, t, e, i+1, next, ss, seen)
		}
	}
	for i := range t.entries {
		if e := &t.entries[i]; e.Kind == KindPartition {
			next = readSlices(d, e, next, ss)
		}
	}
	return t
}

// sectorSize chooses what positions count in, as the table does not say: the likeliest, unless something is recognised
// where partitions start by another size only.
func (m *mbr) sectorSize(d formats.Disk, sectors []int64) int64 {
	if len(sectors) < 2 || m.hits(d, sectors[1]) == 0 || m.hits(d, sectors[0]) > 0 {
		return sectors[0]
	}
	return sectors[1]
}

// hits counts the partitions in which something is recognised; 0 where one of them would reach past the end.
func (m *mbr) hits(d formats.Disk, ss int64) int {
	n := 0
	for _, e := range m.Entries {
		if e.Count == 0 {
			continue
		}
		start, size := int64(e.Start)*ss, int64(e.Count)*ss
		if !ondisk.Within(start, size, d.Size()) {
			return 0
		}
		if _, ok := Recognise(formats.Section(d, start, size), size); ok && !extended(e.Type) {
			n++
		}
	}
	return n
}

// logical follows the chain of extended boot records in primary p, as Linux does: each holds up to two partitions that
// count, relative to itself, and the place of the next record, relative to the extended partition. Numbers follow the
// chain, not the disk. It gives the next number.
func (m *mbr) logical(d formats.Disk, t *table, ext mbrEntry, p, next int, ss int64, seen map[int64]bool) int {
	first, at := int64(ext.Start), int64(ext.Start)
	end := int64(ext.Count) // of the link's own entry, for the third and fourth slot
	buf := make([]byte, mbrSize)
	for {
		what := fmt.Sprintf("extended boot record of p%d", p)
		if seen[at] {
			t.problem(ondisk.Corrupt(what, "the chain comes back to sector", -1, at))
			return next
		}
		seen[at] = true
		if err := ondisk.ReadFull(d, buf, at*ss, what); err != nil {
			t.problem(err)
			return next
		}
		var s mbrSector
		if _, err := binary.Decode(buf, binary.LittleEndian, &s); err != nil || s.Magic != mbrMagic {
			t.problem(ondisk.Corrupt(what, "magic", at*ss+mbrSize-2, s.Magic))
			return next
		}
		t.own(at*ss, ss, fmt.Sprintf("EBR of p%d", p))
		link := mbrEntry{}
		for i, e := range s.Entries {
			switch {
			case e.Count == 0:
			case extended(e.Type):
				if link.Count == 0 {
					link = e
				}
			case i >= 2 && (int64(e.Start)+int64(e.Count) > end || at+int64(e.Start) < first || at+int64(e.Start)+int64(e.Count) > first+int64(ext.Count)):
				// DR-DOS leaves rubbish in the last two slots; Linux takes what fits into the extended partition.
			case next-5 >= maxPartitions:
				t.problem(ondisk.Unsupported(what, "number of logical partitions: only the first are listed", -1, maxPartitions))
				return next
			default:
				t.entries = append(t.entries, m.partition(e, next, at, ss))
				next++
			}
		}
		if link.Count == 0 {
			return next
		}
		if len(seen) > maxPartitions {
			t.problem(ondisk.Unsupported(what, "length of the chain", -1, len(seen)))
			return next
		}
		at, end = first+int64(link.Start), int64(link.Count)
	}
}
