package ext4

import (
	"crypto/sha256"
	"encoding/base64"
	"math/bits"

	"vmkit/fsmap"
)

// Names and symlink targets that fscrypt encrypted are shown as the kernel does without the key (fs/crypto/fname.c,
// struct fscrypt_nokey_name): base64url of the directory hash, two words, and the stored name; of what a long name has
// beyond 149 bytes only the SHA-256.
const (
	cipherMin   = 16 // the shortest encrypted name: one AES block
	cipherPlain = 149
)

// cipherNames renders the names of one encrypted directory.
type cipherNames struct {
	stored  bool // the hash lies behind the name: a casefold directory
	version uint8
	seed    [4]uint32
	buf     []byte
}

// cipherNames tells what the kernel would put before the names of a directory: their hash where it reads the directory
// in hash order, else nothing.
func (f *fsys) cipherNames(in *inode) *cipherNames {
	c := &cipherNames{version: hashNone, seed: f.sb.HashSeed}
	hashed := in.flags&flIndex != 0
	if !f.has(compatDirIndex) || !hashed && in.size>>f.shift != 1 {
		return c
	}
	c.stored, c.version = in.flags&flCasefold != 0, f.sb.DefHashVersion
	if hashed {
		var root [dxRootCount]byte
		if f.readContent(in, root[:]) == nil {
			c.version = root[dxHashVersion]
		}
	}
	if c.version <= hashTEA && f.sb.Flags&flagUnsignedHash != 0 {
		c.version += hashUnsigned
	}
	return c
}

// shown gives what stands for the name of n bytes in an entry. It is good until the next call.
func (c *cipherNames) shown(entry []byte, n int) []byte {
	name := entry[deName : deName+n]
	var hash, minor uint32
	if at := (deName + n + 3) &^ 3; c.stored && at+8 <= len(entry) {
		hash, minor = le.Uint32(entry[at:]), le.Uint32(entry[at+4:])
	} else if !c.stored {
		hash, minor = dirHash(c.version, c.seed, name)
	}
	c.buf = nokeyName(c.buf[:0], hash, minor, name)
	return c.buf
}

func nokeyName(dst []byte, hash, minor uint32, name []byte) []byte {
	var raw [8 + cipherPlain + sha256.Size]byte
	le.PutUint32(raw[:], hash)
	le.PutUint32(raw[4:], minor)
	n := 8 + copy(raw[8:8+cipherPlain], name)
	if len(name) > cipherPlain {
		sum := sha256.Sum256(name[cipherPlain:])
		n += copy(raw[n:], sum[:])
	}
	return base64.RawURLEncoding.AppendEncode(dst, raw[:n])
}

// cipherTarget replaces an encrypted symlink target, which is stored behind its length, by what stands for it.
func (f *fsys) cipherTarget(in *inode, n *fsmap.Node) error {
	stored := n.Target
	if len(stored) < 2 || int(le.Uint16(stored)) > len(stored)-2 || le.Uint16(stored) == 0 {
		n.Target = n.Target[:0]
		return in.corrupt("length of the encrypted target", iBlock, len(stored))
	}
	n.Target = nokeyName(nil, 0, 0, stored[2:2+le.Uint16(stored)])
	n.Size = int64(len(n.Target))
	return nil
}

// Hash versions of directories ("Hash Tree Directories").
const (
	hashLegacy   = 0
	hashHalfMD4  = 1
	hashTEA      = 2
	hashUnsigned = 3 // added to these where char is unsigned
	hashNone     = 0xFF
)

// dirHash is the hash of a name in a directory's tree (fs/ext4/hash.c).
func dirHash(version uint8, seed [4]uint32, name []byte) (hash, minor uint32) {
	h := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if seed != [4]uint32{} {
		h = seed
	}
	signed := version < hashUnsigned
	if !signed && version <= hashUnsigned+hashTEA {
		version -= hashUnsigned
	}
	var in [8]uint32
	switch version {
	case hashLegacy:
		hash = legacyHash(name, signed)
	case hashHalfMD4:
		for p := name; len(p) > 0; p = p[min(32, len(p)):] {
			hashWords(in[:8], p, signed)
			halfMD4(&h, &in)
		}
		hash, minor = h[1], h[2]
	case hashTEA:
		for p := name; len(p) > 0; p = p[min(16, len(p)):] {
			hashWords(in[:4], p, signed)
			tea(&h, &in)
		}
		hash, minor = h[0], h[1]
	default:
		return 0, 0
	}
	const eof = 0x7fffffff << 1
	if hash &^= 1; hash == eof {
		hash = eof - 2
	}
	return hash, minor
}

func char(c byte, signed bool) uint32 {
	if signed {
		return uint32(int8(c))
	}
	return uint32(c)
}

func legacyHash(name []byte, signed bool) uint32 {
	h0, h1 := uint32(0x12a3fe2d), uint32(0x37abe8f9)
	for _, c := range name {
		h := h1 + (h0 ^ char(c, signed)*7152373)
		if h&0x80000000 != 0 {
			h -= 0x7fffffff
		}
		h0, h1 = h, h0
	}
	return h0 << 1
}

// hashWords packs a name into words, padded with its length.
func hashWords(w []uint32, name []byte, signed bool) {
	pad := uint32(len(name)) | uint32(len(name))<<8
	pad |= pad << 16
	name = name[:min(len(name), 4*len(w))]
	for i := range w {
		w[i] = pad
		for range min(4, len(name)) {
			w[i] = char(name[0], signed) + w[i]<<8
			name = name[1:]
		}
	}
}

func tea(h *[4]uint32, in *[8]uint32) {
	var sum uint32
	a, b := h[0], h[1]
	for range 16 {
		sum += 0x9E3779B9
		a += (b<<4 + in[0]) ^ (b + sum) ^ (b>>5 + in[1])
		b += (a<<4 + in[2]) ^ (a + sum) ^ (a>>5 + in[3])
	}
	h[0] += a
	h[1] += b
}

func halfMD4(h *[4]uint32, in *[8]uint32) {
	a, b, c, d := h[0], h[1], h[2], h[3]
	for _, r := range [3]struct {
		f     func(x, y, z uint32) uint32
		k     uint32
		shift [4]int
		order [8]int
	}{
		{func(x, y, z uint32) uint32 { return z ^ x&(y^z) }, 0, [4]int{3, 7, 11, 19}, [8]int{0, 1, 2, 3, 4, 5, 6, 7}},
		{func(x, y, z uint32) uint32 { return x&y + (x^y)&z }, 0x5A827999, [4]int{3, 5, 9, 13}, [8]int{1, 3, 5, 7, 0, 2, 4, 6}},
		{func(x, y, z uint32) uint32 { return x ^ y ^ z }, 0x6ED9EBA1, [4]int{3, 9, 11, 15}, [8]int{3, 7, 2, 6, 1, 5, 0, 4}},
	} {
		for i, j := range r.order {
			a = bits.RotateLeft32(a+r.f(b, c, d)+in[j]+r.k, r.shift[i&3])
			a, b, c, d = d, a, b, c
		}
	}
	h[0], h[1], h[2], h[3] = h[0]+a, h[1]+b, h[2]+c, h[3]+d
}
