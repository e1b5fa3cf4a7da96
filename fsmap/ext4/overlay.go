package ext4

import (
	"io"
	"slices"

	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// overlay is the volume as the journal's replay would leave it: some blocks have their content in the journal.
type overlay struct {
	r      io.ReaderAt
	shift  uint
	blocks []moved // by number
}

// moved is a block whose content lies in the journal.
type moved struct {
	block   uint64
	pos     int64 // of the content in the volume
	escaped bool  // its first four bytes are the journal's magic, and zeros in the journal
}

var escapedBytes = []byte{0xC0, 0x3B, 0x39, 0x98}

// from gives the moved blocks from a block on.
func (o *overlay) from(block uint64) []moved {
	i, _ := slices.BinarySearchFunc(o.blocks, block, func(m moved, b uint64) int {
		switch {
		case m.block < b:
			return -1
		case m.block > b:
			return 1
		}
		return 0
	})
	return o.blocks[i:]
}

// ReadAt implements io.ReaderAt.
func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.r.ReadAt(p, off)
	if off < 0 || n == 0 {
		return n, err
	}
	size := int64(1) << o.shift
	for _, m := range o.from(uint64(off >> o.shift)) {
		start := int64(m.block << o.shift)
		if start >= off+int64(n) {
			break
		}
		a, b := max(start, off), min(start+size, off+int64(n))
		dst := p[a-off : b-off]
		if k, err := o.r.ReadAt(dst, m.pos+a-start); k < len(dst) {
			return int(a-off) + k, err
		}
		if skip := a - start; m.escaped && skip < int64(len(escapedBytes)) {
			copy(dst, escapedBytes[skip:])
		}
	}
	return n, err
}

// place gives where n bytes at off of the volume lie that are at position at of a file: there, or in the journal.
func (o *overlay) place(at, n, off int64, add func(fsmap.Run)) {
	size := int64(1) << o.shift
	data := func(n, off int64) {
		if n > 0 {
			add(fsmap.Run{At: at, Len: n, Kind: mapfile.Data, Off: off})
			at += n
		}
	}
	end := off + n
	for _, m := range o.from(uint64(off >> o.shift)) {
		start := int64(m.block << o.shift)
		if start >= end {
			break
		}
		data(start-off, off)
		off = max(start, off)
		skip, n := off-start, min(start+size, end)-off
		off += n
		if magic := int64(len(escapedBytes)); m.escaped && skip < magic {
			k := min(magic-skip, n)
			add(fsmap.Run{At: at, Len: k, Kind: mapfile.Inline, Bytes: escapedBytes[skip : skip+k]})
			at, skip, n = at+k, skip+k, n-k
		}
		data(n, m.pos+skip)
	}
	data(end-off, off)
}
