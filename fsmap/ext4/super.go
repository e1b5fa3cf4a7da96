package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"

	"vmkit/formats/ondisk"
)

// geometry is what a superblock says of where things lie. Its numbers are checked against one another.
type geometry struct {
	sb        superblock
	off       int64 // of this superblock in the volume
	shift     uint  // log2 of the block size
	blockSize int64
	blocks    uint64
	first     uint64 // block
	perGroup  uint64 // blocks
	groups    uint64
	inodes    uint32 // the last inode's number
	perTable  uint32 // inodes in a group
	inodeSize int
	descSize  int

	csum    bool   // metadata_csum
	gdtCsum bool   // group descriptors have the older checksum
	seed    uint32 // of metadata checksums
}

// parse checks a superblock. A wrong checksum is told apart: the geometry comes with it.
func parse(raw []byte, off int64) (g *geometry, csum, err error) {
	g = &geometry{off: off}
	s := &g.sb
	if _, err := binary.Decode(raw, le, s); err != nil {
		return nil, nil, ondisk.Truncated("ext superblock", "", off, nil)
	}
	if s.Magic != sbMagic {
		return nil, nil, &ondisk.Error{What: "ext superblock", Field: "magic", Off: off + sbMagicOff, Got: fmt.Sprintf("%#04x", s.Magic), Err: ondisk.ErrNot}
	}
	if s.ROCompat&roCompatMetadataCsum != 0 {
		g.csum = true
		if got := crc32c(^uint32(0), raw[:sbCsumOff]); got != s.Checksum {
			csum = ondisk.Corrupt("ext superblock", "checksum", off+sbCsumOff, fmt.Sprintf("%#08x", s.Checksum))
		}
		if s.ChecksumType != csumCRC32 {
			return nil, csum, ondisk.Unsupported("ext superblock", "checksum type", off+0x175, s.ChecksumType)
		}
	}
	g.gdtCsum = !g.csum && s.ROCompat&roCompatGDTCsum != 0
	if bad := s.Incompat &^ incompatKnown; bad != 0 {
		return nil, csum, ondisk.Unsupported("ext superblock", "incompatible features", off+0x60, featureText(bad, incompatNames))
	}
	return g, csum, g.check()
}

// check derives the geometry.
func (g *geometry) check() error {
	s := &g.sb
	corrupt := func(field string, at int64, got any) error {
		return ondisk.Corrupt("ext superblock", field, g.off+at, got)
	}
	if s.LogBlockSize > maxBlockLog {
		return corrupt("block size", 0x18, fmt.Sprintf("2^%d", uint64(s.LogBlockSize)+10))
	}
	g.shift = uint(s.LogBlockSize) + 10
	g.blockSize = 1 << g.shift
	g.blocks = uint64(s.BlocksCountLo)
	if s.Incompat&incompat64Bit != 0 {
		g.blocks |= uint64(s.BlocksCountHi) << 32
	}
	g.first, g.perGroup = uint64(s.FirstDataBlock), uint64(s.BlocksPerGroup)
	if g.blocks <= g.first || g.blocks > 1<<62>>g.shift {
		return corrupt("block count", 0x4, g.blocks)
	}
	mapped := g.perGroup // blocks or clusters that a bitmap counts
	if s.ROCompat&roCompatBigalloc != 0 {
		ratio := s.LogClusterSize - s.LogBlockSize
		if s.LogClusterSize < s.LogBlockSize || ratio > 20 || uint64(s.ClustersPerGroup)<<ratio != g.perGroup {
			return corrupt("cluster size", 0x1C, s.LogClusterSize)
		}
		mapped = uint64(s.ClustersPerGroup)
	} else if s.LogBlockSize == 0 && s.FirstDataBlock == 0 {
		return corrupt("first data block", 0x14, 0)
	}
	if mapped == 0 || mapped > uint64(g.blockSize)*8 {
		return corrupt("blocks per group", 0x20, g.perGroup)
	}
	g.groups = (g.blocks - g.first + g.perGroup - 1) / g.perGroup
	if s.InodesPerGroup == 0 || int64(s.InodesPerGroup) > g.blockSize*8 {
		return corrupt("inodes per group", 0x28, s.InodesPerGroup)
	}
	g.perTable = s.InodesPerGroup
	g.inodes = s.InodesCount
	if all := g.groups * uint64(g.perTable); g.groups > 1<<32 || all < uint64(g.inodes) {
		return corrupt("inode count", 0, g.inodes)
	}
	g.inodeSize = goodOldSize
	if s.Rev > 0 {
		g.inodeSize = int(s.InodeSize)
	}
	if g.inodeSize < goodOldSize || int64(g.inodeSize) > g.blockSize || bits.OnesCount(uint(g.inodeSize)) != 1 {
		return corrupt("inode size", 0x58, g.inodeSize)
	}
	if s.Rev > 0 && (s.FirstIno < firstInoOld || s.FirstIno > g.inodes) {
		return corrupt("first inode that is not reserved", 0x54, s.FirstIno)
	}
	g.descSize = gdLen
	if s.Incompat&incompat64Bit != 0 {
		g.descSize = int(s.DescSize)
		if g.descSize < gdLen64 || g.descSize > gdMaxLen || bits.OnesCount(uint(g.descSize)) != 1 {
			return corrupt("descriptor size", 0xFE, g.descSize)
		}
	}
	g.seed = crc32c(^uint32(0), s.UUID[:])
	if s.Incompat&incompatCsumSeed != 0 {
		g.seed = s.ChecksumSeed
	}
	return nil
}

// sameShape reports whether two superblocks agree on everything that never changes but by a resize.
func (g *geometry) sameShape(o *geometry) bool {
	return g.shift == o.shift && g.first == o.first && g.perGroup == o.perGroup && g.perTable == o.perTable &&
		g.inodeSize == o.inodeSize && g.descSize == o.descSize && g.sb.UUID == o.sb.UUID
}

func (g *geometry) has(compat uint32) bool      { return g.sb.Compat&compat != 0 }
func (g *geometry) hasInc(incompat uint32) bool { return g.sb.Incompat&incompat != 0 }
func (g *geometry) hasRO(ro uint32) bool        { return g.sb.ROCompat&ro != 0 }

// groupStart gives the first block of a group.
func (g *geometry) groupStart(n uint64) uint64 { return g.first + n*g.perGroup }

// group gives the number of the group that the superblock in use lies in.
func (g *geometry) group() uint64 { return (uint64(g.off)>>g.shift - g.first) / g.perGroup }

// holdsSuper reports whether a group has a copy of the superblock.
func (g *geometry) holdsSuper(n uint64) bool {
	switch {
	case n == 0:
		return true
	case g.has(compatSparseSuper2):
		return n == uint64(g.sb.BackupBGs[0]) || n == uint64(g.sb.BackupBGs[1])
	case n == 1 || !g.hasRO(roCompatSparseSuper):
		return true
	case n&1 == 0:
		return false
	}
	for _, base := range []uint64{3, 5, 7} {
		p := base
		for p < n {
			p *= base
		}
		if p == n {
			return true
		}
	}
	return false
}

// primary finds the superblock to go by: the one at byte 1024, or a backup where that one is damaged.
func primary(r io.ReaderAt, size int64) (g *geometry, note string, problem, err error) {
	raw, err := ondisk.Read(r, sbPos, sbLen, "ext superblock")
	if err != nil {
		return nil, "", nil, err
	}
	g, csum, err := parse(raw, sbPos)
	if err == nil && csum == nil {
		return g, "", nil, nil
	}
	if csum == nil && errors.Is(err, ondisk.ErrUnsupported) {
		return nil, "", nil, err
	}
	back := findBackup(r, size, g, raw)
	if back == nil {
		return g, "", csum, err
	}
	if err == nil && back.sameShape(g) {
		return g, "", csum, nil // only the checksum, or what changes anyway, is wrong
	}
	if err == nil {
		err = csum
	}
	return back, fmt.Sprintf("the backup superblock of group %d is used: %v", back.group(), err), nil, nil
}

// findBackup looks for a sound backup superblock: where the damaged one would have them, and where mke2fs puts the
// first one by default. It has to bear the damaged one's UUID, unless that one is all zeros.
func findBackup(r io.ReaderAt, size int64, g *geometry, raw []byte) *geometry {
	uuid := raw[0x68:0x78]
	if g == nil && le.Uint16(raw[sbMagicOff:]) != sbMagic && !zero(raw) {
		uuid = nil // not to be trusted
	}
	try := func(at int64) *geometry {
		if !ondisk.Within(at, sbLen, size) {
			return nil
		}
		b, err := ondisk.Read(r, at, sbLen, "ext superblock")
		if err != nil {
			return nil
		}
		back, csum, err := parse(b, at)
		if err != nil || csum != nil || back.blocks>>1 > uint64(size)>>back.shift {
			return nil
		}
		n := back.group()
		if n == 0 || !back.holdsSuper(n) || at != int64(back.groupStart(n)<<back.shift) {
			return nil
		}
		if k := back.sb.BlockGroupNr; k != 0 && uint64(k) != n&0xFFFF { // mke2fs 1.0 leaves it zero
			return nil
		}
		if uuid != nil && !zero(uuid) && !bytes.Equal(uuid, back.sb.UUID[:]) {
			return nil
		}
		return back
	}
	if g != nil && g.blockSize != 0 && g.perGroup != 0 && g.perGroup <= uint64(g.blockSize)*8 {
		for _, n := range []uint64{1, 3, 5, 7, 9, 25, 27, 49, uint64(g.sb.BackupBGs[0]), uint64(g.sb.BackupBGs[1])} {
			if back := try(int64(g.groupStart(n) << g.shift)); back != nil {
				return back
			}
		}
	}
	for shift := 10; shift <= maxBlockLog+10; shift++ {
		at := int64(8) << (2 * shift) // a bitmap of one block counts a group
		if shift == 10 {
			at += 1024
		}
		if back := try(at); back != nil {
			return back
		}
	}
	return nil
}

func zero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

// featureText gives bits as a number and by name.
func featureText(set uint32, names []string) string {
	var list []string
	for b := range 32 {
		if set&(1<<b) == 0 {
			continue
		}
		if b < len(names) && names[b] != "" {
			list = append(list, names[b])
		} else {
			list = append(list, fmt.Sprintf("bit %d", b))
		}
	}
	return fmt.Sprintf("%#x (%s)", set, strings.Join(list, ", "))
}

// probe knows a file system by the magic of its superblock, and names it as blkid does. Where the superblock's place is
// all zeros, and so is what lies before it, a backup will do if it leads to a root directory.
func probe(r io.ReaderAt, size int64, head []byte) (string, bool) {
	if len(head) < sbPos+sbLen {
		return "", false
	}
	raw := head[sbPos : sbPos+sbLen]
	if le.Uint16(raw[sbMagicOff:]) == sbMagic {
		var s superblock
		if _, err := binary.Decode(raw, le, &s); err != nil {
			return "", false
		}
		return s.kind(), true
	}
	if !zero(head[:sbPos+sbLen]) || claimed(head) {
		return "", false
	}
	g := findBackup(r, size, nil, raw)
	if g == nil {
		return "", false
	}
	f := &fsys{geometry: g, size: size}
	f.attach(r)
	var root inode
	if f.load(inoRoot, &root) != nil || root.mode&modeFmt != modeDir {
		return "", false
	}
	return g.sb.kind(), true
}

// claimed reports the marks of what leaves the first 2 KiB zero and may lie over an older ext file system.
func claimed(head []byte) bool {
	for _, m := range []struct {
		at   int
		text string
	}{{4096, "\xfc\x4e\x2b\xa9"}, {4086, "SWAPSPACE2"}, {32769, "CD001"}, {65600, "_BHRfS_M"}} {
		if len(head) >= m.at+len(m.text) && string(head[m.at:m.at+len(m.text)]) == m.text {
			return true
		}
	}
	return false
}

// kind names the file system by its features, as blkid does.
func (s *superblock) kind() string {
	switch {
	case s.Incompat&incompatJournalDev != 0:
		return "jbd"
	case s.Incompat&^incompatExt3 != 0 || s.ROCompat&^roCompatExt3 != 0:
		return "ext4"
	case s.Compat&compatHasJournal != 0:
		return "ext3"
	}
	return "ext2"
}
