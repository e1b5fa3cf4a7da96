package btrfs

import (
	"fmt"
	"slices"
	"sort"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// chunk is a range of logical addresses and where it lies on the devices.
type chunk struct {
	logical, length int64
	typ             uint64
	stripeLen       int64
	sub             int
	stripes         []stripe
}

type stripe struct {
	dev int // index of the member, -1 when it is missing
	off int64
}

// chunkMap turns logical addresses into places on devices.
type chunkMap struct {
	chunks []chunk // in order of logical address, without overlap
	sizes  []int64 // of the members
	byID   map[uint64]int
}

// add takes a chunk item.
func (m *chunkMap) add(logical uint64, b []byte) error {
	bad := func(field string, got any) error {
		return ondisk.Corrupt("btrfs chunk", fmt.Sprintf("at %#x: %s", logical, field), -1, got)
	}
	if len(b) < ckHead+stripeSize {
		return bad("length of the item", len(b))
	}
	n := int(le.Uint16(b[ckStripes:]))
	length, stripeLen := le.Uint64(b[ckLength:]), le.Uint64(b[ckStripeLen:])
	c := chunk{logical: int64(logical), length: int64(length), typ: le.Uint64(b[ckType:]), stripeLen: int64(stripeLen), sub: int(le.Uint16(b[ckSubStripes:]))}
	switch {
	case n == 0 || n > maxStripes || len(b) < ckHead+n*stripeSize:
		return bad("number of stripes", n)
	case length == 0 || length > 1<<56 || logical > 1<<60:
		return bad("length", length)
	case stripeLen < 4096 || stripeLen > 1<<30 || stripeLen&(stripeLen-1) != 0:
		return bad("stripe length", stripeLen)
	case c.typ&bgRAID10 != 0 && (c.sub < 1 || n%c.sub != 0),
		c.typ&bgRAID5 != 0 && n < 2, c.typ&bgRAID6 != 0 && n < 3:
		return bad("number of stripes", n)
	}
	for i := range n {
		s := b[ckHead+i*stripeSize:]
		dev, ok := m.byID[le.Uint64(s)]
		if !ok {
			dev = -1
		}
		off := le.Uint64(s[8:])
		if off > 1<<60 {
			return bad("stripe offset", off)
		}
		c.stripes = append(c.stripes, stripe{dev, int64(off)})
	}
	i := sort.Search(len(m.chunks), func(i int) bool { return m.chunks[i].logical >= c.logical })
	if i < len(m.chunks) && m.chunks[i].logical == c.logical {
		m.chunks[i] = c // the system array's chunks stand in the chunk tree again
		return nil
	}
	if i > 0 && m.chunks[i-1].logical+m.chunks[i-1].length > c.logical || i < len(m.chunks) && c.logical+c.length > m.chunks[i].logical {
		return bad("overlaps another one", length)
	}
	if len(m.chunks) >= maxChunks {
		return ondisk.Unsupported("btrfs", "number of chunks", -1, len(m.chunks))
	}
	m.chunks = slices.Insert(m.chunks, i, c)
	return nil
}

func (m *chunkMap) find(logical int64) (*chunk, error) {
	i := sort.Search(len(m.chunks), func(i int) bool { return m.chunks[i].logical+m.chunks[i].length > logical })
	if i == len(m.chunks) || logical < m.chunks[i].logical {
		return nil, ondisk.Corrupt("btrfs", "logical address without a chunk", -1, fmt.Sprintf("%#x", logical))
	}
	return &m.chunks[i], nil
}

// mirrors gives the number of copies of what lies in c; parity is not counted.
func (c *chunk) mirrors() int {
	switch {
	case c.typ&(bgRAID1|bgDUP|bg1C3|bg1C4) != 0:
		return len(c.stripes)
	case c.typ&bgRAID10 != 0:
		return c.sub
	}
	return 1
}

// place gives where the byte at off of the chunk lies in copy mirror, and how many bytes follow it there.
func (c *chunk) place(off int64, mirror int) (s stripe, n int64) {
	nr, in := off/c.stripeLen, off%c.stripeLen
	num := int64(len(c.stripes))
	switch {
	case c.typ&bgRAID0 != 0:
		s = c.stripes[nr%num]
		return stripe{s.dev, s.off + nr/num*c.stripeLen + in}, c.stripeLen - in
	case c.typ&bgRAID10 != 0:
		groups := num / int64(c.sub)
		s = c.stripes[nr%groups*int64(c.sub)+int64(mirror)]
		return stripe{s.dev, s.off + nr/groups*c.stripeLen + in}, c.stripeLen - in
	case c.typ&(bgRAID5|bgRAID6) != 0:
		data := num - int64(c.parity())
		row := nr / data
		s = c.stripes[(row+nr%data)%num]
		return stripe{s.dev, s.off + row*c.stripeLen + in}, c.stripeLen - in
	}
	s = c.stripes[mirror]
	return stripe{s.dev, s.off + off}, c.length - off
}

func (c *chunk) parity() int {
	if c.typ&bgRAID6 != 0 {
		return 2
	}
	return 1
}

// complete tells whether all that lies in c can be had from the devices that are there.
func (m *chunkMap) complete(c *chunk) bool {
	absent := func(s []stripe) (n int) {
		for _, x := range s {
			if x.dev < 0 || m.sizes[x.dev] == 0 {
				n++
			}
		}
		return n
	}
	switch {
	case c.typ&(bgRAID1|bgDUP|bg1C3|bg1C4) != 0:
		return absent(c.stripes) < len(c.stripes)
	case c.typ&bgRAID10 != 0:
		for i := 0; i < len(c.stripes); i += c.sub {
			if absent(c.stripes[i:i+c.sub]) == c.sub {
				return false
			}
		}
		return true
	case c.typ&(bgRAID5|bgRAID6) != 0:
		return absent(c.stripes) <= c.parity()
	}
	return absent(c.stripes) == 0
}

// present tells whether n bytes at s can be read.
func (m *chunkMap) present(s stripe, n int64) bool {
	return s.dev >= 0 && ondisk.Within(s.off, n, m.sizes[s.dev])
}

// runs calls add with where n bytes at a logical address lie, in order: runs of kind Data with a place on a member,
// Packed where a lost stripe follows from the others, or Missing.
func (m *chunkMap) runs(logical, n int64, add func(fsmap.Run) error) error {
	for n > 0 {
		c, err := m.find(logical)
		if err != nil {
			return err
		}
		off := logical - c.logical
		var x fsmap.Run
		for mirror := range c.mirrors() {
			s, k := c.place(off, mirror)
			x = fsmap.Run{Len: min(k, n, c.length-off), Kind: mapfile.Data, Off: s.off, Dev: s.dev}
			if m.present(s, x.Len) {
				break
			}
			x = fsmap.Run{Len: x.Len, Kind: mapfile.Missing}
		}
		if x.Kind == mapfile.Missing {
			x = m.rebuild(c, off, x.Len)
		}
		if err := add(x); err != nil {
			return err
		}
		logical, n = logical+x.Len, n-x.Len
	}
	return nil
}

// rebuild gives n bytes at off of the chunk, within one stripe that is lost, from what else there is of its row; Missing
// where there is not enough, or no parity.
func (m *chunkMap) rebuild(c *chunk, off, n int64) fsmap.Run {
	missing := fsmap.Run{Len: n, Kind: mapfile.Missing}
	if c.typ&(bgRAID5|bgRAID6) == 0 {
		return missing
	}
	num := len(c.stripes)
	data := num - c.parity()
	row := off / c.stripeLen / int64(data)
	lost := int(off / c.stripeLen % int64(data))
	members := make([]stripe, num) // the data stripes, then P, then Q
	var absent []int               // besides the lost one
	for i := range members {
		members[i] = c.stripes[(row+int64(i))%int64(num)]
		members[i].off += row*c.stripeLen + off%c.stripeLen
		if i != lost && !m.present(members[i], n) {
			absent = append(absent, i)
		}
	}
	number := func(i int) int {
		if i < data {
			return i
		}
		return codec.RAID6P - (i - data)
	}
	pack := &fsmap.Pack{Spec: codec.Spec{Codec: codec.XOR, Full: n}}
	switch {
	case len(absent) == 0, len(absent) == 1 && absent[0] == data+1:
		members = members[:data+1] // P is enough
	case len(absent) > 1 || c.typ&bgRAID6 == 0 || data > codec.MaxRAID6:
		return missing
	default:
		pack.Codec = codec.RAID6
	}
	for i, s := range members {
		if i == lost || slices.Contains(absent, i) {
			continue
		}
		pack.Parts = append(pack.Parts, fsmap.Run{Len: n, Kind: mapfile.Data, Off: s.off, Dev: s.dev})
		if pack.Codec == codec.RAID6 {
			pack.Factors = append(pack.Factors, codec.RAID6Factor(lost, number(absent[0]), number(i)))
		}
	}
	return fsmap.Run{Len: n, Kind: mapfile.Packed, Pack: pack}
}
