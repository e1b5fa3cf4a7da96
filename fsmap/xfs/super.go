package xfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"strings"

	"vmkit/formats/ondisk"
)

var be = binary.BigEndian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var noSum = make([]byte, 4)

// checksum gives the CRC32C of b with its four bytes at off taken as zeros.
func checksum(b []byte, off int) uint32 {
	c := crc32.Update(0, castagnoli, b[:off])
	c = crc32.Update(c, castagnoli, noSum)
	return crc32.Update(c, castagnoli, b[off+4:])
}

// geometry is what the superblock says, checked.
type geometry struct {
	sb        dsb
	v5        bool
	blockSize int64
	blockLog  uint
	inodeSize int
	coreLen   int // of an inode
	dirSize   int // of a directory block
	ftype     bool
	projID32  bool
	metaUUID  [16]byte
}

// superblock reads and checks the superblock at off. The error of one that is none wraps ondisk.ErrNot. doubt is a
// wrong checksum.
func superblock(r io.ReaderAt, off int64) (g *geometry, doubt, err error) {
	head, err := ondisk.Read(r, off, sbLen, "xfs superblock")
	if err != nil {
		return nil, nil, err
	}
	g = new(geometry)
	if _, err := binary.Decode(head, be, &g.sb); err != nil {
		return nil, nil, err
	}
	if err := g.check(off); err != nil {
		return nil, nil, err
	}
	if g.v5 {
		b, err := ondisk.Read(r, off, int64(g.sb.SectSize), "xfs superblock")
		if err != nil {
			return nil, nil, err
		}
		if want := checksum(b, sbCRCOff); want != binary.LittleEndian.Uint32(b[sbCRCOff:]) {
			doubt = ondisk.Corrupt("xfs superblock", "checksum", off+sbCRCOff, fmt.Sprintf("%#08x", binary.LittleEndian.Uint32(b[sbCRCOff:])))
		}
	}
	return g, doubt, nil
}

// check refuses what isn't consistent or isn't supported, and fills the fields beside sb.
func (g *geometry) check(off int64) error {
	s := &g.sb
	bad := func(field string, at int64, got any) error {
		return ondisk.Corrupt("xfs superblock", field, off+at, got)
	}
	if s.Magic != sbMagic {
		return &ondisk.Error{What: "xfs superblock", Field: "magic", Off: off, Got: fmt.Sprintf("%#08x", s.Magic), Err: ondisk.ErrNot}
	}
	version := s.VersionNum & versionNumBits
	switch {
	case version != 4 && version != 5:
		return ondisk.Unsupported("xfs superblock", "version", off+sbVerOff, version)
	case version == 4 && s.VersionNum&versionDirV2 == 0:
		return ondisk.Unsupported("xfs superblock", "directories of version 1, version bits", off+sbVerOff, fmt.Sprintf("%#x", s.VersionNum))
	case version == 4 && s.VersionNum&^uint16(versionKnown) != 0:
		return ondisk.Unsupported("xfs superblock", "version bits", off+sbVerOff, fmt.Sprintf("%#x", s.VersionNum&^uint16(versionKnown)))
	}
	g.v5 = version == 5
	power := func(v uint32, log uint8, lo, hi uint) bool {
		return uint(log) >= lo && uint(log) <= hi && v == 1<<log
	}
	switch {
	case !power(s.BlockSize, s.BlockLog, 9, 16):
		return bad("block size", 4, s.BlockSize)
	case !power(uint32(s.SectSize), s.SectLog, 9, 15):
		return bad("sector size", 102, s.SectSize)
	case !power(uint32(s.InodeSize), s.InodeLog, 8, 11), uint32(s.InodeSize) > s.BlockSize, g.v5 && s.InodeSize < 512:
		return bad("inode size", 104, s.InodeSize)
	case uint32(s.InoPBlock) != s.BlockSize>>s.InodeLog, s.InoPBLog != s.BlockLog-s.InodeLog:
		return bad("inodes per block", 106, s.InoPBlock)
	case s.DirBlkLog > 16, s.BlockLog+s.DirBlkLog > 16:
		return bad("directory block size", 192, s.DirBlkLog)
	case s.AGBlocks < minAGBlocks, s.AGBlocks > 1<<31, int(s.AGBlkLog) != bits.Len32(s.AGBlocks-1),
		uint64(s.AGBlocks)<<s.BlockLog > 1<<40:
		return bad("blocks in a group", 84, s.AGBlocks)
	case s.AGCount == 0, s.DBlocks > 1<<63>>s.BlockLog, s.DBlocks > uint64(s.AGCount)*uint64(s.AGBlocks),
		s.DBlocks <= uint64(s.AGCount-1)*uint64(s.AGBlocks):
		return bad("blocks", 8, s.DBlocks)
	}
	if !g.v5 {
		// Old kernels put the word four bytes further on; the two are kept the same since.
		s.Features2 |= s.BadFeatures
		if s.VersionNum&versionMoreBits == 0 {
			s.Features2 = 0
		}
		if x := s.Features2 &^ features2Known; x != 0 {
			return ondisk.Unsupported("xfs superblock", "features2 bits", off+200, fmt.Sprintf("%#x", x))
		}
		g.ftype = s.Features2&features2FType != 0
		g.projID32 = s.Features2&features2ProjID32 != 0
		g.metaUUID = s.UUID
		s.Incompat, s.LogIncompat, s.ROCompat, s.PQuotIno = 0, 0, 0, nullIno
		g.coreLen = inodeLenV2
	} else {
		if x := s.Incompat &^ uint32(incompatKnown); x != 0 {
			return ondisk.Unsupported("xfs superblock", "incompatible features", off+sbIncompatOff, bitNames(x, incompatNames))
		}
		g.ftype = s.Incompat&incompatFType != 0
		g.projID32 = true
		g.metaUUID = s.UUID
		if s.Incompat&incompatMetaUUID != 0 {
			g.metaUUID = s.MetaUUID
		}
		g.coreLen = inodeLenV3
	}
	g.blockSize, g.blockLog = int64(s.BlockSize), uint(s.BlockLog)
	g.inodeSize = int(s.InodeSize)
	g.dirSize = int(s.BlockSize) << s.DirBlkLog
	return nil
}

// bitNames renders feature bits by number and name: "0x300 (metadata directory tree, zoned)".
func bitNames(x uint32, names []string) string {
	var s []string
	for i := range 32 {
		if x>>i&1 != 0 && i < len(names) {
			s = append(s, names[i])
		} else if x>>i&1 != 0 {
			s = append(s, fmt.Sprintf("bit %d", i))
		}
	}
	return fmt.Sprintf("%#x (%s)", x, strings.Join(s, ", "))
}

// agLen gives the number of blocks of a group, 0 for one that does not exist.
func (g *geometry) agLen(ag uint64) uint64 {
	switch n := uint64(g.sb.AGCount); {
	case ag >= n:
		return 0
	case ag == n-1:
		return g.sb.DBlocks - ag*uint64(g.sb.AGBlocks)
	}
	return uint64(g.sb.AGBlocks)
}

// place gives the position in the volume of n blocks that start at the file-system block fsb; ok tells whether they lie
// in one group.
func (g *geometry) place(fsb, n uint64) (off int64, ok bool) {
	ag, bno := fsb>>g.sb.AGBlkLog, fsb&(1<<g.sb.AGBlkLog-1)
	if l := g.agLen(ag); bno >= l || n > l-bno {
		return 0, false
	}
	return int64(ag*uint64(g.sb.AGBlocks)+bno) << g.blockLog, true
}

// inodePlace gives the position of an inode in the volume.
func (g *geometry) inodePlace(ino uint64) (off int64, ok bool) {
	if ino>>56 != 0 {
		return 0, false
	}
	off, ok = g.place(ino>>g.sb.InoPBLog, 1)
	return off + int64(ino&(1<<g.sb.InoPBLog-1))<<g.sb.InodeLog, ok
}

// primary finds the superblock: the first, or, where that one is damaged, a copy from another group. note says which.
func primary(r io.ReaderAt, size int64) (g *geometry, note string, problem, err error) {
	g, doubt, err := superblock(r, 0)
	if err == nil && doubt == nil && g.sb.InProgress == 0 && g.rootOK() {
		return g, "", nil, nil
	}
	why := err
	if why == nil {
		if why = doubt; why == nil {
			why = ondisk.Corrupt("xfs superblock", "root inode", 56, g.sb.RootIno)
		}
	}
	if errors.Is(why, ondisk.ErrUnsupported) && intact(r) {
		return nil, "", nil, why
	}
	if b, off := backup(r, size); b != nil {
		return b, fmt.Sprintf("the first superblock is damaged (%v); the copy at byte %#x was used", why, off), nil, nil
	}
	if err != nil || !g.rootOK() {
		return nil, "", nil, why
	}
	return g, "", why, nil
}

// intact reports whether the first superblock has the checksum of version 5, whatever else it says.
func intact(r io.ReaderAt) bool {
	b := make([]byte, 32<<10)
	n, _ := r.ReadAt(b, 0)
	for l := 512; l <= n; l *= 2 {
		if checksum(b[:l], sbCRCOff) == binary.LittleEndian.Uint32(b[sbCRCOff:]) {
			return true
		}
	}
	return false
}

func (g *geometry) rootOK() bool {
	_, ok := g.inodePlace(g.sb.RootIno)
	return ok && g.sb.RootIno != 0
}

// backup looks for a superblock in the other groups. The length of the first group comes from its AGF, which lies in
// the sector after the superblock, or from what is left of the superblock.
func backup(r io.ReaderAt, size int64) (*geometry, int64) {
	var lengths []uint32
	head := make([]byte, 2*32<<10)
	n, _ := r.ReadAt(head, 0)
	head = head[:n]
	for s := 512; s+16 <= len(head) && s <= 32<<10; s *= 2 {
		if l, ok := agfHead(head[s:]); ok {
			lengths = append(lengths, l)
		}
	}
	if len(head) >= sbLen {
		lengths = append(lengths, be.Uint32(head[84:]))
	}
	for _, l := range lengths {
		for log := uint(9); log <= 16; log++ {
			off := int64(l) << log
			g, doubt, err := superblock(r, off)
			if err != nil || doubt != nil || g.blockLog != log || g.sb.AGBlocks != l {
				continue
			}
			// mkfs.xfs writes the root inode's number to some of the copies only: those in the middle and at the end.
			for _, ag := range []int64{1, int64(g.sb.AGCount) / 2, int64(g.sb.AGCount) - 1} {
				c, doubt, err := superblock(r, ag*off)
				if err == nil && doubt == nil && ag > 0 && c.sb.UUID == g.sb.UUID && c.sb.AGBlocks == l && c.rootOK() {
					return c, ag * off
				}
			}
		}
	}
	return nil, 0
}

// agfHead gives the length of the group that an AGF describes, if b is the first group's.
func agfHead(b []byte) (uint32, bool) {
	if len(b) < 16 || be.Uint32(b) != agfMagic || be.Uint32(b[4:]) != agVersion || be.Uint32(b[agfSeqNo:]) != 0 {
		return 0, false
	}
	l := be.Uint32(b[agfLength:])
	return l, l >= minAGBlocks
}

// probe recognises the superblock, or, where that one is lost, the headers that follow it in the first group.
func probe(r io.ReaderAt, size int64, head []byte) (string, bool) {
	if len(head) >= 4 && be.Uint32(head) == sbMagic {
		return "xfs", true
	}
	for s := 512; 2*s+4 <= len(head) && s <= 32<<10; s *= 2 {
		if _, ok := agfHead(head[s:]); ok && be.Uint32(head[2*s:]) == agiMagic {
			_, off := backup(r, size)
			return "xfs", off != 0
		}
	}
	return "", false
}

// uuidText renders a UUID in the usual form, an absent one as nothing.
func uuidText(u [16]byte) string {
	if u == ([16]byte{}) {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// label is the file system's name, without its padding.
func (g *geometry) label() string {
	b, _, _ := bytes.Cut(g.sb.FName[:], []byte{0})
	return string(b)
}
