package ondisk

import (
	"io"
	"io/fs"
)

// HostFile is an open file that holds what a map tells of: an *os.File, or one of a store elsewhere. ReadAt is safe for
// concurrent use.
type HostFile interface {
	io.ReaderAt
	io.Closer
	Name() string
	Stat() (fs.FileInfo, error)
}
