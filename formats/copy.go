package formats

import (
	"context"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
)

// ZeroWriter is what a writer may offer besides: to take zeros without being handed them.
type ZeroWriter interface {
	WriteZeros(n int64) error
}

// Copying goes by chunks: large enough that the work on one outweighs handing it on, small enough that those on their
// way stay in the processor's cache.
const copyChunk = 256 << 10

// zeros is what is written for chunks that read as zeros.
var zeros [copyChunk]byte

// chunk is a stretch of the disk on its way from the reader to the writer.
type chunk struct {
	off, n int64
	zero   bool // n zeros, however many; buf is not used
	buf    []byte
	err    error
	ready  chan struct{} // holds one message when a worker is done
}

// Copy writes the whole disk to w, in order. So many workers read and decode ahead of the writer. It gives the number of
// bytes that were written; it stops at the first byte that can't be had, and at a cancelled context.
func Copy(ctx context.Context, w io.Writer, d Disk, workers int) (int64, error) {
	workers = max(workers, 1)
	ahead := 2*workers + 1
	free, work, order := make(chan *chunk, ahead), make(chan *chunk, ahead), make(chan *chunk, ahead)
	for range ahead {
		free <- &chunk{ready: make(chan struct{}, 1)}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(order)
		defer close(work)
		return plan(ctx, d, free, work, order)
	})
	for range workers {
		g.Go(func() error {
			for c := range work {
				if c.buf == nil {
					c.buf = make([]byte, copyChunk)
				}
				n, err := d.ReadAt(c.buf[:c.n], c.off)
				if int64(n) < c.n {
					c.n, c.err = int64(n), fmt.Errorf("at byte %d: %w", c.off+int64(n), err)
				}
				c.ready <- struct{}{}
			}
			return nil
		})
	}
	var written int64
	g.Go(func() error {
		for c := range order {
			n, err := c.write(ctx, w)
			written += n
			if err != nil {
				return err
			}
			free <- c
		}
		return nil
	})
	err := g.Wait()
	return written, err
}

// plan cuts the disk into chunks, and hands those that must be read to the workers and all of them to the writer.
func plan(ctx context.Context, d Disk, free <-chan *chunk, work, order chan<- *chunk) error {
	var holes Holes
	for off, size := int64(0), d.Size(); off < size; {
		var c *chunk
		select {
		case c = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		c.off, c.n, c.err = off, min(copyChunk-off%copyChunk, size-off), nil
		// What is wrong with an extent is the worker's to say.
		e, _ := d.ExtentAt(off, size-off)
		c.zero = e.Kind == Zero && e.Len >= c.n
		if c.zero {
			c.n = e.Len
		} else if e.Kind == Data && e.Len >= c.n {
			if n := min(holes.At(e.File, e.Off), e.Len); n >= c.n {
				c.zero, c.n = true, n
			}
		}
		off += c.n
		if !c.zero {
			work <- c
		}
		order <- c
	}
	return nil
}

// write waits for the chunk and writes it.
func (c *chunk) write(ctx context.Context, w io.Writer) (int64, error) {
	if !c.zero {
		select {
		case <-c.ready:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		n, err := w.Write(c.buf[:c.n])
		if err == nil {
			err = c.err
		}
		return int64(n), err
	}
	if z, ok := w.(ZeroWriter); ok {
		if err := z.WriteZeros(c.n); err != nil {
			return 0, err
		}
		return c.n, nil
	}
	var written int64
	for written < c.n {
		if err := ctx.Err(); err != nil {
			return written, err
		}
		n, err := w.Write(zeros[:min(c.n-written, copyChunk)])
		written += int64(n)
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// Holes tells holes of host files, which read as zeros whatever an image calls them. It remembers the stretch that was asked
// about last; one goroutine uses it.
type Holes struct {
	file *File
	stretch
}

// At tells how many bytes of a hole lie at off of f; 0 where there is none, or none can be told.
func (h *Holes) At(f *File, off int64) int64 {
	if h.file != f || off < h.start || off >= h.end {
		s, ok := f.ReaderAt.(Sparse)
		if !ok {
			return 0
		}
		h.file, h.start = f, off
		h.hole, h.end = s.Region(off)
	}
	if !h.hole {
		return 0
	}
	return h.end - off
}
