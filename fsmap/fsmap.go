// Package fsmap is the vocabulary of a guest file system, and Build, which turns images into a map: disk × volumes ×
// drivers → records. It is the only place that turns a position in a file into one in a volume, in the guest's disk
// and in a host file.
//
// A driver knows volume offsets only. It tells what directories hold, what inodes say, and in which runs of the volume
// a file's bytes lie; it never reads file content. Walking, order, loops, selection, and what to do about trouble are
// Build's.
package fsmap

import (
	"io"

	"vmkit/formats/codec"
	"vmkit/fsmap/mapfile"
)

// Kind says what a run's bytes are. Zero is for bytes inside a written block that read as zeros whatever the block
// holds, such as those behind a valid-data length.
type Kind = mapfile.Kind

// Run is one stretch of a file.
type Run struct {
	At, Len int64 // position in the file and length, in bytes; At is not used in parts
	Kind    Kind
	Off     int64  // Data, Unwritten: position in the volume
	Dev     int    // the member that Off counts in, where a file system spans several volumes; else 0
	Skip    int64  // Packed: where in the decoded bytes the run starts
	Pack    *Pack  // Packed
	Bytes   []byte // Inline
}

// Pack is a stretch of coded bytes of a volume. It is immutable; runs of the same Pack may share it.
type Pack struct {
	codec.Spec
	Parts []Run // joined in order, then decoded; At is not used
}

// Ref names an inode to the driver that gave it out. Tree is 0 where a file system has one tree (btrfs: the
// subvolume); ID is the inode's number, or the position of its directory entry where there are no inodes (FAT).
type Ref struct{ Tree, ID uint64 }

// Entry is one name in a directory.
type Entry struct {
	Name []byte // bytes, without '/' and NUL; "." and ".." are left out by the driver
	Ref  Ref
	// Kind is what the directory says of the file, or 0 where it says nothing.
	Kind mapfile.FileKind
	// Aux is the driver's own: handed back in Node.
	Aux uint64
	// Path is the name with all that lead to it, from the root on. Build sets it for Node, where a kernel that knows
	// files by their paths is asked.
	Path []byte
}

// Stream is a named data stream of a file besides the unnamed one.
type Stream struct {
	Name string // bytes
	Size int64
	Aux  uint64 // the driver's own
}

// Node is an inode as the file system tells it. Build reuses Nodes: a driver sets what it knows on a Node that was
// Reset.
type Node struct {
	Ref   Ref
	Aux   uint64 // from the Entry
	Inode uint64 // the number to show
	Kind  mapfile.FileKind
	Size  int64
	Mode  int64 // permission, sticky and set-id bits, or mapfile.None where the file system has none
	UID   int64 // or mapfile.None
	GID   int64
	Links int64 // or mapfile.None

	MTime, ATime, CTime, BTime mapfile.Time

	Target       []byte // of a symlink
	Major, Minor uint32 // of a device
	Xattrs       []mapfile.Xattr
	Streams      []Stream

	Sequence     uint64
	Owner, Group string
	Project      uint32
	Attrs        []string
	Reparse      string
	SHA256       string // of the unnamed stream, where the driver takes it

	// Encrypted says that the content is encrypted by the file system (fscrypt, EFS).
	Encrypted bool
	// Problems are doubts about this inode that don't keep it from being used: a wrong checksum, an xattr that can't
	// be read.
	Problems []error
	// Priv is the driver's own: whatever lets ReadDir and Runs go on from here without reading the inode again. Build
	// hands it back and never looks at it; a driver may reuse what it finds there.
	Priv any
}

// Reset clears a Node for reuse, keeping the memory of its slices and Priv.
func (n *Node) Reset() {
	*n = Node{Mode: mapfile.None, UID: mapfile.None, GID: mapfile.None, Links: mapfile.None,
		Target: n.Target[:0], Xattrs: n.Xattrs[:0], Streams: n.Streams[:0], Attrs: n.Attrs[:0], Problems: n.Problems[:0], Priv: n.Priv}
}

// ModeKind gives the kind that the type bits of a POSIX mode say, or 0.
func ModeKind(mode uint32) mapfile.FileKind {
	switch mode & 0o170000 {
	case 0o100000:
		return mapfile.Regular
	case 0o040000:
		return mapfile.Directory
	case 0o120000:
		return mapfile.Symlink
	case 0o010000:
		return mapfile.FIFO
	case 0o140000:
		return mapfile.Socket
	case 0o020000:
		return mapfile.Char
	case 0o060000:
		return mapfile.Block
	}
	return 0
}

// Info is what a file system says of itself.
type Info struct {
	Type      string // as blkid names it: "ext4", "vfat", "xfs", …
	UUID      string
	Label     string
	BlockSize int64
	Size      int64 // bytes that it claims
	Used      int64 // bytes in use, or mapfile.None
	Journal   string
	Root      Ref
	Snapshots []string
	Extra     map[string]any
	Notes     []string // odd, but fully resolved
	Problems  []error  // gaps or doubts about the whole
}

// FS is an opened file system. Its methods are safe for concurrent use with different Nodes and Runs.
type FS interface {
	Info() *Info
	// ReadDir calls add for every name of the directory n, in whatever order; Entry.Name may be reused after add
	// returns. When add returns false it stops. An error means that names may be lacking; those that could be read
	// were given.
	ReadDir(n *Node, add func(Entry) bool) error
	// Node reads the inode that e names into n, which was Reset. An error means that the inode can't be used.
	Node(e Entry, n *Node) error
	// Runs appends where the content of n lies (s is nil for the unnamed stream) to r, which was Reset to the size.
	// What lies past the last appended run is a hole. An error means that the rest is unknown.
	Runs(n *Node, s *Stream, r *Runs) error
}

// JournalMode says what is done about a journal that holds work.
type JournalMode string

const (
	JournalReplay JournalMode = "replay" // into memory: the state after recovery
	JournalIgnore JournalMode = "ignore" // the stale state, said so
	JournalFail   JournalMode = "fail"   // an error
)

// Options is what a driver may need to know.
type Options struct {
	Journal JournalMode
	// Metadata asks for the file system's own files ($MFT, the journal inode) among the others.
	Metadata bool
	// Xattrs and Streams can be left out when nobody asks for them.
	NoXattrs bool
}

// Driver is one row of the table of file systems.
type Driver struct {
	Name string
	// Probe tells whether the volume is of this family and how blkid would name it. It is pure and cheap. head holds
	// the volume's first ProbeLen bytes, or fewer when the volume is smaller; a probe may read more from r.
	Probe func(r io.ReaderAt, size int64, head []byte) (name string, ok bool)
	// Open reads what is needed to use the file system. A dirty journal is replayed into memory here. It fails here,
	// or never.
	Open func(r io.ReaderAt, size int64, o Options) (FS, error)
	// MemberOf tells which file system the volume is a part of, by an id that all its parts share, and the part's
	// number. It is nil for families that never span several volumes.
	MemberOf func(r io.ReaderAt, size int64) (id string, number uint64, err error)
	// OpenSet opens a file system from the members that were found, in order of their numbers; Run.Dev counts in
	// them. It is used instead of Open where MemberOf is there.
	OpenSet func(members []Member, o Options) (FS, error)
}

// Member is one volume of a file system that spans several.
type Member struct {
	R    io.ReaderAt
	Size int64
}

// ProbeLen is how many bytes of a volume every probe sees: 68 KiB, up to btrfs's super block at 64 KiB.
const ProbeLen = 68 << 10
