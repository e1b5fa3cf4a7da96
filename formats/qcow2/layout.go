package qcow2

// Magic begins every image: "QFI\xfb".
const Magic = 0x514649fb

// header is the part of the header that both versions have. (Header)
type header struct {
	Magic                 uint32
	Version               uint32
	BackingFileOffset     uint64
	BackingFileSize       uint32
	ClusterBits           uint32
	Size                  uint64 // of the virtual disk, in bytes
	CryptMethod           uint32
	L1Size                uint32 // entries
	L1TableOffset         uint64
	RefcountTableOffset   uint64
	RefcountTableClusters uint32
	NbSnapshots           uint32
	SnapshotsOffset       uint64
}

// header3 is what version 3 has behind it. (Header)
type header3 struct {
	Incompatible  uint64
	Compatible    uint64
	Autoclear     uint64
	RefcountOrder uint32
	HeaderLength  uint32
}

const (
	headerLen2 = 72
	headerLen3 = 104
	// compressionTypeAt is the first additional field: one byte. (Additional fields)
	compressionTypeAt = 104
)

// Incompatible features. (Header)
const (
	incompatDirty = 1 << iota
	incompatCorrupt
	incompatDataFile
	incompatCompression
	incompatExtendedL2
	incompatKnown = 1<<iota - 1
)

// Autoclear features. (Header)
const (
	autoclearBitmaps = 1 << iota
	autoclearRawData
)

// Values of CryptMethod. (Header)
const (
	cryptNone = iota
	cryptAES
	cryptLUKS
)

// Values of the compression type. (Additional fields)
const (
	compressDeflate = iota
	compressZstd
)

// Limits, in bits of a cluster's length. QEMU has the upper one.
const (
	minClusterBits = 9
	maxClusterBits = 21
	// An extended L2 entry needs subclusters of at least 512 bytes.
	minExtendedBits = 14
)

// Limits that QEMU has too (block/qcow2.h). They keep hostile numbers from sizing anything.
const (
	maxL1Bytes       = 32 << 20
	maxRefcountTable = 8 << 20 // bytes
	maxBackingName   = 1023
	maxSnapshots     = 65536
	maxSnapshotTable = 1024 * maxSnapshots // bytes
	maxSnapshotExtra = 1024
	maxBitmaps       = 65535
	maxBitmapDir     = 16 << 20 // bytes
	maxBitmapName    = 1023
)

// Header extensions. (Header extensions)
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extFeatureNames  = 0x6803f857
	extBitmaps       = 0x23852875
	extCrypto        = 0x0537be77
	extDataFile      = 0x44415441
)

// featureName is an entry of the feature name table. (Feature name table)
type featureName struct {
	Type uint8 // 0: incompatible
	Bit  uint8
	Name [46]byte
}

// L1 and L2 entries. (Cluster mapping)
const (
	offsetMask   = 0x00fffffffffffe00 // bits 9 to 55
	entryCopied  = 1 << 63
	entryPacked  = 1 << 62
	entryZero    = 1 << 0 // version 3, standard entries
	l1Reserved   = 0x7f000000000001ff
	l2Reserved   = 0x3f000000000001fe // standard clusters
	packedOffset = 1<<56 - 1          // bits that a compressed cluster's offset may have
)

// Extended L2 entries. (Extended L2 Entries)
const subclusters = 32

// bitmapsExt is the bitmaps extension. (Bitmaps extension)
type bitmapsExt struct {
	NbBitmaps uint32
	Reserved  uint32
	DirSize   uint64
	DirOffset uint64
}

// cryptoExt is the full disk encryption header pointer.
type cryptoExt struct {
	Offset, Length uint64
}

// snapshotEntry is the fixed part of an entry of the snapshot table. (Snapshots)
type snapshotEntry struct {
	L1TableOffset uint64
	L1Size        uint32
	IDLen         uint16
	NameLen       uint16
	Seconds       uint32
	Nanoseconds   uint32
	GuestClock    uint64
	VMStateSize   uint32
	ExtraLen      uint32
}

// snapshotExtra is the extra data that is defined. (Snapshots)
type snapshotExtra struct {
	VMStateSize uint64
	DiskSize    uint64
}

// bitmapEntry is the fixed part of an entry of the bitmap directory. (Bitmap directory)
type bitmapEntry struct {
	TableOffset     uint64
	TableSize       uint32 // entries
	Flags           uint32
	Type            uint8
	GranularityBits uint8
	NameLen         uint16
	ExtraLen        uint32
}

const (
	bitmapInUse           = 1 << 0
	bitmapAuto            = 1 << 1
	bitmapExtraCompatible = 1 << 2
	bitmapTypeDirty       = 1
	maxGranularityBits    = 31
)

// Bitmap table entries. (Bitmap table)
const (
	bitmapAllOnes  = 1 << 0 // where there is no offset
	bitmapReserved = 0xff000000000001fe
)
