package partition

import (
	"slices"
	"sort"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
)

// Volumes are composed of mappers: each tells, for a position in itself, which extent of what lies below holds it.

// nothing is a stretch of one kind: Zero, Missing, Encrypted.
type nothing struct {
	kind formats.Kind
	n    int64
}

func (z nothing) Size() int64 { return z.n }

func (z nothing) ExtentAt(off, max int64) (formats.Extent, error) {
	return formats.Extent{Len: min(max, z.n-off), Kind: z.kind, Disk: formats.NoPos}, nil
}

// joined is mappers one behind the other.
type joined struct {
	ends  []int64 // where each ends
	parts []formats.Mapper
}

func (j *joined) add(m formats.Mapper) {
	if m.Size() > 0 {
		j.parts = append(j.parts, m)
		j.ends = append(j.ends, j.Size()+m.Size())
	}
}

func (j *joined) Size() int64 {
	if len(j.ends) == 0 {
		return 0
	}
	return j.ends[len(j.ends)-1]
}

func (j *joined) ExtentAt(off, max int64) (formats.Extent, error) {
	i := sort.Search(len(j.ends), func(i int) bool { return j.ends[i] > off })
	start := int64(0)
	if i > 0 {
		start = j.ends[i-1]
	}
	return j.parts[i].ExtentAt(off-start, min(max, j.ends[i]-off))
}

// section is the n bytes of m from off; what lies past its end is missing.
func section(m formats.Mapper, off, n int64) formats.Mapper {
	if off == 0 && n == m.Size() {
		return m
	}
	inside := min(max(m.Size()-off, 0), n)
	if inside == n {
		return part{m, off, n}
	}
	j := &joined{}
	j.add(part{m, off, inside})
	j.add(nothing{formats.Missing, n - inside})
	return j
}

type part struct {
	m      formats.Mapper
	off, n int64
}

func (p part) Size() int64 { return p.n }

func (p part) ExtentAt(off, max int64) (formats.Extent, error) {
	return p.m.ExtentAt(p.off+off, min(max, p.n-off))
}

// without makes ranges of m missing: they are known to hold stale bytes. They are sorted and lie apart.
func without(m formats.Mapper, ranges [][2]int64) formats.Mapper {
	j := &joined{}
	for _, r := range ranges {
		start, end := max(r[0], j.Size()), min(r[1], m.Size())
		if start >= end {
			continue
		}
		j.add(section(m, j.Size(), start-j.Size()))
		j.add(nothing{formats.Missing, end - start})
	}
	if len(j.parts) == 0 {
		return m
	}
	j.add(section(m, j.Size(), m.Size()-j.Size()))
	return j
}

// mirror is the same bytes several times: the first copy that can be had is taken.
type mirror struct {
	legs []formats.Mapper
	n    int64
}

func (m mirror) Size() int64 { return m.n }

func (m mirror) ExtentAt(off, max int64) (formats.Extent, error) {
	return firstOf(max, len(m.legs), func(i int) (formats.Mapper, int64) { return m.legs[i], off })
}

// firstOf asks n copies in turn, and gives the first extent that is not missing. Where all are, it is as long as the
// shortest of them.
func firstOf(max int64, n int, copy func(i int) (m formats.Mapper, off int64)) (formats.Extent, error) {
	e := formats.Extent{Len: max, Kind: formats.Missing, Disk: formats.NoPos}
	var failed error
	for i := range n {
		m, off := copy(i)
		if off >= m.Size() {
			continue
		}
		x, err := m.ExtentAt(off, e.Len)
		if err == nil && x.Kind != formats.Missing {
			return x, nil
		}
		if err != nil && failed == nil {
			failed = err
		}
		e.Len = min(e.Len, x.Len)
	}
	return e, failed
}

// striped spreads chunks over legs in turn.
type striped struct {
	legs  []formats.Mapper
	chunk int64
	n     int64
}

func (s striped) Size() int64 { return s.n }

func (s striped) ExtentAt(off, max int64) (formats.Extent, error) {
	c, in := off/s.chunk, off%s.chunk
	k := int64(len(s.legs))
	return at0(s.legs[c%k], c/k*s.chunk+in, min(max, s.chunk-in, s.n-off))
}

// at0 asks m, and takes what lies past its end for missing.
func at0(m formats.Mapper, off, max int64) (formats.Extent, error) {
	if off >= m.Size() {
		return formats.Extent{Len: max, Kind: formats.Missing, Disk: formats.NoPos}, nil
	}
	return m.ExtentAt(off, min(max, m.Size()-off))
}

// packWindow bounds one packed extent of a volume, in bytes, and its borders lie at multiples of it: 64 KiB keeps maps
// of encrypted disks short, and what a reader decodes for one small file little. Within a window an extent is as long as was
// asked for, so that small reads decode only what they need.
const packWindow = 64 << 10

// gather collects the extents of m from off as parts of n bytes.
func gather(m formats.Mapper, off, n int64) ([]formats.Extent, error) {
	var parts []formats.Extent
	for n > 0 {
		e, err := at0(m, off, n)
		if err != nil {
			return nil, err
		}
		parts = append(parts, e)
		off, n = off+e.Len, n-e.Len
	}
	return parts, nil
}

// combined is the bytes at off of a lost member of a stripe: the others of it combined, each with its factor (nil: with
// XOR). It is as long as the shortest extent of these; missing where one of them is missing too.
func combined(others []formats.Mapper, factors []byte, off, max int64) (formats.Extent, error) {
	n := min(max, packWindow-off%packWindow)
	for _, m := range others {
		e, err := at0(m, off, n)
		n = min(n, e.Len)
		if err != nil || e.Kind == formats.Missing || e.Kind == formats.Encrypted {
			return formats.Extent{Len: n, Kind: formats.Missing, Disk: formats.NoPos}, err
		}
	}
	var parts []formats.Extent
	spec := codec.Spec{Codec: codec.XOR, Full: n}
	for i, m := range others {
		e, err := m.ExtentAt(off, n)
		if err != nil || e.Len != n {
			return formats.Extent{Len: n, Kind: formats.Missing, Disk: formats.NoPos}, err
		}
		if e.Kind == formats.Zero {
			continue
		}
		parts = append(parts, e)
		if factors != nil {
			spec.Codec, spec.Factors = codec.RAID6, append(spec.Factors, factors[i])
		}
	}
	switch {
	case len(parts) == 0:
		return formats.Extent{Len: n, Kind: formats.Zero, Disk: formats.NoPos}, nil
	case len(parts) == 1 && factors == nil:
		return parts[0], nil // the rest are zeros
	}
	return formats.Extent{
		Len: n, Kind: formats.Packed, Disk: formats.NoPos, Image: parts[0].Image,
		Pack: &formats.Pack{Spec: spec, Parts: parts},
	}, nil
}

// parity is RAID 4, 5 and 6.
type parity struct {
	legs   []formats.Mapper // a lost one is all missing
	chunk  int64
	place  func(stripe int64, k int) (data, p, q int) // see parityLayout
	parity int                                        // members a stripe can lose: 1 or 2
	n      int64
	// ddf says that Q numbers all members in order, its own place and P's too, and not the data from behind Q on.
	ddf bool
}

func (r *parity) Size() int64 { return r.n }

func (r *parity) ExtentAt(off, max int64) (formats.Extent, error) {
	c, in := off/r.chunk, off%r.chunk
	width := int64(len(r.legs) - r.parity)
	stripe := c / width
	d, p, q := r.place(stripe, int(c%width))
	at := stripe*r.chunk + in
	e, err := at0(r.legs[d], at, min(max, r.chunk-in, r.n-off))
	if err == nil && e.Kind != formats.Missing {
		return e, nil
	}
	others := make([]formats.Mapper, 0, len(r.legs))
	for i, m := range r.legs {
		if i != d && i != q {
			others = append(others, m)
		}
	}
	e, err = combined(others, nil, at, e.Len)
	if e.Kind != formats.Missing || q < 0 || len(r.legs) > codec.MaxRAID6 {
		return e, err
	}
	return r.withQ(d, p, q, at, e.Len)
}

// withQ is the bytes at off of member d, whose stripe has lost one more member.
func (r *parity) withQ(d, p, q int, off, max int64) (formats.Extent, error) {
	other, n := -1, max
	for i, m := range r.legs {
		if i == d {
			continue
		}
		e, err := at0(m, off, n)
		n = min(n, e.Len)
		if err == nil && e.Kind != formats.Missing && e.Kind != formats.Encrypted {
			continue
		}
		if other >= 0 || i == q {
			return formats.Extent{Len: n, Kind: formats.Missing, Disk: formats.NoPos}, err
		}
		other = i
	}
	if other < 0 {
		return formats.Extent{Len: n, Kind: formats.Missing, Disk: formats.NoPos}, nil
	}
	number := func(i int) int {
		switch k := len(r.legs); {
		case i == p:
			return codec.RAID6P
		case i == q:
			return codec.RAID6Q
		case r.ddf:
			return i
		case (p-q-1+k)%k < (i-q-1+k)%k:
			return (i-q-1+k)%k - 1
		default:
			return (i - q - 1 + k) % k
		}
	}
	var rest []formats.Mapper
	var factors []byte
	for i, m := range r.legs {
		if i != d && i != other {
			rest, factors = append(rest, m), append(factors, codec.RAID6Factor(number(d), number(other), number(i)))
		}
	}
	return combined(rest, factors, off, n)
}

// ddfQ tells whether a layout of level 6 is one of DDF's.
func ddfQ(layout int) bool { return layout >= 8 && layout <= 10 }

// parityLayout gives the function that says, for a stripe and the number of a data chunk in it, on which member that
// chunk lies, and where P and Q do (-1: there is no Q). The numbers are the kernel's (drivers/md/raid5.h).
func parityLayout(level, layout, members int) (func(stripe int64, k int) (data, p, q int), error) {
	n := members
	mod := func(s int64, m int) int { return int(s % int64(m)) }
	// skip places data in order, leaving out the parity at p and, for level 6, at p+1 (which wraps).
	skip5 := func(p, k int) (int, int, int) {
		if k >= p {
			k++
		}
		return k, p, -1
	}
	skip6 := func(p, k int) (int, int, int) {
		switch {
		case p == n-1:
			return k + 1, p, 0
		case k >= p:
			k += 2
		}
		return k, p, p + 1
	}
	switch {
	case level == 4 || level == 5 && layout == 5:
		return func(_ int64, k int) (int, int, int) { return k, n - 1, -1 }, nil
	case level == 5:
		switch layout {
		case 0: // left asymmetric
			return func(s int64, k int) (int, int, int) { return skip5(n-1-mod(s, n), k) }, nil
		case 1: // right asymmetric
			return func(s int64, k int) (int, int, int) { return skip5(mod(s, n), k) }, nil
		case 2: // left symmetric
			return func(s int64, k int) (int, int, int) { p := n - 1 - mod(s, n); return (p + 1 + k) % n, p, -1 }, nil
		case 3: // right symmetric
			return func(s int64, k int) (int, int, int) { p := mod(s, n); return (p + 1 + k) % n, p, -1 }, nil
		case 4: // parity first
			return func(_ int64, k int) (int, int, int) { return k + 1, 0, -1 }, nil
		}
	case level == 6 && layout >= 16: // as level 5 on all members but the last, which holds Q
		if layout == 20 {
			return func(_ int64, k int) (int, int, int) { return k + 1, 0, n - 1 }, nil
		}
		if layout <= 19 {
			five, err := parityLayout(5, layout-16, n-1)
			return func(s int64, k int) (int, int, int) { d, p, _ := five(s, k); return d, p, n - 1 }, err
		}
	case level == 6:
		switch layout {
		case 0:
			return func(s int64, k int) (int, int, int) { return skip6(n-1-mod(s, n), k) }, nil
		case 1, 8:
			return func(s int64, k int) (int, int, int) { return skip6(mod(s, n), k) }, nil
		case 2:
			return func(s int64, k int) (int, int, int) { p := n - 1 - mod(s, n); return (p + 2 + k) % n, p, (p + 1) % n }, nil
		case 3:
			return func(s int64, k int) (int, int, int) { p := mod(s, n); return (p + 2 + k) % n, p, (p + 1) % n }, nil
		case 4:
			return func(_ int64, k int) (int, int, int) { return k + 2, 0, 1 }, nil
		case 5:
			return func(_ int64, k int) (int, int, int) { return k, n - 2, n - 1 }, nil
		case 9:
			return func(s int64, k int) (int, int, int) { return skip6(n-1-mod(s+1, n), k) }, nil
		case 10:
			return func(s int64, k int) (int, int, int) {
				p := n - 1 - mod(s, n)
				return (p + 1 + k) % n, p, (p + n - 1) % n
			}, nil
		}
	}
	return nil, ondisk.Unsupported("raid", "layout", -1, layout)
}

// raid10 keeps each chunk on several members: near copies side by side, far copies a stride further down.
type raid10 struct {
	legs      []formats.Mapper
	chunk     int64
	near, far int
	offset    bool // far copies follow at once, a chunk further
	set       int  // members among which the far copies of one chunk stay
	stride    int64
	n         int64
}

func (r *raid10) Size() int64 { return r.n }

func (r *raid10) ExtentAt(off, max int64) (formats.Extent, error) {
	c, in := off/r.chunk*int64(r.near), off%r.chunk
	k := int64(len(r.legs))
	stripe, dev := c/k, int(c%k)
	if r.offset {
		stripe *= int64(r.far)
	}
	return firstOf(min(max, r.chunk-in, r.n-off), r.near*r.far, func(i int) (formats.Mapper, int64) {
		near, far := i%r.near, i/r.near
		d, at := dev+near, stripe*r.chunk+in
		if d >= len(r.legs) {
			d, at = d-len(r.legs), at+r.chunk
		}
		for range far {
			d, at = r.farCopy(d), at+r.stride
		}
		return r.legs[d], at
	})
}

// farCopy gives the member that holds the next far copy of what member d holds. Where sets don't divide the members,
// the last set takes the rest in.
func (r *raid10) farCopy(d int) int {
	first := d / r.set * r.set
	last := (len(r.legs)/r.set - 1) * r.set
	if d += r.near; len(r.legs)%r.set != 0 && d > last {
		return last + (d-last)%(len(r.legs)-last)
	}
	return first + d%r.set
}

// newRAID10 takes a layout word as the kernel has it, and the sectors that each member offers.
func newRAID10(legs []formats.Mapper, layout int, chunk, each int64) (*raid10, error) {
	r := &raid10{legs: legs, chunk: chunk, near: layout & 0xff, far: layout >> 8 & 0xff, offset: layout>>16&1 != 0, set: len(legs)}
	if r.near < 1 || r.far < 1 || r.near*r.far > len(legs) || layout>>19 != 0 {
		return nil, ondisk.Unsupported("raid10", "layout", -1, layout)
	}
	switch layout >> 17 {
	case 1:
		r.set = len(legs) / r.far
	case 2:
		r.set = r.near * r.far
	case 3:
		return nil, ondisk.Unsupported("raid10", "layout", -1, layout)
	}
	k := int64(len(legs))
	chunks := each / chunk / int64(r.far) * k / int64(r.near)
	used := (chunks*int64(r.near*r.far) + k - 1) / k
	r.n = chunks * chunk
	r.stride = used / int64(r.far) * chunk
	if r.offset {
		r.stride = chunk
	}
	return r, nil
}

// crypt decrypts a LUKS payload.
type crypt struct {
	m      formats.Mapper
	sector int64
	iv     uint64 // of the first sector, in units of 512 bytes
	key    string
}

func (c *crypt) Size() int64 { return c.m.Size() }

func (c *crypt) ExtentAt(off, max int64) (formats.Extent, error) {
	start := off / c.sector * c.sector
	end := min((off+max+c.sector-1)/c.sector*c.sector, (off/packWindow+1)*packWindow, c.Size())
	parts, err := gather(c.m, start, end-start)
	n := min(max, end-off)
	if err != nil {
		return formats.Extent{Len: n, Kind: formats.Missing, Disk: formats.NoPos}, err
	}
	// What can't be had decides for the sectors that it lies in; the rest before it is decoded.
	at := start
	for _, p := range parts {
		if p.Kind == formats.Missing || p.Kind == formats.Encrypted {
			bad := at / c.sector * c.sector
			if bad > off {
				return c.ExtentAt(off, bad-off)
			}
			last := (at + p.Len + c.sector - 1) / c.sector * c.sector
			return formats.Extent{Len: min(n, last-off), Kind: p.Kind, Disk: formats.NoPos}, nil
		}
		at += p.Len
	}
	return formats.Extent{
		Len: n, Kind: formats.Packed, Disk: formats.NoPos, Image: parts[0].Image, Skip: off - start,
		Pack: &formats.Pack{
			Spec:  codec.Spec{Codec: codec.AESXTS, Full: end - start, Sector: int(c.sector), IV: c.iv + uint64(start/512), Key: c.key},
			Parts: slices.Clip(parts),
		},
	}, nil
}
