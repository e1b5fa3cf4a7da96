package partition

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
	"unicode/utf16"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Limits of an entry array: the specification gives none; gdisk stops at 65,536 entries, Linux at 256 partitions.
const (
	maxGPTBytes = 4 << 20
	maxGPTEntry = 4096
)

// gpt is one header with its entries, as far as they could be read.
type gpt struct {
	gptHeader
	ss      int64
	lba     int64 // where it was found
	size    int64 // of the disk
	entries []byte
	err     error // what is wrong with it; nil: both checksums are right
	other   *gpt  // the other one of the pair, if it was found
	backup  bool  // this is the one at the end
}

func (g *gpt) sound() bool { return g != nil && g.err == nil }

// usable says that it can be read, although a checksum is wrong.
func (g *gpt) usable() bool { return g != nil && g.entries != nil }

// findGPT looks for both headers with each sector size, and gives the one to use, or nil. One with a wrong checksum is
// used only when there is no sound one, and an MBR announces it or names nothing else.
func findGPT(d formats.Disk, sectors []int64, m *mbr) *gpt {
	var doubtful *gpt
	for _, ss := range sectors {
		last := d.Size()/ss - 1
		if last < 1 {
			continue
		}
		p := loadGPT(d, ss, 1)
		var b *gpt
		if p != nil && p.AltLBA > 1 && p.AltLBA < uint64(last) {
			b = loadGPT(d, ss, int64(p.AltLBA)) // the disk grew
		}
		if b == nil && last > 1 {
			b = loadGPT(d, ss, last)
		}
		if b != nil {
			b.backup = true
		}
		if p != nil {
			p.other = b
		}
		switch {
		case p.sound():
			return p
		case b.sound():
			b.other = p
			return b
		case doubtful == nil && p.usable():
			doubtful = p
		case doubtful == nil && b.usable():
			b.other = p
			doubtful = b
		}
	}
	if m.protective() || m.empty() {
		return doubtful
	}
	return nil
}

// loadGPT reads the header at lba and its entries; nil where there is no header.
func loadGPT(d formats.Disk, ss, lba int64) *gpt {
	if lba >= d.Size()/ss {
		return nil
	}
	buf := make([]byte, ss)
	what := "gpt header"
	if lba != 1 {
		what = "backup gpt header"
	}
	if err := ondisk.ReadFull(d, buf, lba*ss, what); err != nil {
		return nil // the caller tells that there is none
	}
	g := &gpt{ss: ss, lba: lba, size: d.Size()}
	if _, err := binary.Decode(buf, binary.LittleEndian, &g.gptHeader); err != nil || string(g.Magic[:]) != gptMagic {
		return nil
	}
	at := lba * ss
	switch {
	case g.Size < gptHeaderSize || int64(g.Size) > ss:
		g.err = ondisk.Corrupt(what, "header size", at+12, g.Size)
	case headerCRC(buf[:g.Size]) != g.CRC:
		g.err = ondisk.Corrupt(what, "checksum", at+16, fmt.Sprintf("%#x", g.CRC))
	case g.MyLBA != uint64(lba):
		g.err = ondisk.Corrupt(what, "own sector", at+24, g.MyLBA)
	}
	if err := g.readEntries(d, what); err != nil && g.err == nil {
		g.err = err
	}
	return g
}

func headerCRC(b []byte) uint32 {
	crc := crc32.ChecksumIEEE(b[:16])
	crc = crc32.Update(crc, crc32.IEEETable, make([]byte, 4))
	return crc32.Update(crc, crc32.IEEETable, b[20:])
}

// readEntries reads the entry array. Entries stay nil where the header can't be right about them.
func (g *gpt) readEntries(d formats.Disk, what string) error {
	at := g.lba * g.ss
	if n := g.EntrySize; n < gptEntrySize || n > maxGPTEntry || n&(n-1) != 0 {
		return ondisk.Corrupt(what, "entry size", at+84, n)
	}
	n := int64(g.Count) * int64(g.EntrySize)
	if n == 0 || n > maxGPTBytes {
		return ondisk.Unsupported(what, "number of entries", at+80, g.Count)
	}
	if g.EntriesLBA < 2 || g.EntriesLBA > uint64(g.size/g.ss) || n > g.size-int64(g.EntriesLBA)*g.ss {
		return ondisk.Corrupt(what, "sector of the entries", at+72, g.EntriesLBA)
	}
	b, err := ondisk.Read(d, int64(g.EntriesLBA)*g.ss, n, "gpt entries")
	if err != nil {
		return err
	}
	g.entries = b
	if crc := crc32.ChecksumIEEE(b); crc != g.EntriesCRC {
		return ondisk.Corrupt(what, "checksum of the entries", at+88, fmt.Sprintf("%#x", g.EntriesCRC))
	}
	return nil
}

// own adds the sectors of a header and its entries.
func (g *gpt) own(t *table) {
	name := "GPT"
	if g.backup {
		name = "backup GPT"
	}
	t.own(g.lba*g.ss, g.ss, name+" header")
	if g.entries != nil {
		n := (int64(len(g.entries)) + g.ss - 1) / g.ss * g.ss
		t.own(int64(g.EntriesLBA)*g.ss, n, name+" entries")
	}
}

func (g *gpt) table(d formats.Disk, m *mbr) *table {
	t := &table{scheme: "gpt", id: guid(g.DiskGUID[:])}
	if m != nil {
		t.entries = append(t.entries, entry{Volume: Volume{Kind: KindTable, Scheme: "mbr", Size: g.ss, Type: "protective MBR"}})
		m.hybrid(t)
	} else {
		t.resolved("no protective MBR announces the GUID partition table")
	}
	g.own(t)
	if g.other != nil {
		g.other.own(t)
	}
	g.doubts(t)
	var more int
	for i := 0; i+gptEntrySize <= len(g.entries); i += int(g.EntrySize) {
		var e gptEntry
		if _, err := binary.Decode(g.entries[i:], le, &e); err != nil || e.Type == [16]byte{} {
			continue
		}
		number := i/int(g.EntrySize) + 1
		if e.First > e.Last || e.First == 0 {
			t.problem(ondisk.Corrupt("gpt entries", fmt.Sprintf("p%d: first sector %d, last", number, e.First), int64(g.EntriesLBA)*g.ss+int64(i)+32, e.Last))
			continue
		}
		if len(t.entries) >= maxPartitions {
			more++
			continue
		}
		t.entries = append(t.entries, g.partition(e, number))
	}
	if more > 0 {
		t.problem(ondisk.Unsupported("gpt entries", fmt.Sprintf("partitions above %d, not listed:", maxPartitions), -1, more))
	}
	return t
}

func (g *gpt) partition(e gptEntry, number int) entry {
	v := Volume{
		Kind: KindPartition, Scheme: "gpt", Number: number, Start: g.bytes(e.First), TypeID: guid(e.Type[:]), UUID: guid(e.GUID[:]),
		Label: utf16Name(e.Name[:]), Attrs: gptAttrs(e.Attrs),
	}
	v.Size = g.bytes(e.Last - e.First + 1) // of at least one sector, see table
	v.Type = gptTypes[v.TypeID]
	if name := gptPools[v.TypeID]; name != "" {
		v.Problems = append(v.Problems, ondisk.Unsupported(name, "", -1, nil))
	}
	if e.First < g.FirstUsable || e.Last > g.LastUsable {
		v.Notes = append(v.Notes, fmt.Sprintf("it lies outside the sectors that the table calls usable, %d to %d", g.FirstUsable, g.LastUsable))
	}
	return entry{Volume: v}
}

// gptPools names what spreads volumes over partitions of a type, and is not read.
var gptPools = map[string]string{
	"af9b60a0-1431-4f62-bc68-3311714a69ad": "Windows dynamic disk",
	"e75caf8f-f680-4cee-afa3-b001e56efc2d": "Windows Storage Spaces",
}

// bytes turns a number of sectors into bytes; what an int64 can't hold lies past the end of every disk.
func (g *gpt) bytes(sectors uint64) int64 {
	if sectors == 0 || sectors > math.MaxInt64/uint64(g.ss) {
		return math.MaxInt64
	}
	return int64(sectors) * g.ss
}

// doubts says what is odd about the pair of headers.
func (g *gpt) doubts(t *table) {
	last := uint64(g.size/g.ss) - 1
	switch {
	case g.err != nil:
		t.problem(g.err)
		if g.other != nil && g.other.err != nil {
			t.problem(g.other.err)
		}
	case g.backup && g.other != nil:
		t.resolved("the backup GPT at sector %d is used: %v", g.lba, g.other.err)
	case g.backup:
		t.resolved("the backup GPT at sector %d is used: there is no primary one", g.lba)
	case g.other == nil && g.AltLBA > last:
		t.resolved("the disk ends at sector %d, before its backup GPT at %d: the image was cut", last, g.AltLBA)
	case g.other == nil:
		t.resolved("there is no backup GPT at sector %d", g.AltLBA)
	case g.other.err != nil:
		t.resolved("the backup GPT is not usable: %v", g.other.err)
	case g.other.EntriesCRC != g.EntriesCRC || g.other.DiskGUID != g.DiskGUID:
		t.resolved("the backup GPT at sector %d differs from the primary one, which is used", g.other.lba)
	}
	if g.err == nil && !g.backup && g.AltLBA < last {
		t.resolved("the disk grew: its backup GPT is at sector %d, the last sector is %d", g.AltLBA, last)
	}
}

// hybrid notes what else a protective MBR names.
func (m *mbr) hybrid(t *table) {
	var names []string
	for i, e := range m.Entries {
		if e.Count != 0 && e.Type != typeGPT {
			names = append(names, fmt.Sprintf("%d (type 0x%02x, sectors %d+%d)", i+1, e.Type, e.Start, e.Count))
		}
	}
	if names != nil {
		t.note("hybrid MBR: it names partitions too, which are not used: %s", strings.Join(names, ", "))
	}
}

// guid renders a GUID, whose first three fields are little-endian.
func guid(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}

func utf16Name(u []uint16) string {
	for i, c := range u {
		if c == 0 {
			u = u[:i]
			break
		}
	}
	return string(utf16.Decode(u))
}

// gptAttrs names attribute bits as sfdisk does.
func gptAttrs(a uint64) []string {
	var s []string
	for _, x := range []struct {
		bit  uint64
		name string
	}{{gptRequired, "RequiredPartition"}, {gptNoBlockIO, "NoBlockIOProtocol"}, {gptLegacyBoot, "LegacyBIOSBootable"}} {
		if a&x.bit != 0 {
			s = append(s, x.name)
		}
	}
	for bit := 3; bit < 64; bit++ {
		if a>>bit&1 != 0 {
			s = append(s, fmt.Sprintf("GUID:%d", bit))
		}
	}
	return s
}
