// Package clone copies the files of a machine that vmfreeze holds, or that is off, into a folder of their own, and
// rewrites what refers to other files or must not exist twice, so that the copy is a machine that could be started.
//
// The files come first: by reflink, or as sparse copies, and while they do the machine is held. As soon as the last
// byte was read it is let go; what follows works on the clone alone. References are rewritten by parsing what holds
// them: headers of QCOW2 images, descriptors of VMDKs, VMware's dictionaries, the XML of libvirt and VirtualBox, the
// command line of QEMU.
//
// A clone is built in a folder with a temporary name, and appears under its own when it is whole and on the disk. A
// folder that a killed run left is known by the lock that nobody holds on its record, and removed by the next run.
//
// What is not rewritten, and said so in the clone's notes: parent locators of VHD and VHDX images (readers that look
// beside the image by identity, as vmkit's do, find the parent), backing names of QCOW version 1, UUIDs of VHDs in
// VirtualBox machines.
package clone
