package xfs

import (
	"errors"
	"fmt"

	"vmkit/formats/ondisk"
)

// extent is a stretch of a fork, in blocks. A lost one says that the map of these blocks can't be read.
type extent struct {
	off, block, n   uint64
	unwritten, lost bool
}

// maxBadBlocks is how many unreadable blocks of one block map are stepped over.
const maxBadBlocks = 16

// extents calls fn for each extent of a fork, in order. What can't be read is given as lost; the first cause is
// returned at the end. An error of fn ends the walk; errStop does so quietly.
func (f *fsys) extents(in *inode, attr bool, fn func(extent) error) error {
	w := forkWalk{f: f, in: in, attr: attr, fn: fn, what: "xfs data fork"}
	format, count, root := in.format, in.nextents, in.dataFork(f)
	if attr {
		w.what = "xfs attribute fork"
		format, count, root = in.aformat, in.anextents, in.attrFork(f)
	} else if p := f.patches[in.ino]; p != nil && p.mapped {
		for _, x := range p.exts {
			if err := fn(x); err != nil {
				return quiet(err)
			}
		}
		return nil
	}
	at := in.off + int64(f.coreLen)
	if attr {
		at += int64(in.forkOff)
	}
	var err error
	switch format {
	case fmtExtents:
		err = w.root(root, count, at)
	case fmtBTree:
		err = w.btree(root, at)
	default:
		err = w.lose(maxFileOff, ondisk.Corrupt(w.what, "format", in.off+diFormat, format))
	}
	switch {
	case err != nil:
		if !errors.Is(err, errStop) {
			return err
		}
	case w.doubt == nil && w.count != count:
		w.doubt = ondisk.Corrupt(w.what, "extents counted, the inode says", in.off, fmt.Sprintf("%d, %d", w.count, count))
	}
	return w.doubt
}

func quiet(err error) error {
	if errors.Is(err, errStop) {
		return nil
	}
	return err
}

type forkWalk struct {
	f     *fsys
	in    *inode
	attr  bool
	fn    func(extent) error
	what  string
	next  uint64 // the block behind the last extent
	count uint64
	bad   int
	doubt error
}

// lose gives the blocks from w.next to hi as lost, because of err.
func (w *forkWalk) lose(hi uint64, err error) error {
	if w.doubt == nil {
		w.doubt = err
	}
	if w.bad++; w.bad > maxBadBlocks {
		hi = maxFileOff
	}
	if hi <= w.next {
		return nil
	}
	x := extent{off: w.next, n: hi - w.next, lost: true}
	w.next = hi
	if err := w.fn(x); err != nil {
		return err
	}
	if w.bad > maxBadBlocks {
		return w.doubt
	}
	return nil
}

// root reads the records that lie in the inode.
func (w *forkWalk) root(b []byte, count uint64, at int64) error {
	if fit := uint64(len(b) / bmbtRecLen); count > fit {
		return w.lose(maxFileOff, ondisk.Corrupt(w.what, "extents in the inode", at, count))
	}
	return w.records(b[:count*bmbtRecLen], at, maxFileOff)
}

// records gives the extents of a leaf, which ends before hi.
func (w *forkWalk) records(b []byte, at int64, hi uint64) error {
	for ; len(b) >= bmbtRecLen; b, at = b[bmbtRecLen:], at+bmbtRecLen {
		l0, l1 := be.Uint64(b), be.Uint64(b[8:])
		x := extent{off: l0 << 1 >> 10, block: l0&(1<<9-1)<<43 | l1>>21, n: l1 & maxExtentLen, unwritten: l0>>63 != 0}
		if x.n == 0 || x.off < w.next || x.off+x.n > hi {
			return w.lose(hi, ondisk.Corrupt(w.what, "extent", at, fmt.Sprintf("%d+%d", x.off, x.n)))
		}
		w.count++
		if w.attr || !w.in.realtime {
			if _, ok := w.f.place(x.block, x.n); !ok {
				err := ondisk.Corrupt(w.what, "extent's blocks", at, fmt.Sprintf("%d+%d", x.block, x.n))
				if w.doubt == nil {
					w.doubt = err
				}
				x.lost = true
			}
		}
		w.next = x.off + x.n
		if err := w.fn(x); err != nil {
			return err
		}
	}
	return nil
}

// btree descends from the root in the inode.
func (w *forkWalk) btree(b []byte, at int64) error {
	if len(b) < bmdrLen {
		return w.lose(maxFileOff, ondisk.Truncated(w.what, "block map root", at, len(b)))
	}
	level, n := int(be.Uint16(b)), int(be.Uint16(b[2:]))
	fit := (len(b) - bmdrLen) / 16
	if level < 1 || level > maxForkLevel || n < 1 || n > fit {
		return w.lose(maxFileOff, ondisk.Corrupt(w.what, "block map root: level, records", at, fmt.Sprintf("%d, %d", level, n)))
	}
	return w.children(b[bmdrLen:], n, fit, level, at+bmdrLen, maxFileOff)
}

// children descends into the n children of a node with room for fit.
func (w *forkWalk) children(b []byte, n, fit, level int, at int64, hi uint64) error {
	for i := range n {
		lo, end := be.Uint64(b[i*8:]), hi
		if i+1 < n {
			end = be.Uint64(b[i*8+8:])
		}
		if lo < w.next || end <= lo || end > hi {
			return w.lose(hi, ondisk.Corrupt(w.what, "block map key", at+int64(i)*8, lo))
		}
		if err := w.block(be.Uint64(b[(fit+i)*8:]), level-1, end); err != nil {
			return err
		}
	}
	return nil
}

// block reads one block of the map, whose extents end before hi.
func (w *forkWalk) block(fsb uint64, level int, hi uint64) error {
	f := w.f
	off, ok := f.place(fsb, 1)
	if !ok {
		return w.lose(hi, ondisk.Corrupt(w.what, "block map pointer", -1, fsb))
	}
	b, err := f.read(off, int(f.blockSize), w.what)
	if err != nil {
		return w.lose(hi, err)
	}
	magic, hdr := uint32(bmapMagic), btLongLen
	if f.v5 {
		magic, hdr = bmapCRCMagic, btLongCRCLen
	}
	if m := be.Uint32(b); m != magic {
		return w.lose(hi, ondisk.Corrupt(w.what, "block map magic", off, fmt.Sprintf("%#08x", m)))
	}
	n, fit := int(be.Uint16(b[6:])), (len(b)-hdr)/16
	if l := int(be.Uint16(b[4:])); l != level || n < 1 || n > fit {
		return w.lose(hi, ondisk.Corrupt(w.what, "block map level, records", off+4, fmt.Sprintf("%d, %d", l, n)))
	}
	if f.v5 {
		// Exchanged forks name their old owner until recovery rewrites them.
		owner := w.in.ino
		if f.reowned[owner] {
			owner = be.Uint64(b[idLong.owner:])
		}
		if err := f.identify(b, off, idLong, owner, w.what); err != nil && w.doubt == nil {
			w.doubt = err
		}
	}
	if level == 0 {
		return w.records(b[hdr:][:n*bmbtRecLen], off+int64(hdr), hi)
	}
	return w.children(b[hdr:], n, fit, level, off+int64(hdr), hi)
}
