package repo

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"
)

// A step is a number of parts of one length. An object may have 10,000 parts, and nobody knows beforehand how long it
// gets: the first parts are short, so that little is kept in memory; the last ones go through a temporary file.
type s3Step struct {
	parts int
	size  int64
	spool bool
}

// s3Steps add up to 5.2 TiB. What is kept in memory is at most Head and s3Parallel+1 parts: 136 MiB.
var s3Steps = []s3Step{{4000, Head, false}, {3000, 32 << 20, false}, {3000, 1792 << 20, true}}

// s3Parallel is how many parts of an object are on their way at once.
const s3Parallel = 3

// uploadKey is the metadata by which a writer knows its own object: an answer that got lost makes it ask again, and the
// service then refuses because the object is there.
const uploadKey = "Vmkit-Upload"

// s3Writer writes an object. Its first part is held back until Commit.
type s3Writer struct {
	s         *S3
	name, key string
	exclusive bool
	id        string
	ctx       context.Context
	cancel    context.CancelFunc
	group     *errgroup.Group

	head   []byte
	part   *s3Part // being filled
	n      int64
	err    error
	upload string // empty until the second part is on its way
	free   chan []byte

	mu    sync.Mutex
	parts []s3Sent // by number-1
	done  bool
}

// s3Part is a part that is being filled: in memory, or in a file without a name.
type s3Part struct {
	buf   []byte
	spool *os.File
	n     int64
	size  int64
}

// s3Sent is a part that the service has, or will have.
type s3Sent struct {
	size   int64
	etag   string
	md5    [md5.Size]byte
	sha256 [sha256.Size]byte
}

// Create implements Store.
func (s *S3) Create(ctx context.Context, name string, exclusive bool) (Writer, error) {
	key, err := s.key(name)
	if err == nil {
		err = s.held(name)
	}
	if err != nil {
		return nil, err
	}
	w := &s3Writer{s: s, name: name, key: key, exclusive: exclusive, id: rand.Text(), free: make(chan []byte, s3Parallel+1), parts: make([]s3Sent, 1)}
	ctx, w.cancel = context.WithCancel(ctx)
	w.group, w.ctx = errgroup.WithContext(ctx)
	w.group.SetLimit(s3Parallel)
	return w, nil
}

// Write implements Writer.
func (w *s3Writer) Write(p []byte) (n int, err error) {
	for w.err == nil && n < len(p) {
		k := 0
		if len(w.head) < Head {
			k = min(Head-len(w.head), len(p)-n)
			w.head = append(w.head, p[n:n+k]...)
		} else {
			k, w.err = w.more(p[n:])
		}
		n += k
		w.n += int64(k)
	}
	return n, w.err
}

// more takes bytes behind the head.
func (w *s3Writer) more(p []byte) (int, error) {
	if w.part == nil {
		if err := w.begin(); err != nil {
			return 0, err
		}
	}
	x := w.part
	k := int(min(int64(len(p)), x.size-x.n))
	if x.spool != nil {
		if _, err := x.spool.Write(p[:k]); err != nil {
			return 0, fmt.Errorf("keeping a part of %s until it is sent: %w", w.name, err)
		}
	} else {
		x.buf = append(x.buf, p[:k]...)
	}
	if x.n += int64(k); x.n == x.size {
		return k, w.send()
	}
	return k, nil
}

// begin begins a part.
func (w *s3Writer) begin() error {
	number := len(w.parts) // 0-based; the head is the first
	for _, step := range s3Steps {
		if number >= step.parts {
			number -= step.parts
			continue
		}
		w.part = &s3Part{size: step.size}
		if !step.spool {
			select {
			case b := <-w.free:
				if int64(cap(b)) == step.size {
					w.part.buf = b[:0]
				}
			default:
			}
			if w.part.buf == nil {
				w.part.buf = make([]byte, 0, step.size)
			}
			return nil
		}
		f, err := os.CreateTemp("", "vmkit-part-*")
		if err != nil {
			return err
		}
		w.part.spool = f
		return os.Remove(f.Name())
	}
	return fmt.Errorf("%s/%s: it is longer than S3 objects can be", w.s.URL(), w.name)
}

// send sends the part that is full, or the last one. It waits where many are on their way.
func (w *s3Writer) send() error {
	x := w.part
	w.part = nil
	if w.upload == "" {
		id, err := w.s.core.NewMultipartUpload(w.ctx, w.s.bucket, w.key, minio.PutObjectOptions{UserMetadata: w.options().UserMetadata})
		if err != nil {
			return w.s.fail(w.name, err)
		}
		w.upload = id
	}
	w.mu.Lock()
	w.parts = append(w.parts, s3Sent{})
	number := len(w.parts)
	w.mu.Unlock()
	w.group.Go(func() error {
		body := io.NewSectionReader(bytes.NewReader(x.buf), 0, x.n)
		if x.spool != nil {
			defer x.spool.Close()
			body = io.NewSectionReader(x.spool, 0, x.n)
		}
		err := w.put(number, body)
		if x.spool == nil {
			select {
			case w.free <- x.buf:
			default:
			}
		}
		return err
	})
	if w.ctx.Err() != nil { // a part could not be sent
		return w.group.Wait()
	}
	return nil
}

// put sends a part. The request is signed with the part's hash, which makes the service compare it with what arrived.
func (w *s3Writer) put(number int, body *io.SectionReader) error {
	sent, err := sums(body)
	if err != nil {
		return err
	}
	p, err := w.s.core.PutObjectPart(w.ctx, w.s.bucket, w.key, w.upload, number, body, sent.size, minio.PutObjectPartOptions{
		Md5Base64: base64.StdEncoding.EncodeToString(sent.md5[:]), Sha256Hex: hex.EncodeToString(sent.sha256[:]), DisableContentSha256: true,
	})
	if err != nil {
		return w.s.fail(w.name, err)
	}
	sent.etag = p.ETag
	w.mu.Lock()
	w.parts[number-1] = sent
	w.mu.Unlock()
	return nil
}

// sums reads a body for its hashes, and goes back to its start.
func sums(body *io.SectionReader) (x s3Sent, err error) {
	m, h := md5.New(), sha256.New()
	if x.size, err = io.Copy(io.MultiWriter(m, h), body); err != nil {
		return x, err
	}
	m.Sum(x.md5[:0])
	h.Sum(x.sha256[:0])
	_, err = body.Seek(0, io.SeekStart)
	return x, err
}

// WriteHead implements Writer.
func (w *s3Writer) WriteHead(p []byte, off int64) error {
	if off < 0 || off > int64(len(w.head)) || int64(len(p)) > int64(len(w.head))-off {
		return fmt.Errorf("%s: bytes %d to %d are not in its first %d", w.name, off, off+int64(len(p)), len(w.head))
	}
	copy(w.head[off:], p)
	return w.err
}

// Abort implements Writer.
func (w *s3Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	w.cancel()
	w.group.Wait()
	if w.part != nil && w.part.spool != nil {
		w.part.spool.Close()
	}
	if w.upload == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second) // what is left, the next Lock removes
	defer cancel()
	w.s.core.AbortMultipartUpload(ctx, w.s.bucket, w.key, w.upload)
}

// Commit implements Writer.
func (w *s3Writer) Commit(ctx context.Context) (Info, error) {
	info, err := w.commit(ctx)
	if err != nil {
		w.Abort()
		return Info{}, err
	}
	w.done = true
	w.cancel()
	return info, nil
}

func (w *s3Writer) commit(ctx context.Context) (Info, error) {
	if w.err == nil && w.part != nil {
		w.err = w.send()
	}
	if w.err != nil {
		return Info{}, w.err
	}
	if err := w.s.held(w.name); err != nil {
		return Info{}, err
	}
	head := io.NewSectionReader(bytes.NewReader(w.head), 0, int64(len(w.head)))
	var err error
	if w.upload == "" {
		w.parts[0], err = w.s.put(ctx, w.key, head, w.options())
	} else {
		w.group.Go(func() error { return w.put(1, head) })
		if err = w.group.Wait(); err != nil {
			return Info{}, err
		}
		err = w.complete(ctx)
	}
	// An answer may have got lost and the request been made again: what counts is what is there now.
	info, e := w.s.core.StatObject(ctx, w.s.bucket, w.key, minio.StatObjectOptions{})
	ours := e == nil && info.UserMetadata[uploadKey] == w.id
	switch {
	case err != nil && !ours && w.exclusive && failedCondition(err):
		return Info{}, fmt.Errorf("%s/%s: %w", w.s.URL(), w.name, ErrExists)
	case err != nil && !ours:
		return Info{}, w.s.fail(w.name, err)
	case e != nil:
		return Info{}, w.s.fail(w.name, e)
	case !ours:
		return Info{}, fmt.Errorf("%s/%s: somebody else replaced it at once, though this machine is locked", w.s.URL(), w.name)
	}
	if err := w.verify(ctx, info); err != nil {
		return Info{}, err
	}
	return Info{Name: w.name, Size: info.Size, MTime: info.LastModified}, nil
}

// put sends an object that is one part.
func (s *S3) put(ctx context.Context, key string, body *io.SectionReader, opts minio.PutObjectOptions) (s3Sent, error) {
	sent, err := sums(body)
	if err != nil {
		return sent, err
	}
	opts.DisableContentSha256 = true // the one that is given is used
	info, err := s.core.PutObject(ctx, s.bucket, key, body, sent.size,
		base64.StdEncoding.EncodeToString(sent.md5[:]), hex.EncodeToString(sent.sha256[:]), opts)
	if err == nil && info.ETag == "" {
		err = errNoETag
	}
	sent.etag = info.ETag
	return sent, err
}

// errNoETag is what a service gets that gives none.
var errNoETag = errors.New("an answer has no ETag, without which versions can't be told apart")

// options are those of the request that gives the object its name.
func (w *s3Writer) options() minio.PutObjectOptions {
	opts := minio.PutObjectOptions{UserMetadata: map[string]string{uploadKey: w.id}}
	if w.exclusive {
		opts.SetMatchETagExcept("*")
	}
	return opts
}

// complete makes one object of the parts.
func (w *s3Writer) complete(ctx context.Context) error {
	parts := make([]minio.CompletePart, len(w.parts))
	for i := range parts {
		parts[i] = minio.CompletePart{PartNumber: i + 1, ETag: w.parts[i].etag}
	}
	opts := w.options()
	opts.UserMetadata = nil // it was given when the upload began
	_, err := w.s.patient.CompleteMultipartUpload(ctx, w.s.bucket, w.key, w.upload, parts, opts)
	return err
}

// verify holds the stored object against what was sent. Most services make the ETag of the parts' MD5; where it is
// something else (with encryption by the service), the object is read back.
func (w *s3Writer) verify(ctx context.Context, info minio.ObjectInfo) error {
	if info.Size != w.n {
		return fmt.Errorf("%s/%s: %s stored %d bytes of %d", w.s.URL(), w.name, w.s.host, info.Size, w.n)
	}
	etag := hex.EncodeToString(w.parts[0].md5[:])
	if w.upload != "" {
		all := md5.New()
		for i := range w.parts {
			all.Write(w.parts[i].md5[:])
		}
		etag = fmt.Sprintf("%x-%d", all.Sum(nil), len(w.parts))
	}
	if info.ETag == etag {
		return nil
	}
	o := &s3Object{s: w.s, ctx: ctx, name: w.name, key: w.key, info: info}
	at := int64(0)
	for i := range w.parts {
		x := &w.parts[i]
		h := sha256.New()
		if _, err := io.CopyBuffer(struct{ io.Writer }{h}, io.NewSectionReader(direct{o}, at, x.size), make([]byte, 4<<20)); err != nil {
			return err
		}
		if !bytes.Equal(h.Sum(nil), x.sha256[:]) {
			return errors.Join(fmt.Errorf("%s/%s: what %s stored from byte %d on is not what was sent", w.s.URL(), w.name, w.s.host, at),
				w.s.core.RemoveObject(ctx, w.s.bucket, w.key, minio.RemoveObjectOptions{}))
		}
		at += x.size
	}
	return nil
}

// direct reads an object without keeping blocks.
type direct struct{ o *s3Object }

func (d direct) ReadAt(p []byte, off int64) (int, error) { return d.o.get(p, off) }
