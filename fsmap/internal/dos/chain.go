package dos

import (
	"fmt"
	"math"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// Chain appends to r where a file lies whose chain starts at cluster start. Bytes from valid on are unwritten. Where
// the chain breaks, ends early or comes back to itself, the rest is missing, and the error says why. Where it meets
// another chain all is given, with an error.
func (h *Heap) Chain(start uint32, valid int64, r *fsmap.Runs) error {
	f := follower{cursor: cursor{h: h}, r: r, valid: valid}
	err := f.follow(start)
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
}

// clusters gives how many clusters n bytes take.
func (f *follower) clusters(n int64) int64 {
	c := n >> f.h.Shift
	if n&(f.h.Cluster()-1) != 0 {
		c++
	}
	return c
}

// follow appends the chain, up to the size of the file.
func (f *follower) follow(start uint32) error {
	total := f.clusters(f.r.Size())
	if total > 0 && f.h.Linked.Has(start) {
		f.cross(start)
	}
	need := total
	// How many clusters come before one comes a second time: not looked for as long as their numbers only grow.
	once := int64(-1)
	for first, done := start, int64(0); done < need; {
		if !f.h.Valid(first) {
			return ondisk.Corrupt("directory entry", "first cluster", -1, first)
		}
		n, next := int64(1), uint32(0)
		var err error
		for done+n < need {
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
		last := first + uint32(n-1)
		done += n
		if done < need && err == nil && next != 0 && next <= last && once < 0 {
			once = f.once(start)
			need = min(need, once)
		}
		switch {
		case done == once && done < total:
			return ondisk.Corrupt("cluster chain", fmt.Sprintf("loop after %d clusters from cluster", once), -1, start)
		case done >= need:
			return nil
		case err != nil:
			return err
		case next == 0:
			return ondisk.Corrupt("cluster chain", fmt.Sprintf("end after %d of %d bytes, at cluster", f.r.Next(), f.r.Size()), -1, last)
		}
		first = next
	}
	return nil
}

// once gives how many clusters of the chain come before one that comes a second time: Brent's cycle finding, over
// the steps backwards, of which a loop holds one at least.
func (f *follower) once(start uint32) int64 {
	var mark uint32
	steps, until := int64(0), int64(0)
	for n := start; ; {
		next, err := f.next(n)
		if err != nil || next == 0 {
			return math.MaxInt64
		}
		if next <= n {
			if next == mark {
				return f.lead(start, mark)
			}
			if steps == until {
				mark, steps, until = next, 0, 2*until+1
			}
			steps++
		}
		n = next
	}
}

// lead gives how many clusters come before the first that comes a second time. The chain from start runs into the
// loop that on lies on.
func (f *follower) lead(start, on uint32) int64 {
	step := func(n uint32) uint32 {
		n, _ = f.next(n) // it was read before
		return n
	}
	length := int64(1)
	for n := step(on); n != on && n != 0; n = step(n) {
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
