package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync/atomic"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
)

// mapper tells where the bytes of one state of an image lie: the active one, or a snapshot.
type mapper struct {
	h      *info
	file   *formats.File
	tables *ondisk.Cache   // of file: L1 and L2 tables
	data   *formats.File   // file, the external data file, or nil where that is absent
	crypt  *formats.Cipher // nil: the payload is not encrypted
	size   int64
	l1     int64 // position of the L1 table

	backing formats.Layer

	// last is the run that was found last: readers go on from where they are.
	last atomic.Pointer[run]
}

// run is a stretch of the virtual disk that this layer maps in one way.
type run struct {
	start, end int64
	kind       formats.Kind // 0: this layer holds nothing, what is below it shows
	host       int64        // Data, Encrypted: position in the data file
	pack       *formats.Pack
	err        error // Missing: why
}

// Bounds of how far a run is followed: at least a little, so that small reads in a row cost one search; at most so many
// pieces that an answer stays cheap.
const (
	minFollow = 16
	maxFollow = 1 << 15
)

func (m *mapper) Size() int64 { return m.size }

// ExtentAt implements formats.Mapper.
func (m *mapper) ExtentAt(off, max int64) (formats.Extent, error) {
	r := m.last.Load()
	if r == nil || off < r.start || off >= r.end {
		r = m.find(off, off+min(max, m.size-off))
		if r.kind != formats.Missing {
			m.last.Store(r)
		}
	}
	n := min(max, r.end-off)
	e := formats.Extent{Len: n, Kind: r.kind, Disk: off}
	switch r.kind {
	case 0:
		return m.backing.ExtentAt(off, n)
	case formats.Data:
		e.File, e.Off = m.data, r.host+off-r.start
	case formats.Packed:
		e.Pack, e.Skip = r.pack, off-r.start
	case formats.Encrypted:
		return m.crypt.Extent(m.data, r.host+off-r.start, off, n), nil
	}
	return e, r.err
}

// find gives the run that holds off, followed up to about limit.
func (m *mapper) find(off, limit int64) *run {
	limit = min(max(limit, off+minFollow*m.h.clusterSize()), m.size)
	w := window{}
	r := m.piece(&w, off)
	alone := r.kind == formats.Packed || r.kind == formats.Missing
	for i := 0; i < maxFollow && r.end < limit && !alone; i++ {
		next := m.piece(&w, r.end)
		if next.kind != r.kind || r.stored() && next.host != r.host+r.end-r.start {
			break
		}
		r.end = next.end
	}
	r.end = min(r.end, m.size)
	m.clip(&r, off)
	return &r
}

// clip ends a run where its file ends, or, when that lies before off, makes it the missing rest.
func (m *mapper) clip(r *run, off int64) {
	if !r.stored() {
		return
	}
	if m.data == nil {
		*r = run{start: r.start, end: r.end, kind: formats.Missing}
		return
	}
	size := m.data.Size
	if m.crypt != nil {
		size &^= m.crypt.Sector - 1 // only whole sectors can be decrypted
	}
	end := r.start + max(size-r.host, 0)
	if off < end {
		r.end = min(r.end, end)
		return
	}
	r.start = max(r.start, end)
	r.fail(ondisk.Truncated("qcow2 cluster", "past the end of "+m.data.Path, r.host, nil))
}

// stored tells whether the run's bytes lie in the data file as they are, or encrypted.
func (r *run) stored() bool { return r.kind == formats.Data || r.kind == formats.Encrypted }

func (r *run) fail(err error) { r.kind, r.err = formats.Missing, err }

// window is the part of an L2 table that was looked at last.
type window struct {
	start, end int64  // of the virtual disk
	table      []byte // the entries for it; nil: no L2 table
	off        int64  // where the first one lies
	err        error  // the table can't be had
}

// piece gives what the entry for off says, from its start: a cluster or some subclusters, or all that an absent L2
// table stands for. Only its end may lie past the end of the disk.
func (m *mapper) piece(w *window, off int64) run {
	if off < w.start || off >= w.end {
		m.load(w, off)
	}
	if w.err != nil {
		return run{start: off, end: w.end, kind: formats.Missing, err: w.err}
	}
	if w.table == nil {
		return run{start: w.start, end: w.end}
	}
	shift := m.h.ClusterBits
	i := (off - w.start) >> shift
	r := run{start: w.start + i<<shift}
	r.end = r.start + 1<<shift
	if !m.h.extended() {
		m.standard(&r, binary.BigEndian.Uint64(w.table[8*i:]), w.off+8*i)
		return r
	}
	e := binary.BigEndian.Uint64(w.table[16*i:])
	if e&entryPacked != 0 {
		m.packed(&r, e, w.off+16*i)
		return r
	}
	m.subclusters(&r, off, e, binary.BigEndian.Uint64(w.table[16*i+8:]), w.off+16*i)
	return r
}

// load finds the entries around off: a page of the L2 table, or what is known without one.
func (m *mapper) load(w *window, off int64) {
	span, cluster, size := m.h.span(), m.h.clusterSize(), m.h.entrySize()
	i := off / span
	*w = window{start: i * span, end: i*span + span}
	b, err := m.tables.Slice(m.l1+8*i, 8)
	if err != nil {
		w.err = fmt.Errorf("qcow2 L1 table: %w", err)
		return
	}
	table := int64(binary.BigEndian.Uint64(b) & offsetMask)
	if table == 0 {
		return
	}
	if table&(cluster-1) != 0 {
		w.err = ondisk.Corrupt("qcow2 L1 table", "offset of an L2 table", m.l1+8*i, fmt.Sprintf("%#x", table))
		return
	}
	// Tables are read by pages, which begin at multiples of their length: a table holds several, or lies within one.
	at := table + (off-w.start)/cluster*size
	first := max(table, at&^(pageSize(cluster)-1))
	w.start += (first - table) / size * cluster
	w.off = first
	n := min(pageSize(cluster)-(first&(pageSize(cluster)-1)), table+cluster-first)
	w.end = w.start + n/size*cluster
	page, err := m.tables.Page(first)
	switch whole := int64(len(page)) &^ (size - 1); {
	case err != nil:
		w.err = fmt.Errorf("qcow2 L2 table: %w", err)
	case whole <= at-first:
		w.err = ondisk.Truncated("qcow2 L2 table", "", first+int64(len(page)), nil)
	default:
		n = min(n, whole)
		w.end = w.start + n/size*cluster
		w.table = page[:n]
	}
}

// pageSize gives the length of the pieces in which tables are read.
func pageSize(cluster int64) int64 { return min(max(cluster, 4<<10), 64<<10) }

// tableCache bounds the memory of one layer's tables.
const tableCache = 4 << 20

// standard reads an L2 entry without subclusters; at is where it lies. (Standard Cluster Descriptor)
func (m *mapper) standard(r *run, e uint64, at int64) {
	switch {
	case e&entryPacked != 0:
		m.packed(r, e, at)
	case e&entryZero != 0:
		r.kind = formats.Zero
		if m.h.Version < 3 {
			r.fail(ondisk.Corrupt("qcow2 L2 table", "version 2 entry", at, fmt.Sprintf("%#x", e)))
		} else if e&offsetMask&uint64(m.h.clusterSize()-1) != 0 {
			r.fail(ondisk.Corrupt("qcow2 L2 table", "cluster offset", at, fmt.Sprintf("%#x", e&offsetMask)))
		}
	case m.allocated(e):
		m.cluster(r, e, at)
	}
}

// allocated tells whether a standard entry names a host cluster. Offset 0 is one in an external data file only.
func (m *mapper) allocated(e uint64) bool {
	return e&offsetMask != 0 || m.h.external() && e&entryCopied != 0
}

// cluster makes r the bytes of the host cluster that a standard entry names.
func (m *mapper) cluster(r *run, e uint64, at int64) {
	host := int64(e & offsetMask)
	if host&(m.h.clusterSize()-1) != 0 || m.h.external() && host != r.start {
		r.fail(ondisk.Corrupt("qcow2 L2 table", "cluster offset", at, fmt.Sprintf("%#x", host)))
		return
	}
	r.kind, r.host = formats.Data, host
	if m.crypt != nil {
		r.kind = formats.Encrypted
	}
}

// subclusters reads an extended L2 entry from the subcluster that holds off. (Extended L2 Entries)
func (m *mapper) subclusters(r *run, off int64, e, bitmap uint64, at int64) {
	alloc, zero := uint32(bitmap), uint32(bitmap>>subclusters)
	ok := m.allocated(e)
	if alloc&zero != 0 || !ok && alloc != 0 {
		r.fail(ondisk.Corrupt("qcow2 L2 table", "subcluster bitmap", at+8, fmt.Sprintf("%#x", bitmap)))
		return
	}
	if ok {
		if m.cluster(r, e, at); r.kind == formats.Missing {
			return
		}
	}
	width := int64(m.h.clusterSize() / subclusters)
	i := uint((off - r.start) / width)
	// same has the bits of the subclusters that are like this one.
	var same uint32
	switch bit := uint32(1) << i; {
	case alloc&bit != 0:
		same = alloc
	case zero&bit != 0:
		same = zero
		r.kind, r.host = formats.Zero, 0
	default:
		same = ^(alloc | zero)
		r.kind, r.host = 0, 0
	}
	first := i + 1 - uint(bits.LeadingZeros32(^(same << (31 - i))))
	n := uint(bits.TrailingZeros32(^(same >> i)))
	start := r.start + int64(first)*width
	if r.stored() {
		r.host += start - r.start
	}
	r.start, r.end = start, r.start+int64(min(i+n, subclusters))*width
}

// packed reads the L2 entry of a compressed cluster.
func (m *mapper) packed(r *run, e uint64, at int64) {
	host, end := m.h.packedRange(e)
	if host&^packedOffset != 0 || m.h.external() {
		r.fail(ondisk.Corrupt("qcow2 L2 table", "compressed cluster", at, fmt.Sprintf("%#x", e)))
		return
	}
	// The end is an upper bound; the last sector of the file may be cut short.
	end = min(end, m.file.Size)
	if host >= end {
		r.fail(ondisk.Truncated("qcow2 compressed cluster", "", host, nil))
		return
	}
	p := &struct {
		formats.Pack
		part [1]formats.Extent
	}{
		Pack: formats.Pack{Spec: codec.Spec{Codec: m.h.codec, Full: m.h.clusterSize()}},
		part: [1]formats.Extent{{Len: end - host, Kind: formats.Data, Disk: formats.NoPos, File: m.file, Off: host}},
	}
	p.Parts = p.part[:]
	r.kind, r.pack = formats.Packed, &p.Pack
}

// packedRange gives where a compressed cluster starts, and the end of the sectors that hold it.
// (Compressed Clusters Descriptor)
func (h *info) packedRange(e uint64) (start, end int64) {
	x := 62 - (h.ClusterBits - 8)
	start = int64(e & (1<<x - 1))
	sectors := int64(e&(entryPacked-1)) >> x
	return start, start&^511 + (sectors+1)*512
}
