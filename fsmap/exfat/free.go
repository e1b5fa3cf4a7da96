package exfat

import (
	"encoding/binary"
	"errors"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/dos"
)

// Free implements fsmap.Freer by the allocation bitmap. (7.1)
func (v *volume) Free(yield func(off, n int64) bool) error {
	if v.dirty {
		return errors.New("it was not unmounted cleanly")
	}
	var entry []byte
	err := v.Slots(v.rootDir(), func(b []byte, _ int64) bool {
		for ; len(b) >= dos.SlotLen && b[0] != typeEnd; b = b[dos.SlotLen:] {
			if b[0] == typeBitmap && uint16(b[bitmapFlags])&flagSecondFAT == v.active {
				entry = append(entry[:0], b[:dos.SlotLen]...)
			}
		}
		return len(b) == 0 || b[0] != typeEnd
	})
	if err != nil {
		return err
	}
	clusters := int64(v.Last) - 1
	if entry == nil || binary.LittleEndian.Uint64(entry[entLength:]) < uint64(clusters+7)/8 {
		return ondisk.Corrupt("exfat", "allocation bitmap", -1, nil)
	}
	free := fsmap.Stretches{Yield: yield}
	at, more := int64(0), true
	err = v.read(entry, maxBitmap, func(b []byte) {
		if n := min(clusters-at, int64(len(b))*8); more && n > 0 {
			more = free.Zeros(b, n, v.Data+at<<v.Shift, v.Shift)
			at += n
		}
	})
	free.End()
	return err
}
