package codec

import (
	"encoding/binary"
	"errors"
)

func init() { decoders[LZOBtrfs] = lzoBtrfs }

// lzoSector is the block that btrfs compresses at a time; a segment's head never crosses its boundary in the input.
const lzoSector = 4096

// lzoBtrfs decodes what btrfs writes (fs/btrfs/lzo.c): the length of all, then segments, each with its length before
// it, which decode to one sector.
func lzoBtrfs(dst, in []byte) (int, error) {
	if len(in) < 4 {
		return 0, errEnd
	}
	total := int(min(binary.LittleEndian.Uint32(in), uint32(len(in))))
	var n int
	for pos := 4; n < len(dst) && pos < total; {
		if left := lzoSector - pos%lzoSector; left < 4 {
			pos += left
		}
		if pos+4 > len(in) {
			return n, errEnd
		}
		size := int(binary.LittleEndian.Uint32(in[pos:]))
		pos += 4
		if size > len(in)-pos {
			return n, errEnd
		}
		k, err := lzo1x(dst[n:min(len(dst), n+lzoSector)], in[pos:pos+size])
		if n += k; err != nil {
			return n, err
		}
		pos += size
	}
	return n, nil
}

var errLZO = errors.New("lzo data is cut off")

// lzo1x decodes LZO1X (Linux, Documentation/staging/lzo.rst). It stops when dst is full.
func lzo1x(dst, in []byte) (n int, err error) {
	pos := 0
	take := func() int {
		if pos >= len(in) {
			err = errLZO
			return 0
		}
		pos++
		return int(in[pos-1])
	}
	// more reads the rest of a length whose field was zero: runs of zero bytes count 255 each.
	more := func(base int) int {
		for pos < len(in) && in[pos] == 0 && base < 1<<24 {
			base += 255
			pos++
		}
		return base + take()
	}
	literals := func(k int) {
		if k > len(in)-pos {
			k, err = len(in)-pos, errLZO
		}
		m := copy(dst[n:], in[pos:pos+k])
		n, pos = n+m, pos+k
	}
	state := 0 // literals before the next instruction: 0 to 3, or 4 for more
	if len(in) > 0 && in[0] > 17 {
		k := take() - 17
		literals(k)
		state = min(k, 4)
	}
	for err == nil && n < len(dst) {
		t := take()
		var length, dist, next int
		switch {
		case t < 16 && state == 0:
			if t == 0 {
				t = more(15)
			}
			literals(t + 3)
			state = 4
			continue
		case t < 16:
			next = t & 3
			dist = t>>2 + take()<<2 + 1
			if length = 2; state == 4 {
				dist, length = dist+0x800, 3
			}
		case t >= 64:
			next = t & 3
			length = t>>5 + 1
			dist = t>>2&7 + take()<<3 + 1
		case t >= 32:
			if length = t & 31; length == 0 {
				length = more(31)
			}
			length += 2
			w := take() | take()<<8
			dist, next = w>>2+1, w&3
		default:
			if length = t & 7; length == 0 {
				length = more(7)
			}
			length += 2
			w := take() | take()<<8
			dist, next = t&8<<11+w>>2, w&3
			if dist == 0 {
				return n, err // the end mark
			}
			dist += 0x4000
		}
		if err != nil {
			break
		}
		if n, err = copyMatch(dst, n, dist, length); err != nil {
			break
		}
		if n < len(dst) {
			literals(next)
		}
		state = next
	}
	if n == len(dst) {
		err = nil
	}
	return n, err
}
