package vdi

// header is the head of the file (VDICore: VDIPREHEADER, VDIHEADER1), packed, little-endian.
type header struct {
	Text            [64]byte // free: "<<< Oracle VM VirtualBox Disk Image >>>\n"
	Signature       uint32
	Version         uint32
	HeaderSize      uint32
	Type            uint32
	Flags           uint32
	Comment         [256]byte
	BlocksOffset    uint32 // of the block table
	DataOffset      uint32 // of block 0 of the file
	Cylinders       uint32
	Heads           uint32
	Sectors         uint32
	SectorSize      uint32
	Dummy           uint32
	DiskSize        uint64
	BlockSize       uint32
	BlockExtra      uint32 // bytes before each block
	Blocks          uint32 // of the disk
	BlocksAllocated uint32
	UUID            [16]byte
	ModifyUUID      [16]byte
	ParentUUID      [16]byte // VDICore: uuidLinkage
	ParentModify    [16]byte
}

const (
	signature = 0xbeda107f
	version11 = 0x00010001

	typeDynamic = 1
	typeFixed   = 2
	typeUndo    = 3
	typeDiff    = 4

	// Entries of the block table.
	blockFree = 0xffffffff // never written: the parent's, or zeros
	blockZero = 0xfffffffe

	sectorSize = 512
	// minBlock and maxBlock bound a block, in bytes. VirtualBox writes 1 MiB.
	minBlock = 4 << 10
	maxBlock = 1 << 30
	// maxExtra bounds what stands before each block. Nothing was seen to use it.
	maxExtra = 1 << 20
)
