package xfs

// Multi-byte integers are big-endian on disk, checksums (CRC32C) little-endian; the payload of the log is in the byte
// order of the machine that wrote it. Chapter names are those of "XFS Algorithms & Data Structures".

// Superblock ("Superblocks", xfs_format.h: struct xfs_dsb).
type dsb struct {
	Magic       uint32
	BlockSize   uint32
	DBlocks     uint64
	RBlocks     uint64
	RExtents    uint64
	UUID        [16]byte
	LogStart    uint64
	RootIno     uint64
	RBmIno      uint64
	RSumIno     uint64
	RExtSize    uint32
	AGBlocks    uint32
	AGCount     uint32
	RBmBlocks   uint32
	LogBlocks   uint32
	VersionNum  uint16
	SectSize    uint16
	InodeSize   uint16
	InoPBlock   uint16
	FName       [12]byte
	BlockLog    uint8
	SectLog     uint8
	InodeLog    uint8
	InoPBLog    uint8
	AGBlkLog    uint8
	RExtSLog    uint8
	InProgress  uint8
	IMaxPct     uint8
	ICount      uint64
	IFree       uint64
	FDBlocks    uint64
	FRExtents   uint64
	UQuotIno    uint64
	GQuotIno    uint64
	QFlags      uint16
	Flags       uint8
	SharedVN    uint8
	InoAlignMt  uint32
	Unit        uint32
	Width       uint32
	DirBlkLog   uint8
	LogSectLog  uint8
	LogSectSize uint16
	LogSUnit    uint32
	Features2   uint32
	BadFeatures uint32
	// Version 5.
	Compat      uint32
	ROCompat    uint32
	Incompat    uint32
	LogIncompat uint32
	CRC         uint32
	SpInoAlign  uint32
	PQuotIno    uint64
	LSN         uint64
	MetaUUID    [16]byte
}

const (
	sbMagic       = 0x58465342 // "XFSB"
	sbLen         = 264        // dsb
	sbCRCOff      = 224
	sbLSNOff      = 240
	sbUUIDOff     = 32
	sbMetaOff     = 248
	sbVerOff      = 100
	sbIncompatOff = 216

	nullIno = ^uint64(0)
)

// sb_versionnum.
const (
	versionNumBits  = 0x000f
	versionAttr     = 0x0010
	versionNLink    = 0x0020
	versionQuota    = 0x0040
	versionAlign    = 0x0080
	versionShared   = 0x0200
	versionLogV2    = 0x0400
	versionSector   = 0x0800
	versionDirV2    = 0x2000
	versionBorg     = 0x4000 // case-insensitive names
	versionMoreBits = 0x8000
	versionKnown    = 0xffff &^ versionShared
)

// sb_features2.
const (
	features2LazySB   = 0x0002
	features2Attr2    = 0x0008
	features2ProjID32 = 0x0080
	features2FType    = 0x0200
	features2Known    = features2LazySB | features2Attr2 | features2ProjID32 | features2FType
)

// sb_features_incompat.
const (
	incompatFType       = 1 << 0
	incompatSpInodes    = 1 << 1
	incompatMetaUUID    = 1 << 2
	incompatBigTime     = 1 << 3
	incompatNeedsRepair = 1 << 4
	incompatNRExt64     = 1 << 5
	incompatExchRange   = 1 << 6
	incompatParent      = 1 << 7
	incompatKnown       = 1<<8 - 1
)

// Names of the bits, for refusals.
var (
	incompatNames = []string{"ftype", "sparse inodes", "meta_uuid", "bigtime", "needsrepair", "nrext64", "exchange-range",
		"parent pointers", "metadata directory tree", "zoned", "zone gaps"}
	logIncompatNames = []string{"logged xattrs"}
)

const logIncompatKnown = 1 << 0

// B+trees of an allocation group ("Short Format Btrees", struct xfs_btree_sblock); that of free space by block number
// ("AG Free Space B+trees", struct xfs_alloc_rec).
const (
	bnoMagic   = 0x41425442 // "ABTB"
	bnoMagicV5 = 0x41423342 // "AB3B"
	sbtLevel   = 4
	sbtRecords = 6
	sbtRight   = 12
	sbtLen     = 16
	sbtCRC     = 52
	sbtLenV5   = 56
	bnoRecLen  = 8 // first block, number of blocks
	sbtPtrLen  = 4
	sbtNull    = 1<<32 - 1
)

// Allocation group headers: the superblock's copy, AGF, AGI and AGFL are the group's first four sectors ("AG Free Space
// Management", xfs_format.h: struct xfs_agf).
const (
	agfMagic     = 0x58414746 // "XAGF"
	agfSeqNo     = 8
	agfLength    = 12
	agfBnoRoot   = 16
	agfBnoLevel  = 28
	agfFLCount   = 48
	agfFreeBlks  = 52
	agfBTreeBlks = 60
	agiMagic     = 0x58414749 // "XAGI"
	agflMagic    = 0x5841464c
	agfLSNOff    = 208
	agfUUIDOff   = 64
	agfLen       = 224
	agiLSNOff    = 320
	agiUUIDOff   = 296
	agflLSNOff   = 24
	agflUUIDOff  = 8
	agVersion    = 1
	minAGBlocks  = 64
	minInodeSize = 256
)

// Inode core ("On-disk Inode", xfs_format.h: struct xfs_dinode); positions in the inode.
const (
	inodeMagic     = 0x494e // "IN"
	diMode         = 2
	diVersion      = 4
	diFormat       = 5
	diOnLink       = 6 // links of version 1
	diUID          = 8
	diGID          = 12
	diNLink        = 16
	diProjIDLo     = 20
	diProjIDHi     = 22
	diBigNExtents  = 24
	diFlushIter    = 30
	diATime        = 32
	diMTime        = 40
	diCTime        = 48
	diSize         = 56
	diNBlocks      = 64
	diExtSize      = 72
	diNExtents     = 76 // 4 bytes; 64-bit counters: of the attribute fork
	diANExtents    = 80 // 2 bytes
	diForkOff      = 82
	diAFormat      = 83
	diDMEvMask     = 84
	diDMState      = 88
	diFlags        = 90
	diGen          = 92
	diNextUnlinked = 96
	diCRC          = 100 // version 3 from here
	diChangeCount  = 104
	diLSN          = 112
	diFlags2       = 120
	diCowExtSize   = 128
	diPad2         = 132
	diCRTime       = 144
	diIno          = 152
	diUUID         = 160
	inodeLenV2     = 100
	inodeLenV3     = 176
)

// di_format.
const (
	fmtLocal   = 1
	fmtExtents = 2
	fmtBTree   = 3
)

// di_flags and di_flags2.
const (
	flagRealtime = 1 << 0
	flag2BigTime = 1 << 3
	flag2NRExt64 = 1 << 4
	bigTimeEpoch = 1 << 31 // seconds from the first big timestamp to 1970
	maxFlushIter = 0xffff
	maxFileOff   = 1<<54 - 1
	maxExtentLen = 1<<21 - 1
	maxSymlink   = 1024
	maxForkLevel = 9 // XFS_BM_MAXLEVELS for 512-byte blocks
	bmbtRecLen   = 16
	bmdrLen      = 4
)

// Btree blocks ("B+trees", xfs_btree.h); the long form is that of block maps, the short one that of the AGs' trees.
const (
	bmapMagic    = 0x424d4150 // "BMAP"
	bmapCRCMagic = 0x424d4133 // "BMA3"
	btLongLen    = 24
	btLongCRCLen = 72
)

// Directories ("Directories", xfs_da_format.h).
const (
	dirBlockMagic   = 0x58443242 // "XD2B": one block, with its leaf
	dirDataMagic    = 0x58443244 // "XD2D"
	dir3BlockMagic  = 0x58444233 // "XDB3"
	dir3DataMagic   = 0x58444433 // "XDD3"
	dir3FreeMagic   = 0x58444633 // "XDF3"
	dir3Leaf1Magic  = 0x3df1
	dir3LeafNMagic  = 0x3dff
	dirDataLen      = 16
	dir3DataLen     = 64
	dirFreeTag      = 0xffff
	dirSpace        = 32 << 30 // bytes of a directory's file that hold data blocks
	dirTailLen      = 8
	dirLeafEntryLen = 8
)

// Extended attributes ("Extended Attributes", xfs_da_format.h).
const (
	daNodeMagic    = 0xfebe
	da3NodeMagic   = 0x3ebe
	attrLeafMagic  = 0xfbee
	attr3LeafMagic = 0x3bee
	daNodeLen      = 16
	da3NodeLen     = 64
	daMaxDepth     = 5
	attrLeafLen    = 32
	attr3LeafLen   = 80
	attrEntryLen   = 8

	attrLocal      = 1 << 0
	attrRoot       = 1 << 1
	attrSecure     = 1 << 2
	attrParent     = 1 << 3
	attrIncomplete = 1 << 7

	symlinkMagic  = 0x58534c4d // "XSLM"
	attrRmtMagic  = 0x5841524d // "XARM"
	remoteHdrLen  = 56
	remoteBytes   = 8 // position of sl_bytes, rm_bytes
	remoteOffset  = 4
	maxAttrValue  = 64 << 10
	maxAttrValues = 16 << 20 // of one inode, together: 256 of the longest; a bound on memory
)

// identity says where a kind of metadata block keeps what identifies it; version 5 only.
type identity struct {
	crc, blkno, lsn, uuid, owner int
	owner32                      bool
}

var (
	idDir    = identity{crc: 4, blkno: 8, lsn: 16, uuid: 24, owner: 40}                  // struct xfs_dir3_blk_hdr
	idDA     = identity{crc: 12, blkno: 16, lsn: 24, uuid: 32, owner: 48}                // struct xfs_da3_blkinfo
	idLong   = identity{crc: 64, blkno: 24, lsn: 32, uuid: 40, owner: 56}                // struct xfs_btree_block_lhdr
	idShort  = identity{crc: 52, blkno: 16, lsn: 24, uuid: 32, owner: 48, owner32: true} // struct xfs_btree_block_shdr
	idRemote = identity{crc: 12, blkno: 40, lsn: 48, uuid: 16, owner: 32}                // struct xfs_dsymlink_hdr, xfs_attr3_rmt_hdr
)

// Magic numbers of the short btrees: free space by block and by size, inodes, free inodes, reverse mappings, reference
// counts.
var shortMagics = []uint32{0x41425442, 0x41423342, 0x41425443, 0x41423343, 0x49414254, 0x49414233, 0x46494254, 0x46494233, 0x524d4233, 0x52334643}
