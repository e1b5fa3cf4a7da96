package ondisk

import (
	"errors"
	"io"
	"sync"
)

// Cache keeps the pages of a reader that were used last, so that small structures that lie close together cost one
// read. It is safe for concurrent use; the pages that it hands out are shared and must not be written to.
type Cache struct {
	r      io.ReaderAt
	size   int64
	page   int64
	shards [cacheShards]cacheShard
}

const cacheShards = 8

type cacheShard struct {
	mu    sync.Mutex
	limit int
	clock int
	slots []cacheSlot
	index map[int64]int // page number to slot
}

type cacheSlot struct {
	no   int64
	b    []byte
	used bool
}

// NewCache reads r, which has size bytes, through pages of the given length in bytes and keeps at most limit bytes of
// them (at least one page in each of 8 shards).
func NewCache(r io.ReaderAt, size int64, page int, limit int64) *Cache {
	c := &Cache{r: r, size: size, page: int64(page)}
	per := int(limit / int64(page) / cacheShards)
	for i := range c.shards {
		c.shards[i].limit = max(per, 1)
		c.shards[i].index = make(map[int64]int)
	}
	return c
}

// Size gives the length of what is read.
func (c *Cache) Size() int64 { return c.size }

// Page gives the bytes from off to the end of the page that holds it, or of what is read. They are shared.
func (c *Cache) Page(off int64) ([]byte, error) {
	if off < 0 || off >= c.size {
		return nil, &Error{What: "read", Off: off, Err: ErrTruncated}
	}
	no := off / c.page
	s := &c.shards[no%cacheShards]
	s.mu.Lock()
	if i, ok := s.index[no]; ok {
		s.slots[i].used = true
		b := s.slots[i].b
		s.mu.Unlock()
		return b[off-no*c.page:], nil
	}
	s.mu.Unlock()
	b := make([]byte, min(c.page, c.size-no*c.page))
	if err := ReadFull(c.r, b, no*c.page, "read"); err != nil {
		return nil, err
	}
	s.put(no, b)
	return b[off-no*c.page:], nil
}

// put keeps a page in the place of one that was not used lately.
func (s *cacheShard) put(no int64, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.index[no]; ok {
		return
	}
	if len(s.slots) < s.limit {
		s.index[no] = len(s.slots)
		s.slots = append(s.slots, cacheSlot{no: no, b: b})
		return
	}
	for s.slots[s.clock].used {
		s.slots[s.clock].used = false
		s.clock = (s.clock + 1) % len(s.slots)
	}
	delete(s.index, s.slots[s.clock].no)
	s.slots[s.clock] = cacheSlot{no: no, b: b}
	s.index[no] = s.clock
	s.clock = (s.clock + 1) % len(s.slots)
}

// Slice gives n bytes at off: a piece of a shared page where they lie in one, else a copy. The caller has bounded n.
// It must not be written to.
func (c *Cache) Slice(off int64, n int) ([]byte, error) {
	p, err := c.Page(off)
	if err != nil {
		return nil, err
	}
	if n <= len(p) {
		return p[:n:n], nil
	}
	if !Within(off, int64(n), c.size) {
		return nil, &Error{What: "read", Off: off, Got: n, Err: ErrTruncated}
	}
	b := make([]byte, n)
	if _, err := c.ReadAt(b, off); err != nil {
		return nil, err
	}
	return b, nil
}

// ReadAt implements io.ReaderAt. Reads of several pages go past the cache.
func (c *Cache) ReadAt(p []byte, off int64) (int, error) {
	if int64(len(p)) > 2*c.page {
		return c.r.ReadAt(p, off)
	}
	var n int
	for n < len(p) {
		b, err := c.Page(off + int64(n))
		if err != nil {
			if off+int64(n) >= c.size && errors.Is(err, ErrTruncated) {
				err = io.EOF
			}
			return n, err
		}
		n += copy(p[n:], b)
	}
	return n, nil
}
