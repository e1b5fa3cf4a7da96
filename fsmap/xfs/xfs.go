package xfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/overlay"
	"vmkit/fsmap/mapfile"
)

// Driver is the row of the table of file systems.
var Driver = fsmap.Driver{Name: "xfs", Probe: probe, Open: open}

// A page holds an inode chunk of 1 KiB inodes, or the largest block; pages are aligned like blocks of every size.
const (
	cachePage  = 64 << 10
	cacheLimit = 16 << 20
)

// errStop ends a walk early; it never leaves the package.
var errStop = errors.New("stop")

type fsys struct {
	*geometry
	r    io.ReaderAt     // the volume, with what the log would change
	disk io.ReaderAt     // the volume as it is
	size int64           // of the volume, whatever the superblock says
	over *overlay.Volume // nil where nothing was replayed
	opts fsmap.Options
	info fsmap.Info

	cache *ondisk.Cache
	// patches is what unfinished intents leave to be done, by inode.
	patches map[uint64]*patch
	intents []intent
	// patchWork counts the extents gone through for that.
	patchWork int
	// reowned are inodes whose block-map blocks still name another owner: recovery would rewrite them.
	reowned map[uint64]bool
}

func open(r io.ReaderAt, size int64, o fsmap.Options) (fsmap.FS, error) {
	g, note, problem, err := primary(r, size)
	if err != nil {
		return nil, err
	}
	f := &fsys{geometry: g, r: r, disk: r, size: size, opts: o}
	if note != "" {
		f.info.Notes = append(f.info.Notes, note)
	}
	f.doubt(problem)
	if err := f.recover(); err != nil {
		return nil, err
	}
	f.ready()
	f.describe()
	var root inode
	if err := f.load(f.sb.RootIno, &root, nil); err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	if root.mode>>12 != 0x4 {
		return nil, ondisk.Corrupt("xfs root directory", "mode", root.off+diMode, fmt.Sprintf("%#o", root.mode))
	}
	return f, nil
}

// ready prepares reading, once the log was looked at.
func (f *fsys) ready() {
	f.cache = ondisk.NewCache(f.r, f.size, cachePage, cacheLimit)
	f.finishIntents()
}

// Info implements fsmap.FS.
func (f *fsys) Info() *fsmap.Info { return &f.info }

// doubt notes a gap that concerns the whole.
func (f *fsys) doubt(err error) {
	if err != nil {
		f.info.Problems = append(f.info.Problems, err)
	}
}

func (f *fsys) describe() {
	s, i := &f.sb, &f.info
	i.Type, i.UUID, i.Label = "xfs", uuidText(s.UUID), f.label()
	i.BlockSize, i.Size = f.blockSize, int64(s.DBlocks)<<f.blockLog
	i.Used = mapfile.None
	if free := f.freeBlocks(); free <= s.DBlocks {
		i.Used = int64(s.DBlocks-free) << f.blockLog
	}
	i.Root = fsmap.Ref{ID: s.RootIno}
	i.Extra = map[string]any{"version": int(s.VersionNum & versionNumBits), "groups": int(s.AGCount), "sector_size": int(s.SectSize)}
	if s.VersionNum&versionBorg != 0 {
		i.Extra["names"] = "ascii case-insensitive"
	}
	if s.RBlocks > 0 {
		i.Extra["realtime_blocks"] = s.RBlocks
		i.Notes = append(i.Notes, fmt.Sprintf("%d blocks lie on a realtime device, which is not read", s.RBlocks))
	}
	if s.Incompat&incompatNeedsRepair != 0 {
		f.doubt(ondisk.Corrupt("xfs superblock", "needs xfs_repair: feature bit", sbIncompatOff, fmt.Sprintf("%#x", uint32(incompatNeedsRepair))))
	}
	if i.Size > f.size {
		f.doubt(ondisk.Truncated("xfs volume", "size", -1, fmt.Sprintf("%d of %d bytes", f.size, i.Size)))
	}
}

// freeBlocks counts as the kernel does at mount: a superblock's own counters may be stale after a crash, so those of
// the groups are summed where there are few.
func (f *fsys) freeBlocks() uint64 {
	const few = 1024
	if f.over == nil || f.sb.AGCount > few {
		return f.sb.FDBlocks
	}
	var n uint64
	for ag := range int64(f.sb.AGCount) {
		b, err := f.read(ag*int64(f.sb.AGBlocks)<<f.blockLog+int64(f.sb.SectSize), agfLen, "xfs agf")
		if err != nil || be.Uint32(b) != agfMagic {
			return f.sb.FDBlocks
		}
		n += uint64(be.Uint32(b[agfFreeBlks:])) + uint64(be.Uint32(b[agfFLCount:])) + uint64(be.Uint32(b[agfBTreeBlks:]))
	}
	return n
}

// read gives n bytes of metadata at off, which must not be written to. The caller has bounded n.
func (f *fsys) read(off int64, n int, what string) ([]byte, error) {
	if !ondisk.Within(off, int64(n), f.size) {
		return nil, ondisk.Truncated(what, "volume ends before", off, nil)
	}
	b, err := f.cache.Slice(off, n)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return b, nil
}

// identify checks what a metadata block says of itself: checksum, place, file system, owner. The result is a doubt, not
// a refusal. The log doesn't keep checksums, so a block that it changed needs none.
func (f *fsys) identify(b []byte, off int64, id identity, owner uint64, what string) error {
	if got := binary.LittleEndian.Uint32(b[id.crc:]); got != checksum(b, id.crc) && !f.over.Touches(off, int64(len(b))) {
		return ondisk.Corrupt(what, "checksum", off+int64(id.crc), fmt.Sprintf("%#08x", got))
	}
	return f.identityOf(b, off, id, owner, what)
}

func (f *fsys) identityOf(b []byte, off int64, id identity, owner uint64, what string) error {
	if got := be.Uint64(b[id.blkno:]); got != uint64(off)/512 {
		return ondisk.Corrupt(what, "own sector", off+int64(id.blkno), got)
	}
	if u := [16]byte(b[id.uuid:]); u != f.metaUUID {
		return ondisk.Corrupt(what, "uuid", off+int64(id.uuid), uuidText(u))
	}
	if got := be.Uint64(b[id.owner:]); got != owner {
		return ondisk.Corrupt(what, "owner", off+int64(id.owner), got)
	}
	return nil
}
