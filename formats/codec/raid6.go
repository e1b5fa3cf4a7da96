package codec

import (
	"crypto/subtle"
	"fmt"

	"vmkit/formats/ondisk"
)

// The arithmetic of RAID 6: bytes are polynomials over GF(2) modulo x⁸+x⁴+x³+x²+1 (0x11d); a stripe's P is the sum of
// its data, Q the sum of g^i times data member i, where g is 2.

var raid6Exp, raid6Log = func() (exp [255]byte, log [256]uint8) {
	x := 1
	for i := range exp {
		exp[i], log[x] = byte(x), uint8(i)
		if x <<= 1; x > 0xff {
			x ^= 0x11d
		}
	}
	return exp, log
}()

// MaxRAID6 is how many data members Q can tell apart.
const MaxRAID6 = len(raid6Exp)

// raid6Power gives g to the power of n, which may be below zero.
func raid6Power(n int) byte { return raid6Exp[((n%255)+255)%255] }

// Members of a RAID 6 stripe besides its data ones, which are numbered from 0.
const (
	RAID6P = -1 - iota
	RAID6Q
)

// RAID6Factor tells how the bytes of data member lost follow from a stripe that has lost another member too: by which
// factor those of member, one of the rest, are multiplied before all are added. other is a data member or RAID6P;
// without Q a lost member is what XOR makes.
func RAID6Factor(lost, other, member int) byte {
	if other == RAID6P {
		if member == RAID6Q {
			return raid6Power(-lost)
		}
		return raid6Power(member - lost)
	}
	var f byte // times P, and Q, and data: of (g^other·P + Q) / (g^lost + g^other)
	switch member {
	case RAID6P:
		f = raid6Power(other)
	case RAID6Q:
		f = 1
	default:
		f = raid6Power(other) ^ raid6Power(member)
	}
	return raid6Power(int(raid6Log[f]) - int(raid6Log[raid6Power(lost)^raid6Power(other)]))
}

// raid6 adds up the parts, all as long as dst, each multiplied by its factor.
func raid6(dst []byte, factors []byte, parts [][]byte) error {
	if len(factors) != len(parts) {
		return fmt.Errorf("codec raid6: %d factors for %d parts: %w", len(factors), len(parts), ondisk.ErrCorrupt)
	}
	clear(dst)
	for i, p := range parts {
		if len(p) != len(dst) {
			return fmt.Errorf("codec raid6: part of %d bytes, not %d: %w", len(p), len(dst), ondisk.ErrCorrupt)
		}
		switch f := factors[i]; f {
		case 0:
		case 1:
			subtle.XORBytes(dst, dst, p)
		default:
			times := raid6Times(f)
			for j, b := range p {
				dst[j] ^= times[b]
			}
		}
	}
	return nil
}

// raid6Times is the table of what every byte gives when it is multiplied by f, which is not 0.
func raid6Times(f byte) *[256]byte {
	var t [256]byte
	for b := 1; b < len(t); b++ {
		t[b] = raid6Exp[(int(raid6Log[b])+int(raid6Log[f]))%255]
	}
	return &t
}
