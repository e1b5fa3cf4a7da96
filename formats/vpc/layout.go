package vpc

// footer ends the file, and stands before the rest of it too unless the disk is fixed (VHD, "Hard Disk Footer Format").
// All numbers are big-endian.
type footer struct {
	Cookie     [8]byte
	Features   uint32
	Version    uint32
	HeaderOff  uint64 // of the dynamic disk header
	Timestamp  uint32 // seconds since 2000
	CreatorApp [4]byte
	CreatorVer uint32
	CreatorOS  [4]byte
	OrigSize   uint64
	Size       uint64 // bytes
	Cylinders  uint16
	Heads      uint8
	Sectors    uint8 // of a track
	Type       uint32
	Checksum   uint32 // ones' complement of the sum of all bytes but its own
	UUID       [16]byte
	SavedState uint8
	Reserved   [427]byte
}

const (
	cookie        = "conectix"
	footerLen     = 512
	oldFooterLen  = 511 // before Virtual PC 2004
	checksumAt    = 64
	versionMajor  = 1
	typeFixed     = 2
	typeDynamic   = 3
	typeDiffering = 4

	// maxCHS is the largest geometry, which stands for all larger disks.
	maxCHS = 65535 * 16 * 255
)

// dynHeader is the dynamic disk header (VHD, "Dynamic Disk Header Format").
type dynHeader struct {
	Cookie     [8]byte
	DataOff    uint64
	TableOff   uint64
	Version    uint32
	Entries    uint32
	BlockSize  uint32
	Checksum   uint32
	ParentUUID [16]byte
	ParentTime uint32
	Reserved   uint32
	ParentName [512]byte // UTF-16, big-endian
	Locators   [8]locator
	Reserved2  [256]byte
}

// locator tells where the parent is, in the manner of one system.
type locator struct {
	Platform [4]byte
	Space    uint32
	Len      uint32 // bytes
	Reserved uint32
	Off      uint64
}

const (
	dynCookie     = "cxsparse"
	dynHeaderLen  = 1024
	dynChecksumAt = 36

	// Platforms of a locator (VHD, "Dynamic Disk Header Format"). The two older Windows ones hold the user's code page.
	platformRelative = "W2ru" // UTF-16, little-endian
	platformAbsolute = "W2ku"
	platformMac      = "MacX" // a file URL in UTF-8

	unused = 0xffffffff // entry of the BAT: no block

	sectorSize = 512
	// minBlock and maxBlock bound a block, in bytes; 2 MiB is usual.
	minBlock = 512
	maxBlock = 1 << 30
	// maxSize is 64 TiB; a BAT reaches no further than 2 TiB into the file.
	maxSize = 64 << 40
	// maxLocator bounds a parent's name; Windows stops at 32 Ki characters.
	maxLocator = 64 << 10
)
