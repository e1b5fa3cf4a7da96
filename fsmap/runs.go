package fsmap

import (
	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

// Runs is the run list of one file. Its appending methods keep it ordered, gapless, free of overlaps and coalesced,
// and clip it at the file's size; so every list that Build sees is sound whatever the image says.
type Runs struct {
	List []Run
	size int64
	next int64
	// spill, where set, takes a list that has grown long, all but its last run.
	spill func([]Run)
}

// spillAt is how many runs a list holds before it is spilled.
const spillAt = 4096

// Reset empties the list for a file of size bytes.
func (r *Runs) Reset(size int64) {
	r.List, r.size, r.next = r.List[:0], max(size, 0), 0
}

// Size gives the file's size; Next the position behind the last run.
func (r *Runs) Size() int64 { return r.size }

// Next gives the position behind the last run.
func (r *Runs) Next() int64 { return r.next }

// Append adds a run. A gap before it becomes a hole; what lies past the file's size is cut off. A run that starts
// before the end of the one before it is an error that wraps ondisk.ErrCorrupt.
func (r *Runs) Append(x Run) error {
	if x.Len <= 0 || x.At < 0 {
		return ondisk.Corrupt("run list", "length of a run", -1, x.Len)
	}
	if x.At >= r.size {
		return nil
	}
	if x.At < r.next {
		return ondisk.Corrupt("run list", "overlapping run at file position", -1, x.At)
	}
	if x.At > r.next {
		r.push(Run{At: r.next, Len: x.At - r.next, Kind: mapfile.Hole})
	}
	if x.Len > r.size-x.At {
		x.Len = r.size - x.At
		if x.Kind == mapfile.Inline {
			x.Bytes = x.Bytes[:x.Len]
		}
	}
	r.push(x)
	return nil
}

func (r *Runs) push(x Run) {
	r.next = x.At + x.Len
	if n := len(r.List); n > 0 {
		p := &r.List[n-1]
		switch {
		case p.Kind != x.Kind:
		case x.Kind == mapfile.Hole, x.Kind == mapfile.Missing, x.Kind == mapfile.Encrypted && p.Off+p.Len == x.Off && p.Dev == x.Dev,
			(x.Kind == mapfile.Data || x.Kind == mapfile.Unwritten) && p.Off+p.Len == x.Off && p.Dev == x.Dev,
			x.Kind == mapfile.Packed && p.Pack == x.Pack && p.Skip+p.Len == x.Skip:
			p.Len += x.Len
			return
		case x.Kind == mapfile.Inline:
			p.Bytes = append(p.Bytes[:len(p.Bytes):len(p.Bytes)], x.Bytes...)
			p.Len += x.Len
			return
		}
	}
	r.List = append(r.List, x)
	if r.spill != nil && len(r.List) > spillAt {
		last := len(r.List) - 1
		r.spill(r.List[:last])
		r.List = append(r.List[:0], r.List[last])
	}
}

// Data appends n bytes that lie at off of the volume.
func (r *Runs) Data(at, n, off int64) error {
	return r.Append(Run{At: at, Len: n, Kind: mapfile.Data, Off: off})
}

// Unwritten appends n bytes that read as zeros and have blocks at off of the volume.
func (r *Runs) Unwritten(at, n, off int64) error {
	return r.Append(Run{At: at, Len: n, Kind: mapfile.Unwritten, Off: off})
}

// Inline appends bytes that lie verbatim nowhere. They are not copied.
func (r *Runs) Inline(at int64, b []byte) error {
	return r.Append(Run{At: at, Len: int64(len(b)), Kind: mapfile.Inline, Bytes: b})
}

// Packed appends n bytes that start at skip of what p decodes to.
func (r *Runs) Packed(at, n, skip int64, p *Pack) error {
	return r.Append(Run{At: at, Len: n, Kind: mapfile.Packed, Skip: skip, Pack: p})
}

// Fill covers the rest of the file with a run of the given kind, which is Hole, Missing or Encrypted.
func (r *Runs) Fill(k Kind) {
	if r.next < r.size {
		r.push(Run{At: r.next, Len: r.size - r.next, Kind: k})
	}
}
