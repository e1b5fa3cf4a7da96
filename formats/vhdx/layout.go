package vhdx

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"
)

const (
	fileMagic = "vhdxfile" // 2.2.1

	// Places of the header section (2.2).
	header1At = 64 << 10
	header2At = 128 << 10
	region1At = 192 << 10
	region2At = 256 << 10

	headerLen      = 4096
	regionTableLen = 64 << 10
)

// header is the part of a header that is used (2.2.2). The checksum is over 4 KiB.
type header struct {
	Magic      [4]byte // "head"
	Checksum   uint32
	Sequence   uint64
	FileWrite  guid
	DataWrite  guid
	LogGUID    guid // zero: the log is empty
	LogVersion uint16
	Version    uint16
	LogLength  uint32
	LogOffset  uint64
}

const headerMagic = "head"

// regionHeader and regionEntry make the region table (2.2.3).
type regionHeader struct {
	Magic    [4]byte // "regi"
	Checksum uint32
	Count    uint32
	Reserved uint32
}

type regionEntry struct {
	GUID     guid
	Offset   uint64
	Length   uint32
	Required uint32
}

const (
	regionMagic = "regi"
	maxRegions  = 2047
)

var (
	regionBAT      = mustGUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
	regionMetadata = mustGUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
)

// logHeader begins an entry of the log, logDesc follow it, 126 in the first sector and 128 in each more (2.3.1).
type logHeader struct {
	Magic       [4]byte // "loge"
	Checksum    uint32
	Length      uint32
	Tail        uint32
	Sequence    uint64
	Descriptors uint32
	Reserved    uint32
	LogGUID     guid
	FlushedSize uint64 // of the file, at least
	LastSize    uint64 // that the file has to have
}

// logDesc is a zero or a data descriptor (2.3.1.2, 2.3.1.3).
type logDesc struct {
	Magic    [4]byte // "zero" or "desc"
	Trailing [4]byte // data: the last 4 bytes of the sector
	Leading  [8]byte // data: the first 8 bytes; zero: the length, a number
	Offset   uint64
	Sequence uint64
}

const (
	logMagic     = "loge"
	logZeroMagic = "zero"
	logDescMagic = "desc"
	logDataMagic = "data" // of a data sector (2.3.1.4): magic, sequence's upper half, 4084 bytes, its lower half
	logSector    = 4096
	logHeaderLen = 64
	logDescLen   = 32
)

// metaHeader and metaEntry make the metadata table (2.6.1).
type metaHeader struct {
	Magic    [8]byte // "metadata"
	Reserved uint16
	Count    uint16
	Pad      [20]byte
}

type metaEntry struct {
	GUID     guid
	Offset   uint32 // from the region's start
	Length   uint32
	Flags    uint32
	Reserved uint32
}

const (
	metaMagic    = "metadata"
	metaTableLen = 64 << 10
	maxMeta      = 2047
	metaRequired = 4
	// maxItem bounds a metadata item (2.6.1.2).
	maxItem = 1 << 20
)

// Metadata items (2.6.2).
var (
	itemParameters  = mustGUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
	itemSize        = mustGUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
	itemPage83      = mustGUID("beca12ab-b2e6-4523-93ef-c309e000c746")
	itemLogical     = mustGUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
	itemPhysical    = mustGUID("cda348c7-445d-4471-9cc9-e9885251c556")
	itemParent      = mustGUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
	locatorTypeVHDX = mustGUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
)

// hasParent is a flag of the file parameters (2.6.2.1).
const hasParent = 2

// locatorEntry is one of a parent locator's pairs (2.6.2.6.2); it follows the type, two bytes and the count.
type locatorEntry struct {
	KeyOffset, ValueOffset uint32
	KeyLength, ValueLength uint16
}

const locatorHeaderLen = 20

// States of a payload block, the low 3 bits of a BAT entry; the upper 44 are its place in MiB (2.5.1.1).
const (
	blockNotPresent  = 0
	blockUndefined   = 1
	blockZero        = 2
	blockUnmapped    = 3
	blockUnmapped095 = 5 // of drafts of the format (QEMU)
	blockPresent     = 6
	blockPartial     = 7 // a sector bitmap tells which sectors are here

	bitmapPresent = 6 // state of a sector bitmap block (2.5.1.2)

	stateMask = 7
	placeMask = 1<<64 - 1<<20

	chunkSectors = 1 << 23 // that one sector bitmap block tells of
	minBlock     = 1 << 20
	maxBlock     = 256 << 20
	maxSize      = 64 << 40
	// maxLog bounds the log: Hyper-V writes 1 MiB.
	maxLog = 1 << 30
)

// guid is a GUID as it is stored: its first three fields are little-endian.
type guid [16]byte

func (g guid) String() string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g[0:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:])
}

// parseGUID reads a GUID with or without braces.
func parseGUID(s string) (g guid, ok bool) {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Trim(s, "{}"), "-", ""))
	if err != nil || len(b) != len(g) {
		return g, false
	}
	for i, from := range [16]int{3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15} {
		g[i] = b[from]
	}
	return g, true
}

func mustGUID(s string) guid {
	g, ok := parseGUID(s)
	if !ok {
		panic(s) // they are constants
	}
	return g
}
