package extract

import (
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"sort"
	"sync"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

var (
	errMissing   = errors.New("missing")
	errEncrypted = errors.New("encrypted, and no key was given")
	errNoPlace   = errors.New("the map has only its position in the virtual disk: complete it with vmmap --rebase")
)

// source gives the bytes of extents. It is safe for concurrent use.
type source struct {
	hosts hosts
	keys  codec.Keys
	cache packCache
	// large is held while a pack of more than largePack bytes is decoded, so that packs that a hostile map nests
	// don't take the memory of every worker at once.
	large sync.Mutex
}

const (
	largePack = 8 << 20
	maxPack   = 4 * codec.MaxFull // bytes that decoding one pack may take, those of packs within it included
	cacheSize = 24 << 20
)

// unpack gives what a pack decodes to. The bytes are shared.
func (s *source) unpack(p *mapfile.Pack) ([]byte, error) {
	var room [512]byte
	key := appendPackKey(room[:0], p)
	if b := s.cache.get(key); b != nil {
		return b, nil
	}
	b, err := s.decode(nil, p)
	if err == nil {
		s.cache.put(key, b)
	}
	return b, err
}

// decode gives the decoded bytes of p, all of them, in dst or, where that is nil, in new memory.
func (s *source) decode(dst []byte, p *mapfile.Pack) ([]byte, error) {
	switch n := packSize(p); {
	case n > maxPack:
		return nil, ondisk.Corrupt("packed extent", "length", -1, p.Full)
	case n > largePack:
		s.large.Lock()
		defer s.large.Unlock()
	}
	if dst == nil {
		dst = make([]byte, p.Full)
	}
	return dst, s.decodeInto(dst, p)
}

// packSize adds up the bytes that decoding p takes. It stops above maxPack.
func packSize(p *mapfile.Pack) int64 {
	if p.Full > codec.MaxFull {
		return maxPack + 1
	}
	n := p.Full
	for i := range p.Parts {
		e := &p.Parts[i]
		if n > maxPack || e.Len > maxPack {
			return maxPack + 1
		}
		if n += e.Len; e.Kind == mapfile.Packed {
			n += packSize(e.Pack)
		}
	}
	return n
}

// decodeInto is decode for a pack whose size was checked.
func (s *source) decodeInto(dst []byte, p *mapfile.Pack) error {
	if codec.NeedsKey(p.Codec) {
		if s.keys == nil {
			return errEncrypted
		}
		if _, ok := s.keys(p.Key); !ok {
			return errEncrypted
		}
	}
	parts := make([][]byte, len(p.Parts))
	for i := range p.Parts {
		b, err := s.part(&p.Parts[i])
		if err != nil {
			return err
		}
		parts[i] = b
	}
	return codec.Decode(dst, codec.Spec{Codec: p.Codec, Full: p.Full, Sector: p.Sector, IV: p.IV, Key: p.Key, Factors: p.Factors, Pad: p.Pad}, s.keys, parts...)
}

// part gives the bytes of a part. They don't go through the cache: a part is wanted once.
func (s *source) part(e *mapfile.Extent) ([]byte, error) {
	switch e.Kind {
	case mapfile.Inline:
		return e.Bytes, nil
	case mapfile.Packed:
		b := make([]byte, e.Pack.Full)
		if err := s.decodeInto(b, e.Pack); err != nil {
			return nil, err
		}
		return b[e.Skip : e.Skip+e.Len], nil
	}
	b := make([]byte, e.Len)
	return b, s.fill(b, e, 0)
}

// fill reads len(p) bytes that lie skip bytes into an extent.
func (s *source) fill(p []byte, e *mapfile.Extent, skip int64) error {
	switch e.Kind {
	case mapfile.Data:
		if e.File == mapfile.None {
			return errNoPlace
		}
		return s.hosts.read(e.File, p, e.Off+skip)
	case mapfile.Zero, mapfile.Hole, mapfile.Unwritten:
		clear(p)
		return nil
	case mapfile.Inline:
		copy(p, e.Bytes[skip:])
		return nil
	case mapfile.Packed:
		if e.Skip == 0 && skip == 0 && int64(len(p)) == e.Pack.Full {
			_, err := s.decode(p, e.Pack)
			return err
		}
		b, err := s.unpack(e.Pack)
		if err != nil {
			return err
		}
		copy(p, b[e.Skip+skip:])
		return nil
	case mapfile.Encrypted:
		return errEncrypted
	case mapfile.Missing:
		return errMissing
	}
	return fmt.Errorf("extent of kind %d", e.Kind)
}

// there tells why an extent that isn't coded can't be had, as far as can be told without reading it.
func (s *source) there(e *mapfile.Extent) error {
	switch e.Kind {
	case mapfile.Data:
		if e.File == mapfile.None {
			return errNoPlace
		}
		return s.hosts.there(e.File, e.Off, e.Len)
	case mapfile.Missing:
		return errMissing
	case mapfile.Encrypted:
		return errEncrypted
	}
	return nil
}

// hashContent hashes what a map says that a file holds, so that two names of one inode with different content are told
// apart.
func hashContent(seed maphash.Seed, f *mapfile.File) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	room := binary.AppendVarint(make([]byte, 0, 256), f.Size)
	h.Write(room)
	for i := range f.Extents {
		room = appendExtentKey(room[:0], &f.Extents[i])
		h.Write(room)
	}
	return h.Sum64()
}

// search finds which of the extents holds a position of the file.
func search(list []mapfile.Extent, at int64) int {
	return sort.Search(len(list), func(i int) bool { return list[i].At+list[i].Len > at })
}

// appendPackKey appends what tells p from every other pack.
func appendPackKey(b []byte, p *mapfile.Pack) []byte {
	b = append(append(b, p.Codec...), 0)
	b = binary.AppendVarint(b, p.Full)
	b = binary.AppendVarint(b, int64(p.Sector))
	b = binary.AppendUvarint(b, p.IV)
	b = append(append(b, p.Key...), 0)
	b = append(binary.AppendVarint(b, int64(len(p.Factors))), p.Factors...)
	if p.Pad {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = binary.AppendVarint(b, int64(len(p.Parts)))
	for i := range p.Parts {
		b = appendExtentKey(b, &p.Parts[i])
	}
	return b
}

// appendExtentKey appends what an extent says, its position in the file apart.
func appendExtentKey(b []byte, e *mapfile.Extent) []byte {
	b = append(b, byte(e.Kind))
	for _, v := range [...]int64{e.Len, int64(e.File), e.Off} {
		b = binary.AppendVarint(b, v)
	}
	switch e.Kind {
	case mapfile.Inline:
		b = append(b, e.Bytes...)
	case mapfile.Packed:
		b = appendPackKey(binary.AppendVarint(b, e.Skip), e.Pack)
	}
	return b
}

// packCache keeps the decoded packs that were used last: neighbouring files lie in the same cluster.
type packCache struct {
	mu    sync.Mutex
	used  int64
	byKey map[string]*list.Element
	order list.List // most recent first; values are *packEntry
}

type packEntry struct {
	key string
	b   []byte
}

func (c *packCache) get(key []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.byKey[string(key)]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*packEntry).b
}

func (c *packCache) put(key []byte, b []byte) {
	size := func(e *packEntry) int64 { return int64(len(e.b)+len(e.key)) + 200 }
	x := &packEntry{string(key), b}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey == nil {
		c.byKey = make(map[string]*list.Element)
	}
	if c.byKey[x.key] != nil || size(x) > cacheSize/4 {
		return
	}
	c.byKey[x.key] = c.order.PushFront(x)
	for c.used += size(x); c.used > cacheSize; {
		e := c.order.Remove(c.order.Back()).(*packEntry)
		delete(c.byKey, e.key)
		c.used -= size(e)
	}
}

func (c *packCache) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used, c.byKey = 0, nil
	c.order.Init()
}
