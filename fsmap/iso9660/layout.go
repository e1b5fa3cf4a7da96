package iso9660

import "encoding/binary"

const (
	sectorLen   = 2048
	systemArea  = 16 // sectors before the volume descriptors
	standardID  = "CD001"
	highSierra  = "CDROM" // at 9 of the descriptor
	maxVolDescs = 100     // as Linux

	// Types of volume descriptors (ECMA-119, 8.1.1).
	vdBoot          = 0
	vdPrimary       = 1
	vdSupplementary = 2
	vdEnd           = 255
)

// both is a number that is stored in both byte orders (ECMA-119, 7.3.3).
type both32 struct {
	LE uint32
	BE [4]byte
}

// both16 is a number that is stored in both byte orders (ECMA-119, 7.2.3).
type both16 struct {
	LE uint16
	BE [2]byte
}

func (b both32) agree() bool { return binary.BigEndian.Uint32(b.BE[:]) == b.LE }
func (b both16) agree() bool { return binary.BigEndian.Uint16(b.BE[:]) == b.LE }

// Primary and supplementary volume descriptor (ECMA-119, 8.4 and 8.5).
type volumeDescriptor struct {
	Type        uint8
	ID          [5]byte
	Version     uint8
	Flags       uint8
	SystemID    [32]byte
	VolumeID    [32]byte
	_           [8]byte
	Space       both32 // blocks
	Escapes     [32]byte
	SetSize     both16
	Sequence    both16
	BlockSize   both16
	PathTable   both32
	PathTables  [16]byte
	Root        [34]byte // a directory record
	VolumeSet   [128]byte
	Publisher   [128]byte
	Preparer    [128]byte
	Application [128]byte
	Copyright   [37]byte
	Abstract    [37]byte
	Bibliograph [37]byte
	Created     longTime
	Modified    longTime
	Expires     longTime
	Effective   longTime
	Structure   uint8
}

// longTime is a date and time in digits (ECMA-119, 8.4.26.1).
type longTime struct {
	Digits [16]byte
	Zone   int8
}

// Directory record (ECMA-119, 9.1): offsets.
const (
	recLen      = 0
	recExtended = 1 // blocks of the extended attribute record before the data
	recExtent   = 2 // both32
	recSize     = 10
	recDate     = 18 // 7 bytes
	recFlags    = 25
	recUnit     = 26
	recGap      = 27
	recVolume   = 28 // both16
	recNameLen  = 32
	recName     = 33
	minRecord   = 34

	flagDirectory  = 1 << 1
	flagAssociated = 1 << 2
	flagMulti      = 1 << 7 // the file goes on in the next record

	maxDirectory = 1 << 30
	maxSections  = 1 << 16 // records of one file
)

// Joliet's escape sequences (Joliet specification): UCS-2, levels 1 to 3.
var jolietEscapes = [...]string{"%/@", "%/C", "%/E"}

// System use entries (SUSP 5, RRIP 4): signature, length, version, data.
const (
	suCE = 'C'<<8 | 'E' // continuation area
	suST = 'S'<<8 | 'T' // end
	suSP = 'S'<<8 | 'P' // first of the root's entries
	suER = 'E'<<8 | 'R' // extension in use
	suRR = 'R'<<8 | 'R' // Rock Ridge 1.09
	suNM = 'N'<<8 | 'M' // name
	suPX = 'P'<<8 | 'X' // mode, links, owner
	suPN = 'P'<<8 | 'N' // device number
	suSL = 'S'<<8 | 'L' // symlink
	suTF = 'T'<<8 | 'F' // times
	suCL = 'C'<<8 | 'L' // directory that was moved away
	suRE = 'R'<<8 | 'E' // directory that was moved here
	suSF = 'S'<<8 | 'F' // sparse file
	suZF = 'Z'<<8 | 'F' // zisofs
	suZ2 = 'Z'<<8 | '2' // zisofs2, by xorriso's choice

	suHead    = 4
	maxAreas  = 32 // continuation areas of a record, as Linux
	continues = 1  // flag of NM and SL

	nmCurrent = 2
	nmParent  = 4

	slCurrent = 2
	slParent  = 4
	slRoot    = 8
	slKnown   = continues | slCurrent | slParent | slRoot

	tfLong = 1 << 7
)

// Times of a TF entry, by flag bit and in the order in which they stand.
const (
	tfCreation = iota
	tfModify
	tfAccess
	tfAttributes
	tfTimes = 7
)

// El Torito (sections 2 and 3): offsets.
const (
	bootSystem   = "EL TORITO SPECIFICATION" // at 7 of the boot record
	bootCatalog  = 0x47                      // sector of the catalog
	catEntryLen  = 32
	catValid     = 1
	catBootable  = 0x88
	catPassive   = 0
	catHeader    = 0x90
	catLast      = 0x91
	catExtension = 0x44
	maxBootTable = 16 << 10 // bytes of the catalog that are looked at: 512 entries
)

// zisofs header, version 1 and 2.
const (
	zisofsMagic1 = "\x37\xE4\x53\x96\xC9\xDB\xD6\x07" // size32, header length / 4, log2 of the block size; 32-bit pointers
	zisofsMagic2 = "\xEF\x22\x55\xA1\xBC\x1B\x95\xA0" // version, header length / 4, algorithm, log2, size64; 64-bit pointers
	zisofsZlib   = 1
	minBlockLog  = 15
	maxBlockLog  = 20
)
