package boot

import (
	"fmt"
	"io"
)

// archive writes a cpio archive in the form "newc", which the kernel unpacks as its first file system; see
// Documentation/driver-api/early-userspace/buffer-format.rst. Its first error sticks.
type archive struct {
	w   io.Writer
	ino int
	err error
}

const (
	modeDir  = 0o040755
	modeProg = 0o100755
	modeFile = 0o100644
)

// add writes a file; folders come before what is in them.
func (a *archive) add(name string, mode int, data []byte) {
	a.ino++
	a.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name))
	a.write(data)
}

// write writes b and fills up to a multiple of 4 bytes. The head has 110 bytes, and with the name's padding the count
// stays right as all before is padded.
func (a *archive) write(b []byte) {
	if a.err != nil {
		return
	}
	if _, a.err = a.w.Write(b); a.err == nil {
		_, a.err = a.w.Write(make([]byte, -len(b)&3))
	}
}

func (a *archive) close() error {
	a.add("TRAILER!!!", 0, nil)
	return a.err
}
