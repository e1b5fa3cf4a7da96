package ext4

import (
	"bytes"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// auxMeta in an Entry says that it is one of the file system's own inodes, which no directory names.
const auxMeta = 1

// inode is one inode as it was read. It is what a Node's Priv holds, and is reused.
type inode struct {
	ino   uint32
	off   int64 // of raw in the volume; -1 where a fast commit changed it
	raw   []byte
	mode  uint16
	flags uint32
	size  int64
	extra int    // bytes of fields behind the first 128 that are in use
	seed  uint32 // of the checksums of what belongs to the inode
	doubt error  // its checksum or another field is wrong
	walk  walk
	names map[string]string // of xattrs, to have each in memory once
}

func (in *inode) what() string { return fmt.Sprintf("inode %d", in.ino) }

func (in *inode) corrupt(field string, at int, got any) error {
	off := in.off
	if off >= 0 {
		off += int64(at)
	}
	return ondisk.Corrupt(in.what(), field, off, got)
}

func (in *inode) inline() bool { return in.flags&flInlineData != 0 }

// load reads an inode.
func (f *fsys) load(ino uint32, in *inode) error {
	in.ino, in.off, in.doubt = ino, -1, nil
	if ino == 0 || ino > f.inodes {
		return ondisk.Corrupt(in.what(), "number is not among those up to", -1, f.inodes)
	}
	off, err := f.inodeOff(ino)
	if err != nil {
		return fmt.Errorf("inode %d: %w", ino, err)
	}
	b := f.fast.inode(ino)
	if b == nil {
		if !ondisk.Within(off, int64(f.inodeSize), f.size) {
			return ondisk.Truncated(in.what(), "", off, nil)
		}
		if b, err = f.read(off, f.inodeSize); err != nil {
			return fmt.Errorf("inode %d: %w", ino, err)
		}
		in.off = off
	}
	in.raw = append(in.raw[:0], b...)
	f.decode(in)
	return nil
}

// decode takes from the raw inode what decides how the rest is read, and verifies its checksum.
func (f *fsys) decode(in *inode) {
	b := in.raw
	in.mode, in.flags = le.Uint16(b[iMode:]), le.Uint32(b[iFlags:])
	in.size = int64(le.Uint32(b[iSizeLo:]))
	if in.mode&modeFmt == modeReg || in.mode&modeFmt == modeDir && f.hasInc(incompatLargeDir) {
		in.size |= int64(le.Uint32(b[iSizeHi:])) << 32
	}
	in.extra = 0
	if f.inodeSize > goodOldSize {
		in.extra = int(le.Uint16(b[iExtraIsize:]))
		if in.extra&3 != 0 || in.extra > f.inodeSize-goodOldSize {
			in.doubt, in.extra = in.corrupt("extra size", iExtraIsize, in.extra), 0
		}
	}
	if !f.csum {
		return
	}
	in.seed = crc32cUint(crc32cUint(f.seed, in.ino), le.Uint32(b[iGeneration:]))
	got, mask := uint32(le.Uint16(b[iChecksumLo:])), uint32(0xFFFF)
	le.PutUint16(b[iChecksumLo:], 0)
	whole := in.extra >= iChecksumHi+2-goodOldSize
	if whole {
		got, mask = got|uint32(le.Uint16(b[iChecksumHi:]))<<16, ^uint32(0)
		le.PutUint16(b[iChecksumHi:], 0)
	}
	want := crc32c(in.seed, b) & mask
	le.PutUint16(b[iChecksumLo:], uint16(got))
	if whole {
		le.PutUint16(b[iChecksumHi:], uint16(got>>16))
	}
	if got != want && in.off >= 0 && in.doubt == nil {
		in.doubt = in.corrupt("checksum", iChecksumLo, fmt.Sprintf("%#08x", got))
	}
}

// Node implements fsmap.FS.
func (f *fsys) Node(e fsmap.Entry, n *fsmap.Node) error {
	in, _ := n.Priv.(*inode)
	if in == nil {
		in = new(inode)
		n.Priv = in
	}
	meta := e.Aux == auxMeta
	n.Ref, n.Aux, n.Inode = e.Ref, e.Aux, e.Ref.ID
	ino := uint32(e.Ref.ID)
	if !meta && f.special(ino) {
		return ondisk.Corrupt("directory entry", "number of a reserved inode", -1, ino)
	}
	if err := f.load(ino, in); err != nil {
		return err
	}
	if n.Kind = kindOf(in.mode); n.Kind == 0 {
		if !meta || in.mode != 0 {
			if zero(in.raw) {
				return ondisk.Corrupt(in.what(), "it is not in use", in.off, nil)
			}
			return in.corrupt("mode", iMode, fmt.Sprintf("%#o", in.mode))
		}
		n.Kind = mapfile.Regular
		in.size |= int64(le.Uint32(in.raw[iSizeHi:])) << 32
	}
	if in.size < 0 {
		return in.corrupt("size", iSizeHi, uint64(in.size))
	}
	if in.doubt != nil {
		n.Problems = append(n.Problems, in.doubt)
	}
	b := in.raw
	n.Size, n.Mode = in.size, int64(in.mode&0o7777)
	n.UID = int64(le.Uint16(b[iUIDLo:])) | int64(le.Uint16(b[iUIDHi:]))<<16
	n.GID = int64(le.Uint16(b[iGIDLo:])) | int64(le.Uint16(b[iGIDHi:]))<<16
	if n.Links = int64(le.Uint16(b[iLinks:])); n.Links == 0 && !meta {
		n.Problems = append(n.Problems, in.corrupt("it was deleted: links", iLinks, 0))
	}
	f.times(in, n)
	if f.hasRO(roCompatProject) && in.fits(f, iProjID+4) {
		n.Project = le.Uint32(b[iProjID:])
	}
	if in.flags&attrMask != 0 {
		for _, a := range attrNames {
			if in.flags&a.bit != 0 {
				n.Attrs = append(n.Attrs, a.name)
			}
		}
	}
	n.Encrypted = in.flags&flEncrypt != 0
	switch n.Kind {
	case mapfile.Symlink:
		if err := f.target(in, n); err != nil {
			n.Problems = append(n.Problems, err)
		}
	case mapfile.Char, mapfile.Block:
		n.Major, n.Minor = device(b)
	}
	if !f.opts.NoXattrs {
		f.xattrs(in, n)
	}
	return nil
}

// special reports whether an inode is one of the file system's own, which no directory may name.
func (f *fsys) special(ino uint32) bool {
	s := &f.sb
	if ino != inoRoot && ino < f.firstIno() && ino != 0 {
		return true
	}
	return ino != 0 && (f.hasRO(roCompatQuota) && (ino == s.UsrQuotaInum || ino == s.GrpQuotaInum || ino == s.PrjQuotaInum) ||
		f.has(compatOrphanFile) && ino == s.OrphanFileInum)
}

func (g *geometry) firstIno() uint32 {
	if g.sb.Rev == 0 {
		return firstInoOld
	}
	return g.sb.FirstIno
}

func kindOf(mode uint16) mapfile.FileKind {
	switch mode & modeFmt {
	case modeReg:
		return mapfile.Regular
	case modeDir:
		return mapfile.Directory
	case modeLink:
		return mapfile.Symlink
	case modeFIFO:
		return mapfile.FIFO
	case modeSock:
		return mapfile.Socket
	case modeChar:
		return mapfile.Char
	case modeBlock:
		return mapfile.Block
	}
	return 0
}

// fits reports whether the fields up to end are in use. An inode with room for them that never used it reads as zeros.
func (in *inode) fits(f *fsys, end int) bool {
	if in.extra == 0 && len(in.raw) > goodOldSize {
		return end <= iProjID+4
	}
	return end <= goodOldSize+in.extra
}

func (f *fsys) times(in *inode, n *fsmap.Node) {
	b := in.raw
	n.MTime, n.ATime, n.CTime = stamp(b, iMTime), stamp(b, iATime), stamp(b, iCTime)
	if in.fits(f, iCTimeExtra+4) {
		refine(&n.CTime, b, iCTimeExtra)
	}
	if in.fits(f, iMTimeExtra+4) {
		refine(&n.MTime, b, iMTimeExtra)
	}
	if in.fits(f, iATimeExtra+4) {
		refine(&n.ATime, b, iATimeExtra)
	}
	if len(b) > goodOldSize && in.fits(f, iCRTime+4) {
		n.BTime = stamp(b, iCRTime)
		if in.fits(f, iCRExtra+4) {
			refine(&n.BTime, b, iCRExtra)
		}
		n.BTime.Known = n.BTime.Sec != 0 || n.BTime.Nsec != 0 // zero: it was never set
	}
}

func stamp(b []byte, at int) mapfile.Time {
	return mapfile.Time{Sec: int64(int32(le.Uint32(b[at:]))), Known: true}
}

// refine adds two more bits of seconds, and nanoseconds ("Inode Timestamps").
func refine(t *mapfile.Time, b []byte, at int) {
	x := le.Uint32(b[at:])
	t.Sec += int64(x&3) << 32
	t.Nsec = int32(x >> 2)
}

// device decodes i_block of a device node: 8-bit numbers in its first word, or longer ones in the second.
func device(b []byte) (major, minor uint32) {
	if d := le.Uint32(b[iBlock:]); d != 0 {
		return d >> 8 & 0xFF, d & 0xFF
	}
	d := le.Uint32(b[iBlock+4:])
	return d >> 8 & 0xFFF, d&0xFF | d>>12&0xFFF00
}

// target sets the target of a symlink ("Symbolic Links").
func (f *fsys) target(in *inode, n *fsmap.Node) error {
	if in.size == 0 || in.size > f.blockSize {
		return in.corrupt("length of the symlink's target", iSizeLo, in.size)
	}
	switch {
	case in.inline():
		at, more, err := in.inlineRest()
		if err != nil {
			return err
		}
		n.Target = append(append(n.Target, in.raw[iBlock:iBlock+iBlockLen]...), in.raw[at:at+more]...)
		n.Target = n.Target[:min(int64(len(n.Target)), in.size)]
	case f.fastSymlink(in):
		n.Target = append(n.Target, in.raw[iBlock:iBlock+in.size]...)
	default:
		n.Target = append(n.Target, make([]byte, in.size)...)
		if err := f.readContent(in, n.Target); err != nil {
			n.Target = n.Target[:0]
			return fmt.Errorf("symlink: %w", err)
		}
	}
	if n.Encrypted {
		return f.cipherTarget(in, n)
	}
	if i := bytes.IndexByte(n.Target, 0); i >= 0 {
		n.Target = n.Target[:i]
	}
	if int64(len(n.Target)) < in.size {
		return in.corrupt("target shorter than the symlink's size", iSizeLo, in.size)
	}
	return nil
}

// fastSymlink reports whether the target lies in i_block: where it has no blocks but that of its xattrs.
func (f *fsys) fastSymlink(in *inode) bool {
	if f.hasInc(incompatEAInode) {
		return in.size < iBlockLen
	}
	own := uint64(0)
	if f.fileACL(in) != 0 {
		own = uint64(f.blockSize) >> 9
		if f.hasRO(roCompatBigalloc) {
			own <<= f.sb.LogClusterSize - f.sb.LogBlockSize
		}
	}
	n := uint64(le.Uint32(in.raw[iBlocksLo:]))
	if f.hasRO(roCompatHugeFile) {
		n |= uint64(le.Uint16(in.raw[iBlocksHi:])) << 32
		if in.flags&flHugeFile != 0 {
			n <<= f.shift - 9
		}
	}
	return n == own && in.size < iBlockLen
}

// fileACL gives the block of the inode's xattrs, or 0.
func (f *fsys) fileACL(in *inode) uint64 {
	n := uint64(le.Uint32(in.raw[iFileACLLo:]))
	if f.sb.CreatorOS != osHurd && f.hasInc(incompat64Bit) {
		n |= uint64(le.Uint16(in.raw[iFileACLHi:])) << 32
	}
	return n
}
