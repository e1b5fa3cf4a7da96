package codec

import (
	"encoding/binary"
	"errors"
)

func init() { decoders[LZX32K] = lzx }

// LZX as WIM and WOF files use it: a window of 32 KiB, each chunk for itself ([MS-PATCH] describes the stream; the
// differences are wimlib's documentation: one bit for the usual block size, and calls always translated).
const (
	lzxWindow    = 32 << 10
	lzxSlots     = 30
	lzxMain      = 256 + 8*lzxSlots
	lzxLengths   = 249
	lzxMinMatch  = 2
	lzxCallLimit = 12000000 // the "file size" that call translation assumes
	lzxVerbatim  = 1
	lzxAligned   = 2
	lzxPlain     = 3
)

// lzxSlot gives a position slot's first offset and its number of extra bits.
var lzxBase, lzxExtra = func() (base [lzxSlots]int, extra [lzxSlots]uint) {
	at := 0
	for i := range base {
		if i >= 4 {
			extra[i] = uint(i/2 - 1)
		}
		base[i] = at
		at += 1 << extra[i]
	}
	return
}()

func lzx(dst, in []byte) (int, error) {
	if len(dst) > lzxWindow {
		return 0, errors.New("a chunk is longer than its window")
	}
	d := lzxDecoder{r: bitReader{whole: in, in: in}, recent: [3]int{1, 1, 1}}
	var n int
	for n < len(dst) {
		kind := d.r.take(3)
		size := lzxWindow
		if d.r.take(1) == 0 {
			size = int(d.r.take(16))
		}
		if size == 0 || d.r.spent() {
			return n, errEnd
		}
		block := dst[:min(len(dst), n+size)]
		var err error
		switch kind {
		case lzxVerbatim, lzxAligned:
			n, err = d.block(block, n, kind == lzxAligned)
		case lzxPlain:
			n, err = d.plain(block, n)
		default:
			err = errors.New("block of unknown kind")
		}
		if err != nil {
			return n, err
		}
	}
	lzxCalls(dst[:n])
	return n, nil
}

type lzxDecoder struct {
	r                bitReader
	recent           [3]int // offsets used last
	mainLens         [lzxMain]uint8
	lenLens          [lzxLengths]uint8
	main, len, align huffman
	pre              huffman
}

func (d *lzxDecoder) block(dst []byte, n int, aligned bool) (int, error) {
	if aligned {
		var lens [8]uint8
		for i := range lens {
			lens[i] = uint8(d.r.take(3))
		}
		if err := d.align.build(lens[:], 7); err != nil {
			return n, err
		}
	}
	for _, part := range [...][]uint8{d.mainLens[:256], d.mainLens[256:], d.lenLens[:]} {
		if err := d.readLengths(part); err != nil {
			return n, err
		}
	}
	if err := d.main.build(d.mainLens[:], maxCode); err != nil {
		return n, err
	}
	if err := d.len.build(d.lenLens[:], maxCode); err != nil {
		return n, err
	}
	for n < len(dst) {
		s, err := d.r.symbol(&d.main)
		if err != nil {
			return n, err
		}
		if s < 256 {
			dst[n] = byte(s)
			n++
			continue
		}
		s -= 256
		length, slot := s&7, s>>3
		if length == 7 {
			k, err := d.r.symbol(&d.len)
			if err != nil {
				return n, err
			}
			length += k
		}
		var dist int
		if slot < 3 {
			dist = d.recent[slot]
			d.recent[slot] = d.recent[0]
		} else {
			extra := lzxExtra[slot]
			dist = lzxBase[slot] - 2
			if aligned && extra >= 3 {
				dist += int(d.r.take(extra-3)) << 3
				k, err := d.r.symbol(&d.align)
				if err != nil {
					return n, err
				}
				dist += k
			} else {
				dist += int(d.r.take(extra))
			}
			d.recent[2], d.recent[1] = d.recent[1], d.recent[0]
		}
		d.recent[0] = dist
		if d.r.spent() {
			return n, errEnd
		}
		if n, err = copyMatch(dst, n, dist, length+lzxMinMatch); err != nil {
			return n, err
		}
	}
	return n, nil
}

// readLengths reads code lengths as differences from the block before, which are coded themselves.
func (d *lzxDecoder) readLengths(lens []uint8) error {
	var pre [20]uint8
	for i := range pre {
		pre[i] = uint8(d.r.take(4))
	}
	if err := d.pre.build(pre[:], 15); err != nil {
		return err
	}
	for i := 0; i < len(lens); {
		s, err := d.r.symbol(&d.pre)
		if err != nil {
			return err
		}
		run, delta := 1, s
		switch s {
		case 17:
			run, delta = 4+int(d.r.take(4)), -1
		case 18:
			run, delta = 20+int(d.r.take(5)), -1
		case 19:
			run = 4 + int(d.r.take(1))
			if delta, err = d.r.symbol(&d.pre); err != nil {
				return err
			}
			if delta > 16 {
				return errCodes
			}
		}
		if d.r.spent() {
			return errEnd
		}
		if delta < 0 {
			for ; run > 0 && i < len(lens); run, i = run-1, i+1 {
				lens[i] = 0
			}
			continue
		}
		v := uint8((int(lens[i]) - delta + 17) % 17)
		for ; run > 0 && i < len(lens); run, i = run-1, i+1 {
			lens[i] = v
		}
	}
	return nil
}

// plain copies a block that is stored: the bit stream is aligned to a word (one whole word where it is aligned
// already), three offsets follow, then the bytes, padded to even.
func (d *lzxDecoder) plain(dst []byte, n int) (int, error) {
	d.r.rewind()
	if len(d.r.in) < 12 {
		return n, errEnd
	}
	for i := range d.recent {
		d.recent[i] = int(binary.LittleEndian.Uint32(d.r.in[4*i:]) & 0x7FFFFFFF)
		if d.recent[i] == 0 {
			return n, errCode
		}
	}
	d.r.in = d.r.in[12:]
	k := copy(dst[n:], d.r.in)
	if n += k; n < len(dst) {
		return n, errEnd
	}
	d.r.in = d.r.in[k:]
	if k%2 == 1 && len(d.r.in) > 0 {
		d.r.in = d.r.in[1:]
	}
	return n, nil
}

// rewind gives back the whole words that were read ahead and drops the rest of the current one. At a word's end it
// drops a word, as encoders write it.
func (r *bitReader) rewind() {
	if r.n%16 == 0 {
		r.take(16)
	}
	back := int(r.n/16) * 2
	back -= min(back, int(r.extra/8))
	r.in = r.whole[len(r.whole)-len(r.in)-back:]
	r.acc, r.n, r.extra = 0, 0, 0
}

// lzxCalls undoes the translation of x86 calls: the operand of an E8 byte is an absolute target.
func lzxCalls(b []byte) {
	for i := 0; i+10 < len(b); i++ {
		if b[i] != 0xE8 {
			continue
		}
		v := int32(binary.LittleEndian.Uint32(b[i+1:]))
		switch {
		case v >= 0 && v < lzxCallLimit:
			v -= int32(i)
		case v < 0 && v >= -int32(i):
			v += lzxCallLimit
		}
		binary.LittleEndian.PutUint32(b[i+1:], uint32(v))
		i += 4
	}
}
