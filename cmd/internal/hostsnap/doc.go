// Package hostsnap makes files of this host stand still while they are read: by a read-only snapshot of the btrfs
// subvolume that they lie in, or by reflink copies of them.
//
// Either lies in a folder of its own at the top of the file system, which only its maker may enter. It is locked as long
// as its run lives, so that the next run can tell one that a killed run left, and removes it.
package hostsnap
