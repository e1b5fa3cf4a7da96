// Package vpc reads the virtual hard disks (VHD) of Virtual PC, Hyper-V, Xen and Azure: fixed, dynamic and differencing
// ones.
//
// A fixed disk is a raw one with a footer. The others have the footer in front too, and a table of blocks (BAT), each
// with a bitmap of its sectors before it; in a differencing disk the bitmap says which sectors are the parent's.
//
// Sources: "Virtual Hard Disk Image Format Specification" 1.0 (Microsoft, 2006), cited as VHD with the section;
// block/vpc.c of QEMU for which of two sizes counts. In dynamic disks QEMU takes a block's sectors as they are, whatever
// the bitmap says; so does this package.
//
// Not supported: disks that are split over files (.v01, …), which nothing has written since Virtual PC 2007.
package vpc
