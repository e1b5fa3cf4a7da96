package ext4

import (
	"fmt"

	"vmkit/formats/ondisk"
)

// maxKept is how many inode table positions are kept in memory: 2 MiB of them, for 32 TiB of 4 KiB blocks. Further ones
// are read when they are needed.
const maxKept = 1 << 18

// descBlock gives the block that holds the n-th block of group descriptors, as the superblock in use finds it
// ("Meta Block Groups").
func (g *geometry) descBlock(n uint64) uint64 {
	if !g.hasInc(incompatMetaBG) || n < uint64(g.sb.FirstMetaBG) {
		return uint64(g.off)>>g.shift + 1 + n
	}
	return g.metaDescBlock(n * uint64(g.descsPerBlock()))
}

func (g *geometry) descsPerBlock() int { return int(g.blockSize) / g.descSize }

// metaDescBlock gives the block of descriptors that group n holds with meta_bg.
func (g *geometry) metaDescBlock(n uint64) uint64 {
	b := g.groupStart(n)
	if g.holdsSuper(n) {
		b++
	}
	if n == 0 && g.shift == 10 && g.first == 0 {
		b++ // the boot block comes first
	}
	return b
}

// descCopies gives the blocks that hold copies of the n-th block of group descriptors.
func (g *geometry) descCopies(n uint64) []uint64 {
	var list []uint64
	if g.hasInc(incompatMetaBG) && n >= uint64(g.sb.FirstMetaBG) {
		per := uint64(g.descsPerBlock())
		for _, c := range []uint64{n*per + 1, n*per + per - 1} {
			if c < g.groups {
				list = append(list, g.metaDescBlock(c))
			}
		}
		return list
	}
	for _, c := range []uint64{0, 1, 3, 5, 7, 9, 25, 27, 49, uint64(g.sb.BackupBGs[0]), uint64(g.sb.BackupBGs[1])} {
		if c < g.groups && g.holdsSuper(c) {
			b := g.groupStart(c) + 1 + n
			if c == 0 && g.first == 0 && g.shift == 10 {
				b++
			}
			list = append(list, b)
		}
	}
	return list
}

// readGroup reads a group's descriptor, or a copy where that one is damaged. It gives where the group's inodes lie, or
// -1, and how many of its blocks (clusters) are free.
func (f *fsys) readGroup(n uint64) (table int64, free uint64, note string, err error) {
	block, at := n/uint64(f.descsPerBlock()), n%uint64(f.descsPerBlock())*uint64(f.descSize)
	table, free, err = f.descriptor(n, int64(f.descBlock(block)<<f.shift)+int64(at))
	if err == nil {
		return table, free, "", nil
	}
	for _, b := range f.descCopies(block) {
		t, _, err2 := f.descriptor(n, int64(b<<f.shift)+int64(at))
		if err2 == nil {
			return t, free, fmt.Sprintf("%v; its copy in block %d is used", err, b), nil
		}
		if table < 0 && t >= 0 {
			table = t
		}
	}
	return table, free, "", err
}

// descriptor reads the descriptor of group n at a position of the volume. With a wrong checksum the table comes too,
// where it may be true.
func (f *fsys) descriptor(n uint64, off int64) (table int64, free uint64, err error) {
	what := func() string { return fmt.Sprintf("descriptor of group %d", n) }
	if !ondisk.Within(off, int64(f.descSize), f.size) {
		return -1, 0, ondisk.Truncated(what(), "", off, nil)
	}
	d, err := f.read(off, f.descSize)
	if err != nil {
		return -1, 0, fmt.Errorf("%s: %w", what(), err)
	}
	block := uint64(le.Uint32(d[gdTableLo:]))
	free = uint64(le.Uint16(d[gdFreeLo:]))
	if f.descSize >= gdLen64 {
		block |= uint64(le.Uint32(d[gdTableHi:])) << 32
		free |= uint64(le.Uint16(d[gdFreeHi:])) << 16
	}
	length := (uint64(f.perTable)*uint64(f.inodeSize) + uint64(f.blockSize) - 1) >> f.shift
	if block < f.first || block >= f.blocks || f.blocks-block < length {
		return -1, free, ondisk.Corrupt(what(), "inode table", off+gdTableLo, block)
	}
	if want, got := f.descChecksum(n, d), le.Uint16(d[gdChecksum:]); (f.csum || f.gdtCsum) && got != want {
		err = ondisk.Corrupt(what(), "checksum", off+gdChecksum, fmt.Sprintf("%#04x", got))
	}
	return int64(block << f.shift), free, err
}

func (f *fsys) descChecksum(n uint64, d []byte) uint16 {
	if f.csum {
		return uint16(crc32cExcept(crc32cUint(f.seed, uint32(n)), d, gdChecksum, gdChecksum+2))
	}
	var no [4]byte
	le.PutUint32(no[:], uint32(n))
	crc := crc16(crc16(^uint16(0), f.sb.UUID[:]), no[:])
	return crc16(crc16(crc, d[:gdChecksum]), d[gdChecksum+2:])
}

// loadGroups reads where the inode tables lie, and counts the blocks in use.
func (f *fsys) loadGroups() {
	const shown, most = 8, 1024 // of what is damaged, are told and looked at
	f.tables, f.groupNotes, f.groupProblems = f.tables[:0], nil, nil
	var free uint64
	var lost, noted int
	for n := range min(f.groups, maxKept) {
		table, k, note, err := f.readGroup(n)
		f.tables = append(f.tables, table)
		free += k
		if note != "" {
			if noted++; noted <= shown {
				f.groupNotes = append(f.groupNotes, note)
			}
		}
		if err != nil {
			if lost++; lost <= shown {
				f.groupProblems = append(f.groupProblems, err)
			}
		}
		if lost+noted > most {
			break
		}
	}
	if noted > shown {
		f.groupNotes = append(f.groupNotes, fmt.Sprintf("copies are used for %d more group descriptors", noted-shown))
	}
	if lost > shown {
		f.groupProblems = append(f.groupProblems, ondisk.Corrupt("group descriptors", "damaged ones besides", -1, lost-shown))
	}
	if uint64(len(f.tables)) < f.groups {
		free = uint64(f.sb.FreeBlocksHi)<<32 | uint64(f.sb.FreeBlocksLo)
	} else if f.hasRO(roCompatBigalloc) {
		free <<= f.sb.LogClusterSize - f.sb.LogBlockSize
	}
	f.free = free
}

// inodeOff gives the position of an inode in the volume. The number is 1 or more, and at most the last one.
func (f *fsys) inodeOff(ino uint32) (int64, error) {
	n := uint64(ino-1) / uint64(f.perTable)
	table := int64(-1)
	var err error
	if n < uint64(len(f.tables)) {
		table = f.tables[n]
	} else {
		table, _, _, err = f.readGroup(n)
	}
	if table < 0 {
		if err == nil {
			err = ondisk.Corrupt(fmt.Sprintf("descriptor of group %d", n), "inode table", -1, nil)
		}
		return 0, err
	}
	return table + int64(uint64(ino-1)%uint64(f.perTable))*int64(f.inodeSize), nil
}
