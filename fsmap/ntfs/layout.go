package ntfs

// Boot sector (Linux-NTFS, $Boot). Offsets in bytes.
const (
	bootOEM               = 3  // "NTFS    "
	bootBytesPerSector    = 11 // u16
	bootSectorsPerCluster = 13 // u8; above 0x80: 2^(256-n)
	bootSectors           = 40 // u64
	bootMFT               = 48 // u64, cluster
	bootMFTMirr           = 56 // u64, cluster
	bootRecordSize        = 64 // i8: clusters, or 2^-n bytes
	bootIndexSize         = 68 // i8, likewise
	bootSerial            = 72 // u64
	bootSize              = 512
)

// Multi-sector header of MFT records and index blocks.
const (
	stride      = 512 // bytes that one update sequence entry protects, whatever the sector size
	msMagic     = 0   // "FILE", "INDX", "RSTR", "BAAD" after a failed write
	msUSAOffset = 4   // u16
	msUSACount  = 6   // u16: the sequence number and one entry a stride
	msLSN       = 8   // u64: of the log record that changed it last
)

// MFT record header.
const (
	recSequence  = 16 // u16
	recLinks     = 18 // u16
	recAttrs     = 20 // u16: offset of the first attribute
	recFlags     = 22 // u16
	recUsed      = 24 // u32
	recBase      = 32 // u64: reference to the base record, 0 in one
	recNextID    = 40 // u16: of the next attribute
	recNumber    = 44 // u32 (3.1)
	recHeaderLen = 42

	recInUse     = 1
	recDirectory = 2
)

// Attribute header.
const (
	attrType     = 0  // u32
	attrLength   = 4  // u32
	attrNonRes   = 8  // u8
	attrNameLen  = 9  // u8, UTF-16 units
	attrNameOff  = 10 // u16
	attrFlags    = 12 // u16
	attrID       = 14 // u16
	attrResLen   = 16 // u32
	attrResOff   = 20 // u16
	attrIndexed  = 22 // u8: 1 for a name, which an index holds too
	attrLowest   = 16 // u64, VCN
	attrHighest  = 24 // u64, VCN
	attrPairs    = 32 // u16: offset of the mapping pairs
	attrUnit     = 34 // u8: log2 of the clusters in a compression unit
	attrAlloc    = 40 // u64
	attrSize     = 48 // u64
	attrInit     = 56 // u64: valid data length
	attrResHead  = 24
	attrNonHead  = 64
	attrHeadMin  = 16
	flCompressed = 0x0001
	flEncrypted  = 0x4000
	flSparse     = 0x8000
)

// Attribute types.
const (
	atStandardInformation = 0x10
	atAttributeList       = 0x20
	atFileName            = 0x30
	atVolumeName          = 0x60
	atVolumeInformation   = 0x70
	atData                = 0x80
	atIndexRoot           = 0x90
	atIndexAllocation     = 0xA0
	atBitmap              = 0xB0
	atReparsePoint        = 0xC0
	atEA                  = 0xE0
	atEnd                 = 0xFFFFFFFF
)

// $ATTRIBUTE_LIST entry.
const (
	alType    = 0  // u32
	alLength  = 4  // u16
	alNameLen = 6  // u8
	alNameOff = 7  // u8
	alLowest  = 8  // u64
	alRef     = 16 // u64
	alMin     = 26
)

// $STANDARD_INFORMATION.
const (
	siCreated    = 0 // FILETIME
	siModified   = 8
	siChanged    = 16
	siAccessed   = 24
	siAttrs      = 32 // u32, [MS-FSCC] 2.6
	siSecurityID = 52 // u32, from 3.0 on
	siMin        = 48
)

// $FILE_NAME, as attribute and as index key.
const (
	fnParent    = 0  // u64
	fnTimes     = 8  // where what changes with the file begins: times, sizes, attributes
	fnAttrs     = 56 // u32
	fnNameLen   = 64 // u8
	fnNamespace = 65 // u8: 0 POSIX, 1 Win32, 2 DOS, 3 both
	fnName      = 66
	nsDOS       = 2
)

// $INDEX_ROOT and index headers.
const (
	irBlockSize = 8  // u32, bytes
	irHeader    = 16 // the index header in $INDEX_ROOT
	ibVCN       = 16 // u64, in an INDX block
	ibHeader    = 24 // the index header in an INDX block
	ihFirst     = 0  // u32: offset of the first entry, from the header
	ihUsed      = 4  // u32: bytes in use, from the header
	ihAlloc     = 8  // u32: bytes there are, from the header
	ihLen       = 16
	ieRef       = 0  // u64
	ieLength    = 8  // u16
	ieKeyLen    = 10 // u16
	ieFlags     = 12 // u16
	ieKey       = 16
	ieSub       = 1 // the entry's last 8 bytes name a block of entries before it
	ieLast      = 2
	ieDataOff   = 0 // u16: of an index that isn't one of names, where an entry's data lies
)

// Fixed MFT records.
const (
	recMFT       = 0
	recLogFile   = 2
	recVolume    = 3
	recRoot      = 5
	recBitmapRec = 6
	recSecure    = 9
	firstUser    = 16 // records below are the file system's own
)

// Volume flags ($VOLUME_INFORMATION, offset 10).
const (
	viMajor    = 8
	viMinor    = 9
	viFlags    = 10
	volDirty   = 0x0001
	volUpgrade = 0x0004
)

// File attributes, [MS-FSCC] 2.6.
var fileAttrs = []struct {
	bit  uint32
	name string
}{
	{0x0001, "read-only"}, {0x0002, "hidden"}, {0x0004, "system"}, {0x0020, "archive"}, {0x0100, "temporary"},
	{0x0200, "sparse"}, {0x0400, "reparse-point"}, {0x0800, "compressed"}, {0x1000, "offline"},
	{0x2000, "not-content-indexed"}, {0x4000, "encrypted"}, {0x8000, "integrity-stream"},
}

// Reparse tags, [MS-FSCC] 2.1.2.1.
const (
	tagMountPoint = 0xA0000003
	tagSymlink    = 0xA000000C
	tagDedup      = 0x80000013
	tagWOF        = 0x80000017
	tagLXSymlink  = 0xA000001D
	tagAFUnix     = 0x80000023
	tagLXFIFO     = 0x80000024
	tagLXChar     = 0x80000025
	tagLXBlock    = 0x80000026
	tagCloud      = 0x9000001A // cloud files: 0x9000001A to 0x9000F01A
	tagCloudMask  = 0xFFFF0FFF
)

// Limits. Each is well above what Windows writes.
const (
	maxCluster    = 2 << 20   // bytes: Windows 10 formats up to 2 MiB
	maxRecord     = 64 << 10  // bytes of an MFT record
	maxIndexBlock = 64 << 10  // bytes
	maxAttrList   = 64 << 20  // bytes; Windows stops at 256 KiB
	maxExtension  = 1 << 20   // extension records of one file
	maxReparse    = 16 << 10  // bytes, [MS-FSCC] 2.1.2
	maxEA         = 64 << 10  // bytes, [MS-FSCC] 2.4.16
	maxSDS        = 256 << 20 // bytes of $Secure:$SDS that are read
)
