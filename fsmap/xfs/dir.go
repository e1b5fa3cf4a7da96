package xfs

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// dirKinds are the file types of directory entries (xfs_da_format.h: XFS_DIR3_FT_*). A whiteout is a character device.
var dirKinds = [...]mapfile.FileKind{0, mapfile.Regular, mapfile.Directory, mapfile.Char, mapfile.Block, mapfile.FIFO,
	mapfile.Socket, mapfile.Symlink, mapfile.Char}

// maxBadDirBlocks is how many unreadable blocks of one directory are stepped over.
const maxBadDirBlocks = 64

// ReadDir implements fsmap.FS. The data blocks hold every entry in every form of a directory; the leaf, node and free
// blocks behind them only index it.
func (f *fsys) ReadDir(n *fsmap.Node, add func(fsmap.Entry) bool) error {
	in, err := f.priv(n)
	if err != nil {
		return err
	}
	if in.mode>>12 != 0x4 {
		return ondisk.Corrupt("xfs directory", "mode", in.off+diMode, fmt.Sprintf("%#o", in.mode))
	}
	d := dirWalk{f: f, in: in, add: add}
	if in.format == fmtLocal {
		d.short(in.dataFork(f), in.off+int64(f.coreLen))
	} else {
		d.blocks()
	}
	if f.opts.Metadata && in.ino == f.sb.RootIno && !d.stopped {
		f.metadata(add)
	}
	return d.err
}

// metadata gives the file system's own inodes names that say what they are.
func (f *fsys) metadata(add func(fsmap.Entry) bool) {
	s := &f.sb
	group, project := s.GQuotIno, s.PQuotIno
	const projectQuota = 0x0008 // XFS_PQUOTA_ACCT: version 4 has one inode for the quota of groups or projects
	if !f.v5 && s.QFlags&projectQuota != 0 {
		group, project = nullIno, group
	}
	if s.VersionNum&versionQuota == 0 {
		group, project = nullIno, nullIno
	}
	for _, x := range []struct {
		name string
		ino  uint64
		on   bool
	}{
		{"$quota_user", s.UQuotIno, s.VersionNum&versionQuota != 0},
		{"$quota_group", group, true},
		{"$quota_project", project, true},
		{"$realtime_bitmap", s.RBmIno, true},
		{"$realtime_summary", s.RSumIno, true},
	} {
		if _, ok := f.inodePlace(x.ino); !ok || x.ino == 0 || !x.on {
			continue
		}
		if !add(fsmap.Entry{Name: []byte(x.name), Ref: fsmap.Ref{ID: x.ino}, Kind: mapfile.Regular}) {
			return
		}
	}
}

type dirWalk struct {
	f       *fsys
	in      *inode
	add     func(fsmap.Entry) bool
	err     error
	bad     int
	stopped bool

	// A directory block in several pieces is gathered in in.buf.
	want    uint64 // the file-system block that comes next; a multiple of the directory block between two
	start   int64  // position of the first piece
	touched bool   // by the log
}

// fail notes the first error; names may be lacking.
func (d *dirWalk) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// entry passes on one name. It reports whether to go on.
func (d *dirWalk) entry(name []byte, ino uint64, ftype int, at int64) bool {
	if len(name) == 1 && name[0] == '.' || len(name) == 2 && name[0] == '.' && name[1] == '.' {
		return true
	}
	if bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0 {
		d.fail(ondisk.Corrupt("xfs directory", "name", at, fmt.Sprintf("%q", name)))
		return true
	}
	e := fsmap.Entry{Name: name, Ref: fsmap.Ref{ID: ino}}
	if ftype >= 0 && ftype < len(dirKinds) {
		e.Kind = dirKinds[ftype]
	}
	d.stopped = !d.add(e)
	return !d.stopped
}

// short reads a directory that lies in its inode (struct xfs_dir2_sf_hdr).
func (d *dirWalk) short(b []byte, at int64) {
	f := d.f
	if d.in.size > uint64(len(b)) || len(b) < 6 {
		d.fail(ondisk.Corrupt("xfs directory", "size in the inode", d.in.off+diSize, d.in.size))
		return
	}
	b = b[:d.in.size]
	if len(b) < 6 {
		d.fail(ondisk.Corrupt("xfs directory", "size in the inode", d.in.off+diSize, d.in.size))
		return
	}
	count, width := int(b[0]), 4
	if b[1] > 0 {
		width = 8
	}
	pos := 2 + width
	typed := 0
	if f.ftype {
		typed = 1
	}
	for range count {
		if pos+3 > len(b) || pos+3+int(b[pos])+typed+width > len(b) || b[pos] == 0 {
			d.fail(ondisk.Corrupt("xfs directory", "entry in the inode", at+int64(pos), count))
			return
		}
		name := b[pos+3:][:b[pos]:b[pos]]
		rest, ftype := b[pos+3+len(name):], -1
		if typed > 0 {
			ftype = int(rest[0])
		}
		var ino uint64
		if width == 8 {
			ino = be.Uint64(rest[typed:]) & (1<<56 - 1)
		} else {
			ino = uint64(be.Uint32(rest[typed:]))
		}
		if !d.entry(name, ino, ftype, at+int64(pos)) {
			return
		}
		pos += 3 + len(name) + typed + width
	}
}

// step notes an unreadable block and gives the error back when there have been too many.
func (d *dirWalk) step(err error) error {
	d.fail(err)
	if d.bad++; d.bad > maxBadDirBlocks {
		return err
	}
	return nil
}

// blocks reads the data blocks of a directory.
func (d *dirWalk) blocks() {
	f, in := d.f, d.in
	per := uint64(f.dirSize) >> f.blockLog // file-system blocks in a directory block
	end := min(in.size, dirSpace) >> f.blockLog
	var seen uint64
	err := f.extents(in, false, func(x extent) error {
		if x.off >= end {
			return errStop
		}
		x.n = min(x.n, end-x.off)
		if x.lost {
			return d.step(ondisk.Corrupt("xfs directory", "blocks that can't be found", in.off, fmt.Sprintf("%d+%d", x.off, x.n)))
		}
		if seen += x.n; seen > f.sb.DBlocks {
			return ondisk.Corrupt("xfs directory", "blocks, more than the volume has", in.off, seen)
		}
		for x.n > 0 {
			n := min(x.n, per-x.off%per)
			off, _ := f.place(x.block, n)
			if err := d.piece(x.off, off, n, per); err != nil {
				return err
			}
			x.off, x.block, x.n = x.off+n, x.block+n, x.n-n
		}
		return nil
	})
	if err == nil && !d.stopped && d.want%per != 0 {
		err = ondisk.Corrupt("xfs directory", "block that ends early, at", in.off, d.want)
	}
	if err != nil {
		d.fail(err)
	}
}

// piece takes n blocks of the directory's file that lie at off: a whole directory block of per blocks, or a part.
func (d *dirWalk) piece(at uint64, off int64, n, per uint64) error {
	f := d.f
	b, err := f.read(off, int(n<<f.blockLog), "xfs directory")
	if err != nil {
		return d.step(err)
	}
	if d.want%per != 0 && d.want != at {
		err := d.step(ondisk.Corrupt("xfs directory", "block that ends early, at", d.in.off, d.want))
		if d.want = 0; err != nil {
			return err
		}
	}
	touched := f.over.Touches(off, int64(len(b)))
	if n == per {
		return d.data(b, off, touched)
	}
	if at%per == 0 {
		d.want, d.start, d.touched = at, off, false
		if len(d.in.buf) < f.dirSize {
			d.in.buf = make([]byte, f.dirSize)
		}
	} else if d.want != at {
		return d.step(ondisk.Corrupt("xfs directory", "block without its beginning, at", d.in.off, at))
	}
	copy(d.in.buf[at%per<<f.blockLog:], b)
	d.want += n
	d.touched = d.touched || touched
	if d.want%per == 0 {
		return d.data(d.in.buf[:f.dirSize], d.start, d.touched)
	}
	return nil
}

// data reads one directory block, which starts at off.
func (d *dirWalk) data(b []byte, off int64, touched bool) error {
	f := d.f
	hdr, end := dirDataLen, len(b)
	switch m := be.Uint32(b); {
	case !f.v5 && m == dirDataMagic, f.v5 && m == dir3DataMagic:
	case !f.v5 && m == dirBlockMagic, f.v5 && m == dir3BlockMagic:
		// The leaf entries lie at the end, behind them their number (struct xfs_dir2_block_tail).
		leaves := uint64(be.Uint32(b[end-dirTailLen:])) * dirLeafEntryLen
		if leaves > uint64(end-dirTailLen-dir3DataLen) {
			return d.step(ondisk.Corrupt("xfs directory", "leaf entries", off+int64(end-dirTailLen), leaves/dirLeafEntryLen))
		}
		end -= dirTailLen + int(leaves)
	default:
		return d.step(ondisk.Corrupt("xfs directory", "magic", off, fmt.Sprintf("%#08x", m)))
	}
	if f.v5 {
		hdr = dir3DataLen
		if got := binary.LittleEndian.Uint32(b[idDir.crc:]); got != checksum(b, idDir.crc) && !touched {
			d.fail(ondisk.Corrupt("xfs directory", "checksum", off+int64(idDir.crc), fmt.Sprintf("%#08x", got)))
		}
		if err := f.identityOf(b, off, idDir, d.in.ino, "xfs directory"); err != nil {
			d.fail(err)
		}
	}
	typed := 0
	if f.ftype {
		typed = 1
	}
	for pos := hdr; pos < end; {
		bad := func(field string, got any) error {
			return d.step(ondisk.Corrupt("xfs directory", field, off+int64(pos), got))
		}
		if end-pos < 8 {
			return bad("entry", "cut")
		}
		if be.Uint16(b[pos:]) == dirFreeTag {
			n := int(be.Uint16(b[pos+2:]))
			if n < 8 || n%8 != 0 || n > end-pos {
				return bad("free space", n)
			}
			pos += n
			continue
		}
		if end-pos < 16 {
			return bad("entry", "cut")
		}
		name := int(b[pos+8])
		n := (8 + 1 + name + typed + 2 + 7) &^ 7
		if name == 0 || n > end-pos {
			return bad("length of a name", name)
		}
		if tag := int(be.Uint16(b[pos+n-2:])); tag != pos {
			return bad("tag of an entry", tag)
		}
		ftype := -1
		if typed > 0 {
			ftype = int(b[pos+9+name])
		}
		if !d.entry(b[pos+9:][:name:name], be.Uint64(b[pos:]), ftype, off+int64(pos)) {
			return errStop
		}
		pos += n
	}
	return nil
}
