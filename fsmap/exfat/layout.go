package exfat

// Main and Backup Boot Sector (exFAT specification, 3.1).
type bootSector struct {
	Jump          [3]byte
	Name          [8]byte // bootName
	Zero          [53]byte
	Partition     uint64 // sectors before the volume
	VolumeLength  uint64 // sectors
	FATOffset     uint32 // sectors
	FATLength     uint32 // sectors
	HeapOffset    uint32 // sectors
	Clusters      uint32
	RootCluster   uint32
	Serial        uint32
	Revision      uint16 // major in the high byte
	Flags         uint16
	SectorShift   uint8
	ClusterShift  uint8 // of the sectors in a cluster
	FATs          uint8
	DriveSelect   uint8
	PercentInUse  uint8
	Reserved      [7]byte
	BootCode      [390]byte
	BootSignature uint16
}

const (
	bootName      = "EXFAT   "
	bootSignature = 0xAA55

	flagSecondFAT    = 1 << 0
	flagDirty        = 1 << 1
	flagMediaFailure = 1 << 2

	// Boot region (3.4): the last of its sectors repeats the checksum of the others, without three bytes that change.
	bootSectors    = 12
	offFlags       = 106
	offPercent     = 112
	minSectorShift = 9
	maxSectorShift = 12
	maxShift       = 25 // of the bytes in a cluster
	maxClusters    = 1<<32 - 11
)

// Types of directory entries (6.2 to 7): in use, secondary, benign, and a code.
const (
	typeEnd      = 0x00
	typeBitmap   = 0x81
	typeUpcase   = 0x82
	typeLabel    = 0x83
	typeFile     = 0x85
	typeGUID     = 0xA0
	typeStream   = 0xC0
	typeName     = 0xC1
	typeInUse    = 0x80
	typeSecond   = 0x40
	typeBenign   = 0x20
	maxDirectory = 256 << 20 // bytes (7.4)
)

// Offsets in directory entries.
const (
	// Allocation Bitmap (7.1), Up-case Table (7.2), Stream Extension (7.6): alike.
	entCluster = 20
	entLength  = 24

	bitmapFlags = 1 // bit 0: of the second table
	upcaseSum   = 4
	labelCount  = 1 // UTF-16 units of the label (7.3)
	labelUnits  = 2
	maxLabel    = 11
	guidAt      = 6 // Volume GUID (7.5)

	fileSecondaries = 1 // File (7.4)
	fileSum         = 2
	fileAttrs       = 4
	fileCreated     = 8
	fileModified    = 12
	fileAccessed    = 16
	fileCreated10   = 20
	fileModified10  = 21
	fileCreatedTZ   = 22
	fileModifiedTZ  = 23
	fileAccessedTZ  = 24

	streamFlags      = 1
	streamNameLength = 3
	streamValid      = 8
	streamPossible   = 1 << 0 // there may be clusters
	streamContiguous = 1 << 1 // and the table does not describe them
	nameUnits        = 2      // File Name (7.7)
	nameUnitsLen     = 15
	maxNameEntries   = 18
	maxName          = 255
	tzValid          = 0x80 // (7.4.10): quarters of an hour, 7 bits with sign
)
