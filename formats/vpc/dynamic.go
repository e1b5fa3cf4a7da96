package vpc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// tableCache bounds what is kept of the BAT and of bitmaps in memory.
const tableCache = 2 << 20

// scanBlocks bounds the blocks that one call of ExtentAt looks at.
const scanBlocks = 1 << 14

// dynamic is a disk of blocks.
type dynamic struct {
	f            *formats.File
	size, block  int64
	table        int64 // where the BAT is
	bitmap       int64 // bytes of one
	cache        *ondisk.Cache
	parent       formats.Layer
	differencing bool
}

func openDynamic(f *formats.File, o *formats.Opener, img *formats.Image, t *footer, size int64) (*dynamic, error) {
	h, err := readDynHeader(f, t, img)
	if err != nil {
		return nil, err
	}
	const what = "vhd dynamic disk header"
	at := int64(t.HeaderOff)
	switch {
	case h.Version>>16 != versionMajor:
		return nil, ondisk.Unsupported(what, "version", at+24, fmt.Sprintf("%#x", h.Version))
	case bits.OnesCount32(h.BlockSize) != 1 || h.BlockSize < minBlock || h.BlockSize > maxBlock:
		return nil, ondisk.Corrupt(what, "block size", at+32, h.BlockSize)
	case int64(h.Entries)*int64(h.BlockSize) < size:
		return nil, ondisk.Corrupt(what, "entries of the BAT", at+28, h.Entries)
	case h.TableOff > uint64(f.Size) || !ondisk.Within(int64(h.TableOff), 4*((size+int64(h.BlockSize)-1)/int64(h.BlockSize)), f.Size):
		return nil, ondisk.Truncated(what, "BAT", at+16, h.TableOff)
	}
	d := &dynamic{
		f: f, size: size, block: int64(h.BlockSize), table: int64(h.TableOff),
		bitmap: (int64(h.BlockSize)/sectorSize/8 + sectorSize - 1) / sectorSize * sectorSize,
		cache:  ondisk.NewCache(f, f.Size, 4<<10, tableCache),
	}
	if d.differencing = t.Type == typeDiffering; d.differencing {
		if err := d.openParent(o, img, h); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func readDynHeader(f *formats.File, t *footer, img *formats.Image) (*dynHeader, error) {
	const what = "vhd dynamic disk header"
	if t.HeaderOff > uint64(f.Size) {
		return nil, ondisk.Truncated("vhd footer", "offset of the dynamic disk header", 16, t.HeaderOff)
	}
	b, err := ondisk.Read(f, int64(t.HeaderOff), dynHeaderLen, what)
	if err != nil {
		return nil, err
	}
	h := new(dynHeader)
	if _, err := binary.Decode(b, binary.BigEndian, h); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(b, []byte(dynCookie)) {
		return nil, ondisk.Corrupt(what, "cookie", int64(t.HeaderOff), fmt.Sprintf("%q", h.Cookie[:]))
	}
	if checksum(b, dynChecksumAt) != h.Checksum {
		img.Problems = append(img.Problems, ondisk.Corrupt(what, "checksum", int64(t.HeaderOff)+dynChecksumAt, fmt.Sprintf("%#x", h.Checksum)))
	}
	return h, nil
}

func (d *dynamic) Size() int64 { return d.size }

func (d *dynamic) ExtentAt(off, max int64) (formats.Extent, error) {
	max = min(max, d.size-off)
	n, in := off/d.block, off%d.block
	e := formats.Extent{Len: min(max, d.block-in), Disk: off}
	at, err := d.entry(n)
	switch {
	case err != nil:
		e.Kind = formats.Missing
		return e, err
	case at == unused:
		for i := n + 1; e.Len < max && i < n+scanBlocks; i++ {
			if at, err := d.entry(i); err != nil || at != unused {
				break
			}
			e.Len += d.block
		}
		e.Len = min(max, e.Len)
		return d.parent.ExtentAt(off, e.Len)
	}
	bitmap := int64(at) * sectorSize
	if d.differencing {
		here, n, err := d.bits(bitmap, in, e.Len)
		if e.Len = n; err != nil {
			e.Kind = formats.Missing
			return e, err
		}
		if !here {
			return d.parent.ExtentAt(off, e.Len)
		}
	}
	e.Kind, e.File, e.Off = formats.Data, d.f, bitmap+d.bitmap+in
	switch left := d.f.Size - e.Off; {
	case left <= 0:
		return formats.Extent{Len: e.Len, Kind: formats.Missing, Disk: off}, ondisk.Truncated("vhd block", fmt.Sprint(n), bitmap, nil)
	case left < e.Len:
		e.Len = left
	}
	return e, nil
}

// entry gives block n's entry of the BAT.
func (d *dynamic) entry(n int64) (uint32, error) {
	b, err := d.cache.Slice(d.table+4*n, 4)
	if err != nil {
		return 0, fmt.Errorf("vhd BAT: %w", err)
	}
	return binary.BigEndian.Uint32(b), nil
}

// bits tells whether the sector at byte in of a block is in this file, and for how many bytes, of n at most, the
// answer is the same. The bitmap's first bit is the highest of its first byte.
func (d *dynamic) bits(bitmap, in, n int64) (here bool, same int64, err error) {
	first, last := in/sectorSize, (in+n-1)/sectorSize
	for s := first; s <= last; {
		p, err := d.cache.Page(bitmap + s/8)
		if err != nil {
			if s > first {
				break
			}
			return false, n, fmt.Errorf("vhd bitmap: %w", err)
		}
		if s == first {
			here = p[0]>>(7-s%8)&1 == 1
		}
		skip := byte(0)
		if here {
			skip = 0xff
		}
		base := s / 8 * 8
		for int64(len(p))*8+base > s && s <= last {
			b := p[(s-base)/8]
			if s%8 == 0 && b == skip {
				s += 8
				continue
			}
			if b>>(7-s%8)&1 == 1 != here {
				return here, s*sectorSize - in, nil
			}
			s++
		}
	}
	return here, n, nil
}
