package partition

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"strings"
)

var (
	le = binary.LittleEndian
	be = binary.BigEndian
)

// marks lists what Recognise knows, in the order in which it looks: what spans devices, encryption, caches; then file
// systems, the ones with a weak magic last. Names and places are those of blkid.
var marks = []mark{
	{name: "linux_raid_member", what: RAID, more: mdMark},
	{name: "ddf_raid_member", what: RAID, block: -512, magic: "\xde\x11\xde\x11", more: ddfMark},
	{name: "ddf_raid_member", what: RAID, block: -257 * 512, magic: "\xde\x11\xde\x11", more: ddfMark},
	{name: "isw_raid_member", what: RAID, block: -1024, magic: "Intel Raid ISM Cfg Sig. "},
	{name: "lsi_mega_raid_member", what: RAID, block: -512, magic: "$XIDE$"},
	{name: "nvidia_raid_member", what: RAID, block: -1024, magic: "NVIDIA  ", more: nvidiaMark},
	{name: "adaptec_raid_member", what: RAID, block: -512, magic: "\x37\xfc\x4d\x1e", more: adaptecMark},
	{name: "jmicron_raid_member", what: RAID, block: -512, magic: "JM", min: 64 << 10, more: jmicronMark},
	{name: "silicon_medley_raid_member", what: RAID, block: -512, off: 0x60, magic: "\x00\x00\x00\x2f", min: 64 << 10, more: siliconMark},
	{name: "via_raid_member", what: RAID, block: -512, magic: "\x55\xaa", min: 64 << 10, more: viaMark},
	{name: "promise_fasttrack_raid_member", what: RAID, min: 256 << 10, more: promiseMark},
	{name: "hpt45x_raid_member", what: RAID, block: -11 * 512, magic: "\xf3\x16\x78\x5a", min: 64 << 10},
	{name: "hpt45x_raid_member", what: RAID, block: -11 * 512, magic: "\xfd\x16\x78\x5a", min: 64 << 10},
	{name: "hpt37x_raid_member", what: RAID, block: 4608, off: 32, magic: "\xf0\x16\x78\x5a"},
	{name: "hpt37x_raid_member", what: RAID, block: 4608, off: 32, magic: "\xfd\x16\x78\x5a"},
	{name: "LVM2_member", what: RAID, more: lvm2Mark},
	{name: "LVM1_member", what: RAID, magic: "HM\x01\x00"},
	{name: "LVM1_member", what: RAID, magic: "HM\x02\x00"},
	{name: "DM_snapshot_cow", what: Other, magic: "SnAp\x01\x00\x00\x00"},
	{name: "DM_verity_hash", what: Crypto, magic: "verity\x00\x00", uuid: 16},
	{name: "DM_integrity", what: Crypto, magic: "integrt\x00"},
	{name: "drbd", what: RAID, block: -4096, off: 60, magic: "\x83\x74\x02\x6b", more: drbdMark},
	{name: "drbd", what: RAID, block: -4096, off: 60, magic: "\x83\x74\x02\x6c", more: drbdMark},
	{name: "drbd", what: RAID, block: -4096, off: 60, magic: "\x83\x74\x02\x6d", more: drbdMark},
	{name: "drbdproxy_datalog", what: Other, off: 16, magic: "DRBDdlh*"},
	{name: "stratis", what: RAID, block: 512, off: 4, magic: "!Stra0tis\x86\xff\x02^\x41rh"},
	{name: "stratis", what: RAID, block: 9 * 512, off: 4, magic: "!Stra0tis\x86\xff\x02^\x41rh"},
	{name: "ubi", what: RAID, magic: "UBI#", more: func(_ *view, b []byte, c *Content) bool {
		c.UUID = fmt.Sprint(be.Uint32(b[24:]))
		return b[4] == 1
	}},
	{name: "VMFS_volume_member", what: RAID, block: 1 << 20, magic: "\x0d\xd0\x01\xc0", more: func(_ *view, b []byte, c *Content) bool {
		c.UUID = vmfsUUID(b[130:])
		return true
	}},
	{name: "zfs_member", what: Filesystem, min: 64 << 20, more: zfsMark},
	{name: "ceph_bluestore", what: Other, magic: "bluestore block device"},
	{name: "mpool", what: RAID, magic: "mpoolDev", uuid: 40, label: 8, labelLen: 32},
	{name: "oracleasm", what: Other, off: 32, magic: "ORCLDISK", label: 40, labelLen: 24},
	{name: "crypto_LUKS", what: Crypto, magic: "LUKS\xba\xbe\x00\x01", more: luksMark},
	{name: "crypto_LUKS", what: Crypto, magic: "LUKS\xba\xbe\x00\x02", label: 24, labelLen: 48, more: luksMark},
	{name: "BitLocker", what: Crypto, off: 3, magic: "-FVE-FS-"},
	{name: "BitLocker", what: Crypto, off: 424, magic: "\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01"},
	{name: "cs_fvault2", what: Crypto, off: 88, magic: "CS", uuid: 304, more: func(_ *view, b []byte, _ *Content) bool {
		return le.Uint16(b[8:]) == 1 && le.Uint16(b[10:]) == 0x10 && le.Uint32(b[90:]) == 1
	}},
	{name: "bcache", what: Other, block: 4096, off: 24, magic: "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", uuid: 40, label: 72, labelLen: 32},
	{name: "bcachefs", what: Filesystem, block: 4096, off: 24, magic: "\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", uuid: 56, label: 72, labelLen: 32},
	{name: "vdo", what: Other, magic: "dmvdo001", uuid: 40},
	{name: "swap", what: Other, more: swapMark},
	{name: "swsuspend", what: Other, more: suspendMark},
	{name: "jbd", what: Other, block: 1024, off: 56, magic: "\x53\xef", uuid: 104, label: 120, labelLen: 16, more: func(_ *view, b []byte, _ *Content) bool {
		return le.Uint32(b[96:])&0x8 != 0 // incompatible feature journal_dev
	}},
	{name: "xfs_external_log", what: Other, min: 512 * 512, more: xfsLogMark},

	{name: "ext4", what: Filesystem, block: 1024, off: 56, magic: "\x53\xef", uuid: 104, label: 120, labelLen: 16, more: extMark},
	{name: "xfs", what: Filesystem, magic: "XFSB", uuid: 32, label: 108, labelLen: 12},
	{name: "exfs", what: Filesystem, magic: "EXFS", uuid: 32, label: 108, labelLen: 12},
	{name: "btrfs", what: Filesystem, block: 64 << 10, off: 64, magic: "_BHRfS_M", uuid: 32, label: 299, labelLen: 256},
	{name: "ntfs", what: Filesystem, off: 3, magic: "NTFS    ", more: func(_ *view, b []byte, c *Content) bool {
		c.UUID = fmt.Sprintf("%016X", le.Uint64(b[72:]))
		return true
	}},
	{name: "exfat", what: Filesystem, off: 3, magic: "EXFAT   ", more: func(_ *view, b []byte, c *Content) bool {
		c.UUID = serial(b[100:])
		return true
	}},
	{name: "ReFS", what: Filesystem, magic: "\x00\x00\x00ReFS\x00"},
	{name: "apfs", what: Filesystem, off: 32, magic: "NXSB", uuid: 72},
	{name: "hfsplus", what: Filesystem, block: 1024, magic: "H+"},
	{name: "hfsplus", what: Filesystem, block: 1024, magic: "HX"},
	{name: "hfs", what: Filesystem, block: 1024, magic: "BD", more: hfsMark},
	{name: "ufs", what: Filesystem, more: ufsMark},
	{name: "reiserfs", what: Filesystem, block: 8 << 10, off: 52, magic: "ReIsErFs", uuid: 84, label: 100, labelLen: 16},
	{name: "reiserfs", what: Filesystem, block: 64 << 10, off: 52, magic: "ReIsErFs", uuid: 84, label: 100, labelLen: 16},
	{name: "reiserfs", what: Filesystem, block: 64 << 10, off: 52, magic: "ReIsEr2Fs", uuid: 84, label: 100, labelLen: 16},
	{name: "reiserfs", what: Filesystem, block: 64 << 10, off: 52, magic: "ReIsEr3Fs", uuid: 84, label: 100, labelLen: 16},
	{name: "reiser4", what: Filesystem, block: 64 << 10, magic: "ReIsEr4", uuid: 20, label: 36, labelLen: 16},
	{name: "jfs", what: Filesystem, block: 32 << 10, magic: "JFS1", uuid: 136, label: 152, labelLen: 16},
	{name: "f2fs", what: Filesystem, block: 1024, magic: "\x10\x20\xf5\xf2", uuid: 108, more: func(_ *view, b []byte, c *Content) bool {
		c.Label = utf16Label(b[124:], le)
		return true
	}},
	{name: "nilfs2", what: Filesystem, block: 1024, off: 6, magic: "\x34\x34", uuid: 152, label: 168, labelLen: 80, more: func(_ *view, b []byte, _ *Content) bool {
		n := int(le.Uint16(b[8:]))
		return n > 24 && n <= len(b) && le.Uint32(b[20:]) < 7
	}},
	{name: "gfs2", what: Filesystem, block: 64 << 10, magic: "\x01\x16\x19\x70", uuid: 256, label: 160, labelLen: 64, more: func(_ *view, b []byte, c *Content) bool {
		if be.Uint32(b[24:]) == 1309 {
			c.Name = "gfs"
		}
		return true
	}},
	{name: "ocfs2", what: Filesystem, block: 1024, magic: "OCFSV2", uuid: 336, label: 272, labelLen: 64},
	{name: "ocfs2", what: Filesystem, block: 2048, magic: "OCFSV2", uuid: 336, label: 272, labelLen: 64},
	{name: "ocfs2", what: Filesystem, block: 4096, magic: "OCFSV2", uuid: 336, label: 272, labelLen: 64},
	{name: "ocfs2", what: Filesystem, block: 8192, magic: "OCFSV2", uuid: 336, label: 272, labelLen: 64},
	{name: "VMFS", what: Filesystem, block: 2 << 20, magic: "\x5e\xf1\xab\x2f", label: 29, labelLen: 128, more: func(_ *view, b []byte, c *Content) bool {
		c.UUID = vmfsUUID(b[9:])
		return true
	}},
	{name: "erofs", what: Filesystem, block: 1024, magic: "\xe2\xe1\xf5\xe0", uuid: 48, label: 64, labelLen: 16},
	{name: "squashfs", what: Filesystem, magic: "hsqs"},
	{name: "squashfs", what: Filesystem, magic: "sqsh"},
	{name: "cramfs", what: Filesystem, magic: "\x45\x3d\xcd\x28", label: 48, labelLen: 16},
	{name: "cramfs", what: Filesystem, magic: "\x28\xcd\x3d\x45", label: 48, labelLen: 16},
	{name: "romfs", what: Filesystem, magic: "-rom1fs-", label: 16, labelLen: 496},
	{name: "ubifs", what: Filesystem, magic: "\x31\x18\x10\x06", uuid: 108},
	{name: "zonefs", what: Filesystem, magic: "SFOZ", uuid: 72, label: 8, labelLen: 64},
	{name: "bfs", what: Filesystem, magic: "\xce\xfa\xad\x1b"},
	{name: "befs", what: Filesystem, block: 512, off: 32, magic: "1SFB", more: befsMark},
	{name: "befs", what: Filesystem, block: 512, off: 32, magic: "BFS1", more: befsMark},
	{name: "befs", what: Filesystem, off: 32, magic: "1SFB", more: befsMark},
	{name: "befs", what: Filesystem, off: 32, magic: "BFS1", more: befsMark},
	{name: "nss", what: Filesystem, block: 4096, magic: "SPB5", uuid: 348},
	{name: "scoutfs_meta", what: Filesystem, block: 64 << 10, off: 4, magic: "\x8b\x42\x3c\x10", uuid: 56},
	{name: "vxfs", what: Filesystem, block: 1024, magic: "\xf5\xfc\x01\xa5"},
	{name: "vxfs", what: Filesystem, block: 8192, magic: "\xa5\x01\xfc\xf5"},
	{name: "hpfs", what: Filesystem, block: 8192, magic: "\x49\xe8\x95\xf9", more: hpfsMark},
	{name: "udf", what: Filesystem, more: udfMark},
	{name: "iso9660", what: Filesystem, block: 32 << 10, off: 1, magic: "CD001", label: 40, labelLen: 32},
	{name: "iso9660", what: Filesystem, block: 32 << 10, off: 9, magic: "CDROM"},
	{name: "vfat", what: Filesystem, min: 512, more: fatMark},
	{name: "xenix", what: Filesystem, block: 1024, off: 1016, magic: "\x44\x55\x2b\x00"},
	{name: "minix", what: Filesystem, min: 4096, more: minixMark},
	// The secondary header of a LUKS2 container whose primary one is gone; a file system made over it comes first.
	{name: "crypto_LUKS", what: Crypto, more: luks2Mark},
}

func ddfMark(_ *view, b []byte, c *Content) bool {
	c.UUID = label(b[8:32])
	return string(b[32:34]) == "01" || string(b[32:34]) == "02"
}

func nvidiaMark(_ *view, b []byte, _ *Content) bool { return le.Uint32(b[8:]) == 30 }

func adaptecMark(_ *view, b []byte, _ *Content) bool { return string(b[0x100:0x104]) == "DPTM" }

func jmicronMark(_ *view, b []byte, _ *Content) bool {
	var sum uint16
	for i := 0; i < 128; i += 2 {
		sum += le.Uint16(b[i:])
	}
	return sum <= 1 && b[0x30] <= 5
}

func siliconMark(_ *view, b []byte, _ *Content) bool {
	var sum uint16
	for i := 0; i < 0x13e; i += 2 {
		sum += le.Uint16(b[i:])
	}
	return b[0x116] < 8 && -sum == le.Uint16(b[0x13e:])
}

func viaMark(_ *view, b []byte, _ *Content) bool {
	var sum uint8
	for _, x := range b[:50] {
		sum += x
	}
	return b[2] <= 2 && sum == b[50] && sum != 0
}

func promiseMark(v *view, _ []byte, _ *Content) bool {
	for _, n := range []int64{63, 255, 256, 16, 399, 591, 675, 735, 911, 974, 991, 951, 3087} {
		if v.has(v.size/512*512-n*512, "Promise Technology, Inc.") {
			return true
		}
	}
	return false
}

func drbdMark(_ *view, b []byte, c *Content) bool {
	c.UUID = fmt.Sprintf("%016x", be.Uint64(b[48:]))
	return true
}

// lvm2Mark finds the label in one of the first four sectors; its checksum starts from LVM's own value.
func lvm2Mark(v *view, _ []byte, c *Content) bool {
	for i := int64(0); i < 4; i++ {
		b := v.at(i*512, 512)
		if b == nil || string(b[:8]) != "LABELONE" || string(b[24:32]) != "LVM2 001" || le.Uint32(b[16:]) != lvmCRC(b[20:]) {
			continue
		}
		if off := le.Uint32(b[20:]); off >= 32 && off <= 512-32 {
			c.UUID = lvmUUID(b[off : off+32])
		}
		return true
	}
	return false
}

// lvmCRC is the CRC-32 of zip files started with LVM's own value and not inverted.
func lvmCRC(b []byte) uint32 { return ^crc32.Update(^uint32(0xf597a6cf), crc32.IEEETable, b) }

// lvmUUID renders 32 characters as LVM prints them.
func lvmUUID(b []byte) string {
	s := string(b)
	return strings.Join([]string{s[:6], s[6:10], s[10:14], s[14:18], s[18:22], s[22:26], s[26:32]}, "-")
}

func luksMark(_ *view, b []byte, c *Content) bool {
	c.UUID = text(b[168:208])
	return true
}

func luks2Mark(v *view, _ []byte, c *Content) bool {
	for at := int64(16 << 10); at <= 4<<20; at *= 2 {
		if v.has(at, "SKUL\xba\xbe\x00\x02") {
			if b := v.at(at, blockLen); b != nil {
				c.UUID, c.Label = text(b[168:208]), label(b[24:72])
			}
			return true
		}
	}
	return false
}

// zfsMark wants one of the four labels: an XDR list of pairs that begins with the version of the pool or its name.
func zfsMark(v *view, _ []byte, _ *Content) bool {
	const size = 256 << 10
	end := v.size / size * size
	for _, at := range []int64{0, size, end - 2*size, end - size} {
		b := v.at(at+16<<10, 256)
		if b == nil || b[0] != 1 || b[1] > 1 || be.Uint32(b[12:]) == 0 {
			continue
		}
		if n := be.Uint32(b[20:]); n < 64 && strings.Contains(string(b[24:24+n]), "version") || strings.Contains(string(b[12:64]), "name") {
			return true
		}
	}
	return false
}

func vmfsUUID(b []byte) string {
	return fmt.Sprintf("%08x-%08x-%04x-%x", le.Uint32(b), le.Uint32(b[4:]), le.Uint16(b[8:]), b[10:16])
}

func swapMark(v *view, _ []byte, c *Content) bool {
	for page := int64(4 << 10); page <= 64<<10; page *= 2 {
		if v.has(page-10, "SWAP-SPACE") {
			return true
		}
		if v.has(page-10, "SWAPSPACE2") {
			b := v.at(1024, 44)
			if b == nil || le.Uint32(b) != 1 && be.Uint32(b) != 1 {
				return false
			}
			c.UUID, c.Label = uuid(b[12:]), label(b[28:44])
			return true
		}
	}
	return false
}

func suspendMark(v *view, _ []byte, c *Content) bool {
	if v.has(0, "\xed\xc3\x02\xe9\x98\x56\xe5\x0c") { // TuxOnIce
		return true
	}
	for page := int64(4 << 10); page <= 64<<10; page *= 2 {
		for _, s := range []string{"S1SUSPEND", "S2SUSPEND", "ULSUSPEND", "LINHIB0001"} {
			if v.has(page-10, s) {
				if b := v.at(1024, 44); b != nil {
					c.UUID, c.Label = uuid(b[12:]), label(b[28:44])
				}
				return true
			}
		}
	}
	return false
}

// xfsLogMark looks for a log record's header in the first 256 KiB.
func xfsLogMark(v *view, _ []byte, _ *Content) bool {
	if v.has(0, "XFSB") {
		return false
	}
	for i := int64(0); i < 512; i++ {
		b := v.at(i*512, 304)
		if b == nil {
			return false
		}
		if be.Uint32(b) == 0xfeedbabe && be.Uint32(b[8:]) != 0 && be.Uint32(b[8:]) <= 2 && be.Uint32(b[300:]) <= 3 {
			return true
		}
	}
	return false
}

// extMark tells ext2, 3 and 4 apart as blkid does: by features that only the later ones have.
func extMark(_ *view, b []byte, c *Content) bool {
	compat, incompat, ro := le.Uint32(b[92:]), le.Uint32(b[96:]), le.Uint32(b[100:])
	switch {
	case incompat&^0x16 != 0 || ro&^0x7 != 0:
	case compat&0x4 != 0:
		c.Name = "ext3"
	default:
		c.Name = "ext2"
	}
	return true
}

func hfsMark(_ *view, b []byte, c *Content) bool {
	if s := string(b[124:126]); s == "H+" || s == "HX" {
		c.Name = "hfsplus" // wrapped
		return true
	}
	n := be.Uint32(b[20:])
	if n == 0 || n%512 != 0 {
		return false
	}
	c.Label = label(b[37 : 37+min(int(b[36]), 27)])
	return true
}

func ufsMark(v *view, _ []byte, c *Content) bool {
	for _, at := range []int64{0, 8, 64, 256} {
		b := v.at(at<<10, 1376)
		if b == nil {
			continue
		}
		for _, m := range []uint32{0x011954, 0x19540119, 0x612195, 0x05231994, 0x12239921, 0x7c019} {
			var o binary.ByteOrder = le
			if be.Uint32(b[1372:]) == m {
				o = be
			} else if le.Uint32(b[1372:]) != m {
				continue
			}
			if id := b[144:152]; o.Uint64(id) != 0 {
				c.UUID = fmt.Sprintf("%08x%08x", o.Uint32(id), o.Uint32(id[4:]))
			}
			if m == 0x19540119 {
				c.Label = label(b[680:712])
			}
			return true
		}
	}
	return false
}

func befsMark(_ *view, b []byte, c *Content) bool {
	c.Label = label(b[:32])
	return le.Uint32(b[68:]) == 0xdd121031 || be.Uint32(b[68:]) == 0xdd121031
}

func hpfsMark(v *view, _ []byte, c *Content) bool {
	if !v.has(8192+512, "\x49\x18\x91\xf9") {
		return false
	}
	if b := v.at(0, 512); b != nil && string(b[54:58]) == "HPFS" && b[38] == 0x28 {
		c.UUID, c.Label = serial(b[39:]), label(b[43:54])
	}
	return true
}

// udfMark wants an NSR descriptor in the volume recognition sequence, whose sectors are 2048 bytes, or 4096 on disks
// with such sectors.
func udfMark(v *view, _ []byte, _ *Content) bool {
	for _, step := range []int64{2048, 4096} {
		for at := int64(32 << 10); at < 32<<10+64*step; at += step {
			b := v.at(at, 6)
			if b == nil {
				return false
			}
			switch string(b[1:6]) {
			case "NSR02", "NSR03":
				return true
			case "BEA01", "CD001", "CDW02", "BOOT2":
			default:
				at = 1 << 40 // the sequence ends
			}
		}
	}
	return false
}

func fatMark(_ *view, b []byte, c *Content) bool {
	if len(b) < 512 || !fatBootSector(b) {
		return false
	}
	ext := b[38:] // signature, serial, label: 26 bytes further on FAT32
	if le.Uint16(b[22:]) == 0 {
		ext = b[66:]
	}
	if ext[0] == 0x28 || ext[0] == 0x29 {
		c.UUID = serial(ext[1:])
		if s := label(ext[5:16]); ext[0] == 0x29 && s != "NO NAME" {
			c.Label = s
		}
	}
	return true
}

// minixMark checks, besides a magic of 16 bits, that the numbers of a super block fit together.
func minixMark(v *view, _ []byte, _ *Content) bool {
	b := v.at(1024, 512)
	if b == nil || le.Uint16(b[56:]) == 0xef53 {
		return false
	}
	for _, o := range []binary.ByteOrder{le, be} {
		inodes, zones, imap, zmap, first := int64(o.Uint16(b)), int64(o.Uint16(b[2:])), int64(o.Uint16(b[4:])), int64(o.Uint16(b[6:])), int64(o.Uint16(b[8:]))
		block, log := int64(1024), o.Uint16(b[10:])
		switch o.Uint16(b[16:]) {
		case 0x137f, 0x138f:
		case 0x2468, 0x2478:
			zones = int64(o.Uint32(b[20:]))
		default:
			if o.Uint16(b[24:]) != 0x4d5a {
				continue
			}
			inodes, zones = int64(o.Uint32(b)), int64(o.Uint32(b[20:]))
			imap, zmap, first, log = int64(o.Uint16(b[6:])), int64(o.Uint16(b[8:])), int64(o.Uint16(b[10:])), o.Uint16(b[12:])
			block = int64(o.Uint16(b[28:]))
		}
		if inodes > 0 && zones > first && log == 0 && block >= 1024 && imap*block*8 >= inodes+1 && zmap*block*8 >= zones-first+1 &&
			first >= 2+imap+zmap && zones <= v.size/block {
			return true
		}
	}
	return false
}
