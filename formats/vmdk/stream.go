package vmdk

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// marker gives the length of what the marker b heads, and its type where that is 0.
func marker(b []byte) (size, typ uint32) {
	size = binary.LittleEndian.Uint32(b[8:])
	if size == 0 {
		typ = binary.LittleEndian.Uint32(b[12:])
	}
	return size, typ
}

func endOfStream(b []byte) bool {
	size, typ := marker(b)
	return size == 0 && typ == markerEOS && binary.LittleEndian.Uint64(b) == 0
}

// readFooter reads the header that ends a stream: a marker, the header, and the end-of-stream marker.
func readFooter(f *formats.File) (*hostedHeader, error) {
	b := make([]byte, 3*sector)
	at := f.Size/sector*sector - int64(len(b))
	if at < 0 {
		return nil, ondisk.Truncated("stream", "no footer", f.Size, nil)
	}
	if err := ondisk.ReadFull(f, b, at, "vmdk footer"); err != nil {
		return nil, err
	}
	if size, typ := marker(b); size != 0 || typ != markerFooter || string(b[sector:sector+4]) != magicHosted || !endOfStream(b[2*sector:]) {
		return nil, ondisk.Truncated("stream", "no footer", f.Size, nil)
	}
	h := new(hostedHeader)
	return h, h.decode(b[sector:])
}

// scanned is a stream whose tables can't be read: its grains as their markers tell.
type scanned struct {
	*grains
	found []foundGrain // by number
	// known is up to which grain those that were not found are known to be empty.
	known int64
}

type foundGrain struct{ no, sector uint32 }

// maxScanned bounds the grains that are kept, 128 MiB of them: 1 TiB of disk.
const maxScanned = 1 << 24

// scan finds the grains of a stream by going from marker to marker, because of why its tables can't be read. It ends
// where the file does, or at what is no marker. A directory or a footer that it comes across is used after all.
func (x *extent) scan(f *formats.File, h *hostedHeader, cache int64, why error) error {
	s := &scanned{grains: h.newGrains(f)}
	if s.count > 1<<32 {
		return ondisk.Corrupt("vmdk header", "capacity", 12, h.Capacity)
	}
	end, dir, err := s.walk(h)
	if err != nil {
		return err
	}
	if dir != nil && x.load(f, dir, cache) == nil {
		x.note("%v; the grain directory was found by its marker", why)
		return nil
	}
	// Streams are written in the order of the disk. Where this one is, what was passed over is empty.
	byNumber := func(a, b foundGrain) int { return cmp.Compare(a.no, b.no) }
	if !slices.IsSortedFunc(s.found, byNumber) {
		s.known = 0
		slices.SortStableFunc(s.found, byNumber)
	}
	x.layer, x.problems = s, append(x.problems, fmt.Errorf("%w; by their markers %d compressed grains were found before byte %d; beyond byte %d of the extent all others are missing",
		why, len(s.found), end, min(s.known*s.grain, s.size)))
	return nil
}

// walk goes through the markers. It gives the byte that it came to, and a header that tells where the grain directory
// is, if there was one on the way.
func (s *scanned) walk(h *hostedHeader) (end int64, dir *hostedHeader, err error) {
	b := make([]byte, 2*sector)
	if h.Overhead > maxCapacity {
		return 0, nil, ondisk.Corrupt("vmdk header", "sectors before the first grain", 64, h.Overhead)
	}
	pos := int64(h.Overhead) * sector
	for pos <= s.f.Size-sector && pos>>32 < sector {
		b = b[:min(2*sector, s.f.Size-pos)]
		if err := ondisk.ReadFull(s.f, b, pos, "stream"); err != nil {
			return 0, nil, err
		}
		value := binary.LittleEndian.Uint64(b)
		size, typ := marker(b)
		if size > 0 {
			no := value / h.GrainSize
			next := pos + (markerGrainLen+int64(size)+sector-1)/sector*sector
			if value%h.GrainSize != 0 || no >= uint64(s.count) || int64(size) > maxCoded(s.grain) ||
				int64(size) > s.f.Size-pos-markerGrainLen || len(s.found) == maxScanned {
				return pos, dir, nil
			}
			s.found = append(s.found, foundGrain{uint32(no), uint32(pos / sector)})
			s.known = int64(no) + 1
			pos = next
			continue
		}
		if value > uint64(s.f.Size/sector) {
			return pos, dir, nil
		}
		switch typ {
		case markerGT: // of the grains before it: there will be no more of them
			s.known = min((s.known+s.perTable-1)/s.perTable*s.perTable, s.count)
		case markerGD:
			d := *h
			d.GDOffset = uint64(pos/sector) + 1
			dir = &d
		case markerFooter:
			d := new(hostedHeader)
			if len(b) == 2*sector && d.decode(b[sector:]) == nil && d.geometry() == nil {
				return pos, d, nil
			}
			return pos, dir, nil
		default: // the end of the stream, or no marker
			return pos, dir, nil
		}
		pos += sector + int64(value)*sector
	}
	return min(pos, s.f.Size), dir, nil
}

func (s *scanned) extentAt(off, max int64) (formats.Extent, error) {
	n, in := off/s.grain, off%s.grain
	i, ok := slices.BinarySearchFunc(s.found, n, func(g foundGrain, n int64) int { return cmp.Compare(int64(g.no), n) })
	if ok {
		return s.packed(entry{kind: formats.Data, off: int64(s.found[i].sector) * sector}, n, in, max)
	}
	kind, end := unallocated, s.known
	if n >= s.known {
		kind, end = formats.Missing, s.count
	}
	if i < len(s.found) {
		end = min(end, int64(s.found[i].no))
	}
	return formats.Extent{Len: min(max, end*s.grain-off), Kind: kind}, nil
}
