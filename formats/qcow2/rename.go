package qcow2

import (
	"encoding/binary"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Names are the files that an image's header refers to.
type Names struct {
	Backing       string // as it stands there: a path, or QEMU's json: form
	BackingFormat string // "" where QEMU is left to guess
	Data          string // the external data file
}

// ReadNames reads which files an image refers to.
func ReadNames(f *formats.File) (Names, error) {
	h, err := readHeader(f)
	if err != nil {
		return Names{}, err
	}
	return Names{h.backing, h.backingFormat, h.dataFile}, nil
}

// Rename gives the image's first bytes as they have to be for it to refer to other files, of which those that it has
// none of are "". The header's cluster is laid out anew, as QEMU does it, and nothing else of the image changes. The
// names of features make room for the names of files where both don't fit.
func Rename(f *formats.File, n Names) ([]byte, error) {
	h, err := readHeader(f)
	if err != nil {
		return nil, err
	}
	if len(n.Backing) > maxBackingName {
		return nil, ondisk.Unsupported(what, "length of the backing file's name", -1, len(n.Backing))
	}
	first, err := ondisk.Read(f, 0, min(h.clusterSize(), f.Size), what)
	if err != nil {
		return nil, err
	}
	size := 0
	for _, drop := range []uint32{extEnd, extFeatureNames} {
		out := append([]byte(nil), first[:h.HeaderLength]...)
		err := h.extensions(first, func(kind uint32, b []byte, _ int64) error {
			switch kind {
			case drop, extDataFile, extBackingFormat:
			default:
				out = appendExtension(out, kind, b)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if n.BackingFormat != "" {
			out = appendExtension(out, extBackingFormat, []byte(n.BackingFormat))
		}
		if n.Data != "" {
			out = appendExtension(out, extDataFile, []byte(n.Data))
		}
		out = appendExtension(out, extEnd, nil)
		at := len(out)
		out = append(out, n.Backing...)
		if size = len(out); size > len(first) {
			continue
		}
		if n.Backing == "" {
			at = 0
		}
		binary.BigEndian.PutUint64(out[8:], uint64(at))
		binary.BigEndian.PutUint32(out[16:], uint32(len(n.Backing)))
		return append(out, make([]byte, len(first)-size)...), nil
	}
	return nil, ondisk.Unsupported(what, "bytes with the new names, more than its cluster has:", -1, size)
}

func appendExtension(out []byte, kind uint32, b []byte) []byte {
	out = binary.BigEndian.AppendUint32(out, kind)
	out = binary.BigEndian.AppendUint32(out, uint32(len(b)))
	out = append(out, b...)
	return append(out, make([]byte, -len(b)&7)...)
}
