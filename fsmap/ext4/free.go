package ext4

import (
	"errors"
	"fmt"
	"io"
	"math/bits"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
)

// Free implements fsmap.Freer by the block bitmaps. ("Block and Inode Bitmaps")
func (f *fsys) Free(yield func(off, n int64) bool) error {
	if f.fast != nil {
		// A guest that replays fast commits allocates blocks by itself while it does.
		return errors.New("fast commits are yet to be replayed")
	}
	readers := []io.ReaderAt{f.r}
	if f.over != nil {
		readers = append(readers, f.over.r)
	}
	unit := f.blockSize // that a bit stands for
	if f.hasRO(roCompatBigalloc) {
		unit <<= f.sb.LogClusterSize - f.sb.LogBlockSize
	}
	shift := uint(bits.TrailingZeros64(uint64(unit)))
	free := fsmap.Stretches{Yield: yield}
	var lost uint64
	var first error
	used := make([]byte, f.blockSize)
	one := make([]byte, f.blockSize)
	for n := range f.groups {
		clear(used)
		err := error(nil)
		for _, r := range readers {
			if err = f.bitmap(r, n, shift, one); err != nil {
				break
			}
			for i := range used {
				used[i] |= one[i]
			}
		}
		if err != nil {
			if lost++; first == nil {
				first = err
			}
			continue
		}
		if !free.Zeros(used, f.unitsIn(n, shift), int64(f.groupStart(n))<<f.shift, shift) {
			return nil
		}
	}
	free.End()
	if lost > 0 {
		return fmt.Errorf("%d of %d groups: %w", lost, f.groups, first)
	}
	return nil
}

// unitsIn gives how many whole blocks (clusters) group n has on the volume.
func (f *fsys) unitsIn(n uint64, shift uint) int64 {
	end := min(f.groupStart(n)+f.perGroup, f.blocks, uint64(f.size)>>f.shift)
	start := f.groupStart(n)
	if end <= start {
		return 0
	}
	return int64((end - start) << f.shift >> shift)
}

// bitmap reads into b which blocks (clusters, of 1<<shift bytes) of group n are in use.
func (f *fsys) bitmap(r io.ReaderAt, n uint64, shift uint, b []byte) error {
	what := fmt.Sprintf("block bitmap of group %d", n)
	per := uint64(f.descsPerBlock())
	off := int64(f.descBlock(n/per)<<f.shift) + int64(n%per)*int64(f.descSize)
	d, err := ondisk.Read(r, off, int64(f.descSize), "group descriptor")
	if err != nil {
		return err
	}
	if want, got := f.descChecksum(n, d), le.Uint16(d[gdChecksum:]); (f.csum || f.gdtCsum) && got != want {
		return ondisk.Corrupt(fmt.Sprintf("descriptor of group %d", n), "checksum", off+gdChecksum, fmt.Sprintf("%#04x", got))
	}
	block := uint64(le.Uint32(d[gdBitmapLo:]))
	table := uint64(le.Uint32(d[gdTableLo:]))
	inodes := uint64(le.Uint32(d[gdInodeMapLo:]))
	if f.descSize >= gdLen64 {
		block |= uint64(le.Uint32(d[gdBitmapHi:])) << 32
		table |= uint64(le.Uint32(d[gdTableHi:])) << 32
		inodes |= uint64(le.Uint32(d[gdInodeMapHi:])) << 32
	}
	if (f.csum || f.gdtCsum) && le.Uint16(d[gdFlags:])&gdBlockUninit != 0 {
		f.fresh(n, shift, b, block, inodes, table)
		return nil
	}
	if block < f.first || block >= f.blocks {
		return ondisk.Corrupt(what, "its place", off, block)
	}
	if err := ondisk.ReadFull(r, b, int64(block<<f.shift), what); err != nil {
		return err
	}
	if f.csum {
		want := crc32c(f.seed, b[:(f.perGroup<<f.shift>>shift)/8])
		got := uint32(le.Uint16(d[gdBitmapCsumLo:]))
		if f.descSize >= gdLen64 {
			got |= uint32(le.Uint16(d[gdBitmapCsumHi:])) << 16
		} else {
			want &= 0xffff
		}
		if got != want {
			return ondisk.Corrupt(what, "checksum", int64(block<<f.shift), fmt.Sprintf("%#08x", got))
		}
	}
	return nil
}

// fresh makes the bitmap of a group that was never written to: in use is what every group begins with, and its own
// tables. (BLOCK_UNINIT)
func (f *fsys) fresh(n uint64, shift uint, b []byte, bitmap, inodes, table uint64) {
	clear(b)
	start := f.groupStart(n)
	mark := func(block, count uint64) {
		for k := block; k < block+count; k++ {
			if k >= start && k < start+f.perGroup {
				i := (k - start) << f.shift >> shift
				b[i/8] |= 1 << (i % 8)
			}
		}
	}
	base := uint64(2) // a superblock, and a block of descriptors with meta_bg
	if f.holdsSuper(n) {
		base += (f.groups+uint64(f.descsPerBlock())-1)/uint64(f.descsPerBlock()) + uint64(f.sb.ReservedGDTBlocks)
	}
	mark(start, min(base, f.perGroup))
	mark(bitmap, 1)
	mark(inodes, 1)
	mark(table, (uint64(f.perTable)*uint64(f.inodeSize)+uint64(f.blockSize)-1)>>f.shift)
}
