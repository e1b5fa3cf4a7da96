package formats

import (
	"bytes"
	"fmt"
	"path/filepath"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
)

// Cipher is how the payload of an image is encrypted.
type Cipher struct {
	Codec  string
	Sector int64  // bytes of one encryption unit, a power of two
	Key    string // id of the key; empty: none was given
	// ByDisk says that sectors are numbered by where they lie in the virtual disk, not in the host file.
	ByDisk bool
}

// cipherWindow is the longest stretch that is decrypted as one: extents of a pack end at its multiples.
const cipherWindow = 1 << 20

// Extent gives the n bytes at off of the virtual disk, whose encrypted form lies at host in f. The sectors that they
// lie in are all there.
func (c *Cipher) Extent(f *File, host, off, n int64) Extent {
	if c.Key == "" {
		return Extent{Len: n, Kind: Encrypted, Disk: off}
	}
	skip := host & (c.Sector - 1)
	start := host - skip
	end := min((host+n+c.Sector-1)&^(c.Sector-1), start&^(cipherWindow-1)+cipherWindow)
	first := start
	if c.ByDisk {
		first = off - skip
	}
	return Extent{
		Len: min(n, end-host), Kind: Packed, Disk: off, Skip: skip,
		Pack: &Pack{
			Spec:  codec.Spec{Codec: c.Codec, Full: end - start, Sector: int(c.Sector), IV: uint64(first) / 512, Key: c.Key},
			Parts: []Extent{{Len: end - start, Kind: Data, Disk: NoPos, File: f, Off: start}},
		},
	}
}

// LegacyAES is the encryption of QCOW images whose method is 1: the key is the passphrase itself, of which 16 bytes
// count. It asks for the passphrase of f, the image's file; nothing tells a wrong one.
func (o *Opener) LegacyAES(img *Image, f *File) *Cipher {
	img.Encryption = "aes"
	c := &Cipher{Codec: codec.AESCBC, Sector: 512, ByDisk: true}
	if o.Passphrase == nil {
		return c
	}
	secret, ok := o.Passphrase(f.Path)
	if !ok {
		return c
	}
	key := make([]byte, 16)
	copy(key, secret)
	id := "qcow-aes:" + filepath.Base(f.Path)
	if other, ok := o.Env.Keys()(id); ok && !bytes.Equal(other, key) {
		img.Problems = append(img.Problems, ondisk.Unsupported("qcow encryption", fmt.Sprintf("another image called %s has another passphrase", f.Path), -1, nil))
		return c
	}
	img.Notes = append(img.Notes, "legacy AES encryption: a wrong passphrase can't be told from the right one")
	o.Env.SetKey(id, key)
	c.Key = id
	return c
}
