// Package live is the walker that runs inside a guest. It asks the running kernel where each file of a mounted file
// system lies, so that it serves every file system that the kernel mounts, and gives the answers as fsmap.FS to
// fsmap.Build, which makes the same records of them as it does when an image is read from outside.
//
// Which volume a mounted file system is, and where that lies on the disks, comes from package partition's reading of the
// disks themselves, so that the volumes have the same names; the kernel's own tables in /sys pick the volume, and a
// sample of blocks is read through both to see that they agree.
//
// It needs Linux 5.8 (openat2, and numbers of mounts from statx), /proc, /sys and root. Not supported: files on an XFS realtime device, file systems that
// several devices make up other than btrfs, and what FIEMAP and FIBMAP tell no place of, where it is larger than
// maxInline.
package live
