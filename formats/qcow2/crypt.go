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

// openCrypt looks for the payload's encryption, and for a passphrase that opens it. Without one the payload's extents
// are of kind Encrypted.
func (m *mapper) openCrypt(img *formats.Image, o *formats.Opener) error {
	switch m.h.CryptMethod {
	case cryptNone:
		return nil
	case cryptAES:
		m.crypt = o.LegacyAES(img, m.file)
		return nil
	}
	img.Encryption = "luks"
	m.crypt = &formats.Cipher{Codec: codec.AESXTS, Sector: 512}
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
	m.crypt.Sector = int64(h.SectorSize)
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
		m.crypt.Key = h.KeyID()
		o.Env.SetKey(m.crypt.Key, key)
		break
	}
	return nil
}
