package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// tableCache bounds the grain tables that an image keeps in memory, all its extents together: 2048 of the usual ones,
// which stand for 64 GiB.
const tableCache = 4 << 20

// eagerTables is up to how many tables are held against their spares when an image is opened, so that a repair is
// noted: 32 GiB of disk, 1 ms. Beyond that they are repaired as they are used.
const eagerTables = 1024

// newGrains makes a sparse extent of size bytes. The directory, and the spare where there is one, are set by load.
func newGrains(f *formats.File, size, grain, perTable, entryLen int64, decode func([]byte) entry) *grains {
	return &grains{f: f, size: size, grain: grain, count: (size + grain - 1) / grain, perTable: perTable, entryLen: entryLen, decode: decode}
}

func (g *grains) tableCount() int64 { return (g.count + g.perTable - 1) / g.perTable }

// tableReader is the grain tables one after another, as if they lay so. A page is read at a time, and is a table.
type tableReader struct {
	g     *grains
	spare []uint32                 // the redundant directory, or nil
	pos   func(entry uint32) int64 // where the table of a directory's entry lies
}

// cacheTables lets tables be read.
func (g *grains) cacheTables(spare []uint32, pos func(uint32) int64, limit int64) *tableReader {
	r := &tableReader{g: g, spare: spare, pos: pos}
	page := g.perTable * g.entryLen
	g.tables = ondisk.NewCache(r, g.tableCount()*page, int(page), limit)
	return r
}

func (r *tableReader) ReadAt(p []byte, off int64) (int, error) {
	i := off / (r.g.perTable * r.g.entryLen)
	if _, err := r.table(p, i); err != nil {
		return 0, err
	}
	return len(p), nil
}

// table reads table number i, and tells how many of its sectors came from the spare.
func (r *tableReader) table(p []byte, i int64) (repaired int, err error) {
	// The last table need only be as long as the disk.
	need := min(r.g.perTable, r.g.count-i*r.g.perTable) * r.g.entryLen
	clear(p[need:])
	p = p[:need]
	what := fmt.Sprintf("%s: grain table %d", r.g.f.Path, i)
	err = ondisk.ReadFull(r.g.f, p, r.pos(r.g.dir[i]), what)
	if r.spare == nil || r.spare[i] == 0 || r.spare[i] == r.g.dir[i] {
		return 0, err
	}
	spare := make([]byte, need)
	if spareErr := ondisk.ReadFull(r.g.f, spare, r.pos(r.spare[i]), what); spareErr != nil {
		return 0, err
	}
	if err == nil && bytes.Equal(p, spare) {
		return 0, nil
	}
	for at := 0; at < len(p); at += sector {
		a, b := p[at:min(at+sector, len(p))], spare[at:min(at+sector, len(p))]
		if err != nil || r.damaged(a, b) {
			copy(a, b)
			repaired++
		}
	}
	return repaired, nil
}

// damaged tells whether a sector of a table is to give way to its spare: it points outside the file or is empty, and
// the spare is neither. Where both make sense the first one counts, as for QEMU.
func (r *tableReader) damaged(a, b []byte) bool {
	good, used := r.sane(b)
	if !good || !used {
		return false
	}
	good, used = r.sane(a)
	return !good || !used
}

// sane tells whether all entries of a piece of a table make sense, and whether there are any.
func (r *tableReader) sane(b []byte) (good, used bool) {
	for ; len(b) > 0; b = b[r.g.entryLen:] {
		e := r.g.decode(b)
		if e.kind == formats.Missing || e.kind == formats.Data && e.off >= r.g.f.Size {
			return false, used
		}
		used = used || e.kind != unallocated
	}
	return true, used
}

// compare reads all tables for their repairs, unless there are too many.
func (r *tableReader) compare() (repaired int) {
	if r.spare == nil || r.g.tableCount() > eagerTables {
		return 0
	}
	p := make([]byte, r.g.perTable*r.g.entryLen)
	for i := range r.g.dir {
		if r.g.dir[i] != 0 {
			n, _ := r.table(p, int64(i)) // an error comes again when the table is used
			repaired += n
		}
	}
	return repaired
}

// readDir32 reads a directory of n entries of 4 bytes. The caller has bounded n by maxTables.
func readDir32(f *formats.File, off, n int64, what string) ([]uint32, error) {
	if !ondisk.Within(off, n*4, f.Size) {
		return nil, ondisk.Truncated(what, "", off, fmt.Sprintf("%d entries", n))
	}
	dir := make([]uint32, 0, n)
	buf := make([]byte, min(n*4, 64<<10))
	for int64(len(dir)) < n {
		b := buf[:min(int64(len(buf)), 4*(n-int64(len(dir))))]
		if err := ondisk.ReadFull(f, b, off+4*int64(len(dir)), what); err != nil {
			return nil, err
		}
		for ; len(b) > 0; b = b[4:] {
			dir = append(dir, binary.LittleEndian.Uint32(b))
		}
	}
	return dir, nil
}
