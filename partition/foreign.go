package partition

import (
	"encoding/binary"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// foreignTable recognises partition tables that are not read: their name goes into an error that wraps
// ondisk.ErrUnsupported. ondisk.ErrNot means that there is none.
func foreignTable(d formats.Disk, head []byte) (*table, error) {
	name := foreignName(d, head)
	if name == "" {
		return nil, ondisk.ErrNot
	}
	return nil, ondisk.Unsupported(name, "", -1, nil)
}

func foreignName(d formats.Disk, head []byte) string {
	be := binary.BigEndian
	switch {
	case be.Uint32(head) == sgiMagic:
		return "SGI volume header"
	case be.Uint16(head[508:]) == sunMagic && xor16(head[:512]) == 0:
		return "Sun disk label"
	case be.Uint32(head) == aixMagic:
		return "AIX disk"
	case string(head[:4]) == "AHDI":
		return "Atari partition table"
	}
	var b [16]byte
	word := func(off int64) uint32 {
		if _, err := d.ReadAt(b[:4], off); err != nil {
			return 0
		}
		return be.Uint32(b[:])
	}
	for _, block := range []int64{512, 1024, 2048, 4096} {
		if w := word(2 * block); w == dasdMagic || w == dasdLNX1 || word(2*block+4) == dasdMagic {
			return "DASD label"
		}
	}
	for i := int64(0); i < 16; i++ {
		if word(i*512) == rdbMagic {
			return "Amiga rigid disk block"
		}
	}
	if _, err := d.ReadAt(b[:8], ldmPrivOff); err == nil && string(b[:8]) == ldmMagic {
		return "Windows logical disk manager database"
	}
	if atariRoot(head, d.Size()) {
		return "Atari partition table"
	}
	return ""
}

// atariRoot checks what an AHDI root sector has instead of a magic: its entries' flags, three letters and ranges, as
// Linux does, and that at least one entry is in use.
func atariRoot(head []byte, size int64) bool {
	var used int
	for e := head[atariOff : atariOff+4*12]; len(e) > 0; e = e[12:] {
		if e[0]&1 == 0 {
			continue
		}
		for _, c := range e[1:4] {
			if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
				return false
			}
		}
		start, n := int64(binary.BigEndian.Uint32(e[4:])), int64(binary.BigEndian.Uint32(e[8:]))
		if start == 0 || n == 0 || start+n > size/512 {
			return false
		}
		used++
	}
	return used > 0
}

func xor16(b []byte) uint16 {
	var x uint16
	for i := 0; i < len(b); i += 2 {
		x ^= binary.BigEndian.Uint16(b[i:])
	}
	return x
}
