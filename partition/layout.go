package partition

// On-disk structures of partition tables. Structs are decoded with encoding/binary; their sizes and offsets are tested.

// Master boot record: the layout that IBM's DOS 2.0 brought; extended boot records have it too.
const (
	mbrSize      = 512
	mbrMagic     = 0xaa55 // at byte 510
	mbrEntryOff  = 446
	mbrActive    = 0x80 // the only value of mbrEntry.Boot besides 0
	typeGPT      = 0xee // UEFI 2.10, 5.2.3: protective MBR
	typeLDM      = 0x42 // Windows dynamic disk
	typeFreeBSD  = 0xa5
	typeOpenBSD  = 0xa6
	typeNetBSD   = 0xa9
	typeExtended = 0x05
	typeExtLBA   = 0x0f
	typeExtLinux = 0x85
)

type mbrEntry struct {
	Boot     uint8
	CHSFirst [3]uint8
	Type     uint8
	CHSLast  [3]uint8
	Start    uint32 // sectors; in an EBR from the EBR or from the extended partition
	Count    uint32 // sectors
}

type mbrSector struct {
	Code     [440]byte
	DiskID   uint32
	Reserved uint16
	Entries  [4]mbrEntry
	Magic    uint16
}

// GUID partition table: UEFI 2.10, 5.3.
const (
	gptMagic      = "EFI PART"
	gptHeaderSize = 92
	gptEntrySize  = 128 // entries are 128·2ⁿ bytes long
)

type gptHeader struct {
	Magic       [8]byte
	Revision    uint32
	Size        uint32 // of the header, 92 to a sector
	CRC         uint32 // of Size bytes, with these four as zeros
	Reserved    uint32
	MyLBA       uint64
	AltLBA      uint64
	FirstUsable uint64
	LastUsable  uint64
	DiskGUID    [16]byte
	EntriesLBA  uint64
	Count       uint32
	EntrySize   uint32
	EntriesCRC  uint32
}

type gptEntry struct {
	Type  [16]byte
	GUID  [16]byte
	First uint64
	Last  uint64 // the last sector, inclusive
	Attrs uint64
	Name  [36]uint16
}

// Bits of gptEntry.Attrs: UEFI 2.10, table 5-8.
const (
	gptRequired   = 1 << 0
	gptNoBlockIO  = 1 << 1
	gptLegacyBoot = 1 << 2
)

// BSD disklabel: sys/disklabel.h of 4.4BSD, in the second sector of a slice or disk. OpenBSD's version 1 has the upper
// halves of 48-bit numbers where the others have the fragment size.
const (
	bsdMagic  = 0x82564557
	bsdOff    = 512
	bsdRaw    = 2 // partition c: the whole slice or disk
	bsdUnused = 0 // bsdEntry.FSType
)

type bsdHead struct {
	Magic      uint32
	_          [36]byte
	SectorSize uint32
	_          [70]byte
	Version    uint16 // OpenBSD
	_          [16]byte
	Magic2     uint32
	Checksum   uint16 // the exclusive or of all 16-bit words, the partitions' included, is 0
	Count      uint16
	_          [8]byte
}

type bsdEntry struct {
	Size    uint32 // sectors
	Offset  uint32 // sectors
	OffsetH uint16 // OpenBSD; others: fragment size
	SizeH   uint16
	FSType  uint8
	Frag    uint8
	CPG     uint16
}

// Apple partition map: Inside Macintosh, Devices, 3-12 and 3-25. Big-endian.
const (
	apmDriverMagic = 0x4552 // "ER", block 0, with the block size behind it
	apmMagic       = 0x504d // "PM", each entry, one a block from block 1
	apmMax         = 256    // entries; Linux's limit
)

type apmEntry struct {
	Magic     uint16
	Reserved  uint16
	MapBlocks uint32 // entries in the map
	Start     uint32 // blocks
	Count     uint32 // blocks
	Name      [32]byte
	Type      [32]byte
	DataStart uint32
	DataCount uint32
	Status    uint32
}

// Tables that are recognised by name only.
const (
	sgiMagic   = 0x0be5a941 // IRIX volume header: byte 0
	sunMagic   = 0xdabe     // Sun label: byte 508
	aixMagic   = 0xc9c2d4c1 // "IBMA" in EBCDIC, byte 0: an AIX disk, whose sector 0 may end in 55 AA
	rdbMagic   = 0x5244534b // "RDSK": Amiga rigid disk block, in one of the first 16 sectors
	dasdMagic  = 0xe5d6d3f1 // "VOL1" in EBCDIC: volume label of a DASD, in its third block
	dasdLNX1   = 0xd3d5e7f1 // "LNX1" in EBCDIC
	atariOff   = 0x1c6      // Atari root sector: four entries
	ldmMagic   = "PRIVHEAD" // Windows logical disk manager: sector 6
	ldmPrivOff = 6 * 512
)

// Linux RAID superblocks: include/uapi/linux/raid/md_p.h.
const (
	mdMagic          = 0xa92b4efc
	md1Len           = 256     // behind it: a 16-bit role for each of MaxDev devices
	mdMaxDev         = 1920    // what fits into 4 KiB
	mdRecoveryOffset = 1 << 1  // feature: RecoveryOffset is valid
	mdBadBlocks      = 1 << 3  // feature: there is a log of bad blocks
	mdReshape        = 1 << 2  // feature: the array changes its shape
	mdRAID0Layout    = 1 << 13 // feature: Layout says how a RAID 0 of unequal members goes
	mdReplacement    = 1 << 4  // feature: the member is to replace another of its role
	mdHasJournal     = 1 << 10 // feature: writes go through a journal device
	mdFeatures       = 1<<14 - 1
	mdLinear         = -1 // level
	raid0Original    = 1  // layout of level 0: before Linux 3.14
	raid0Alternate   = 2
	maxBadLog        = 128    // sectors; mdadm reserves 8
	mdDiskFaulty     = 1 << 0 // md0Disk.State
	mdDiskActive     = 1 << 1
	mdDiskSync       = 1 << 2
)

// md1Super is version 1: at the start (1.1), at 4 KiB (1.2) or 8 to 12 KiB before the end (1.0). Little-endian.
type md1Super struct {
	Magic          uint32
	Major          uint32
	FeatureMap     uint32
	_              uint32
	UUID           [16]byte
	Name           [32]byte
	CTime          uint64
	Level          int32
	Layout         uint32
	Size           uint64 // sectors
	ChunkSize      uint32 // sectors
	RaidDisks      uint32
	BitmapOffset   uint32
	NewLevel       int32
	ReshapePos     uint64
	DeltaDisks     int32
	NewLayout      uint32
	NewChunk       uint32
	NewOffset      uint32
	DataOffset     uint64 // sectors
	DataSize       uint64
	SuperOffset    uint64
	RecoveryOffset uint64
	DevNumber      uint32
	Corrected      uint32
	DeviceUUID     [16]byte
	DevFlags       uint8
	BadShift       uint8
	BadSize        uint16
	BadOffset      uint32
	UTime          uint64
	Events         uint64
	ResyncOffset   uint64
	Checksum       uint32
	MaxDev         uint32
	_              [32]byte
}

// md0Super is version 0.90: in the last 64 KiB that are aligned so. In the byte order of the machine.
type md0Super struct {
	Magic      uint32
	Major      uint32
	Minor      uint32 // 90, or 91 while the array changes its shape
	Patch      uint32
	GValid     uint32
	UUID0      uint32
	CTime      uint32
	Level      int32
	Size       uint32 // KiB
	NrDisks    uint32
	RaidDisks  uint32
	MDMinor    uint32
	NotPersist uint32
	UUID1      uint32
	UUID2      uint32
	UUID3      uint32
	_          [16]uint32
	UTime      uint32
	State      uint32
	Active     uint32
	Working    uint32
	Failed     uint32
	Spare      uint32
	Checksum   uint32
	EventsLo   uint32 // on a big-endian machine the upper half
	EventsHi   uint32
	_          [2]uint32
	RecoveryCP uint32
	_          [20]uint32
	Layout     uint32
	ChunkSize  uint32 // bytes
	_          [62]uint32
	Disks      [27]md0Disk
	ThisDisk   md0Disk
}

type md0Disk struct {
	Number   uint32
	Major    uint32
	Minor    uint32
	RaidDisk uint32
	State    uint32
	_        [27]uint32
}

// LVM2 physical volumes: lib/format_text/layout.h of LVM2. The label lies in one of the first four sectors.
const (
	lvmLabel     = "LABELONE"
	lvmType      = "LVM2 001"
	lvmLabels    = 4 // sectors
	mdaMagic     = " LVM2 x[5A%r0N*>"
	mdaHeaderLen = 512
	mdaIgnored   = 1 // rawLocation.Flags
	maxAreas     = 16
)

type lvmLabelHeader struct {
	Magic  [8]byte
	Sector uint64
	CRC    uint32 // of the sector from Offset on
	Offset uint32 // of the physical volume's header in the sector
	Type   [8]byte
}

// mdaHeader is at the start of a metadata area, a ring of texts of which one counts.
type mdaHeader struct {
	CRC       uint32 // of the 508 bytes behind it
	Magic     [16]byte
	Version   uint32
	Start     uint64 // of the area in the volume
	Size      uint64
	Locations [4]rawLocation // the first: the committed text
}

type rawLocation struct {
	Offset uint64 // from the start of the area; the text goes on behind the header when it reaches the end
	Size   uint64
	CRC    uint32
	Flags  uint32
}

// dm-raid keeps a superblock in each metadata volume: drivers/md/dm-raid.c. Little-endian.
type dmRaidSuper struct {
	Magic    uint32
	Compat   uint32
	Devices  uint32
	Position uint32
	Events   uint64
	Failed   uint64 // one bit a member
	Recovery uint64 // sectors of this member that are rebuilt
	Resync   uint64
	Level    uint32
	Layout   uint32
	Stripe   uint32
}

const dmRaidMagic = 0x64526d44
