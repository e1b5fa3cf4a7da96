package vhdx

import (
	"encoding/binary"
	"testing"
)

func TestLayout(t *testing.T) {
	for _, c := range []struct {
		v    any
		size int
	}{
		{header{}, 80}, {regionHeader{}, 16}, {regionEntry{}, 32}, {logHeader{}, logHeaderLen}, {logDesc{}, logDescLen},
		{metaHeader{}, 32}, {metaEntry{}, 32}, {locatorEntry{}, 12},
	} {
		if n := binary.Size(c.v); n != c.size {
			t.Errorf("%T has %d bytes, want %d", c.v, n, c.size)
		}
	}
	g := mustGUID("00112233-4455-6677-8899-aabbccddeeff")
	if g != (guid{0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff}) ||
		g.String() != "00112233-4455-6677-8899-aabbccddeeff" {
		t.Errorf("GUID %x, %s", g[:], g)
	}
}
