// Package xfs reads XFS, versions 4 and 5, as the Linux kernel would show it after mounting.
//
// The format is that of "XFS Algorithms & Data Structures" (3rd edition) and of the kernel's fs/xfs/libxfs:
// xfs_format.h, xfs_da_format.h and xfs_log_format.h, whose names the constants and fields here keep.
//
// Read are directories, forks, extended attributes and symbolic links in every form; sizes of blocks from 512 bytes to
// 64 KiB, of sectors up to 32 KiB and of directory blocks up to 64 KiB; sparse inodes, big timestamps, 64-bit extent
// counters, shared extents and parent pointers. The checksum, the identity and the owner of each metadata block that is
// read are verified: what is wrong is a problem, and the data is still given.
//
// A log that holds work is replayed into memory (see log.go and replay.go), with both passes, the LSN rules of version
// 5, and the intents whose completion changes what is seen: block mappings (BUI), exchanged mappings (XMI) and extended
// attributes (ATTRI).
//
// The leaf, node and free-index blocks of directories and the allocation, reverse-mapping and reference-count btrees are
// not read: they hold nothing that the data blocks and the inodes don't.
//
// Not supported: files on a realtime device (reported, their content missing), an external log (reported as not
// replayed), the metadata directory tree, zoned devices and whatever other incompatible feature is unknown here (refused
// by number and name), and directories of version 1.
package xfs
