package repo

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
)

// lockName is the object that says who writes to a machine's folder.
const lockName = ".lock"

// How long a lock holds unless it is refreshed, and how often that is done. Tests shorten them.
var (
	lockLife    = 3 * time.Minute
	lockRefresh = 40 * time.Second
)

// s3Holder is the content of a lock object. Its age is told by the service's clock, by that of no host.
type s3Holder struct {
	Owner string  `json:"owner"` // for people: host and process
	ID    string  `json:"id"`
	Life  float64 `json:"life_seconds"` // after which others may take it over
	Seq   int64   `json:"seq"`          // counts the refreshes, so that each has an ETag of its own
}

// s3Lock is a lock that this process holds.
type s3Lock struct {
	s       *S3
	machine string
	key     string
	stop    context.CancelFunc
	done    chan struct{}

	mu     sync.Mutex
	holder s3Holder
	etag   string
	fresh  time.Time // when it was written last, by our clock, which goes on while the machine sleeps
	lost   error
}

// Lock implements Store. The object is written anew while it is held; one that isn't for a while is taken over.
func (s *S3) Lock(ctx context.Context, machine string) (unlock func() error, err error) {
	key, err := s.key(path.Join(machine, lockName))
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locks[machine] != nil {
		return nil, fmt.Errorf("%s/%s: %w: this very process", s.URL(), machine, ErrLocked)
	}
	host, _ := os.Hostname()
	l := &s3Lock{s: s, machine: machine, key: key, done: make(chan struct{})}
	l.holder = s3Holder{Owner: fmt.Sprintf("process %d on %s", os.Getpid(), host), ID: rand.Text(), Life: lockLife.Seconds()}
	if err := l.take(ctx); err != nil {
		return nil, err
	}
	if err := l.probe(ctx); err != nil {
		l.remove()
		return nil, err
	}
	s.locks[machine] = l
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	go l.run(run)
	s.sweep(ctx, machine)
	return l.unlock, nil
}

// take writes the lock object where there is none or the one that is there is stale.
func (l *s3Lock) take(ctx context.Context) error {
	for range 3 { // it may go away, or be taken over, between two requests
		err := l.put(ctx, "*", true)
		if err == nil || !failedCondition(err) {
			return l.s.fail(path.Join(l.machine, lockName), err)
		}
		h, etag, age, err := l.read(ctx)
		switch {
		case errors.Is(err, ErrNotExist):
			continue
		case err != nil:
			return err
		case h.ID == l.holder.ID: // our own: the answer had got lost
			l.set(etag, time.Now())
			return nil
		}
		if left := h.Life - age.Seconds(); left > 0 {
			return fmt.Errorf("%s/%s: %w: %s; should that be dead, the lock ends in %.0f seconds", l.s.URL(), l.machine, ErrLocked, h.Owner, left)
		}
		if err := l.put(ctx, etag, false); err == nil || !failedCondition(err) {
			return l.s.fail(path.Join(l.machine, lockName), err)
		}
	}
	return fmt.Errorf("%s/%s: %w", l.s.URL(), l.machine, ErrLocked)
}

// put writes the lock object: where there is none (except, "*"), or in the place of the one with that ETag.
func (l *s3Lock) put(ctx context.Context, etag string, except bool) error {
	opts := minio.PutObjectOptions{ContentType: "application/json"}
	if except {
		opts.SetMatchETagExcept(etag)
	} else {
		opts.SetMatchETag(etag)
	}
	l.mu.Lock()
	l.holder.Seq++
	body, err := json.Marshal(l.holder)
	l.mu.Unlock()
	if err != nil {
		return err
	}
	at := time.Now()
	sent, err := l.s.put(ctx, l.key, io.NewSectionReader(bytes.NewReader(body), 0, int64(len(body))), opts)
	if err == nil {
		l.set(sent.etag, at)
	}
	return err
}

// set notes that the lock object was ours at some time.
func (l *s3Lock) set(etag string, at time.Time) {
	l.mu.Lock()
	l.etag, l.fresh = etag, at
	l.mu.Unlock()
}

// read gives the lock object as it is, and its age. One that makes no sense is somebody's.
func (l *s3Lock) read(ctx context.Context) (h s3Holder, etag string, age time.Duration, err error) {
	body, info, header, err := l.s.core.GetObject(ctx, l.s.bucket, l.key, minio.GetObjectOptions{})
	if err != nil {
		return h, "", 0, l.s.fail(path.Join(l.machine, lockName), err)
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, 4096))
	if err != nil {
		return h, "", 0, l.s.fail(path.Join(l.machine, lockName), err)
	}
	if json.Unmarshal(text, &h) != nil || h.Life <= 0 || h.Life > 86400 {
		h = s3Holder{Owner: "somebody", Life: lockLife.Seconds()}
	}
	now, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		now = time.Now()
	}
	return h, info.ETag, now.Sub(info.LastModified), nil
}

// probe finds out whether the service heeds conditions on writes: all of them must fail here. What a service that
// doesn't writes is the same lock again.
func (l *s3Lock) probe(ctx context.Context) error {
	for _, except := range []bool{true, false} {
		etag := "00000000000000000000000000000000"
		if except {
			etag = "*"
		}
		switch err := l.put(ctx, etag, except); {
		case err == nil:
			return fmt.Errorf("%s: %s ignores If-Match and If-None-Match on writes, without which two writers would destroy each other's backups", l.s.URL(), l.s.host)
		case !failedCondition(err):
			return fmt.Errorf("a write with a condition, as locking needs it: %w", l.s.fail(path.Join(l.machine, lockName), err))
		}
	}
	return nil
}

// run refreshes the lock.
func (l *s3Lock) run(ctx context.Context) {
	defer close(l.done)
	tick := time.NewTicker(lockRefresh)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		l.refresh(ctx)
	}
}

// refresh writes the lock once more.
func (l *s3Lock) refresh(ctx context.Context) {
	l.mu.Lock()
	etag := l.etag
	l.mu.Unlock()
	err := l.put(ctx, etag, false)
	if !failedCondition(err) {
		return // done, or to be tried again: check tells when it was too long ago
	}
	h, etag, _, err := l.read(ctx)
	switch {
	case err == nil && h.ID == l.holder.ID: // an answer had got lost
		l.set(etag, time.Now())
	case err == nil, errors.Is(err, ErrNotExist):
		l.mu.Lock()
		l.lost = fmt.Errorf("%s/%s: somebody took the lock over, as if this process were dead: it may write no more", l.s.URL(), l.machine)
		l.mu.Unlock()
	}
}

// check tells whether the lock still holds.
func (l *s3Lock) check() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost == nil && time.Now().Round(0).Sub(l.fresh.Round(0)) > lockLife {
		return fmt.Errorf("%s/%s: the lock could not be refreshed for %v: this process may write no more", l.s.URL(), l.machine, lockLife)
	}
	return l.lost
}

// held tells whether a file may be written: not where this process lost the lock of its machine.
func (s *S3) held(name string) error {
	machine, _, _ := strings.Cut(name, "/")
	s.mu.Lock()
	l := s.locks[machine]
	s.mu.Unlock()
	if l == nil {
		return nil
	}
	return l.check()
}

// unlock gives the lock back.
func (l *s3Lock) unlock() error {
	l.stop()
	<-l.done
	l.s.mu.Lock()
	delete(l.s.locks, l.machine)
	l.s.mu.Unlock()
	if err := l.check(); err != nil {
		return err
	}
	return l.remove()
}

// remove removes the lock object. It was refreshed not long ago, so nobody can have taken it over meanwhile.
func (l *s3Lock) remove() error {
	ctx, cancel := context.WithTimeout(context.Background(), lockRefresh)
	defer cancel()
	return l.s.fail(path.Join(l.machine, lockName), l.s.core.RemoveObject(ctx, l.s.bucket, l.key, minio.RemoveObjectOptions{}))
}

// sweep removes the parts that writers left behind which ended in the middle: whoever holds the lock is the only one.
// Where the service can't list them or forbids it, they stay, and cost room only.
func (s *S3) sweep(ctx context.Context, machine string) {
	for range 100 {
		list, err := s.core.ListMultipartUploads(ctx, s.bucket, s.prefix+machine+"/", "", "", "", 1000)
		if err != nil || len(list.Uploads) == 0 {
			return
		}
		for _, u := range list.Uploads {
			if s.core.AbortMultipartUpload(ctx, s.bucket, u.Key, u.UploadID) != nil {
				return
			}
		}
	}
}
