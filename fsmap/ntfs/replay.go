package ntfs

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/overlay"
)

// recover looks at $LogFile and, where it holds work, replays it into an overlay of the volume, as the options say.
// What can't be replayed whole is not replayed at all.
func (f *fs) recover(mode fsmap.JournalMode, x boot) error {
	f.info.Journal = "clean"
	a, err := f.readLog()
	switch {
	case err == nil && a == nil:
		return nil
	case mode == fsmap.JournalFail && err == nil:
		return ondisk.Unsupported(logWhat, "it holds work", -1, nil)
	case mode == fsmap.JournalFail:
		return err
	case mode == fsmap.JournalIgnore && err == nil:
		f.info.Journal = "ignored"
		f.note("$LogFile holds work, which is not shown")
		return nil
	}
	if err == nil {
		err = f.replay(a, x)
	}
	if err == nil {
		f.info.Journal = "replayed"
		return nil
	}
	f.info.Journal = "unreplayed"
	f.problem(fmt.Errorf("$LogFile is not replayed, what changed last may be stale: %w", err))
	return nil
}

// readLog analyses the log. It gives nil where there is nothing to do.
func (f *fs) readLog() (*logState, error) {
	ino := f.newInode()
	if err := f.load(ino, recLogFile, 0); err != nil {
		return nil, err
	}
	s, err := f.open(ino, atData, "")
	if err != nil {
		return nil, err
	}
	area, err := f.restartArea(s)
	if err != nil || area == nil || area.clean() {
		return nil, err
	}
	l, err := openLog(s, area)
	if err != nil {
		return nil, err
	}
	a, err := analyse(l, f.cluster)
	if err != nil || a == nil || !a.work() {
		return nil, err
	}
	return a, nil
}

// replay redoes and undoes what the log says, and opens the MFT again, which may have grown.
func (f *fs) replay(a *logState, x boot) error {
	p := &replay{logState: a, f: f, over: overlay.New(f.r, f.size, maxReplayed, logWhat)}
	err := p.redo()
	if err == nil {
		err = p.undo()
	}
	if err != nil {
		return err
	}
	old, mft, records := f.r, f.mft, f.records
	f.r, f.over = ondisk.NewCache(p.over, f.size, cachePage, cacheLimit), p.over
	f.mft = stream{}
	if err := f.openMFT(x); err != nil {
		f.r, f.over, f.mft, f.records = old, nil, mft, records
		return fmt.Errorf("MFT after the replay: %w", err)
	}
	f.disk, f.changed = old, p.over.Changed()
	if p.blank > 0 {
		f.note("$LogFile leaves out the content of %d writes into MFT records, which read as zeros", p.blank)
	}
	return nil
}

// replay is the state of the passes over the log.
type replay struct {
	*logState
	f     *fs
	over  *overlay.Volume
	blank int   // writes whose content the log leaves out
	moved int64 // bytes that were read and written
}

// redo repeats, in order, what the volume lacks, whether the transactions ended or not.
func (p *replay) redo() error {
	if len(p.dirty) == 0 {
		return nil
	}
	_, err := p.l.walk(p.oldest(), func(r *logRecord) error {
		if r.typ != typeRecord {
			return nil
		}
		c, err := parseChange(r)
		if err != nil || c.lcns == 0 || !changes(c.redo) {
			return err
		}
		off, n := opRedoOff, opRedoLen
		s := step{change: c, op: c.redo, lsn: r.lsn, n: int(le.Uint16(c.b[n:])), other: int(le.Uint16(c.b[opUndoLen:]))}
		s.blank = c.noRedo && s.n > 0 && int(le.Uint16(c.b[off:]))+s.n > len(c.b)
		if !s.blank {
			if s.data, err = c.bytes(off, n); err != nil {
				return err
			}
		}
		return p.apply(&s)
	})
	return err
}

// undo takes back what transactions did that did not end, from their last record to their first.
func (p *replay) undo() error {
	var ids []uint32
	for id, t := range p.trans {
		switch {
		case t.state == transPrepared:
			return ondisk.Unsupported(logWhat, "a prepared transaction", -1, id)
		case t.state == transActive && t.undoNext != 0 && t.undoes:
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		for lsn := p.trans[id].undoNext; lsn != 0; {
			r, err := p.l.record(lsn)
			if err == nil && (r == nil || r.trans != id) {
				err = ondisk.Corrupt(logWhat, "there is no record to undo with the LSN", p.l.position(lsn), lsn)
			}
			if err == nil && r.undoNext >= lsn {
				err = ondisk.Corrupt(logWhat, "LSN of the record to undo next", p.l.position(lsn), r.undoNext)
			}
			if err == nil {
				err = p.undoOne(r)
			}
			if err != nil {
				return fmt.Errorf("undoing the record at byte %#x: %w", p.l.position(lsn), err)
			}
			lsn = r.undoNext
		}
	}
	return nil
}

func (p *replay) undoOne(r *logRecord) error {
	c, err := parseChange(r)
	if err != nil || !changes(c.undo) {
		return err
	}
	s := step{change: c, op: c.undo, n: int(le.Uint16(c.b[opUndoLen:])), other: int(le.Uint16(c.b[opRedoLen:]))}
	if s.data, err = c.bytes(opUndoOff, opUndoLen); err != nil {
		return err
	}
	return p.apply(&s)
}

// changes tells whether an operation changes the volume.
func changes(op uint16) bool {
	switch op {
	case opNoop, opCompensation, opDeleteDirty, opHotFix, opEndTop, opPrepare, opCommit, opForget, opOpenAttr, opOpenDump, opNamesDump, opDirtyDump, opTransDump:
		return false
	}
	return true
}

// step is an operation to apply.
type step struct {
	*change
	op    uint16
	lsn   uint64 // of the record, or 0 when it is undone
	data  []byte
	n     int  // bytes to write: len(data), unless the log leaves them out
	blank bool // it does
	other int  // bytes that the opposite operation would write
}

// errSkip says that there is nothing to do.
var errSkip = errors.New("skip")

// apply brings the block that a step is about to its new state.
func (p *replay) apply(s *step) error {
	// The place in the table may have been another attribute's when the record was written: then its pages are not dirty.
	if _, err := p.place(s, s.blockOff, 1); err != nil {
		return skipped(err)
	}
	attr, ok := p.attrs[s.attr]
	if !ok {
		return ondisk.Corrupt(logWhat, "open attribute", -1, s.attr)
	}
	no, _ := mftRef(attr.ref)
	var err error
	switch ofRecord, ofIndex := s.target(); {
	case ofRecord:
		if no != recMFT || attr.typ != atData {
			return ondisk.Corrupt(logWhat, "operation on a record of the MFT, in attribute", -1, fmt.Sprintf("%#x of record %d", attr.typ, no))
		}
		err = p.protected(s, p.f.recordSize, "FILE", s.changeRecord)
		p.blank += s.blanks(err)
	case ofIndex || s.op == opNonresident && attr.typ == atIndexAllocation:
		if attr.typ != atIndexAllocation {
			return ondisk.Corrupt(logWhat, "operation on an index, in attribute", -1, fmt.Sprintf("%#x of record %d", attr.typ, no))
		}
		err = p.protected(s, attr.block, "INDX", s.changeIndex)
	default:
		err = p.raw(s)
	}
	return skipped(err)
}

func skipped(err error) error {
	if errors.Is(err, errSkip) {
		return nil
	}
	return err
}

// blanks counts a step that wrote zeros for bytes that the log leaves out of a resident value.
func (s *step) blanks(err error) int {
	if err == nil && s.blank && s.op == opResident {
		return 1
	}
	return 0
}

// target tells whether the operation changes a record of the MFT, or a block of an index.
func (s *step) target() (ofRecord, ofIndex bool) {
	switch s.op {
	case opInitRecord, opFreeRecord, opEndRecord, opCreateAttr, opDeleteAttr, opResident, opPairs, opSizes, opAddRoot, opDeleteRoot, opVCNRoot, opNameRoot,
		opDataRoot, opRelativeRoot, opZeroRecord:
		return true, false
	case opAddIndex, opDeleteIndex, opEndIndex, opVCNIndex, opNameIndex, opDataIndex, opRelativeIndex:
		return false, true
	}
	return false, false
}

// piece is a part of a block, in the volume.
type piece struct{ off, n int64 }

// place gives where the n bytes at off behind the first cluster of a step lie. It is errSkip where the volume is known
// to have them, or where their clusters were given back.
func (p *replay) place(s *step, off, n int64) ([]piece, error) {
	var list []piece
	gone := 0
	first, last := off/p.bytes, (off+n-1)/p.bytes
	for i := first; i <= last; i++ {
		if i >= int64(s.lcns) {
			return nil, ondisk.Corrupt(logWhat, "bytes of a block behind its clusters", -1, off+n)
		}
		lcn := s.lcn(int(i))
		if d := p.dirty[dirtyKey{s.attr, s.vcn + i}]; d != nil {
			if lcn = d.lcn; s.lsn != 0 && s.lsn < d.oldest {
				return nil, errSkip
			}
		} else if s.lsn != 0 {
			return nil, errSkip
		}
		if lcn == 0 {
			gone++
			continue
		}
		if lcn < 0 || lcn >= p.f.clusters {
			return nil, ondisk.Corrupt(logWhat, "cluster", -1, lcn)
		}
		from, to := max(off, i*p.bytes), min(off+n, (i+1)*p.bytes)
		list = append(list, piece{lcn*p.bytes + from - i*p.bytes, to - from})
	}
	switch {
	case gone > 0 && len(list) == 0 && s.lsn != 0:
		return nil, errSkip
	case gone > 0:
		return nil, ondisk.Unsupported(logWhat, "clusters of a block that were given back", -1, gone)
	}
	return list, nil
}

func (p *replay) read(list []piece) ([]byte, error) {
	var out []byte
	for _, x := range list {
		b, err := p.over.Bytes(x.off, int(x.n))
		if err != nil {
			return nil, err
		}
		out = append(out, b...)
	}
	return out, nil
}

func (p *replay) write(list []piece, b []byte) error {
	if p.moved += int64(len(b)); p.moved > maxMoved {
		return ondisk.Unsupported(logWhat, "bytes to rewrite", -1, p.moved)
	}
	for _, x := range list {
		if err := p.over.Write(x.off, b[:x.n]); err != nil {
			return err
		}
		b = b[x.n:]
	}
	return nil
}

// protected applies a step to a record of the MFT or a block of an index, unless the one in the volume is as new.
func (p *replay) protected(s *step, size int64, magic string, change func(b []byte) error) error {
	what := "block to change (" + magic + ")"
	if (s.vcn*p.bytes+s.blockOff)%size != 0 {
		return ondisk.Corrupt(logWhat, "position of a "+what, -1, s.vcn*p.bytes+s.blockOff)
	}
	list, err := p.place(s, s.blockOff, size)
	if err != nil {
		return err
	}
	b, err := p.read(list)
	if err != nil {
		return err
	}
	// What writes the block anew needs no old one.
	whole := s.recordOff == 0 && s.attrOff == 0 && len(s.data) >= recHeaderLen && string(s.data[:4]) == magic && (s.op == opInitRecord || s.op == opNonresident)
	err = fixup(b, magic, what, list[0].off)
	switch {
	case err == nil:
		if s.lsn != 0 && le.Uint64(b[msLSN:]) >= s.lsn {
			return errSkip
		}
	case whole:
		clear(b)
	case s.op == opFreeRecord && s.lsn == 0 && string(b[:4]) != magic && string(b[:4]) != "BAAD":
		return errSkip // a record that was never made
	default:
		return err
	}
	if err := change(b); err != nil {
		return err
	}
	if s.lsn != 0 {
		le.PutUint64(b[msLSN:], s.lsn)
	}
	if err := protect(b, magic, what, list[0].off); err != nil {
		return err
	}
	return p.write(list, b)
}

// raw applies a step to a stream that is not protected: a bitmap, security descriptors, an attribute list.
func (p *replay) raw(s *step) error {
	off, n := s.blockOff+int64(s.recordOff), int64(s.n)
	bit, bits := int64(0), int64(0)
	switch s.op {
	case opNonresident:
		off += int64(s.attrOff)
	case opSetBits, opClearBits:
		if len(s.data) != 8 {
			return ondisk.Corrupt(logWhat, "bytes of a range of bits", -1, len(s.data))
		}
		bit, bits = int64(le.Uint32(s.data)), int64(le.Uint32(s.data[4:]))
		off += bit / 8
		n = (bit%8 + bits + 7) / 8
		bit %= 8
	default:
		return ondisk.Unsupported(logWhat, "operation", -1, fmt.Sprintf("%#x", s.op))
	}
	// A cluster at a time: some may be as new in the volume.
	for done, k := int64(0), int64(0); done < n; done += k {
		k = min(n-done, p.bytes-(off+done)%p.bytes)
		list, err := p.place(s, off+done, k)
		if errors.Is(err, errSkip) {
			continue
		}
		if err != nil {
			return err
		}
		b, err := p.read(list)
		if err != nil {
			return err
		}
		switch {
		case s.op != opNonresident:
			setBits(b, max(0, bit-done*8), min(k*8, bit+bits-done*8), s.op == opSetBits)
		case s.blank:
			clear(b)
		default:
			copy(b, s.data[done:])
		}
		if err := p.write(list, b); err != nil {
			return err
		}
	}
	return nil
}

// setBits sets or clears the bits of b from one to before another.
func setBits(b []byte, from, to int64, set bool) {
	for ; from < to; from++ {
		if set {
			b[from/8] |= 1 << (from % 8)
		} else {
			b[from/8] &^= 1 << (from % 8)
		}
	}
}

// data appends n bytes at off of the volume to a run list; or the bytes themselves, where they lie verbatim nowhere
// since the log changed them.
func (f *fs) data(r *fsmap.Runs, at, n, off int64) error {
	const sector, chunk = overlay.SectorLen, 64 << 10
	i, _ := slices.BinarySearch(f.changed, off/sector)
	var lost []byte // from at on
	flush := func() error {
		if len(lost) == 0 {
			return nil
		}
		err := r.Inline(at, lost)
		at, lost = at+int64(len(lost)), nil
		return err
	}
	for end := off + n; off < end; {
		k := end - off
		var now []byte
		if i < len(f.changed) {
			if s := f.changed[i] * sector; s > off {
				k = min(k, s-off)
			} else {
				k = min(k, s+sector-off)
				i++
				var err error
				if now, err = f.replayed(off, k); err != nil {
					return err
				}
			}
		}
		if now == nil || len(lost) >= chunk {
			if err := flush(); err != nil {
				return err
			}
		}
		lost = append(lost, now...)
		if now == nil {
			if err := r.Data(at, k, off); err != nil {
				return err
			}
			at += k
		}
		off += k
	}
	return flush()
}

// replayed gives n bytes of a changed sector, or nil where they are those of the volume.
func (f *fs) replayed(off, n int64) ([]byte, error) {
	now, was := make([]byte, n), make([]byte, n)
	if err := ondisk.ReadFull(f.over, now, off, logWhat); err != nil {
		return nil, err
	}
	if ondisk.ReadFull(f.disk, was, off, logWhat) == nil && bytes.Equal(now, was) {
		return nil, nil
	}
	return now, nil
}

// protect is the reverse of fixup.
func protect(b []byte, magic, what string, off int64) error {
	start, count := int(le.Uint16(b[msUSAOffset:])), int(le.Uint16(b[msUSACount:]))
	if string(b[:4]) != magic || count != len(b)/stride+1 || start < 8 || start+2*count > stride-2 {
		return ondisk.Corrupt(what, "update sequence after a change, count", off, count)
	}
	for i := 1; i < count; i++ {
		end := i*stride - 2
		copy(b[start+2*i:], b[end:end+2])
		copy(b[end:end+2], b[start:start+2])
	}
	return nil
}
