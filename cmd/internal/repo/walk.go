package repo

import (
	"context"
	"errors"
	"fmt"
	"io"

	"vmkit/fsmap/mapfile"
)

// Walker reads the files of a point's maps, one after another, with all of their extents.
type Walker struct {
	ctx      context.Context
	s        Store
	p        *Point
	patterns mapfile.Patterns
	files    []StoredFile // maps to come
	in       io.Closer    // of the one that is read
	r        *mapfile.Reader

	volumes map[int]*mapfile.Volume
	images  map[int]int    // number of the disk by the image's id
	disks   []int          // of the map that is read, those to come
	rank    map[string]int // of volumes
	ahead   any
	err     error
}

// Version is a file as a point has it, with all of its extents.
type Version struct {
	mapfile.File
	In   string // the volume's name
	Disk int    // number of the disk that the volume is on; -1 where it lies on several
	Cut  bool   // it has so many extents that not all are kept

	images map[int]int
}

// maxExtents bounds the extents of one file that are kept.
const maxExtents = 256 << 10

// NewWalker makes a Walker of the files that patterns select. The caller closes it.
func NewWalker(ctx context.Context, s Store, p *Point, patterns mapfile.Patterns) *Walker {
	return &Walker{ctx: ctx, s: s, p: p, patterns: patterns, files: p.Maps(), rank: map[string]int{}}
}

// Close closes the map that is being read.
func (w *Walker) Close() {
	if w.in != nil {
		w.in.Close()
		w.in = nil
	}
}

// Next gives the next file that the patterns select, or nil after the last one.
func (w *Walker) Next() (*Version, error) {
	for {
		record, err := w.record()
		if err != nil || record == nil {
			return nil, err
		}
		f, ok := record.(*mapfile.File)
		if !ok {
			continue
		}
		v := &Version{File: *f, Disk: -1, images: w.images}
		if vol := w.volumes[f.Volume]; vol != nil {
			v.In = vol.Name
			if n, ok := w.images[vol.Image]; ok {
				v.Disk = n
			}
		}
		v.Extents = append([]mapfile.Extent(nil), f.Extents...)
		for more := f.More; more; {
			record, err := w.record()
			if err != nil {
				return nil, err
			}
			x, ok := record.(*mapfile.Extents)
			if !ok {
				return nil, fmt.Errorf("point %s of %s: %s: its extents are missing from the map", w.p.Name, w.p.Machine, f.Path)
			}
			if more = x.More; len(v.Extents) < maxExtents {
				v.Extents = append(v.Extents, x.Extents...)
			} else {
				v.Cut = true
			}
		}
		on, ok := w.patterns.On(v.In)
		if ok && (w.patterns.All() || on.Match(v.Path) == mapfile.Inside) {
			return v, nil
		}
	}
}

// record gives the next record of the maps, nil after the last.
func (w *Walker) record() (any, error) {
	for {
		if err := w.ctx.Err(); err != nil {
			return nil, err
		}
		if w.r == nil {
			if len(w.files) == 0 {
				return nil, nil
			}
			if err := w.open(); err != nil {
				return nil, err
			}
		}
		record, err := w.r.Next()
		if errors.Is(err, io.EOF) {
			w.Close()
			w.r = nil
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("point %s of %s: the map: %w", w.p.Name, w.p.Machine, err)
		}
		switch x := record.(type) {
		case *mapfile.Image:
			if len(w.disks) > 0 {
				w.images[x.ID], w.disks = w.disks[0], w.disks[1:]
			}
		case *mapfile.Volume:
			w.volumes[x.ID] = x
			if _, ok := w.rank[x.Name]; !ok {
				w.rank[x.Name] = len(w.rank)
			}
		}
		return record, nil
	}
}

func (w *Walker) open() error {
	f := w.files[0]
	in, err := OpenMap(w.ctx, w.s, w.p, f)
	if err != nil {
		return err
	}
	w.in, w.r, w.files = in, mapfile.NewReader(Sift(in, w.patterns)), w.files[1:]
	w.volumes, w.images, w.disks = map[int]*mapfile.Volume{}, map[int]int{}, nil
	for n := range w.p.Disks {
		if w.p.Disks[n].Map.Name == f.Name {
			w.disks = append(w.disks, n)
		}
	}
	return nil
}

// Rank gives a volume's place among those that were read of: maps have their files in this order.
func (w *Walker) Rank(volume string) (int, bool) {
	n, ok := w.rank[volume]
	return n, ok
}

// Places calls yield with every stretch of a disk that the file's bytes, or what they are decoded from, lie in, until it
// returns false; then it gives false.
func (v *Version) Places(yield func(disk int, off, n int64) bool) bool {
	return v.places(v.Extents, v.Disk, yield)
}

func (v *Version) places(list []mapfile.Extent, disk int, yield func(disk int, off, n int64) bool) bool {
	for i := range list {
		x := &list[i]
		on := disk
		if x.Image != mapfile.None {
			on = v.images[x.Image]
		}
		if x.Pack != nil {
			if !v.places(x.Pack.Parts, on, yield) {
				return false
			}
			continue
		}
		if x.Disk != mapfile.None && on >= 0 && x.Kind != mapfile.Unwritten && !yield(on, x.Disk, x.Len) {
			return false
		}
	}
	return true
}
