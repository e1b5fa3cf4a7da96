package ext4

import (
	"fmt"

	"vmkit/formats/ondisk"
)

// maxOrphans bounds the orphans that are counted.
const maxOrphans = 1 << 16

// countOrphans counts the inodes that are in the orphan list and the orphan file: deleted while they were open, or not
// yet cut to their size ("Orphan file"). A mount frees the blocks that no name leads to; nothing of it is seen in the
// tree, so the count is only told.
func (f *fsys) countOrphans() {
	n := f.orphanList() + f.orphanFile()
	if n > 0 {
		f.info.Extra["orphans"] = n
	}
}

func (f *fsys) orphanList() (n int) {
	seen := make(map[uint32]bool)
	var in inode
	for ino := f.sb.LastOrphan; ino != 0; n++ {
		if seen[ino] || n == maxOrphans || f.load(ino, &in) != nil {
			f.info.Problems = append(f.info.Problems, ondisk.Corrupt("ext orphan list", "inode", -1, ino))
			return n
		}
		seen[ino] = true
		ino = le.Uint32(in.raw[iDTime:])
	}
	return n
}

func (f *fsys) orphanFile() (n int) {
	if !f.has(compatOrphanFile) || !f.hasRO(roCompatOrphanPresent) {
		return 0
	}
	bad := func(err error) { f.info.Problems = append(f.info.Problems, fmt.Errorf("ext orphan file: %w", err)) }
	var in inode
	if err := f.load(f.sb.OrphanFileInum, &in); err != nil {
		bad(err)
		return 0
	}
	if in.size < 0 || in.size > 4*maxOrphans {
		bad(in.corrupt("size", iSizeLo, in.size))
		return 0
	}
	b := make([]byte, in.size&^(f.blockSize-1))
	if err := f.readContent(&in, b); err != nil {
		bad(err)
		return 0
	}
	blocks := f.blockNumbers(&in, len(b))
	for i := 0; len(b) > 0; i, b = i+1, b[f.blockSize:] {
		tail := int(f.blockSize) - orphanTailLen
		if le.Uint32(b[tail:]) != orphanMagic {
			bad(in.corrupt("magic of a block", -1, i))
			continue
		}
		sum := crc32cUint(crc32cUint(in.seed, uint32(blocks[i])), uint32(blocks[i]>>32))
		if f.csum && le.Uint32(b[tail+4:]) != crc32c(sum, b[:tail]) {
			bad(in.corrupt("checksum of a block", -1, i))
		}
		for p := 0; p < tail; p += 4 {
			if le.Uint32(b[p:]) != 0 {
				n++
			}
		}
	}
	return n
}

// blockNumbers gives the blocks of the first n bytes of an inode's content.
func (f *fsys) blockNumbers(in *inode, n int) []uint64 {
	s := f.scratch()
	defer f.spare.Put(s)
	list := make([]uint64, n>>f.shift)
	s.runs.Reset(int64(n))
	if f.runs(in, &s.runs, false) != nil {
		return list
	}
	for _, x := range s.runs.List {
		for p := int64(0); p < x.Len; p += f.blockSize {
			list[(x.At+p)>>f.shift] = uint64(x.Off+p) >> f.shift
		}
	}
	return list
}
