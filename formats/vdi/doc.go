// Package vdi reads VirtualBox's disk images: dynamic and fixed ones, version 1.1.
//
// A table maps the blocks of the disk, 1 MiB each as a rule, to blocks of the file. VirtualBox publishes no
// specification; the sources are its own storage code (src/VBox/Storage/VDICore.h and VDI.cpp, cited as VDICore) and
// block/vdi.c of QEMU.
//
// A differencing (snapshot) or undo image knows its parent by a UUID only, and the file's name stands in the machine's
// settings: such an image is refused, or, where missing layers are allowed, opened with the parent's part missing.
package vdi
