package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"strings"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
)

// info is what the header says, checked.
type info struct {
	header
	header3
	codec string // of compressed clusters

	backing       string // name of the backing file, or empty
	backingFormat string
	dataFile      string
	crypto        *cryptoExt
	bitmaps       *bitmapsExt
}

func (h *info) clusterSize() int64 { return 1 << h.ClusterBits }
func (h *info) extended() bool     { return h.Incompatible&incompatExtendedL2 != 0 }
func (h *info) external() bool     { return h.Incompatible&incompatDataFile != 0 }

// entrySize gives the bytes of an L2 entry.
func (h *info) entrySize() int64 {
	if h.extended() {
		return 16
	}
	return 8
}

// span gives how many bytes of the virtual disk one L2 table maps.
func (h *info) span() int64 { return h.clusterSize() / h.entrySize() * h.clusterSize() }

const what = "qcow2 header"

// readHeader reads and checks the header, its extensions and the backing file's name.
func readHeader(f *formats.File) (*info, error) {
	buf, err := ondisk.Read(f, 0, min(headerLen3, f.Size), what)
	if err != nil {
		return nil, err
	}
	h := &info{}
	if _, err := binary.Decode(buf, binary.BigEndian, &h.header); err != nil {
		return nil, ondisk.Truncated(what, "", 0, nil)
	}
	switch {
	case h.Magic != Magic:
		return nil, &ondisk.Error{What: what, Field: "magic", Got: fmt.Sprintf("%#x", h.Magic), Err: ondisk.ErrNot}
	case h.Version != 2 && h.Version != 3:
		return nil, ondisk.Unsupported(what, "version", 4, h.Version)
	case h.ClusterBits < minClusterBits:
		return nil, ondisk.Corrupt(what, "cluster bits", 20, h.ClusterBits)
	case h.ClusterBits > maxClusterBits:
		return nil, ondisk.Unsupported(what, "cluster bits", 20, h.ClusterBits)
	case h.CryptMethod > cryptLUKS:
		return nil, ondisk.Unsupported(what, "encryption method", 32, h.CryptMethod)
	}
	// What both versions lay behind the header lies in the first cluster.
	first, err := ondisk.Read(f, 0, min(h.clusterSize(), f.Size), what)
	if err != nil {
		return nil, err
	}
	h.header3 = header3{RefcountOrder: 4, HeaderLength: headerLen2}
	if h.Version == 3 {
		if len(first) < headerLen3 {
			return nil, ondisk.Truncated(what, "", int64(len(first)), nil)
		}
		binary.Decode(first[headerLen2:], binary.BigEndian, &h.header3)
		if h.HeaderLength < headerLen3 || int64(h.HeaderLength) > h.clusterSize() {
			return nil, ondisk.Corrupt(what, "header length", 100, h.HeaderLength)
		}
		if h.RefcountOrder > 6 {
			return nil, ondisk.Corrupt(what, "refcount order", 96, h.RefcountOrder)
		}
	}
	names, err := h.readExtensions(first)
	if err != nil {
		return nil, err
	}
	if err := h.checkFeatures(first, names); err != nil {
		return nil, err
	}
	if err := h.readBacking(first); err != nil {
		return nil, err
	}
	return h, h.checkTables()
}

// readExtensions goes through the header extensions and gives the names of incompatible features among them.
func (h *info) readExtensions(first []byte) (map[int]string, error) {
	names := make(map[int]string)
	return names, h.extensions(first, func(kind uint32, b []byte, at int64) error {
		switch kind {
		case extBackingFormat:
			h.backingFormat = cString(b)
		case extDataFile:
			h.dataFile = cString(b)
		case extFeatureNames:
			var f featureName
			for ; len(b) >= binary.Size(f); b = b[binary.Size(f):] {
				binary.Decode(b, binary.BigEndian, &f)
				if f.Type == 0 {
					names[int(f.Bit)] = cString(f.Name[:])
				}
			}
		case extCrypto:
			h.crypto = &cryptoExt{}
			if _, err := binary.Decode(b, binary.BigEndian, h.crypto); err != nil {
				return ondisk.Corrupt("qcow2 encryption header pointer", "length", at, len(b))
			}
		case extBitmaps:
			h.bitmaps = &bitmapsExt{}
			if _, err := binary.Decode(b, binary.BigEndian, h.bitmaps); err != nil {
				return ondisk.Corrupt("qcow2 bitmaps extension", "length", at, len(b))
			}
		}
		return nil
	})
}

// extensions calls do with each header extension and where its length stands.
func (h *info) extensions(first []byte, do func(kind uint32, b []byte, at int64) error) error {
	end := len(first)
	if off := h.BackingFileOffset; off >= uint64(h.HeaderLength) && off < uint64(end) {
		end = int(off) // they end where the backing file's name begins
	}
	if int(h.HeaderLength) >= end {
		return nil
	}
	c := ondisk.NewCursor(first[h.HeaderLength:end], binary.BigEndian, int64(h.HeaderLength), "qcow2 header extension")
	for c.Len() >= 8 {
		at := c.Off() + 4
		kind, n := c.U32(), c.U32()
		if kind == extEnd {
			break
		}
		if int64(n) > int64(c.Len()) {
			return ondisk.Corrupt("qcow2 header extension", fmt.Sprintf("%#x: length", kind), at, n)
		}
		if err := do(kind, c.Bytes(int(n)), at); err != nil {
			return err
		}
		c.Skip(min(-int(n)&7, c.Len()))
	}
	return nil
}

// cString cuts what is not NUL-terminated by the specification, but by some writers all the same.
func cString(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b)
}

func (h *info) checkFeatures(first []byte, names map[int]string) error {
	if unknown := h.Incompatible &^ incompatKnown; unknown != 0 {
		var list []string
		for u := unknown; u != 0; u &= u - 1 {
			bit := bits.TrailingZeros64(u)
			s := fmt.Sprintf("bit %d", bit)
			if names[bit] != "" {
				s += fmt.Sprintf(" (%q)", names[bit])
			}
			list = append(list, s)
		}
		return ondisk.Unsupported(what, "incompatible features", headerLen2, strings.Join(list, ", "))
	}
	var compression byte
	if h.HeaderLength > compressionTypeAt && len(first) > compressionTypeAt {
		compression = first[compressionTypeAt]
	}
	if (compression != compressDeflate) != (h.Incompatible&incompatCompression != 0) {
		return ondisk.Corrupt(what, "compression type", compressionTypeAt, compression)
	}
	switch compression {
	case compressDeflate:
		h.codec = codec.Deflate
	case compressZstd:
		h.codec = codec.Zstd
	default:
		return ondisk.Unsupported(what, "compression type", compressionTypeAt, compression)
	}
	if h.extended() && h.ClusterBits < minExtendedBits {
		return ondisk.Corrupt(what, "cluster bits with extended L2 entries", 20, h.ClusterBits)
	}
	return nil
}

func (h *info) readBacking(first []byte) error {
	if h.BackingFileOffset == 0 || h.BackingFileSize == 0 {
		return nil
	}
	if h.BackingFileSize > maxBackingName {
		return ondisk.Corrupt(what, "length of the backing file's name", 16, h.BackingFileSize)
	}
	if h.BackingFileOffset > uint64(h.clusterSize()) || !ondisk.Within(int64(h.BackingFileOffset), int64(h.BackingFileSize), h.clusterSize()) {
		return ondisk.Corrupt(what, "offset of the backing file's name", 8, h.BackingFileOffset)
	}
	if !ondisk.Within(int64(h.BackingFileOffset), int64(h.BackingFileSize), int64(len(first))) {
		return ondisk.Truncated(what, "backing file's name", int64(h.BackingFileOffset), nil)
	}
	h.backing = cString(first[h.BackingFileOffset:][:h.BackingFileSize])
	return nil
}

// checkTables bounds what the header says of the tables that every reader needs.
func (h *info) checkTables() error {
	if h.Size > 1<<63-1-uint64(h.span()) {
		return ondisk.Corrupt(what, "virtual size", 24, h.Size)
	}
	return h.checkL1(h.L1TableOffset, h.L1Size, int64(h.Size), what, 36)
}

// checkL1 checks the place and length of an L1 table that maps size bytes; at is where its number of entries stands.
func (h *info) checkL1(off uint64, entries uint32, size int64, what string, at int64) error {
	switch {
	case int64(entries)*8 > maxL1Bytes:
		return ondisk.Unsupported(what, "L1 entries", at, entries)
	case (size+h.span()-1)/h.span() > int64(entries):
		return ondisk.Corrupt(what, fmt.Sprintf("L1 entries for %d bytes", size), at, entries)
	case off&uint64(h.clusterSize()-1) != 0 || off > 1<<56:
		return ondisk.Corrupt(what, "L1 table's offset", -1, off)
	}
	return nil
}
