package codec

import "encoding/binary"

func init() {
	decoders[Xpress4K] = xpress
	decoders[Xpress8K] = xpress
	decoders[Xpress16] = xpress
}

// xpressChunk is how many decoded bytes one set of codes serves.
const xpressChunk = 64 << 10

// xpress decodes LZ77+Huffman ([MS-XCA] 2.1): code lengths of 512 symbols in four bits each, then literals and matches
// from a stream of 16-bit words; the bytes of long lengths lie between the words.
func xpress(dst, in []byte) (int, error) {
	var n int
	var h huffman
	for n < len(dst) {
		if len(in) < 256+4 {
			return n, errEnd
		}
		var lengths [512]uint8
		for i, b := range in[:256] {
			lengths[2*i], lengths[2*i+1] = b&15, b>>4
		}
		if err := h.build(lengths[:], 15); err != nil {
			return n, err
		}
		in = in[256:]
		// The specification reads a word as soon as fewer than 16 bits are left, so that the bytes of a length follow
		// the words read so far: bits are kept as it says, not as bitReader does.
		next := uint32(binary.LittleEndian.Uint16(in))<<16 | uint32(binary.LittleEndian.Uint16(in[2:]))
		in = in[4:]
		left := 16
		drop := func(k uint) {
			next <<= k
			if left -= int(k); left < 0 {
				if len(in) >= 2 {
					next |= uint32(binary.LittleEndian.Uint16(in)) << -left
					in = in[2:]
				}
				left += 16
			}
		}
		for end := min(len(dst), n+xpressChunk); n < end; {
			e := h.table[next>>17]
			if e == 0 {
				return n, errCode
			}
			drop(uint(e & 31))
			s := int(e >> 5)
			if s < 256 {
				dst[n] = byte(s)
				n++
				continue
			}
			if s == 256 && len(in) == 0 && n == end {
				break
			}
			length, bits := s&15, uint(s>>4&15)
			if length == 15 {
				if len(in) < 1 {
					return n, errEnd
				}
				length = int(in[0])
				in = in[1:]
				if length == 255 {
					if len(in) < 2 {
						return n, errEnd
					}
					length = int(binary.LittleEndian.Uint16(in))
					in = in[2:]
					if length == 0 {
						if len(in) < 4 {
							return n, errEnd
						}
						length = int(binary.LittleEndian.Uint32(in) & 0x7FFFFFFF)
						in = in[4:]
					}
					if length < 15 {
						return n, errCode
					}
					length -= 15
				}
				length += 15
			}
			dist := 1 << bits
			if bits > 0 {
				dist |= int(next >> (32 - bits))
				drop(bits)
			}
			var err error
			if n, err = copyMatch(dst, n, dist, min(length+3, len(dst))); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}
