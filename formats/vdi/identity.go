package vdi

import (
	"encoding/binary"
	"encoding/hex"
	"strings"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Identity is what VirtualBox knows an image by, as it writes UUIDs.
type Identity struct {
	UUID   string
	Parent string // "00000000-0000-0000-0000-000000000000": there is none
}

// ReadIdentity reads an image's identity.
func ReadIdentity(f *formats.File) (Identity, error) {
	_, h, err := read(f)
	if err != nil {
		return Identity{}, err
	}
	return Identity{uuid(h.UUID), uuid(h.ParentUUID)}, nil
}

// Identify gives the image's first bytes as they have to be for it to have another identity. UUIDs are those of
// [ReadIdentity], or of their form. What a parent was last changed as stays: it tells that a chain fits together.
func Identify(f *formats.File, id Identity) ([]byte, error) {
	_, h, err := read(f)
	if err != nil {
		return nil, err
	}
	if h.UUID, err = parseUUID(id.UUID); err != nil {
		return nil, err
	}
	if h.ParentUUID, err = parseUUID(id.Parent); err != nil {
		return nil, err
	}
	head, err := ondisk.Read(f, 0, sectorSize, "vdi header")
	if err != nil {
		return nil, err
	}
	_, err = binary.Encode(head, binary.LittleEndian, h)
	return head, err
}

// parseUUID is the inverse of uuid.
func parseUUID(s string) (b [16]byte, err error) {
	p, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(p) != len(b) {
		return b, ondisk.Unsupported("vdi header", "UUID", -1, s)
	}
	be, le := binary.BigEndian, binary.LittleEndian
	copy(b[8:], p[8:])
	le.PutUint32(b[0:], be.Uint32(p[0:]))
	le.PutUint16(b[4:], be.Uint16(p[4:]))
	le.PutUint16(b[6:], be.Uint16(p[6:]))
	return b, nil
}
