package ext4

import (
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// dirChunk is how much of a directory is read at once: a multiple of every block size. What is no longer than a page is
// read through the cache, for small directories lie side by side.
const dirChunk = 256 << 10

// scratch is what reading an inode's content needs. It is kept for reuse.
type scratch struct {
	runs fsmap.Runs
	buf  []byte
}

func (f *fsys) scratch() *scratch {
	s, _ := f.spare.Get().(*scratch)
	if s == nil {
		s = new(scratch)
	}
	return s
}

// listing is one reading of a directory.
type listing struct {
	f     *fsys
	in    *inode
	add   func(fsmap.Entry) bool
	fast  *fastDir // what fast commits changed, or nil
	names *cipherNames
	more  bool // add wants more
	err   error
	errs  int
}

// ReadDir implements fsmap.FS.
func (f *fsys) ReadDir(n *fsmap.Node, add func(fsmap.Entry) bool) error {
	in := n.Priv.(*inode)
	l := &listing{f: f, in: in, add: add, fast: f.fast.dir(in.ino), more: true}
	if in.flags&flEncrypt != 0 {
		l.names = f.cipherNames(in)
	}
	if l.fast == nil || !l.fast.fresh {
		if in.inline() {
			l.readInline()
		} else {
			l.read()
		}
	}
	if l.fast != nil && l.more {
		l.fast.list(l)
	}
	if in.ino == inoRoot && f.opts.Metadata && l.more {
		for _, h := range f.hidden {
			if l.more = l.more && add(h); !l.more {
				break
			}
		}
	}
	if l.errs > 1 {
		return fmt.Errorf("%w (and %d more)", l.err, l.errs-1)
	}
	return l.err
}

// names gives the names of a directory, as far as they can be read: what is wrong will be told to who reads it again.
func (f *fsys) names(ino uint32, each func(fsmap.Entry)) {
	var n fsmap.Node
	n.Reset()
	if f.Node(fsmap.Entry{Ref: fsmap.Ref{ID: uint64(ino)}}, &n) != nil || n.Kind != mapfile.Directory {
		return
	}
	f.ReadDir(&n, func(e fsmap.Entry) bool {
		each(e)
		return true
	})
}

func (l *listing) what() string { return "directory " + l.in.what() }

func (l *listing) bad(err error) {
	if l.errs++; l.err == nil {
		l.err = err
	}
}

// read goes through all blocks of the directory, whether it is hashed or not: the inner nodes of the hash tree look like
// one unused entry, so a plain reader passes over them.
func (l *listing) read() {
	f := l.f
	if l.in.size > 1<<62 {
		l.bad(l.in.corrupt("size of the directory", iSizeLo, l.in.size))
		return
	}
	s := f.scratch()
	defer f.spare.Put(s)
	s.runs.Reset((l.in.size + f.blockSize - 1) &^ (f.blockSize - 1))
	if err := f.runs(l.in, &s.runs, false); err != nil {
		l.bad(err)
	}
	s.runs.Fill(mapfile.Hole)
	for i := range s.runs.List {
		switch x := &s.runs.List[i]; x.Kind {
		case mapfile.Data:
			if !l.readRun(x, s) {
				return
			}
		case mapfile.Hole, mapfile.Unwritten:
			l.bad(ondisk.Corrupt(l.what(), x.Kind.String()+" at position", -1, x.At))
		}
	}
}

// readRun gives the names in one run. It reports whether more are wanted.
func (l *listing) readRun(x *fsmap.Run, s *scratch) bool {
	bs := l.f.blockSize
	for at, step := int64(0), int64(dirChunk); at < x.Len; {
		n := min(step, x.Len-at)
		b, err := l.f.chunk(x.Off+at, n, s)
		if err != nil {
			if n > bs {
				step = bs // what lies around the trouble can be read
				continue
			}
			l.bad(fmt.Errorf("%s: %w", l.what(), err))
			at += n
			continue
		}
		for ; int64(len(b)) >= bs; b, at = b[bs:], at+bs {
			if !l.block(b[:bs], x.Off+at, x.At+at == 0) {
				return false
			}
		}
		if len(b) > 0 { // the volume ends within a block
			l.bad(ondisk.Truncated(l.what(), "block", x.Off+at, len(b)))
			at += int64(len(b))
		}
	}
	return true
}

// chunk reads a piece of a directory. It must not be written to.
func (f *fsys) chunk(off, n int64, s *scratch) ([]byte, error) {
	if n <= cachePage {
		return f.read(off, int(n))
	}
	if int64(cap(s.buf)) < n {
		s.buf = make([]byte, dirChunk)
	}
	return s.buf[:n], ondisk.ReadFull(f.r, s.buf[:n], off, "read")
}

// readInline gives the names of a directory that lies in its inode: the parent's number, entries in i_block, and more
// entries in an xattr ("Inline Directories").
func (l *listing) readInline() {
	in := l.in
	at, n, err := in.inlineRest()
	if err != nil {
		l.bad(err)
	}
	const head = iBlock + inlineDirHead
	if l.entries(in.raw[head:iBlock+iBlockLen], in.off+head) && n > 0 {
		l.entries(in.raw[at:at+n], in.off+int64(at))
	}
}

// block gives the names in one block. It reports whether more are wanted.
func (l *listing) block(b []byte, off int64, first bool) bool {
	if l.f.csum {
		l.verify(b, off, first)
	}
	return l.entries(b, off)
}

// verify checks a block's checksum: in a fake entry at the end of names, or behind the entries of a hash tree's node.
func (l *listing) verify(b []byte, off int64, first bool) {
	if l.in.flags&flIndex != 0 && l.f.has(compatDirIndex) {
		if first {
			l.verifyNode(b, off, dxRootCount)
			return
		} else if recLen(b, len(b)) == len(b) {
			l.verifyNode(b, off, dxNodeCount)
			return
		}
	}
	tail := len(b) - tailLen
	t := b[tail:]
	if le.Uint32(t) != 0 || le.Uint16(t[deRecLen:]) != tailLen || t[deNameLen] != 0 || t[deType] != tailType {
		l.bad(ondisk.Corrupt(l.what(), "no checksum at the end of the block", off, nil))
	} else if got := le.Uint32(t[tailCsum:]); got != crc32c(l.in.seed, b[:tail]) {
		l.bad(ondisk.Corrupt(l.what(), "checksum", off+int64(tail)+tailCsum, fmt.Sprintf("%#08x", got)))
	}
}

// verifyNode checks the checksum of a node of the hash tree, whose limit and count of entries stand at head.
func (l *listing) verifyNode(b []byte, off int64, head int) {
	limit, count := int(le.Uint16(b[head:])), int(le.Uint16(b[head+2:]))
	end := head + limit*dxEntryLen
	if count > limit || end+dxTailLen > len(b) {
		l.bad(ondisk.Corrupt("hash tree of "+l.what(), "entries", off+int64(head), fmt.Sprintf("%d of %d", count, limit)))
		return
	}
	var none [4]byte
	sum := crc32c(crc32c(crc32c(l.in.seed, b[:head+count*dxEntryLen]), b[end:end+4]), none[:])
	if got := le.Uint32(b[end+4:]); got != sum {
		l.bad(ondisk.Corrupt("hash tree of "+l.what(), "checksum", off+int64(end)+4, fmt.Sprintf("%#08x", got)))
	}
}

// recLen gives the length of the entry at the start of b, in a block of size bytes: one of 64 KiB needs more than its
// two bytes hold.
func recLen(b []byte, size int) int {
	n := int(le.Uint16(b[deRecLen:]))
	if size >= 1<<16 {
		if n == 0xFFFF || n == 0 {
			return size
		}
		n = n&0xFFFC | n&3<<16
	}
	return n
}

var direntKinds = [...]mapfile.FileKind{1: mapfile.Regular, 2: mapfile.Directory, 3: mapfile.Char, 4: mapfile.Block,
	5: mapfile.FIFO, 6: mapfile.Socket, 7: mapfile.Symlink}

// entries gives the names in b, a block or an inline part ("Linear (Classic) Directories"). It reports whether more are
// wanted.
func (l *listing) entries(b []byte, off int64) bool {
	kinds := l.f.hasInc(incompatFileType)
	for p := 0; p < len(b); {
		e := b[p:]
		if len(e) < deMin {
			l.bad(ondisk.Corrupt(l.what(), "entry at the block's end", off+int64(p), nil))
			break
		}
		n, rec := int(e[deNameLen]), recLen(e, len(b))
		if rec < deMin || rec&3 != 0 || rec > len(e) || deName+n > rec {
			l.bad(ondisk.Corrupt(l.what(), "length of an entry", off+int64(p)+deRecLen, rec))
			break
		}
		p += rec
		x := fsmap.Entry{Name: e[deName : deName+n], Ref: fsmap.Ref{ID: uint64(le.Uint32(e))}}
		if x.Ref.ID == 0 || n <= 2 && (string(x.Name) == "." || string(x.Name) == "..") {
			continue
		}
		if kinds && int(e[deType]) < len(direntKinds) {
			x.Kind = direntKinds[e[deType]]
		}
		if l.fast != nil && l.fast.hides(x.Name) {
			continue
		}
		if l.names != nil {
			x.Name = l.names.shown(e[:rec], n)
			if n < cipherMin {
				l.bad(ondisk.Corrupt(l.what(), "length of an encrypted name", off+int64(p-rec)+deNameLen, n))
			}
		} else if !plain(x.Name) {
			l.bad(ondisk.Corrupt(l.what(), "name", off+int64(p-rec)+deName, fmt.Sprintf("%q", x.Name)))
			if x.Name = cleaned(x.Name); x.Name == nil {
				continue
			}
		}
		if l.more = l.more && l.add(x); !l.more {
			return false
		}
	}
	return true
}

// plain reports whether a name is one that a path can hold.
func plain(name []byte) bool {
	for _, c := range name {
		if c == '/' || c == 0 {
			return false
		}
	}
	return len(name) > 0
}

// cleaned replaces what a path can't hold by dots, as e2fsck does; nil where nothing is left that is a name.
func cleaned(name []byte) []byte {
	out := make([]byte, len(name))
	for i, c := range name {
		if c == '/' || c == 0 {
			c = '.'
		}
		out[i] = c
	}
	if s := string(out); s == "" || s == "." || s == ".." {
		return nil
	}
	return out
}
