package partition

import (
	"io"

	"vmkit/formats"
)

// Kind says what a volume is. The values are those of a map's volume record.
type Kind string

const (
	KindDisk      Kind = "disk"      // a whole virtual disk
	KindPartition Kind = "partition" // named by a partition table
	KindLV        Kind = "lv"        // an LVM2 logical volume
	KindMD        Kind = "md"        // a Linux RAID set
	KindLUKS      Kind = "luks"      // the payload of a LUKS container
	KindGap       Kind = "gap"       // what no table claims
	KindTable     Kind = "table"     // partition tables, boot records
)

// Volume is a stretch of bytes that may hold a file system or further volumes.
type Volume struct {
	Name   string // "disk", "p1", "vg0/root", "md127", "p3/luks", "gap@OFFSET", "table@OFFSET", with "IMAGE/" before it where there are several images
	Kind   Kind
	Scheme string // what defines it: "mbr", "gpt", "bsd", "apm", "lvm2", "md", "luks1", "luks2"; empty for the disk
	Number int    // partition number as Linux counts, 0 where there is none

	// Image is the image that Start counts in; -1 for a volume made of several stretches, which has Segments.
	Image int
	Start int64 // byte position in the whole virtual disk
	Size  int64 // bytes

	In       int // index of the volume that it lies in, -1 for a disk
	Segments []Segment

	TypeID string // partition type: "0x83", or a GUID
	Type   string // its name: "Linux filesystem", or empty where unknown
	UUID   string // of the partition, group, set or container
	Label  string // name in the table
	Attrs  []string

	// Disk reads the volume. It is never nil: where bytes can't be had, its extents say so.
	Disk formats.Disk
	// Holds names what was recognised in it that is no file system: "LVM2_member", "linux_raid_member", "crypto_LUKS",
	// "swap", …
	Holds string

	Notes    []string
	Problems []error
}

// Segment is one stretch of a volume that isn't one range of one image. Position and target are in bytes.
type Segment struct {
	At, Len int64
	Kind    string // "linear", "striped", "mirror", "raid5", "thin", "crypt", "missing", …
	Volumes []int  // the volumes it lies on, in the order of the stripes
	Starts  []int64
	Stripe  int64
}

// Options says how volumes are looked for.
type Options struct {
	Env *formats.Env
	// SectorSize forces the logical sector size in bytes; 0: the image's own word, else whichever makes sense.
	SectorSize int64
	// Passphrase is asked for the secrets of encrypted volumes; nil: there are none.
	Passphrase formats.Passphrase
	// Opened gives a reader of what is in the LUKS container of a UUID, where a kernel has it open and may be asked
	// instead of the user; nil, or a nil reader: it hasn't.
	Opened func(uuid string) io.ReaderAt
}
