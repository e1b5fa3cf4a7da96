package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"runtime"

	"golang.org/x/sync/errgroup"

	"vmkit/formats"
	"vmkit/formats/qcow2"
)

// imageRun writes the image of one disk of a point: every cluster in use that changed since the parent, or that the
// parent's chain doesn't hold.
type imageRun struct {
	src     formats.Disk
	size    int64
	cluster int64
	codec   string
	packed  bool     // clusters are compressed
	free    *ranges  // nil: everything is kept
	quiet   *ranges  // where the hint's word is enough
	hint    *ranges  // what changed, by clusters; nil: all of it is read and compared
	parent  *Account // nil: a full image
	sample  float64  // of what neither hint nor map says to have changed, how much is read all the same
	rand    *rand.Rand

	out  *qcow2.Writer
	sums *SumsWriter
	tree *Tree // of the new state
	was  *Tree // of the parent's
	zero Sum

	// What was done, in bytes.
	used, read, sampled, leftOut, held int64

	progress func(int64)
	holes    formats.Holes
	next     int64 // clusters until the next one of the sample
}

// lie says that a hint left out something that changed.
type lie struct {
	off  int64
	what string
}

func (l *lie) Error() string {
	return fmt.Sprintf("%s at byte %d changed, which it did not say", l.what, l.off)
}

// step is what is done about a stretch of clusters.
type step struct {
	i, n int64
	was  Run // what the parent's chain holds
	kind stepKind
	// why, where set, says that no change was expected.
	why string

	buf    []byte
	sum    Sum
	coded  []byte
	same   bool
	zero   bool
	err    error
	ready  chan struct{}
	packed []byte // memory of coded
}

type stepKind uint8

const (
	keep  stepKind = iota // nothing is stored
	blank                 // zeros are
	fetch                 // one cluster is read
)

// maxAhead bounds the bytes of clusters that are on their way.
const maxAhead = 16 << 20

// run writes the image.
func (r *imageRun) run(ctx context.Context) error {
	workers := runtime.GOMAXPROCS(0)
	// Enough that nobody waits for long, within some memory.
	ahead := max(min(8*workers, int(maxAhead/r.cluster)), workers+1)
	spare, order, work := make(chan *step, ahead), make(chan *step, ahead), make(chan *step, ahead)
	for range ahead {
		spare <- &step{ready: make(chan struct{}, 1)}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(order)
		defer close(work)
		return r.plan(func(x step) error {
			var s *step
			select {
			case s = <-spare:
			case <-ctx.Done():
				return ctx.Err()
			}
			x.buf, x.packed, x.ready = s.buf, s.packed, s.ready
			*s = x
			if s.kind == fetch {
				work <- s
			}
			order <- s
			return nil
		})
	})
	for range workers {
		g.Go(func() error {
			p, err := qcow2.NewPacker(r.codec)
			if err != nil {
				return err
			}
			for s := range work {
				s.err = r.fetch(p, s)
				s.ready <- struct{}{}
			}
			return nil
		})
	}
	g.Go(func() error {
		for s := range order {
			if s.kind == fetch {
				select {
				case <-s.ready:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			if err := r.store(s); err != nil {
				return err
			}
			if r.progress != nil {
				r.progress(s.n * r.cluster)
			}
			spare <- s
		}
		return nil
	})
	return g.Wait()
}

// bytesOf gives how many bytes of the disk n clusters from i on are.
func (r *imageRun) bytesOf(i, n int64) int64 { return min(n*r.cluster, r.size-i*r.cluster) }

// plan decides about all clusters, in order.
func (r *imageRun) plan(do func(step) error) error {
	total := (r.size + r.cluster - 1) / r.cluster
	r.skip()
	for i := int64(0); i < total; {
		s := step{i: i, n: total - i}
		if r.parent != nil {
			var err error
			if s.was, err = r.parent.At(min(i, r.parent.end), s.n); err != nil {
				return notParent(err)
			}
			if s.was.N > 0 {
				s.n = s.was.N
			}
		}
		if err := r.decide(&s); err != nil {
			return err
		}
		if r.was != nil { // the disk may have grown since
			r.was.Add(s.was.Sum, min(s.n, max(r.parent.end-i, 0)))
		}
		i += s.n
		if err := do(s); err != nil {
			return err
		}
	}
	if r.parent != nil {
		return notParent(r.parent.Finish())
	}
	return nil
}

// decide says what is done about clusters from s.i on, of s.n at most.
func (r *imageRun) decide(s *step) error {
	if r.free != nil {
		free, n := r.free.clusters(s.i, r.cluster, s.n)
		if s.n = n; free {
			r.leftOut += r.bytesOf(s.i, n)
			return nil
		}
	}
	defer func() { r.used += r.bytesOf(s.i, s.n) }()
	if r.parent != nil && s.was.Held() && r.hint != nil {
		changed, n := r.hint.clusters(s.i, r.cluster, s.n)
		s.n = n
		quiet, n := r.quiet.clusters(s.i, r.cluster, s.n)
		s.n = n
		switch {
		case changed:
		case !quiet:
			s.why = "what belongs to no file, or to one that is not as it was,"
		case r.next > 0:
			s.n = min(s.n, r.next)
			r.next -= s.n
			return nil
		default:
			s.n, s.why = 1, "a file that is as it was"
			r.sampled += r.bytesOf(s.i, 1)
			r.skip()
		}
	}
	return r.look(s)
}

// skip draws how many clusters are passed over until the next one of the sample.
func (r *imageRun) skip() {
	switch {
	case r.sample >= 1:
		r.next = 0
	case r.sample <= 0 || r.rand == nil:
		r.next = 1<<63 - 1
	default:
		// Each cluster is drawn with the same chance, so that the gaps between those that are have this distribution.
		r.next = int64(min(math.Log(1-r.rand.Float64())/math.Log(1-r.sample), 1<<62))
	}
}

// look finds out whether clusters read as zeros without reading them.
func (r *imageRun) look(s *step) error {
	off := s.i * r.cluster
	var zeros int64
	for left := r.bytesOf(s.i, s.n); zeros < left; {
		e, err := r.src.ExtentAt(off+zeros, left-zeros)
		if err != nil {
			break
		}
		n := e.Len
		if e.Kind == formats.Data && e.File != nil {
			n = min(r.holes.At(e.File, e.Off), n)
		} else if e.Kind != formats.Zero {
			break
		}
		if zeros += n; n == 0 {
			break
		}
	}
	if zeros < r.bytesOf(s.i, 1) {
		s.kind, s.n = fetch, 1
		r.read += r.bytesOf(s.i, 1)
		return nil
	}
	if zeros < r.bytesOf(s.i, s.n) {
		s.n = zeros / r.cluster
	}
	if s.was.Zero {
		return nil
	}
	s.kind = blank
	return r.caught(s)
}

// caught gives the error of a change that the hint did not tell.
func (r *imageRun) caught(s *step) error {
	if s.why == "" {
		return nil
	}
	return &lie{s.i * r.cluster, s.why}
}

// fetch reads a cluster and finds out what is to be stored of it.
func (r *imageRun) fetch(p *qcow2.Packer, s *step) error {
	if s.buf == nil {
		s.buf = make([]byte, r.cluster)
	}
	n := r.bytesOf(s.i, 1)
	if k, err := r.src.ReadAt(s.buf[:n], s.i*r.cluster); int64(k) < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("at byte %d: %w", s.i*r.cluster+int64(k), err)
	}
	clear(s.buf[n:])
	if s.zero = isZero(s.buf); s.zero {
		s.sum = r.zero
	} else {
		s.sum = sha256.Sum256(s.buf)
	}
	if s.same = s.sum == s.was.Sum; s.same {
		return nil
	}
	if err := r.caught(s); err != nil {
		return err
	}
	if !s.zero && r.packed {
		if s.packed == nil {
			s.packed = make([]byte, 0, len(s.buf)+len(s.buf)/16) // more than what does not compress takes
		}
		s.coded = p.Pack(s.packed, s.buf)
	}
	return nil
}

var zeroBlock [4 << 10]byte

func isZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroBlock))
		if !bytes.Equal(b[:n], zeroBlock[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// store does what was decided.
func (r *imageRun) store(s *step) error {
	switch {
	case s.err != nil:
		return s.err
	case s.kind == keep || s.same:
		r.tree.Add(s.was.Sum, s.n)
		return nil
	case s.kind == blank || s.zero:
		r.tree.Add(r.zero, s.n)
		r.sums.Add(Run{First: s.i, N: s.n, Sum: r.zero, Zero: true})
		return r.out.Zero(s.i, s.n)
	}
	r.tree.Add(s.sum, 1)
	r.sums.Add(Run{First: s.i, N: 1, Sum: s.sum})
	r.held += r.bytesOf(s.i, 1)
	if s.coded != nil {
		return r.out.Packed(s.i, s.coded)
	}
	return r.out.Data(s.i, s.buf)
}
