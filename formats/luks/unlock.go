package luks

import (
	"crypto/aes"
	"crypto/pbkdf2"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/ripemd160" //nolint:staticcheck // LUKS1 containers of old were made with it
	"golang.org/x/crypto/xts"

	"vmkit/formats/ondisk"
)

// ErrPassphrase means that no key slot opens with the passphrase.
var ErrPassphrase = errors.New("no key slot opens with this passphrase")

var hashes = map[string]func() hash.Hash{
	"sha1": sha1.New, "sha224": sha256.New224, "sha256": sha256.New, "sha384": sha512.New384, "sha512": sha512.New, "ripemd160": ripemd160.New,
}

// kdf derives keys from secrets.
type kdf struct {
	name   string // "pbkdf2", "argon2i", "argon2id"
	hash   string // PBKDF2
	time   int64  // iterations, or passes
	memory int64  // KiB, Argon2
	lanes  int64  // Argon2
	salt   []byte
}

func (k kdf) derive(secret []byte, n int) ([]byte, error) {
	switch k.name {
	case "pbkdf2":
		h := hashes[k.hash]
		if h == nil {
			return nil, ondisk.Unsupported("luks key slot", fmt.Sprintf("hash %q", k.hash), -1, nil)
		}
		if k.time < 1 || k.time > maxIterations {
			return nil, ondisk.Unsupported("luks key slot", fmt.Sprintf("iterations beyond the limit of %d:", maxIterations), -1, k.time)
		}
		return pbkdf2.Key(h, string(secret), k.salt, int(k.time), n)
	case "argon2i", "argon2id":
		if k.time < 1 || k.memory < 8 || k.lanes < 1 || k.lanes > maxArgonLanes {
			return nil, ondisk.Corrupt("luks key slot", "argon2 parameters", -1, fmt.Sprintf("%d, %d, %d", k.time, k.memory, k.lanes))
		}
		if k.memory > maxArgonKiB || k.time > maxArgonTotal/k.memory {
			return nil, ondisk.Unsupported("luks key slot", fmt.Sprintf("argon2 asks for %d passes over %d KiB, beyond the limit:", k.time, k.memory), -1, nil)
		}
		f := argon2.IDKey
		if k.name == "argon2i" {
			f = argon2.Key
		}
		return f(secret, k.salt, uint32(k.time), uint32(k.memory), uint8(k.lanes), uint32(n)), nil
	}
	return nil, ondisk.Unsupported("luks key slot", fmt.Sprintf("key derivation %q", k.name), -1, nil)
}

// Unlock tries the passphrase on every key slot and gives the volume key. r is the container that the header was read
// from. When no slot opens, the error wraps ErrPassphrase, and says which slots could not be tried.
func (h *Header) Unlock(r io.ReaderAt, passphrase []byte) ([]byte, error) {
	var untried []error
	for _, s := range h.slots {
		key, err := h.open(r, s, passphrase)
		if err != nil {
			untried = append(untried, fmt.Errorf("key slot %d: %w", s.number, err))
			continue
		}
		if key != nil {
			return key, nil
		}
	}
	return nil, errors.Join(append([]error{ErrPassphrase}, untried...)...)
}

// open tries one slot; nil without an error: the passphrase is another one's.
func (h *Header) open(r io.ReaderAt, s slot, passphrase []byte) ([]byte, error) {
	if s.cipher != "aes-xts-plain64" && s.cipher != "aes-xts-plain" {
		return nil, ondisk.Unsupported("luks key slot", fmt.Sprintf("cipher %q", s.cipher), -1, nil)
	}
	if s.keyBytes != 32 && s.keyBytes != 64 {
		return nil, ondisk.Unsupported("luks key slot", "bytes of an aes-xts key", -1, s.keyBytes)
	}
	length := (s.len + sector - 1) / sector * sector
	if length > maxMaterial {
		return nil, ondisk.Corrupt("luks key slot", "length", -1, s.len)
	}
	material, err := ondisk.Read(r, s.off, length, "luks key material")
	if err != nil {
		return nil, err
	}
	k, err := s.kdf.derive(passphrase, s.keyBytes)
	if err != nil {
		return nil, err
	}
	c, err := xts.NewCipher(aes.NewCipher, k)
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(material); i += sector {
		c.Decrypt(material[i:i+sector], material[i:i+sector], uint64(i/sector))
	}
	key, err := merge(material[:s.len], s.volume, s.stripes, s.hash)
	if err != nil {
		return nil, err
	}
	for _, d := range h.digests {
		if d.slots != nil && !d.slots[s.number] {
			continue
		}
		sum, err := d.kdf.derive(key, len(d.digest))
		if err != nil {
			return nil, err
		}
		if subtle.ConstantTimeCompare(sum, d.digest) == 1 {
			return key, nil
		}
	}
	return nil, nil
}

// merge puts a key together that the anti-forensic splitter spread over stripes: LUKS1 specification, 2.4.
func merge(b []byte, n, stripes int, hashName string) ([]byte, error) {
	newHash := hashes[hashName]
	if newHash == nil {
		return nil, ondisk.Unsupported("luks key slot", fmt.Sprintf("hash %q", hashName), -1, nil)
	}
	h := newHash()
	key := make([]byte, n)
	for i := range stripes {
		subtle.XORBytes(key, key, b[i*n:(i+1)*n])
		if i < stripes-1 {
			diffuse(key, h)
		}
	}
	return key, nil
}

// diffuse replaces each piece of the hash's length by the hash of its number and itself.
func diffuse(key []byte, h hash.Hash) {
	size := h.Size()
	for i := 0; i*size < len(key); i++ {
		piece := key[i*size : min((i+1)*size, len(key))]
		h.Reset()
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(i))
		h.Write(n[:])
		h.Write(piece)
		copy(piece, h.Sum(nil))
	}
}
