package codec

import (
	"crypto/aes"
	"fmt"

	"golang.org/x/crypto/xts"

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
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		return fmt.Errorf("codec aes-xts-plain64: %w", err)
	}
	step := uint64(s.Sector / 512)
	for i, n := 0, uint64(0); i < len(dst); i, n = i+s.Sector, n+1 {
		c.Decrypt(dst[i:i+s.Sector], in[i:i+s.Sector], s.IV+n*step)
	}
	return nil
}
