package vpc

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Format is the row of the table. Its name is QEMU's, which other images' headers use.
var Format = formats.Format{Name: "vpc", Probe: probe, Open: open, Check: check}

// probe looks at both ends: a fixed disk has its footer at the end only. There chance bytes must not do, so it must be
// whole; QEMU takes such a disk for raw unless it is told.
func probe(f *formats.File, head []byte) bool {
	if bytes.HasPrefix(head, []byte(cookie)) {
		return true
	}
	t, _ := readEnd(f)
	return t != nil && t.Type == typeFixed
}

// decodeFooter gives a footer whose cookie is right, or nil, and tells whether its checksum is.
func decodeFooter(b []byte) (t *footer, whole bool) {
	if !bytes.HasPrefix(b, []byte(cookie)) {
		return nil, false
	}
	t = new(footer)
	if _, err := binary.Decode(b, binary.BigEndian, t); err != nil {
		return nil, false
	}
	return t, checksum(b, checksumAt) == t.Checksum
}

// checksum is the ones' complement of the sum of the bytes but the four at skip.
func checksum(b []byte, skip int) (sum uint32) {
	for i, c := range b {
		if i < skip || i >= skip+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// readEnd gives the footer at the end of the file, and where it begins; nil if there is none or its checksum is wrong.
func readEnd(f *formats.File) (*footer, int64) {
	for _, n := range []int64{footerLen, oldFooterLen} {
		if f.Size < n {
			continue
		}
		b := make([]byte, footerLen)
		if ondisk.ReadFull(f, b[:n], f.Size-n, "vhd footer") != nil {
			return nil, 0
		}
		if t, whole := decodeFooter(b); whole {
			return t, f.Size - n
		}
	}
	return nil, 0
}

// readFooter gives the footer, from whichever end it is whole at, and where the file's content ends.
func readFooter(f *formats.File) (t *footer, end int64, note string, problem error, err error) {
	if t, end = readEnd(f); t != nil && t.Type == typeFixed {
		return t, end, "", nil, nil
	}
	b, err := ondisk.Read(f, 0, min(f.Size, footerLen), "vhd footer")
	if err != nil {
		return nil, 0, "", nil, err
	}
	if len(b) < footerLen {
		return nil, 0, "", nil, ondisk.Truncated("vhd footer", "", f.Size, nil)
	}
	front, whole := decodeFooter(b)
	switch {
	case whole && t == nil:
		return front, f.Size, "vhd: the footer is missing or damaged; the copy in front is used", nil, nil
	case whole:
		return front, end, "", nil, nil
	case t != nil:
		return t, end, "vhd: the footer's copy in front is damaged; the footer is used", nil, nil
	case front != nil: // as QEMU does, which only warns
		return front, f.Size, "", ondisk.Corrupt("vhd footer", "checksum", checksumAt, fmt.Sprintf("%#x", front.Checksum)), nil
	}
	return nil, 0, "", nil, &ondisk.Error{What: "vhd footer", Off: f.Size - footerLen, Err: ondisk.ErrNot}
}

// size tells the disk's length. Virtual PC and old QEMU mean the geometry, which is a little less; see
// vpc_ignore_current_size in QEMU.
func (t *footer) size() int64 {
	chs := int64(t.Cylinders) * int64(t.Heads) * int64(t.Sectors)
	if app := string(t.CreatorApp[:]); (app == "vpc " || app == "qemu") && chs > 0 && chs < maxCHS {
		return chs * sectorSize
	}
	return int64(min(t.Size, 1<<62)) / sectorSize * sectorSize
}

func open(f *formats.File, o *formats.Opener) (*formats.Image, error) {
	img, m, err := prepare(f, o)
	if err != nil {
		return nil, err
	}
	img.Disk = formats.NewDisk(m, o.Env)
	return img, nil
}

// prepare opens the disk and its parent.
func prepare(f *formats.File, o *formats.Opener) (*formats.Image, formats.Mapper, error) {
	t, end, note, problem, err := readFooter(f)
	if err != nil {
		return nil, nil, err
	}
	img := &formats.Image{Format: "vpc", State: formats.StateClean, Files: []*formats.File{f}}
	if note != "" {
		img.Notes = append(img.Notes, note)
	}
	if problem != nil {
		img.Problems = append(img.Problems, problem)
	}
	if t.SavedState != 0 {
		img.Notes = append(img.Notes, "vhd footer: the machine was suspended")
	}
	size := t.size()
	switch {
	case t.Version>>16 != versionMajor:
		return nil, nil, ondisk.Unsupported("vhd footer", "version", 12, fmt.Sprintf("%#x", t.Version))
	case size > maxSize:
		return nil, nil, ondisk.Corrupt("vhd footer", "size", 48, t.Size)
	}
	var m formats.Mapper
	switch t.Type {
	case typeFixed:
		if size > end {
			img.Problems = append(img.Problems, ondisk.Truncated("vhd footer", "size of a fixed disk", 48, size))
		}
		m = &fixed{formats.Plain(f), size, end}
	case typeDynamic, typeDiffering:
		if m, err = openDynamic(f, o, img, t, size); err != nil {
			return nil, nil, err
		}
	default:
		return nil, nil, ondisk.Unsupported("vhd footer", "disk type", 60, t.Type)
	}
	return img, m, nil
}

// fixed is a fixed disk: the file up to its footer.
type fixed struct {
	formats.Mapper
	size, end int64
}

func (d *fixed) Size() int64 { return d.size }

func (d *fixed) ExtentAt(off, max int64) (formats.Extent, error) {
	if off >= d.end {
		return formats.Extent{Len: min(max, d.size-off), Kind: formats.Missing, Disk: off}, nil
	}
	return d.Mapper.ExtentAt(off, min(max, d.size-off, d.end-off))
}
