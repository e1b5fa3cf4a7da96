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
// Not supported, and refused by name: raw devices (VMFSRDM, VMFSRAW, and disks of the types fullDevice and
// partitionedDevice), seSparse extents whose journal is to be replayed, VSAN objects. Of an encrypted disk it is known
// that it is encrypted, and nothing else: its bytes are of kind Encrypted.
package vmdk
