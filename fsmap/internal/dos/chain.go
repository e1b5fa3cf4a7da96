package dos

import (
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// maxFragments bounds the stretches of one file, and so the memory of its run list: no file of 4 GiB in clusters of
// 4 KiB can have more.
const maxFragments = 1 << 20

// Chain appends to r where a file lies whose chain starts at cluster start. Bytes from valid on are unwritten. Where
// the chain breaks, ends early or comes back to itself, the rest is missing, and the error says why. Where it meets
// another chain all is given, with an error.
func (h *Heap) Chain(start uint32, valid int64, r *fsmap.Runs) error {
	f := follower{cursor: cursor{h: h}, r: r, valid: valid}
	need := f.clusters(r.Size())
	err := f.follow(start, need)
	if err == nil && f.inLoop() {
		if once := f.lead(start); once < need {
			r.Reset(r.Size())
			f = follower{cursor: f.cursor, r: r, valid: valid}
			if err := f.follow(start, once); err != nil {
				return err
			}
			err = ondisk.Corrupt("cluster chain", fmt.Sprintf("loop after %d clusters from cluster", once), -1, start)
		}
	}
	if err == nil {
		err = f.doubt
	}
	r.Fill(mapfile.Missing)
	return err
}

// Contiguous appends to r where a file lies whose clusters follow one another from start, without the table. Bytes
// from valid on are unwritten.
func (h *Heap) Contiguous(start uint32, valid int64, r *fsmap.Runs) error {
	f := follower{cursor: cursor{h: h}, r: r, valid: valid}
	n := f.clusters(r.Size())
	if n == 0 {
		return nil
	}
	var err error
	if !h.Valid(start) {
		err = ondisk.Corrupt("directory entry", "first cluster", -1, start)
	} else {
		if room := int64(h.Last-start) + 1; n > room {
			n, err = room, ondisk.Corrupt("directory entry", fmt.Sprintf("the heap ends after cluster %d, before a file of %d bytes from cluster", h.Last, r.Size()), -1, start)
		}
		if e := f.emit(start, n); e != nil {
			return e
		}
		if err == nil {
			err = f.doubt
		}
	}
	r.Fill(mapfile.Missing)
	return err
}

// follower follows one chain.
type follower struct {
	cursor
	r     *fsmap.Runs
	valid int64
	doubt error // what does not keep the content from being shown
	last  uint32

	// Brent's cycle finding over the steps backwards: a loop holds one at least, an ordinary chain few.
	mark   uint32 // where a step led to
	steps  int64  // since then
	until  int64  // steps until the mark moves
	looped bool
}

// clusters gives how many clusters n bytes take.
func (f *follower) clusters(n int64) int64 {
	c := n >> f.h.Shift
	if n&(f.h.Cluster()-1) != 0 {
		c++
	}
	return c
}

// follow appends the first need clusters of the chain.
func (f *follower) follow(start uint32, need int64) error {
	first := start
	if need > 0 && f.h.Linked.Has(start) {
		f.cross(start)
	}
	for need > 0 {
		if !f.h.Valid(first) {
			return ondisk.Corrupt("directory entry", "first cluster", -1, first)
		}
		n, next := int64(1), uint32(0)
		var err error
		for n < need {
			if next, err = f.next(first + uint32(n-1)); err != nil || next != first+uint32(n) {
				break
			}
			n++
		}
		if e := f.emit(first, n); e != nil {
			return e
		}
		if c, ok := f.h.Merged.First(first, uint32(n)); ok {
			f.cross(c)
		}
		f.last = first + uint32(n-1)
		switch need -= n; {
		case need == 0:
			return nil
		case err != nil:
			return err
		case next == 0:
			return ondisk.Corrupt("cluster chain", fmt.Sprintf("end after %d of %d bytes, at cluster", f.r.Next(), f.r.Size()), -1, f.last)
		case len(f.r.List) >= maxFragments:
			return ondisk.Unsupported("cluster chain", "more fragments than", -1, maxFragments)
		case next <= f.last && f.back(next):
			f.looped = true
			return nil
		}
		first = next
	}
	return nil
}

// back reports whether the chain is in a loop, after a step backwards to cluster n.
func (f *follower) back(n uint32) bool {
	if n == f.mark {
		return true
	}
	if f.steps == f.until {
		f.mark, f.steps, f.until = n, 0, 2*f.until+1
	}
	f.steps++
	return false
}

// inLoop reports whether the chain that was followed up to f.last comes to no end. A file can end before a loop in its
// chain shows.
func (f *follower) inLoop() bool {
	if f.looped || f.mark == 0 { // without a step backwards no cluster came twice
		return f.looped
	}
	for n := f.last; ; {
		next, err := f.next(n)
		if err != nil || next == 0 {
			return false
		}
		if next <= n && f.back(next) {
			return true
		}
		n = next
	}
}

// lead gives how many clusters come before the first that comes a second time. The chain from start runs into the loop
// that f.mark lies on.
func (f *follower) lead(start uint32) int64 {
	step := func(n uint32) uint32 {
		n, _ = f.next(n) // it was read before
		return n
	}
	length := int64(1)
	for n := step(f.mark); n != f.mark && n != 0; n = step(n) {
		length++
	}
	ahead := start
	for range length {
		ahead = step(ahead)
	}
	before := int64(0)
	for n := start; n != ahead && n != 0; n, ahead = step(n), step(ahead) {
		before++
	}
	return before + length
}

func (f *follower) cross(n uint32) {
	if f.doubt == nil {
		f.doubt = ondisk.Corrupt("cluster chain", "cross-linked with another chain at cluster", -1, n)
	}
}

// emit appends n clusters from first on. What lies past the end of the volume is missing.
func (f *follower) emit(first uint32, n int64) error {
	at, pos, size := f.r.Next(), f.h.Pos(first), f.h.Meta.Size()
	end := at + min(n<<f.h.Shift, f.r.Size()-at)
	put := func(kind fsmap.Kind, to int64) error {
		to = min(to, end)
		if to <= at {
			return nil
		}
		err := f.r.Append(fsmap.Run{At: at, Len: to - at, Kind: kind, Off: pos})
		pos += to - at
		at = to
		return err
	}
	held := at + max(min(end-at, size-pos), 0)
	if held < end && f.doubt == nil {
		f.doubt = ondisk.Truncated("volume", fmt.Sprintf("end at byte %#x, before cluster", size), -1, first)
	}
	if err := put(mapfile.Data, min(f.valid, held)); err != nil {
		return err
	}
	if err := put(mapfile.Unwritten, held); err != nil {
		return err
	}
	return put(mapfile.Missing, end)
}
