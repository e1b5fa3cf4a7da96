package repo

import (
	"encoding/json"
	"time"

	"vmkit/fsmap/mapfile"
)

// Point is one backup of one machine: what <machine>/<point>.json holds. It is written last; before that the point
// does not exist.
type Point struct {
	Version int       `json:"version"` // PointVersion
	Machine string    `json:"machine"`
	Name    string    `json:"point"`            // "20261122T090000Z", made unique within the machine
	Parent  string    `json:"parent,omitempty"` // the point whose image this one's overlays; "" for a full one
	At      time.Time `json:"at"`               // the instant that the data show
	Made    time.Time `json:"made"`             // when the backup was committed
	Tool    string    `json:"tool"`
	Run     string    `json:"run,omitempty"` // the same for all points of one run of vmbackup
	Hidden  bool      `json:"hidden,omitempty"`

	Disks  []Disk          `json:"disks"`
	Config []StoredFile    `json:"config,omitempty"`
	Clone  json.RawMessage `json:"clone,omitempty"` // the clone record it was made from

	Seconds float64 `json:"seconds"`
	Totals
}

// PointVersion is the version of Point that this package writes; a higher one is refused.
const PointVersion = 1

// Totals are what a backup read and stored, in bytes.
type Totals struct {
	Size    int64 `json:"size"`    // of the virtual disks
	Used    int64 `json:"used"`    // of them, in clusters that are in use or not known to be free
	Read    int64 `json:"read"`    // read from the source
	Changed int64 `json:"changed"` // that the source of changes named
	Stored  int64 `json:"stored"`  // in the files of this point
}

// Disk is a virtual disk of a point.
type Disk struct {
	Name    string     `json:"name"`   // the machine's name of the disk: "vda"; else "disk0"
	Format  string     `json:"format"` // of the image that was backed up
	Size    int64      `json:"size"`
	Cluster int64      `json:"cluster"` // bytes; the same along a chain
	Image   StoredFile `json:"image"`
	Map     StoredFile `json:"map"`
	Sums    StoredFile `json:"sums"`
	Root    string     `json:"root"` // Merkle root over the whole disk, hex
	// Changes says where the changed blocks came from: "full", "ranges", "tracked", "bitmap", "fiemap",
	// "reread", or, of a host's files, "times".
	Changes  string       `json:"changes"`
	Fallback string       `json:"fallback,omitempty"` // why everything was read, though a hint was at hand
	Sampled  int64        `json:"sampled,omitempty"`  // bytes of unchanged clusters that were read and compared
	LeftOut  int64        `json:"left_out,omitempty"` // bytes of clusters that nothing uses
	Verified int64        `json:"verified,omitempty"` // bytes of files that were read back from the repository
	Source   []SourceFile `json:"source,omitempty"`   // the host files it was read from, the top first
	Taken    []Taken      `json:"taken,omitempty"`    // of a host's files: how the folders were read
	// OneInstant says of a host's files that all of them are as they were at the point's instant.
	OneInstant bool              `json:"one_instant,omitempty"`
	Notes      []string          `json:"notes,omitempty"`
	Problems   []mapfile.Problem `json:"-"`
	Totals
}

// Taken says how a folder of a host's files, or a file, was read.
type Taken struct {
	Path string `json:"path"` // its name in the point
	// How is "btrfs", from a snapshot, whose files are of one instant; "reflink", from copies, each of which is; or "none",
	// as the files stood while they were read.
	How string    `json:"how"`
	At  time.Time `json:"at"` // of the snapshot, or when reading began
}

// SourceFile is a host file that a disk was read from, so that it can be told from others later.
type SourceFile struct {
	Path  string    `json:"path"`
	Size  int64     `json:"size"`
	MTime time.Time `json:"mtime"`
}

// StoredFile is a file of a point: its name within the machine's folder, and what it holds. Disks that were mapped
// together have one map, whose file they all name.
type StoredFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"` // of all but images
	// Halves are, of an image, the SHA-256 of its first Head bytes and that of the rest.
	Halves []string `json:"halves,omitempty"`
	Role   string   `json:"role,omitempty"`
}
