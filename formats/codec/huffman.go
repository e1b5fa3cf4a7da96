package codec

import "errors"

// huffman decodes canonical prefix codes of up to maxCode bits, most significant bit first, as XPRESS and LZX use them.
type huffman struct {
	table []uint16 // by the next bits: symbol<<5 | length; 0 where no code leads
	bits  uint
}

// maxCode is the longest code of either format: XPRESS allows 15 bits, LZX 16 (and writes at most 16).
const maxCode = 16

var errCodes = errors.New("code lengths make no prefix code")

// build makes the table from the code lengths of the symbols. An incomplete code is an error unless it is empty, or
// has one symbol, as encoders write when only one is used.
func (h *huffman) build(lengths []uint8, bits uint) error {
	var count [maxCode + 1]int
	for _, n := range lengths {
		count[n]++
	}
	count[0] = 0
	var next [maxCode + 2]int
	used, symbols := 0, 0
	for n := uint(1); n <= bits; n++ {
		next[n] = used
		used += count[n] << (bits - n)
		symbols += count[n]
	}
	if used > 1<<bits || used < 1<<bits && symbols > 1 {
		return errCodes
	}
	if cap(h.table) < 1<<bits {
		h.table = make([]uint16, 1<<bits)
	}
	h.table, h.bits = h.table[:1<<bits], bits
	clear(h.table[used:])
	for s, n := range lengths {
		if n == 0 {
			continue
		}
		at, span := next[n], 1<<(bits-uint(n))
		next[n] += span
		for i := at; i < at+span; i++ {
			h.table[i] = uint16(s)<<5 | uint16(n)
		}
	}
	return nil
}

// bitReader reads bits from 16-bit little-endian words, the highest bit of each first. Behind the end it gives zeros and
// counts how many bits it made up.
type bitReader struct {
	whole []byte // all the input, for going back
	in    []byte
	acc   uint64 // the next bits, at the top
	n     uint   // how many of them
	extra uint
}

func (r *bitReader) fill() {
	for r.n <= 48 {
		var w uint64
		if len(r.in) >= 2 {
			w = uint64(r.in[0]) | uint64(r.in[1])<<8
			r.in = r.in[2:]
		} else {
			r.extra += 16
			r.in = nil
		}
		r.acc |= w << (48 - r.n)
		r.n += 16
	}
}

// take gives the next n bits, n at most 32.
func (r *bitReader) take(n uint) uint32 {
	if n == 0 {
		return 0
	}
	if r.n < n {
		r.fill()
	}
	v := uint32(r.acc >> (64 - n))
	r.acc <<= n
	r.n -= n
	return v
}

// spent reports whether bits were used that the input doesn't have.
func (r *bitReader) spent() bool { return r.extra > r.n }

var errCode = errors.New("no symbol has this code")

func (r *bitReader) symbol(h *huffman) (int, error) {
	if r.n < maxCode {
		r.fill()
	}
	e := h.table[r.acc>>(64-h.bits)]
	if e == 0 {
		return 0, errCode
	}
	n := uint(e & 31)
	r.acc <<= n
	r.n -= n
	return int(e >> 5), nil
}

var errEnd = errors.New("the input ends early")

// copyMatch appends length bytes from dist back, as far as dst reaches, and gives the new position.
func copyMatch(dst []byte, n, dist, length int) (int, error) {
	if dist > n || dist <= 0 {
		return n, errors.New("a match reaches before the start")
	}
	end := min(n+length, len(dst))
	if dist >= length {
		return n + copy(dst[n:end], dst[n-dist:]), nil
	}
	for ; n < end; n++ {
		dst[n] = dst[n-dist]
	}
	return n, nil
}
