// Package codec holds the decoders that packed extents name: bytes in, bytes out. It knows no image format, no file
// system and no map.
//
// A codec's name is part of the map's format: a reader that knows nothing else turns packed bytes into plain ones by
// that name alone. Decoders never trust their input: the output's length is given by the caller, and no number in the
// input sizes an allocation.
package codec

import (
	"fmt"

	"vmkit/formats/ondisk"
)

// The names of the codecs, as they stand in a map.
const (
	Deflate  = "deflate" // RFC 1951, no header
	Zlib     = "zlib"    // RFC 1950
	Zstd     = "zstd"    // RFC 8878, one frame; what follows is ignored
	LZNT1    = "lznt1"   // NTFS compression units
	LZOBtrfs = "lzo-btrfs"
	Xpress4K = "xpress4k" // WOF files: one chunk of at most 4, 8 or 16 KiB, or 32 KiB for LZX
	Xpress8K = "xpress8k"
	Xpress16 = "xpress16k"
	LZX32K   = "lzx32k"
	XOR      = "xor"             // parts of equal length
	RAID6    = "raid6"           // parts of equal length, with Factors
	AESXTS   = "aes-xts-plain64" // with Sector, IV and Key
	AESCBC   = "aes-cbc-plain64" // with Sector, IV and Key
)

// Spec names a decoder and holds what it needs besides its input.
type Spec struct {
	Codec  string
	Full   int64  // length of the decoded bytes; at most MaxFull
	Sector int    // with a key: bytes of one encryption unit, 512 to 4096
	IV     uint64 // with a key: number of the first unit, counted in 512-byte sectors
	Key    string // the id of the key, never the key
	// Factors, of RAID6, has one for each part: see RAID6Factor.
	Factors []byte
	// Pad says that coded bytes may end, in good order, before Full: zeros follow. The tails of btrfs extents do.
	Pad bool
}

// MaxFull bounds the decoded length of one packed extent: 64 MiB, above every format's largest unit (2 MiB QCOW2
// clusters, 64 KiB VMDK grains, 128 KiB btrfs extents, 1 MiB squashfs blocks).
const MaxFull = 64 << 20

// Keys gives the secret of a key id.
type Keys func(id string) ([]byte, bool)

// decoder fills dst from in. It returns how many bytes it made, at most len(dst).
type decoder func(dst []byte, in []byte) (int, error)

var decoders = map[string]decoder{}

// Known reports whether the codec's name has a decoder here.
func Known(name string) bool {
	return SideBySide(name) || NeedsKey(name) || decoders[name] != nil
}

// NeedsKey tells whether the codec decrypts. It may do so in place.
func NeedsKey(name string) bool { return name == AESXTS || name == AESCBC }

// SideBySide tells whether the codec takes parts of equal length side by side, not joined.
func SideBySide(name string) bool { return name == XOR || name == RAID6 }

// Decode fills dst, whose length is s.Full, from the parts: joined in order, or side by side (see SideBySide).
// What follows in the input once dst is full is ignored; a decoder that ends before is an error that wraps
// ondisk.ErrCorrupt. It is safe for concurrent use.
func Decode(dst []byte, s Spec, keys Keys, parts ...[]byte) error {
	if int64(len(dst)) != s.Full {
		return fmt.Errorf("codec %s: buffer of %d bytes for %d", s.Codec, len(dst), s.Full)
	}
	switch s.Codec {
	case XOR:
		return xor(dst, parts)
	case RAID6:
		return raid6(dst, s.Factors, parts)
	case AESXTS, AESCBC:
		return decrypt(dst, s, keys, join(parts))
	}
	d := decoders[s.Codec]
	if d == nil {
		return ondisk.Unsupported("codec", s.Codec, -1, nil)
	}
	n, err := d(dst, join(parts))
	if err != nil {
		return fmt.Errorf("codec %s: %w: %w", s.Codec, ondisk.ErrCorrupt, err)
	}
	if s.Pad {
		clear(dst[n:])
	} else if n < len(dst) {
		return fmt.Errorf("codec %s: %d bytes of %d: %w", s.Codec, n, len(dst), ondisk.ErrCorrupt)
	}
	return nil
}

func join(parts [][]byte) []byte {
	if len(parts) == 1 {
		return parts[0]
	}
	var n int
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, 0, n)
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}
