// Package vhdx reads the virtual hard disks of Hyper-V: fixed, dynamic and differencing VHDX files.
//
// A file has two headers, of which the newer valid one counts, a log of metadata writes, two copies of a table of
// regions, and in the regions the metadata (sizes, parent) and the table of blocks (BAT). What the log holds is
// replayed into memory, never onto the file; with the log pending the image's state is dirty.
//
// Source: [MS-VHDX] "Virtual Hard Disk v2 (VHDX) File Format", cited with the section. QEMU reads no differencing VHDX,
// and none whose log is pending unless it may write to it.
//
// Not supported: payload blocks that lie in the log, which the specification keeps for metadata; their bytes are
// missing, with an error.
package vhdx
