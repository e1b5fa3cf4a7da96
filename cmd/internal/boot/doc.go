// Package boot maps images with a kernel's help, and without the guest's own system: it starts a small machine under
// QEMU, whose kernel mounts what is on the images, and whose only program is this same binary, which maps the file
// systems from inside (see package live) and sends the map back.
//
// The images are attached as QEMU sees any disk: through NBD, from this process, so that QEMU parses none of them, and
// every format that vmkit reads will do. What the machine writes, such as a log's replay, goes to a throw-away file
// here. Where that changed bytes of files, Machine.Changes tells.
//
// The kernel is one of the host's, or is given; only the modules that the machine needs go into its initramfs, which is
// built in memory. No file is left behind, whatever happens: memory, sockets and unlinked files is all that there is.
//
// The machine's kernel parses an image that may be hostile, so what comes out of it is not trusted: it has no network,
// its time, memory and output are bounded, and its map is checked like any other.
//
// Not supported: volumes that lie coded on the disks (LUKS, parity RAID that lacks a member), ones in more than
// maxStretches pieces, and file systems that the kernel has no module for.
package boot
