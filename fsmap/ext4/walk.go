package ext4

import (
	"errors"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// maxRuns bounds a file's run list: a million pieces take 72 MiB, and a file has to be 4 GiB of single blocks to have
// as many.
const maxRuns = 1 << 20

// walk collects the runs of one inode from its extents or its block map.
type walk struct {
	f  *fsys
	in *inode
	r  *fsmap.Runs
	// place says that blocks which live in the journal are to be given there. Reading metadata needs the blocks' own
	// places, for the overlay is below it.
	place bool
	left  uint64   // blocks that the inode may still have: no more than the file system
	end   uint64   // block of the file behind the last that is wanted
	next  uint64   // block of the file behind the last that was seen
	patch []extent // what a fast commit puts in place of the extents, in order
	err   error    // the first thing that is wrong
	more  int      // and how many more
}

// extent is a stretch of a file in blocks.
type extent struct {
	at, n, block uint64
	kind         mapfile.Kind // Data, Unwritten or Hole
}

// errRuns ends a walk that can't be gone on with.
var errRuns = errors.New("too many pieces")

// Runs implements fsmap.FS.
func (f *fsys) Runs(n *fsmap.Node, _ *fsmap.Stream, r *fsmap.Runs) error {
	in := n.Priv.(*inode)
	if n.Encrypted {
		r.Fill(mapfile.Encrypted)
		return nil
	}
	if in.inline() {
		return f.inlineRuns(in, r)
	}
	return f.runs(in, r, true)
}

// runs appends the runs of an inode that has blocks. With an error the list is whole nevertheless: what is not known
// is missing in it.
func (f *fsys) runs(in *inode, r *fsmap.Runs, place bool) error {
	w := &in.walk
	*w = walk{f: f, in: in, r: r, place: place && f.over != nil, left: f.mostBlocks(),
		end: (uint64(r.Size()) + uint64(f.blockSize) - 1) >> f.shift, patch: f.fast.patch(in.ino)}
	if in.flags&flExtents != 0 {
		w.node(in.raw[iBlock:iBlock+iBlockLen], in.off+iBlock, -1, 0, ^uint64(0))
	} else {
		w.blockMap()
	}
	w.flush(w.end)
	if w.err == nil {
		return nil
	}
	r.Fill(mapfile.Hole)
	if w.more > 0 {
		return fmt.Errorf("%w (and %d more)", w.err, w.more)
	}
	return w.err
}

// mostBlocks bounds the blocks of one inode: no more than the file system has, unless files share them.
func (f *fsys) mostBlocks() uint64 {
	if f.hasRO(roCompatSharedBlocks) {
		return 1 << 32
	}
	return f.blocks
}

// doubt notes an error that loses nothing.
func (w *walk) doubt(err error) {
	if w.err == nil {
		w.err = err
	} else {
		w.more++
	}
}

// lost notes an error that loses the blocks of the file from at up to end.
func (w *walk) lost(at, end uint64, err error) {
	w.doubt(err)
	w.emit(extent{at: at, n: min(end, w.end) - min(at, end, w.end), kind: mapfile.Missing})
}

// stopped reports whether nothing more is wanted.
func (w *walk) stopped(at uint64) bool { return at >= w.end || errors.Is(w.err, errRuns) }

// emit adds a stretch that lies behind all those before it, but for where a fast commit says otherwise.
func (w *walk) emit(x extent) {
	if x.at < w.next {
		d := min(w.next-x.at, x.n)
		x.at, x.block, x.n = x.at+d, x.block+d, x.n-d
	}
	for x.n > 0 && len(w.patch) > 0 && w.patch[0].at < x.at+x.n {
		p := w.patch[0]
		if p.at > x.at {
			w.push(extent{at: x.at, n: p.at - x.at, block: x.block, kind: x.kind})
		}
		w.patch = w.patch[1:]
		w.push(p)
		if d := p.at + p.n; d > x.at {
			d = min(d-x.at, x.n)
			x.at, x.block, x.n = x.at+d, x.block+d, x.n-d
		}
	}
	if x.n > 0 {
		w.push(x)
	}
}

// flush adds what a fast commit put behind the last extent.
func (w *walk) flush(end uint64) {
	for len(w.patch) > 0 && w.patch[0].at < end {
		p := w.patch[0]
		w.patch = w.patch[1:]
		w.push(p)
	}
}

// push appends to the run list.
func (w *walk) push(x extent) {
	w.next = x.at + x.n
	if w.stopped(x.at) || x.kind == mapfile.Hole {
		return
	}
	f := w.f
	n := min(x.n, w.end-x.at)
	at := int64(x.at << f.shift)
	length := int64(n << f.shift)
	if x.kind == mapfile.Missing {
		w.append(fsmap.Run{At: at, Len: length, Kind: mapfile.Missing})
		return
	}
	if x.block <= f.first || x.block >= f.blocks || x.n > f.blocks-x.block {
		w.doubt(ondisk.Corrupt(w.in.what(), fmt.Sprintf("place of %d blocks at block %d", x.n, x.at), -1, x.block))
		w.append(fsmap.Run{At: at, Len: length, Kind: mapfile.Missing})
		return
	}
	if n > w.left {
		w.err = fmt.Errorf("%w: %w", errRuns, ondisk.Corrupt(w.in.what(), "more blocks than the file system has:", -1, f.blocks))
		w.append(fsmap.Run{At: at, Len: w.r.Size() - at, Kind: mapfile.Missing})
		return
	}
	w.left -= n
	off := int64(x.block << f.shift)
	if !ondisk.Within(off, length, f.size) {
		have := max(min(f.size-off, length), 0)
		w.data(at, have, off, x.kind)
		w.doubt(ondisk.Truncated(w.in.what(), fmt.Sprintf("volume ends before its block %d", x.at), off, nil))
		w.append(fsmap.Run{At: at + have, Len: length - have, Kind: mapfile.Missing})
		return
	}
	w.data(at, length, off, x.kind)
}

func (w *walk) data(at, length, off int64, kind mapfile.Kind) {
	if kind == mapfile.Unwritten || !w.place {
		if length > 0 {
			w.append(fsmap.Run{At: at, Len: length, Kind: kind, Off: off})
		}
		return
	}
	w.f.over.place(at, length, off, w.append)
}

func (w *walk) append(x fsmap.Run) {
	if x.At >= w.r.Size() || x.Len <= 0 {
		return
	}
	if len(w.r.List) >= maxRuns {
		w.err = fmt.Errorf("%w: %w", errRuns, ondisk.Unsupported(w.in.what(), "pieces, of which a list holds at most", -1, maxRuns))
		x = fsmap.Run{At: w.r.Next(), Len: w.r.Size() - w.r.Next(), Kind: mapfile.Missing}
		if x.Len <= 0 {
			return
		}
	}
	if err := w.r.Append(x); err != nil {
		w.doubt(err)
	}
}

// node goes through a node of the extent tree ("Extent Tree") that lies at off and tells of the blocks of the file from
// lo up to hi. The root has depth -1, for it says itself how deep the tree is.
func (w *walk) node(b []byte, off int64, depth int, lo, hi uint64) {
	f := w.f
	count, room, deep := int(le.Uint16(b[ehEntries:])), int(le.Uint16(b[ehMax:])), int(le.Uint16(b[ehDepth:]))
	bad := func(field string, at int64, got any) {
		w.lost(lo, hi, ondisk.Corrupt("extent tree of "+w.in.what(), field, off+at, got))
	}
	switch {
	case le.Uint16(b) != exMagic:
		bad("magic", 0, fmt.Sprintf("%#04x", le.Uint16(b)))
		return
	case room > len(b)/exLen-1 || count > room || count == 0 && depth >= 0 && deep > 0:
		bad("entries", ehEntries, fmt.Sprintf("%d of %d", count, room))
		return
	case deep > exMaxDepth || depth >= 0 && deep != depth:
		bad("depth", ehDepth, deep)
		return
	}
	if depth >= 0 && f.csum {
		tail := exLen * (room + 1)
		if tail+4 > len(b) {
			bad("entries", ehMax, room)
			return
		}
		if got := le.Uint32(b[tail:]); got != crc32c(w.in.seed, b[:tail]) {
			w.doubt(ondisk.Corrupt("extent tree of "+w.in.what(), "checksum", off+int64(tail), fmt.Sprintf("%#08x", got)))
		}
	}
	at := lo
	for i := range count {
		e := b[exLen*(i+1):][:exLen]
		first := uint64(le.Uint32(e))
		if w.stopped(first) {
			return
		}
		if first < at || first >= hi {
			w.lost(at, hi, ondisk.Corrupt("extent tree of "+w.in.what(), "order of entries: block", off+int64(exLen*(i+1)), first))
			return
		}
		if deep == 0 {
			x := leaf(e)
			if x.n == 0 || x.n > hi-first {
				w.lost(at, hi, ondisk.Corrupt("extent tree of "+w.in.what(), "length", off+int64(exLen*(i+1)+eeLen), x.n))
				return
			}
			w.emit(x)
			at = first + x.n
			continue
		}
		end := hi
		if i+1 < count {
			end = uint64(le.Uint32(b[exLen*(i+2):]))
			if end <= first || end > hi {
				w.lost(first, hi, ondisk.Corrupt("extent tree of "+w.in.what(), "order of entries: block", off+int64(exLen*(i+2)), end))
				return
			}
		}
		child := uint64(le.Uint32(e[eiLeafLo:])) | uint64(le.Uint16(e[eiLeafHi:]))<<32
		if p, pos, err := w.block(child); err != nil {
			w.lost(first, end, err)
		} else {
			w.node(p, pos, deep-1, first, end)
		}
		at = end
	}
}

// leaf decodes an entry of a leaf.
func leaf(e []byte) extent {
	x := extent{at: uint64(le.Uint32(e)), n: uint64(le.Uint16(e[eeLen:])), kind: mapfile.Data,
		block: uint64(le.Uint16(e[eeStartHi:]))<<32 | uint64(le.Uint32(e[eeStartLo:]))}
	if x.n > exMaxInit {
		x.n, x.kind = x.n-exMaxInit, mapfile.Unwritten
	}
	return x
}

// block reads a block of the tree or the map.
func (w *walk) block(n uint64) ([]byte, int64, error) {
	f := w.f
	if n <= f.first || n >= f.blocks {
		return nil, 0, ondisk.Corrupt(w.in.what(), "number of a block of its map", -1, n)
	}
	if w.left == 0 {
		return nil, 0, fmt.Errorf("%w: %w", errRuns, ondisk.Corrupt(w.in.what(), "more blocks than the file system has:", -1, f.blocks))
	}
	w.left--
	off := int64(n << f.shift)
	b, err := f.block(n)
	return b, off, err
}

// blockMap goes through i_block as direct, indirect, double and triple indirect blocks ("Direct/Indirect Block
// Addressing").
func (w *walk) blockMap() {
	per := uint64(w.f.blockSize / 4)
	at := w.table(w.in.raw[iBlock:iBlock+4*nDirect], 0, 0)
	span := uint64(1)
	for level := range 3 {
		span *= per
		if w.stopped(at) {
			return
		}
		w.indirect(uint64(le.Uint32(w.in.raw[iBlock+4*(nDirect+level):])), level, at, span)
		at += span
	}
}

// indirect goes through a block that tells of span blocks of the file from at, by way of level more such blocks.
func (w *walk) indirect(n uint64, level int, at, span uint64) {
	if n == 0 {
		return
	}
	if b, _, err := w.block(n); err != nil {
		w.lost(at, at+span, err)
	} else {
		w.table(b, level, at)
	}
}

// table goes through block numbers. It gives the block of the file behind the last.
func (w *walk) table(b []byte, level int, at uint64) uint64 {
	if level == 0 {
		var x extent // the stretch that is being gathered
		for ; len(b) >= 4; b, at = b[4:], at+1 {
			n := uint64(le.Uint32(b))
			if n != 0 && x.n > 0 && n == x.block+x.n {
				x.n++
				continue
			}
			if x.n > 0 {
				w.emit(x)
				x.n = 0
			}
			if n != 0 {
				if w.stopped(at) {
					return at
				}
				x = extent{at: at, n: 1, block: n, kind: mapfile.Data}
			}
		}
		if x.n > 0 {
			w.emit(x)
		}
		return at
	}
	span := uint64(1)
	for range level {
		span *= uint64(w.f.blockSize / 4)
	}
	for ; len(b) >= 4 && !w.stopped(at); b, at = b[4:], at+span {
		w.indirect(uint64(le.Uint32(b)), level-1, at, span)
	}
	return at
}
