package luks

// On-disk structures. All numbers are big-endian.

const (
	magic1     = "LUKS\xba\xbe"
	magic2     = "SKUL\xba\xbe" // of LUKS2's secondary header
	sector     = 512
	slotActive = 0x00ac71f3
	slotFree   = 0x0000dead
)

// header1 is LUKS1's header: LUKS On-Disk Format Specification 1.2.3, figure 1.
type header1 struct {
	Magic            [6]byte
	Version          uint16
	Cipher           [32]byte
	Mode             [32]byte
	Hash             [32]byte
	PayloadOffset    uint32 // sectors
	KeyBytes         uint32
	Digest           [20]byte // of the volume key
	DigestSalt       [32]byte
	DigestIterations uint32
	UUID             [40]byte
	Slots            [8]slot1
}

type slot1 struct {
	Active     uint32
	Iterations uint32
	Salt       [32]byte
	Offset     uint32 // sectors
	Stripes    uint32
}

// header2 is LUKS2's binary header, 4096 bytes long: LUKS2 On-Disk Format Specification 1.1.1, 2.1. The JSON text
// follows up to Size; the secondary header lies behind it.
type header2 struct {
	Magic       [6]byte
	Version     uint16
	Size        uint64
	Sequence    uint64
	Label       [48]byte
	ChecksumAlg [32]byte
	Salt        [64]byte
	UUID        [40]byte
	Subsystem   [48]byte
	Offset      uint64
	_           [184]byte
	Checksum    [64]byte // of Size bytes with these as zeros
	_           [7 * 512]byte
}

const (
	header2Len   = 4096
	minHeader2   = 16 << 10 // 2.1: 16 KiB to 4 MiB, powers of two
	maxHeader2   = 4 << 20
	checksum2Off = 0x1c0
)
