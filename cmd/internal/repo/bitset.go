package repo

import "math/bits"

// bitset is a set of units of a disk.
type bitset struct {
	bits []uint64
	n    int64 // of units that there are
}

func newBitset(n int64) *bitset { return &bitset{make([]uint64, (n+63)/64), n} }

// set puts the units from a up to b in or out.
func (s *bitset) set(a, b int64, in bool) {
	for a < b {
		k := min(b-a, 64-a%64)
		mask := ^uint64(0) >> (64 - k) << (a % 64)
		if in {
			s.bits[a/64] |= mask
		} else {
			s.bits[a/64] &^= mask
		}
		a += k
	}
}

// run tells whether unit a is in the set, and where the units end that are like it.
func (s *bitset) run(a int64) (in bool, end int64) {
	in = s.bits[a/64]>>(a%64)&1 != 0
	var flip uint64
	if in {
		flip = ^uint64(0)
	}
	// Bits that differ are ones now.
	w := (s.bits[a/64] ^ flip) >> (a % 64)
	if w != 0 {
		return in, min(a+int64(bits.TrailingZeros64(w)), s.n)
	}
	for i := a/64 + 1; i < int64(len(s.bits)); i++ {
		if w := s.bits[i] ^ flip; w != 0 {
			return in, min(i*64+int64(bits.TrailingZeros64(w)), s.n)
		}
	}
	return in, s.n
}

// add puts all of t in, which has as many units.
func (s *bitset) add(t *bitset) {
	for i, w := range t.bits {
		s.bits[i] |= w
	}
}

// take puts all of t out.
func (s *bitset) take(t *bitset) {
	for i, w := range t.bits {
		s.bits[i] &^= w
	}
}

// ranges is a set of a disk's bytes, by units, to the nearest unit that is safe.
type ranges struct {
	*bitset
	unit, size int64
}

// maxUnits bounds the memory of a set of ranges: 16 MiB, which is units of 4 KiB up to 512 GiB.
const maxUnits = 1 << 27

func newRanges(size, unit int64) *ranges {
	for (size+unit-1)/unit > maxUnits {
		unit *= 2
	}
	return &ranges{newBitset((size + unit - 1) / unit), unit, size}
}

// clip keeps a stretch within the disk.
func (r *ranges) clip(off, n int64) (a, b int64) {
	off = min(max(off, 0), r.size)
	return off, off + min(max(n, 0), r.size-off)
}

// inner puts the units in that lie wholly within a stretch. The disk's end ends a unit.
func (r *ranges) inner(off, n int64) {
	a, b := r.clip(off, n)
	end := b / r.unit
	if b == r.size {
		end = r.n
	}
	if first := (a + r.unit - 1) / r.unit; first < end {
		r.set(first, end, true)
	}
}

// outer puts the units in, or out, that a stretch touches.
func (r *ranges) outer(off, n int64, in bool) {
	if a, b := r.clip(off, n); a < b {
		r.set(a/r.unit, (b+r.unit-1)/r.unit, in)
	}
}

// clusters tells whether all bytes of cluster i are in the set, and of how many clusters from it on, at most limit,
// the same is true.
func (r *ranges) clusters(i, cluster, limit int64) (in bool, n int64) {
	off := i * cluster
	whole, end := r.run(off / r.unit)
	end = min(end*r.unit, r.size)
	if end == r.size { // the last cluster may be cut
		end = (r.size + cluster - 1) / cluster * cluster
	}
	n = (end - off) / cluster
	if n < 1 {
		return false, 1
	}
	return whole, min(n, limit)
}
