package fat

// Boot sector and BIOS Parameter Block (FAT specification, "Boot Sector and BPB"): the part that all have.
type bootSector struct {
	Jump              [3]byte
	OEM               [8]byte
	SectorSize        uint16 // bytes
	SectorsPerCluster uint8
	Reserved          uint16 // sectors before the first table
	FATs              uint8
	RootEntries       uint16 // FAT12/16
	Sectors16         uint16 // or 0: Sectors32
	Media             uint8
	FATSectors16      uint16 // FAT12/16, or 0: FAT32
	SectorsPerTrack   uint16
	Heads             uint16
	Hidden            uint32 // sectors before the volume
	Sectors32         uint32
}

// What follows bootSector on FAT12 and FAT16.
type extended16 struct {
	Drive     uint8
	State     uint8 // Linux: stateDirty
	Signature uint8 // extended: Serial follows; extendedLabel: Label and Type too
	Serial    uint32
	Label     [11]byte
	Type      [8]byte
}

// What follows bootSector on FAT32.
type extended32 struct {
	FATSectors  uint32
	Flags       uint16 // flagsActive, flagsNoMirror
	Version     uint16
	RootCluster uint32
	InfoSector  uint16
	Backup      uint16
	Unused      [12]byte
	extended16
}

const (
	bootLen       = 512
	bootBase      = 36 // bytes in bootSector
	magicAt       = 510
	extended      = 0x28
	extendedLabel = 0x29

	stateDirty    = 1 << 0
	flagsActive   = 0x0F
	flagsNoMirror = 1 << 7
)

// FSInfo (FAT specification, "FAT32 FSInfo Sector Structure").
const (
	infoLen      = 512
	infoMagic1   = 0x41615252 // at 0
	infoMagic2   = 0x61417272 // at infoMagic2At
	infoMagic2At = 484
	infoFreeAt   = 488 // free clusters, or infoUnknown
	infoUnknown  = 0xFFFFFFFF
)

// Directory entry (FAT specification, "FAT Directory Structure"): offsets.
const (
	entName      = 0 // 8 and 3 characters
	entAttr      = 11
	entCase      = 12 // caseBase, caseExt: Windows NT
	entBTimeCent = 13
	entBTime     = 14
	entBDate     = 16
	entADate     = 18
	entStartHigh = 20 // FAT32
	entMTime     = 22
	entMDate     = 24
	entStartLow  = 26
	entSize      = 28

	nameEnd     = 0x00 // first byte of the name: no entry here, nor behind
	nameDeleted = 0xE5
	nameE5      = 0x05 // stands for 0xE5

	attrVolume = 0x08 // the volume's label; the others are package dos's
	attrLong   = 0x0F // with attrMask: a piece of a long name
	attrMask   = 0x3F

	caseBase = 0x08 // the base name is in lower case
	caseExt  = 0x10 // the extension is in lower case
)

// Piece of a long name (FAT specification, "FAT Long Directory Entries").
const (
	longOrder    = 0 // longLast and the number, from 1
	longSum      = 13
	longLast     = 0x40
	longNumber   = 0x3F
	longUnits    = 13 // UTF-16 units in a piece
	maxPieces    = 20
	maxLongUnits = 255
)

// longAt holds where the units of a piece lie.
var longAt = [longUnits]uint8{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}

const (
	maxClusters12 = 4084 // more make it FAT16: so do Microsoft and Linux
	maxClusters16 = 65524
	maxClusters32 = 0x0FFFFFF5 // 0x0FFFFFF7 marks a bad cluster
	maxDirectory  = 65536 * 32 // bytes, FAT specification, "FAT Directory Structure"
)
