package vhdx

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// readHeader gives the header that counts: of the valid ones the one with the higher number (2.2.2). What is odd is a
// note.
func readHeader(f *formats.File) (h *header, note string, err error) {
	var found [2]*header
	for i, at := range []int64{header1At, header2At} {
		b, err := ondisk.Read(f, at, headerLen, "vhdx header")
		if err != nil {
			return nil, "", err
		}
		c := new(header)
		if _, err := binary.Decode(b, binary.LittleEndian, c); err != nil {
			return nil, "", err
		}
		if string(c.Magic[:]) == headerMagic && checksum(b) == c.Checksum {
			found[i] = c
		}
	}
	switch a, b := found[0], found[1]; {
	case a == nil && b == nil:
		return nil, "", ondisk.Corrupt("vhdx header", "neither is whole", header1At, nil)
	case a == nil || b != nil && b.Sequence > a.Sequence:
		h = b
	// Disk2vhd writes two equal ones.
	case b != nil && b.Sequence == a.Sequence && *a != *b:
		return nil, "", ondisk.Corrupt("vhdx header", "two with the sequence number", header1At, a.Sequence)
	default:
		h = a
	}
	if found[0] == nil || found[1] == nil {
		note = "vhdx: one of the two headers is damaged; the other one is used"
	}
	if h.Version != 1 {
		return nil, "", ondisk.Unsupported("vhdx header", "version", -1, h.Version)
	}
	return h, note, nil
}

// region is a stretch of the file.
type region struct{ off, size int64 }

// readRegions finds the two regions that are needed, by whichever copy of the table is whole (2.2.3).
func readRegions(r *replayed) (bat, meta region, note string, err error) {
	const what = "vhdx region table"
	for i, at := range []int64{region1At, region2At} {
		b, err := ondisk.Read(r, at, regionTableLen, what)
		if err != nil {
			return bat, meta, "", err
		}
		var h regionHeader
		if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
			return bat, meta, "", err
		}
		if string(h.Magic[:]) != regionMagic || checksum(b) != h.Checksum {
			continue
		}
		if i == 1 {
			note = "vhdx: the region table is damaged; its copy is used"
		}
		if h.Count > maxRegions {
			return bat, meta, "", ondisk.Corrupt(what, "entries", at+8, h.Count)
		}
		found := map[guid]region{}
		for n := range int64(h.Count) {
			var e regionEntry
			pos := int64(binary.Size(h)) + n*int64(binary.Size(e))
			if _, err := binary.Decode(b[pos:], binary.LittleEndian, &e); err != nil {
				return bat, meta, "", err
			}
			switch {
			case e.GUID != regionBAT && e.GUID != regionMetadata:
				if e.Required&1 != 0 {
					return bat, meta, "", ondisk.Unsupported(what, "region", at+pos, e.GUID)
				}
				continue
			case found[e.GUID] != region{}:
				return bat, meta, "", ondisk.Corrupt(what, "two regions", at+pos, e.GUID)
			case e.Offset > uint64(r.size) || e.Offset < 1<<20 || !ondisk.Within(int64(e.Offset), int64(e.Length), r.size):
				return bat, meta, "", ondisk.Truncated(what, "region", at+pos, fmt.Sprintf("%s of %d bytes at %#x", e.GUID, e.Length, e.Offset))
			}
			found[e.GUID] = region{int64(e.Offset), int64(e.Length)}
		}
		if len(found) < 2 {
			return bat, meta, "", ondisk.Corrupt(what, "no region for the BAT or the metadata", at, nil)
		}
		return found[regionBAT], found[regionMetadata], note, nil
	}
	return bat, meta, "", ondisk.Corrupt(what, "neither copy is whole", region1At, nil)
}

// metadata is what is stored of the disk as a whole.
type metadata struct {
	block, size, sector int64
	differencing        bool
	parent              []byte // the locator
}

func readMetadata(r *replayed, reg region) (*metadata, error) {
	const what = "vhdx metadata"
	b, err := ondisk.Read(r, reg.off, min(reg.size, metaTableLen), what)
	if err != nil {
		return nil, err
	}
	var h metaHeader
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
		return nil, ondisk.Truncated(what, "", reg.off, nil)
	}
	if !bytes.HasPrefix(h.Magic[:], []byte(metaMagic)) {
		return nil, ondisk.Corrupt(what, "signature", reg.off, fmt.Sprintf("%q", h.Magic[:]))
	}
	if h.Count > maxMeta || int(h.Count)*binary.Size(metaEntry{})+binary.Size(h) > len(b) {
		return nil, ondisk.Corrupt(what, "entries", reg.off+10, h.Count)
	}
	items := map[guid][]byte{}
	for i := range int(h.Count) {
		var e metaEntry
		pos := binary.Size(h) + i*binary.Size(e)
		if _, err := binary.Decode(b[pos:], binary.LittleEndian, &e); err != nil {
			return nil, err
		}
		at := reg.off + int64(pos)
		switch e.GUID {
		case itemParameters, itemSize, itemLogical, itemPhysical, itemPage83, itemParent:
		default:
			if e.Flags&metaRequired != 0 {
				return nil, ondisk.Unsupported(what, "item", at, e.GUID)
			}
			continue
		}
		switch {
		case items[e.GUID] != nil:
			return nil, ondisk.Corrupt(what, "two items", at, e.GUID)
		case e.Length > maxItem || !ondisk.Within(int64(e.Offset), int64(e.Length), reg.size):
			return nil, ondisk.Corrupt(what, "item", at, fmt.Sprintf("%s of %d bytes at %d", e.GUID, e.Length, e.Offset))
		}
		if items[e.GUID], err = ondisk.Read(r, reg.off+int64(e.Offset), int64(e.Length), what); err != nil {
			return nil, err
		}
	}
	number := func(item guid, name string, n int) uint64 {
		b := items[item]
		switch {
		case err != nil:
		case len(b) < n:
			err = ondisk.Corrupt(what, "no "+name, reg.off, nil)
		case n == 8:
			return binary.LittleEndian.Uint64(b)
		default:
			return uint64(binary.LittleEndian.Uint32(b))
		}
		return 0
	}
	params := number(itemParameters, "file parameters", 8)
	size, sector := number(itemSize, "disk size", 8), number(itemLogical, "logical sector size", 4)
	if err != nil {
		return nil, err
	}
	m := &metadata{block: int64(uint32(params)), size: int64(size), sector: int64(sector), differencing: params>>32&hasParent != 0, parent: items[itemParent]}
	switch {
	case m.block < minBlock || m.block > maxBlock || m.block&(m.block-1) != 0:
		return nil, ondisk.Corrupt(what, "block size", reg.off, m.block)
	case sector != 512 && sector != 4096:
		return nil, ondisk.Corrupt(what, "logical sector size", reg.off, sector)
	case size > maxSize || size%sector != 0:
		return nil, ondisk.Corrupt(what, "disk size", reg.off, size)
	case m.differencing && m.parent == nil:
		return nil, ondisk.Corrupt(what, "a differencing disk without a parent locator", reg.off, nil)
	}
	return m, nil
}
