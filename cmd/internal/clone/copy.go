package clone

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"vmkit/formats"
)

// Method is how files are cloned.
type Method string

const (
	// Auto is Reflink where it can be had, else Copy.
	Auto Method = "auto"
	// Reflink shares the bytes with the source, on a file system that can.
	Reflink Method = "reflink"
	// Copy reads and writes them. What is a hole in the source stays one.
	Copy Method = "copy"
)

// Methods of files that have another content than their source, and of those that have none.
const (
	rewritten = "rewritten"
	made      = "made"
)

// pair is a source that was opened, and the file of the clone that is to have its content.
type pair struct {
	src, dst *os.File
	size     int64
	used     int64 // bytes that the source takes on its disk
	device   bool
}

// newPair opens a source and makes the file of the clone.
func newPair(from, to string) (*pair, error) {
	src, err := os.OpenFile(from, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	p := &pair{src: src}
	mode, err := p.measure()
	if err == nil {
		p.dst, err = os.OpenFile(to, os.O_RDWR|os.O_CREATE|os.O_EXCL, mode|0o600)
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// measure finds out about the source, and gives the permissions that its clone gets.
func (p *pair) measure() (fs.FileMode, error) {
	st, err := p.src.Stat()
	if err != nil {
		return 0, err
	}
	switch mode := st.Mode(); {
	case mode.IsRegular():
		var sys unix.Stat_t
		if err := unix.Fstat(int(p.src.Fd()), &sys); err != nil {
			return 0, fmt.Errorf("%s: %w", p.src.Name(), err)
		}
		p.size, p.used = st.Size(), sys.Blocks*512
		return mode.Perm(), nil
	case mode&(fs.ModeDevice|fs.ModeCharDevice) == fs.ModeDevice:
		p.device = true
		p.size, err = p.src.Seek(0, io.SeekEnd)
		p.used = p.size // at most: zeros are left out
		return 0o600, err
	}
	return 0, fmt.Errorf("%s is neither a file nor a block device", p.src.Name())
}

func (p *pair) close() {
	p.src.Close()
	if p.dst != nil {
		p.dst.Close()
	}
}

// reflink shares the source's bytes with the clone.
func (p *pair) reflink() error {
	if p.device {
		return errors.New("a block device has nothing to share")
	}
	return unix.IoctlFileClone(int(p.dst.Fd()), int(p.src.Fd()))
}

// chunk is how much one worker copies at a time: enough that handing it out costs nothing.
const chunk = 1 << 20

// stretch is a part of a pair that holds data.
type stretch struct {
	*pair
	off, n int64
}

// copyAll copies what the pairs hold, with several workers, and tells progress in bytes read.
func copyAll(ctx context.Context, pairs []*pair, workers int, progress func(int64)) error {
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan stretch, 2*workers)
	g.Go(func() error {
		defer close(work)
		for _, p := range pairs {
			if err := p.plan(ctx, work); err != nil {
				return err
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			buf := make([]byte, chunk)
			for s := range work {
				if err := s.copy(buf); err != nil {
					return err
				}
				progress(s.n)
			}
			return nil
		})
	}
	return g.Wait()
}

// plan hands out the stretches of the pair that are no holes.
func (p *pair) plan(ctx context.Context, work chan<- stretch) error {
	if err := p.dst.Truncate(p.size); err != nil {
		return err
	}
	for off := int64(0); off < p.size; {
		hole, end := formats.Region(p.src, off)
		for end = min(end, p.size); off < end && !hole; {
			s := stretch{p, off, min(chunk, end-off)}
			select {
			case work <- s:
			case <-ctx.Done():
				return ctx.Err()
			}
			off += s.n
		}
		off = end
	}
	return nil
}

// zeroUnit is the length to which zeros of a block device are left out.
const zeroUnit = 64 << 10

var zeros [zeroUnit]byte

func (s stretch) copy(buf []byte) error {
	buf = buf[:s.n]
	if n, err := s.src.ReadAt(buf, s.off); n < len(buf) {
		return fmt.Errorf("%s: at byte %d: %w", s.src.Name(), s.off+int64(n), err)
	}
	if !s.device {
		_, err := s.dst.WriteAt(buf, s.off)
		return err
	}
	for at := 0; at < len(buf); at += zeroUnit {
		b := buf[at:min(at+zeroUnit, len(buf))]
		if bytes.Equal(b, zeros[:len(b)]) {
			continue
		}
		if _, err := s.dst.WriteAt(b, s.off+int64(at)); err != nil {
			return err
		}
	}
	return nil
}

// room checks that dir's file system takes so many bytes more.
func room(dir string, need int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if free := int64(st.Bavail) * st.Frsize; need > free {
		return fmt.Errorf("%s has %d MiB free, and %d MiB are to be copied: %w", dir, free>>20, (need+1<<20-1)>>20, unix.ENOSPC)
	}
	return nil
}
