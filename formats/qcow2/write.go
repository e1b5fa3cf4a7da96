package qcow2

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
)

// Target takes an image's bytes in order. What was written of its head may be replaced until the image is whole.
type Target interface {
	Write(p []byte) (int, error)
	WriteHead(p []byte, off int64) error
}

// Layout says what a Writer makes.
type Layout struct {
	Size    int64  // of the virtual disk, in bytes; rounded up to sectors of 512
	Cluster int64  // a power of two from 4 KiB to 2 MiB; 0: DefaultCluster
	Codec   string // of compressed clusters: codec.Zstd, or codec.Deflate
	// Backing names the layer below, BackingFormat its format. Without one, what isn't written reads as zeros.
	Backing, BackingFormat string
	// Head is how many bytes Target.WriteHead reaches: the header's cluster and the L1 table have to lie there.
	Head int64
}

// DefaultCluster is the length of a cluster, as QEMU has it too.
const DefaultCluster = 64 << 10

// minWriteBits is the smallest cluster that a Writer makes, in bits. Smaller ones have tables of a few entries.
const minWriteBits = 12

// Writer writes an image of version 3 front to back. Clusters come in ascending order, each at most once. What it keeps
// in memory is the L1 table, the current L2 table, and clusters that wait (see most). After an error it is of no more use.
//
// Compressed clusters lie side by side, so that a host cluster is shared by several. What needs a host cluster of its own
// waits until one ends.
type Writer struct {
	t       Target
	o       Layout
	h       header
	pos     int64    // of the next byte
	next    int64    // the next cluster of the disk that may come
	l1      []uint64 // by range; zeroRange stands for the table of zeros that Close writes
	l2      []byte   // of range at, or nil
	at      int64
	waiting []waiting
	spare   [][]byte // buffers of a cluster
	// refs are the reference counts of the block of clusters number block, and perhaps the one that follows;
	// blocks are where those before lie.
	refs   [2][]uint16
	block  int64
	blocks []uint64
}

// waiting is a host cluster to come, and what is to be done once its place is known.
type waiting struct {
	b     []byte
	place func(off uint64)
}

const (
	zeroRange = 1 // in Writer.l1: an L1 entry can't be that
	maxRefs   = 1<<16 - 1
)

// NewWriter begins an image.
func NewWriter(t Target, o Layout) (*Writer, error) {
	const what = "qcow2 image to be written"
	if o.Cluster == 0 {
		o.Cluster = DefaultCluster
	}
	n := bits.TrailingZeros64(uint64(o.Cluster))
	switch {
	case o.Cluster < 1<<minWriteBits || o.Cluster > 1<<maxClusterBits || o.Cluster != 1<<n:
		return nil, ondisk.Unsupported(what, "cluster size", -1, o.Cluster)
	case o.Size < 0 || o.Size > 1<<62:
		return nil, ondisk.Unsupported(what, "virtual size", -1, o.Size)
	case len(o.Backing) > maxBackingName:
		return nil, ondisk.Unsupported(what, "length of the backing file's name", -1, len(o.Backing))
	case o.Codec != codec.Deflate && o.Codec != codec.Zstd:
		return nil, ondisk.Unsupported(what, "compression", -1, fmt.Sprintf("%q", o.Codec))
	}
	w := &Writer{t: t, o: o, at: -1}
	w.h = header{Magic: Magic, Version: 3, ClusterBits: uint32(n), Size: uint64(o.Size+511) &^ 511, L1TableOffset: uint64(o.Cluster)}
	entries := (int64(w.h.Size) + w.span() - 1) / w.span()
	l1 := w.whole(8 * entries)
	if 8*entries > maxL1Bytes || o.Cluster+l1 > o.Head {
		return nil, fmt.Errorf("%w; take larger clusters", ondisk.Unsupported(what, "virtual size", -1, o.Size))
	}
	w.h.L1Size = uint32(entries)
	w.l1 = make([]uint64, entries)
	w.refs = [2][]uint16{w.newBlock(), w.newBlock()}
	return w, w.pad(o.Cluster + l1)
}

// span gives how many bytes of the virtual disk one L2 table maps.
func (w *Writer) span() int64 { return w.o.Cluster / 8 * w.o.Cluster }

// whole rounds up to clusters.
func (w *Writer) whole(n int64) int64 { return (n + w.o.Cluster - 1) &^ (w.o.Cluster - 1) }

// perBlock gives how many clusters a block of reference counts stands for.
func (w *Writer) perBlock() int64 { return w.o.Cluster / 2 }

// most gives how many clusters may wait before a host cluster is ended for their sake, and is left with a gap.
func (w *Writer) most() int { return int(max(2<<20/w.o.Cluster, 2)) }

func (w *Writer) newBlock() []uint16 { return make([]uint16, w.perBlock()) }

// Clusters gives how many clusters the disk has.
func (w *Writer) Clusters() int64 { return w.whole(int64(w.h.Size)) >> w.h.ClusterBits }

// Written gives how many bytes the image has so far.
func (w *Writer) Written() int64 { return w.pos }

// Data writes cluster i as it is. b is a whole cluster.
func (w *Writer) Data(i int64, b []byte) error {
	e, err := w.entry(i, 1)
	if err != nil {
		return err
	}
	if int64(len(b)) != w.o.Cluster {
		return fmt.Errorf("cluster of %d bytes, not %d", len(b), w.o.Cluster)
	}
	return w.later(append(w.buffer()[:0], b...), func(off uint64) { binary.BigEndian.PutUint64(e, off|entryCopied) })
}

// Packed writes cluster i as its compressed bytes, which are fewer than a cluster.
func (w *Writer) Packed(i int64, b []byte) error {
	e, err := w.entry(i, 1)
	if err != nil {
		return err
	}
	if len(b) == 0 || int64(len(b)) >= w.o.Cluster {
		return fmt.Errorf("compressed cluster of %d bytes", len(b))
	}
	if rest := -w.pos & (w.o.Cluster - 1); len(w.waiting) >= w.most() && int64(len(b)) > rest || rest > 0 && w.full() {
		if err := w.flush(); err != nil {
			return err
		}
	}
	// (Compressed Clusters Descriptor)
	x := 62 - (w.h.ClusterBits - 8)
	last := w.pos + int64(len(b)) - 1
	if last>>x != 0 {
		return ondisk.Unsupported("qcow2 image to be written", "length", -1, w.pos)
	}
	binary.BigEndian.PutUint64(e, entryPacked|uint64(last/512-w.pos/512)<<x|uint64(w.pos))
	return w.write(b)
}

// Zero says that n clusters from i on read as zeros, whatever the layer below has.
func (w *Writer) Zero(i, n int64) error {
	per := w.o.Cluster / 8
	for n > 0 {
		// A range that is nothing but zeros shares its table with others.
		if whole := min(per, w.Clusters()-i); i%per == 0 && n >= whole {
			if err := w.come(i, whole); err != nil {
				return err
			}
			w.l1[i/per] = zeroRange
			i, n = i+whole, n-whole
			continue
		}
		k := min(n, per-i%per)
		e, err := w.entry(i, k)
		if err != nil {
			return err
		}
		for ; k > 0; i, n, k = i+1, n-1, k-1 {
			binary.BigEndian.PutUint64(e, entryZero)
			e = e[8:]
		}
	}
	return nil
}

// come notes that n clusters from i on are given.
func (w *Writer) come(i, n int64) error {
	if i < w.next || n > w.Clusters()-i {
		return fmt.Errorf("cluster %d after cluster %d, of %d", i, w.next-1, w.Clusters())
	}
	w.next = i + n
	return nil
}

// entry gives the L2 entries of n clusters from i on, which lie in one table.
func (w *Writer) entry(i, n int64) ([]byte, error) {
	if err := w.come(i, n); err != nil {
		return nil, err
	}
	per := w.o.Cluster / 8
	if at := i / per; at != w.at {
		if err := w.endTable(); err != nil {
			return nil, err
		}
		w.at, w.l2 = at, w.buffer()
		clear(w.l2)
	}
	return w.l2[8*(i%per):], nil
}

// endTable has the current L2 table written.
func (w *Writer) endTable() error {
	if w.l2 == nil {
		return nil
	}
	at, b := w.at, w.l2
	w.l2, w.at = nil, -1
	return w.later(b, func(off uint64) { w.l1[at] = off | entryCopied })
}

// later writes a cluster where the next host cluster begins. b is w's from now on.
func (w *Writer) later(b []byte, place func(off uint64)) error {
	w.waiting = append(w.waiting, waiting{b, place})
	if w.pos&(w.o.Cluster-1) == 0 || len(w.waiting) >= 2*w.most() {
		return w.flush()
	}
	return nil
}

// flush writes what waits for a host cluster of its own, from the next one on.
func (w *Writer) flush() error {
	if err := w.pad(-w.pos & (w.o.Cluster - 1)); err != nil {
		return err
	}
	// Writing may end a block of reference counts, which then waits too.
	for i := 0; i < len(w.waiting); i++ {
		x := w.waiting[i]
		x.place(uint64(w.pos))
		if err := w.write(x.b); err != nil {
			return err
		}
		w.spare = append(w.spare, x.b)
	}
	clear(w.waiting)
	w.waiting = w.waiting[:0]
	return nil
}

func (w *Writer) buffer() []byte {
	if n := len(w.spare); n > 0 {
		b := w.spare[n-1]
		w.spare = w.spare[:n-1]
		return b[:w.o.Cluster]
	}
	return make([]byte, w.o.Cluster)
}

var zeros [64 << 10]byte

// pad writes n zeros, which are counted where they begin a cluster.
func (w *Writer) pad(n int64) error {
	for n > 0 {
		k := min(n, int64(len(zeros)))
		if w.pos&(w.o.Cluster-1) == 0 {
			if err := w.write(zeros[:k]); err != nil {
				return err
			}
		} else {
			if _, err := w.t.Write(zeros[:k]); err != nil {
				return err
			}
			w.pos += k
		}
		n -= k
	}
	return nil
}

// write writes b and counts a reference to every host cluster that it touches.
func (w *Writer) write(b []byte) error {
	first, last := w.pos>>w.h.ClusterBits, (w.pos+int64(len(b))-1)>>w.h.ClusterBits
	for c := first; c <= last; c++ {
		*w.ref(c)++
	}
	if _, err := w.t.Write(b); err != nil {
		return err
	}
	w.pos += int64(len(b))
	for w.pos>>w.h.ClusterBits >= (w.block+1)*w.perBlock() {
		w.endBlock()
	}
	return nil
}

// ref gives the reference count of a host cluster, of the current block or the one after.
func (w *Writer) ref(cluster int64) *uint16 {
	i := cluster - w.block*w.perBlock()
	return &w.refs[i/w.perBlock()][i%w.perBlock()]
}

// full tells whether the host cluster that is being written can't be referred to once more.
func (w *Writer) full() bool { return *w.ref(w.pos >> w.h.ClusterBits) == maxRefs }

// endBlock has the block of reference counts written that nothing will be added to.
func (w *Writer) endBlock() {
	b := w.buffer()[:0]
	for _, n := range w.refs[0] {
		b = binary.BigEndian.AppendUint16(b, n)
	}
	i := len(w.blocks)
	w.blocks = append(w.blocks, 0)
	clear(w.refs[0])
	w.refs[0], w.refs[1] = w.refs[1], w.refs[0]
	w.block++
	w.waiting = append(w.waiting, waiting{b, func(off uint64) { w.blocks[i] = off }})
}

// Close writes the tables that end the image, and its head. It does not close the Target.
func (w *Writer) Close() error {
	if err := w.endTable(); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.zeroTables(); err != nil {
		return err
	}
	if err := w.endRefs(); err != nil {
		return err
	}
	return w.head()
}

// zeroTables writes the L2 tables that ranges of nothing but zeros share, as many as the width of reference counts
// takes.
func (w *Writer) zeroTables() error {
	var users []int
	for i, e := range w.l1 {
		if e == zeroRange {
			users = append(users, i)
		}
	}
	table := slices.Repeat([]byte{0, 0, 0, 0, 0, 0, 0, entryZero}, int(w.o.Cluster/8))
	for some := range slices.Chunk(users, maxRefs) {
		entry, cluster := uint64(w.pos), w.pos>>w.h.ClusterBits
		if len(some) == 1 {
			entry |= entryCopied
		}
		*w.ref(cluster) += uint16(len(some) - 1)
		for _, i := range some {
			w.l1[i] = entry
		}
		if err := w.write(table); err != nil {
			return err
		}
	}
	return w.flush()
}

// endRefs writes the last blocks of reference counts and their table, which count themselves.
func (w *Writer) endRefs() error {
	done := int64(len(w.blocks))
	start := w.pos >> w.h.ClusterBits
	// As many blocks and clusters of the table as it takes to count all clusters, them included.
	blocks, table := int64(1), int64(1)
	for {
		b := (start+blocks+table+w.perBlock()-1)/w.perBlock() - done
		t := w.whole(8*(done+b)) >> w.h.ClusterBits
		if b <= blocks && t <= table {
			break
		}
		blocks, table = max(b, blocks), max(t, table)
	}
	if 8*(done+blocks) > maxRefcountTable {
		return ondisk.Unsupported("qcow2 image to be written", "length", -1, w.pos)
	}
	refs := make([]uint16, blocks*w.perBlock())
	copy(refs, w.refs[0])
	copy(refs[w.perBlock():], w.refs[1])
	for c := start; c < start+blocks+table; c++ {
		refs[c-done*w.perBlock()]++
	}
	out := make([]byte, 0, (blocks+table)*w.o.Cluster)
	for _, n := range refs {
		out = binary.BigEndian.AppendUint16(out, n)
	}
	for i := range blocks {
		w.blocks = append(w.blocks, uint64(w.pos+i*w.o.Cluster))
	}
	w.h.RefcountTableOffset, w.h.RefcountTableClusters = uint64(w.pos+blocks*w.o.Cluster), uint32(table)
	for _, off := range w.blocks {
		out = binary.BigEndian.AppendUint64(out, off)
	}
	out = out[:cap(out)]
	_, err := w.t.Write(out)
	w.pos += int64(len(out))
	return err
}

// head writes the header's cluster and the L1 table.
func (w *Writer) head() error {
	const length = compressionTypeAt + 8
	h3 := header3{RefcountOrder: 4, HeaderLength: length}
	var compression byte = compressDeflate
	if w.o.Codec == codec.Zstd {
		h3.Incompatible, compression = incompatCompression, compressZstd
	}
	var ext []byte
	extension := func(kind uint32, b []byte) {
		ext = binary.BigEndian.AppendUint32(ext, kind)
		ext = binary.BigEndian.AppendUint32(ext, uint32(len(b)))
		ext = append(append(ext, b...), make([]byte, -len(b)&7)...)
	}
	if w.o.Backing != "" {
		extension(extBackingFormat, []byte(w.o.BackingFormat))
	}
	extension(extEnd, nil)
	if w.o.Backing != "" {
		w.h.BackingFileOffset, w.h.BackingFileSize = length+uint64(len(ext)), uint32(len(w.o.Backing))
	}
	b := make([]byte, 0, w.o.Cluster)
	b, _ = binary.Append(b, binary.BigEndian, &w.h)
	b, _ = binary.Append(b, binary.BigEndian, &h3)
	b = append(b, compression, 0, 0, 0, 0, 0, 0, 0)
	b = append(append(b, ext...), w.o.Backing...)
	if err := w.t.WriteHead(b, 0); err != nil {
		return err
	}
	b = make([]byte, 0, 8*len(w.l1))
	for _, e := range w.l1 {
		b = binary.BigEndian.AppendUint64(b, e)
	}
	return w.t.WriteHead(b, w.o.Cluster)
}
