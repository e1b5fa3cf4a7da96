package xfs

// The log ("Journaling Log", xfs_log_format.h). It is counted in basic blocks of 512 bytes. Headers of records and
// operations are big-endian; what the operations carry is in the byte order of the writer, which recHeader.format tells.

const (
	sector         = 512 // a basic block
	logMagic       = 0xfeedbabe
	logCyclePer    = 64       // basic blocks whose first words one header keeps: 32 KiB
	logBigRecord   = 32 << 10 // XLOG_BIG_RECORD_BSIZE
	logMaxRecord   = 256 << 10
	logMaxBuffers  = 8 // XLOG_MAX_ICLOGS: records that were on their way together
	logMaxBytes    = 1<<31 - 64<<10
	logFormatLE    = 1
	logFormatBE    = 2
	logV1          = 1
	logV2          = 2
	maxItemRegions = 257 // XLOG_MAX_REGIONS_IN_ITEM
)

// Record header (struct xlog_rec_header); the words of the first 64 basic blocks stand at recCycles.
const (
	recCycle    = 4
	recVersion  = 8
	recLen      = 12
	recLSN      = 16
	recTailLSN  = 24
	recCRC      = 32 // little-endian
	recNumOps   = 40
	recCycles   = 44
	recFormat   = 300
	recUUID     = 304
	recSize     = 320
	recHeadLen  = 328 // what the checksum covers; 324 where the writer aligns 64-bit words to four bytes
	recHead32   = 324
	recExtLen   = 260 // struct xlog_rec_ext_header: a cycle and 64 words
	recExtWords = 4
)

// Operation header (struct xlog_op_header).
const (
	opTID      = 0
	opLen      = 4
	opClient   = 8
	opFlags    = 9
	opHeadLen  = 12
	clientTran = 0x69
	clientLog  = 0xaa

	opStart    = 0x01
	opCommit   = 0x02
	opContinue = 0x04
	opWasCont  = 0x08
	opEnd      = 0x10
	opUnmount  = 0x20
)

const (
	transMagic   = 0x5452414e // "TRAN"
	transHeadLen = 16
)

// Log items.
const (
	itemEFI      = 0x1236
	itemEFD      = 0x1237
	itemInode    = 0x123b
	itemBuf      = 0x123c
	itemDquot    = 0x123d
	itemQuotaOff = 0x123e
	itemICreate  = 0x123f
	itemRUI      = 0x1240
	itemRUD      = 0x1241
	itemCUI      = 0x1242
	itemCUD      = 0x1243
	itemBUI      = 0x1244
	itemBUD      = 0x1245
	itemATTRI    = 0x1246
	itemATTRD    = 0x1247
	itemXMI      = 0x1248
	itemXMD      = 0x1249
)

// Buffer item (struct xfs_buf_log_format): type, size, flags and length in basic blocks of 16 bits each, the basic block,
// the number of words in the map, the map: a bit for each 128 bytes.
const (
	blfFlags    = 4
	blfLen      = 6
	blfBlkNo    = 8
	blfMapSize  = 16
	blfMap      = 20
	blfMaxWords = 17
	blfChunk    = 128

	blfInodeBuf  = 1 << 0
	blfCancel    = 1 << 1
	blfDquotBufs = 1<<2 | 1<<3 | 1<<4
	blfTypeShift = 11
	blftRTBitmap = 19
	blftRTSum    = 20
)

// Inode item (struct xfs_inode_log_format); 32-bit writers leave out the padding before the number.
const (
	ilfFields  = 4
	ilfIno     = 16
	ilfRdev    = 24
	ilfBlkNo   = 40
	ilfLen     = 48
	ilfBOffset = 52
	ilfBytes   = 56
	ilfBytes32 = 52
	ilogDData  = 0x002
	ilogDExt   = 0x004
	ilogDBRoot = 0x008
	ilogDev    = 0x010
	ilogAData  = 0x040
	ilogAExt   = 0x080
	ilogABRoot = 0x100
	ilogDOwner = 0x200
	ilogAOwner = 0x400
	ilogDFork  = ilogDData | ilogDExt | ilogDBRoot
	ilogAFork  = ilogAData | ilogAExt | ilogABRoot
	logCoreV2  = 96 // struct xfs_log_dinode up to di_next_unlinked
	logCoreV3  = inodeLenV3
)

// Inode creation item (struct xfs_icreate_log), big-endian behind type and size.
const (
	iclAG     = 4
	iclAGBNo  = 8
	iclCount  = 12
	iclISize  = 16
	iclLength = 20
	iclGen    = 24
	iclBytes  = 28
)

// Intents: their id stands behind type, size and a word; the id of a done item is that of its intent.
const (
	intentID = 8

	buiExtents  = 16 // struct xfs_map_extent: owner, block, offset, length, flags
	mapOwner    = 0
	mapBlock    = 8
	mapOff      = 16
	mapLen      = 24
	mapFlags    = 28
	mapBytes    = 32
	bmapMap     = 1
	bmapUnmap   = 2
	bmapAttr    = 1 << 31
	bmapUnwrit  = 1 << 30
	bmapRT      = 1 << 29
	xmiIno1     = 16
	xmiIno2     = 24
	xmiOff1     = 40
	xmiOff2     = 48
	xmiBlocks   = 56
	xmiFlags    = 64
	xmiSize1    = 72
	xmiSize2    = 80
	xmiBytes    = 88
	xmiAttrFork = 1 << 0
	xmiSetSizes = 1 << 1
	xmiWritten1 = 1 << 2

	attriIno     = 16
	attriOp      = 24
	attriNameLen = 28
	attriValLen  = 32
	attriFilter  = 36
	attriBytes   = 40
	attriRemove  = 2
	attriReplace = 3
)
