package ext4

// Journal ("Journal (jbd2)"; include/linux/jbd2.h). All integers are big-endian.

const (
	jbdMagic = 0xC03B3998

	// Header of every block that isn't data.
	jhType = 4
	jhSeq  = 8
	jhLen  = 12

	jbDescriptor = 1
	jbCommit     = 2
	jbSuperV1    = 3
	jbSuperV2    = 4
	jbRevoke     = 5
)

// journalSuper is the journal's first block.
type journalSuper struct {
	Magic, BlockType, Sequence   uint32
	BlockSize, MaxLen, First     uint32
	StartSeq, Start              uint32
	Errno                        uint32
	Compat, Incompat, ROCompat   uint32
	UUID                         [16]byte
	NrUsers, DynSuper            uint32
	MaxTransaction, MaxTransData uint32
	ChecksumType                 uint8
	_                            [3]uint8
	NumFCBlocks, Head            uint32
	_                            [40]uint32
	Checksum                     uint32
	Users                        [768]byte
}

const (
	jsLen     = 1024
	jsCsumOff = 0xFC

	jCompatChecksum = 0x1

	jIncompat64Bit       = 0x2
	jIncompatAsyncCommit = 0x4
	jIncompatCsumV2      = 0x8
	jIncompatCsumV3      = 0x10
	jIncompatFastCommit  = 0x20
	jIncompatKnown       = 0x3F

	csumCRC32  = 1 // s_checksum_type, h_chksum_type
	csumCRC32C = 4
)

var jIncompatNames = []string{"revoke", "64bit", "async_commit", "csum_v2", "csum_v3", "fast_commit"}

// Descriptor block: tags behind the header, and with checksum v2 or v3 a tail.
const (
	tagBlockLo = 0
	tagCsum2   = 4 // two bytes, v2
	tagFlags   = 6 // two bytes; in v3 the low half of four
	tagBlockHi = 8
	tagCsum3   = 12
	tagUUIDLen = 16

	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8

	jTailLen = 4
)

// Revoke block: the count of bytes in use, then block numbers.
const (
	jrCount = 12
	jrLen   = 16
)

// Commit block.
const (
	jcCsumType = 12
	jcCsumSize = 13
	jcCsum     = 16
	jcSec      = 48
)

// Fast commit area (include/linux/ext4 fast_commit.h): tags of type and length, little-endian.
const (
	fcAddRange = 1
	fcDelRange = 2
	fcCreat    = 3
	fcLink     = 4
	fcUnlink   = 5
	fcInode    = 6
	fcPad      = 7
	fcTail     = 8
	fcHead     = 9

	fcTagLen       = 4
	fcHeadLen      = 8
	fcTailLen      = 8
	fcAddLen       = 16
	fcDelLen       = 12
	fcNameLen      = 8 // before the name
	fcDefaultCount = 256
)
