package partition

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
)

// mdSuper is a member's superblock of either version, in sectors of 512 bytes.
type mdSuper struct {
	version  string // "0.90", "1.0", "1.1", "1.2"
	at       int64  // byte position in the member
	uuid     string
	name     string
	minor    int // preferred number of the device, 0.90 only
	level    int
	layout   int
	size     int64 // sectors of each member that hold data; 0: its whole data area
	chunk    int64 // sectors
	disks    int   // of the array, spares not counted
	events   uint64
	role     int   // place in the array, or one of mdSpare…
	dataOff  int64 // sectors
	dataSize int64
	features uint32
	reshape  bool
	recovery int64 // sectors from the start that are rebuilt; -1: all
	resync   int64 // sectors that are in sync
	badOff   int64 // of the bad block log, in sectors from the superblock
	badSize  uint16
	badShift uint8
	err      error // a wrong checksum
}

const (
	mdSpare   = -1
	mdFaulty  = -2
	mdJournal = -3
)

// readMD finds the superblock of a member. 1.1 and 1.2 lie at its start, 1.0 and 0.90 near its end; nil: there is none.
func readMD(v *view) *mdSuper {
	sectors := v.size / 512
	for _, x := range []struct {
		version string
		sector  int64
	}{{"1.2", 8}, {"1.1", 0}, {"1.0", (sectors - 16) &^ 7}} {
		if s := readMD1(v, x.version, x.sector); s != nil {
			return s
		}
	}
	if sectors >= 256 {
		return readMD090(v, sectors&^127-128)
	}
	return nil
}

func readMD1(v *view, version string, sector int64) *mdSuper {
	if sector < 0 {
		return nil
	}
	b := v.at(sector*512, 4096)
	if b == nil {
		if b = v.at(sector*512, 512); b == nil { // a member that ends behind its superblock
			return nil
		}
	}
	if le.Uint32(b) != mdMagic || le.Uint32(b[4:]) != 1 {
		return nil
	}
	var h md1Super
	if _, err := binary.Decode(b, le, &h); err != nil || h.SuperOffset != uint64(sector) {
		return nil
	}
	s := &mdSuper{
		version: version, at: sector * 512, uuid: uuid(h.UUID[:]), name: label(h.Name[:]), minor: -1, level: int(h.Level),
		layout: int(int32(h.Layout)), size: sectorCount(h.Size), chunk: int64(h.ChunkSize), disks: int(int32(h.RaidDisks)),
		events: h.Events, role: mdSpare, dataOff: sectorCount(h.DataOffset), dataSize: sectorCount(h.DataSize),
		features: h.FeatureMap, reshape: h.FeatureMap&mdReshape != 0, recovery: -1, resync: sectorCount(h.ResyncOffset),
	}
	if h.FeatureMap&mdBadBlocks != 0 && h.BadShift < 16 {
		s.badOff, s.badSize, s.badShift = int64(int32(h.BadOffset)), h.BadSize, h.BadShift
	}
	if h.FeatureMap&mdRecoveryOffset != 0 {
		s.recovery = sectorCount(h.RecoveryOffset)
	}
	n := md1Len + 2*int64(h.MaxDev)
	if h.MaxDev > mdMaxDev || n > int64(len(b)) {
		s.err = ondisk.Corrupt("md superblock", "number of roles", s.at+220, h.MaxDev)
		return s
	}
	if sum := md1Checksum(b[:n]); sum != h.Checksum {
		s.err = ondisk.Corrupt("md superblock", "checksum", s.at+216, fmt.Sprintf("%#x", h.Checksum))
	}
	if h.DevNumber < h.MaxDev {
		switch role := le.Uint16(b[md1Len+2*h.DevNumber:]); role {
		case 0xfffe:
			s.role = mdFaulty
		case 0xfffd:
			s.role = mdJournal
		default:
			if role < 0xff00 {
				s.role = int(role)
			}
		}
	}
	return s
}

// md1Checksum adds up the 32-bit words, its own as zero, and folds the carry back in.
func md1Checksum(b []byte) uint32 {
	var sum uint64
	for i := 0; i+4 <= len(b); i += 4 {
		if i != 216 {
			sum += uint64(le.Uint32(b[i:]))
		}
	}
	if len(b)%4 == 2 {
		sum += uint64(le.Uint16(b[len(b)-2:]))
	}
	return uint32(sum) + uint32(sum>>32)
}

// sectorCount bounds a number of sectors so that its bytes fit an int64.
func sectorCount(n uint64) int64 { return int64(min(n, 1<<53)) }

// readMD090 reads the old superblock, in the byte order of the machine that wrote it.
func readMD090(v *view, sector int64) *mdSuper {
	b := v.at(sector*512, 4096)
	if b == nil {
		return nil
	}
	var o binary.ByteOrder = le
	if be.Uint32(b) == mdMagic {
		o = be
	} else if le.Uint32(b) != mdMagic {
		return nil
	}
	var h md0Super
	if _, err := binary.Decode(b, o, &h); err != nil || h.Major != 0 || h.Minor < 90 || h.Minor > 91 {
		return nil
	}
	s := &mdSuper{
		version: "0.90", at: sector * 512, minor: int(h.MDMinor), level: int(h.Level), layout: int(int32(h.Layout)),
		size: int64(h.Size) * 2, chunk: int64(h.ChunkSize) / 512, disks: int(int32(h.RaidDisks)), role: mdSpare,
		dataSize: sector, reshape: h.Minor == 91, recovery: -1, resync: 1 << 53,
	}
	s.uuid = fmt.Sprintf("%08x-%04x-%04x-%04x-%04x%08x", h.UUID0, h.UUID1>>16, h.UUID1&0xffff, h.UUID2>>16, h.UUID2&0xffff, h.UUID3)
	s.events = uint64(h.EventsLo)<<32 | uint64(h.EventsHi) // big-endian machines write the upper half first
	if o == binary.ByteOrder(le) {
		s.events = uint64(h.EventsHi)<<32 | uint64(h.EventsLo)
	}
	if h.State&1 == 0 { // not clean
		s.resync = 2 * int64(h.RecoveryCP)
	}
	d := h.ThisDisk
	switch {
	case d.State&mdDiskFaulty != 0:
		s.role = mdFaulty
	case d.State&mdDiskActive != 0 && d.State&mdDiskSync != 0:
		s.role = int(int32(d.RaidDisk))
	}
	var sum uint64
	for i := 0; i < len(b); i += 4 {
		if i != 38*4 {
			sum += uint64(o.Uint32(b[i:]))
		}
	}
	if uint32(sum)+uint32(sum>>32) != h.Checksum {
		s.err = ondisk.Corrupt("md superblock", "checksum", s.at+38*4, fmt.Sprintf("%#x", h.Checksum))
	}
	return s
}

func mdMark(v *view, _ []byte, c *Content) bool {
	s := readMD(v)
	if s == nil || s.err != nil {
		return false
	}
	c.UUID, c.Label = s.uuid, s.name
	return true
}
