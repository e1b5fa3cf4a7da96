package fsmap

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"vmkit/formats"
	"vmkit/fsmap/mapfile"
	"vmkit/partition"
)

// identity tells which disk an image is, by what stays when its files change: its partition table with the table's own
// id, and of the disk and each partition the place and the ids that the table and the content give (the UUID of a file
// system, a physical volume, a member of an array). The sectors themselves are no good for that: file systems write
// counters into their super blocks.
func identity(img *formats.Image, vols []partition.Volume) *mapfile.Identity {
	x := &mapfile.Identity{Serial: img.Serial}
	sum := sha256.New()
	for i := range vols {
		v := &vols[i]
		if v.Image != img.Number || v.Kind != partition.KindDisk && v.Kind != partition.KindPartition {
			continue
		}
		if v.Kind == partition.KindDisk {
			x.ID = v.UUID
		} else {
			x.Table = cmp.Or(x.Table, v.Scheme)
		}
		c, _ := partition.Recognise(v.Disk, v.Size)
		fmt.Fprintf(sum, "%d %d %d %q %q %q %x\n", v.Number, v.Start, v.Size, v.TypeID, v.UUID, c.UUID, member(v, c.Name))
	}
	x.Marks = hex.EncodeToString(sum.Sum(nil))
	return x
}

// member gives the id of a volume that is one of several with the same UUID, or nil.
func member(v *partition.Volume, holds string) []byte {
	b := make([]byte, 16)
	read := func(b []byte, at int64) bool {
		if at < 0 || at > v.Size-int64(len(b)) {
			return false
		}
		n, _ := v.Disk.ReadAt(b, at)
		return n == len(b)
	}
	switch holds {
	case "btrfs": // super block: dev_item.uuid
		if read(b, 64<<10+0x10b) {
			return b
		}
	case "linux_raid_member": // super block of version 1.0, 1.1 or 1.2: device_uuid
		magic := make([]byte, 4)
		for _, at := range []int64{(v.Size - 8<<10) &^ 4095, 0, 4 << 10} {
			if read(magic, at) && string(magic) == "\xfc\x4e\x2b\xa9" && read(b, at+168) {
				return b
			}
		}
	}
	return nil
}

// differs says how the disk that x tells of is another than the one that y tells of, or gives "".
func differs(x, y *mapfile.Identity) string {
	name := func(i *mapfile.Identity) string {
		if i.Table == "" {
			return "none"
		}
		return i.Table + " " + cmp.Or(i.ID, "without an id")
	}
	switch {
	case x.Table != y.Table || x.ID != y.ID:
		return fmt.Sprintf("its partition table is %s, the map's is %s", name(y), name(x))
	case x.Marks != y.Marks:
		return "its partitions, or the ids of what they hold, are others than the map's"
	}
	return ""
}
