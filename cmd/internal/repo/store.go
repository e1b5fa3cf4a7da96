// Package repo is the backup repository: points of machines, as files that other people's tools can read, in a folder
// or in an S3 bucket.
//
// Layout, names and order of writing are those of the design: <machine>/<point>.json comes last, when all that it
// names is durable; reading needs no lock; writers of one machine exclude each other.
package repo

import (
	"context"
	"errors"
	"io"
	"time"
)

// Store keeps files by name. Names are slash-separated, without empty, "." or ".." elements. It is safe for concurrent
// use.
type Store interface {
	// URL names the store for messages: a folder's path, or "s3://bucket/prefix". It holds no secret.
	URL() string
	// Open opens a file for reading at any offset. What it reads is one version of the file: one that was replaced
	// since gives ErrChanged, or its old bytes, never a mixture.
	Open(ctx context.Context, name string) (Object, error)
	// Create begins a file that appears under its name, whole and durable, at Commit, and not before. A file of the
	// same name is replaced, unless exclusive, when it gives ErrExists.
	Create(ctx context.Context, name string, exclusive bool) (Writer, error)
	// List calls yield with every file whose name begins with prefix, in byte order.
	List(ctx context.Context, prefix string, yield func(Info) error) error
	// Remove removes files; one that isn't there is no error.
	Remove(ctx context.Context, names ...string) error
	// Lock excludes other writers of a machine until unlock, or until this process ended and the lock is stale.
	// Where somebody holds it, ErrLocked wraps who.
	Lock(ctx context.Context, machine string) (unlock func() error, err error)
	Close() error
}

// What a store may answer.
var (
	ErrNotExist = errors.New("does not exist")
	ErrExists   = errors.New("exists already")
	ErrChanged  = errors.New("was replaced while it was read")
	ErrLocked   = errors.New("another writer is at work on this machine")
)

// Info is what a listing tells of a file.
type Info struct {
	Name  string
	Size  int64
	MTime time.Time
}

// Object is an open file. ReadAt is safe for concurrent use.
type Object interface {
	io.ReaderAt
	io.Closer
	Size() int64
	MTime() time.Time
}

// Writer is a file that is being written. The bytes come in order, but for the first Head bytes, which may be written
// again by WriteHead until Commit: an image's header is known last.
type Writer interface {
	io.Writer
	// WriteHead replaces bytes from the start of the file; off+len(p) <= Head, and they were written before.
	WriteHead(p []byte, off int64) error
	// Commit gives the file its name once all of it is durable. With it the store has verified the stored length and
	// hash where it can't be read back for free.
	Commit(ctx context.Context) (Info, error)
	// Abort leaves nothing behind. After Commit it does nothing.
	Abort()
}

// Head is how many bytes at the start of a file WriteHead reaches: enough for the header and first table of an image
// of the largest virtual disk.
const Head = 8 << 20
