package xfs

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/overlay"
)

// maxCancelled bounds the freed buffers of a log: a bound on memory, a fifth of what the longest log could name.
const maxCancelled = 8 << 20

// maxOverlay bounds the sectors that a replay may change: half of the longest log.
const maxOverlay = 1 << 30

// recover looks at the log and, where it holds work, replays it into an overlay of the volume, as the options say.
func (f *fsys) recover() error {
	s := &f.sb
	if s.LogStart == 0 {
		if f.opts.Journal == fsmap.JournalFail {
			return ondisk.Unsupported("xfs log", "on another device, of blocks", 48, s.LogBlocks)
		}
		f.info.Journal = "unreplayed"
		f.doubt(ondisk.Unsupported("xfs log", "on another device, not known to be clean, of blocks", 48, s.LogBlocks))
		return nil
	}
	l, err := openLog(f.r, f.geometry, f.size)
	var st *logState
	if err == nil {
		st, err = l.find()
	}
	if err != nil {
		if f.opts.Journal == fsmap.JournalFail {
			return fmt.Errorf("the log can't be read: %w", err)
		}
		f.info.Journal = "unreplayed"
		f.doubt(fmt.Errorf("the log can't be read, its work is not shown: %w", err))
		return nil
	}
	f.info.Notes = append(f.info.Notes, st.notes...)
	switch {
	case st.clean:
		f.info.Journal = "clean"
		return nil
	case f.opts.Journal == fsmap.JournalFail:
		return ondisk.Unsupported("xfs log", "holds work from block", -1, st.tail)
	case f.opts.Journal == fsmap.JournalIgnore:
		f.info.Journal = "ignored"
		f.info.Notes = append(f.info.Notes, "the log holds work, which is not shown")
		return nil
	}
	err = f.replay(l, st)
	if err == nil {
		f.info.Journal = "replayed"
		return nil
	}
	f.over, f.patches, f.reowned = nil, nil, nil
	f.info.Journal = "unreplayed"
	f.doubt(fmt.Errorf("the log can't be replayed, its work is not shown: %w", err))
	return nil
}

// replay applies the log to an overlay, and reads the superblock again.
func (f *fsys) replay(l *xlog, st *logState) error {
	if x := f.sb.LogIncompat &^ uint32(logIncompatKnown); x != 0 {
		return ondisk.Unsupported("xfs superblock", "incompatible log features", 220, bitNames(x, logIncompatNames))
	}
	p := newReplay(f)
	// Buffers that were freed must not be replayed: the first pass finds them.
	for _, commit := range []func(*trans) error{p.findCancelled, p.apply} {
		g := gather{open: make(map[uint32]*trans), commit: commit}
		if _, err := l.records(st.head, st.tail, g.record); err != nil {
			return err
		}
	}
	if err := p.stamp(); err != nil {
		return err
	}
	// The file system may have grown.
	if g, _, err := superblock(p.over, 0); err == nil && g.rootOK() {
		f.geometry = g
	}
	f.take(p)
	return nil
}

// take makes what was replayed the volume that is read, and keeps what was left to do.
func (f *fsys) take(p *replay) {
	f.over, f.r, f.reowned = p.over, p.over, p.reowned
	f.intents = p.unfinished()
}

type bufKey struct {
	blkno int64
	n     uint16
}

// replay is the state of the second pass.
type replay struct {
	*fsys
	over      *overlay.Volume
	cancelled map[bufKey]int
	patches   map[uint64]*patch
	reowned   map[uint64]bool
	intents   map[intentKey]intent // that are not known to be done
	seq       int
	lsn       uint64         // of the transactions being applied
	dirty     map[int64]bool // buffers that carry an LSN of their own, by position
}

func newReplay(f *fsys) *replay {
	return &replay{fsys: f, over: overlay.New(f.r, f.size, maxOverlay, "xfs log"), cancelled: make(map[bufKey]int),
		reowned: make(map[uint64]bool), intents: make(map[intentKey]intent), dirty: make(map[int64]bool)}
}

// findCancelled counts how often each buffer is freed.
func (p *replay) findCancelled(t *trans) error {
	for _, it := range t.items {
		if it.kind(t.ord) != itemBuf {
			continue
		}
		b, err := bufItem(it, t.ord)
		if err != nil {
			return err
		}
		if b.flags&blfCancel != 0 {
			p.cancelled[b.key]++
			if len(p.cancelled) > maxCancelled {
				return ondisk.Unsupported("xfs log", "freed buffers, more than", -1, maxCancelled)
			}
		}
	}
	return nil
}

// apply replays one transaction. The order is that of the kernel: buffers, then all else, then freed buffers. Buffers
// of inodes carry links between unlinked inodes only, which no reader needs.
func (p *replay) apply(t *trans) error {
	if t.lsn != p.lsn {
		if err := p.stamp(); err != nil {
			return err
		}
		p.lsn = t.lsn
	}
	for _, it := range t.items {
		if it.kind(t.ord) != itemBuf {
			continue
		}
		b, err := bufItem(it, t.ord)
		if err != nil {
			return err
		}
		if b.flags&(blfCancel|blfInodeBuf|blfDquotBufs) == 0 && p.cancelled[b.key] == 0 {
			if err := p.buffer(b, it); err != nil {
				return err
			}
		}
	}
	for _, it := range t.items {
		var err error
		switch k := it.kind(t.ord); k {
		case itemInode:
			err = p.inode(it, t.ord)
		case itemICreate:
			err = p.create(it)
		case itemBUI, itemXMI, itemATTRI:
			err = p.intend(k, it, t.ord)
		case itemBUD, itemXMD, itemATTRD:
			err = p.done(k-1, it, t.ord)
		case itemBuf, itemDquot, itemQuotaOff, itemEFI, itemEFD, itemRUI, itemRUD, itemCUI, itemCUD:
			// What frees, reverse mappings, reference counts and quotas say changes nothing that is read here.
		default:
			err = ondisk.Unsupported("xfs log item", "type", -1, fmt.Sprintf("%#x", k))
		}
		if err != nil {
			return err
		}
	}
	for i := len(t.items) - 1; i >= 0; i-- {
		if it := t.items[i]; it.kind(t.ord) == itemBuf {
			if b, err := bufItem(it, t.ord); err != nil {
				return err
			} else if b.flags&blfCancel != 0 && p.cancelled[b.key] > 0 {
				p.cancelled[b.key]--
			}
		}
	}
	return nil
}

// buf is the description of a buffer item.
type buf struct {
	key   bufKey
	flags uint16
	words []byte
	ord   binary.ByteOrder
}

func bufItem(it *item, ord binary.ByteOrder) (buf, error) {
	h := it.regions[0]
	if len(h) < blfMap {
		return buf{}, ondisk.Truncated("xfs log buffer item", "description", -1, len(h))
	}
	n := ord.Uint32(h[blfMapSize:])
	if n > blfMaxWords || int(n)*4 > len(h)-blfMap {
		return buf{}, ondisk.Corrupt("xfs log buffer item", "words of its map", -1, n)
	}
	return buf{key: bufKey{int64(ord.Uint64(h[blfBlkNo:])), ord.Uint16(h[blfLen:])}, flags: ord.Uint16(h[blfFlags:]), words: h[blfMap:][:n*4], ord: ord}, nil
}

func (b *buf) bit(i int) bool {
	return i < len(b.words)*8 && b.ord.Uint32(b.words[i/32*4:])>>(i%32)&1 != 0
}

// bound gives the position of a logged buffer.
func (p *replay) bound(k bufKey) (int64, error) {
	if k.blkno < 0 || k.blkno > p.size/sector || k.n == 0 || !ondisk.Within(k.blkno*sector, int64(k.n)*sector, p.size) {
		return 0, ondisk.Truncated("xfs log buffer item", "volume ends before sectors", -1, fmt.Sprintf("%d+%d", k.blkno, k.n))
	}
	return k.blkno * sector, nil
}

// buffer copies the logged chunks of a buffer to their places, unless the buffer on disk is newer.
func (p *replay) buffer(b buf, it *item) error {
	off, err := p.bound(b.key)
	if err != nil {
		return err
	}
	newer, err := p.age(off, b)
	if err != nil || newer {
		return err
	}
	region, size := 1, int(b.key.n)*sector
	for i := 0; i < len(b.words)*8; {
		if !b.bit(i) {
			i++
			continue
		}
		n := 1
		for b.bit(i + n) {
			n++
		}
		if region >= len(it.regions) {
			return ondisk.Corrupt("xfs log buffer item", "regions", -1, len(it.regions))
		}
		data := it.regions[region]
		region++
		if (i+n)*blfChunk > size {
			return ondisk.Corrupt("xfs log buffer item", "chunks of a buffer of sectors", -1, fmt.Sprintf("%d+%d, %d", i, n, b.key.n))
		}
		// A stretch of chunks may come in several regions.
		if len(data) < n*blfChunk {
			n = len(data) / blfChunk
		}
		if n == 0 {
			return ondisk.Corrupt("xfs log buffer item", "length of a region", -1, len(data))
		}
		if err := p.over.Write(off+int64(i)*blfChunk, data[:n*blfChunk]); err != nil {
			return err
		}
		i += n
	}
	if p.v5 {
		p.dirty[off] = true
	}
	return nil
}

// age reports whether a buffer on disk is as new as the transaction, or newer, going by its LSN.
func (p *replay) age(off int64, b buf) (newer bool, err error) {
	if t := b.flags >> blfTypeShift; !p.v5 || t == blftRTBitmap || t == blftRTSum {
		return false, nil
	}
	h, err := p.over.Bytes(off, sector)
	if err != nil {
		return false, err
	}
	at := p.lsnPlace(h)
	if at < 0 {
		return false, nil
	}
	lsn := be.Uint64(h[at:])
	return lsn != 0 && lsn != ^uint64(0) && lsn >= p.lsn, nil
}

// lsnPlace tells where a block of this file system, recognised by its magic number, keeps its LSN; -1 if it doesn't.
func (p *replay) lsnPlace(h []byte) int {
	at, uuid := -1, 0
	switch m := be.Uint32(h); m {
	case bmapMagic, bmapCRCMagic:
		at, uuid = idLong.lsn, idLong.uuid
	case agfMagic:
		at, uuid = agfLSNOff, agfUUIDOff
	case agflMagic:
		at, uuid = agflLSNOff, agflUUIDOff
	case agiMagic:
		at, uuid = agiLSNOff, agiUUIDOff
	case symlinkMagic:
		at, uuid = idRemote.lsn, idRemote.uuid
	case dir3BlockMagic, dir3DataMagic, dir3FreeMagic:
		at, uuid = idDir.lsn, idDir.uuid
	case attrRmtMagic:
		return -1
	case sbMagic:
		at, uuid = sbLSNOff, sbUUIDOff
		if p.sb.Incompat&incompatMetaUUID != 0 {
			uuid = sbMetaOff
		}
	default:
		for _, x := range shortMagics {
			if m == x {
				at, uuid = idShort.lsn, idShort.uuid
			}
		}
		switch be.Uint16(h[8:]) {
		case dir3Leaf1Magic, dir3LeafNMagic, attr3LeafMagic, da3NodeMagic:
			if at < 0 {
				at, uuid = idDA.lsn, idDA.uuid
			}
		}
	}
	if at < 0 || [16]byte(h[uuid:]) != p.metaUUID {
		return -1
	}
	return at
}

// stamp gives the buffers that were replayed the LSN that writing them would give.
func (p *replay) stamp() error {
	for off := range p.dirty {
		h, err := p.over.Bytes(off, sector)
		if err != nil {
			return err
		}
		if at := p.lsnPlace(h); at >= 0 {
			if err := p.over.Write(off+int64(at), be.AppendUint64(nil, p.lsn)); err != nil {
				return err
			}
		}
	}
	p.dirty = make(map[int64]bool)
	return nil
}

// create initialises an inode chunk.
func (p *replay) create(it *item) error {
	h := it.regions[0]
	if len(h) < iclBytes {
		return ondisk.Truncated("xfs log inode creation", "description", -1, len(h))
	}
	ag, bno := uint64(be.Uint32(h[iclAG:])), uint64(be.Uint32(h[iclAGBNo:]))
	count, length := uint64(be.Uint32(h[iclCount:])), uint64(be.Uint32(h[iclLength:]))
	off, ok := p.place(ag<<p.sb.AGBlkLog|bno, length)
	if !ok || bno == 0 || bno>>p.sb.AGBlkLog != 0 || int(be.Uint32(h[iclISize:])) != p.inodeSize || count == 0 ||
		count>>p.sb.InoPBLog != length || count > maxCreate {
		return ondisk.Corrupt("xfs log inode creation", "place and inodes", -1, fmt.Sprintf("%d:%d+%d, %d", ag, bno, length, count))
	}
	cluster := p.clusterBlocks()
	for i := uint64(0); i < length; i += cluster {
		k := bufKey{(off + int64(i)<<p.blockLog) / sector, uint16(cluster << p.blockLog / sector)}
		if p.cancelled[k] > 0 {
			return nil
		}
	}
	b := make([]byte, p.inodeSize)
	be.PutUint16(b, inodeMagic)
	b[diVersion] = 2
	be.PutUint32(b[diGen:], be.Uint32(h[iclGen:]))
	be.PutUint32(b[diNextUnlinked:], ^uint32(0))
	ino := (ag<<p.sb.AGBlkLog | bno) << p.sb.InoPBLog
	for i := range count {
		if p.v5 {
			b[diVersion] = 3
			be.PutUint64(b[diIno:], ino+i)
			copy(b[diUUID:], p.metaUUID[:])
			binary.LittleEndian.PutUint32(b[diCRC:], checksum(b, diCRC))
		}
		if err := p.over.Write(off+int64(i)<<p.sb.InodeLog, b); err != nil {
			return err
		}
	}
	return nil
}

// maxCreate is how many inodes one item may create: a chunk has 64, a block of 64 KiB at most 256.
const maxCreate = 256

// clusterBlocks gives the length of an inode buffer, as the kernel computes it.
func (g *geometry) clusterBlocks() uint64 {
	size := int64(8192)
	if g.v5 {
		if s := size * int64(g.inodeSize/minInodeSize); int64(g.sb.InoAlignMt) >= s>>g.blockLog {
			size = s
		}
	}
	return uint64(max(size>>g.blockLog, 1))
}
