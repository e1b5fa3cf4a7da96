package ntfs

// $LogFile (Linux-NTFS, "$LogFile"; M. Suhanov, "How the $LogFile works?"). Two restart pages and copies of pages that
// were not full are followed by a ring of pages of records, in which the log file service keeps the records of its
// clients. An LSN is a lap of the ring and a position in the file, which counts in units of 8 bytes.

// Restart page; magic "RSTR", or "CHKD" where chkdsk wrote it.
const (
	rpSystemPage = 16 // u32
	rpLogPage    = 20 // u32
	rpArea       = 24 // u16: offset of the restart area
	rpMinor      = 26 // u16: version of the log file service
	rpMajor      = 28 // u16
	rpHead       = 30
)

// Restart area. Offsets are from its start.
const (
	raCurrent   = 0  // u64: newest LSN when it was written
	raClients   = 8  // u16
	raInUse     = 12 // u16: first client in use
	raFlags     = 14 // u16
	raSeqBits   = 16 // u32: bits of an LSN that count laps
	raArray     = 22 // u16: offset of the client records
	raFileSize  = 24 // u64: bytes of the log that are used
	raHeader    = 36 // u16: bytes of a record's header
	raData      = 38 // u16: where a page's records begin
	raLen       = 44
	raNone      = 0xFFFF
	raFlagClean = 2

	crOldest  = 0  // u64: LSN
	crRestart = 8  // u64: LSN of the client's restart record
	crSeq     = 20 // u16
	crName    = 28 // u32: bytes of the name, UTF-16 at 32
	crLen     = 160
)

// Page of records; magic "RCRD". In a copy of version 1 the place that the page is for stands where its LSN should.
const (
	lpLSN     = 8  // u64: of the last record that begins in the page, or else goes through it
	lpFlags   = 16 // u32
	lpEndLSN  = 32 // u64: of the last record that ends in the page
	lpCopyOf  = 60 // u32: version 2, place that a copy is for
	lpHead    = 64
	lpFlagEnd = 1 // a record ends in the page

	copies1    = 2  // pages behind the restart pages, version 1
	copies2    = 32 // version 2
	restarts   = 2  // pages
	logPage    = 4096
	maxLogFile = 1 << 32
	minLogFile = 48 * logPage
)

// Record header.
const (
	lrLSN      = 0  // u64
	lrUndoNext = 16 // u64: LSN of the record to be undone next
	lrLen      = 24 // u32: bytes that follow the header
	lrSeq      = 28 // u16: the client's
	lrIndex    = 30 // u16
	lrType     = 32 // u32
	lrTrans    = 36 // u32: offset in the transaction table
	lrFlags    = 40 // u16
	lrHead     = 48

	typeRecord  = 1
	typeRestart = 2
	flagNoRedo  = 2 // the bytes to redo are left out: they are zeros

	maxLogRecord = 4 << 20 // bytes; a table of open attributes or dirty pages is the longest
)

// Restart record of the client NTFS. The names of open attributes (at 24 and 52) are not needed.
const (
	rsMajor      = 0  // u32: form of the tables
	rsCheckpoint = 8  // u64: LSN before the first record that the tables don't cover
	rsOpenLSN    = 16 // u64
	rsDirtyLSN   = 32
	rsTransLSN   = 40
	rsOpenLen    = 48 // u32: bytes, 0 where there is no table
	rsDirtyLen   = 56
	rsTransLen   = 60
	rsLen        = 64
)

// Log record of the client NTFS.
const (
	opRedo       = 0  // u16: operation
	opUndo       = 2  // u16
	opRedoOff    = 4  // u16
	opRedoLen    = 6  // u16
	opUndoOff    = 8  // u16
	opUndoLen    = 10 // u16
	opAttr       = 12 // u16: offset in the table of open attributes
	opLCNs       = 14 // u16: clusters that are named
	opRecordOff  = 16 // u16: of the attribute in an MFT record, or of bytes in the block
	opAttrOff    = 18 // u16: in the attribute, or of an entry in an index block
	opClusterOff = 20 // u16: of the block behind the first cluster, in units of 512 bytes
	opVCN        = 24 // u64
	opClusters   = 32 // u64 each: LCNs
)

// Table in the log, of entries of one length. An entry that is used begins with ones.
const (
	tbEntry = 0 // u16: bytes of an entry
	tbCount = 2 // u16
	tbHead  = 24
	tbUsed  = 0xFFFFFFFF
)

// tableForm says where the entries of the tables keep what; the restart record's version tells which of two forms.
type tableForm struct {
	openLen, openType, openRef, openBlock      int
	dirtyLen, dirtyVCN, dirtyOldest, dirtyLCNs int
}

var tableForms = [...]tableForm{
	{openLen: 44, openType: 28, openRef: 8, openBlock: 40, dirtyLen: 36, dirtyVCN: 20, dirtyOldest: 28, dirtyLCNs: 36},
	{openLen: 40, openType: 8, openRef: 16, openBlock: 4, dirtyLen: 32, dirtyVCN: 16, dirtyOldest: 24, dirtyLCNs: 32},
}

// Entries of the tables of dirty pages and of transactions.
const (
	dtAttr  = 4  // u32: offset in the table of open attributes
	dtCount = 12 // u32: clusters

	ttState    = 4  // u8
	ttUndoNext = 24 // u64: LSN
	ttLen      = 40

	transActive    = 1
	transPrepared  = 2
	transCommitted = 3
)

// Operations.
const (
	opNoop = iota
	opCompensation
	opInitRecord
	opFreeRecord
	opEndRecord
	opCreateAttr
	opDeleteAttr
	opResident
	opNonresident
	opPairs
	opDeleteDirty
	opSizes
	opAddRoot
	opDeleteRoot
	opAddIndex
	opDeleteIndex
	opEndIndex
	opVCNRoot
	opVCNIndex
	opNameRoot
	opNameIndex
	opSetBits
	opClearBits
	opHotFix
	opEndTop
	opPrepare
	opCommit
	opForget
	opOpenAttr
	opOpenDump
	opNamesDump
	opDirtyDump
	opTransDump
	opDataRoot
	opDataIndex
	opRelativeRoot
	opRelativeIndex
	opZeroRecord
)

const (
	maxDirty = 1 << 20 // clusters of dirty pages, and open attributes and transactions: a bound on memory
	maxSteps = 1 << 27 // of loops over the dirty clusters: a bound on time
	maxRaw   = 64 << 10

	maxReplayed = 256 << 20 // bytes that a replay changes
	maxMoved    = 16 << 30  // bytes that it rewrites: six times what the longest log of Windows' own size can ask for
)
