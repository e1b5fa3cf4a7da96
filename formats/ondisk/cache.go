package ondisk

import (
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

// cacheSlot holds a page, or the part of one that was wanted so far: the bytes from lo on.
type cacheSlot struct {
	no   int64
	lo   int
	b    []byte
	used bool
}

// cachePiece is how much of a page is read at its first touch: inodes that are looked up in no order cost no more.
const cachePiece = 4 << 10

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
	at, n := int(off-no*c.page), int(min(c.page, c.size-no*c.page))
	if b, _ := c.find(no, at, n-at); b != nil {
		return b, nil
	}
	return c.load(no, 0, n, at, n-at)
}

// Slice gives n bytes at off: a piece of a shared page where they lie in one, else a copy. The caller has bounded n.
// It must not be written to.
func (c *Cache) Slice(off int64, n int) ([]byte, error) {
	if off < 0 || off >= c.size || !Within(off, int64(n), c.size) {
		return nil, &Error{What: "read", Off: off, Got: n, Err: ErrTruncated}
	}
	no := off / c.page
	at, size := int(off-no*c.page), int(min(c.page, c.size-no*c.page))
	if n > size-at {
		b := make([]byte, n)
		if _, err := c.ReadAt(b, off); err != nil {
			return nil, err
		}
		return b, nil
	}
	b, known := c.find(no, at, n)
	if b != nil {
		return b, nil
	}
	lo, hi := at/cachePiece*cachePiece, min((at+n+cachePiece-1)/cachePiece*cachePiece, size)
	// Whoever comes back to a page, or goes on from the one before, gets all of it.
	if known || c.has(no-1) {
		lo, hi = 0, size
	}
	return c.load(no, lo, hi, at, n)
}

func (c *Cache) shard(no int64) *cacheShard { return &c.shards[uint64(no)%cacheShards] }

// has tells whether any part of a page is kept.
func (c *Cache) has(no int64) bool {
	s := c.shard(no)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.index[no]
	return ok
}

// find gives n bytes at position at of a page where they are kept. known tells whether any part of the page is.
func (c *Cache) find(no int64, at, n int) (b []byte, known bool) {
	s := c.shard(no)
	s.mu.Lock()
	defer s.mu.Unlock()
	i, known := s.index[no]
	if known {
		x := &s.slots[i]
		x.used = true
		if at -= x.lo; at >= 0 && at+n <= len(x.b) {
			return x.b[at : at+n : at+n], true
		}
	}
	return nil, known
}

// load reads bytes lo to hi of a page, keeps them, and gives n of them at position at.
func (c *Cache) load(no int64, lo, hi, at, n int) ([]byte, error) {
	b := make([]byte, hi-lo)
	if err := ReadFull(c.r, b, no*c.page+int64(lo), "read"); err != nil {
		return nil, err
	}
	c.shard(no).put(cacheSlot{no: no, lo: lo, b: b})
	at -= lo
	return b[at : at+n : at+n], nil
}

// put keeps a page in the place of one that was not used lately, or of the smaller part of it that was kept.
func (s *cacheShard) put(x cacheSlot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i, ok := s.index[x.no]; ok {
		if len(x.b) > len(s.slots[i].b) {
			s.slots[i] = x
		}
		return
	}
	if len(s.slots) < s.limit {
		s.index[x.no] = len(s.slots)
		s.slots = append(s.slots, x)
		return
	}
	for s.slots[s.clock].used {
		s.slots[s.clock].used = false
		s.clock = (s.clock + 1) % len(s.slots)
	}
	delete(s.index, s.slots[s.clock].no)
	s.slots[s.clock] = x
	s.index[x.no] = s.clock
	s.clock = (s.clock + 1) % len(s.slots)
}

// ReadAt implements io.ReaderAt. Reads of several pages go past the cache.
func (c *Cache) ReadAt(p []byte, off int64) (int, error) {
	if int64(len(p)) > 2*c.page {
		return c.r.ReadAt(p, off)
	}
	var n int
	for n < len(p) {
		at := off + int64(n)
		if at >= c.size && off >= 0 {
			return n, io.EOF
		}
		b, err := c.Slice(at, int(min(int64(len(p)-n), c.page-at%c.page, c.size-at)))
		if err != nil {
			return n, err
		}
		n += copy(p[n:], b)
	}
	return n, nil
}
