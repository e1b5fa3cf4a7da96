package qcow2

import (
	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// tableReader reads a table front to back by pieces.
type tableReader struct {
	f        *formats.File
	off, end int64
	buf      []byte
}

func newTable(f *formats.File, off, n int64) *tableReader {
	return &tableReader{f: f, off: off, end: off + n}
}

func (t *tableReader) next(n int) ([]byte, error) {
	if len(t.buf) < n {
		b, err := ondisk.Read(t.f, t.off, min(64<<10, t.end-t.off), "qcow2 table")
		if err != nil {
			return nil, err
		}
		t.buf = b
		t.off += int64(len(b))
	}
	b := t.buf[:n]
	t.buf = t.buf[n:]
	return b, nil
}
