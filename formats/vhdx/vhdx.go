package vhdx

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Format is the row of the table.
var Format = formats.Format{Name: "vhdx", Probe: probe, Open: open, Check: check}

func probe(_ *formats.File, head []byte) bool { return bytes.HasPrefix(head, []byte(fileMagic)) }

// tableCache bounds what is kept of the BAT and of bitmaps in memory.
const tableCache = 2 << 20

// scanBlocks bounds the blocks that one call of ExtentAt looks at.
const scanBlocks = 1 << 14

// disk is the virtual disk.
type disk struct {
	metadata
	r      *replayed
	bat    region
	meta   region
	chunk  int64 // payload blocks that one bitmap block tells of
	cache  *ondisk.Cache
	parent formats.Layer
}

func open(f *formats.File, o *formats.Opener) (*formats.Image, error) {
	img, d, _, err := prepare(f, o)
	if err != nil {
		return nil, err
	}
	img.Disk = formats.NewDisk(d, o.Env)
	return img, nil
}

// prepare opens the disk and its parent.
func prepare(f *formats.File, o *formats.Opener) (*formats.Image, *disk, *header, error) {
	magic, err := ondisk.Read(f, 0, min(f.Size, int64(len(fileMagic))), "vhdx")
	if err != nil {
		return nil, nil, nil, err
	}
	if string(magic) != fileMagic {
		return nil, nil, nil, &ondisk.Error{What: "vhdx", Off: 0, Err: ondisk.ErrNot}
	}
	img := &formats.Image{Format: "vhdx", State: formats.StateClean, Files: []*formats.File{f}}
	note := func(s string) {
		if s != "" {
			img.Notes = append(img.Notes, s)
		}
	}
	h, odd, err := readHeader(f)
	if err != nil {
		return nil, nil, nil, err
	}
	note(odd)
	d := &disk{}
	if d.r, err = replay(f, h); err != nil {
		return nil, nil, nil, err
	}
	if d.r.seq > 0 {
		img.State = formats.StateDirty
		note(fmt.Sprintf("vhdx: it was not closed: %d writes of its log were replayed into memory", d.r.seq))
	}
	if d.bat, d.meta, odd, err = readRegions(d.r); err != nil {
		return nil, nil, nil, err
	}
	note(odd)
	m, err := readMetadata(d.r, d.meta)
	if err != nil {
		return nil, nil, nil, err
	}
	d.metadata = *m
	img.SectorSize = d.sector
	d.chunk = chunkSectors * d.sector / d.block
	if need := d.entries() * 8; need > d.bat.size {
		return nil, nil, nil, ondisk.Corrupt("vhdx region table", "length of the BAT", -1, d.bat.size)
	}
	d.cache = ondisk.NewCache(d.r, d.r.size, logSector, tableCache)
	if d.differencing {
		if err := d.openParent(f, o, img); err != nil {
			return nil, nil, nil, err
		}
	}
	return img, d, h, nil
}

// entries gives how many entries of the BAT are needed (2.5): a bitmap's follows each chunk, but for the last one
// where nothing needs it.
func (d *disk) entries() int64 {
	blocks := (d.size + d.block - 1) / d.block
	if d.differencing {
		return (blocks + d.chunk - 1) / d.chunk * (d.chunk + 1)
	}
	return blocks + max(0, blocks-1)/d.chunk
}

func (d *disk) Size() int64 { return d.size }

func (d *disk) ExtentAt(off, max int64) (formats.Extent, error) {
	max = min(max, d.size-off)
	n, in := off/d.block, off%d.block
	e := formats.Extent{Len: min(max, d.block-in), Disk: off}
	missing := func(err error) (formats.Extent, error) {
		return formats.Extent{Len: e.Len, Kind: formats.Missing, Disk: off}, err
	}
	state, at, err := d.payload(n)
	if err != nil {
		return missing(err)
	}
	here, below := state == blockPresent, state == blockNotPresent
	if state == blockPartial {
		if here, e.Len, err = d.bits(n, in, e.Len); err != nil {
			return missing(err)
		}
		below = !here
	} else {
		for i := n + 1; e.Len < max && i < n+scanBlocks; i++ {
			s, p, err := d.payload(i)
			if err != nil || s == blockPartial || (s == blockPresent) != here || (s == blockNotPresent) != below || here && p != at+(i-n)*d.block {
				break
			}
			e.Len += d.block
		}
		e.Len = min(max, e.Len)
	}
	switch {
	case below:
		return d.parent.ExtentAt(off, e.Len)
	case !here:
		e.Kind = formats.Zero
		return e, nil
	}
	e.Kind, e.File, e.Off = formats.Data, d.r.f, at+in
	switch left := e.File.Size - e.Off; {
	case d.r.touches(e.Off, e.Len):
		return missing(ondisk.Unsupported("vhdx log", "writes of payload blocks at byte", e.Off, nil))
	case left <= 0 && e.Off < d.r.size: // the log made the file longer
		return formats.Extent{Len: min(e.Len, d.r.size-e.Off), Kind: formats.Zero, Disk: off}, nil
	case left <= 0:
		return missing(ondisk.Truncated("vhdx block", fmt.Sprint(n), at, nil))
	case left < e.Len:
		e.Len = left
	}
	return e, nil
}

// entry reads an entry of the BAT.
func (d *disk) entry(i int64) (state uint64, at int64, err error) {
	b, err := d.cache.Slice(d.bat.off+8*i, 8)
	if err != nil {
		return 0, 0, fmt.Errorf("vhdx BAT: %w", err)
	}
	v := binary.LittleEndian.Uint64(b)
	if v&placeMask > 1<<62 {
		return 0, 0, ondisk.Corrupt("vhdx BAT", "entry", d.bat.off+8*i, fmt.Sprintf("%#x", v))
	}
	return v & stateMask, int64(v & placeMask), nil
}

// payload gives the state of payload block n, and where it is.
func (d *disk) payload(n int64) (state uint64, at int64, err error) {
	i := n + n/d.chunk
	state, at, err = d.entry(i)
	if err != nil {
		return 0, 0, err
	}
	switch state {
	case blockNotPresent, blockPresent:
		return state, at, nil
	case blockUndefined, blockZero, blockUnmapped, blockUnmapped095:
		return blockZero, 0, nil
	case blockPartial:
		if d.differencing {
			return state, at, nil
		}
	}
	return 0, 0, ondisk.Corrupt("vhdx BAT", fmt.Sprintf("state of block %d", n), d.bat.off+8*i, state)
}

// bits tells whether the sector at byte in of block n is in this file, and for how many bytes, of max at most, the
// answer is the same. A bitmap's first bit is the lowest of its first byte (2.5.2).
func (d *disk) bits(n, in, max int64) (here bool, same int64, err error) {
	c := n / d.chunk
	state, at, err := d.entry(c*(d.chunk+1) + d.chunk)
	switch {
	case err != nil:
		return false, max, err
	case state != bitmapPresent:
		return false, max, ondisk.Corrupt("vhdx BAT", fmt.Sprintf("state of sector bitmap %d", c), d.bat.off+8*(c*(d.chunk+1)+d.chunk), state)
	}
	base := n % d.chunk * d.block / d.sector // of the block's bits
	first, last := base+in/d.sector, base+(in+max-1)/d.sector
	for s := first; s <= last; {
		p, err := d.cache.Page(at + s/8)
		if err != nil {
			if s > first {
				break
			}
			return false, max, fmt.Errorf("vhdx sector bitmap: %w", err)
		}
		if s == first {
			here = p[0]>>(s%8)&1 == 1
		}
		skip := byte(0)
		if here {
			skip = 0xff
		}
		for begin := s / 8; s <= last && s/8-begin < int64(len(p)); {
			b := p[s/8-begin]
			if s%8 == 0 && b == skip {
				s += 8
				continue
			}
			if b>>(s%8)&1 == 1 != here {
				return here, (s-base)*d.sector - in, nil
			}
			s++
		}
	}
	return here, max, nil
}
