package repo

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strings"
	"sync"
	"time"

	"vmkit/formats/ondisk"
)

// Hosts opens the host files of maps that lie in an S3 store, by the URLs that Path gives them. What lies on this host
// is not its business. It is safe for concurrent use.
type Hosts struct {
	Context context.Context

	mu      sync.Mutex
	buckets map[string]*S3
}

// Open opens a host file; for a path that is no URL of an object it gives nil.
func (h *Hosts) Open(name string) (ondisk.HostFile, error) {
	if !strings.HasPrefix(name, "s3://") {
		return nil, nil
	}
	bucket, key, err := splitS3(name)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.buckets[bucket]
	if s == nil {
		if s, err = OpenS3(h.Context, "s3://"+bucket); err != nil {
			return nil, err
		}
		if h.buckets == nil {
			h.buckets = map[string]*S3{}
		}
		h.buckets[bucket] = s
	}
	o, err := s.Open(h.Context, strings.TrimSuffix(key, "/"))
	if err != nil {
		if errors.Is(err, ErrNotExist) {
			err = &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return nil, err
	}
	return hostFile{o, name}, nil
}

// Close ends the connections.
func (h *Hosts) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for _, s := range h.buckets {
		errs = append(errs, s.Close())
	}
	h.buckets = nil
	return errors.Join(errs...)
}

// hostFile is an Object as a host file.
type hostFile struct {
	Object
	name string
}

func (f hostFile) Name() string               { return f.name }
func (f hostFile) Stat() (fs.FileInfo, error) { return hostInfo{f}, nil }

// hostInfo tells of an Object, whose size and time never change.
type hostInfo struct{ f hostFile }

func (i hostInfo) Name() string       { return path.Base(i.f.name) }
func (i hostInfo) Size() int64        { return i.f.Size() }
func (i hostInfo) Mode() fs.FileMode  { return 0o400 }
func (i hostInfo) ModTime() time.Time { return i.f.MTime() }
func (i hostInfo) IsDir() bool        { return false }
func (i hostInfo) Sys() any           { return nil }
