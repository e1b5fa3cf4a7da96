package codec

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
)

// aesXTS decrypts whole units; the tweak is the number of the unit's first 512-byte sector, little-endian
// (dm-crypt's plain64).
func aesXTS(dst []byte, s Spec, keys Keys, in []byte) error {
	if s.Sector < 512 || s.Sector > 4096 || s.Sector&(s.Sector-1) != 0 {
		return ondisk.Corrupt("codec aes-xts-plain64", "sector", -1, s.Sector)
	}
	if len(in) < len(dst) || len(dst)%s.Sector != 0 {
		return ondisk.Corrupt("codec aes-xts-plain64", "length", -1, len(in))
	}
	var key []byte
	var ok bool
	if keys != nil {
		key, ok = keys(s.Key)
	}
	if !ok {
		return fmt.Errorf("codec aes-xts-plain64: no key %q was given", s.Key)
	}
	data, err := aes.NewCipher(key[:len(key)/2])
	if err != nil {
		return fmt.Errorf("codec aes-xts-plain64: %w", err)
	}
	tweak, err := aes.NewCipher(key[len(key)/2:])
	if err != nil {
		return fmt.Errorf("codec aes-xts-plain64: %w", err)
	}
	step := uint64(s.Sector / 512)
	for i, n := 0, s.IV; i < len(dst); i, n = i+s.Sector, n+step {
		xtsUnit(data, tweak, dst[i:i+s.Sector], in[i:i+s.Sector], n)
	}
	return nil
}

// xtsUnit decrypts one unit (IEEE 1619). golang.org/x/crypto/xts, which works on bytes where this works on words, takes
// twice the time.
func xtsUnit(data, tweak cipher.Block, dst, src []byte, n uint64) {
	le := binary.LittleEndian
	var b [aes.BlockSize]byte
	le.PutUint64(b[:], n)
	tweak.Encrypt(b[:], b[:])
	lo, hi := le.Uint64(b[:]), le.Uint64(b[8:])
	for len(src) >= aes.BlockSize && len(dst) >= aes.BlockSize {
		le.PutUint64(b[:], le.Uint64(src)^lo)
		le.PutUint64(b[8:], le.Uint64(src[8:])^hi)
		data.Decrypt(b[:], b[:])
		le.PutUint64(dst, le.Uint64(b[:])^lo)
		le.PutUint64(dst[8:], le.Uint64(b[8:])^hi)
		// The tweak of the next block: times x, modulo x¹²⁸+x⁷+x²+x+1.
		lo, hi = lo<<1^hi>>63*0x87, hi<<1|lo>>63
		src, dst = src[aes.BlockSize:], dst[aes.BlockSize:]
	}
}
