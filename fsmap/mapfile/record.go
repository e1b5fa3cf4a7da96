// Package mapfile is the map as data: the records of every stream that vmkit's commands pass to one another, a
// streaming writer and a streaming reader. It knows no disk, no image format and no file system, and imports nothing
// of vmkit.
//
// A stream is JSON, one object a line, each with a "type", and ends with an "end" record. Integers are exact 64-bit
// ones. A line is at most MaxLine bytes.
package mapfile

import "encoding/json"

// Version is the version of the map that this package writes.
const Version = 1

// Limits of a stream.
const (
	MaxLine    = 1 << 20 // bytes in a line, its newline included
	MaxExtents = 1024    // extents in one record; more follow in "extents" records
)

// Limits of what a record says, so that it fits into a line.
const (
	MaxPath  = 64 << 10 // bytes in a path, a target or the name of a stream
	MaxDepth = 8        // packed extents within one another
)

// Rest is the text of the fields of a record that this version doesn't know: `,"a":1,"b":[2]`, or nil. It is written
// as it was read, so that filters pass on what a later version added.
type Rest []byte

// None stands in an integer field that has no value: a position, a host file, an image, an owner.
const None = -1

// Kind says what an extent's bytes are.
type Kind uint8

const (
	Data      Kind = iota + 1 // bytes off… of host file file, verbatim
	Zero                      // reads as zeros
	Hole                      // reads as zeros, the file system has no blocks there
	Unwritten                 // reads as zeros, the blocks there hold stale bytes
	Packed                    // decoded from parts
	Inline                    // in the record itself
	Missing                   // can't be had
	Encrypted                 // can't be had without a key
)

var kindNames = [...]string{"", "data", "zero", "hole", "unwritten", "packed", "inline", "missing", "encrypted"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return ""
}

// ParseKind is the inverse of String; 0 for an unknown name.
func ParseKind(s string) Kind {
	for k, n := range kindNames {
		if n == s && k > 0 {
			return Kind(k)
		}
	}
	return 0
}

// Extent is one stretch of a file (or, in Parts, of coded bytes).
type Extent struct {
	At   int64 // position in the file; not written in parts
	Len  int64
	Kind Kind
	// Disk is the position in the virtual disk of image Image, or None. Image is None where it is the image of the
	// file's volume (in parts: of the extent around it).
	Disk  int64
	Image int
	// File and Off say where Data lies: the id of a host file, or None in a map that has only disk positions.
	File int
	Off  int64
	// Skip is where in the decoded bytes of Pack this extent starts.
	Skip int64
	Pack *Pack
	// Bytes are those of an Inline extent.
	Bytes []byte
}

// Pack is a stretch of coded bytes: its parts joined (codecs "xor" and "raid6": side by side), then decoded to Full bytes.
type Pack struct {
	Codec string
	Full  int64
	// Of the codecs that decrypt only. Key is the key's id.
	Sector int
	IV     uint64
	Key    string
	// Factors, of raid6 only, has one for each part.
	Factors []byte
	Pad     bool // zeros follow where the coded bytes end before Full
	Parts   []Extent
}

// Time is a point in time with nanoseconds. The zero value is "not known".
type Time struct {
	Sec   int64 // since 1970-01-01T00:00:00Z
	Nsec  int32
	Known bool
}

// FileKind is the kind of a file, as a letter.
type FileKind byte

const (
	Regular   FileKind = 'f'
	Directory FileKind = 'd'
	Symlink   FileKind = 'l'
	FIFO      FileKind = 'p'
	Socket    FileKind = 's'
	Char      FileKind = 'c'
	Block     FileKind = 'b'
)

// Xattr is an extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// Map is the first record of a map.
type Map struct {
	Version int
	Tool    string
	Created Time
	Options map[string]any
	Rest    Rest
}

// HostFile is a file of the host that an image consists of.
type HostFile struct {
	ID    int
	Path  string
	Role  string
	Size  int64
	MTime Time
}

// Image is a virtual disk.
type Image struct {
	ID         int
	Name       string
	Format     string
	Size       int64
	State      string
	Encryption string
	Files      []HostFile
	// Identity tells which disk this is, where the map has no host file of it; else nil.
	Identity  *Identity
	Snapshots []Snapshot
	Bitmaps   []Bitmap
	Notes     []string
	// Clone is the clone record that the image came with, as it stood, or nil.
	Clone json.RawMessage
	Rest  Rest
}

// Identity is what tells a virtual disk from others, whatever container it lies in and however its files change. The disk
// that a map is laid over has to have the same size, Table, ID and Marks.
type Identity struct {
	Serial string // that the disk showed to the guest, or empty; containers don't have it
	Table  string // scheme of the partition table, or empty
	ID     string // of the partition table: GUID or number, or empty
	Marks  string // SHA-256 of where the partitions lie and which ids they and their contents have
}

// Snapshot is an internal snapshot of an image.
type Snapshot struct {
	ID, Name string
	Size     int64
	Date     Time
	VMState  int64
}

// Bitmap is a persistent dirty bitmap.
type Bitmap struct {
	Name        string
	Granularity int64
	State       string // "consistent" or "in-use"
	Auto        bool
}

// Volume is a stretch of a disk, or of several.
type Volume struct {
	ID       int
	Name     string
	Kind     string
	Scheme   string
	Number   int
	Start    int64 // None where Segments say it
	Size     int64
	Image    int // None where Segments say it
	In       int // None for a disk
	Segments []Segment
	TypeID   string
	Type     string
	PartUUID string
	PartName string
	Attrs    []string

	FS        string // file system, or what else was recognised
	UUID      string
	Label     string
	Journal   string // "none", "clean", "replayed", "ignored", "unreplayed", or empty
	BlockSize int64
	Used      int64 // bytes in use as the file system counts them, or None
	Snapshots []string
	Extra     map[string]any // what only this file system tells
	Notes     []string
	Rest      Rest
}

// Segment is one stretch of a volume.
type Segment struct {
	At, Len int64
	Kind    string
	Volumes []int // volume ids
	Starts  []int64
	Stripe  int64
}

// File is one name of a file, or one alternate stream of it.
type File struct {
	Volume int
	Path   string // bytes; written as "path" and, where it isn't valid UTF-8, "path_base64"
	Inode  uint64
	Kind   FileKind
	Size   int64
	Mode   int64 // permission and set-id bits, or None
	UID    int64 // or None
	GID    int64
	Links  int64
	MTime  Time
	ATime  Time
	CTime  Time
	BTime  Time
	Target string // of a symlink: bytes
	Major  uint32 // of Char and Block
	Minor  uint32
	Xattrs []Xattr
	Stream string
	SHA256 string
	// More fields, each left out when zero.
	Sequence uint64 // NTFS
	Owner    string // NTFS: the owner's SID
	Group    string // NTFS: the group's SID
	Project  uint32
	Attrs    []string // "immutable", "hidden", "compressed", …
	Reparse  string   // NTFS: what a reparse point stands for
	Extents  []Extent
	More     bool
	Rest     Rest
}

// Extents continues the extents of the file record before, or, with no Path, holds a volume's own.
type Extents struct {
	Volume  int
	Path    string
	Stream  string
	Extents []Extent
	More    bool
	Rest    Rest
}

// Problem is a gap or a doubt about content. It makes the exit status 3.
type Problem struct {
	Image  int // or None
	Volume int // or None
	Path   string
	Stream string
	What   string
	Error  string
	Rest   Rest
}

// Result says what became of one file.
type Result struct {
	Volume int
	Name   string // the volume's
	Path   string
	Stream string
	Kind   FileKind
	To     string // where it was written, or empty
	Size   int64  // or None
	SHA256 string
	Status string // "ok", "partial", "failed", "skipped"
	Error  string
	// What was set on the copy, so that it can be verified: written only for what was restored.
	Mode   int64 // or None
	UID    int64
	GID    int64
	MTime  Time
	Target string
	Xattrs []Xattr
	Rest   Rest
}

// Finding is a difference.
type Finding struct {
	What     string
	Volume   int // or None
	Path     string
	Stream   string
	Expected string
	Found    string
	Reader   string
	Rest     Rest
}

// EndKind says which stream an End closes, and so which counts it carries.
type EndKind uint8

const (
	EndOfMap EndKind = iota
	EndOfResults
	EndOfFindings
	EndOfVMs
	EndOfClones
)

// End is the last record of every stream.
type End struct {
	Kind     EndKind
	Files    int64 // map: file records, streams apart
	Bytes    int64 // map: sum of the regular files' sizes
	Problems int64

	OK, Partial, Failed, Skipped int64 // results

	Checked, Differences int64 // findings

	VMs, Clones int64

	Rest Rest
}

// Other is a record of a type that this version doesn't know, or doesn't need to take apart: Raw is its line without
// the newline. Filters pass it on.
type Other struct {
	Type string
	Raw  json.RawMessage
}
