package xfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"vmkit/formats/ondisk"
)

// xlog is the journal as a ring of basic blocks. Each block begins with the number of the cycle that wrote it (the word
// that stood there is kept in the record's header), so the newest record is where that number drops.
type xlog struct {
	c    *ondisk.Cache
	n    int64 // basic blocks
	v2   bool
	v5   bool
	uuid [16]byte
	unit int64 // bytes of a stripe unit, or 0
}

// logState is what was found in a log.
type logState struct {
	head, tail int64
	clean      bool
	notes      []string
}

func openLog(r io.ReaderAt, g *geometry, size int64) (*xlog, error) {
	s := &g.sb
	off, ok := g.place(s.LogStart, uint64(s.LogBlocks))
	bytes := int64(s.LogBlocks) << g.blockLog
	switch {
	case !ok || s.LogBlocks == 0 || bytes > logMaxBytes:
		return nil, ondisk.Corrupt("xfs log", "place", 48, fmt.Sprintf("%d+%d", s.LogStart, s.LogBlocks))
	case !ondisk.Within(off, bytes, size):
		return nil, ondisk.Truncated("xfs log", "volume ends before", off+bytes, nil)
	}
	l := &xlog{n: bytes / sector, v2: g.v5 || s.VersionNum&versionLogV2 != 0, v5: g.v5, uuid: s.UUID, unit: int64(s.LogSUnit)}
	l.c = ondisk.NewCache(io.NewSectionReader(r, off, bytes), bytes, 64<<10, 1<<20)
	return l, nil
}

// block gives one basic block.
func (l *xlog) block(blk int64) ([]byte, error) {
	return l.c.Slice(blk*sector, sector)
}

// cycle gives the cycle that wrote a block.
func (l *xlog) cycle(blk int64) (uint32, error) {
	b, err := l.block(blk)
	if err != nil {
		return 0, err
	}
	c := be.Uint32(b)
	if c == logMagic {
		c = be.Uint32(b[recCycle:])
	}
	return c, nil
}

// read fills p from blk on, around the end.
func (l *xlog) read(p []byte, blk int64) error {
	blk %= l.n
	n := min(int64(len(p)), (l.n-blk)*sector)
	if _, err := l.c.ReadAt(p[:n], blk*sector); err != nil {
		return fmt.Errorf("xfs log: %w", err)
	}
	if n == int64(len(p)) {
		return nil
	}
	if int64(len(p))-n > l.n*sector {
		return ondisk.Corrupt("xfs log", "record", blk*sector, "longer than the log")
	}
	_, err := l.c.ReadAt(p[n:], 0)
	return err
}

// recordMax is the longest record, in basic blocks.
func (l *xlog) recordMax() int64 {
	if l.v2 {
		return logMaxRecord / sector
	}
	return logBigRecord / sector
}

// blocksOf gives the number of blocks behind a record's header.
func blocksOf(h []byte) int64 {
	return (int64(be.Uint32(h[recLen:])) + sector - 1) / sector
}

// headerBlocks tells how many blocks a record's header takes.
func (l *xlog) headerBlocks(h []byte) int64 {
	if size := int64(be.Uint32(h[recSize:])); l.v2 && be.Uint32(h[recVersion:])&logV2 != 0 && size > logBigRecord {
		return (min(size, logMaxRecord) + logBigRecord - 1) / logBigRecord
	}
	return 1
}

// cycleStart finds about the first block of a cycle between first and last, which is of that cycle.
func (l *xlog) cycleStart(first, last int64, cycle uint32) (int64, error) {
	for mid := (first + last) / 2; mid != first && mid != last; mid = (first + last) / 2 {
		c, err := l.cycle(mid)
		if err != nil {
			return 0, err
		}
		if c == cycle {
			last = mid
		} else {
			first = mid
		}
	}
	return last, nil
}

// firstOf finds the first of n blocks that is of a cycle, or -1.
func (l *xlog) firstOf(start, n int64, cycle uint32) (int64, error) {
	for i := start; i < start+n; i++ {
		c, err := l.cycle(i)
		if err != nil {
			return 0, err
		}
		if c == cycle {
			return i, nil
		}
	}
	return -1, nil
}

// wholeRecord moves last back to the beginning of the record before it if that record isn't complete. extra blocks of it
// lie at the other end of the log. It gives -1 when there is no record between start and last.
func (l *xlog) wholeRecord(start, last, extra int64) (int64, error) {
	for i := last - 1; i >= 0; i-- {
		if i < start {
			return 0, ondisk.Corrupt("xfs log", "no record before block", -1, last)
		}
		b, err := l.block(i)
		if err != nil {
			return 0, err
		}
		if be.Uint32(b) != logMagic {
			continue
		}
		if u := [16]byte(b[recUUID:]); u != l.uuid && u != ([16]byte{}) {
			return 0, ondisk.Corrupt("xfs log record", "uuid", i*sector+recUUID, uuidText(u))
		}
		if last-i+extra != blocksOf(b)+l.headerBlocks(b) {
			return i, nil
		}
		return last, nil
	}
	return -1, nil
}

// findHead finds where the next record would be written.
func (l *xlog) findHead() (int64, error) {
	firstCycle, err := l.cycle(0)
	if err != nil || firstCycle == 0 {
		return 0, err // a log of zeros is empty
	}
	lastCycle, err := l.cycle(l.n - 1)
	if err != nil {
		return 0, err
	}
	scan := min(l.n, logMaxBuffers*l.recordMax())
	if lastCycle == 0 { // never written to its end
		last, err := l.cycleStart(0, l.n-1, 0)
		if err != nil {
			return 0, err
		}
		start := last - min(scan, last)
		if b, err := l.firstOf(start, last-start, 0); err != nil {
			return 0, err
		} else if b >= 0 {
			last = b
		}
		head, err := l.wholeRecord(start, last, 0)
		if head < 0 {
			err = ondisk.Corrupt("xfs log", "no record before block", -1, last)
		}
		return head, err
	}
	head, stop := l.n, lastCycle-1
	if firstCycle != lastCycle {
		stop = lastCycle
		if head, err = l.cycleStart(0, l.n-1, lastCycle); err != nil {
			return 0, err
		}
	}
	if head, err = l.withoutHoles(head, scan, stop); err != nil {
		return 0, err
	}
	// Not into the middle of a record.
	start := max(head-l.recordMax(), 0)
	whole, err := l.wholeRecord(start, head, 0)
	switch {
	case err != nil:
		return 0, err
	case whole >= 0:
		head = whole
	case start > 0:
		return 0, ondisk.Corrupt("xfs log", "no record before block", -1, head)
	default: // it began at the end of the log
		end, err := l.wholeRecord(max(l.n-(l.recordMax()-head), 0), l.n, head)
		if end < 0 {
			err = ondisk.Corrupt("xfs log", "no record before block", -1, head)
		}
		if err != nil {
			return 0, err
		}
		if end != l.n {
			head = end
		}
	}
	return head % l.n, nil
}

// withoutHoles moves the head back to the first block, among those that may have been on their way, that was not
// written yet.
func (l *xlog) withoutHoles(head, scan int64, stop uint32) (int64, error) {
	if head >= scan {
		b, err := l.firstOf(head-scan, scan, stop)
		if err != nil || b < 0 {
			return head, err
		}
		return b, nil
	}
	b, err := l.firstOf(l.n-(scan-head), scan-head, stop-1)
	if err != nil || b >= 0 {
		return b, err
	}
	b, err = l.firstOf(0, head, stop)
	if err != nil || b < 0 {
		return head, err
	}
	return b, nil
}

// back looks for the count-th record header before head, not past tail, and gives the last one found, or -1.
func (l *xlog) back(head, tail int64, count int) (int64, error) {
	end, found := int64(0), int64(-1)
	if head > tail {
		end = tail
	}
	look := func(from, to int64) error {
		for i := from; i >= to && count > 0; i-- {
			b, err := l.block(i)
			if err != nil {
				return err
			}
			if be.Uint32(b) == logMagic {
				found = i
				count--
			}
		}
		return nil
	}
	if err := look(head-1, end); err != nil {
		return 0, err
	}
	if tail >= head {
		if err := look(l.n-1, tail); err != nil {
			return 0, err
		}
	}
	return found, nil
}

// ahead looks for the count-th record header from tail on, before head.
func (l *xlog) ahead(head, tail int64, count int) (int64, error) {
	n := head - tail
	if n <= 0 {
		n += l.n
	}
	found := int64(-1)
	for i := int64(0); i < n && count > 0; i++ {
		b, err := l.block((tail + i) % l.n)
		if err != nil {
			return 0, err
		}
		if be.Uint32(b) == logMagic {
			found = (tail + i) % l.n
			count--
		}
	}
	return found, nil
}

// find finds head and tail, and whether there is work between them.
func (l *xlog) find() (*logState, error) {
	head, err := l.findHead()
	if err != nil {
		return nil, err
	}
	s := &logState{head: head}
	if head == 0 {
		if c, err := l.cycle(0); err != nil || c == 0 {
			s.clean = true
			s.notes = append(s.notes, "the log was never written")
			return s, err
		}
	}
	last, err := l.back(head, head, 1)
	if err != nil {
		return nil, err
	}
	if last < 0 {
		return nil, ondisk.Corrupt("xfs log", "no record before block", -1, head)
	}
	h, err := l.block(last)
	if err != nil {
		return nil, err
	}
	s.tail = int64(uint32(be.Uint64(h[recTailLSN:])))
	if s.clean, err = l.unmounted(head, last, h); s.clean || err != nil {
		return s, err
	}
	if err := l.verify(s, last, int64(be.Uint32(h[recSize:]))); err != nil {
		return nil, err
	}
	s.clean = s.head == s.tail
	return s, nil
}

// unmounted reports whether the last record is the one that unmounting writes.
func (l *xlog) unmounted(head, last int64, h []byte) (bool, error) {
	n := l.headerBlocks(h)
	if (last+n+blocksOf(h))%l.n != head || be.Uint32(h[recNumOps:]) != 1 {
		return false, nil
	}
	op, err := l.block((last + n) % l.n)
	if err != nil {
		return false, err
	}
	return op[opFlags]&opUnmount != 0, nil
}

// maxOverwritten is how many records at the tail may be written over: more than were on their way together.
const maxOverwritten = 4 * logMaxBuffers

// verify checks the records between tail and head. Those at the head that were being written when the machine stopped
// are cut off; ones at the tail that were already being written over are left out.
func (l *xlog) verify(s *logState, last, size int64) error {
	if s.tail >= l.n {
		return ondisk.Corrupt("xfs log record", "tail", last*sector+recTailLSN, s.tail)
	}
	from, err := l.back(s.head, s.tail, logMaxBuffers)
	if err != nil {
		return err
	}
	if from < 0 || from == s.head {
		return ondisk.Corrupt("xfs log", "no record before block", -1, s.head)
	}
	bad, err := l.records(s.head, from, nil)
	if err != nil {
		if bad < 0 || !errors.Is(err, ondisk.ErrCorrupt) {
			return err
		}
		s.notes = append(s.notes, fmt.Sprintf("a record of the log at block %d was not wholly written (%v); what came before it counts", bad, err))
		good, err := l.back(bad, s.tail, 1)
		if err != nil {
			return err
		}
		if good < 0 {
			return ondisk.Corrupt("xfs log", "no sound record before block", -1, bad)
		}
		h, err := l.block(good)
		if err != nil {
			return err
		}
		s.head, s.tail = bad, int64(uint32(be.Uint64(h[recTailLSN:])))
		size = int64(be.Uint32(h[recSize:]))
		if s.tail >= l.n {
			return ondisk.Corrupt("xfs log record", "tail", good*sector+recTailLSN, s.tail)
		}
		if s.head == s.tail {
			return nil
		}
	}
	tail, err := l.ahead(s.head, s.tail, 1)
	if err != nil || tail < 0 {
		return first(err, ondisk.Corrupt("xfs log", "no record at the tail", -1, s.tail))
	}
	orig := s.tail
	s.tail = tail
	for tries := 0; ; tries++ {
		bad, err := l.records(s.head, s.tail, nil)
		if err == nil {
			break
		}
		free := bad - s.head // room between the head and the bad record
		if free < 0 {
			free += l.n
		}
		if bad < 0 || tries == maxOverwritten || free > logMaxBuffers*size/sector || !errors.Is(err, ondisk.ErrCorrupt) {
			return err
		}
		next, err2 := l.ahead(s.head, bad, 2)
		if err2 != nil || next < 0 || next == bad {
			return first(err2, err)
		}
		s.tail = next
	}
	if s.tail != orig {
		s.notes = append(s.notes, fmt.Sprintf("the log's tail at block %d was being written over; its work begins at %d", orig, s.tail))
	}
	return nil
}

// record is one record of the log: its header and what follows, with the words put back that cycle numbers replaced.
type record struct {
	blk  int64
	lsn  uint64
	ord  binary.ByteOrder
	ops  uint32
	data []byte // valid until the next record
}

// records goes through the records from tail to head. Without fn it only checks them. When a record is bad, its
// place comes with the error; otherwise -1.
func (l *xlog) records(head, tail int64, fn func(*record) error) (bad int64, err error) {
	h, err := l.block(tail)
	if err != nil {
		return -1, err
	}
	size, hblks := int64(logBigRecord), int64(1)
	if l.v2 {
		// mkfs.xfs writes records of a stripe unit under a size of 32 KiB.
		size = int64(be.Uint32(h[recSize:]))
		if n := int64(be.Uint32(h[recLen:])); n > size && n <= max(l.unit, logBigRecord) && be.Uint32(h[recNumOps:]) == 1 {
			size = max(l.unit, logBigRecord)
		}
		if size > logMaxRecord || size < 0 {
			return tail, ondisk.Corrupt("xfs log record", "size of buffers", tail*sector+recSize, size)
		}
		if size > logBigRecord && be.Uint32(h[recVersion:])&logV2 != 0 {
			hblks = (size + logBigRecord - 1) / logBigRecord
		}
	}
	left := head - tail // blocks
	if left <= 0 {
		left += l.n
	}
	head0 := make([]byte, hblks*sector)
	buf := make([]byte, size+sector)
	for blk := tail; left > 0; {
		if err := l.read(head0, blk); err != nil {
			return blk, err
		}
		n, err := l.header(head0, blk, size)
		if err != nil {
			return blk, err
		}
		data := buf[:(n+sector-1)/sector*sector]
		if err := l.read(data, blk+hblks); err != nil {
			return blk, err
		}
		if err := l.sum(head0, data[:n], blk); err != nil {
			return blk, err
		}
		if fn != nil {
			if l.v5 && be.Uint32(head0[recCRC:]) == 0 {
				return blk, ondisk.Corrupt("xfs log record", "checksum", blk*sector+recCRC, 0)
			}
			rec := record{blk: blk, lsn: be.Uint64(head0[recLSN:]), ops: be.Uint32(head0[recNumOps:]), data: data[:n]}
			switch f := be.Uint32(head0[recFormat:]); f {
			case logFormatLE:
				rec.ord = binary.LittleEndian
			case logFormatBE:
				rec.ord = binary.BigEndian
			default:
				return blk, ondisk.Unsupported("xfs log record", "format", blk*sector+recFormat, f)
			}
			if u := [16]byte(head0[recUUID:]); u != l.uuid {
				return blk, ondisk.Corrupt("xfs log record", "uuid", blk*sector+recUUID, uuidText(u))
			}
			unpack(head0, data)
			if err := fn(&rec); err != nil {
				return blk, err
			}
		}
		step := hblks + int64(len(data))/sector
		left -= step
		blk = (blk + step) % l.n
	}
	return -1, nil
}

// header checks a record's header and gives the length of what follows.
func (l *xlog) header(h []byte, blk, size int64) (int64, error) {
	if m := be.Uint32(h); m != logMagic {
		return 0, ondisk.Corrupt("xfs log record", "magic", blk*sector, fmt.Sprintf("%#08x", m))
	}
	if v := be.Uint32(h[recVersion:]); v == 0 || v&^uint32(logV1|logV2) != 0 {
		return 0, ondisk.Corrupt("xfs log record", "version", blk*sector+recVersion, v)
	}
	n := int64(be.Uint32(h[recLen:]))
	if n == 0 || n > size {
		return 0, ondisk.Corrupt("xfs log record", "length", blk*sector+recLen, n)
	}
	return n, nil
}

// sum checks a record's checksum; 0 stands for none, as mkfs.xfs and old kernels leave it.
func (l *xlog) sum(h, data []byte, blk int64) error {
	want := binary.LittleEndian.Uint32(h[recCRC:])
	if want == 0 {
		return nil
	}
	for _, n := range []int{recHeadLen, recHead32} {
		c := checksum(h[:n], recCRC)
		if l.v2 {
			for i := 1; i < (len(data)+logBigRecord-1)/logBigRecord && (i+1)*sector <= len(h); i++ {
				c = crc32.Update(c, castagnoli, h[i*sector:][:recExtLen])
			}
		}
		if crc32.Update(c, castagnoli, data) == want {
			return nil
		}
	}
	return ondisk.Corrupt("xfs log record", "checksum", blk*sector+recCRC, fmt.Sprintf("%#08x", want))
}

// unpack puts back the first word of each block.
func unpack(h, data []byte) {
	for i := 0; i*sector < len(data); i++ {
		ext, word := i/logCyclePer, i%logCyclePer
		at := recCycles + word*4
		if ext > 0 {
			at = ext*sector + recExtWords + word*4
		}
		if at+4 > len(h) {
			return
		}
		copy(data[i*sector:], h[at:at+4])
	}
}
