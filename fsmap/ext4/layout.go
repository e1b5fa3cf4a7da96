package ext4

// Integers are little-endian on disk; those of the journal (journallayout.go) are big-endian.

// superblock is at byte 1024 and, as a backup, at the start of some groups ("Super Block").
type superblock struct {
	InodesCount       uint32
	BlocksCountLo     uint32
	RBlocksCountLo    uint32
	FreeBlocksLo      uint32
	FreeInodes        uint32
	FirstDataBlock    uint32
	LogBlockSize      uint32
	LogClusterSize    uint32
	BlocksPerGroup    uint32
	ClustersPerGroup  uint32
	InodesPerGroup    uint32
	MTime             uint32
	WTime             uint32
	MntCount          uint16
	MaxMntCount       uint16
	Magic             uint16
	State             uint16
	Errors            uint16
	MinorRev          uint16
	LastCheck         uint32
	CheckInterval     uint32
	CreatorOS         uint32
	Rev               uint32
	DefResUID         uint16
	DefResGID         uint16
	FirstIno          uint32
	InodeSize         uint16
	BlockGroupNr      uint16
	Compat            uint32
	Incompat          uint32
	ROCompat          uint32
	UUID              [16]byte
	Label             [16]byte
	LastMounted       [64]byte
	AlgorithmBitmap   uint32
	PreallocBlocks    uint8
	PreallocDirBlocks uint8
	ReservedGDTBlocks uint16
	JournalUUID       [16]byte
	JournalInum       uint32
	JournalDev        uint32
	LastOrphan        uint32
	HashSeed          [4]uint32
	DefHashVersion    uint8
	JnlBackupType     uint8
	DescSize          uint16
	DefMountOpts      uint32
	FirstMetaBG       uint32
	MkfsTime          uint32
	JnlBlocks         [17]uint32 // the journal inode's i_block, high and low size
	BlocksCountHi     uint32
	RBlocksCountHi    uint32
	FreeBlocksHi      uint32
	MinExtraIsize     uint16
	WantExtraIsize    uint16
	Flags             uint32
	RaidStride        uint16
	MMPInterval       uint16
	MMPBlock          uint64
	RaidStripeWidth   uint32
	LogGroupsPerFlex  uint8
	ChecksumType      uint8
	EncryptionLevel   uint8
	_                 uint8
	KBytesWritten     uint64
	SnapshotInum      uint32
	SnapshotID        uint32
	SnapshotRBlocks   uint64
	SnapshotList      uint32
	ErrorCount        uint32
	FirstErrorTime    uint32
	FirstErrorIno     uint32
	FirstErrorBlock   uint64
	FirstErrorFunc    [32]byte
	FirstErrorLine    uint32
	LastErrorTime     uint32
	LastErrorIno      uint32
	LastErrorLine     uint32
	LastErrorBlock    uint64
	LastErrorFunc     [32]byte
	MountOpts         [64]byte
	UsrQuotaInum      uint32
	GrpQuotaInum      uint32
	OverheadClusters  uint32
	BackupBGs         [2]uint32
	EncryptAlgos      [4]uint8
	EncryptPWSalt     [16]byte
	LpfIno            uint32
	PrjQuotaInum      uint32
	ChecksumSeed      uint32
	TimesHi           [6]uint8
	ErrorCodes        [2]uint8
	Encoding          uint16
	EncodingFlags     uint16
	OrphanFileInum    uint32
	_                 [94]uint32
	Checksum          uint32
}

const (
	sbPos       = 1024
	sbLen       = 1024
	sbMagicOff  = 0x38
	sbMagic     = 0xEF53
	sbCsumOff   = 0x3FC
	maxBlockLog = 6 // 64 KiB

	stateErrors = 2 // s_state

	flagUnsignedHash = 2 // s_flags

	osHurd = 1 // s_creator_os

	jnlBackupBlocks = 1 // s_jnl_backup_type
)

// s_feature_compat.
const (
	compatHasJournal   = 0x4
	compatDirIndex     = 0x20
	compatSparseSuper2 = 0x200
	compatOrphanFile   = 0x1000
)

// s_feature_incompat.
const (
	incompatFileType   = 0x2
	incompatRecover    = 0x4
	incompatJournalDev = 0x8
	incompatMetaBG     = 0x10
	incompatExtents    = 0x40
	incompat64Bit      = 0x80
	incompatMMP        = 0x100
	incompatFlexBG     = 0x200
	incompatEAInode    = 0x400
	incompatCsumSeed   = 0x2000
	incompatLargeDir   = 0x4000
	incompatInlineData = 0x8000
	incompatEncrypt    = 0x10000
	incompatCasefold   = 0x20000
	incompatKnown      = incompatFileType | incompatRecover | incompatMetaBG | incompatExtents | incompat64Bit | incompatMMP |
		incompatFlexBG | incompatEAInode | incompatCsumSeed | incompatLargeDir | incompatInlineData | incompatEncrypt | incompatCasefold

	// What ext2 and ext3 know.
	incompatExt3 = incompatFileType | incompatRecover | incompatMetaBG
	roCompatExt3 = 0x1 | 0x2 | 0x4
)

// s_feature_ro_compat.
const (
	roCompatSparseSuper   = 0x1
	roCompatHugeFile      = 0x8
	roCompatGDTCsum       = 0x10
	roCompatQuota         = 0x100
	roCompatBigalloc      = 0x200
	roCompatMetadataCsum  = 0x400
	roCompatProject       = 0x2000
	roCompatSharedBlocks  = 0x4000
	roCompatOrphanPresent = 0x10000
	roCompatKnown         = 0x1FFFF
)

// Names of the feature bits, as e2fsprogs prints them.
var (
	compatNames = []string{"dir_prealloc", "imagic_inodes", "has_journal", "ext_attr", "resize_inode", "dir_index", "lazy_bg", "",
		"snapshot_bitmap", "sparse_super2", "fast_commit", "stable_inodes", "orphan_file"}
	incompatNames = []string{"compression", "filetype", "needs_recovery", "journal_dev", "meta_bg", "", "extent", "64bit", "mmp", "flex_bg",
		"ea_inode", "", "dirdata", "metadata_csum_seed", "large_dir", "inline_data", "encrypt", "casefold"}
	roCompatNames = []string{"sparse_super", "large_file", "", "huge_file", "uninit_bg", "dir_nlink", "extra_isize", "snapshot", "quota",
		"bigalloc", "metadata_csum", "replica", "read-only", "project", "shared_blocks", "verity", "orphan_present"}
)

// Group descriptor ("Block Group Descriptors"); positions in it. The second half is there with 64bit only.
const (
	gdBitmapLo     = 0x00
	gdInodeMapLo   = 0x04
	gdTableLo      = 0x08
	gdFreeLo       = 0x0C
	gdFlags        = 0x12
	gdBitmapCsumLo = 0x18
	gdChecksum     = 0x1E
	gdLen          = 0x20
	gdBitmapHi     = 0x20
	gdInodeMapHi   = 0x24
	gdTableHi      = 0x28
	gdFreeHi       = 0x2C
	gdBitmapCsumHi = 0x38
	gdLen64        = 0x40
	gdMaxLen       = 1024
)

// gdBlockUninit, in gdFlags, says that the group's block bitmap was never written.
const gdBlockUninit = 0x2

// Inode ("Index Nodes"); positions in it.
const (
	iMode       = 0x00
	iUIDLo      = 0x02
	iSizeLo     = 0x04
	iATime      = 0x08
	iCTime      = 0x0C
	iMTime      = 0x10
	iDTime      = 0x14
	iGIDLo      = 0x18
	iLinks      = 0x1A
	iBlocksLo   = 0x1C
	iFlags      = 0x20
	iVersion    = 0x24
	iBlock      = 0x28
	iGeneration = 0x64
	iFileACLLo  = 0x68
	iSizeHi     = 0x6C
	iBlocksHi   = 0x74
	iFileACLHi  = 0x76
	iUIDHi      = 0x78
	iGIDHi      = 0x7A
	iChecksumLo = 0x7C
	goodOldSize = 0x80
	iExtraIsize = 0x80
	iChecksumHi = 0x82
	iCTimeExtra = 0x84
	iMTimeExtra = 0x88
	iATimeExtra = 0x8C
	iCRTime     = 0x90
	iCRExtra    = 0x94
	iProjID     = 0x9C

	iBlockLen = 60
	nDirect   = 12 // block numbers in i_block before the indirect ones
)

// i_flags.
const (
	flImmutable  = 0x10
	flEncrypt    = 0x800
	flIndex      = 0x1000
	flHugeFile   = 0x40000
	flExtents    = 0x80000
	flEAInode    = 0x200000
	flInlineData = 0x10000000
	flCasefold   = 0x40000000
)

// attrNames are the flags that say something of the file and not of how it is stored, as lsattr -l names them in lower
// case with dashes.
var attrNames = []struct {
	bit  uint32
	name string
}{
	{0x1, "secure-deletion"}, {0x2, "undelete"}, {0x8, "sync"}, {flImmutable, "immutable"}, {0x20, "append-only"}, {0x40, "no-dump"},
	{0x80, "no-atime"}, {0x4, "compressed"}, {flEncrypt, "encrypted"}, {0x4000, "journaled-data"}, {0x8000, "no-tail"}, {0x10000, "dirsync"},
	{0x20000, "top-of-hierarchies"}, {0x100000, "verity"}, {0x2000000, "dax"}, {0x20000000, "project-inherit"}, {flCasefold, "casefold"},
}

const attrMask = 0x1 | 0x2 | 0x8 | flImmutable | 0x20 | 0x40 | 0x80 | 0x4 | flEncrypt | 0x4000 | 0x8000 | 0x10000 | 0x20000 | 0x100000 |
	0x2000000 | 0x20000000 | flCasefold

// i_mode.
const (
	modeFmt   = 0xF000
	modeFIFO  = 0x1000
	modeChar  = 0x2000
	modeDir   = 0x4000
	modeBlock = 0x6000
	modeReg   = 0x8000
	modeLink  = 0xA000
	modeSock  = 0xC000
)

// Inode numbers ("Special inodes").
const (
	inoBad        = 1
	inoRoot       = 2
	inoBootLoader = 5
	inoResize     = 7
	firstInoOld   = 11
)

// Extent tree ("Extent Tree"): a header, then entries of the same length.
const (
	exMagic    = 0xF30A
	exLen      = 12
	ehEntries  = 2
	ehMax      = 4
	ehDepth    = 6
	eeLen      = 4 // in a leaf's entry
	eeStartHi  = 6
	eeStartLo  = 8
	eiLeafLo   = 4 // in an index entry
	eiLeafHi   = 8
	exMaxInit  = 32768 // a longer extent is unwritten, by what it has more
	exMaxDepth = 5
)

// Directory entry ("Directory Entries").
const (
	deRecLen  = 4
	deNameLen = 6
	deType    = 7
	deName    = 8
	deMin     = 12
	maxName   = 255

	tailLen  = 12 // fake entry with the checksum
	tailType = 0xDE
	tailCsum = 8

	// Hashed directories ("Hash Tree Directories"): the root's header lies behind "." and "..".
	dxHashVersion = 0x1C
	dxRootCount   = 0x20 // limit and count of entries, behind the header
	dxNodeCount   = 0x08
	dxEntryLen    = 8
	dxTailLen     = 8

	inlineDirHead = 4 // the parent's number, before the entries of an inline directory
)

// Extended attributes ("Extended Attributes").
const (
	xaMagic      = 0xEA020000
	xaIbodyLen   = 4 // header in the inode
	xaBlockLen   = 32
	xaBlocks     = 8 // positions in a block's header
	xaCsum       = 16
	xaEntryLen   = 16
	xaNameLen    = 0 // positions in an entry
	xaIndex      = 1
	xaValueOff   = 2
	xaValueInum  = 4
	xaValueSize  = 8
	xaHash       = 12
	xaMaxValue   = 64 << 10 // what the kernel's VFS allows
	xaIndexACL   = 2
	xaIndexDef   = 3
	xaIndexSys   = 7
	xaIndexCrypt = 9
)

// xaPrefixes are the names' beginnings by index. Those of ACLs are the whole name; index 9 holds the encryption context,
// which the kernel doesn't show as an attribute.
var xaPrefixes = [...]string{1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.", 6: "security.",
	7: "system.", 8: "system.richacl", 9: "", 10: "gnu."}

// POSIX ACL, as it is stored (linux/fs/ext4/acl.h) and as getxattr gives it (include/uapi/linux/posix_acl_xattr.h).
const (
	aclVersion      = 1
	aclXattrVersion = 2
	aclUserObj      = 0x01
	aclUser         = 0x02
	aclGroupObj     = 0x04
	aclGroup        = 0x08
	aclMask         = 0x10
	aclOther        = 0x20
)

// Multiple mount protection ("Multiple Mount Protection"); positions in its block.
const (
	mmpMagic    = 0x004D4D50
	mmpSeq      = 4
	mmpNode     = 16
	mmpNodeLen  = 64
	mmpCsum     = 0x3FC
	mmpSeqClean = 0xFF4D4D50
	mmpSeqFsck  = 0xE24D4D50
)

// Orphan file ("Orphan file"): blocks of inode numbers, with a tail of magic and checksum.
const (
	orphanMagic   = 0x0B10CA04
	orphanTailLen = 8
)
