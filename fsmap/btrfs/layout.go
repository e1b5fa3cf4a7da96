package btrfs

// Super block (struct btrfs_super_block). Offsets in bytes.
const (
	superPos  = 64 << 10
	superSize = 4096

	sbFSID       = 0x20
	sbBytenr     = 0x30 // u64: where this copy lies
	sbFlags      = 0x38 // u64
	sbMagic      = 0x40
	sbGeneration = 0x48
	sbRoot       = 0x50
	sbChunkRoot  = 0x58
	sbLogRoot    = 0x60
	sbTotal      = 0x70
	sbUsed       = 0x78
	sbDevices    = 0x88 // u64
	sbSectorSize = 0x90 // u32
	sbNodeSize   = 0x94 // u32
	sbArraySize  = 0xa0 // u32
	sbChunkGen   = 0xa4 // u64
	sbROCompat   = 0xb4 // u64
	sbIncompat   = 0xbc // u64
	sbCsumType   = 0xc4 // u16
	sbRootLevel  = 0xc6 // u8
	sbChunkLevel = 0xc7
	sbLogLevel   = 0xc8
	sbDevID      = 0xc9  // u64, in the device item
	sbDevUUID    = 0x10b // in the device item
	sbLabel      = 0x12b // 256 bytes
	sbMetaUUID   = 0x23b
	sbArray      = 0x32b // 2048 bytes
	sbArrayMax   = 2048
	csumSize     = 32
	magic        = "_BHRfS_M"
	flSeeding    = 1 << 32
	flMetadump   = 1 << 33
	superMirrors = 3 // at 64 KiB, 64 MiB and 256 GiB
	superMirror1 = 64 << 20
	superMirror2 = 256 << 30
	minNode      = 4 << 10
	maxNode      = 64 << 10
	maxDevices   = 1 << 12
	maxChunks    = 1 << 22 // 4 PiB of 1 GiB chunks
	maxLevel     = 7
	maxStripes   = 1 << 10
	maxLogItems  = 1 << 22 // items of a log tree kept in memory
	firstFreeID  = 256
	emptySubvol  = 1 << 63 // marks, with the subvolume's id, the empty directory that stands for it in a snapshot
)

// Incompatible features (BTRFS_FEATURE_INCOMPAT_*).
const (
	incMetadataUUID = 1 << 10
	incNoHoles      = 1 << 9
	incZoned        = 1 << 12
	incExtentTree2  = 1 << 13
	incStripeTree   = 1 << 14
)

// incompat names every bit; known are those that reading allows.
var incompat = []struct {
	bit   uint64
	name  string
	known bool
}{
	{1 << 0, "mixed_backref", true}, {1 << 1, "default_subvol", true}, {1 << 2, "mixed_groups", true},
	{1 << 3, "compress_lzo", true}, {1 << 4, "compress_zstd", true}, {1 << 5, "big_metadata", true},
	{1 << 6, "extended_iref", true}, {1 << 7, "raid56", true}, {1 << 8, "skinny_metadata", true},
	{incNoHoles, "no_holes", true}, {incMetadataUUID, "metadata_uuid", true}, {1 << 11, "raid1c34", true},
	{incZoned, "zoned", false}, {incExtentTree2, "extent_tree_v2", false}, {incStripeTree, "raid_stripe_tree", false},
	{1 << 16, "simple_quota", true},
}

// Node header (struct btrfs_header).
const (
	hdFSID       = 32
	hdBytenr     = 48
	hdGeneration = 80
	hdOwner      = 88
	hdItems      = 96 // u32
	hdLevel      = 100
	hdSize       = 101
	itemSize     = 25 // key, offset u32, size u32
	ptrSize      = 33 // key, block u64, generation u64
	keySize      = 17
)

// Item types.
const (
	tInodeItem  = 1
	tInodeRef   = 12
	tInodeExt   = 13
	tXattr      = 24
	tOrphan     = 48
	tDirLogItem = 60
	tDirLogIdx  = 72
	tDirItem    = 84
	tDirIndex   = 96
	tExtentData = 108
	tRootItem   = 132
	tRootBack   = 144
	tRootRef    = 156
	tDevItem    = 216
	tChunkItem  = 228
)

// Tree and object ids.
const (
	idRoot     = 1
	idChunk    = 3
	idFS       = 5
	idRootDir  = 6
	idLog      = 1<<64 - 6
	idChunkObj = 256
	idRootMax  = 1<<64 - 256 // ids above are the file system's own trees
)

// Chunk item (struct btrfs_chunk).
const (
	ckLength     = 0
	ckStripeLen  = 16
	ckType       = 24
	ckStripes    = 44 // u16
	ckSubStripes = 46 // u16
	ckHead       = 48
	stripeSize   = 32 // devid u64, offset u64, uuid
)

// Block group types.
const (
	bgRAID0  = 1 << 3
	bgRAID1  = 1 << 4
	bgDUP    = 1 << 5
	bgRAID10 = 1 << 6
	bgRAID5  = 1 << 7
	bgRAID6  = 1 << 8
	bg1C3    = 1 << 9
	bg1C4    = 1 << 10
	bgMask   = 0xff8
)

// Inode item (struct btrfs_inode_item).
const (
	inGeneration = 0
	inSize       = 16
	inLinks      = 40 // u32
	inUID        = 44
	inGID        = 48
	inMode       = 52
	inRdev       = 56 // u64
	inFlags      = 64 // u64
	inATime      = 112
	inCTime      = 124
	inMTime      = 136
	inOTime      = 148
	inLen        = 160
)

var inodeFlags = []struct {
	bit  uint64
	name string
}{
	{1 << 0, "nodatasum"}, {1 << 1, "nodatacow"}, {1 << 2, "read-only"}, {1 << 3, "nocompress"}, {1 << 4, "prealloc"},
	{1 << 5, "sync"}, {1 << 6, "immutable"}, {1 << 7, "append-only"}, {1 << 8, "nodump"}, {1 << 9, "noatime"},
	{1 << 10, "dirsync"}, {1 << 11, "compressed"},
}

// Root item (struct btrfs_root_item).
const (
	rtDirID      = 168
	rtBytenr     = 176
	rtFlags      = 208
	rtRefs       = 216 // u32
	rtLevel      = 238
	rtMin        = 239
	rtUUID       = 247
	rtParentUUID = 263
	rtLen        = 439
	rtReadOnly   = 1
)

// Directory and xattr items (struct btrfs_dir_item): key, transid u64, data length u16, name length u16, type u8.
const (
	diDataLen = 25
	diNameLen = 27
	diType    = 29
	diHead    = 30
)

// File extent items (struct btrfs_file_extent_item).
const (
	feRAM          = 8  // u64: decoded length
	feCompression  = 16 // u8
	feEncryption   = 17
	feOther        = 18 // u16
	feType         = 20
	feInline       = 21 // the bytes, or:
	feDisk         = 21 // u64: logical address, 0 for a hole
	feDiskLen      = 29
	feOffset       = 37
	feLen          = 45
	feSize         = 53
	feKindInline   = 0
	feKindRegular  = 1
	feKindPrealloc = 2
)
