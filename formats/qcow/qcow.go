package qcow

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
)

// Format is the row of the table.
var Format = formats.Format{Name: "qcow", Probe: probe, Open: open}

func probe(_ *formats.File, head []byte) bool {
	return len(head) >= 8 && binary.BigEndian.Uint32(head) == Magic && binary.BigEndian.Uint32(head[4:]) == 1
}

func open(f *formats.File, o *formats.Opener) (*formats.Image, error) {
	const what = "qcow header"
	buf, err := ondisk.Read(f, 0, int64(binary.Size(header{})), what)
	if err != nil {
		return nil, err
	}
	var h header
	binary.Decode(buf, binary.BigEndian, &h)
	switch {
	case h.Magic != Magic:
		return nil, &ondisk.Error{What: what, Field: "magic", Got: fmt.Sprintf("%#x", h.Magic), Err: ondisk.ErrNot}
	case h.Version != 1:
		return nil, ondisk.Unsupported(what, "version", 4, h.Version)
	case h.Size < 2 || h.Size > maxSize:
		return nil, ondisk.Corrupt(what, "virtual size", 24, h.Size)
	case h.ClusterBits < minClusterBits || h.ClusterBits > maxClusterBits:
		return nil, ondisk.Corrupt(what, "cluster bits", 32, h.ClusterBits)
	case h.L2Bits < minL2Bits || h.L2Bits > maxL2Bits:
		return nil, ondisk.Corrupt(what, "L2 bits", 33, h.L2Bits)
	case h.CryptMethod > cryptAES:
		return nil, ondisk.Unsupported(what, "encryption method", 36, h.CryptMethod)
	case h.L1TableOffset > maxSize:
		return nil, ondisk.Corrupt(what, "L1 table's offset", 40, h.L1TableOffset)
	case !ondisk.Within(int64(h.L1TableOffset), 8, f.Size):
		return nil, ondisk.Truncated("qcow L1 table", "", int64(h.L1TableOffset), nil)
	}
	m := &mapper{header: h, file: f, tables: ondisk.NewCache(f, f.Size, tablePage, tableCache)}
	img := &formats.Image{Disk: formats.NewDisk(m, o.Env), Format: "qcow", State: formats.StateClean, Files: []*formats.File{f}}
	if h.CryptMethod == cryptAES {
		m.crypt = o.LegacyAES(img, f)
	}
	if h.BackingFileOffset == 0 || h.BackingFileSize == 0 {
		return img, nil
	}
	if h.BackingFileSize > maxBackingName || h.BackingFileOffset > maxSize {
		return nil, ondisk.Corrupt(what, "length of the backing file's name", 16, h.BackingFileSize)
	}
	name, err := ondisk.Read(f, int64(h.BackingFileOffset), int64(h.BackingFileSize), "name of the qcow backing file")
	if err != nil {
		return nil, err
	}
	name, _, _ = bytes.Cut(name, []byte{0})
	if m.backing, err = o.OpenLayer(img, f, string(name), "", m.Size()); err != nil {
		return nil, err
	}
	return img, nil
}

// Tables are read by pages, of which so many bytes are kept.
const (
	tablePage  = 4 << 10
	tableCache = 1 << 20
)

// mapper tells where the bytes of an image lie.
type mapper struct {
	header
	file    *formats.File
	tables  *ondisk.Cache
	backing formats.Layer
	crypt   *formats.Cipher // nil: the payload is not encrypted

	// last is the run that was found last: readers go on from where they are.
	last atomic.Pointer[run]
}

// run is a stretch of the virtual disk that this layer maps in one way.
type run struct {
	start, end int64
	kind       formats.Kind // 0: this layer holds nothing, what is below it shows
	host       int64        // Data, Encrypted
	pack       *formats.Pack
	err        error // Missing: why
}

// maxFollow bounds how many clusters, or absent L2 tables, a run is followed.
const maxFollow = 1 << 13

func (m *mapper) Size() int64 { return int64(m.header.Size) }

// ExtentAt implements formats.Mapper.
func (m *mapper) ExtentAt(off, max int64) (formats.Extent, error) {
	r := m.last.Load()
	if r == nil || off < r.start || off >= r.end {
		r = m.find(off, off+min(max, m.Size()-off))
		m.last.Store(r)
	}
	n := min(max, r.end-off)
	e := formats.Extent{Len: n, Kind: r.kind, Disk: off}
	switch r.kind {
	case 0:
		return m.backing.ExtentAt(off, n)
	case formats.Data:
		e.File, e.Off = m.file, r.host+off-r.start
	case formats.Encrypted:
		return m.crypt.Extent(m.file, r.host+off-r.start, off, n), nil
	case formats.Packed:
		e.Pack, e.Skip = r.pack, off-r.start
	}
	return e, r.err
}

// find gives the run that holds off, followed up to about limit.
func (m *mapper) find(off, limit int64) *run {
	r := m.piece(off)
	for i := 0; i < maxFollow && r.end < limit && (r.kind == 0 || r.stored()); i++ {
		next := m.piece(r.end)
		if next.kind != r.kind || r.stored() && next.host != r.host+r.end-r.start {
			break
		}
		r.end = next.end
	}
	r.end = min(r.end, m.Size())
	if !r.stored() {
		return &r
	}
	// What lies past the end of the file is missing.
	size := m.file.Size
	if m.crypt != nil {
		size &^= m.crypt.Sector - 1 // only whole sectors can be decrypted
	}
	if end := r.start + max(size-r.host, 0); off < end {
		r.end = min(r.end, end)
	} else {
		r.start, r.kind = max(r.start, end), formats.Missing
		r.err = ondisk.Truncated("qcow cluster", "past the end of "+m.file.Path, r.host, nil)
	}
	return &r
}

// piece gives the cluster that holds off, or all that an absent L2 table stands for.
func (m *mapper) piece(off int64) run {
	bits := uint(m.ClusterBits + m.L2Bits)
	i := off >> bits
	r := run{start: i << bits, end: (i + 1) << bits}
	table, err := m.entry(int64(m.L1TableOffset), i, "qcow L1 table")
	if err != nil || table == 0 {
		return *r.failed(err)
	}
	j := off & (1<<bits - 1) >> m.ClusterBits
	r.start += j << m.ClusterBits
	r.end = r.start + 1<<m.ClusterBits
	e, err := m.entry(int64(table), j, "qcow L2 table")
	switch {
	case err != nil || e == 0:
		return *r.failed(err)
	case e&entryPacked != 0:
		m.packed(&r, e)
	case e&511 != 0 || e > maxSize:
		r.failed(ondisk.Corrupt("qcow L2 table", "cluster offset", int64(table)+8*j, fmt.Sprintf("%#x", e)))
	case m.crypt != nil:
		r.kind, r.host = formats.Encrypted, int64(e)
	default:
		r.kind, r.host = formats.Data, int64(e)
	}
	return r
}

// stored tells whether the run's bytes lie in the file as they are, or encrypted.
func (r *run) stored() bool { return r.kind == formats.Data || r.kind == formats.Encrypted }

// failed makes r missing where there is an error.
func (r *run) failed(err error) *run {
	if err != nil {
		r.kind, r.err = formats.Missing, err
	}
	return r
}

// entry reads entry i of a table.
func (m *mapper) entry(table, i int64, what string) (uint64, error) {
	if table < 0 || table > maxSize {
		return 0, ondisk.Corrupt(what, "offset", -1, fmt.Sprintf("%#x", table))
	}
	b, err := m.tables.Slice(table+8*i, 8)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", what, err)
	}
	return binary.BigEndian.Uint64(b), nil
}

// packed reads the entry of a compressed cluster.
func (m *mapper) packed(r *run, e uint64) {
	x := 63 - m.ClusterBits
	host := int64(e & (1<<x - 1))
	n := int64(e>>x) & (1<<m.ClusterBits - 1)
	if n == 0 || !ondisk.Within(host, n, m.file.Size) {
		r.failed(ondisk.Truncated("qcow compressed cluster", fmt.Sprintf("%d bytes", n), host, nil))
		return
	}
	r.kind = formats.Packed
	r.pack = &formats.Pack{
		Spec:  codec.Spec{Codec: codec.Deflate, Full: 1 << m.ClusterBits},
		Parts: []formats.Extent{{Len: n, Kind: formats.Data, Disk: formats.NoPos, File: m.file, Off: host}},
	}
}
