package codec

import (
	"encoding/binary"
	"errors"
)

func init() { decoders[LZNT1] = lznt1 }

// lznt1Chunk is what every chunk of LZNT1 but the last decodes to.
const lznt1Chunk = 4096

// lznt1 decodes a buffer of chunks ([MS-XCA] 2.5): each has a 16-bit head with its length, and is plain or a sequence
// of literals and back references within the chunk, whose split between length and distance follows the position.
// Chunks that decode to less than 4 KiB count as filled up with zeros when others follow.
func lznt1(dst, in []byte) (int, error) {
	var n int
	for n < len(dst) && len(in) >= 2 {
		head := binary.LittleEndian.Uint16(in)
		if head == 0 {
			break
		}
		size := int(head&0xFFF) + 1
		if size > len(in)-2 {
			return n, errors.New("a chunk runs past the end")
		}
		chunk := in[2 : 2+size]
		in = in[2+size:]
		if n%lznt1Chunk != 0 {
			fill := min(len(dst)-n, lznt1Chunk-n%lznt1Chunk)
			clear(dst[n : n+fill])
			if n += fill; n == len(dst) {
				break
			}
		}
		out := dst[n:min(len(dst), n+lznt1Chunk)]
		if head&0x8000 == 0 {
			n += copy(out, chunk)
			continue
		}
		k, err := lznt1Tokens(out, chunk)
		if n += k; err != nil {
			return n, err
		}
	}
	return n, nil
}

func lznt1Tokens(out, in []byte) (int, error) {
	var n int
	lengthBits, limit := uint(12), 16 // a distance of up to limit needs 16-lengthBits bits
	for len(in) > 0 {
		flags := in[0]
		in = in[1:]
		for bit := 0; bit < 8 && len(in) > 0 && n < len(out); bit++ {
			if flags>>bit&1 == 0 {
				out[n] = in[0]
				n++
				in = in[1:]
				continue
			}
			if len(in) < 2 {
				return n, errors.New("a token is cut off")
			}
			token := int(binary.LittleEndian.Uint16(in))
			in = in[2:]
			for n > limit {
				limit *= 2
				lengthBits--
			}
			length, dist := token&(1<<lengthBits-1)+3, token>>lengthBits+1
			if dist > n {
				return n, errors.New("a token reaches before the chunk")
			}
			for end := min(n+length, len(out)); n < end; n++ {
				out[n] = out[n-dist]
			}
		}
		if n == len(out) {
			break
		}
	}
	return n, nil
}
