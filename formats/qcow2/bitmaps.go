package qcow2

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// bitmap is a persistent bitmap with the place of its table.
type bitmap struct {
	formats.Bitmap
	table   uint64 // position
	entries uint32
	at      int64 // where its directory entry lies
}

// readBitmaps reads the bitmap directory. With an error come those that could be read. (Bitmap directory)
func readBitmaps(f *formats.File, h *info) ([]bitmap, error) {
	const what = "qcow2 bitmap directory"
	x := h.bitmaps
	switch {
	case x.NbBitmaps > maxBitmaps:
		return nil, ondisk.Unsupported("qcow2 bitmaps extension", "number of bitmaps", -1, x.NbBitmaps)
	case x.DirSize > maxBitmapDir:
		return nil, ondisk.Unsupported("qcow2 bitmaps extension", "size of the directory", -1, x.DirSize)
	case x.DirOffset&uint64(h.clusterSize()-1) != 0 || x.DirOffset > 1<<56:
		return nil, ondisk.Corrupt("qcow2 bitmaps extension", "offset of the directory", -1, x.DirOffset)
	}
	dir := int64(x.DirOffset)
	if !ondisk.Within(dir, int64(x.DirSize), f.Size) {
		return nil, ondisk.Truncated(what, "", dir, nil)
	}
	buf, err := ondisk.Read(f, dir, int64(x.DirSize), what)
	if err != nil {
		return nil, err
	}
	var list []bitmap
	c := ondisk.NewCursor(buf, binary.BigEndian, dir, what)
	for range x.NbBitmaps {
		at := c.Off()
		var e bitmapEntry
		fixed := c.Bytes(binary.Size(e))
		if fixed == nil {
			return list, c.Err()
		}
		binary.Decode(fixed, binary.BigEndian, &e)
		switch {
		case e.Type != bitmapTypeDirty:
			return list, ondisk.Unsupported(what, "type", at+16, e.Type)
		case e.GranularityBits > maxGranularityBits:
			return list, ondisk.Unsupported(what, "granularity bits", at+17, e.GranularityBits)
		case e.NameLen == 0 || e.NameLen > maxBitmapName:
			return list, ondisk.Corrupt(what, "length of the name", at+18, e.NameLen)
		case int64(e.ExtraLen) > int64(c.Len()):
			return list, ondisk.Corrupt(what, "length of extra data", at+20, e.ExtraLen)
		}
		c.Skip(int(e.ExtraLen))
		name := string(c.Bytes(int(e.NameLen)))
		c.Skip(min(-(int(e.ExtraLen)+int(e.NameLen))&7, c.Len()))
		if err := c.Err(); err != nil {
			return list, err
		}
		// Whoever wrote the image without knowing bitmaps cleared the bit that vouches for all of them.
		stale := h.Autoclear&autoclearBitmaps == 0 || e.ExtraLen != 0 && e.Flags&bitmapExtraCompatible == 0
		b := bitmap{table: e.TableOffset, entries: e.TableSize, at: at}
		b.Bitmap = formats.Bitmap{
			Name: name, Granularity: 1 << e.GranularityBits, Auto: e.Flags&bitmapAuto != 0, InUse: stale || e.Flags&bitmapInUse != 0,
			Marked: func(yield func(off, n int64) bool) error { return b.marked(f, h, yield) },
		}
		list = append(list, b)
	}
	return list, nil
}

// marked gives the stretches of the virtual disk whose bits are set, in order. (Bitmap table, Bitmap data)
func (b *bitmap) marked(f *formats.File, h *info, yield func(off, n int64) bool) error {
	size, cluster := int64(h.Size), h.clusterSize()
	per := cluster * 8 // bits in a cluster of the bitmap
	need := (size + b.Granularity - 1) / b.Granularity
	if (need+per-1)/per > int64(b.entries) {
		return ondisk.Corrupt("qcow2 bitmap directory", "entries of the bitmap's table", b.at+8, b.entries)
	}
	if b.table&uint64(cluster-1) != 0 || b.table > 1<<56 {
		return ondisk.Corrupt("qcow2 bitmap directory", "offset of the bitmap's table", b.at, b.table)
	}
	at := int64(b.table)
	r := newTable(f, at, int64(b.entries)*8)
	buf := make([]byte, cluster)
	var start, end int64 // the stretch that was found last, in bits
	flush := func(i, n int64) bool {
		if i == end && n > 0 {
			end += n
			return true
		}
		ok := start == end || yield(start*b.Granularity, min(end*b.Granularity, size)-start*b.Granularity)
		start, end = i, i+n
		return ok
	}
	for i := int64(0); i < need; i += per {
		raw, err := r.next(8)
		if err != nil {
			return err
		}
		e := binary.BigEndian.Uint64(raw)
		n := min(per, need-i)
		off := int64(e & offsetMask)
		switch {
		case e&bitmapReserved != 0 || off&(cluster-1) != 0 || off != 0 && e&bitmapAllOnes != 0:
			return ondisk.Corrupt("qcow2 bitmap table", "entry", at+i/per*8, fmt.Sprintf("%#x", e))
		case off == 0 && e&bitmapAllOnes == 0:
			continue
		case off == 0:
			if !flush(i, n) {
				return nil
			}
			continue
		}
		if err := ondisk.ReadFull(f, buf[:(n+7)/8], off, "qcow2 bitmap"); err != nil {
			return err
		}
		for from, length := range ones(buf, n) {
			if !flush(i+from, length) {
				return nil
			}
		}
	}
	flush(end, 0)
	return nil
}

// ones gives the runs of set bits among the first n of b, the lowest bit of a byte first.
func ones(b []byte, n int64) iter.Seq2[int64, int64] {
	return func(yield func(int64, int64) bool) {
		for i := int64(0); i < n; {
			x := b[i/8] >> (i % 8)
			if x == 0 {
				i += 8 - i%8
				continue
			}
			i += int64(bits.TrailingZeros8(x))
			start := i
			for i < n && b[i/8]>>(i%8)&1 != 0 {
				if i%8 == 0 && b[i/8] == 0xff {
					i += 8
				} else {
					i++
				}
			}
			if start < n && !yield(start, min(i, n)-start) {
				return
			}
		}
	}
}
