package extract

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"strings"

	"vmkit/fsmap/mapfile"
)

// bufSize is how many bytes are read and written at once.
const bufSize = 512 << 10

// smallHole is the length below which a hole among data is written as zeros: no file system keeps smaller ones.
const smallHole = 4096

// filler turns the extents of one file into writes in order, as large as they can be, holes left out; it hashes what
// goes by and notes what can't be had. A worker has one and uses it for one file after another.
type filler struct {
	src  *source
	buf  []byte // bytes of the file from at on, not yet written
	at   int64
	hash hash.Hash
	sum  [sha256.Size]byte
	work chan []byte // to the goroutine that hashes beside the writing
	done chan struct{}

	write func(at int64, p []byte) error
	gaps  gaps
	sums  budget
}

// budget bounds the zeros that are hashed for the holes of one file: a guest can make holes of any length for nothing.
type budget struct {
	data, holes int64
	spent       bool
}

// maxHoles is how many bytes of holes are hashed in any file; of one with data it's more.
var maxHoles int64 = 8 << 30 // tests lower it

const holesPerData = 16

// hole tells whether n more bytes of a hole may be hashed.
func (b *budget) hole(n int64) bool {
	if b.spent || n > maxHoles && n/holesPerData > b.data {
		b.spent = true
	} else if b.holes += n; b.holes > maxHoles && b.holes/holesPerData > b.data {
		b.spent = true
	}
	return !b.spent
}

const noSum = "sha256 left out: the file is nearly all holes"

func newFiller(src *source) *filler {
	f := &filler{src: src, buf: make([]byte, 0, bufSize), hash: sha256.New(), work: make(chan []byte), done: make(chan struct{})}
	go func() {
		for p := range f.work {
			f.hash.Write(p)
			f.done <- struct{}{}
		}
	}()
	return f
}

func (f *filler) close() { close(f.work) }

// begin starts a file. write gets its bytes, in order, holes left out; p is valid during the call.
func (f *filler) begin(write func(at int64, p []byte) error) {
	f.buf, f.at, f.write = f.buf[:0], 0, write
	f.hash.Reset()
	f.gaps, f.sums = gaps{list: f.gaps.list[:0]}, budget{}
}

// add goes on with extents. An error is one of writing; what can't be read becomes a gap.
func (f *filler) add(list []mapfile.Extent) error {
	for i := range list {
		var err error
		switch e := &list[i]; e.Kind {
		case mapfile.Zero, mapfile.Hole, mapfile.Unwritten:
			err = f.hole(e.Len)
		case mapfile.Packed:
			err = f.packed(e)
		default:
			err = f.plain(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// room gives space for up to n bytes behind those that wait.
func (f *filler) room(n int64) ([]byte, error) {
	if len(f.buf) == cap(f.buf) {
		if err := f.flush(); err != nil {
			return nil, err
		}
	}
	free := f.buf[len(f.buf):cap(f.buf)]
	return free[:min(n, int64(len(free)))], nil
}

func (f *filler) plain(e *mapfile.Extent) error {
	step := int64(bufSize)
	for done := int64(0); done < e.Len; {
		p, err := f.room(min(e.Len-done, step))
		if err != nil {
			return err
		}
		n := int64(len(p))
		switch err := f.src.fill(p, e, done); {
		case err == nil:
			f.buf = f.buf[:len(f.buf)+len(p)]
		case !partly(err):
			return f.gap(e.Len-done, err)
		case n > badStep: // something among these can't be read: go on in small steps
			step = badStep
			continue
		default:
			if err := f.gap(n, err); err != nil {
				return err
			}
		}
		done += n
	}
	return nil
}

// badStep is in which steps the neighbourhood of a read error is read.
const badStep = 4096

// partly tells whether an error of reading says nothing about the bytes further on.
func partly(err error) bool {
	var e *fs.PathError
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &e) && e.Op == "read"
}

func (f *filler) packed(e *mapfile.Extent) error {
	if e.Skip == 0 && e.Len == e.Pack.Full && e.Len <= int64(cap(f.buf)) {
		if e.Len > int64(cap(f.buf)-len(f.buf)) {
			if err := f.flush(); err != nil {
				return err
			}
		}
		return f.plain(e) // decodes in place
	}
	b, err := f.src.unpack(e.Pack)
	if err != nil {
		return f.gap(e.Len, err)
	}
	for b = b[e.Skip : e.Skip+e.Len]; len(b) > 0; {
		p, err := f.room(int64(len(b)))
		if err != nil {
			return err
		}
		n := copy(p, b)
		f.buf, b = f.buf[:len(f.buf)+n], b[n:]
	}
	return nil
}

var zeros [64 << 10]byte

// hole passes over n bytes that are zeros.
func (f *filler) hole(n int64) error {
	if n < smallHole && len(f.buf) > 0 && int64(cap(f.buf)-len(f.buf)) > n {
		f.buf = append(f.buf, zeros[:n]...)
		return nil
	}
	if err := f.flush(); err != nil {
		return err
	}
	f.at += n
	if f.gaps.any() || !f.sums.hole(n) {
		return nil
	}
	for n > 0 {
		k := min(n, int64(len(zeros)))
		f.hash.Write(zeros[:k])
		n -= k
	}
	return nil
}

// gap passes over n bytes that can't be had.
func (f *filler) gap(n int64, err error) error {
	if werr := f.flush(); werr != nil {
		return werr
	}
	f.gaps.add(f.at, n, err)
	f.at += n
	return nil
}

// flush writes and hashes what waits, side by side where it is worth it.
func (f *filler) flush() error {
	p, at := f.buf, f.at
	if len(p) == 0 {
		return nil
	}
	f.buf, f.at = f.buf[:0], f.at+int64(len(p))
	f.sums.data += int64(len(p))
	if f.gaps.any() || f.sums.spent {
		return f.write(at, p) // a file with gaps has no sum
	}
	if len(p) < 64<<10 {
		f.hash.Write(p)
		return f.write(at, p)
	}
	f.work <- p
	err := f.write(at, p)
	<-f.done
	return err
}

// end finishes the file, whose length it checks.
func (f *filler) end(size int64) error {
	if err := f.flush(); err != nil {
		return err
	}
	if f.at < size {
		f.gaps.add(f.at, size-f.at, errNoExtents)
	}
	return nil
}

var errNoExtents = errors.New("the map doesn't tell where it lies")

// sha256 gives the sum of a file without gaps.
func (f *filler) sha256() string {
	var text [2 * sha256.Size]byte
	hex.Encode(text[:], f.hash.Sum(f.sum[:0]))
	return string(text[:])
}

// gaps are the stretches of a file that can't be had.
type gaps struct {
	bytes     int64
	encrypted int64
	list      []gap // the first few
	more      int
}

type gap struct {
	at, n int64
	err   error
}

// maxGaps is how many gaps a message tells.
const maxGaps = 3

func (g *gaps) any() bool { return g.bytes > 0 }

func (g *gaps) add(at, n int64, err error) {
	g.bytes += n
	if errors.Is(err, errEncrypted) {
		g.encrypted += n
	}
	if k := len(g.list); k > 0 && g.list[k-1].at+g.list[k-1].n == at && g.list[k-1].err.Error() == err.Error() {
		g.list[k-1].n += n
		return
	}
	if len(g.list) == maxGaps {
		g.more++
		return
	}
	g.list = append(g.list, gap{at, n, err})
}

func (g *gaps) String() string {
	var b strings.Builder
	for i, x := range g.list {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "bytes %d to %d: %v", x.at, x.at+x.n-1, x.err)
	}
	if g.more > 0 {
		fmt.Fprintf(&b, "; and %d gaps more", g.more)
	}
	return b.String()
}
