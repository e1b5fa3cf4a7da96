// Package vmdk reads VMware's virtual disks.
//
// A disk is described by a text, the descriptor, which lies in a file of its own or in the first extent. It lists
// extents, which follow one another on the disk: flat ones hold it byte for byte, sparse ones hold grains (clusters)
// that two levels of tables find. What no extent holds comes from the parent that the descriptor names, or is zeros.
//
// Sources:
//   - "Virtual Disk Format 5.0", VMware technical note (2011), for descriptors, hosted sparse, stream-optimized and
//     ESXi host sparse (COWD) extents; cited as VDF with the section.
//   - block/vmdk.c of QEMU for seSparse, which VMware does not publish, and wherever the two differ.
//   - libvmdk's documentation of the format for what VMware's programs write besides.
//
// Where a disk is damaged or its files were moved, what can be had is given, and what was done is told:
//   - A redundant grain directory or table takes the place of a sector of the first one that points outside the file or
//     is empty: a note. Where both make sense the first one counts.
//   - A stream without its footer is read by its markers. Streams are written in the order of the disk, so what was
//     passed over is zeros and what comes after the last whole grain is missing: a problem.
//   - An extent or a parent that is not there under its name is taken from beside the descriptor if one file only can be
//     meant: an extent by its size and the suffix that VMware gives, a parent by its CID. A note.
//   - A parent whose CID is not the one noted in the snapshot was changed since: a problem, and its bytes are offered.
//     QEMU and VMware refuse to read it.
//
// Nothing that is public writes COWD and seSparse extents: the tests build them by these sources, and QEMU reads them.
//
// Not supported, and refused by name: raw devices (VMFSRDM, VMFSRAW, and disks of the types fullDevice and
// partitionedDevice), seSparse extents whose journal is to be replayed, VSAN objects. Of an encrypted disk it is known
// that it is encrypted, and nothing else: its bytes are of kind Encrypted.
package vmdk
