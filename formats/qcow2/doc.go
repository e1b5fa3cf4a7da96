// Package qcow2 reads QEMU's copy-on-write images, versions 2 and 3, and writes those of version 3 in one pass (Writer).
//
// The specification is QEMU's docs/interop/qcow2; section names in this package are its. Where it leaves a choice to
// the reader, what QEMU does on reading is followed.
//
// Supported is all of it: clusters of 512 bytes to 2 MiB, refcounts of every width, compressed clusters (deflate,
// Zstandard), extended L2 entries, external data files, backing files, internal snapshots, header extensions; persistent
// bitmaps are listed and read; LUKS and legacy AES payloads need a passphrase.
//
// Not supported: clusters above 2 MiB and L1 tables above
// 32 MiB (QEMU has neither), and whatever an unknown incompatible feature bit stands for.
package qcow2
