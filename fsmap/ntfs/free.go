package ntfs

import (
	"errors"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
)

// Free implements fsmap.Freer by $Bitmap.
func (f *fs) Free(yield func(off, n int64) bool) error {
	if f.doubtful != "" {
		return errors.New(f.doubtful)
	}
	ino := f.newInode()
	if err := f.load(ino, recBitmapRec, 0); err != nil {
		return err
	}
	s, err := f.open(ino, atData, "")
	if err != nil {
		return err
	}
	if s.size < (f.clusters+7)/8 {
		return ondisk.Corrupt("ntfs $Bitmap", "size", -1, s.size)
	}
	free := fsmap.Stretches{Yield: yield}
	shift := uint(0)
	for 1<<shift < f.cluster {
		shift++
	}
	const piece = 256 << 10
	used, before := make([]byte, piece), make([]byte, piece)
	for at := int64(0); at < f.clusters; at += 8 * piece {
		n := min(8*piece, f.clusters-at)
		b := used[:(n+7)/8]
		if _, err := s.ReadAt(b, at/8); err != nil {
			return err
		}
		// Where the log was replayed, what is in use without that counts too.
		if f.disk != nil {
			if err := f.readBefore(s, before[:len(b)], at/8); err != nil {
				return err
			}
			for i, c := range before[:len(b)] {
				b[i] |= c
			}
		}
		if !free.Zeros(b, n, at<<shift, shift) {
			return nil
		}
	}
	free.End()
	return nil
}

// readBefore reads of a stream what the volume has where the replayed state has it.
func (f *fs) readBefore(s *stream, p []byte, off int64) error {
	for len(p) > 0 {
		pos, run, ok := s.at(off)
		if !ok || run <= 0 {
			return ondisk.Corrupt("ntfs $Bitmap", "hole", -1, off)
		}
		n := min(int64(len(p)), run)
		if err := ondisk.ReadFull(f.disk, p[:n], pos, "ntfs $Bitmap"); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}
