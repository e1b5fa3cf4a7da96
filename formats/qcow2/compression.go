package qcow2

import "vmkit/formats"

// Compression tells how an image's clusters are compressed: the name of a codec. It says nothing of whether any are.
func Compression(f *formats.File) (string, error) {
	h, err := readHeader(f)
	if err != nil {
		return "", err
	}
	return h.codec, nil
}
