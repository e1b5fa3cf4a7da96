package qcow

// Magic begins every image: "QFI\xfb".
const Magic = 0x514649fb

// header is at the start of the image; all numbers are big-endian. (QCowHeader)
type header struct {
	Magic             uint32
	Version           uint32
	BackingFileOffset uint64
	BackingFileSize   uint32
	MTime             uint32
	Size              uint64 // of the virtual disk, in bytes
	ClusterBits       uint8
	L2Bits            uint8 // of the number of entries in an L2 table
	Padding           uint16
	CryptMethod       uint32
	L1TableOffset     uint64
}

const (
	cryptNone = iota
	cryptAES
)

// Limits that QEMU has too. (qcow_open)
const (
	minClusterBits = 9
	maxClusterBits = 16
	minL2Bits      = 9 - 3
	maxL2Bits      = 16 - 3
	maxBackingName = 1023
	maxSize        = 1 << 62
)

// L1 entries are offsets of L2 tables, and L2 entries of clusters; 0 is none. A compressed cluster's entry has bit 63
// set, its length in the cluster_bits bits below, and its offset in the rest. (get_cluster_offset)
const entryPacked = 1 << 63
