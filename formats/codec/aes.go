package codec

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/xts"

	"vmkit/formats/ondisk"
)

// decrypt decrypts whole units; the tweak, or the initial vector, is the number of the unit's first 512-byte sector,
// little-endian (dm-crypt's plain64).
func decrypt(dst []byte, s Spec, keys Keys, in []byte) error {
	what := "codec " + s.Codec
	if s.Sector < 512 || s.Sector > 4096 || s.Sector&(s.Sector-1) != 0 {
		return ondisk.Corrupt(what, "sector", -1, s.Sector)
	}
	if len(in) < len(dst) || len(dst)%s.Sector != 0 {
		return ondisk.Corrupt(what, "length", -1, len(in))
	}
	var key []byte
	var ok bool
	if keys != nil {
		key, ok = keys(s.Key)
	}
	if !ok {
		return fmt.Errorf("%s: no key %q was given", what, s.Key)
	}
	unit, err := unitCipher(s.Codec, key)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	step := uint64(s.Sector / 512)
	for i, n := 0, s.IV; i < len(dst); i, n = i+s.Sector, n+step {
		unit(dst[i:i+s.Sector], in[i:i+s.Sector], n)
	}
	return nil
}

// unitCipher gives what decrypts one unit of a number.
func unitCipher(codec string, key []byte) (func(dst, in []byte, n uint64), error) {
	if codec == AESXTS {
		c, err := xts.NewCipher(aes.NewCipher, key)
		if err != nil {
			return nil, err
		}
		return c.Decrypt, nil
	}
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return func(dst, in []byte, n uint64) {
		var iv [aes.BlockSize]byte
		binary.LittleEndian.PutUint64(iv[:], n)
		cipher.NewCBCDecrypter(c, iv[:]).CryptBlocks(dst, in)
	}, nil
}
