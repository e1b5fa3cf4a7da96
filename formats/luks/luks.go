package luks

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"vmkit/formats/ondisk"
)

// Header is what a LUKS container says of itself.
type Header struct {
	Version int
	UUID    string
	Label   string
	// Cipher of the payload, "aes-xts-plain64" where it can be read.
	Cipher     string
	KeyBytes   int
	SectorSize int    // of the payload's encryption, in bytes
	IVStart    uint64 // number of the payload's first sector, in units of 512 bytes
	// PayloadOff is where the payload starts in the container; PayloadLen its length, or -1: up to the end.
	PayloadOff, PayloadLen int64
	Notes                  []string

	slots   []slot
	digests []digest
}

// KeyID is the id that the volume key has in extents: no secret.
func (h *Header) KeyID() string { return "luks:" + h.UUID }

// slot is a key slot of either version.
type slot struct {
	number   int
	kdf      kdf
	hash     string // of the anti-forensic splitter
	stripes  int
	off, len int64 // of the key material
	cipher   string
	keyBytes int // of the cipher of the key material
	volume   int // bytes of the volume key
}

// digest proves a volume key.
type digest struct {
	kdf    kdf
	digest []byte
	slots  map[int]bool // nil: all
}

// Limits that keep numbers in a header from costing more than they may.
const (
	maxIterations = 100_000_000
	maxArgonKiB   = 2 << 20
	maxArgonTotal = 64 << 20 // KiB times passes
	maxArgonLanes = 64
	maxStripes    = 32 << 10 // cryptsetup writes 4000
	maxKeyBytes   = 128
	maxMaterial   = 4 << 20
	maxSlots      = 32 // LUKS2 specification, 3.2
	maxDigest     = 64
	maxSalt       = 1024
)

// Read reads the header of the container r, which has size bytes. An error that wraps ondisk.ErrNot means that there
// is none; with one that wraps ondisk.ErrUnsupported comes the header as far as it is known, to be shown.
func Read(r io.ReaderAt, size int64) (*Header, error) {
	var b [8]byte
	if size < 592 {
		return nil, fmt.Errorf("luks header: %w", ondisk.ErrNot)
	}
	if err := ondisk.ReadFull(r, b[:], 0, "luks header"); err != nil {
		return nil, err
	}
	version := binary.BigEndian.Uint16(b[6:])
	if string(b[:6]) == magic1 && version == 1 {
		return read1(r)
	}
	h, err := read2(r, size)
	if h == nil && err == nil {
		if string(b[:6]) == magic1 && version != 2 {
			return nil, ondisk.Unsupported("luks header", "version", 6, version)
		}
		return nil, fmt.Errorf("luks header: %w", ondisk.ErrNot)
	}
	return h, err
}

func read1(r io.ReaderAt) (*Header, error) {
	b, err := ondisk.Read(r, 0, int64(binary.Size(header1{})), "luks header")
	if err != nil {
		return nil, err
	}
	var x header1
	if _, err := binary.Decode(b, binary.BigEndian, &x); err != nil {
		return nil, err
	}
	h := &Header{
		Version: 1, UUID: text(x.UUID[:]), Cipher: text(x.Cipher[:]) + "-" + text(x.Mode[:]), KeyBytes: int(x.KeyBytes),
		SectorSize: sector, PayloadOff: int64(x.PayloadOffset) * sector, PayloadLen: -1,
	}
	if err := h.check(); err != nil {
		return h, err
	}
	hash := text(x.Hash[:])
	for i, s := range x.Slots {
		switch {
		case s.Active == slotFree:
			continue
		case s.Active != slotActive:
			h.Notes = append(h.Notes, fmt.Sprintf("key slot %d is neither active nor free (%#x)", i, s.Active))
			continue
		case s.Stripes == 0 || s.Stripes > maxStripes:
			h.Notes = append(h.Notes, fmt.Sprintf("key slot %d has %d stripes and is left out", i, s.Stripes))
			continue
		}
		h.slots = append(h.slots, slot{
			number: i, kdf: kdf{name: "pbkdf2", hash: hash, time: int64(s.Iterations), salt: bytes.Clone(s.Salt[:])},
			hash: hash, stripes: int(s.Stripes), off: int64(s.Offset) * sector, len: int64(x.KeyBytes) * int64(s.Stripes),
			cipher: h.Cipher, keyBytes: h.KeyBytes, volume: h.KeyBytes,
		})
	}
	h.digests = []digest{{
		kdf:    kdf{name: "pbkdf2", hash: hash, time: int64(x.DigestIterations), salt: bytes.Clone(x.DigestSalt[:])},
		digest: bytes.Clone(x.Digest[:]),
	}}
	return h, nil
}

// check tells whether the payload can be read.
func (h *Header) check() error {
	if h.Cipher == "aes-xts-plain" { // the same in the first 2³² sectors, and it wraps behind them
		if h.PayloadLen < 0 || h.PayloadLen > 1<<32*sector {
			h.Notes = append(h.Notes, "cipher aes-xts-plain is read as aes-xts-plain64, which it equals up to 2 TiB")
		}
		h.Cipher = "aes-xts-plain64"
	}
	if h.Cipher != "aes-xts-plain64" {
		return ondisk.Unsupported("luks header", fmt.Sprintf("cipher %q", h.Cipher), -1, nil)
	}
	if h.KeyBytes != 32 && h.KeyBytes != 64 {
		return ondisk.Unsupported("luks header", "bytes of an aes-xts key", -1, h.KeyBytes)
	}
	if n := h.SectorSize; n < 512 || n > 4096 || n&(n-1) != 0 {
		return ondisk.Corrupt("luks header", "sector size", -1, n)
	}
	return nil
}

// text is a string that ends at the first NUL.
func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return strings.ToValidUTF8(string(b), "_")
}
