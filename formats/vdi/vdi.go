package vdi

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Format is the row of the table.
var Format = formats.Format{Name: "vdi", Probe: probe, Open: open, Check: check}

func probe(_ *formats.File, head []byte) bool {
	return len(head) >= sectorSize && binary.LittleEndian.Uint32(head[64:]) == signature
}

// tableCache bounds the part of the block table that is kept in memory: 256 Ki entries, 256 GiB of disk.
const tableCache = 1 << 20

// scanBlocks bounds the blocks that one call of ExtentAt looks at.
const scanBlocks = 1 << 14

// disk is the virtual disk.
type disk struct {
	f            *formats.File
	size         int64
	block, extra int64
	table, data  int64 // where they begin
	cache        *ondisk.Cache
	free         formats.Kind // what blocks are that were never written
}

func open(f *formats.File, o *formats.Opener) (*formats.Image, error) {
	d, h, err := read(f)
	if err != nil {
		return nil, err
	}
	img := &formats.Image{Format: "vdi", State: formats.StateClean, Files: []*formats.File{f}}
	if h.Type == typeUndo || h.Type == typeDiff || h.ParentUUID != [16]byte{} {
		err := fmt.Errorf("vdi header: a snapshot of the image with UUID %s, whose name stands only in the settings of the machine: %w", uuid(h.ParentUUID), ondisk.ErrUnsupported)
		if !o.AllowMissing {
			return nil, err
		}
		d.free, img.Problems = formats.Missing, []error{err}
	}
	img.Disk = formats.NewDisk(d, o.Env)
	return img, nil
}

// read reads the header.
func read(f *formats.File) (*disk, *header, error) {
	h := new(header)
	b, err := ondisk.Read(f, 0, sectorSize, "vdi header")
	if err != nil {
		return nil, nil, err
	}
	if _, err := binary.Decode(b, binary.LittleEndian, h); err != nil {
		return nil, nil, err
	}
	if err := h.check(f); err != nil {
		return nil, nil, err
	}
	return &disk{
		f: f, block: int64(h.BlockSize), extra: int64(h.BlockExtra), table: int64(h.BlocksOffset), data: int64(h.DataOffset),
		// VirtualBox can make disks of odd sizes, which the guest sees as whole sectors.
		size:  (int64(h.DiskSize) + sectorSize - 1) / sectorSize * sectorSize,
		cache: ondisk.NewCache(f, f.Size, 16<<10, tableCache), free: formats.Zero,
	}, h, nil
}

func (h *header) check(f *formats.File) error {
	const what = "vdi header"
	switch {
	case h.Signature != signature:
		return &ondisk.Error{What: what, Field: "signature", Off: 64, Got: fmt.Sprintf("%#x", h.Signature), Err: ondisk.ErrNot}
	case h.Version != version11:
		return ondisk.Unsupported(what, "version", 68, fmt.Sprintf("%d.%d", h.Version>>16, h.Version&0xffff))
	case h.Type < typeDynamic || h.Type > typeDiff:
		return ondisk.Unsupported(what, "image type", 76, h.Type)
	case h.SectorSize != sectorSize && h.SectorSize != 0:
		return ondisk.Unsupported(what, "sector size", 360, h.SectorSize)
	case h.BlockSize < minBlock || h.BlockSize > maxBlock || h.BlockSize&(h.BlockSize-1) != 0:
		return ondisk.Corrupt(what, "block size", 376, h.BlockSize)
	case h.BlockExtra > maxExtra:
		return ondisk.Corrupt(what, "bytes before a block", 380, h.BlockExtra)
	case h.DiskSize > uint64(h.Blocks)*uint64(h.BlockSize):
		return ondisk.Corrupt(what, "disk size for that many blocks", 368, h.DiskSize)
	case !ondisk.Within(int64(h.BlocksOffset), 4*int64(h.Blocks), f.Size):
		return ondisk.Truncated(what, "block table", 340, h.BlocksOffset)
	}
	return nil
}

// uuid prints a UUID as VirtualBox does: the first three fields are little-endian.
func uuid(b [16]byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b[0:]), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:])
}

func (d *disk) Size() int64 { return d.size }

func (d *disk) ExtentAt(off, max int64) (formats.Extent, error) {
	max = min(max, d.size-off)
	n, in := off/d.block, off%d.block
	e := formats.Extent{Disk: off, Len: d.block - in}
	kind, at, err := d.entry(n)
	e.Kind = kind
	if kind == formats.Data {
		e.File, e.Off = d.f, at+in
		if e.Off >= d.f.Size {
			err = ondisk.Truncated("vdi block", fmt.Sprint(n), at, nil)
		} else if left := d.f.Size - e.Off; left < min(max, e.Len) {
			e.Len = left
			return e, nil
		}
	}
	if err != nil {
		return formats.Extent{Disk: off, Len: min(max, e.Len), Kind: formats.Missing}, err
	}
	for i := n + 1; e.Len < max && i < n+scanBlocks; i++ {
		k, at, err := d.entry(i)
		if err != nil || k != kind || k == formats.Data && (at != e.Off+e.Len || at > d.f.Size-d.block) {
			break
		}
		e.Len += d.block
	}
	e.Len = min(max, e.Len)
	return e, nil
}

// entry tells where block n lies.
func (d *disk) entry(n int64) (formats.Kind, int64, error) {
	b, err := d.cache.Slice(d.table+4*n, 4)
	if err != nil {
		return formats.Missing, 0, fmt.Errorf("vdi block table: %w", err)
	}
	switch v := binary.LittleEndian.Uint32(b); v {
	case blockFree:
		return d.free, 0, nil
	case blockZero:
		return formats.Zero, 0, nil
	default:
		return formats.Data, d.data + int64(v)*(d.block+d.extra) + d.extra, nil
	}
}
