package qcow2

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Format is the row of the table.
var Format = formats.Format{Name: "qcow2", Probe: probe, Open: open, Check: check}

// probe leaves version 1 to package qcow.
func probe(_ *formats.File, head []byte) bool {
	return len(head) >= 8 && binary.BigEndian.Uint32(head) == Magic && binary.BigEndian.Uint32(head[4:]) >= 2
}

func open(f *formats.File, o *formats.Opener) (*formats.Image, error) {
	h, err := readHeader(f)
	if err != nil {
		return nil, err
	}
	img := &formats.Image{Format: "qcow2", State: formats.StateClean, Files: []*formats.File{f}}
	health(img, h)

	m := &mapper{h: h, file: f, data: f, size: int64(h.Size), l1: int64(h.L1TableOffset)}
	m.tables = ondisk.NewCache(f, f.Size, int(pageSize(h.clusterSize())), tableCache)
	snapshots, err := readSnapshots(f, h)
	if err != nil && o.Snapshot == "" {
		img.Problems = append(img.Problems, err)
	} else if err != nil {
		return nil, err
	}
	for _, s := range snapshots {
		img.Snapshots = append(img.Snapshots, s.Snapshot)
	}
	if o.Snapshot != "" {
		if err := m.use(snapshots, o.Snapshot); err != nil {
			return nil, err
		}
	}
	if m.size > 0 && !ondisk.Within(m.l1, 8, f.Size) {
		return nil, ondisk.Truncated("qcow2 L1 table", "", m.l1, nil)
	}
	if err := m.openCrypt(img, o); err != nil {
		return nil, err
	}
	if h.external() {
		if err := m.openData(img, o); err != nil {
			return nil, err
		}
	}
	if h.backing == "" && o.Unheld {
		m.backing = formats.Nothing(m.size)
	} else if h.backing != "" {
		if m.backing, err = o.OpenLayer(img, f, h.backing, h.backingFormat, m.size); err != nil {
			return nil, err
		}
	}
	if h.bitmaps != nil {
		bitmaps, err := readBitmaps(f, h)
		if err != nil {
			img.Problems = append(img.Problems, err)
		}
		for _, b := range bitmaps {
			img.Bitmaps = append(img.Bitmaps, b.Bitmap)
		}
	}
	img.Disk = formats.NewDisk(m, o.Env)
	return img, nil
}

// health says what the header says of the image's state.
func health(img *formats.Image, h *info) {
	if h.Incompatible&incompatDirty != 0 {
		img.State = formats.StateDirty
		img.Notes = append(img.Notes, "the dirty bit is set: the image was not closed, its refcounts may be wrong (reading needs none)")
	}
	if h.Incompatible&incompatCorrupt != 0 {
		img.State = formats.StateCorrupt
		img.Notes = append(img.Notes, "the corrupt bit is set: QEMU found the image damaged")
	}
}

func (m *mapper) openData(img *formats.Image, o *formats.Opener) (err error) {
	if m.h.dataFile == "" {
		return ondisk.Corrupt("qcow2 header", "no name for the external data file", headerLen2, nil)
	}
	if m.data, err = o.Companion(m.file, m.h.dataFile, formats.RoleData); err != nil {
		return err
	}
	if m.data == nil {
		img.Problems = append(img.Problems, fmt.Errorf("data file %q is absent: what lies in it is missing", m.h.dataFile))
		return nil
	}
	img.Files = append(img.Files, m.data)
	return nil
}
