package fat

import (
	"errors"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/dos"
)

// Free implements fsmap.Freer: clusters whose entry is 0 in every table.
func (v *volume) Free(yield func(off, n int64) bool) error {
	first, err := v.Meta.Slice(v.Table, 8)
	if err != nil {
		return err
	}
	if len(v.dirty(dos.Decode(first[v.EntryPos(0, 1):], v.Bits, 1))) > 0 {
		return errors.New("it was not unmounted cleanly")
	}
	free := fsmap.Stretches{Yield: yield}
	used := min(v.EntryPos(0, v.last+1)+1, v.tableLen)
	buf := make([]byte, 2*scanPiece)
	n := uint32(dos.FirstCluster)
	for at := int64(0); at < used; at += scanPiece {
		p := buf[:min(scanPiece, used-at)]
		q := buf[scanPiece:][:len(p)]
		if err := ondisk.ReadFull(v.Meta, p, v.Table+at, "fat"); err != nil {
			return err
		}
		if copy(q, p); v.Spare != 0 {
			if err := ondisk.ReadFull(v.Meta, q, v.Spare+at, "fat"); err != nil {
				return err
			}
		}
		for end := min(v.last, v.entryAt(at+int64(len(p)))-1); n <= end; n++ {
			i := v.EntryPos(-at, n)
			if dos.Decode(p[i:], v.Bits, n) == 0 && dos.Decode(q[i:], v.Bits, n) == 0 && !free.Add(v.Pos(n), v.Cluster()) {
				return nil
			}
		}
	}
	free.End()
	return nil
}
