package vhdx

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the CRC-32C of b with the 4 bytes at 4 taken for zeros.
func checksum(b []byte) uint32 {
	sum := crc32.Update(0, castagnoli, b[:4])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	return crc32.Update(sum, castagnoli, b[8:])
}

// replayed is the file as it is once its log is replayed.
type replayed struct {
	f     *formats.File
	size  int64
	data  map[int64]logged // by place in the file
	pages []int64          // the places in order
	zeros []zeroed
	seq   int // writes so far
}

// logged is a sector that the log holds.
type logged struct {
	seq      int
	at       int64 // of the data sector
	leading  [8]byte
	trailing [4]byte
}

// zeroed is a stretch that the log clears.
type zeroed struct {
	seq      int
	off, end int64
}

// maxZeros bounds the stretches that are kept.
const maxZeros = 1 << 16

// write tells what the log says of the sector at off: nothing, a sector of data, or zeros (nil, true).
func (r *replayed) write(off int64) (*logged, bool) {
	d, found := r.data[off]
	for i := len(r.zeros) - 1; i >= 0; i-- {
		if z := &r.zeros[i]; off >= z.off && off < z.end && (!found || z.seq > d.seq) {
			return nil, true
		}
	}
	if !found {
		return nil, false
	}
	return &d, true
}

// touches tells whether the log writes into a stretch of the file.
func (r *replayed) touches(off, n int64) bool {
	if r.seq == 0 {
		return false
	}
	if i, _ := slices.BinarySearch(r.pages, off-logSector+1); i < len(r.pages) && r.pages[i] < off+n {
		return true
	}
	for _, z := range r.zeros {
		if z.off < off+n && off < z.end {
			return true
		}
	}
	return false
}

// ReadAt implements io.ReaderAt.
func (r *replayed) ReadAt(p []byte, off int64) (int, error) {
	if r.seq == 0 {
		return r.f.ReadAt(p, off)
	}
	var n int
	for n < len(p) && off < r.size {
		page, in := off/logSector*logSector, off%logSector
		k := int(min(int64(len(p)-n), logSector-in, r.size-off))
		if err := r.sector(p[n:n+k], page, in); err != nil {
			return n, err
		}
		n, off = n+k, off+int64(k)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// sector reads a part of one sector.
func (r *replayed) sector(p []byte, page, in int64) error {
	d, written := r.write(page)
	switch {
	case written && d == nil:
		clear(p)
		return nil
	case written:
		b, err := ondisk.Read(r.f, d.at, logSector, "vhdx log")
		if err != nil {
			return err
		}
		copy(b, d.leading[:])
		copy(b[logSector-4:], d.trailing[:])
		copy(p, b[in:])
		return nil
	}
	have := max(0, min(int64(len(p)), r.f.Size-page-in))
	clear(p[have:]) // the log makes the file longer
	return ondisk.ReadFull(r.f, p[:have], page+in, "vhdx")
}

// logReader walks the ring of the log.
type logReader struct {
	f         *formats.File
	off, size int64
	guid      guid
}

// entry is a valid entry of the log.
type entry struct {
	logHeader
	at int64 // in the ring
}

// sector reads the sector at a place in the ring.
func (l *logReader) sector(b []byte, at int64) error {
	return ondisk.ReadFull(l.f, b, l.off+at%l.size, "vhdx log")
}

// entry gives the entry at a place, or nil if none that is valid begins there (2.3.2).
func (l *logReader) entry(at int64) (*entry, error) {
	b := make([]byte, logSector)
	if err := l.sector(b, at); err != nil {
		return nil, err
	}
	e := &entry{at: at}
	if _, err := binary.Decode(b, binary.LittleEndian, &e.logHeader); err != nil {
		return nil, err
	}
	descLen := (logHeaderLen + int64(e.Descriptors)*logDescLen + logSector - 1) / logSector * logSector
	if string(e.Magic[:]) != logMagic || e.LogGUID != l.guid || e.Sequence == 0 || e.Length%logSector != 0 || e.Tail%logSector != 0 ||
		int64(e.Tail) >= l.size || e.Length == 0 || int64(e.Length) > l.size || descLen > int64(e.Length) {
		return nil, nil
	}
	sum := crc32.Update(0, castagnoli, b[:4])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	sum = crc32.Update(sum, castagnoli, b[8:])
	for pos := int64(logSector); pos < int64(e.Length); pos += logSector {
		if err := l.sector(b, at+pos); err != nil {
			return nil, err
		}
		sum = crc32.Update(sum, castagnoli, b)
	}
	if sum != e.Checksum {
		return nil, nil
	}
	return e, nil
}

// active finds the sequence of entries that counts: the one whose last entry has the highest number and whose tail is
// its own first one (2.3.2.3).
func (l *logReader) active() ([]*entry, error) {
	var best []*entry
	for at := int64(0); at < l.size; {
		var run []*entry
		pos := at
		for pos < at+l.size {
			e, err := l.entry(pos % l.size)
			if err != nil {
				return nil, err
			}
			if e == nil || len(run) > 0 && e.Sequence != run[len(run)-1].Sequence+1 {
				break
			}
			run = append(run, e)
			pos += int64(e.Length)
		}
		if n := len(run); n > 0 {
			last := run[n-1]
			if best == nil || last.Sequence > best[len(best)-1].Sequence {
				for i, e := range run {
					if e.at == int64(last.Tail) {
						best = run[i:]
						break
					}
				}
			}
		}
		at = max(pos, at+logSector)
	}
	return best, nil
}

// replay reads the log, if there is one.
func replay(f *formats.File, h *header) (*replayed, error) {
	r := &replayed{f: f, size: f.Size}
	if h.LogGUID == (guid{}) {
		return r, nil
	}
	const what = "vhdx header"
	switch {
	case h.LogVersion != 0:
		return nil, ondisk.Unsupported(what, "log version", -1, h.LogVersion)
	case h.LogLength == 0 || h.LogLength > maxLog || h.LogLength%(1<<20) != 0:
		return nil, ondisk.Corrupt(what, "length of the log", -1, h.LogLength)
	case h.LogOffset > uint64(f.Size) || !ondisk.Within(int64(h.LogOffset), int64(h.LogLength), f.Size):
		return nil, ondisk.Truncated(what, "place of the log", -1, h.LogOffset)
	}
	l := &logReader{f: f, off: int64(h.LogOffset), size: int64(h.LogLength), guid: h.LogGUID}
	entries, err := l.active()
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 {
		return nil, ondisk.Corrupt("vhdx log", "the header says that there are writes to replay, but none is whole", int64(h.LogOffset), nil)
	}
	r.data = make(map[int64]logged)
	for _, e := range entries {
		if e.FlushedSize > uint64(f.Size) {
			return nil, ondisk.Truncated("vhdx log", "the file was longer when the log was written", l.off+e.at, e.FlushedSize)
		}
		if err := r.apply(l, e); err != nil {
			return nil, err
		}
		if e.LastSize <= maxSize*2 {
			r.size = max(r.size, int64(e.LastSize))
		}
	}
	r.pages = slices.Sorted(maps.Keys(r.data))
	return r, nil
}

// apply takes over the writes of an entry. Its data sectors follow its descriptors, in their order.
func (r *replayed) apply(l *logReader, e *entry) error {
	b := make([]byte, logSector)
	bad := func(i uint32, field string) error {
		return ondisk.Corrupt("vhdx log", fmt.Sprintf("entry %d, descriptor %d: %s", e.Sequence, i, field), l.off+e.at, nil)
	}
	next := e.at + (logHeaderLen+int64(e.Descriptors)*logDescLen+logSector-1)/logSector*logSector
	data := make([]byte, logSector)
	for i := range e.Descriptors {
		pos := logHeaderLen + int64(i)*logDescLen
		if i == 0 || pos%logSector == 0 {
			if err := l.sector(b, e.at+pos/logSector*logSector); err != nil {
				return err
			}
		}
		var d logDesc
		if _, err := binary.Decode(b[pos%logSector:], binary.LittleEndian, &d); err != nil {
			return err
		}
		if d.Sequence != e.Sequence || d.Offset%logSector != 0 || d.Offset > maxSize*2 {
			return bad(i, "sequence number or place")
		}
		r.seq++
		switch string(d.Magic[:]) {
		case logZeroMagic:
			n := binary.LittleEndian.Uint64(d.Leading[:])
			if n%logSector != 0 || n > maxSize*2 || len(r.zeros) == maxZeros {
				return bad(i, "length of zeros")
			}
			r.zeros = append(r.zeros, zeroed{r.seq, int64(d.Offset), int64(d.Offset + n)})
			r.size = max(r.size, int64(d.Offset+n))
		case logDescMagic:
			if next+logSector > e.at+int64(e.Length) {
				return bad(i, "no data sector")
			}
			if err := l.sector(data, next); err != nil {
				return err
			}
			seq := uint64(binary.LittleEndian.Uint32(data[4:]))<<32 | uint64(binary.LittleEndian.Uint32(data[logSector-4:]))
			if string(data[:4]) != logDataMagic || seq != e.Sequence {
				return bad(i, "data sector")
			}
			r.data[int64(d.Offset)] = logged{r.seq, l.off + next%l.size, d.Leading, d.Trailing}
			r.size = max(r.size, int64(d.Offset)+logSector)
			next += logSector
		default:
			return bad(i, "signature")
		}
	}
	return nil
}
