package vmdk

// sector is the unit of every offset and size on disk.
const sector = 512

// Magic numbers at byte 0 of an extent.
const (
	magicHosted   = "KDMV"                             // VDF, "Hosted Sparse Extents"
	magicCOWD     = "COWD"                             // VDF, "ESXi Host Sparse Extents"
	magicSE       = "\xbe\xba\xfe\xca\x00\x00\x00\x00" // QEMU: SESPARSE_CONST_HEADER_MAGIC
	magicVolatile = "\xfe\xca\xfe\xca\x00\x00\x00\x00" // QEMU: SESPARSE_VOLATILE_HEADER_MAGIC
)

// hostedHeader is SparseExtentHeader (VDF, "Hosted Sparse Extents"), packed, at byte 0, and as the footer of a stream.
type hostedHeader struct {
	Magic        [4]byte
	Version      uint32
	Flags        uint32
	Capacity     uint64 // sectors of the disk that the extent stands for
	GrainSize    uint64 // sectors
	DescOffset   uint64 // of the embedded descriptor, 0: there is none
	DescSize     uint64
	GTEs         uint32 // entries of a grain table
	RGDOffset    uint64 // redundant grain directory
	GDOffset     uint64 // grain directory, or gdAtEnd
	Overhead     uint64 // sectors before the first grain
	Unclean      uint8  // the extent was not closed
	NewlineCheck [4]byte
	Compression  uint16
	Pad          [433]byte
}

const (
	newlineCheck = "\n \r\n"
	gdAtEnd      = ^uint64(0) // the footer tells where the directory is

	// Flags. The upper half is incompatible: who doesn't know a bit must not read the extent (open-vmdk:
	// SPARSEFLAG_INCOMPAT_FLAGS).
	flagNewline      = 1 << 0
	flagRedundant    = 1 << 1 // there is a redundant grain directory
	flagZeroGrain    = 1 << 2 // a table entry of 1 is a grain of zeros (version 2)
	flagCompressed   = 1 << 16
	flagMarkers      = 1 << 17
	flagIncompatible = 0xffff0000

	compressNone    = 0
	compressDeflate = 1 // in truth RFC 1950: deflate with zlib's header and checksum

	maxVersion = 3 // 2 came with zeroed grains, 3 with changed block tracking; neither changes the rest
)

// A marker heads what follows it in a stream (VDF, "Stream-Optimized Compressed Sparse Extents"). Size 0: its type
// says what it is, and it fills a sector. Otherwise Size bytes of a compressed grain follow at byte 12, padded to a
// sector; Value is then the grain's first sector on the disk, else the sectors that follow.
//
//	0 Value uint64, 8 Size uint32, 12 Type uint32
const (
	markerGrainLen = 12 // bytes before the compressed grain

	markerEOS    = 0
	markerGT     = 1
	markerGD     = 2
	markerFooter = 3
)

// cowdHeader is COWDisk_Header (VDF, "ESXi Host Sparse Extents"), as far as vmkit reads it.
type cowdHeader struct {
	Magic      [4]byte
	Version    uint32
	Flags      uint32
	Capacity   uint32 // sectors
	GrainSize  uint32 // sectors
	GDOffset   uint32
	GDEntries  uint32
	FreeSector uint32
	// A child names its parent here; a root extent holds three words of geometry in its place.
	ParentName [1024]byte
}

const (
	cowdVersion = 1
	cowdGTEs    = 4096
	cowdUnclean = 1648 // byte of the header's uncleanShutdown, a uint32
)

// seHeader is the constant header of an seSparse extent (QEMU: VMDKSESparseConstHeader), at byte 0. Offsets and sizes
// are in sectors.
type seHeader struct {
	Magic               [8]byte
	Version             uint64
	Capacity            uint64
	GrainSize           uint64
	GrainTableSize      uint64
	Flags               uint64
	Reserved            [4]uint64
	VolatileOffset      uint64
	VolatileSize        uint64
	JournalHeaderOffset uint64
	JournalHeaderSize   uint64
	JournalOffset       uint64
	JournalSize         uint64
	GDOffset            uint64
	GDSize              uint64
	GTsOffset           uint64
	GTsSize             uint64
	FreeBitmapOffset    uint64
	FreeBitmapSize      uint64
	BackmapOffset       uint64
	BackmapSize         uint64
	GrainsOffset        uint64
	GrainsSize          uint64
	Pad                 [304]byte
}

// seVolatile is the volatile header (QEMU: VMDKSESparseVolatileHeader).
type seVolatile struct {
	Magic         [8]byte
	FreeGT        uint64
	NextTxn       uint64
	ReplayJournal uint64
	Pad           [480]byte
}

const (
	seVersion        = 0x0000000200000001
	seGrainSize      = 8  // sectors; QEMU knows no other
	seGrainTableSize = 64 // sectors: 4096 entries of 8 bytes

	// The top four bits of a directory entry and of a table entry say what it is (QEMU: get_cluster_offset).
	seTypeMask    = 0xf000000000000000
	seTable       = 0x1000000000000000 // directory: the low 32 bits number a table
	seUnallocated = 0x0000000000000000
	seUnmapped    = 0x1000000000000000
	seZero        = 0x2000000000000000
	seAllocated   = 0x3000000000000000
)

// Bounds, on what would else size memory or loops.
const (
	// maxDescriptor is a descriptor's length; QEMU reads as much.
	maxDescriptor = 1 << 20
	// maxCapacity is 1 EiB in sectors; VMware stops at 62 TiB.
	maxCapacity = 1 << 51
	// maxGrain is 1 GiB in sectors, QEMU's limit.
	maxGrain = 1 << 21
	// maxGTEs is the entries of a grain table; VMware and QEMU know 512 only.
	maxGTEs = 1 << 16
	// maxTables is the entries of a grain directory, 32 MiB of them: 256 TiB at the usual 32 MiB a table.
	maxTables = 1 << 23
)
