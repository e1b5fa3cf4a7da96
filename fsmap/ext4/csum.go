package ext4

import (
	"encoding/binary"
	"hash/crc32"
)

var le, be = binary.LittleEndian, binary.BigEndian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c continues a checksum as ext4 keeps it: not inverted at the beginning and the end.
func crc32c(crc uint32, p []byte) uint32 { return ^crc32.Update(^crc, castagnoli, p) }

// crc32cUint continues a checksum with a number as it is stored.
func crc32cUint(crc, v uint32) uint32 {
	for range 4 {
		crc = castagnoli[byte(crc)^byte(v)] ^ crc>>8
		v >>= 8
	}
	return crc
}

// crc32cExcept is the checksum of p with the bytes from..to taken as zeros.
func crc32cExcept(crc uint32, p []byte, from, to int) uint32 {
	var zero [4]byte
	return crc32c(crc32c(crc32c(crc, p[:from]), zero[:to-from]), p[to:])
}

// crc16 is the checksum of group descriptors before metadata_csum: polynomial 0x8005, bits reversed.
func crc16(crc uint16, p []byte) uint16 {
	for _, b := range p {
		crc = crc>>8 ^ crc16Table[byte(crc)^b]
	}
	return crc
}

var crc16Table = func() (t [256]uint16) {
	for i := range t {
		c := uint16(i)
		for range 8 {
			c = c>>1 ^ -(c&1)&0xA001
		}
		t[i] = c
	}
	return
}()

// crc32BE is the checksum of transactions in journals of version 1: polynomial 0x04C11DB7, highest bit first.
func crc32BE(crc uint32, p []byte) uint32 {
	for _, b := range p {
		crc = crc<<8 ^ crc32BETable[byte(crc>>24)^b]
	}
	return crc
}

var crc32BETable = func() (t [256]uint32) {
	for i := range t {
		c := uint32(i) << 24
		for range 8 {
			c = c<<1 ^ -(c>>31)&0x04C11DB7
		}
		t[i] = c
	}
	return
}()
