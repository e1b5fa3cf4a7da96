package ext4

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"sort"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// journal is an opened journal: the log is a ring of blocks of a file.
type journal struct {
	f     *fsys
	sb    journalSuper
	off   int64      // of its superblock in the volume
	runs  fsmap.Runs // where its blocks lie
	first uint32     // block of the log
	last  uint32     // block behind the log; the fast commits lie beyond
	seed  uint32     // of checksums
	buf   []byte     // a block
	// revoked has the last transaction that revoked each block.
	revoked map[uint64]uint32
}

func (j *journal) has(incompat uint32) bool { return j.sb.Incompat&incompat != 0 }

// checked says that every block has its own checksum.
func (j *journal) checked() bool { return j.has(jIncompatCsumV2 | jIncompatCsumV3) }

// openJournal reads the journal's superblock ("Super Block" of the journal).
func (f *fsys) openJournal() (*journal, error) {
	j := &journal{f: f, buf: make([]byte, f.blockSize), revoked: make(map[uint64]uint32)}
	if err := j.locate(); err != nil {
		return nil, err
	}
	off, err := j.read(0)
	if err != nil {
		return nil, err
	}
	j.off = off
	raw := j.buf[:jsLen]
	s := &j.sb
	if _, err := binary.Decode(raw, be, s); err != nil {
		return nil, ondisk.Truncated("ext journal", "superblock", off, nil)
	}
	corrupt := func(field string, got any) error { return ondisk.Corrupt("ext journal", field, off, got) }
	switch {
	case s.Magic != jbdMagic:
		return nil, corrupt("magic", fmt.Sprintf("%#08x", s.Magic))
	case s.BlockType == jbSuperV1:
		s.Compat, s.Incompat, s.ROCompat = 0, 0, 0
	case s.BlockType != jbSuperV2:
		return nil, corrupt("type of its superblock", s.BlockType)
	}
	if bad := s.Incompat &^ jIncompatKnown; bad != 0 {
		return nil, ondisk.Unsupported("ext journal", "incompatible features", off+0x28, featureText(bad, jIncompatNames))
	}
	if s.ROCompat != 0 {
		return nil, ondisk.Unsupported("ext journal", "read-only compatible features", off+0x2C, featureText(s.ROCompat, nil))
	}
	if j.checked() {
		j.seed = crc32c(^uint32(0), s.UUID[:])
		if s.ChecksumType != csumCRC32C {
			return nil, ondisk.Unsupported("ext journal", "checksum type", off+0x50, s.ChecksumType)
		}
		if s.Checksum != crc32cExcept(^uint32(0), raw, jsCsumOff, jsCsumOff+4) {
			return nil, corrupt("checksum of its superblock", fmt.Sprintf("%#08x", s.Checksum))
		}
	}
	reserved := uint32(0) // blocks for fast commits
	if j.has(jIncompatFastCommit) {
		if reserved = s.NumFCBlocks; reserved == 0 {
			reserved = fcDefaultCount
		}
	}
	switch {
	case int64(s.BlockSize) != f.blockSize:
		return nil, corrupt("block size", s.BlockSize)
	case int64(s.MaxLen) > j.runs.Size()>>f.shift:
		return nil, ondisk.Truncated("ext journal", "file is shorter than its length in blocks,", off+0x10, s.MaxLen)
	case s.First == 0 || s.First >= s.MaxLen || reserved >= s.MaxLen-s.First:
		return nil, corrupt("first block of the log", s.First)
	case s.Start != 0 && (s.Start < s.First || s.Start >= s.MaxLen-reserved):
		return nil, corrupt("start of the log", s.Start)
	case j.has(jIncompatCsumV2) && j.has(jIncompatCsumV3):
		return nil, corrupt("two kinds of checksums:", featureText(s.Incompat, jIncompatNames))
	}
	j.first, j.last = s.First, s.MaxLen-reserved
	return j, nil
}

// locate finds the journal's blocks, by the superblock's copy of its inode where the inode is damaged.
func (j *journal) locate() error {
	f := j.f
	var in inode
	err := f.load(f.sb.JournalInum, &in)
	if err == nil && in.mode&modeFmt == modeReg && in.size > 0 {
		j.runs.Reset(in.size)
		if err = f.runs(&in, &j.runs, false); err == nil {
			return nil
		}
	}
	if err == nil {
		err = in.corrupt("mode of the journal", iMode, fmt.Sprintf("%#o", in.mode))
	}
	if f.sb.JnlBackupType != jnlBackupBlocks {
		return fmt.Errorf("ext journal: %w", err)
	}
	in = inode{ino: f.sb.JournalInum, off: -1, raw: make([]byte, f.inodeSize)}
	for i, w := range f.sb.JnlBlocks[:15] {
		le.PutUint32(in.raw[iBlock+4*i:], w)
	}
	if le.Uint16(in.raw[iBlock:]) == exMagic {
		in.flags = flExtents
	}
	j.runs.Reset(int64(f.sb.JnlBlocks[16]) | int64(f.sb.JnlBlocks[15]&math.MaxInt32)<<32)
	if f.runs(&in, &j.runs, false) != nil || j.runs.Size() == 0 {
		return fmt.Errorf("ext journal: %w", err)
	}
	f.info.Notes = append(f.info.Notes, fmt.Sprintf("the journal is found by the superblock's copy of its inode: %v", err))
	return nil
}

// read reads a block of the journal into buf, and gives its position in the volume.
func (j *journal) read(block uint32) (int64, error) {
	at := int64(block) << j.f.shift
	l := j.runs.List
	i := sort.Search(len(l), func(i int) bool { return l[i].At > at }) - 1
	if i < 0 || at >= l[i].At+l[i].Len || l[i].Kind != mapfile.Data {
		return 0, ondisk.Corrupt("ext journal", "nothing lies at its block", -1, block)
	}
	off := l[i].Off + at - l[i].At
	return off, ondisk.ReadFull(j.f.r, j.buf, off, "ext journal")
}

// after gives the block n blocks behind another in the ring.
func (j *journal) after(block, n uint32) uint32 {
	return j.first + (block-j.first+n)%(j.last-j.first)
}

// tags is a cursor over the tags of a descriptor block.
type tags struct {
	b    []byte // what is left
	size int    // of a tag
	wide bool   // 64-bit block numbers
	done bool

	tag   []byte
	flags uint16
	block uint64
}

func (j *journal) tags(b []byte) tags {
	t := tags{b: b[jhLen:], wide: j.has(jIncompat64Bit)}
	if j.checked() {
		t.b = t.b[:len(t.b)-jTailLen]
	}
	switch {
	case j.has(jIncompatCsumV3):
		t.size = 16
	default:
		t.size = 8
		if j.has(jIncompatCsumV2) {
			t.size += 2
		}
		if t.wide {
			t.size += 4
		}
	}
	return t
}

func (t *tags) next() bool {
	if t.done || len(t.b) < t.size {
		return false
	}
	t.tag = t.b[:t.size]
	t.flags, t.block = be.Uint16(t.tag[tagFlags:]), uint64(be.Uint32(t.tag[tagBlockLo:]))
	if t.wide {
		t.block |= uint64(be.Uint32(t.tag[tagBlockHi:])) << 32
	}
	n := t.size
	if t.flags&tagSameUUID == 0 {
		n += tagUUIDLen
	}
	t.done = t.flags&tagLast != 0 || n > len(t.b)
	t.b = t.b[min(n, len(t.b)):]
	return true
}

func (t *tags) count() (n uint32) {
	for t.next() {
		n++
	}
	return n
}

// tailOK verifies the checksum at the end of a descriptor or revoke block.
func (j *journal) tailOK(b []byte) bool {
	at := len(b) - jTailLen
	return !j.checked() || be.Uint32(b[at:]) == crc32cExcept(j.seed, b, at, at+jTailLen)
}

// scan goes through the log once ("Block Header", fs/jbd2/recovery.c). It gives the first transaction that is not
// complete, and says what is wrong where that isn't simply one that was being written.
func (j *journal) scan() (end uint32, err error) {
	var (
		seq, pos    = j.sb.StartSeq, j.sb.Start
		left        = j.last - j.first // blocks; the ring is gone through once
		sum         = ^uint32(0)       // version 1: over the blocks of a transaction
		old         = j.sb.Compat&jCompatChecksum != 0
		doubt       bool // a block's checksum is wrong: this may be what an older log left
		failed      bool // so is the last commit's
		time, prior uint64
		pending     []uint64 // blocks that this transaction revokes
	)
	corrupt := func(field string, got any) error {
		return ondisk.Corrupt(fmt.Sprintf("ext journal: transaction %d", seq), field, int64(pos)<<j.f.shift, got)
	}
	for ; left > 0; left-- {
		if _, err := j.read(pos); err != nil {
			return seq, err
		}
		b := j.buf
		if be.Uint32(b) != jbdMagic || be.Uint32(b[jhSeq:]) != seq {
			return seq, nil
		}
		switch be.Uint32(b[jhType:]) {
		case jbDescriptor:
			doubt = doubt || !j.tailOK(b)
			t := j.tags(b)
			n := t.count()
			if n >= left {
				return seq, corrupt("count of blocks", n)
			}
			if old && !doubt && !failed {
				sum = crc32BE(sum, b)
				for k := range n {
					if _, err := j.read(j.after(pos, k+1)); err != nil {
						return seq, err
					}
					sum = crc32BE(sum, b)
				}
			}
			pos, left = j.after(pos, n), left-n
		case jbRevoke:
			doubt = doubt || !j.tailOK(b)
			if pending, err = j.revokes(pending, b); err != nil {
				return seq, err
			}
		case jbCommit:
			time, prior = be.Uint64(b[jcSec:]), time
			switch {
			case failed:
				return end, corrupt("follows one with a wrong checksum", nil)
			case doubt && time >= prior:
				return seq, corrupt("checksum of a descriptor", nil)
			case doubt:
				return seq, nil
			}
			if !j.commitOK(b, old, sum) {
				if time < prior {
					return seq, nil
				}
				if !j.has(jIncompatAsyncCommit) {
					return seq, corrupt("checksum of the commit", nil)
				}
				failed, end = true, seq // written before its blocks were, perhaps
			}
			if !failed {
				for _, r := range pending {
					j.revoked[r] = seq
				}
				end = seq + 1
			}
			sum, pending = ^uint32(0), pending[:0]
			seq++
		default:
			return seq, nil
		}
		pos = j.after(pos, 1)
	}
	return seq, nil
}

// revokes adds the block numbers of a revoke block ("Revocation Block").
func (j *journal) revokes(list []uint64, b []byte) ([]uint64, error) {
	used, room := int(be.Uint32(b[jrCount:])), len(b)
	if j.checked() {
		room -= jTailLen
	}
	if used < 0 || used > room {
		return list, ondisk.Corrupt("ext journal", "count of revoked blocks", -1, used)
	}
	wide := j.has(jIncompat64Bit)
	for p := jrLen; p < used; {
		if wide && p+8 <= used {
			list, p = append(list, be.Uint64(b[p:])), p+8
		} else if !wide && p+4 <= used {
			list, p = append(list, uint64(be.Uint32(b[p:]))), p+4
		} else {
			break
		}
	}
	return list, nil
}

// commitOK verifies a commit block: sum is what its transaction's blocks come to in version 1.
func (j *journal) commitOK(b []byte, old bool, sum uint32) bool {
	got := be.Uint32(b[jcCsum:])
	if j.checked() {
		return got == crc32cExcept(j.seed, b, jcCsum, jcCsum+4)
	}
	if !old {
		return true
	}
	kind, size := b[jcCsumType], b[jcCsumSize]
	return kind == csumCRC32 && size == 4 && got == sum || kind == 0 && size == 0 && got == 0
}

// replay goes through the complete transactions and gives, for every block that they changed, where its last content
// lies. What can't be taken is skipped, and the first such trouble told.
func (j *journal) replay(end uint32) (blocks []moved, err error) {
	latest := make(map[uint64]moved)
	bad := func(e error) {
		if err == nil {
			err = e
		}
	}
	seq, pos := j.sb.StartSeq, j.sb.Start
	desc := make([]byte, len(j.buf))
	for seq != end {
		if _, e := j.read(pos); e != nil {
			return nil, e
		}
		pos = j.after(pos, 1)
		switch be.Uint32(j.buf[jhType:]) {
		case jbCommit:
			seq++
		case jbDescriptor:
			copy(desc, j.buf)
			for t := j.tags(desc); t.next(); pos = j.after(pos, 1) {
				if r, ok := j.revoked[t.block]; ok && int32(r-seq) >= 0 {
					continue
				}
				off, e := j.read(pos)
				switch {
				case e != nil:
					bad(e)
				case t.block >= j.f.blocks:
					bad(ondisk.Corrupt(fmt.Sprintf("ext journal: transaction %d", seq), "place of a block", off, t.block))
				case !j.blockOK(&t, seq):
					bad(ondisk.Corrupt(fmt.Sprintf("ext journal: transaction %d", seq), fmt.Sprintf("checksum of block %d", t.block), off, nil))
				default:
					latest[t.block] = moved{t.block, off, t.flags&tagEscaped != 0}
				}
			}
		}
	}
	blocks = make([]moved, 0, len(latest))
	for _, m := range latest {
		blocks = append(blocks, m)
	}
	slices.SortFunc(blocks, func(a, b moved) int { return compare(a.block, b.block) })
	return blocks, err
}

// blockOK verifies the checksum of the block in buf that a tag has.
func (j *journal) blockOK(t *tags, seq uint32) bool {
	if !j.checked() {
		return true
	}
	var n [4]byte
	be.PutUint32(n[:], seq)
	sum := crc32c(crc32c(j.seed, n[:]), j.buf)
	if j.has(jIncompatCsumV3) {
		return be.Uint32(t.tag[tagCsum3:]) == sum
	}
	return be.Uint16(t.tag[tagCsum2:]) == uint16(sum)
}

func compare(a, b uint64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// recover finds out about the journal and replays it, as far as is asked for and possible.
func (f *fsys) recover() error {
	needs, backup := f.hasInc(incompatRecover), f.off != sbPos
	i := &f.info
	if !f.has(compatHasJournal) {
		i.Journal = "none"
		if needs {
			i.Problems = append(i.Problems, ondisk.Corrupt("ext superblock", "it needs recovery, but has no journal", f.off+0x60, nil))
		}
		return nil
	}
	unable := func(err error) error {
		if f.opts.Journal == fsmap.JournalFail {
			return err
		}
		i.Journal = "unreplayed"
		i.Problems = append(i.Problems, err)
		return nil
	}
	if f.sb.JournalInum == 0 {
		i.Journal = "clean"
		i.Notes = append(i.Notes, "its journal is another device, with the UUID "+uuidText(f.sb.JournalUUID))
		if needs {
			return unable(ondisk.Unsupported("ext journal", "the file system needs recovery from another device, UUID", -1, uuidText(f.sb.JournalUUID)))
		}
		return nil
	}
	j, err := f.openJournal()
	if err != nil {
		if needs || backup {
			return unable(err)
		}
		i.Journal = "clean"
		i.Notes = append(i.Notes, fmt.Sprintf("the journal is not in use and can't be read: %v", err))
		return nil
	}
	if j.sb.Errno != 0 {
		i.Notes = append(i.Notes, fmt.Sprintf("the journal was aborted: error %d", int32(j.sb.Errno)))
	}
	switch {
	case j.sb.Start == 0:
		i.Journal = "clean"
		return nil
	case !needs && !backup:
		return unable(ondisk.Corrupt("ext journal", "it holds transactions, but the superblock says that no recovery is needed: start", j.off+0x1C, j.sb.Start))
	case f.opts.Journal == fsmap.JournalIgnore:
		i.Journal = "ignored"
		i.Notes = append(i.Notes, "the journal holds work that was not replayed, as asked")
		return nil
	case f.opts.Journal == fsmap.JournalFail:
		return ondisk.Unsupported("ext journal", "it holds work, and replaying is not allowed: start", j.off+0x1C, j.sb.Start)
	}
	i.Journal = "replayed"
	return j.run()
}

// run replays the journal into memory. What is wrong with it becomes a problem.
func (j *journal) run() error {
	f := j.f
	end, err := j.scan()
	blocks, err2 := j.replay(end)
	if err == nil {
		err = err2
	}
	if len(blocks) > 0 {
		f.over = &overlay{r: f.r, shift: f.shift, blocks: blocks}
		if err := f.reread(); err != nil {
			return fmt.Errorf("after the journal's replay: %w", err)
		}
	}
	if err == nil && j.has(jIncompatFastCommit) {
		err = j.fastCommits(end)
	}
	if err != nil {
		f.info.Journal = "unreplayed"
		f.info.Problems = append(f.info.Problems, fmt.Errorf("the journal was replayed in part: %w", err))
	}
	return nil
}

// reread takes the superblock and the group descriptors as the journal leaves them.
func (f *fsys) reread() error {
	raw, err := ondisk.Read(f.over, f.off, sbLen, "ext superblock")
	if err != nil {
		return err
	}
	if !bytes.Equal(raw[0x68:0x78], f.sb.UUID[:]) {
		return ondisk.Corrupt("ext superblock", "uuid", f.off+0x68, uuidText([16]byte(raw[0x68:])))
	}
	g, csum, err := parse(raw, f.off)
	if err != nil {
		return err
	}
	if csum != nil {
		f.info.Problems = append(f.info.Problems, csum)
	}
	f.geometry = g
	f.attach(f.over)
	return nil
}
