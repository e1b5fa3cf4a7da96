package qcow2

import (
	"encoding/binary"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// readBitmaps lists the persistent bitmaps. (Bitmaps)
func readBitmaps(f *formats.File, h *info) ([]formats.Bitmap, error) {
	const what = "qcow2 bitmap directory"
	x := h.bitmaps
	switch {
	case x.NbBitmaps > maxBitmaps:
		return nil, ondisk.Unsupported("qcow2 bitmaps extension", "number of bitmaps", -1, x.NbBitmaps)
	case x.DirSize > maxBitmapDir:
		return nil, ondisk.Unsupported("qcow2 bitmaps extension", "size of the directory", -1, x.DirSize)
	case x.DirOffset&uint64(h.clusterSize()-1) != 0 || x.DirOffset > 1<<56:
		return nil, ondisk.Corrupt("qcow2 bitmaps extension", "offset of the directory", -1, x.DirOffset)
	}
	dir := int64(x.DirOffset)
	if !ondisk.Within(dir, int64(x.DirSize), f.Size) {
		return nil, ondisk.Truncated(what, "", dir, nil)
	}
	buf, err := ondisk.Read(f, dir, int64(x.DirSize), what)
	if err != nil {
		return nil, err
	}
	var list []formats.Bitmap
	c := ondisk.NewCursor(buf, binary.BigEndian, dir, what)
	for range x.NbBitmaps {
		at := c.Off()
		var e bitmapEntry
		fixed := c.Bytes(binary.Size(e))
		if fixed == nil {
			return list, c.Err()
		}
		binary.Decode(fixed, binary.BigEndian, &e)
		switch {
		case e.Type != bitmapTypeDirty:
			return list, ondisk.Unsupported(what, "type", at+16, e.Type)
		case e.GranularityBits > 62:
			return list, ondisk.Corrupt(what, "granularity bits", at+17, e.GranularityBits)
		case e.NameLen == 0 || e.NameLen > maxBitmapName:
			return list, ondisk.Corrupt(what, "length of the name", at+18, e.NameLen)
		case int64(e.ExtraLen) > int64(c.Len()):
			return list, ondisk.Corrupt(what, "length of extra data", at+20, e.ExtraLen)
		}
		c.Skip(int(e.ExtraLen))
		name := string(c.Bytes(int(e.NameLen)))
		c.Skip(min(-(int(e.ExtraLen)+int(e.NameLen))&7, c.Len()))
		if err := c.Err(); err != nil {
			return list, err
		}
		// Whoever wrote the image without knowing bitmaps cleared the bit that vouches for all of them.
		stale := h.Autoclear&autoclearBitmaps == 0 || e.ExtraLen != 0 && e.Flags&bitmapExtraCompatible == 0
		list = append(list, formats.Bitmap{
			Name: name, Granularity: 1 << e.GranularityBits, Auto: e.Flags&bitmapAuto != 0, InUse: stale || e.Flags&bitmapInUse != 0,
		})
	}
	return list, nil
}
