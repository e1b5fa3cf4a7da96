package live

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

var le = binary.NativeEndian

// Ioctl calls the kernel with a buffer that holds the call's structure, and what follows it.
func Ioctl(fd int, request uint, b []byte) error {
	for {
		_, _, err := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(unsafe.Pointer(&b[0])))
		switch err {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return err
		}
	}
}

// Requests, from linux/fs.h, linux/fiemap.h, linux/btrfs.h.
const (
	reqFIBMAP      = 0x1
	reqFIGETBSZ    = 0x2
	reqFIEMAP      = 0xc020660b
	reqGetXattr    = 0x801c581f
	reqBtrfsSearch = 0xc0709411
	reqBtrfsLookup = 0xd0009412
	reqBtrfsDev    = 0xd000941e
	reqBtrfsInfo   = 0x8400941f
)

// struct fiemap and struct fiemap_extent.
const (
	fmSize       = 32
	fmStart      = 0  // u64
	fmLength     = 8  // u64
	fmFlags      = 16 // u32
	fmMapped     = 20 // u32
	fmCount      = 24 // u32
	feSize       = 56
	feLogical    = 0  // u64
	fePhysical   = 8  // u64
	feLength     = 16 // u64
	feFlags      = 40 // u32
	fiemapSync   = 1
	fiemapOneAsk = 512 // extents in one call
)

// FIEMAP_EXTENT_*.
const (
	extLast      = 0x1
	extUnknown   = 0x2
	extDelalloc  = 0x4
	extEncoded   = 0x8
	extInline    = 0x200
	extTail      = 0x400
	extUnwritten = 0x800
	extNoPlace   = extUnknown | extDelalloc | extEncoded | extInline | extTail
)

// struct fsxattr.
const (
	fxSize     = 28
	fxFlags    = 0  // u32
	fxProject  = 12 // u32
	fxRealtime = 1
)

// struct btrfs_ioctl_search_args_v2 and its answers, btrfs_ioctl_dev_info_args, btrfs_ioctl_fs_info_args.
const (
	bsTree      = 0  // u64
	bsMinObject = 8  // u64
	bsMaxObject = 16 // u64
	bsMinOffset = 24 // u64
	bsMaxOffset = 32 // u64
	bsMaxTrans  = 48 // u64
	bsMinType   = 56 // u32
	bsMaxType   = 60 // u32
	bsItems     = 64 // u32
	bsBufSize   = 104
	bsHead      = 112
	biOffset    = 16 // u64
	biLen       = 28 // u32
	biHead      = 32

	bdPath     = 3072
	bdSize     = 4096
	bdBytes    = 32 // u64
	infoSize   = 1024
	infoMaxID  = 0 // u64
	lookupSize = 4096

	treeChunks     = 3
	chunkObject    = 256
	itemExtentData = 108
	itemChunk      = 228
	emptySubvolume = 2 // inode number
)
