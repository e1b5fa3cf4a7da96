package hostsnap

import "encoding/binary"

var le = binary.NativeEndian

// Requests of linux/btrfs.h: BTRFS_IOC_SNAP_DESTROY, BTRFS_IOC_SNAP_CREATE_V2, BTRFS_IOC_SUBVOL_GETFLAGS.
const (
	reqDestroy  = 0x5000940f
	reqSnapshot = 0x50009417
	reqFlags    = 0x80089419
)

// struct btrfs_ioctl_vol_args and btrfs_ioctl_vol_args_v2, and the flag BTRFS_SUBVOL_RDONLY.
const (
	volSize  = 4096
	volFD    = 0  // s64
	volName  = 8  // a string, in the first
	vol2Mode = 16 // u64
	vol2Name = 56 // a string, in the second
	readOnly = 1 << 1
)

// noCOW is FS_NOCOW_FL of linux/fs.h.
const noCOW = 0x00800000

// topInode is the inode of a subvolume's top (BTRFS_FIRST_FREE_OBJECTID), and noSubvolume that of the empty folder which a
// snapshot has in the place of a subvolume (BTRFS_EMPTY_SUBVOL_DIR_OBJECTID).
const (
	topInode    = 256
	noSubvolume = 2
)
