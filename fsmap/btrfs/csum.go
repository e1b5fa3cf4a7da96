package btrfs

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"math/bits"

	"golang.org/x/crypto/blake2b"

	"vmkit/formats/ondisk"
)

// csumType is the checksum of nodes and super blocks (enum btrfs_csum_type).
type csumType uint16

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// check compares the checksum at the front of b with the rest.
func (t csumType) check(b []byte, what string, off int64) error {
	var sum [csumSize]byte
	n := 0
	switch t {
	case 0:
		le.PutUint32(sum[:], crc32c(b[csumSize:]))
		n = 4
	case 1:
		le.PutUint64(sum[:], xxhash64(b[csumSize:]))
		n = 8
	case 2:
		sum, n = sha256.Sum256(b[csumSize:]), 32
	case 3:
		sum, n = blake2b.Sum256(b[csumSize:]), 32
	default:
		return ondisk.Unsupported("btrfs super block", "checksum type", off+sbCsumType, uint16(t))
	}
	if !bytes.Equal(sum[:n], b[:n]) {
		return ondisk.Corrupt(what, "checksum", off, nil)
	}
	return nil
}

// xxhash64 is XXH64 with seed 0 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md).
func xxhash64(b []byte) uint64 {
	var ( // variables, since their sums must wrap
		p1 uint64 = 0x9E3779B185EBCA87
		p2 uint64 = 0xC2B2AE3D27D4EB4F
		p3 uint64 = 0x165667B19E3779F9
		p4 uint64 = 0x85EBCA77C2B2AE63
		p5 uint64 = 0x27D4EB2F165667C5
	)
	round := func(acc, v uint64) uint64 { return bits.RotateLeft64(acc+v*p2, 31) * p1 }
	h, n := p5, uint64(len(b))
	if len(b) >= 32 {
		acc := [4]uint64{p1 + p2, p2, 0, -p1}
		for ; len(b) >= 32; b = b[32:] {
			for i := range acc {
				acc[i] = round(acc[i], binary.LittleEndian.Uint64(b[8*i:]))
			}
		}
		h = bits.RotateLeft64(acc[0], 1) + bits.RotateLeft64(acc[1], 7) + bits.RotateLeft64(acc[2], 12) + bits.RotateLeft64(acc[3], 18)
		for _, a := range acc {
			h = (h^round(0, a))*p1 + p4
		}
	}
	h += n
	for ; len(b) >= 8; b = b[8:] {
		h = bits.RotateLeft64(h^round(0, binary.LittleEndian.Uint64(b)), 27)*p1 + p4
	}
	if len(b) >= 4 {
		h = bits.RotateLeft64(h^uint64(binary.LittleEndian.Uint32(b))*p1, 23)*p2 + p3
		b = b[4:]
	}
	for _, c := range b {
		h = bits.RotateLeft64(h^uint64(c)*p5, 11) * p1
	}
	h = (h ^ h>>33) * p2
	h = (h ^ h>>29) * p3
	return h ^ h>>32
}

func crc32c(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
