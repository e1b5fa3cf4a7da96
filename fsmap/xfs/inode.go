package xfs

import (
	"encoding/binary"
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// inode is what Node keeps in Node.Priv, so that ReadDir and Runs need not read it again.
type inode struct {
	ino  uint64
	off  int64  // position in the volume
	raw  []byte // a piece of a shared page
	mode uint16
	size uint64

	format, aformat     uint8
	nextents, anextents uint64
	forkOff             int // bytes of the data fork, 0: there is no attribute fork
	realtime            bool

	buf  []byte   // scratch: a directory block, or what a remote value is gathered in
	exts []extent // scratch: the attribute fork's
	runs *runs    // scratch of Runs
}

// dataFork and attrFork give the bytes of a fork's root.
func (in *inode) dataFork(f *fsys) []byte {
	if in.forkOff > 0 {
		return in.raw[f.coreLen : f.coreLen+in.forkOff]
	}
	return in.raw[f.coreLen:]
}

func (in *inode) attrFork(f *fsys) []byte {
	if in.forkOff == 0 {
		return nil
	}
	return in.raw[f.coreLen+in.forkOff:]
}

// load reads the inode ino into in. Doubts that don't keep it from being used go to problems.
func (f *fsys) load(ino uint64, in *inode, problems *[]error) error {
	off, ok := f.inodePlace(ino)
	if !ok {
		return ondisk.Corrupt("xfs inode", "number", -1, ino)
	}
	raw, err := f.read(off, f.inodeSize, "xfs inode")
	if err != nil {
		return err
	}
	doubt := func(field string, at int64, got any) {
		if problems != nil {
			*problems = append(*problems, ondisk.Corrupt("xfs inode", field, off+at, got))
		}
	}
	*in = inode{ino: ino, off: off, raw: raw, buf: in.buf, exts: in.exts[:0], runs: in.runs}
	if m := be.Uint16(raw); m != inodeMagic {
		return ondisk.Corrupt("xfs inode", "magic", off, fmt.Sprintf("%#04x", m))
	}
	v := raw[diVersion]
	if v < 1 || v > 3 || (v == 3) != f.v5 {
		return ondisk.Corrupt("xfs inode", "version", off+diVersion, v)
	}
	if v == 3 {
		if got := binary.LittleEndian.Uint32(raw[diCRC:]); got != checksum(raw, diCRC) {
			doubt("checksum", diCRC, fmt.Sprintf("%#08x", got))
		}
		if got := be.Uint64(raw[diIno:]); got != ino {
			doubt("own number", diIno, got)
		}
		if [16]byte(raw[diUUID:]) != f.metaUUID {
			doubt("uuid", diUUID, uuidText([16]byte(raw[diUUID:])))
		}
		flags2 := be.Uint64(raw[diFlags2:])
		if flags2&flag2NRExt64 != 0 {
			in.nextents = be.Uint64(raw[diBigNExtents:])
			in.anextents = uint64(be.Uint32(raw[diNExtents:]))
		}
	}
	if v < 3 || be.Uint64(raw[diFlags2:])&flag2NRExt64 == 0 {
		in.nextents = uint64(be.Uint32(raw[diNExtents:]))
		in.anextents = uint64(be.Uint16(raw[diANExtents:]))
	}
	in.mode = be.Uint16(raw[diMode:])
	if in.mode == 0 {
		return ondisk.Corrupt("xfs inode", "mode", off+diMode, "of a free inode")
	}
	in.size = be.Uint64(raw[diSize:])
	if in.size>>63 != 0 {
		return ondisk.Corrupt("xfs inode", "size", off+diSize, in.size)
	}
	in.format, in.aformat = raw[diFormat], raw[diAFormat]
	in.realtime = be.Uint16(raw[diFlags:])&flagRealtime != 0
	in.forkOff = int(raw[diForkOff]) * 8
	if in.forkOff >= f.inodeSize-f.coreLen {
		doubt("attribute fork's position", diForkOff, in.forkOff)
		in.forkOff = 0
	}
	if p := f.patches[ino]; p != nil && p.size >= 0 {
		in.size = uint64(p.size)
	}
	return nil
}

// priv gives the inode that n stands for, reading it when Node hasn't just done so.
func (f *fsys) priv(n *fsmap.Node) (*inode, error) {
	if in, ok := n.Priv.(*inode); ok && in.ino == n.Ref.ID && in.raw != nil {
		return in, nil
	}
	in := new(inode)
	if err := f.load(n.Ref.ID, in, nil); err != nil {
		return nil, err
	}
	n.Priv = in
	return in, nil
}

var fileKinds = [16]mapfile.FileKind{0x1: mapfile.FIFO, 0x2: mapfile.Char, 0x4: mapfile.Directory, 0x6: mapfile.Block,
	0x8: mapfile.Regular, 0xa: mapfile.Symlink, 0xc: mapfile.Socket}

// Node implements fsmap.FS.
func (f *fsys) Node(e fsmap.Entry, n *fsmap.Node) error {
	in, _ := n.Priv.(*inode)
	if in == nil {
		in = new(inode)
		n.Priv = in
	}
	in.ino = 0
	n.Ref, n.Aux = e.Ref, e.Aux
	if err := f.load(e.Ref.ID, in, &n.Problems); err != nil {
		in.raw = nil
		return err
	}
	n.Inode = in.ino
	n.Kind = fileKinds[in.mode>>12]
	if n.Kind == 0 {
		return ondisk.Corrupt("xfs inode", "mode", in.off+diMode, fmt.Sprintf("%#o", in.mode))
	}
	n.Size = int64(in.size)
	raw := in.raw
	n.Mode = int64(in.mode & 0o7777)
	n.UID = int64(be.Uint32(raw[diUID:]))
	n.GID = int64(be.Uint32(raw[diGID:]))
	n.Links = int64(be.Uint32(raw[diNLink:]))
	if raw[diVersion] == 1 {
		n.Links = int64(be.Uint16(raw[diOnLink:]))
	} else {
		n.Project = uint32(be.Uint16(raw[diProjIDLo:]))
		if f.projID32 {
			n.Project |= uint32(be.Uint16(raw[diProjIDHi:])) << 16
		}
	}
	n.ATime, n.MTime, n.CTime = in.time(diATime), in.time(diMTime), in.time(diCTime)
	if f.v5 {
		n.BTime = in.time(diCRTime)
	}
	n.Attrs = appendAttrs(n.Attrs, be.Uint16(raw[diFlags:]))
	if e.Kind != 0 && e.Kind != n.Kind {
		n.Problems = append(n.Problems, ondisk.Corrupt("xfs inode", "kind other than in its directory", in.off+diMode, fmt.Sprintf("%#o", in.mode)))
	}
	switch n.Kind {
	case mapfile.Symlink:
		var err error
		if n.Target, err = f.target(in, n.Target); err != nil {
			n.Problems = append(n.Problems, err)
		}
	case mapfile.Char, mapfile.Block:
		d := be.Uint32(in.dataFork(f))
		n.Major, n.Minor = d>>18, d&0x3ffff
	}
	if !f.opts.NoXattrs {
		f.xattrs(in, n)
	}
	return nil
}

// time decodes a timestamp: seconds and nanoseconds, or, since 2020, nanoseconds since 1901.
func (in *inode) time(at int) mapfile.Time {
	if in.raw[diVersion] == 3 && be.Uint64(in.raw[diFlags2:])&flag2BigTime != 0 {
		t := be.Uint64(in.raw[at:])
		return mapfile.Time{Sec: int64(t/1e9) - bigTimeEpoch, Nsec: int32(t % 1e9), Known: true}
	}
	ns := be.Uint32(in.raw[at+4:])
	if ns >= 1e9 {
		return mapfile.Time{}
	}
	return mapfile.Time{Sec: int64(int32(be.Uint32(in.raw[at:]))), Nsec: int32(ns), Known: true}
}

// flagNames are those of di_flags that say something of the file to a reader, in the words of chattr(1) and xfs_io(8).
var flagNames = []struct {
	bit  uint16
	name string
}{{1 << 3, "immutable"}, {1 << 4, "append"}, {1 << 5, "sync"}, {1 << 6, "noatime"}, {1 << 7, "nodump"}, {1 << 0, "realtime"}}

func appendAttrs(a []string, flags uint16) []string {
	for _, x := range flagNames {
		if flags&x.bit != 0 {
			a = append(a, x.name)
		}
	}
	return a
}

// target appends the target of a symbolic link.
func (f *fsys) target(in *inode, dst []byte) ([]byte, error) {
	if in.size == 0 || in.size > maxSymlink {
		return dst, ondisk.Corrupt("xfs symlink", "length", in.off+diSize, in.size)
	}
	n := int(in.size)
	if in.format == fmtLocal {
		b := in.dataFork(f)
		if n > len(b) {
			return dst, ondisk.Corrupt("xfs symlink", "length", in.off+diSize, n)
		}
		return append(dst, b[:n]...), nil
	}
	// One header for each mapping, not for each block.
	var doubt error
	base, next := len(dst), uint64(0)
	per := uint64(f.blockSize)
	if f.v5 {
		per -= remoteHdrLen
	}
	blocks := (in.size + per - 1) / per
	err := f.extents(in, false, func(x extent) error {
		if x.lost || x.off != next || x.unwritten {
			return ondisk.Corrupt("xfs symlink", "block map", in.off, x.off)
		}
		if x.off >= blocks {
			return errStop
		}
		x.n = min(x.n, blocks-x.off)
		next += x.n
		off, ok := f.place(x.block, x.n)
		if !ok {
			return ondisk.Corrupt("xfs symlink", "block", in.off, x.block)
		}
		at := len(dst) - base
		b, err := f.read(off, int(x.n<<f.blockLog), "xfs symlink")
		if err != nil {
			return err
		}
		if f.v5 {
			if m := be.Uint32(b); m != symlinkMagic {
				return ondisk.Corrupt("xfs symlink", "magic", off, fmt.Sprintf("%#08x", m))
			}
			got := be.Uint32(b[remoteBytes:])
			doubt = first(doubt, f.identify(b, off, idRemote, in.ino, "xfs symlink"))
			if be.Uint32(b[remoteOffset:]) != uint32(at) || got > uint32(len(b)-remoteHdrLen) {
				return ondisk.Corrupt("xfs symlink", "bytes here", off+remoteBytes, got)
			}
			b = b[remoteHdrLen : remoteHdrLen+got]
		}
		dst = append(dst, b[:min(len(b), n-at)]...)
		return nil
	})
	if err == nil && len(dst)-base < n {
		err = ondisk.Truncated("xfs symlink", "length", in.off+diSize, n)
	}
	return dst, first(err, doubt)
}

func first(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
