package formats

import (
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// QEMU locks byte lockPermission+i of an image for each permission i that it holds, and lockUnshared+i for each that it
// lets nobody else hold (block/file-posix.c).
const (
	lockPermission = 100
	lockUnshared   = 200

	permConsistentRead = 0
	permWrite          = 1
	permResize         = 3
)

// WriterHolds tells whether another process holds a lock that says that it writes.
func WriterHolds(h *os.File) bool {
	return lockHeld(h, lockPermission+permWrite) || lockHeld(h, lockPermission+permResize)
}

// lockHeld tells whether somebody else has locked a byte. Where locks can't be had nobody has.
func lockHeld(h *os.File, at int64) bool {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: at, Len: 1}
	return unix.FcntlFlock(h.Fd(), unix.F_OFD_GETLK, &l) == nil && l.Type != unix.F_UNLCK
}

// HoldReader takes the locks of a reader who lets nobody write: as long as h is open, QEMU won't open the file for
// writing. It tells whether somebody writes already, or lets nobody read; the locks are then held all the same, until h
// is closed.
func HoldReader(h *os.File) (busy bool, err error) {
	for _, at := range []int64{lockPermission + permConsistentRead, lockUnshared + permWrite, lockUnshared + permResize} {
		l := unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart, Start: at, Len: 1}
		if err := unix.FcntlFlock(h.Fd(), unix.F_OFD_SETLK, &l); err != nil {
			return false, err
		}
	}
	return WriterHolds(h) || lockHeld(h, lockUnshared+permConsistentRead), nil
}

// VMwareLock finds what VMware leaves beside a file that it has open: a folder of that name with lock files in it, or,
// in old versions, one file. It gives the path of the folder or file, or "".
func VMwareLock(path string) string {
	if entries, err := os.ReadDir(path + ".lck"); err == nil {
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".lck") {
				return path + ".lck"
			}
		}
	}
	if _, err := os.Lstat(path + ".WRITELOCK"); err == nil {
		return path + ".WRITELOCK"
	}
	return ""
}
