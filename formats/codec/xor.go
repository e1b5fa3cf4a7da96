package codec

import (
	"crypto/subtle"
	"fmt"

	"vmkit/formats/ondisk"
)

// xor gives the lost member of a stripe: the parts, all as long as dst, combined.
func xor(dst []byte, parts [][]byte) error {
	clear(dst)
	for _, p := range parts {
		if len(p) != len(dst) {
			return fmt.Errorf("codec xor: part of %d bytes, not %d: %w", len(p), len(dst), ondisk.ErrCorrupt)
		}
		subtle.XORBytes(dst, dst, p)
	}
	return nil
}
