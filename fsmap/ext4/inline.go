package ext4

import (
	"fmt"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// inlineRest gives where in the raw inode the rest of inline data lies, behind the 60 bytes of i_block: the value of the
// xattr system.data ("Inline Data").
func (in *inode) inlineRest() (at, n int, err error) {
	it := in.ibody()
	for it.next() {
		if it.index != xaIndexSys || string(it.name) != "data" {
			continue
		}
		if it.inum != 0 {
			return 0, 0, in.corrupt("inline data in inode", it.pos, it.inum)
		}
		v, err := it.value()
		return len(in.raw) - len(it.b) + it.from, len(v), err
	}
	return 0, 0, it.err
}

// inlineRuns says where the content of a file with inline data lies: in its inode.
func (f *fsys) inlineRuns(in *inode, r *fsmap.Runs) error {
	rest, n, err := in.inlineRest()
	at := min(r.Size(), iBlockLen)
	f.placeInInode(in, r, 0, iBlock, at)
	if more := min(r.Size()-at, int64(n)); more > 0 {
		f.placeInInode(in, r, at, rest, more)
		at += more
	}
	if err == nil && at < r.Size() {
		err = in.corrupt("size of inline data", iSizeLo, r.Size())
	}
	return err
}

// placeInInode appends n bytes from a position in the inode, where they lie in the volume.
func (f *fsys) placeInInode(in *inode, r *fsmap.Runs, at int64, from int, n int64) {
	switch {
	case n == 0:
	case in.off < 0: // put together by a fast commit
		r.Inline(at, append([]byte(nil), in.raw[from:from+int(n)]...))
	case f.over == nil:
		r.Data(at, n, in.off+int64(from))
	default:
		f.over.place(at, n, in.off+int64(from), func(x fsmap.Run) { r.Append(x) })
	}
}

// readContent fills p with what the inode's content begins with.
func (f *fsys) readContent(in *inode, p []byte) error {
	s := f.scratch()
	defer f.spare.Put(s)
	s.runs.Reset(int64(len(p)))
	if err := f.runs(in, &s.runs, false); err != nil {
		return err
	}
	s.runs.Fill(mapfile.Hole)
	for i := range s.runs.List {
		x := &s.runs.List[i]
		b := p[x.At : x.At+x.Len]
		if x.Kind != mapfile.Data {
			clear(b)
			continue
		}
		if err := ondisk.ReadFull(f.r, b, x.Off, in.what()); err != nil {
			return fmt.Errorf("content: %w", err)
		}
	}
	return nil
}
