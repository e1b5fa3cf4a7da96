package ext4

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// Driver is the row of the table of file systems.
var Driver = fsmap.Driver{Name: "ext", Probe: probe, Open: open}

// A page holds the inodes of 256 files or the largest block; pages are aligned like blocks of every size.
const (
	cachePage  = 64 << 10
	cacheLimit = 8 << 20
)

type fsys struct {
	*geometry
	r    io.ReaderAt // the volume, as the journal leaves it
	size int64       // of the volume, whatever the superblock says
	opts fsmap.Options
	info fsmap.Info

	cache  *ondisk.Cache // of r
	tables []int64       // where the groups' inodes lie, or -1
	free   uint64        // blocks
	// What is odd and what is wrong about group descriptors.
	groupNotes    []string
	groupProblems []error

	over   *overlay      // nil where nothing was replayed
	fast   *fastState    // nil where no fast commits were replayed
	hidden []fsmap.Entry // its own inodes, as names in the root
	spare  sync.Pool     // of *scratch
}

func open(r io.ReaderAt, size int64, o fsmap.Options) (fsmap.FS, error) {
	g, note, problem, err := primary(r, size)
	if err != nil {
		return nil, err
	}
	f := &fsys{geometry: g, size: size, opts: o}
	if note != "" {
		f.info.Notes = append(f.info.Notes, note)
	}
	if problem != nil {
		f.info.Problems = append(f.info.Problems, problem)
	}
	f.attach(r)
	if err := f.recover(); err != nil {
		return nil, err
	}
	f.info.Notes = append(f.info.Notes, f.groupNotes...)
	f.info.Problems = append(f.info.Problems, f.groupProblems...)
	f.describe()
	f.countOrphans()
	f.checkMMP()
	var root inode
	if err := f.load(inoRoot, &root); err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	if root.mode&modeFmt != modeDir {
		return nil, root.corrupt("mode of the root directory", iMode, fmt.Sprintf("%#o", root.mode))
	}
	if o.Metadata {
		f.findHidden()
	}
	return f, nil
}

// attach reads through r from now on.
func (f *fsys) attach(r io.ReaderAt) {
	f.r = r
	f.cache = ondisk.NewCache(r, f.size, cachePage, cacheLimit)
	f.loadGroups()
}

// read gives n bytes at off, which must not be written to. The caller has bounded n.
func (f *fsys) read(off int64, n int) ([]byte, error) {
	b, err := f.cache.Slice(off, n)
	if err != nil { // what else is in the page may be what can't be read
		b, err = ondisk.Read(f.r, off, int64(n), "read")
	}
	return b, err
}

// block reads a block. The caller has checked its number. It must not be written to.
func (f *fsys) block(n uint64) ([]byte, error) {
	off := int64(n << f.shift)
	if !ondisk.Within(off, f.blockSize, f.size) {
		return nil, ondisk.Truncated("ext volume", fmt.Sprintf("it ends before block %d", n), off, nil)
	}
	return f.read(off, int(f.blockSize))
}

// Info implements fsmap.FS.
func (f *fsys) Info() *fsmap.Info { return &f.info }

func (f *fsys) describe() {
	s, i := &f.sb, &f.info
	i.Type, i.UUID, i.Label = s.kind(), uuidText(s.UUID), text(s.Label[:])
	i.BlockSize, i.Size = f.blockSize, int64(f.blocks<<f.shift)
	i.Used = mapfile.None
	if f.free <= f.blocks {
		i.Used = int64((f.blocks - f.free) << f.shift)
	}
	i.Root = fsmap.Ref{ID: inoRoot}
	i.Extra = map[string]any{"inodes": f.inodes, "features": f.features()}
	if m := text(s.LastMounted[:]); m != "" {
		i.Extra["last_mounted"] = m
	}
	if s.State&stateErrors != 0 {
		i.Notes = append(i.Notes, fmt.Sprintf("it is marked as having errors (%d counted)", s.ErrorCount))
	}
	if bad := s.ROCompat &^ roCompatKnown; bad != 0 {
		i.Notes = append(i.Notes, "features that only matter for writing are not known: "+featureText(bad, roCompatNames))
	}
	if i.Size > f.size {
		i.Problems = append(i.Problems, ondisk.Truncated("ext volume", "size", -1, fmt.Sprintf("%d of %d bytes", f.size, i.Size)))
	}
}

func (f *fsys) features() []string {
	var list []string
	for _, set := range []struct {
		bits  uint32
		names []string
	}{{f.sb.Compat, compatNames}, {f.sb.Incompat, incompatNames}, {f.sb.ROCompat, roCompatNames}} {
		for b := range 32 {
			if set.bits&(1<<b) != 0 && b < len(set.names) && set.names[b] != "" {
				list = append(list, set.names[b])
			}
		}
	}
	return list
}

// checkMMP looks at the block by which hosts that share a disk tell one another that it is in use.
func (f *fsys) checkMMP() {
	if !f.hasInc(incompatMMP) {
		return
	}
	n := f.sb.MMPBlock
	off := int64(n << f.shift)
	bad := func(err error) { f.info.Problems = append(f.info.Problems, err) }
	if n <= f.first || n >= f.blocks {
		bad(ondisk.Corrupt("ext superblock", "block of multiple mount protection", f.off+0x168, n))
		return
	}
	b, err := f.block(n)
	if err != nil {
		bad(err)
		return
	}
	if le.Uint32(b) != mmpMagic {
		bad(ondisk.Corrupt("ext multiple mount protection", "magic", off, fmt.Sprintf("%#08x", le.Uint32(b))))
		return
	}
	if got := le.Uint32(b[mmpCsum:]); f.csum && got != crc32c(f.seed, b[:mmpCsum]) {
		bad(ondisk.Corrupt("ext multiple mount protection", "checksum", off+mmpCsum, fmt.Sprintf("%#08x", got)))
	}
	switch le.Uint32(b[mmpSeq:]) {
	case mmpSeqClean:
	case mmpSeqFsck:
		f.info.Notes = append(f.info.Notes, "multiple mount protection: it is being checked")
	default:
		f.info.Notes = append(f.info.Notes, "multiple mount protection: it is in use by "+text(b[mmpNode:mmpNode+mmpNodeLen]))
	}
}

// findHidden lists the file system's own inodes. They get names in the root, with as many "$" before them as it takes for
// no other name to be the same.
func (f *fsys) findHidden() {
	s := &f.sb
	for _, h := range []struct {
		name string
		ino  uint32
		on   bool
	}{
		{"bad-blocks", inoBad, true},
		{"quota.user", s.UsrQuotaInum, f.hasRO(roCompatQuota)},
		{"quota.group", s.GrpQuotaInum, f.hasRO(roCompatQuota)},
		{"quota.project", s.PrjQuotaInum, f.hasRO(roCompatQuota) && f.hasRO(roCompatProject)},
		{"boot-loader", inoBootLoader, true},
		{"resize", inoResize, true},
		{"journal", s.JournalInum, f.has(compatHasJournal)},
		{"orphans", s.OrphanFileInum, f.has(compatOrphanFile)},
	} {
		var in inode
		if !h.on || h.ino == 0 || !f.special(h.ino) || f.load(h.ino, &in) != nil || in.size == 0 && le.Uint32(in.raw[iBlocksLo:]) == 0 {
			continue
		}
		f.hidden = append(f.hidden, fsmap.Entry{Name: []byte("$" + h.name), Ref: fsmap.Ref{ID: uint64(h.ino)}, Aux: auxMeta})
	}
	taken := make(map[string]bool)
	f.names(inoRoot, func(e fsmap.Entry) {
		if e.Name[0] == '$' && e.Aux != auxMeta {
			taken[string(e.Name)] = true
		}
	})
	for i := range f.hidden {
		for taken[string(f.hidden[i].Name)] {
			f.hidden[i].Name = append([]byte("$"), f.hidden[i].Name...)
		}
	}
}

// text gives a field of text up to its first NUL.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	if !utf8.Valid(b) {
		return strings.ToValidUTF8(string(b), "\uFFFD")
	}
	return string(b)
}

func uuidText(u [16]byte) string {
	if u == [16]byte{} {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}
