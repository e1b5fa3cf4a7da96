package qcow2

import (
	"errors"
	"fmt"
	"io"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/formats/luks"
	"vmkit/formats/ondisk"
)

// crypt says how an encrypted payload is read.
type crypt struct {
	sector int64
	key    string // id of the key; empty: none was given
}

// cryptWindow is the longest stretch that is decrypted as one: extents of a pack end at its multiples.
const cryptWindow = 1 << 20

// openCrypt looks for the payload's encryption, and for a passphrase that opens it. Without one the payload's extents
// are of kind Encrypted.
func (m *mapper) openCrypt(img *formats.Image, o *formats.Opener) error {
	switch m.h.CryptMethod {
	case cryptNone:
		return nil
	case cryptAES:
		img.Encryption = "aes"
		m.crypt = &crypt{sector: 512}
		return nil
	}
	img.Encryption = "luks"
	m.crypt = &crypt{sector: 512}
	x := m.h.crypto
	if x == nil {
		return ondisk.Corrupt("qcow2 header", "no encryption header pointer for LUKS", 32, nil)
	}
	if x.Offset&uint64(m.h.clusterSize()-1) != 0 || x.Offset > 1<<56 {
		return ondisk.Corrupt("qcow2 encryption header pointer", "offset", -1, x.Offset)
	}
	// Key material may lie past the written length only in a header that lies about it: the file bounds it.
	size := max(m.file.Size-int64(x.Offset), 0)
	r := io.NewSectionReader(m.file, int64(x.Offset), size)
	h, err := luks.Read(r, size)
	if err != nil {
		err = fmt.Errorf("qcow2 encryption header at byte %#x: %w", x.Offset, err)
		if errors.Is(err, ondisk.ErrUnsupported) { // what is not encrypted can be had all the same
			img.Problems = append(img.Problems, err)
			return nil
		}
		return err
	}
	img.Notes = append(img.Notes, h.Notes...)
	m.crypt.sector = int64(h.SectorSize)
	for o.Passphrase != nil {
		secret, ok := o.Passphrase(m.file.Path)
		if !ok {
			break
		}
		key, err := h.Unlock(r, secret)
		if errors.Is(err, luks.ErrPassphrase) {
			continue
		}
		if err != nil {
			return err
		}
		m.crypt.key = h.KeyID()
		o.Env.SetKey(m.crypt.key, key)
		break
	}
	return nil
}

// extent gives the n bytes at off of the virtual disk, whose encrypted form lies at host. Sectors are numbered by where
// they lie in the host file.
func (c *crypt) extent(f *formats.File, host, off, n int64) formats.Extent {
	if c.key == "" {
		return formats.Extent{Len: n, Kind: formats.Encrypted, Disk: off}
	}
	start := host &^ (c.sector - 1)
	end := min((host+n+c.sector-1)&^(c.sector-1), start&^(cryptWindow-1)+cryptWindow)
	return formats.Extent{
		Len: min(n, end-host), Kind: formats.Packed, Disk: off, Skip: host - start,
		Pack: &formats.Pack{
			Spec:  codec.Spec{Codec: codec.AESXTS, Full: end - start, Sector: int(c.sector), IV: uint64(start) / 512, Key: c.key},
			Parts: []formats.Extent{{Len: end - start, Kind: formats.Data, Disk: formats.NoPos, File: f, Off: start}},
		},
	}
}
