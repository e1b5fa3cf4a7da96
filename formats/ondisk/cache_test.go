package ondisk

import (
	"bytes"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
)

// counted is a reader that counts what is read.
type counted struct {
	b     []byte
	mu    sync.Mutex
	reads int
	bytes int
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.mu.Lock()
	c.reads++
	c.bytes += len(p)
	c.mu.Unlock()
	return bytes.NewReader(c.b).ReadAt(p, off)
}

func newCounted(n int) *counted {
	c := &counted{b: make([]byte, n)}
	for i := range c.b {
		c.b[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16)
	}
	return c
}

// TestCache: whatever is read through a cache is what lies there, by many at once.
func TestCache(t *testing.T) {
	for _, page := range []int{16, 512, 4096, 64 << 10} {
		src := newCounted(1<<20 - 77)
		c := NewCache(src, int64(len(src.b)), page, 128<<10)
		var wg sync.WaitGroup
		for seed := range uint64(4) {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, 1))
				for range 3000 {
					off := r.IntN(len(src.b))
					n := min(r.IntN(3*page)+1, len(src.b)-off)
					var got []byte
					var err error
					switch r.IntN(3) {
					case 0:
						got, err = c.Slice(int64(off), n)
					case 1:
						got = make([]byte, n)
						_, err = c.ReadAt(got, int64(off))
					case 2:
						got, err = c.Page(int64(off))
						n = min(page-off%page, len(src.b)-off)
					}
					if err != nil || !bytes.Equal(got, src.b[off:off+n]) {
						t.Errorf("pages of %d: %d bytes at %d: %v", page, n, off, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
}

func TestCacheEnds(t *testing.T) {
	src := newCounted(1000)
	c := NewCache(src, 1000, 64, 1<<10)
	p := make([]byte, 10)
	if n, err := c.ReadAt(p, 995); n != 5 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if n, err := c.ReadAt(p, 1000); n != 0 || err != io.EOF {
		t.Errorf("past the end: %d, %v", n, err)
	}
	for _, off := range []int64{-1, 995, 1000, 1 << 62} {
		if _, err := c.Slice(off, 10); err == nil {
			t.Errorf("10 bytes at %d", off)
		}
	}
	for _, off := range []int64{-1, 1000} {
		if _, err := c.Page(off); err == nil {
			t.Errorf("page at %d", off)
		}
		if _, err := c.ReadAt(p, off); err == nil {
			t.Errorf("read at %d", off)
		}
	}
}

// TestCacheOrder: what is read in order costs one read a page; what is looked up in no order costs little each.
func TestCacheOrder(t *testing.T) {
	const size, page, inode = 16 << 20, 64 << 10, 256
	src := newCounted(size)
	c := NewCache(src, size, page, 1<<20)
	for off := int64(0); off < size; off += inode {
		if _, err := c.Slice(off, inode); err != nil {
			t.Fatal(err)
		}
	}
	if src.reads > size/page+1 || src.bytes > size+page {
		t.Errorf("in order: %d reads of %d bytes", src.reads, src.bytes)
	}
	src.reads, src.bytes = 0, 0
	const lookups = 20000
	r := rand.New(rand.NewPCG(1, 2))
	for range lookups {
		if _, err := c.Slice(r.Int64N(size/inode)*inode, inode); err != nil {
			t.Fatal(err)
		}
	}
	if src.bytes > lookups*12<<10 {
		t.Errorf("in no order: %d reads of %d bytes, %d bytes each", src.reads, src.bytes, src.bytes/lookups)
	}
}
