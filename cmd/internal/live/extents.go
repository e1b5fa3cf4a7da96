package live

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io"

	"golang.org/x/sys/unix"

	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// maxRuns bounds the runs of one file that are kept.
const maxRuns = 4 << 20

// content finds out the attributes of a regular file or a folder, and a file's runs and hash.
func (f *FS) content(h int, readable bool, st *unix.Statx_t, n *fsmap.Node, p *file) (err error) {
	p.runs.Reset(n.Size)
	if !readable {
		h, err = reopen(h)
		if errors.Is(err, unix.ENOKEY) && n.Encrypted {
			p.runs.Fill(mapfile.Encrypted)
			return nil
		}
		if err != nil {
			return fmt.Errorf("open: %w", err)
		}
		defer unix.Close(h)
	}
	fx := make([]byte, fxSize)
	if err := Ioctl(h, reqGetXattr, fx); err == nil {
		n.Project = le.Uint32(fx[fxProject:])
		for _, a := range f.attrs {
			if le.Uint32(fx[fxFlags:])&a.bit != 0 {
				n.Attrs = append(n.Attrs, a.name)
			}
		}
	}
	if n.Kind != mapfile.Regular || n.Size == 0 {
		return nil
	}
	if le.Uint32(fx[fxFlags:])&fxRealtime != 0 {
		p.err = errors.New("it lies on the realtime device")
		return nil
	}
	sure := true
	if f.ids != nil {
		if err = syncFile(h); err == nil {
			err = f.btrfsRuns(h, st.Ino, &p.runs)
		}
	} else if err = f.fiemap(h, &p.runs); errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		sure = false
		p.runs.Reset(n.Size)
		err = f.fibmap(h, &p.runs)
	}
	if err == nil && len(p.runs.List) > maxRuns {
		err = fmt.Errorf("more than %d extents", maxRuns)
	}
	if p.err = err; err != nil || n.Encrypted {
		return nil
	}
	if f.hash && !hollow(st) || f.sampled(p.path, n.Size, sure) {
		if n.SHA256, err = sum(h, n.Size); err != nil {
			n.SHA256 = ""
			n.Problems = append(n.Problems, fmt.Errorf("hash: %w", err))
		}
	}
	return nil
}

// hollow tells whether a file is nearly all holes, which can be of any length for nothing: it gets no hash.
func hollow(st *unix.Statx_t) bool { return st.Size > 8<<30 && st.Size/16 > st.Blocks*512 }

// sampled tells whether the map is to have the hash of a file, so that it can be compared where the map is laid over an
// image: one of sampleOf, and all whose places come from FIBMAP, which tells less.
func (f *FS) sampled(path []byte, size int64, sure bool) bool {
	h := fnv.New32a()
	h.Write(path)
	return size <= sampleFile && (!sure || h.Sum32()%sampleOf == 0) && f.sample.Add(-size) >= 0
}

// sum gives the SHA-256 of an open file of size bytes.
func sum(fd int, size int64) (string, error) {
	h, buf := sha256.New(), make([]byte, min(size, 256<<10))
	for at := int64(0); at < size; {
		k, err := unix.Pread(fd, buf[:min(size-at, int64(len(buf)))], at)
		if err == nil && k == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", err
		}
		h.Write(buf[:k])
		at += int64(k)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// syncFile has the kernel place what is not yet placed.
func syncFile(fd int) error {
	b := make([]byte, fmSize)
	le.PutUint64(b[fmLength:], 1<<64-1)
	le.PutUint32(b[fmFlags:], fiemapSync)
	if err := Ioctl(fd, reqFIEMAP, b); err != nil {
		return fmt.Errorf("fiemap: %w", err)
	}
	return nil
}

// fiemap appends what the kernel says of an open file's extents.
func (f *FS) fiemap(fd int, r *fsmap.Runs) error {
	var bad error
	err := Extents(fd, r.Size(), func(x Extent) bool {
		switch {
		case x.At >= r.Size():
			return false
		case x.NoPlace:
			bad = f.carry(fd, x.At, x.Len, r)
		case x.Unwritten:
			bad = r.Unwritten(x.At, x.Len, x.Place)
		default:
			bad = r.Data(x.At, x.Len, x.Place)
		}
		return bad == nil && len(r.List) <= maxRuns
	})
	return errors.Join(err, bad)
}

// carry appends bytes that lie nowhere as they are, as the kernel reads them. All of a file's are carried, or none.
func (f *FS) carry(fd int, at, size int64, r *fsmap.Runs) error {
	size = min(size, r.Size()-at)
	carried := size
	for i := range r.List {
		if x := &r.List[i]; x.Kind == mapfile.Inline {
			carried += x.Len
		}
	}
	if carried > maxInline {
		return fmt.Errorf("more than %d of its bytes lie coded, or not yet, on the disk, and are too many to be carried in the map", maxInline)
	}
	if f.inline.Add(-size) < 0 {
		return fmt.Errorf("bytes that lie coded, or not yet, on the disk: the map already carries %d such", maxInlineAll)
	}
	b := make([]byte, size)
	for k := 0; k < len(b); {
		n, err := unix.Pread(fd, b[k:], at+int64(k))
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("read at %d: %w", at+int64(k), err)
		}
		k += n
	}
	return r.Inline(at, b)
}

// maxBlocks bounds the blocks of a file that FIBMAP is asked about, one by one.
const maxBlocks = 1 << 26

// fibmap appends where an open file's blocks lie, on a file system that has no FIEMAP. Blocks that it gives no place of
// are holes.
func (f *FS) fibmap(fd int, r *fsmap.Runs) error {
	if err := unix.SyncFileRange(fd, 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE|unix.SYNC_FILE_RANGE_WAIT_AFTER); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	b := make([]byte, 4)
	if err := Ioctl(fd, reqFIGETBSZ, b); err != nil {
		return fmt.Errorf("figetbsz: %w", err)
	}
	block := int64(le.Uint32(b))
	if block < 512 || block > 1<<20 {
		return fmt.Errorf("figetbsz: blocks of %d bytes", block)
	}
	count := (r.Size()-1)/block + 1
	if count > maxBlocks {
		return fmt.Errorf("%d blocks, which are too many to ask for one by one", count)
	}
	for i := range count {
		le.PutUint32(b, uint32(i))
		err := Ioctl(fd, reqFIBMAP, b)
		if errors.Is(err, unix.EINVAL) && i == 0 {
			return f.carry(fd, 0, r.Size(), r) // it lies in the inode, or is coded
		}
		if err != nil {
			return fmt.Errorf("fibmap of block %d: %w", i, err)
		}
		if at := int64(le.Uint32(b)); at != 0 {
			if err := r.Data(i*block, block, at*block); err != nil {
				return err
			}
		}
	}
	return nil
}
