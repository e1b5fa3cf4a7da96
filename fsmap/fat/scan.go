package fat

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap/internal/dos"
)

const (
	scanMax   = 16 << 20 // bytes of a table that are looked at when opening: every FAT12 and FAT16, four million clusters
	scanPiece = 96 << 10 // a multiple of an entry's length, of 3 bytes too
)

// scan goes through the tables once, unless they are very long: for the state of the volume, what is in use, whether
// the tables are alike, and where chains meet.
func (v *volume) scan() error {
	first, err := v.Meta.Slice(v.Table, 8)
	if err != nil {
		return err
	}
	one := dos.Decode(first[v.EntryPos(0, 1):], v.Bits, 1)
	v.inf.Notes = append(v.inf.Notes, v.dirty(one)...)
	free, known := v.freeClusters()
	total := int64(v.last) - dos.FirstCluster + 1
	used := min(v.EntryPos(0, v.last+1)+1, v.tableLen) // FAT12's last entry can end in the middle of a byte
	if used > scanMax {
		if known && free <= total {
			v.inf.Used = (total - free) << v.Shift
		}
		return nil
	}
	v.Linked, v.Merged = dos.NewBitmap(v.last), dos.NewBitmap(v.last)
	size := min(scanPiece, used)
	var (
		a, b      = make([]byte, size), make([]byte, size)
		free0     = make([]byte, size) // entries of free clusters
		n         = uint32(dos.FirstCluster)
		unused    int64
		differ    int64
		differAt  uint32
		spareLost error
	)
	for at := int64(0); at < used; at += scanPiece {
		p := a[:min(scanPiece, used-at)]
		if err := ondisk.ReadFull(v.Meta, p, v.Table+at, "fat"); err != nil {
			v.Linked, v.Merged = nil, nil
			return err
		}
		q := b[:len(p)]
		same := true
		if v.Spare != 0 && spareLost == nil {
			if spareLost = ondisk.ReadFull(v.Meta, q, v.Spare+at, "fat"); spareLost == nil {
				same = bytes.Equal(p, q)
			}
		}
		end := min(v.last, v.entryAt(at+int64(len(p)))-1)
		if same && bytes.Equal(p, free0[:len(p)]) {
			unused += int64(end) - int64(n) + 1
			n = end + 1
			continue
		}
		for ; n <= end; n++ {
			i := v.EntryPos(-at, n)
			x := dos.Decode(p[i:], v.Bits, n)
			if !same && x != dos.Decode(q[i:], v.Bits, n) {
				if differ++; differ == 1 {
					differAt = n
				}
			}
			if x == 0 {
				unused++
			} else if v.Valid(x) {
				if v.Linked.Has(x) {
					v.Merged.Set(x)
				}
				v.Linked.Set(x)
			}
		}
	}
	v.inf.Used = (total - unused) << v.Shift
	if differ > 0 {
		v.inf.Notes = append(v.inf.Notes, fmt.Sprintf("its tables differ in %d entries, the first that of cluster %d: the first table is used, the second where the first's entry can't be", differ, differAt))
	}
	if spareLost != nil {
		v.inf.Notes = append(v.inf.Notes, "its second table can't be read")
	}
	if known && free != unused {
		v.inf.Notes = append(v.inf.Notes, fmt.Sprintf("FSInfo counts %d free clusters, the table has %d", free, unused))
	}
	return nil
}

// entryAt gives the entry that starts at a position of the table that is one's start.
func (v *volume) entryAt(at int64) uint32 { return uint32(at * 8 / int64(v.width)) }

// freeClusters gives what FSInfo says; ok is false where it says nothing.
func (v *volume) freeClusters() (n int64, ok bool) {
	if v.info == 0 {
		return 0, false
	}
	b, err := v.Meta.Slice(v.info, infoLen)
	if err != nil || binary.LittleEndian.Uint32(b) != infoMagic1 || binary.LittleEndian.Uint32(b[infoMagic2At:]) != infoMagic2 {
		return 0, false
	}
	free := binary.LittleEndian.Uint32(b[infoFreeAt:])
	return int64(free), free != infoUnknown
}
