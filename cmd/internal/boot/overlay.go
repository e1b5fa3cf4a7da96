package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"

	"vmkit/formats/ondisk"
)

const (
	blockSize = 4096
	// maxOverlay bounds what the machine may write: its logs' replays are some MiB.
	maxOverlay = 1 << 30
	// maxChange is how many changed bytes are told at once.
	maxChange = 64 << 10
)

var errFull = errors.New("the machine wrote more than it may")

// overlay is a disk that can be written to: what is written goes to a file without a name. It is safe for concurrent
// use.
type overlay struct {
	base io.ReaderAt
	size int64 // of the disk as the machine sees it: whole sectors

	mu     sync.Mutex
	f      *os.File
	slots  map[int64]int64 // block number to the block's number in f
	blocks []int64         // the keys of slots in order, once they were asked for
}

func newOverlay(base io.ReaderAt, size, sector int64) (*overlay, error) {
	f, err := os.CreateTemp("", "vmkit-boot-")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name())
	return &overlay{base: base, size: (size + sector - 1) / sector * sector, f: f, slots: map[int64]int64{}}, nil
}

func (o *overlay) Close() error { return o.f.Close() }

// read reads bytes of the disk that lie in it.
func (o *overlay) read(p []byte, off int64) error {
	for len(p) > 0 {
		in := off % blockSize
		n := min(int64(len(p)), blockSize-in)
		o.mu.Lock()
		slot, ok := o.slots[off/blockSize]
		for next := off/blockSize + 1; !ok && n < int64(len(p)); next++ { // as far as nothing was written
			if _, written := o.slots[next]; written {
				break
			}
			n = min(int64(len(p)), n+blockSize)
		}
		o.mu.Unlock()
		var err error
		if ok {
			_, err = o.f.ReadAt(p[:n], slot*blockSize+in)
		} else {
			err = readBase(o.base, p[:n], off)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// readBase reads from the image. Past its end are zeros.
func readBase(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n < len(p) && (err == nil || errors.Is(err, io.EOF)) {
		clear(p[n:])
		return nil
	}
	if n == len(p) {
		return nil
	}
	return err
}

// write keeps what the machine writes.
func (o *overlay) write(p []byte, off int64) error {
	buf := make([]byte, blockSize)
	for len(p) > 0 {
		in := off % blockSize
		n := min(int64(len(p)), blockSize-in)
		if n < blockSize {
			if err := o.read(buf[:min(blockSize, o.size-off+in)], off-in); err != nil {
				return err
			}
		}
		copy(buf[in:], p[:n])
		o.mu.Lock()
		slot, ok := o.slots[off/blockSize]
		if !ok {
			slot = int64(len(o.slots))
			if slot >= maxOverlay/blockSize {
				o.mu.Unlock()
				return errFull
			}
			o.slots[off/blockSize] = slot
		}
		_, err := o.f.WriteAt(buf, slot*blockSize)
		o.mu.Unlock()
		if err != nil {
			return fmt.Errorf("keeping what the machine wrote: %w", err)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// changes gives the first bytes, of the n at off, that were written and are others than the image's, and where they lie.
// It is called once the machine is gone.
func (o *overlay) changes(off, n int64) (int64, []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.blocks) != len(o.slots) {
		o.blocks = o.blocks[:0]
		for b := range o.slots {
			o.blocks = append(o.blocks, b)
		}
		slices.Sort(o.blocks)
	}
	i, _ := slices.BinarySearch(o.blocks, off/blockSize)
	start, found := int64(0), []byte(nil)
	now, was := make([]byte, blockSize), make([]byte, blockSize)
	for ; i < len(o.blocks) && o.blocks[i]*blockSize < off+n; i++ {
		from := max(off, o.blocks[i]*blockSize)
		a, b := now[:min(off+n, (o.blocks[i]+1)*blockSize)-from], was
		b = b[:len(a)]
		if found != nil && (from != start+int64(len(found)) || len(found) >= maxChange) {
			break
		}
		_, err := o.f.ReadAt(a, o.slots[o.blocks[i]]*blockSize+from%blockSize)
		same := err == nil
		if same {
			same = ondisk.ReadFull(o.base, b, from, "image") == nil && string(a) == string(b)
		}
		if err != nil {
			clear(a)
		}
		switch {
		case same && found != nil:
			return start, found
		case same:
		case found == nil:
			start = from
			fallthrough
		default:
			found = append(found, a...)
		}
	}
	return start, found
}
