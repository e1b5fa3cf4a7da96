package repo

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
)

// Reading goes by blocks: a small read fetches one, reads that follow one another fetch more at a time.
const (
	s3Block      = 64 << 10
	s3MaxAhead   = 16 // blocks fetched at once
	s3Blocks     = 64 // kept for each object
	s3ReadDirect = 256 << 10
)

// s3Object is one version of an object.
type s3Object struct {
	s    *S3
	ctx  context.Context
	name string
	key  string
	info minio.ObjectInfo

	mu     sync.Mutex
	blocks map[int64]*s3Fetch
	used   int64 // counts uses of blocks
	ahead  int64
}

// s3Fetch is a block that is there or on its way.
type s3Fetch struct {
	done chan struct{}
	data []byte
	err  error
	used int64
}

// Open implements Store. The object's reads end with ctx.
func (s *S3) Open(ctx context.Context, name string) (Object, error) {
	key, err := s.key(name)
	if err != nil {
		return nil, err
	}
	info, err := s.core.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return nil, s.fail(name, err)
	}
	if info.ETag == "" {
		return nil, s.fail(name, errNoETag)
	}
	return &s3Object{s: s, ctx: ctx, name: name, key: key, info: info, blocks: map[int64]*s3Fetch{}}, nil
}

func (o *s3Object) Size() int64      { return o.info.Size }
func (o *s3Object) MTime() time.Time { return o.info.LastModified }
func (o *s3Object) Close() error     { return nil }

// ReadAt implements Object.
func (o *s3Object) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%s/%s: position %d", o.s.URL(), o.name, off)
	}
	want := min(int64(len(p)), max(o.info.Size-off, 0))
	var end error
	if want < int64(len(p)) {
		end = io.EOF
	}
	if want == 0 {
		return 0, end
	}
	p = p[:want]
	if want >= s3ReadDirect {
		n, err := o.get(p, off)
		if err == nil {
			err = end
		}
		return n, err
	}
	for n := 0; n < len(p); {
		at := off + int64(n)
		data, err := o.block(at / s3Block)
		if err != nil {
			return n, err
		}
		n += copy(p[n:], data[at%s3Block:])
	}
	return len(p), end
}

// block gives a block of the object, from memory or from the service.
func (o *s3Object) block(i int64) ([]byte, error) {
	o.mu.Lock()
	o.used++
	b := o.blocks[i]
	if b != nil {
		b.used = o.used
		o.mu.Unlock()
		<-b.done
		return b.data, b.err
	}
	// Whoever reads on from what was fetched gets more at once.
	n := int64(1)
	if o.blocks[i-1] != nil {
		n = min(2*max(o.ahead, 1), s3MaxAhead)
	}
	o.ahead = n
	n = min(n, (o.info.Size-1)/s3Block+1-i)
	var fetch []*s3Fetch
	for k := range n {
		if o.blocks[i+k] != nil {
			break
		}
		b := &s3Fetch{done: make(chan struct{}), used: o.used}
		o.blocks[i+k] = b
		fetch = append(fetch, b)
	}
	o.evict()
	o.mu.Unlock()
	o.fetch(i, fetch)
	return fetch[0].data, fetch[0].err
}

// fetch fills blocks from i on with one request.
func (o *s3Object) fetch(i int64, blocks []*s3Fetch) {
	buf := make([]byte, min(int64(len(blocks))*s3Block, o.info.Size-i*s3Block))
	_, err := o.get(buf, i*s3Block)
	for k, b := range blocks {
		if b.err = err; err == nil {
			at := k * s3Block
			b.data = buf[at:min(at+s3Block, len(buf)):min(at+s3Block, len(buf))]
		}
		close(b.done)
	}
	if err == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for k, b := range blocks { // the next reader may have more luck
		if o.blocks[i+int64(k)] == b {
			delete(o.blocks, i+int64(k))
		}
	}
}

// evict drops the blocks that were used longest ago; mu is held.
func (o *s3Object) evict() {
	for len(o.blocks) > s3Blocks {
		oldest, at := int64(-1), int64(0)
		for i, b := range o.blocks {
			select {
			case <-b.done:
			default:
				continue // on its way
			}
			if oldest < 0 || b.used < at {
				oldest, at = i, b.used
			}
		}
		if oldest < 0 {
			return
		}
		delete(o.blocks, oldest)
	}
}

// get fills p from off on. A body that breaks off is asked for again from there.
func (o *s3Object) get(p []byte, off int64) (int, error) {
	n, wait := 0, minio.DefaultRetryUnit
	for try := 1; ; try++ {
		body, err := o.ask(off+int64(n), int64(len(p)-n))
		if err != nil { // the client has asked more than once already
			return n, o.s.fail(o.name, err)
		}
		k, err := io.ReadFull(body, p[n:])
		body.Close()
		if n += k; err == nil {
			return n, nil
		}
		if try >= s3Tries || o.ctx.Err() != nil {
			return n, o.s.fail(o.name, err)
		}
		select {
		case <-time.After(wait):
		case <-o.ctx.Done():
		}
		wait = min(2*wait, minio.DefaultRetryCap)
	}
}

// ask asks for n bytes from off on.
func (o *s3Object) ask(off, n int64) (io.ReadCloser, error) {
	var opts minio.GetObjectOptions
	if err := opts.SetRange(off, off+n-1); err != nil {
		return nil, err
	}
	if err := opts.SetMatchETag(o.info.ETag); err != nil {
		return nil, err
	}
	body, info, header, err := o.s.core.GetObject(o.ctx, o.s.bucket, o.key, opts)
	if failedCondition(err) {
		return nil, ErrChanged
	}
	if err != nil {
		return nil, err
	}
	want := fmt.Sprintf("bytes %d-%d/%d", off, off+n-1, o.info.Size)
	switch got := header.Get("Content-Range"); {
	case info.ETag != o.info.ETag:
		err = ErrChanged
	case got != want:
		err = fmt.Errorf("asked for %s, it sends %q", want, got)
	default:
		return body, nil
	}
	body.Close()
	return nil, err
}
