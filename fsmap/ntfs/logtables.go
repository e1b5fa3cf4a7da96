package ntfs

import (
	"fmt"

	"vmkit/formats/ondisk"
)

// logState is what the analysis of a log finds: which pages may be stale in the volume, and which transactions did
// not end.
type logState struct {
	l     *logFile
	form  tableForm
	page  int64 // clusters of a page in the table of dirty pages
	bytes int64 // of a cluster
	attrs map[uint32]openAttr
	dirty map[dirtyKey]*dirtyCluster
	trans map[uint32]*transaction
	first uint64 // LSN of the first record behind the checkpoint, or 0
	last  uint64 // of the log's last record
	steps int    // taken to find clusters that were given back
}

// openAttr is an attribute that records change, as the log knows it.
type openAttr struct {
	ref   uint64
	typ   uint32
	block int64 // bytes of a block of an index, else 0
}

type dirtyKey struct {
	attr uint32
	vcn  int64
}

// dirtyCluster is a cluster of a dirty page.
type dirtyCluster struct {
	lcn    int64  // 0 where it was given back since
	oldest uint64 // LSN of the oldest record that the volume may lack there
}

type transaction struct {
	state    uint8
	undoNext uint64 // LSN of the record to be undone next, or 0
	undoes   bool   // there may be something to undo: a checkpoint is a transaction too, which never ends
}

// analyse reads the tables of the last checkpoint, and brings them up to the log's end. It gives nil where no
// checkpoint was made since the log was new.
func analyse(l *logFile, cluster int64) (*logState, error) {
	if l.restart == 0 {
		return nil, nil
	}
	r, err := l.record(l.restart)
	if err == nil && (r == nil || r.typ != typeRestart || len(r.data) < rsLen) {
		err = ondisk.Corrupt(logWhat, "there is no restart record with the LSN", l.position(l.restart), l.restart)
	}
	if err != nil {
		return nil, err
	}
	rs := r.data
	major := le.Uint32(rs[rsMajor:])
	if major >= uint32(len(tableForms)) {
		return nil, ondisk.Unsupported(logWhat, "version of the tables", -1, major)
	}
	a := &logState{l: l, form: tableForms[major], bytes: cluster, page: max(1, logPage/cluster),
		attrs: make(map[uint32]openAttr), dirty: make(map[dirtyKey]*dirtyCluster), trans: make(map[uint32]*transaction)}
	for _, t := range []struct {
		lsn, length, entry int
		op                 uint16
		add                func(off uint32, e []byte) error
	}{
		{rsTransLSN, rsTransLen, ttLen, opTransDump, a.addTrans},
		{rsDirtyLSN, rsDirtyLen, a.form.dirtyLen, opDirtyDump, a.addDirty},
		{rsOpenLSN, rsOpenLen, a.form.openLen, opOpenDump, a.addOpen},
	} {
		if le.Uint32(rs[t.length:]) == 0 {
			continue
		}
		if err := a.table(le.Uint64(rs[t.lsn:]), t.op, t.entry, t.add); err != nil {
			return nil, err
		}
	}
	from := le.Uint64(rs[rsCheckpoint:])
	if from == 0 {
		from = l.restart
	}
	skip := true // the record at the checkpoint comes before it
	a.last, err = l.walk(from, func(r *logRecord) error {
		if skip || r.typ == typeRestart {
			skip = false
			return nil
		}
		if a.first == 0 {
			a.first = r.lsn
		}
		return a.record(r)
	})
	if err != nil {
		return nil, err
	}
	return a, l.checkEnd(a.last)
}

// table calls add for the entries in use of the table in the record with that LSN.
func (a *logState) table(lsn uint64, op uint16, entry int, add func(uint32, []byte) error) error {
	what := fmt.Sprintf("%s table (operation %#x)", logWhat, op)
	r, err := a.l.record(lsn)
	if err != nil {
		return err
	}
	if r == nil || r.typ != typeRecord || len(r.data) < opClusters || le.Uint16(r.data) != op {
		return ondisk.Corrupt(what, "there is none with the LSN", a.l.position(lsn), lsn)
	}
	// A long table's length does not fit into the record's field.
	off := int(le.Uint16(r.data[opRedoOff:]))
	if off < opClusters || off > len(r.data)-tbHead {
		return ondisk.Corrupt(what, "offset", -1, off)
	}
	b := r.data[off:]
	n, count := int(le.Uint16(b[tbEntry:])), int(le.Uint16(b[tbCount:]))
	if n < entry || n%4 != 0 || count > (len(b)-tbHead)/n {
		return ondisk.Corrupt(what, "entries and their length", -1, fmt.Sprintf("%d, %d", count, n))
	}
	for i := range count {
		at := tbHead + i*n
		if e := b[at : at+n]; le.Uint32(e) == tbUsed {
			if err := add(uint32(at), e); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *logState) addTrans(off uint32, e []byte) error {
	t := &transaction{state: e[ttState], undoNext: le.Uint64(e[ttUndoNext:]), undoes: true}
	if t.state != transActive && t.state != transPrepared && t.state != transCommitted {
		return ondisk.Corrupt(logWhat, "state of a transaction", -1, t.state)
	}
	a.trans[off] = t
	return nil
}

func (a *logState) addOpen(off uint32, e []byte) error {
	o := openAttr{ref: le.Uint64(e[a.form.openRef:]), typ: le.Uint32(e[a.form.openType:]), block: int64(le.Uint32(e[a.form.openBlock:]))}
	if o.typ == atIndexAllocation && (o.block < stride || o.block > maxIndexBlock || o.block&(o.block-1) != 0) {
		return ondisk.Corrupt(logWhat, "bytes of an index block", -1, o.block)
	}
	if len(a.attrs) >= maxDirty {
		return ondisk.Unsupported(logWhat, "open attributes, more than", -1, maxDirty)
	}
	a.attrs[off] = o
	return nil
}

func (a *logState) addDirty(_ uint32, e []byte) error {
	n := int(le.Uint32(e[dtCount:]))
	if n < 0 || n > (len(e)-a.form.dirtyLCNs)/8 {
		return ondisk.Corrupt(logWhat, "clusters of a dirty page", -1, n)
	}
	vcn, attr, oldest := int64(le.Uint64(e[a.form.dirtyVCN:])), le.Uint32(e[dtAttr:]), le.Uint64(e[a.form.dirtyOldest:])
	for i := range n {
		lcn := int64(le.Uint64(e[a.form.dirtyLCNs+8*i:]))
		if lcn == 0 {
			continue // not known yet: a record that changes it would say, or it was given back
		}
		k := dirtyKey{attr, vcn + int64(i)}
		// Where a page is smaller than a cluster, several of them name it.
		if d := a.dirty[k]; d != nil {
			d.oldest = min(d.oldest, oldest)
			continue
		}
		if err := a.setDirty(k, &dirtyCluster{lcn: lcn, oldest: oldest}); err != nil {
			return err
		}
	}
	return nil
}

func (a *logState) setDirty(k dirtyKey, d *dirtyCluster) error {
	if len(a.dirty) >= maxDirty {
		return ondisk.Unsupported(logWhat, "dirty clusters, more than", -1, maxDirty)
	}
	a.dirty[k] = d
	return nil
}

// record brings the tables up to a record.
func (a *logState) record(r *logRecord) error {
	c, err := parseChange(r)
	if err != nil {
		return err
	}
	if r.trans < tbHead || (r.trans-tbHead)%ttLen != 0 {
		return ondisk.Corrupt(logWhat, "transaction", -1, r.trans)
	}
	t := a.trans[r.trans]
	if t == nil {
		if len(a.trans) >= maxDirty {
			return ondisk.Unsupported(logWhat, "transactions, more than", -1, maxDirty)
		}
		t = &transaction{state: transActive}
		a.trans[r.trans] = t
	}
	t.undoNext, t.undoes = r.lsn, t.undoes || changes(c.undo)
	if c.undo == opCompensation {
		t.undoNext = r.undoNext
	}
	switch c.redo {
	case opEndTop:
		t.undoNext = r.undoNext
	case opPrepare:
		t.state = transPrepared
	case opCommit:
		t.state = transCommitted
	case opForget:
		delete(a.trans, r.trans)
	case opOpenAttr:
		e, err := c.bytes(opRedoOff, opRedoLen)
		if err != nil || len(e) < a.form.openLen {
			return ondisk.Corrupt(logWhat, "length of an open attribute", -1, len(e))
		}
		old, ok := a.attrs[c.attr]
		if err := a.addOpen(c.attr, e); err != nil || !ok || old == a.attrs[c.attr] {
			return err
		}
		// The place in the table is used again. No page of the old attribute may be dirty then: the log would not
		// tell whose pages they are.
		if a.steps += len(a.dirty); a.steps > maxSteps {
			return ondisk.Unsupported(logWhat, "attributes that were opened anew, steps to look for their pages", -1, a.steps)
		}
		for k := range a.dirty {
			if k.attr == c.attr {
				return ondisk.Unsupported(logWhat, "a place in the table of open attributes that two of them used", -1, c.attr)
			}
		}
	case opDeleteDirty:
		return a.deleteDirty(c)
	case opHotFix:
		return ondisk.Unsupported(logWhat, "operation: a cluster was replaced (HotFix)", -1, nil)
	case opNoop, opCompensation, opOpenDump, opNamesDump, opDirtyDump, opTransDump:
	default:
		return a.touch(r, c)
	}
	return nil
}

// touch makes the page that a record changes dirty.
func (a *logState) touch(r *logRecord, c *change) error {
	if c.redo > opZeroRecord {
		return ondisk.Unsupported(logWhat, "operation", -1, fmt.Sprintf("%#x", c.redo))
	}
	for i := range c.lcns {
		k := dirtyKey{c.attr, c.vcn + int64(i)}
		if d := a.dirty[k]; d != nil {
			d.lcn = c.lcn(i)
			continue
		}
		// The clusters of a page are dirty together, since its oldest record.
		oldest := r.lsn
		for j := k.vcn - k.vcn%a.page; j < k.vcn-k.vcn%a.page+a.page; j++ {
			if d := a.dirty[dirtyKey{c.attr, j}]; d != nil {
				oldest = min(oldest, d.oldest)
			}
		}
		if err := a.setDirty(k, &dirtyCluster{lcn: c.lcn(i), oldest: oldest}); err != nil {
			return err
		}
	}
	return nil
}

// deleteDirty takes clusters that were given back out of the dirty pages.
func (a *logState) deleteDirty(c *change) error {
	const rangeLen = 16
	b, err := c.bytes(opRedoOff, opRedoLen)
	if err != nil {
		return err
	}
	for ; len(b) >= rangeLen; b = b[rangeLen:] {
		from, n := int64(le.Uint64(b)), int64(le.Uint64(b[8:]))
		if a.steps += len(a.dirty); a.steps > maxSteps {
			return ondisk.Unsupported(logWhat, "dirty clusters that were given back, steps to find them", -1, a.steps)
		}
		for _, d := range a.dirty {
			if d.lcn >= from && d.lcn-from < n {
				d.lcn = 0
			}
		}
	}
	return nil
}

// work tells whether anything must be redone or undone.
func (a *logState) work() bool {
	for _, t := range a.trans {
		if t.undoNext != 0 && t.state != transCommitted && (t.undoes || t.state == transPrepared) {
			return true
		}
	}
	return len(a.dirty) > 0
}

// oldest gives the LSN from which records must be redone.
func (a *logState) oldest() uint64 {
	v := a.first
	for _, d := range a.dirty {
		if d.oldest != 0 && (v == 0 || d.oldest < v) {
			v = d.oldest
		}
	}
	return v
}

// change is a log record of the client NTFS.
type change struct {
	b          []byte
	redo, undo uint16
	attr       uint32
	lcns       int
	vcn        int64
	recordOff  int
	attrOff    int
	blockOff   int64 // of the changed block behind the first cluster, in bytes
	noRedo     bool  // what is to be redone is left out
}

func parseChange(r *logRecord) (*change, error) {
	b := r.data
	if r.typ != typeRecord {
		return nil, ondisk.Unsupported(logWhat, "type of a record", -1, r.typ)
	}
	if len(b) < opClusters {
		return nil, ondisk.Truncated(logWhat, "bytes of a record", -1, len(b))
	}
	c := &change{b: b, redo: le.Uint16(b[opRedo:]), undo: le.Uint16(b[opUndo:]), attr: uint32(le.Uint16(b[opAttr:])), lcns: int(le.Uint16(b[opLCNs:])),
		vcn: int64(le.Uint64(b[opVCN:])), recordOff: int(le.Uint16(b[opRecordOff:])), attrOff: int(le.Uint16(b[opAttrOff:])),
		blockOff: int64(le.Uint16(b[opClusterOff:])) * 512, noRedo: r.flags&flagNoRedo != 0}
	if opClusters+8*c.lcns > len(b) || c.vcn < 0 || c.vcn > 1<<41 {
		return nil, ondisk.Corrupt(logWhat, "clusters of a record", -1, fmt.Sprintf("%d+%d", c.vcn, c.lcns))
	}
	return c, nil
}

func (c *change) lcn(i int) int64 { return int64(le.Uint64(c.b[opClusters+8*i:])) }

// bytes gives what a record says that is to be redone or undone; off and n are the places of the fields that tell where.
func (c *change) bytes(off, n int) ([]byte, error) {
	o, k := int(le.Uint16(c.b[off:])), int(le.Uint16(c.b[n:]))
	if k > 0 && (o < opClusters || o > len(c.b) || k > len(c.b)-o) {
		return nil, ondisk.Corrupt(logWhat, "bytes to redo or undo", -1, fmt.Sprintf("%d+%d of %d", o, k, len(c.b)))
	}
	return c.b[min(o, len(c.b)):][:k], nil
}
