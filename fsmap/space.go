package fsmap

import (
	"math/bits"

	"vmkit/formats"
	"vmkit/fsmap/mapfile"
	"vmkit/partition"
)

// Freer is what an FS may offer besides: to tell what nothing uses.
type Freer interface {
	// Free calls yield with stretches of the volume, in bytes, until yield returns false: those that no file and no
	// structure of the file system needs, neither in the state that is shown nor, where a journal was replayed into
	// memory, in the one that is on the volume. What can't be told is in use. An error says why that is more than it
	// would have to be.
	Free(yield func(off, n int64) bool) error
}

// Space tells of a stretch of an image's virtual disk whether a file system says that nothing uses it.
type Space func(image int, off, n int64, free bool)

// space tells what nothing uses: first all that any file system says so of, then what another volume needs of it. With
// LVM's snapshots and the like two volumes share bytes.
func (b *builder) space(list []partition.Volume, divided []bool) {
	tell := func(v *volume, off, n int64, free bool) {
		for n > 0 {
			e, _ := v.Disk.ExtentAt(off, n)
			if e.Len <= 0 {
				return
			}
			if e.Disk != formats.NoPos && e.Kind != formats.Missing && e.Kind != formats.Encrypted {
				b.c.Space(e.Image, e.Disk, e.Len, free)
			}
			off, n = off+e.Len, n-e.Len
		}
	}
	for i, v := range b.vols {
		if b.freer(i, list) == nil {
			continue
		}
		if err := b.freer(i, list).Free(func(off, n int64) bool {
			tell(v, off, n, true)
			return true
		}); err != nil {
			b.notes(v.Name, []string{"what is free is not known in full, and counts as in use: " + err.Error()})
		}
	}
	for i, v := range b.vols {
		if divided[i] {
			continue
		}
		var next int64
		if f := b.freer(i, list); f != nil {
			f.Free(func(off, n int64) bool {
				tell(v, next, off-next, false)
				next = off + n
				return true
			})
		}
		tell(v, next, v.Size-next, false)
	}
}

// freer gives the file system of a volume where its word counts: its journal is known, and nothing lies between it and
// the disk that would miss the bytes, as a RAID's parity would.
func (b *builder) freer(i int, list []partition.Volume) Freer {
	v := b.vols[i]
	f, ok := v.fs.(Freer)
	if !ok || len(v.trouble) > 0 || len(v.disks) != 1 || !plainly(i, list, 0) {
		return nil
	}
	switch v.rec.Journal {
	case "none", "clean", "replayed":
		return f
	}
	return nil
}

// plainly tells whether each byte of a volume is one of a virtual disk, or is encrypted into one.
func plainly(i int, list []partition.Volume, depth int) bool {
	v := &list[i]
	if v.Kind == partition.KindMD || depth > mapfile.MaxDepth {
		return false
	}
	for _, s := range v.Segments {
		if s.Kind != "linear" && s.Kind != "striped" && s.Kind != "crypt" {
			return false
		}
		for _, in := range s.Volumes {
			if !plainly(in, list, depth+1) {
				return false
			}
		}
	}
	return v.In < 0 || plainly(v.In, list, depth+1)
}

// Stretches joins stretches that come in order, for a Freer's yield.
type Stretches struct {
	Yield      func(off, n int64) bool
	start, end int64
	stopped    bool
}

// Add takes the next stretch, and tells whether any more are wanted.
func (s *Stretches) Add(off, n int64) bool {
	if off != s.end || s.start == s.end {
		if !s.End() {
			return false
		}
		s.start = off
	}
	s.end = off + n
	return true
}

// Zeros takes what the zeros among the first n bits of b stand for, the lowest bit of a byte first: 1<<shift bytes each,
// from off on.
func (s *Stretches) Zeros(b []byte, n, off int64, shift uint) bool {
	for i := int64(0); i < n; {
		x := ^b[i/8] >> (i % 8)
		if x == 0 {
			i += 8 - i%8
			continue
		}
		i += int64(bits.TrailingZeros8(x))
		from := i
		for i < n && b[i/8]>>(i%8)&1 == 0 {
			if i%8 == 0 && b[i/8] == 0 {
				i += 8
			} else {
				i++
			}
		}
		if i = min(i, n); from < i && !s.Add(off+from<<shift, (i-from)<<shift) {
			return false
		}
	}
	return true
}

// End gives the last stretch.
func (s *Stretches) End() bool {
	if s.start < s.end && !s.stopped {
		s.stopped = !s.Yield(s.start, s.end-s.start)
	}
	s.start, s.end = 0, 0
	return !s.stopped
}
