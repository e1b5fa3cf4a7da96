// Package ondisk holds what every parser of an on-disk structure needs: an error type that says what, where and
// which value, four sentinels, bounded reads, and a cursor whose first error sticks.
//
// It is a leaf: it imports nothing of vmkit.
package ondisk

import (
	"errors"
	"fmt"
	"io"
)

// The four sentinels. Every error that a parser returns wraps exactly one of them, or an I/O error of the host.
var (
	// ErrNot means that the bytes are not of this kind at all: a probe goes on to the next candidate.
	ErrNot = errors.New("not of this kind")
	// ErrCorrupt means that the structure is of this kind, and breaks its own rules.
	ErrCorrupt = errors.New("corrupt")
	// ErrTruncated means that the structure points past the end of what there is.
	ErrTruncated = errors.New("truncated")
	// ErrUnsupported means that the structure is sound as far as can be told, but needs what vmkit lacks.
	ErrUnsupported = errors.New("unsupported")
)

// Error says what is wrong in an on-disk structure. It reads like
//
//	gpt header: entry size 96 at byte 0x254: corrupt
type Error struct {
	What  string // the structure: "gpt header"
	Field string // the field in it, or "" when the whole structure is meant
	Off   int64  // byte position in what the parser reads (host file, disk or volume); negative when unknown
	Got   any    // the value that was found, or nil
	Err   error  // one of the sentinels, or what the reader returned
}

func (e *Error) Error() string {
	s := e.What
	if e.Field != "" {
		s += ": " + e.Field
	}
	if e.Got != nil {
		s += fmt.Sprintf(" %v", e.Got)
	}
	if e.Off >= 0 {
		s += fmt.Sprintf(" at byte %#x", e.Off)
	}
	return s + ": " + e.Err.Error()
}

// Unwrap gives the sentinel or the reader's error.
func (e *Error) Unwrap() error { return e.Err }

// Corrupt makes an Error that wraps ErrCorrupt.
func Corrupt(what, field string, off int64, got any) error {
	return &Error{What: what, Field: field, Off: off, Got: got, Err: ErrCorrupt}
}

// Unsupported makes an Error that wraps ErrUnsupported.
func Unsupported(what, field string, off int64, got any) error {
	return &Error{What: what, Field: field, Off: off, Got: got, Err: ErrUnsupported}
}

// Truncated makes an Error that wraps ErrTruncated.
func Truncated(what, field string, off int64, got any) error {
	return &Error{What: what, Field: field, Off: off, Got: got, Err: ErrTruncated}
}

// ReadFull fills p from off. A short read is an Error that wraps ErrTruncated; what names the structure.
func ReadFull(r io.ReaderAt, p []byte, off int64, what string) error {
	if off < 0 {
		return Corrupt(what, "position", -1, off)
	}
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &Error{What: what, Off: off + int64(n), Err: ErrTruncated}
	}
	return &Error{What: what, Off: off, Err: err}
}

// Read reads n bytes at off into a new slice. The caller has bounded n by a named limit.
func Read(r io.ReaderAt, off, n int64, what string) ([]byte, error) {
	p := make([]byte, n)
	if err := ReadFull(r, p, off, what); err != nil {
		return nil, err
	}
	return p, nil
}

// Within reports whether the n bytes at off lie inside [0, size). It can't overflow.
func Within(off, n, size int64) bool {
	return off >= 0 && n >= 0 && off <= size && n <= size-off
}
