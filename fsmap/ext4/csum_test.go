package ext4

import "testing"

// The check values are those of the CRC catalogue (reveng) for "123456789"; ext4's variants are not inverted at the end,
// CRC-32/MPEG-2 is the kernel's crc32_be(~0).
func TestChecksums(t *testing.T) {
	p := []byte("123456789")
	for _, c := range []struct {
		name      string
		got, want uint32
	}{
		{"crc32c", ^crc32c(^uint32(0), p), 0xE3069283},
		{"crc32c in two parts", ^crc32c(crc32c(^uint32(0), p[:4]), p[4:]), 0xE3069283},
		{"crc32c of a number", crc32cUint(7, 0x34333231), crc32c(7, p[:4])},
		{"crc32c but for some", crc32cExcept(7, p, 2, 4), crc32c(7, []byte("12\x00\x0056789"))},
		{"CRC-16/MODBUS", uint32(crc16(0xFFFF, p)), 0x4B37},
		{"CRC-32/MPEG-2", crc32BE(^uint32(0), p), 0x0376E6E7},
	} {
		if c.got != c.want {
			t.Errorf("%s: %#x, should be %#x", c.name, c.got, c.want)
		}
	}
}
