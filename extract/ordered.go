package extract

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"sync"

	"golang.org/x/sync/semaphore"

	"vmkit/fsmap/mapfile"
)

// pieceSize is how many bytes of a file are read at once for an output that is one stream.
const pieceSize = 512 << 10

// wholePack is up to which length a packed extent isn't cut: the largest unit of a format.
const wholePack = 2 << 20

// ahead is how many bytes may have been read and not yet written.
const ahead = 16 << 20

// piece is a stretch of a file that a worker reads while those before it are being written.
type piece struct {
	list []mapfile.Extent
	buf  []byte
	size int64 // of buf, or of zeros where buf is nil
	want bool  // a sum of the bytes
	sum  string
	gaps gaps
	bad  []bool // which of the list couldn't be read; nil: none
	last bool   // of its file
	done chan struct{}
}

// reading is the workers that read pieces, and the memory that they may use.
type reading struct {
	ctx   context.Context
	src   *source
	tasks chan *piece
	room  *semaphore.Weighted
	group sync.WaitGroup
	bufs  sync.Pool
}

func newReading(ctx context.Context, src *source, workers int) *reading {
	r := &reading{ctx: ctx, src: src, tasks: make(chan *piece, 2*workers), room: semaphore.NewWeighted(ahead)}
	for range workers {
		r.group.Go(func() {
			for p := range r.tasks {
				p.read(src)
				close(p.done)
			}
		})
	}
	return r
}

func (r *reading) close() {
	close(r.tasks)
	r.group.Wait()
}

// start has the extents of list read, which are size bytes long. The list is kept.
func (r *reading) start(list []mapfile.Extent, size int64, sum, last bool) (*piece, error) {
	if err := r.room.Acquire(r.ctx, size); err != nil {
		return nil, context.Cause(r.ctx)
	}
	p := &piece{list: list, size: size, want: sum, last: last, done: make(chan struct{})}
	if b, _ := r.bufs.Get().(*[]byte); b != nil && int64(cap(*b)) >= size {
		p.buf = (*b)[:size]
	} else {
		p.buf = make([]byte, size, max(size, 64<<10))
	}
	select {
	case r.tasks <- p:
		return p, nil
	case <-r.ctx.Done():
		return nil, context.Cause(r.ctx)
	}
}

// finish gives the piece's memory back.
func (r *reading) finish(p *piece) {
	if b := p.buf; b != nil {
		r.bufs.Put(&b)
		r.room.Release(p.size)
	}
}

// zeros gives a piece of n zeros.
func zeroPiece(n int64, last bool) *piece {
	p := &piece{size: n, last: last, done: make(chan struct{})}
	close(p.done)
	return p
}

func (p *piece) read(src *source) {
	at := int64(0)
	for i := range p.list {
		e := &p.list[i]
		if err := src.fill(p.buf[at:at+e.Len], e, 0); err != nil {
			p.gaps.add(e.At, e.Len, err)
			if p.bad == nil {
				p.bad = make([]bool, len(p.list))
			}
			p.bad[i] = true
		}
		at += e.Len
	}
	if p.want && p.bad == nil {
		sum := sha256.Sum256(p.buf)
		p.sum = hex.EncodeToString(sum[:])
	}
}

// split cuts extents into lists of about pieceSize bytes, those that read as zeros apart from the others where
// apart says so of them. Each list is new.
func split(list []mapfile.Extent, apart func(*mapfile.Extent) bool, each func(list []mapfile.Extent, size int64, zero bool) error) error {
	var now []mapfile.Extent
	var size int64
	flush := func() error {
		if size == 0 {
			return nil
		}
		l, n := now, size
		now, size = nil, 0
		return each(l, n, false)
	}
	for i := range list {
		e := list[i]
		if apart(&e) {
			if err := flush(); err != nil {
				return err
			}
			if err := each(nil, e.Len, true); err != nil {
				return err
			}
			continue
		}
		if e.Kind == mapfile.Packed && e.Len <= wholePack { // decoded once, by one worker
			if size+e.Len > pieceSize {
				if err := flush(); err != nil {
					return err
				}
			}
			now, size = append(now, e), size+e.Len
			if size >= pieceSize {
				if err := flush(); err != nil {
					return err
				}
			}
			continue
		}
		for e.Len > 0 {
			part := cut(&e, min(e.Len, pieceSize-size))
			now, size = append(now, part), size+part.Len
			if size == pieceSize {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

// cut takes the first n bytes off an extent.
func cut(e *mapfile.Extent, n int64) mapfile.Extent {
	first := *e
	first.Len = n
	e.At, e.Len = e.At+n, e.Len-n
	switch e.Kind {
	case mapfile.Inline:
		first.Bytes, e.Bytes = e.Bytes[:n], e.Bytes[n:]
	case mapfile.Packed:
		e.Skip += n
	default:
		if e.Off != mapfile.None {
			e.Off += n
		}
		if e.Disk != mapfile.None {
			e.Disk += n
		}
	}
	return first
}

// readsZero tells whether an extent reads as zeros.
func readsZero(e *mapfile.Extent) bool {
	return e.Kind == mapfile.Zero || e.Kind == mapfile.Hole || e.Kind == mapfile.Unwritten
}
