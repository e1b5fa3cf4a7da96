package qcow2

import "vmkit/formats"

// crypt is what is known of an encrypted payload.
type crypt struct{}

func (m *mapper) openCrypt(img *formats.Image, o *formats.Opener) error {
	switch m.h.CryptMethod {
	case cryptAES:
		img.Encryption = "aes"
	case cryptLUKS:
		img.Encryption = "luks"
	default:
		return nil
	}
	m.crypt = &crypt{}
	return nil
}

// extent gives the n bytes at off, whose encrypted form lies at host.
func (c *crypt) extent(f *formats.File, host, off, n int64) formats.Extent {
	return formats.Extent{Len: n, Kind: formats.Encrypted, Disk: off}
}
