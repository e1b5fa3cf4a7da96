package xfs

import (
	"encoding/binary"
	"fmt"
	"io"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
)

// span is a stretch of blocks of an allocation group.
type span struct{ first, end uint32 }

// maxSpans bounds the free stretches of one group that are held; a group with more counts as in use.
const maxSpans = 4 << 20

// Free implements fsmap.Freer by the trees of free space. What an unfinished intent is yet to free is still in use in
// them.
func (f *fsys) Free(yield func(off, n int64) bool) error {
	free := fsmap.Stretches{Yield: yield}
	var lost int
	var first error
	for ag := range f.sb.AGCount {
		list, err := f.freeOf(f.r, ag)
		if err == nil && f.over != nil {
			var before []span
			if before, err = f.freeOf(f.disk, ag); err == nil {
				list = intersect(list, before)
			}
		}
		if err != nil {
			if lost++; first == nil {
				first = err
			}
			continue
		}
		start := int64(ag) * int64(f.sb.AGBlocks)
		for _, s := range list {
			if !free.Add((start+int64(s.first))<<f.blockLog, int64(s.end-s.first)<<f.blockLog) {
				return nil
			}
		}
	}
	free.End()
	if lost > 0 {
		return fmt.Errorf("%d of %d allocation groups: %w", lost, f.sb.AGCount, first)
	}
	return nil
}

// intersect gives what lies in both lists, which are in order.
func intersect(a, b []span) (list []span) {
	for len(a) > 0 && len(b) > 0 {
		x := span{max(a[0].first, b[0].first), min(a[0].end, b[0].end)}
		if x.first < x.end {
			list = append(list, x)
		}
		if a[0].end < b[0].end {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return list
}

// freeOf reads a group's free stretches through r.
func (f *fsys) freeOf(r io.ReaderAt, ag uint32) ([]span, error) {
	what := fmt.Sprintf("xfs free space of group %d", ag)
	start := int64(ag) * int64(f.sb.AGBlocks) << f.blockLog
	at := start + int64(f.sb.SectSize)
	h, err := ondisk.Read(r, at, agfLen, what)
	if err != nil {
		return nil, err
	}
	length := be.Uint32(h[agfLength:])
	if be.Uint32(h) != agfMagic || be.Uint32(h[agfSeqNo:]) != ag || length > f.sb.AGBlocks {
		return nil, ondisk.Corrupt(what, "agf", at, nil)
	}
	block, level := be.Uint32(h[agfBnoRoot:]), be.Uint32(h[agfBnoLevel:])
	if level == 0 || level > 16 {
		return nil, ondisk.Corrupt(what, "levels", at+agfBnoLevel, level)
	}
	b := make([]byte, f.blockSize)
	head := sbtLen
	if f.v5 {
		head = sbtLenV5
	}
	load := func(want uint32) (records int, err error) {
		off := start + int64(block)<<f.blockLog
		if block == 0 || block >= length || !ondisk.Within(off, f.blockSize, f.size) {
			return 0, ondisk.Corrupt(what, "block of the tree", -1, block)
		}
		if err := ondisk.ReadFull(r, b, off, what); err != nil {
			return 0, err
		}
		magic := uint32(bnoMagic)
		if f.v5 {
			magic = bnoMagicV5
			// The log doesn't keep checksums.
			if got := binary.LittleEndian.Uint32(b[sbtCRC:]); got != checksum(b, sbtCRC) && (r == f.disk || !f.over.Touches(off, f.blockSize)) {
				return 0, ondisk.Corrupt(what, "checksum", off+sbtCRC, fmt.Sprintf("%#08x", got))
			}
		}
		if be.Uint32(b) != magic || uint32(be.Uint16(b[sbtLevel:])) != want {
			return 0, ondisk.Corrupt(what, "magic or level", off, fmt.Sprintf("%#08x, %d", be.Uint32(b), be.Uint16(b[sbtLevel:])))
		}
		return int(be.Uint16(b[sbtRecords:])), nil
	}
	for level--; level > 0; level-- {
		n, err := load(level)
		most := (len(b) - head) / (bnoRecLen + sbtPtrLen)
		if err == nil && (n == 0 || n > most) {
			err = ondisk.Corrupt(what, "records", start+int64(block)<<f.blockLog+sbtRecords, n)
		}
		if err != nil {
			return nil, err
		}
		block = be.Uint32(b[head+most*bnoRecLen:])
	}
	var list []span
	var next, sum uint32
	for block != sbtNull {
		n, err := load(0)
		if err == nil && (n > (len(b)-head)/bnoRecLen || n == 0 && len(list) > 0) {
			err = ondisk.Corrupt(what, "records", start+int64(block)<<f.blockLog+sbtRecords, n)
		}
		if err != nil {
			return nil, err
		}
		for i := range n {
			p := b[head+i*bnoRecLen:]
			s, count := be.Uint32(p), be.Uint32(p[4:])
			if s < next || count == 0 || count > length || s > length-count || len(list) >= maxSpans {
				return nil, ondisk.Corrupt(what, "record", start+int64(block)<<f.blockLog+int64(head+i*bnoRecLen), fmt.Sprintf("%d blocks at %d", count, s))
			}
			list = append(list, span{s, s + count})
			next, sum = s+count, sum+count
		}
		if block = be.Uint32(b[sbtRight:]); n == 0 {
			break
		}
	}
	if want := be.Uint32(h[agfFreeBlks:]); sum != want {
		return nil, ondisk.Corrupt(what, "free blocks", at+agfFreeBlks, want)
	}
	return list, nil
}
