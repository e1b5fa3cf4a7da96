// Package ext4 reads ext2, ext3 and ext4, with the journal replayed into memory.
//
// Specification: the kernel's Documentation/filesystems/ext4 ("ext4 Data Structures and Algorithms") and its
// fs/ext4/ext4.h, fs/jbd2 and include/linux/jbd2.h; section names in layout.go are those of the former. Where words
// are lacking, what Linux 6.18 and e2fsprogs 1.47 do decides.
//
// Read are block sizes from 1 KiB to 64 KiB, 32- and 64-bit block numbers, flex_bg, meta_bg, sparse_super2, bigalloc,
// extents and block maps, inline data, linear and hashed directories, casefold, xattrs in the inode, in a block and in
// inodes of their own, project ids, the orphan list and the orphan file. Checksums of all that is read are verified;
// block and inode bitmaps are not read, so theirs are not. A damaged superblock or group descriptor is replaced by a
// backup, which a note says.
//
// A journal that holds work is replayed as the kernel would at the next mount: blocks that live only in the journal
// have their place there, and fast commits change names, inodes and extents in memory. Times that a mount would set
// anew (those of directories that a fast commit changes, for example) are left as they are stored.
//
// Names in directories that fscrypt encrypted are shown as the kernel shows them when it has no key: base64url of the
// stored name behind its hash. Contents of encrypted files are runs of the kind Encrypted.
//
// Not supported: compressed files and directory data (refused by name, as the kernel does), external journals (a volume
// that needs one is read without replay, and says so), the snapshots of Next3, and the other byte order of old PowerPC
// volumes.
package ext4
