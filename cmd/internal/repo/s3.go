package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"
	"golang.org/x/sync/errgroup"
)

// S3 is a Store in a bucket of any service that speaks S3. What it asks for beyond the common part: ranges with
// If-Match to read, and If-None-Match and If-Match on writes to lock a machine; a service that ignores the latter is
// found out and refused.
type S3 struct {
	core       *minio.Core
	patient    *minio.Core // for requests that a service may take minutes to answer
	transports []*http.Transport
	bucket     string
	prefix     string // empty, or ending with a slash
	host       string // for messages

	mu    sync.Mutex
	locks map[string]*s3Lock
}

// Times, and how often a request is tried. Tests shorten them.
var (
	s3Stall    = time.Minute      // without a byte in either direction, after which a connection counts as dead
	s3Patience = 30 * time.Minute // the same while a service puts parts together
	s3Tries    = 10
)

func init() {
	// minio-go keeps these for the whole process. Its own cap of a second has given up before a service is restarted.
	minio.DefaultRetryCap = 15 * time.Second
}

// OpenS3 opens s3://BUCKET/PREFIX. Endpoint, region and credentials come from the environment and files that other S3
// programs use (see s3Settings). It asks the service for nothing but whether the bucket can be reached.
func OpenS3(ctx context.Context, raw string) (*S3, error) {
	bucket, prefix, err := splitS3(raw)
	if err != nil {
		return nil, err
	}
	set, err := s3Environment()
	if err != nil {
		return nil, err
	}
	s := &S3{bucket: bucket, prefix: prefix, host: set.endpoint.Host, locks: map[string]*s3Lock{}}
	if s.core, err = s.client(set, s3Stall); err != nil {
		return nil, err
	}
	if s.patient, err = s.client(set, s3Patience); err != nil {
		return nil, err
	}
	there, err := s.core.BucketExists(ctx, bucket)
	if err == nil && !there {
		err = minio.ErrorResponse{Code: minio.NoSuchBucket, StatusCode: http.StatusNotFound}
	}
	if err != nil {
		return nil, s.fail("", err)
	}
	return s, nil
}

// splitS3 takes a URL of a store apart.
func splitS3(raw string) (bucket, prefix string, err error) {
	rest, ok := strings.CutPrefix(raw, "s3://")
	bucket, prefix, _ = strings.Cut(rest, "/")
	prefix = strings.TrimRight(prefix, "/")
	if !ok || bucket == "" || prefix != "" && !validName(prefix) {
		return "", "", fmt.Errorf("%q is not of the form s3://BUCKET or s3://BUCKET/PREFIX", raw)
	}
	if prefix != "" {
		prefix += "/"
	}
	return bucket, prefix, nil
}

// validName tells whether name is one of a Store's.
func validName(name string) bool {
	return fs.ValidPath(name) && name != "." && !strings.ContainsRune(name, 0)
}

// client makes a client whose connections end after a time without a byte.
func (s *S3) client(set *s3Settings, stall time.Duration) (*minio.Core, error) {
	secure := set.endpoint.Scheme == "https"
	t, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, err
	}
	if set.roots != nil {
		t.TLSClientConfig.RootCAs = set.roots
	}
	t.ResponseHeaderTimeout = 0
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &stallConn{c, stall}, nil
	}
	s.transports = append(s.transports, t)
	lookup := minio.BucketLookupPath
	if set.virtual {
		lookup = minio.BucketLookupAuto
	}
	return minio.NewCore(set.endpoint.Host, &minio.Options{
		Creds: set.creds, Secure: secure, Transport: t, Region: set.region, BucketLookup: lookup, MaxRetries: s3Tries,
	})
}

// stallConn is a connection on which each read and write has to end within a time.
type stallConn struct {
	net.Conn
	stall time.Duration
}

func (c *stallConn) Read(p []byte) (int, error) {
	c.SetReadDeadline(time.Now().Add(c.stall))
	return c.Conn.Read(p)
}

func (c *stallConn) Write(p []byte) (int, error) {
	c.SetWriteDeadline(time.Now().Add(c.stall))
	return c.Conn.Write(p)
}

// URL implements Store.
func (s *S3) URL() string { return "s3://" + path.Join(s.bucket, s.prefix) }

// key gives the object of a name.
func (s *S3) key(name string) (string, error) {
	if !validName(name) {
		return "", fmt.Errorf("%s: %q is no name of a file", s.URL(), name)
	}
	return s.prefix + name, nil
}

// fail makes one line of what a service or the network answered about a file, or, with no name, about the store.
func (s *S3) fail(name string, err error) error {
	if err == nil {
		return nil
	}
	where := s.URL()
	if name != "" {
		where += "/" + name
	}
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) {
		if e := (*url.Error)(nil); errors.As(err, &e) {
			err = e.Err
		}
		if errors.Is(err, context.Canceled) || errors.Is(err, ErrChanged) || errors.Is(err, errNoETag) {
			return fmt.Errorf("%s: %w", where, err)
		}
		return fmt.Errorf("%s: the service at %s can't be reached, or broke off: %w", where, s.host, err)
	}
	switch answer.Code {
	case minio.NoSuchKey:
		return fmt.Errorf("%s: %w", where, ErrNotExist)
	case minio.NoSuchBucket:
		return fmt.Errorf("%s: there is no bucket %q at %s; create it first", where, s.bucket, s.host)
	case minio.AccessDenied:
		return fmt.Errorf("%s: %s refuses access with these credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws/credentials)", where, s.host)
	case "InvalidAccessKeyId", "SignatureDoesNotMatch":
		return fmt.Errorf("%s: %s doesn't accept the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws/credentials): %s", where, s.host, answer.Code)
	}
	return fmt.Errorf("%s: %s answers %d %s: %s", where, s.host, answer.StatusCode, answer.Code, strings.Join(strings.Fields(answer.Message), " "))
}

// failedCondition tells whether a service refused because of If-Match or If-None-Match. 409 is its answer to writers
// that came at the same instant.
func failedCondition(err error) bool {
	var answer minio.ErrorResponse
	return errors.As(err, &answer) && (answer.StatusCode == http.StatusPreconditionFailed || answer.StatusCode == http.StatusConflict)
}

// List implements Store.
func (s *S3) List(ctx context.Context, prefix string, yield func(Info) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for o := range s.core.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: s.prefix + prefix, Recursive: true}) {
		if o.Err != nil {
			return s.fail("", o.Err)
		}
		name := strings.TrimPrefix(o.Key, s.prefix)
		if strings.HasSuffix(name, "/") || path.Base(name) == lockName {
			continue // what others make for folders, and our own
		}
		if err := yield(Info{Name: name, Size: o.Size, MTime: o.LastModified}); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// Remove implements Store.
func (s *S3) Remove(ctx context.Context, names ...string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, name := range names {
		g.Go(func() error {
			key, err := s.key(name)
			if err == nil {
				err = s.held(name)
			}
			if err != nil {
				return err
			}
			return s.fail(name, s.core.RemoveObject(ctx, s.bucket, key, minio.RemoveObjectOptions{}))
		})
	}
	return g.Wait()
}

// Close implements Store.
func (s *S3) Close() error {
	for _, t := range s.transports {
		t.CloseIdleConnections()
	}
	return nil
}
