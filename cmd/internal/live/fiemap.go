package live

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Extent is what the kernel says of where a part of a file lies.
type Extent struct {
	At, Place, Len int64 // position in the file, on the file system's device, and length, in bytes
	Unwritten      bool  // reads as zeros, whatever lies there
	NoPlace        bool  // it lies nowhere as it is, or not yet: Place means nothing
}

// Extents calls yield with the extents of an open file of size bytes, in order, until yield returns false: what is
// between them are holes. What was written is placed first.
func Extents(fd int, size int64, yield func(Extent) bool) error {
	b := make([]byte, fmSize+fiemapOneAsk*feSize)
	for from := int64(0); from < size; {
		clear(b[:fmSize])
		le.PutUint64(b[fmStart:], uint64(from))
		le.PutUint64(b[fmLength:], uint64(size-from))
		le.PutUint32(b[fmFlags:], fiemapSync)
		le.PutUint32(b[fmCount:], fiemapOneAsk)
		if err := Ioctl(fd, reqFIEMAP, b); err != nil {
			return fmt.Errorf("fiemap: %w", err)
		}
		n := min(le.Uint32(b[fmMapped:]), fiemapOneAsk)
		if n == 0 {
			return nil
		}
		for i := range n {
			e := b[fmSize+i*feSize:]
			at, place, length, flags := le.Uint64(e[feLogical:]), le.Uint64(e[fePhysical:]), le.Uint64(e[feLength:]), le.Uint32(e[feFlags:])
			if at > 1<<62 || place > 1<<62 || length == 0 || length > 1<<62 {
				return fmt.Errorf("fiemap: an extent of %d bytes at %d, which lies at %d: %w", length, at, place, unix.EIO)
			}
			x := Extent{int64(at), int64(place), int64(length), flags&extUnwritten != 0, flags&extNoPlace != 0}
			// An extent may begin before what was asked for.
			if skip := from - x.At; skip > 0 {
				if skip >= x.Len {
					continue
				}
				x.At, x.Place, x.Len = from, x.Place+skip, x.Len-skip
			}
			if from = x.At + x.Len; !yield(x) || flags&extLast != 0 {
				return nil
			}
		}
	}
	return nil
}
