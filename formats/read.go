package formats

import (
	"container/list"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"sync"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
)

// ErrMissing is what reading an extent of kind Missing gives.
var ErrMissing = fmt.Errorf("bytes are missing: %w", ondisk.ErrTruncated)

// ErrEncrypted is what reading an extent of kind Encrypted gives.
var ErrEncrypted = errors.New("bytes are encrypted and no key was given")

// NewDisk gives a Mapper the reading that all of them share. One that is a host file as it is reads itself.
func NewDisk(m Mapper, env *Env) Disk {
	if p, ok := m.(*plain); ok {
		return p
	}
	return &disk{m, env}
}

type disk struct {
	Mapper
	env *Env
}

// ReadAt fills p from the extents. At the end of the disk it returns io.EOF as io.ReaderAt demands; where bytes can't
// be had it returns what lies before them and an error, never zeros.
func (d *disk) ReadAt(p []byte, off int64) (int, error) {
	size := d.Size()
	if off < 0 {
		return 0, fmt.Errorf("position %d before the start of the disk", off)
	}
	var n int
	for n < len(p) {
		at := off + int64(n)
		if at >= size {
			return n, io.EOF
		}
		e, err := d.ExtentAt(at, min(int64(len(p)-n), size-at))
		if err != nil {
			return n, err
		}
		if e.Len <= 0 || e.Len > int64(len(p)-n) {
			return n, fmt.Errorf("extent of %d bytes at %d: a mapper broke its contract", e.Len, at)
		}
		if err := d.env.Fill(p[n:n+int(e.Len)], e); err != nil {
			return n, err
		}
		n += int(e.Len)
	}
	return n, nil
}

// readClipped reads from r what lies at base+off, as if r ended at base+size.
func readClipped(r io.ReaderAt, p []byte, base, off, size int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("position %d before the start of the volume", off)
	}
	if off >= size {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	if int64(len(p)) <= size-off {
		return r.ReadAt(p, base+off)
	}
	n, err := r.ReadAt(p[:size-off], base+off)
	if err == nil {
		err = io.EOF
	}
	return n, err
}

// Fill reads an extent's bytes into p, whose length is at most e.Len.
func (env *Env) Fill(p []byte, e Extent) error {
	switch e.Kind {
	case Zero:
		clear(p)
		return nil
	case Data:
		return ondisk.ReadFull(e.File, p, e.Off, e.File.Path)
	case Missing:
		return ErrMissing
	case Encrypted:
		return ErrEncrypted
	case Packed:
		if !ondisk.Within(e.Skip, int64(len(p)), e.Pack.Full) || e.Pack.Full > codec.MaxFull {
			return ondisk.Corrupt("packed extent", "length", -1, e.Pack.Full)
		}
		if e.Skip == 0 && int64(len(p)) == e.Pack.Full {
			return env.decode(p, e.Pack)
		}
		b, err := env.unpack(e.Pack)
		if err != nil {
			return err
		}
		copy(p, b[e.Skip:])
		return nil
	}
	return fmt.Errorf("extent of kind %d", e.Kind)
}

// unpack gives a pack's decoded bytes from the cache, or decodes them into it.
func (env *Env) unpack(p *Pack) ([]byte, error) {
	key, ok := keyOf(p)
	if ok {
		if b := env.cache.get(key); b != nil {
			return b, nil
		}
	}
	b := make([]byte, p.Full)
	if err := env.decode(b, p); err != nil {
		return nil, err
	}
	if ok {
		env.cache.put(key, b)
	}
	return b, nil
}

// maxPart bounds the coded bytes that are read for one pack.
const maxPart = 2 * codec.MaxFull

// decode fills dst, which is as long as the pack's decoded bytes.
func (env *Env) decode(dst []byte, p *Pack) error {
	var total int64
	for _, q := range p.Parts {
		if q.Len < 0 || q.Len > maxPart-total {
			return ondisk.Corrupt("packed extent", "coded length", -1, q.Len)
		}
		total += q.Len
	}
	in := dst
	if !codec.NeedsKey(p.Codec) || total != p.Full { // which decrypts in place
		s := scratch.Get().(*[]byte)
		defer scratch.Put(s)
		if int64(cap(*s)) < total {
			*s = make([]byte, total)
		}
		in = (*s)[:total]
	}
	at := int64(0)
	for _, q := range p.Parts {
		if err := env.Fill(in[at:at+q.Len], q); err != nil {
			return err
		}
		at += q.Len
	}
	if !codec.SideBySide(p.Codec) {
		return codec.Decode(dst, p.Spec, env.keys.get, in)
	}
	parts := make([][]byte, len(p.Parts))
	for i, q := range p.Parts {
		parts[i], in = in[:q.Len], in[q.Len:]
	}
	return codec.Decode(dst, p.Spec, env.keys.get, parts...)
}

// scratch keeps buffers for coded bytes.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// packKey tells packs apart by where all of their coded bytes lie.
type packKey struct {
	file      *File
	off, full int64
	codec     string
	rest      uint64 // hash of the parts
}

var packSeed = maphash.MakeSeed()

// keyOf gives the key of a pack; ok is false for those that are cheap to decode, or seldom wanted twice.
func keyOf(p *Pack) (k packKey, ok bool) {
	if codec.SideBySide(p.Codec) || codec.NeedsKey(p.Codec) || len(p.Parts) == 0 {
		return packKey{}, false
	}
	k = packKey{file: p.Parts[0].File, off: p.Parts[0].Off, full: p.Full, codec: p.Codec}
	for _, q := range p.Parts {
		part := struct {
			before         uint64
			kind           Kind
			file           *File
			off, len, skip int64
			pack           packKey
		}{before: k.rest, kind: q.Kind, file: q.File, off: q.Off, len: q.Len, skip: q.Skip}
		if q.Kind == Packed {
			if part.pack, ok = keyOf(q.Pack); !ok {
				return packKey{}, false
			}
		}
		k.rest = maphash.Comparable(packSeed, part)
	}
	return k, true
}

// packCache keeps the decoded packs that were used last, within a number of bytes.
type packCache struct {
	mu    sync.Mutex
	limit int64
	used  int64
	byKey map[packKey]*list.Element
	order list.List // most recent first; values are *packEntry
}

type packEntry struct {
	key packKey
	b   []byte
}

func (c *packCache) get(k packKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.byKey[k]; e != nil {
		c.order.MoveToFront(e)
		return e.Value.(*packEntry).b
	}
	return nil
}

func (c *packCache) put(k packKey, b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey == nil {
		c.byKey = make(map[packKey]*list.Element)
	}
	if c.byKey[k] != nil || int64(len(b)) > c.limit {
		return
	}
	c.byKey[k] = c.order.PushFront(&packEntry{k, b})
	for c.used += int64(len(b)); c.used > c.limit; {
		last := c.order.Back()
		e := c.order.Remove(last).(*packEntry)
		delete(c.byKey, e.key)
		c.used -= int64(len(e.b))
	}
}

// keyRing holds secrets by id.
type keyRing struct {
	mu sync.RWMutex
	m  map[string][]byte
}

func (r *keyRing) set(id string, secret []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil {
		r.m = make(map[string][]byte)
	}
	r.m[id] = secret
}

func (r *keyRing) get(id string) ([]byte, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	b, ok := r.m[id]
	return b, ok
}
