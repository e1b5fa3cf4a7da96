package xfs

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
)

// item is one logged change: a description and the regions that it announces.
type item struct {
	total   int
	regions [][]byte
}

func (it *item) kind(ord binary.ByteOrder) uint16 { return ord.Uint16(it.regions[0]) }

// trans is a transaction that is being gathered from the records.
type trans struct {
	lsn   uint64
	ord   binary.ByteOrder
	head  [transHeadLen]byte
	begun bool // the header is whole
	items []*item
	bytes int64
}

// maxTransBytes bounds what transactions without an end hold in memory. A transaction takes at most an eighth of the log
// and at most 64 MiB (XLOG_CIL_BLOCKING_SPACE_LIMIT), and few are open at once.
const maxTransBytes = 512 << 20

// gather puts the operations of records together to transactions.
type gather struct {
	open  map[uint32]*trans
	bytes int64
	// commit is called with each transaction that has its end in the log.
	commit func(*trans) error
}

// record takes the operations of one record.
func (g *gather) record(rec *record) error {
	b, at := rec.data, rec.blk*sector
	for n := rec.ops; n > 0 && len(b) > 0; n-- {
		if len(b) < opHeadLen {
			return ondisk.Truncated("xfs log operation", "header", at, len(b))
		}
		h := b[:opHeadLen]
		b = b[opHeadLen:]
		if c := h[opClient]; c != clientTran && c != clientLog {
			return ondisk.Corrupt("xfs log operation", "client", at, c)
		}
		size := be.Uint32(h[opLen:])
		if uint64(size) > uint64(len(b)) {
			return ondisk.Truncated("xfs log operation", "length", at, size)
		}
		if err := g.op(rec, h, b[:size]); err != nil {
			return fmt.Errorf("record at block %d: %w", rec.blk, err)
		}
		b = b[size:]
	}
	return nil
}

func (g *gather) op(rec *record, h, data []byte) error {
	tid, flags := be.Uint32(h[opTID:]), h[opFlags]
	t := g.open[tid]
	if t == nil {
		// The rest of a transaction whose beginning lies before the tail is passed over.
		if flags&opStart == 0 {
			return nil
		}
		t = &trans{lsn: rec.lsn, ord: rec.ord}
		g.open[tid] = t
		return g.hold(t, 0)
	}
	t.ord = rec.ord
	flags &^= opEnd
	if flags&opWasCont != 0 {
		flags &^= opContinue
	}
	switch flags {
	case 0, opContinue:
		return g.add(t, data)
	case opWasCont:
		return g.extend(t, data)
	case opCommit:
		g.drop(tid, t)
		return g.commit(t)
	case opUnmount:
		g.drop(tid, t)
		return nil
	}
	return ondisk.Corrupt("xfs log operation", "flags", -1, fmt.Sprintf("%#x", flags))
}

func (g *gather) drop(tid uint32, t *trans) {
	delete(g.open, tid)
	g.bytes -= t.bytes
}

// hold counts the memory for a piece of n bytes and what goes with it.
func (g *gather) hold(t *trans, n int) error {
	const overhead = 128
	t.bytes += int64(n) + overhead
	if g.bytes += int64(n) + overhead; g.bytes > maxTransBytes {
		return ondisk.Unsupported("xfs log", "bytes in open transactions, more than", -1, maxTransBytes)
	}
	return nil
}

// add takes a region, or the first part of one.
func (g *gather) add(t *trans, data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if !t.begun {
		if len(data) < 4 || len(data) > transHeadLen || t.ord.Uint32(data) != transMagic {
			return ondisk.Corrupt("xfs log transaction", "header", -1, len(data))
		}
		t.begun = len(data) == transHeadLen
		copy(t.head[:], data)
		return nil
	}
	if err := g.hold(t, len(data)); err != nil {
		return err
	}
	region := append([]byte(nil), data...)
	if n := len(t.items); n > 0 && len(t.items[n-1].regions) < t.items[n-1].total {
		it := t.items[n-1]
		it.regions = append(it.regions, region)
		return nil
	}
	if len(region) < 4 {
		return ondisk.Corrupt("xfs log item", "length of its description", -1, len(region))
	}
	total := int(t.ord.Uint16(region[2:]))
	if total == 0 || total > maxItemRegions {
		return ondisk.Corrupt("xfs log item", "regions", -1, total)
	}
	t.items = append(t.items, &item{total: total, regions: [][]byte{region}})
	return nil
}

// extend takes a further part of the last region, or of the header.
func (g *gather) extend(t *trans, data []byte) error {
	if len(t.items) == 0 {
		if len(data) > transHeadLen {
			return ondisk.Corrupt("xfs log transaction", "header", -1, len(data))
		}
		copy(t.head[transHeadLen-len(data):], data)
		t.begun = true
		return nil
	}
	if err := g.hold(t, len(data)); err != nil {
		return err
	}
	it := t.items[len(t.items)-1]
	last := &it.regions[len(it.regions)-1]
	*last = append(*last, data...)
	return nil
}
