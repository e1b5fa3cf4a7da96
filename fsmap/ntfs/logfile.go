package ntfs

import (
	"bytes"
	"fmt"

	"vmkit/formats/ondisk"
)

const logWhat = "ntfs $LogFile"

// restartArea is what one of the two restart pages says.
type restartArea struct {
	chkdsk       bool
	major, minor uint16
	systemPage   uint32
	logPage      uint32
	current      uint64
	inUse, flags uint16
	area         []byte // up to the end of the page
}

// clean says that the log holds no work: no client uses it, the volume was unmounted, or chkdsk emptied it.
func (a *restartArea) clean() bool {
	return a.chkdsk || a.inUse == raNone || a.flags&raFlagClean != 0
}

// restartArea reads the newer of the two restart pages; it is nil where the log was never used, and filled with ones.
func (f *fs) restartArea(s *stream) (*restartArea, error) {
	var newest *restartArea
	var first error
	blank := true
	page := make([]byte, logPage)
	for off := int64(0); off < restarts*logPage; off += logPage {
		if err := ondisk.ReadFull(s, page, off, logWhat); err != nil {
			return nil, err
		}
		if le.Uint32(page) == 0xFFFFFFFF {
			continue
		}
		blank = false
		a, err := parseRestart(page, off)
		if err != nil {
			f.note("%v", err)
			if first == nil {
				first = err
			}
			continue
		}
		if newest == nil || a.current > newest.current {
			newest, page = a, make([]byte, logPage)
		}
	}
	if newest == nil && !blank {
		return nil, first
	}
	return newest, nil
}

func parseRestart(b []byte, off int64) (*restartArea, error) {
	const what = logWhat + " restart page"
	magic := "RSTR"
	if string(b[:4]) == "CHKD" {
		magic = "CHKD"
	}
	if err := fixup(b, magic, what, off); err != nil {
		return nil, err
	}
	at := int(le.Uint16(b[rpArea:]))
	if at < rpHead || at+raLen > len(b) {
		return nil, ondisk.Corrupt(what, "offset of the restart area", off+rpArea, at)
	}
	r := b[at:]
	return &restartArea{chkdsk: magic == "CHKD", major: le.Uint16(b[rpMajor:]), minor: le.Uint16(b[rpMinor:]), systemPage: le.Uint32(b[rpSystemPage:]),
		logPage: le.Uint32(b[rpLogPage:]), current: le.Uint64(r[raCurrent:]), inUse: le.Uint16(r[raInUse:]), flags: le.Uint16(r[raFlags:]), area: r}, nil
}

// logFile is a log that may hold work.
type logFile struct {
	s       *stream
	copies  map[int64]*logPageBuf // by the place that they are for
	major   uint16
	first   int64 // of the ring
	size    int64
	bits    uint // of an LSN that give the position
	data    int  // where a page's records begin
	header  int  // bytes of a record's header
	current uint64
	oldest  uint64 // LSN that the client may need
	restart uint64 // LSN of the client's restart record, or 0
	client  [4]byte
	page    *logPageBuf // read last
	spare   *logPageBuf
}

// logPageBuf is a page of records, its fixups undone.
type logPageBuf struct {
	pos      int64 // where its content belongs in the log
	b        []byte
	last     uint64 // LSN of its last record
	lastEnds uint64 // LSN of the last record that ends in it, or 0
}

// openLog checks what the restart area says of the log, and gathers the copies of pages that were not full.
func openLog(s *stream, a *restartArea) (*logFile, error) {
	const what = logWhat + " restart area"
	if v := [2]uint16{a.major, a.minor}; v != [2]uint16{1, 1} && v != [2]uint16{2, 0} {
		return nil, ondisk.Unsupported(logWhat, "version", -1, fmt.Sprintf("%d.%d", a.major, a.minor))
	}
	if a.systemPage != logPage || a.logPage != logPage {
		return nil, ondisk.Unsupported(logWhat, "bytes of a page", -1, fmt.Sprintf("%d and %d", a.systemPage, a.logPage))
	}
	r := a.area
	size, bits := le.Uint64(r[raFileSize:]), le.Uint32(r[raSeqBits:])
	l := &logFile{s: s, major: a.major, first: (restarts + copies1) * logPage, size: int64(size), data: int(le.Uint16(r[raData:])),
		header: int(le.Uint16(r[raHeader:])), current: a.current, copies: make(map[int64]*logPageBuf)}
	if a.major >= 2 {
		l.first = (restarts + copies2) * logPage
	}
	switch {
	case size > uint64(s.size) || size < minLogFile || size > maxLogFile:
		return nil, ondisk.Corrupt(what, "bytes of the log", -1, size)
	case bits < 64-29 || bits > 60 || size>>(64-bits+3) != 0:
		return nil, ondisk.Corrupt(what, "bits of the sequence number", -1, bits)
	case l.data < lpHead || l.data%8 != 0 || l.data > logPage/2:
		return nil, ondisk.Corrupt(what, "where a page's records begin", -1, l.data)
	case l.header < lrHead || l.header%8 != 0 || l.header > logPage/4:
		return nil, ondisk.Corrupt(what, "bytes of a record's header", -1, l.header)
	}
	l.bits, l.size = uint(64-bits), l.size/logPage*logPage
	n, at := int(le.Uint16(r[raClients:])), int(le.Uint16(r[raArray:]))
	if n != 1 || a.inUse != 0 || at+crLen > len(r) {
		return nil, ondisk.Unsupported(what, "clients", -1, n)
	}
	c := r[at:]
	if le.Uint32(c[crName:]) != 8 || !bytes.Equal(c[crName+4:crName+12], []byte("N\x00T\x00F\x00S\x00")) {
		return nil, ondisk.Unsupported(what, "client", -1, printable(c[crName+4:crName+12]))
	}
	l.oldest, l.restart = le.Uint64(c[crOldest:]), le.Uint64(c[crRestart:])
	copy(l.client[:2], c[crSeq:])
	for pos := int64(restarts * logPage); pos < l.first; pos += logPage {
		p, err := l.read(pos, nil)
		if err != nil {
			return nil, err
		}
		if p == nil {
			continue // never used, or in the middle of being written: then what it holds was not yet relied on
		}
		place := int64(le.Uint64(p.b[lpLSN:]))
		if l.major >= 2 {
			place = int64(le.Uint32(p.b[lpCopyOf:]))
		} else {
			p.last = p.lastEnds
		}
		if place < l.first || place%logPage != 0 || place > l.size-logPage {
			continue
		}
		if p.pos = place; p.newer(l.copies[place]) {
			l.copies[place] = p
		}
	}
	return l, nil
}

// newer tells whether a page is a later state of the same page than q.
func (p *logPageBuf) newer(q *logPageBuf) bool {
	return q == nil || max(p.last, p.lastEnds) > max(q.last, q.lastEnds)
}

// read gives the page that lies at pos, using the memory of old; nil if there is no sound page of records.
func (l *logFile) read(pos int64, old *logPageBuf) (*logPageBuf, error) {
	if old == nil {
		old = &logPageBuf{b: make([]byte, logPage)}
	}
	if err := ondisk.ReadFull(l.s, old.b, pos, logWhat); err != nil {
		return nil, err
	}
	if fixup(old.b, "RCRD", logWhat, pos) != nil {
		return nil, nil
	}
	old.pos, old.last, old.lastEnds = pos, le.Uint64(old.b[lpLSN:]), 0
	if le.Uint32(old.b[lpFlags:])&lpFlagEnd != 0 {
		old.lastEnds = le.Uint64(old.b[lpEndLSN:])
	}
	return old, nil
}

// at gives the newest state of the page at pos of the ring, or nil. It stays valid until the next call.
func (l *logFile) at(pos int64) (*logPageBuf, error) {
	if l.page != nil && l.page.pos == pos {
		return l.page, nil
	}
	p, err := l.read(pos, l.spare)
	if err != nil {
		return nil, err
	}
	if p != nil {
		l.spare = p
	}
	if c := l.copies[pos]; c != nil && (p == nil || c.newer(p)) {
		p = c
	}
	if l.page = nil; p != nil {
		l.page = p
	}
	return p, nil
}

// logRecord is a record of the client.
type logRecord struct {
	lsn, undoNext uint64
	typ, trans    uint32
	flags         uint16
	data          []byte
	next          uint64 // LSN of the record behind it, if there is one
}

func (l *logFile) position(lsn uint64) int64 { return int64(lsn&(1<<l.bits-1)) * 8 }

func (l *logFile) lsn(lap uint64, pos int64) uint64 { return lap<<l.bits | uint64(pos)/8 }

// after gives the position of the page behind that at pos, and whether the ring begins anew there.
func (l *logFile) after(pos int64) (int64, bool) {
	if pos += logPage; pos >= l.size {
		return l.first, true
	}
	return pos, false
}

// record reads the record with that LSN. It is nil where the log doesn't hold it, or not whole.
func (l *logFile) record(lsn uint64) (*logRecord, error) {
	pos, lap := l.position(lsn), lsn>>l.bits
	in := int(pos % logPage)
	if pos < l.first || pos >= l.size || in < l.data || in > logPage-l.header {
		return nil, nil
	}
	p, err := l.at(pos - int64(in))
	if err != nil || p == nil || le.Uint64(p.b[in+lrLSN:]) != lsn {
		return nil, err
	}
	h := p.b[in : in+l.header]
	n := int64(le.Uint32(h[lrLen:]))
	if n > maxLogRecord || n > (l.size-l.first)/2 {
		return nil, ondisk.Corrupt(logWhat, "bytes of a record at", pos, n)
	}
	if !bytes.Equal(h[lrSeq:lrSeq+4], l.client[:]) {
		return nil, ondisk.Unsupported(logWhat, "record of an unknown client at", pos, nil)
	}
	r := &logRecord{lsn: lsn, undoNext: le.Uint64(h[lrUndoNext:]), typ: le.Uint32(h[lrType:]), trans: le.Uint32(h[lrTrans:]), flags: le.Uint16(h[lrFlags:])}
	r.data = make([]byte, 0, min(n, logPage))
	for in += l.header; ; in = l.data {
		k := int(min(n-int64(len(r.data)), int64(logPage-in)))
		r.data = append(r.data, p.b[in:in+k]...)
		if in += k; int64(len(r.data)) == n {
			break
		}
		next, wrapped := l.after(p.pos)
		if wrapped {
			lap++
		}
		if p, err = l.at(next); err != nil || p == nil || p.last < lsn {
			return nil, err
		}
	}
	if p.lastEnds < lsn {
		return nil, nil
	}
	end := (p.pos + int64(in) + 7) &^ 7
	if p.last == lsn { // the next one begins in the next page
		next, wrapped := l.after(p.pos)
		if wrapped {
			lap++
		}
		end = next + int64(l.data)
	}
	r.next = l.lsn(lap, end)
	return r, nil
}

// walk calls fn for the records from the one with that LSN to the log's end, and gives the LSN of the last one.
func (l *logFile) walk(from uint64, fn func(*logRecord) error) (last uint64, err error) {
	r, err := l.record(from)
	if err == nil && r == nil {
		err = ondisk.Corrupt(logWhat, "there is no record with the LSN", l.position(from), from)
	}
	for err == nil && r != nil {
		if err := fn(r); err != nil {
			return 0, fmt.Errorf("record at byte %#x: %w", l.position(r.lsn), err)
		}
		last = r.lsn
		r, err = l.record(r.next)
	}
	return last, err
}

// checkEnd makes sure that nothing was written behind the log's end: that would mean that records between are lost.
func (l *logFile) checkEnd(last uint64) error {
	if last < l.current {
		return ondisk.Corrupt(logWhat, fmt.Sprintf("it ends with LSN %#x, before the restart area's", last), -1, l.current)
	}
	head := make([]byte, lpHead)
	newer := func(b []byte) bool { return le.Uint32(b[lpFlags:])&lpFlagEnd != 0 && le.Uint64(b[lpEndLSN:]) > last }
	for pos := l.first; pos < l.size; pos += logPage {
		if err := ondisk.ReadFull(l.s, head, pos, logWhat); err != nil {
			return err
		}
		if string(head[:4]) == "RCRD" && newer(head) {
			return ondisk.Corrupt(logWhat, fmt.Sprintf("it breaks off at LSN %#x, before a page with LSN", last), pos, le.Uint64(head[lpEndLSN:]))
		}
	}
	for pos, p := range l.copies {
		if newer(p.b) {
			return ondisk.Corrupt(logWhat, fmt.Sprintf("it breaks off at LSN %#x, before a copied page with LSN", last), pos, p.lastEnds)
		}
	}
	return nil
}
