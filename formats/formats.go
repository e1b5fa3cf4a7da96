// Package formats is the vocabulary of a virtual disk: what every image format tells of itself, and what works on any
// of them.
//
// A format's only task is to say where bytes lie: it implements [Mapper], whose ExtentAt answers "what is the one
// extent that starts at this position of the virtual disk". Reading is done once, for all of them, by [NewDisk], which
// goes through those extents. So what vmkit reads and what its maps say can't differ. Everything that lies between a
// disk and a file system (partitions, logical volumes, RAID, encryption) is a [Disk] too, made of the ones below it.
package formats

import (
	"io"
	"time"

	"vmkit/formats/codec"
)

// Kind says what an extent's bytes are.
type Kind uint8

const (
	// Data lies verbatim in a host file.
	Data Kind = iota + 1
	// Zero reads as zeros, whatever lies at any offset.
	Zero
	// Packed is decoded from the parts of Pack.
	Packed
	// Missing can't be had: a layer of the chain is absent, truncated or damaged. It never reads as zeros.
	Missing
	// Encrypted can't be had because no key was given.
	Encrypted
)

func (k Kind) String() string {
	return [...]string{"?", "data", "zero", "packed", "missing", "encrypted"}[min(k, 6)%6]
}

// NoPos stands where an extent has no position in a virtual disk.
const NoPos = -1

// Extent is one stretch of a virtual disk or volume.
type Extent struct {
	Len  int64 // bytes, above 0
	Kind Kind
	// Disk is the extent's position in the virtual disk of image number Image, or NoPos. ExtentAt of an image gives
	// the offset it was asked for; volumes pass on what lies below them. An image leaves Image 0; whoever takes
	// several images together sets it (see Numbered).
	Disk  int64
	Image int
	// File and Off say where Data lies.
	File *File
	Off  int64
	// Pack says what Packed is decoded from; Skip is where in the decoded bytes this extent starts:
	// Skip+Len <= Pack.Full.
	Pack *Pack
	Skip int64
}

// Pack is a stretch of coded bytes. It is immutable; extents of the same Pack may share it.
type Pack struct {
	codec.Spec
	// Parts are joined in order, then decoded (see codec.SideBySide). A part's Len is what it contributes after its own
	// decoding; its Disk is NoPos where the coded bytes are no part of the virtual disk.
	Parts []Extent
}

// Mapper tells where the bytes of a virtual disk or volume lie. It is safe for concurrent use.
type Mapper interface {
	// Size gives the length in bytes.
	Size() int64
	// ExtentAt gives the one extent that starts at off, with 0 < Len <= max, at byte granularity and any alignment.
	// The caller keeps 0 <= off < Size and 0 < max; the extent never reaches past Size. It is as long as is cheap to
	// tell: what continues in the same host file is one extent.
	//
	// With an error comes an extent of kind Missing whose Len says how far the trouble goes, so that the caller can
	// go on behind it. Extents of kind Missing and Encrypted that are no surprise come without an error.
	ExtentAt(off, max int64) (Extent, error)
}

// Disk is a virtual disk or a volume: its bytes, and where they lie. It is safe for concurrent use.
type Disk interface {
	io.ReaderAt
	Mapper
}

// Role says what an image uses a host file for. The values are those of a map's image record.
type Role string

const (
	RoleTop     Role = "top"     // the image that was named
	RoleBacking Role = "backing" // a layer below it
	RoleExtent  Role = "extent"  // a file that a descriptor lists
	RoleData    Role = "data"    // an external data file
)

// File is an open host file, or a part of one. It is immutable after it was opened.
type File struct {
	io.ReaderAt
	Path  string // as given, or as found from the image that names it
	Role  Role
	Size  int64
	MTime time.Time
	// Image is the number of the image that uses the file, ID its number among all host files of the map. Both are
	// given by the Opener.
	Image, ID int
	// In and Base say that this is no host file but the part of one that starts at Base (a member of an OVA). The
	// Image's Files then list In.
	In   *File
	Base int64
	// InUse says that another process has the file open for writing.
	InUse bool
	// Notes are what is odd about the file but keeps nothing from being read.
	Notes []string
	// Key is the same for two Files that are one file of the host; the Source gives it.
	Key string
}

// Host resolves a position in f to one in the host file that holds it.
func (f *File) Host(off int64) (*File, int64) {
	for f.In != nil {
		f, off = f.In, off+f.Base
	}
	return f, off
}

// State is an image's own account of its health. The values are those of a map's image record.
type State string

const (
	StateClean   State = "clean"
	StateInUse   State = "in-use"
	StateDirty   State = "dirty"
	StateCorrupt State = "corrupt"
)

// Snapshot is an internal snapshot of an image.
type Snapshot struct {
	ID, Name string
	Size     int64 // of the virtual disk at that time
	Date     time.Time
	VMState  int64 // bytes of saved machine state
}

// Bitmap is a persistent dirty bitmap of an image.
type Bitmap struct {
	Name        string
	Granularity int64 // bytes that one bit stands for
	InUse       bool  // not to be trusted: it was not stored when the image was last closed
	Auto        bool  // the hypervisor goes on with it by itself
	// Marked gives the stretches of the virtual disk that are marked, in order, until yield returns false.
	Marked func(yield func(off, n int64) bool) error
}

// Image is an opened virtual disk.
type Image struct {
	Disk
	Name   string // the name that volumes of several images begin with
	Number int    // its number in the map
	Format string // the format's name in the table
	State  State
	Files  []*File // every host file that the image uses, the top first
	Notes  []string
	// Problems are gaps that were found when opening, such as an absent layer.
	Problems  []error
	Snapshots []Snapshot
	Bitmaps   []Bitmap
	// Encryption names how the payload is encrypted ("luks", "aes"), or is empty.
	Encryption string
	// Serial is the number that the disk shows to a guest, where it is known.
	Serial string
	// SectorSize is the logical sector size that the format states, or 0.
	SectorSize int64
	// Assumed says that no format claimed the file, and that it was taken for raw.
	Assumed bool
	// Absent says that this is the place of a layer that could not be found: every byte of it is missing.
	Absent bool
}
