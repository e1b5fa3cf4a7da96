package ondisk

import "encoding/binary"

// Cursor consumes a bounded slice front to back. The first read past the end makes every later one give zeros and
// Err an Error that wraps ErrTruncated; so a record is decoded in straight lines and checked once.
type Cursor struct {
	// Order is the byte order of the multi-byte reads.
	Order binary.ByteOrder

	what string
	base int64
	buf  []byte
	pos  int
	err  error
}

// NewCursor reads buf, which lies at byte base of what the parser reads; what names the structure in errors.
func NewCursor(buf []byte, order binary.ByteOrder, base int64, what string) *Cursor {
	return &Cursor{Order: order, what: what, base: base, buf: buf}
}

// Err gives the first error, or nil.
func (c *Cursor) Err() error { return c.err }

// Len gives the number of bytes left.
func (c *Cursor) Len() int { return len(c.buf) - c.pos }

// Pos gives the number of bytes consumed.
func (c *Cursor) Pos() int { return c.pos }

// Off gives the byte position of the next byte in what the parser reads.
func (c *Cursor) Off() int64 { return c.base + int64(c.pos) }

// Bytes consumes n bytes without copying them; nil after an error.
func (c *Cursor) Bytes(n int) []byte {
	if c.err != nil {
		return nil
	}
	if n < 0 || n > c.Len() {
		c.err = &Error{What: c.what, Off: c.Off(), Err: ErrTruncated}
		return nil
	}
	b := c.buf[c.pos : c.pos+n : c.pos+n]
	c.pos += n
	return b
}

// Skip consumes n bytes.
func (c *Cursor) Skip(n int) { c.Bytes(n) }

// U8 consumes one byte.
func (c *Cursor) U8() uint8 {
	if b := c.Bytes(1); b != nil {
		return b[0]
	}
	return 0
}

// U16 consumes two bytes.
func (c *Cursor) U16() uint16 {
	if b := c.Bytes(2); b != nil {
		return c.Order.Uint16(b)
	}
	return 0
}

// U32 consumes four bytes.
func (c *Cursor) U32() uint32 {
	if b := c.Bytes(4); b != nil {
		return c.Order.Uint32(b)
	}
	return 0
}

// U64 consumes eight bytes.
func (c *Cursor) U64() uint64 {
	if b := c.Bytes(8); b != nil {
		return c.Order.Uint64(b)
	}
	return 0
}
