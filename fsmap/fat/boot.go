package fat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"vmkit/formats/ondisk"
	"vmkit/fsmap/internal/dos"
)

// boot is what the boot sector says, checked.
type boot struct {
	width       int // of a table entry: 12, 16, 32
	sector      int64
	shift       uint  // log2 of the bytes in a cluster
	table       int64 // position of the first table
	tables      int64
	tableLen    int64 // bytes in one
	root        int64 // position of the root directory, FAT12/16
	rootLen     int64
	rootCluster uint32 // FAT32
	data        int64
	last        uint32
	size        int64
	info        int64 // position of FSInfo, or 0
	active      int64 // table that counts
	mirrored    bool
	version     uint16
	ext         extended16
}

// parse reads a boot sector, which head begins with. An error that wraps ErrNot says that it is no FAT's.
func parse(r io.ReaderAt, head []byte) (*boot, error) {
	not := func(field string, off int64, got any) (*boot, error) {
		return nil, &ondisk.Error{What: "fat boot sector", Field: field, Off: off, Got: got, Err: ondisk.ErrNot}
	}
	if len(head) < bootLen {
		return not("length", -1, len(head))
	}
	var s bootSector
	if _, err := binary.Decode(head, binary.LittleEndian, &s); err != nil {
		return nil, err
	}
	// NTFS and exFAT leave these fields zero, JFS and HPFS fill them.
	switch sig := string(head[54:62]); {
	case sig == "JFS     ", sig == "HPFS    ", string(s.OEM[:]) == "NTFS    ", string(s.OEM[:]) == "EXFAT   ":
		return not("type", 54, sig)
	case s.SectorSize < 512 || s.SectorSize > 4096 || bits.OnesCount16(s.SectorSize) != 1:
		return not("bytes in a sector", 11, s.SectorSize)
	case bits.OnesCount8(s.SectorsPerCluster) != 1:
		return not("sectors in a cluster", 13, s.SectorsPerCluster)
	case s.Reserved == 0:
		return not("reserved sectors", 14, s.Reserved)
	case s.FATs == 0:
		return not("tables", 16, s.FATs)
	case s.Media != 0xF0 && s.Media < 0xF8:
		return not("media", 21, s.Media)
	}
	b := &boot{sector: int64(s.SectorSize), tables: int64(s.FATs), mirrored: true}
	b.shift = uint(bits.TrailingZeros16(s.SectorSize) + bits.TrailingZeros8(s.SectorsPerCluster))
	fatSectors := int64(s.FATSectors16)
	sectors := int64(s.Sectors16)
	if sectors == 0 {
		sectors = int64(s.Sectors32)
	}
	var e extended32
	fat32 := fatSectors == 0
	if fat32 {
		if _, err := binary.Decode(head[bootBase:], binary.LittleEndian, &e); err != nil {
			return nil, err
		}
		fatSectors, b.ext = int64(e.FATSectors), e.extended16
	} else if _, err := binary.Decode(head[bootBase:], binary.LittleEndian, &b.ext); err != nil {
		return nil, err
	}
	b.table = int64(s.Reserved) * b.sector
	b.tableLen = fatSectors * b.sector
	b.root = b.table + b.tables*b.tableLen
	b.rootLen = int64(s.RootEntries) * dos.SlotLen
	b.data = b.root + (b.rootLen+b.sector-1)&^(b.sector-1)
	b.size = sectors * b.sector
	clusters := (b.size - b.data) >> b.shift
	switch {
	case fatSectors == 0:
		return not("sectors in a table", 22, 0)
	case clusters <= 0:
		return not("sectors", 32, sectors)
	case fat32:
		b.width = 32
		clusters = min(clusters, maxClusters32)
	case b.rootLen == 0:
		return not("root directory entries", 17, 0)
	case clusters > maxClusters16:
		return nil, ondisk.Corrupt("fat boot sector", "clusters, too many for FAT16:", 32, clusters)
	case clusters > maxClusters12:
		b.width = 16
	default:
		b.width = 12
	}
	// A table that is too short for the data area ends it.
	clusters = min(clusters, b.tableLen*8/int64(b.width)-dos.FirstCluster)
	if clusters <= 0 {
		return not("sectors in a table", 22, fatSectors)
	}
	b.last = uint32(clusters) + dos.FirstCluster - 1
	// Linux insists on neither jump nor signature: Atari's volumes (mkfs.fat -A) have none. The table then begins with
	// the media byte.
	jump := s.Jump[0] == 0xEB || s.Jump[0] == 0xE9
	if signed := head[magicAt] == 0x55 && head[magicAt+1] == 0xAA; !jump && !signed {
		first, err := ondisk.Read(r, b.table, 4, "fat")
		if err != nil {
			return not("jump and signature", 0, nil)
		}
		if media := dos.Decode(first, b.bits(), 0); media != 0xFFFFFF00&(1<<b.bits()-1)|uint32(s.Media) {
			return not("first entry of the table", b.table, fmt.Sprintf("%#x", media))
		}
	}
	if fat32 {
		b.rootCluster, b.version = e.RootCluster, e.Version
		if e.InfoSector != 0 && e.InfoSector != 0xFFFF {
			b.info = int64(e.InfoSector) * b.sector
		}
		if e.Flags&flagsNoMirror != 0 {
			b.mirrored, b.active = false, int64(e.Flags&flagsActive)
			if b.active >= b.tables {
				return nil, ondisk.Corrupt("fat boot sector", fmt.Sprintf("active table, of %d:", b.tables), 40, b.active)
			}
		}
		if b.rootCluster < dos.FirstCluster || b.rootCluster > b.last {
			return nil, ondisk.Corrupt("fat boot sector", "first cluster of the root directory", 44, b.rootCluster)
		}
	}
	return b, nil
}

// bits gives how many bits of a table entry count.
func (b *boot) bits() int { return min(b.width, 28) }

// probe tells FAT from others by its boot sector.
func probe(r io.ReaderAt, _ int64, head []byte) (string, bool) {
	_, err := parse(r, head)
	return "vfat", !errors.Is(err, ondisk.ErrNot)
}

// dirty says why the volume was not left in order, or nothing.
func (b *boot) dirty(entry1 uint32) []string {
	var notes []string
	if b.ext.State&stateDirty != 0 {
		notes = append(notes, "it was not unmounted cleanly: the boot sector's dirty bit is set")
	}
	if b.width == 12 {
		return notes
	}
	top := uint32(1) << (b.bits() - 1)
	if entry1&top == 0 {
		notes = append(notes, "it was not unmounted cleanly: the table's clean bit is not set")
	}
	if entry1&(top>>1) == 0 {
		notes = append(notes, "errors were met on its medium: the table's error bit is set")
	}
	return notes
}
