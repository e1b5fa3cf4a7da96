// Package btrfs reads btrfs as Linux writes it (Documentation/dev/On-disk-format of btrfs-progs; the kernel's
// include/uapi/linux/btrfs_tree.h).
//
// Read: one device and several (single, dup, RAID 0, 1, 1C3, 1C4, 10, 5 and 6; degraded where redundancy allows it),
// nodes of 4 to 64 KiB, mixed groups, crc32c, xxhash64, sha256 and blake2b checksums of every node, subvolumes and
// snapshots as directories below the top-level one (id 5), inline and compressed extents (zlib, lzo, zstd),
// preallocated extents, holes with and without items, xattrs, and the log tree, replayed in memory.
//
// Refused by name: zoned devices, the RAID stripe tree, extent tree v2, metadata dumps. Data checksums are not compared,
// since a map reads no content.
package btrfs
