package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"vmkit/cmd/internal/repo"
	"vmkit/fsmap/mapfile"
)

// walker reads the files of a point's maps, one after another, with all of their extents.
type walker struct {
	ctx      context.Context
	s        repo.Store
	p        *point
	patterns mapfile.Patterns
	files    []repo.StoredFile // maps to come
	in       io.Closer         // of the one that is read
	r        *mapfile.Reader

	volumes map[int]*mapfile.Volume
	images  map[int]int // number of the disk by the image's id
	disks   []int       // of the map that is read, those to come
	rank    map[string]int
	ahead   any
	err     error
}

// version is a file as a point has it.
type version struct {
	mapfile.File
	volume string
	disk   int  // of the volume's image; -1 where it lies on several
	lost   bool // it has so many extents that not all are kept
}

// maxExtents bounds the extents of one file that are kept.
const maxExtents = 256 << 10

func newWalker(ctx context.Context, s repo.Store, p *point, patterns mapfile.Patterns) *walker {
	return &walker{ctx: ctx, s: s, p: p, patterns: patterns, files: mapFiles(p.Point), rank: map[string]int{}}
}

func (w *walker) close() {
	if w.in != nil {
		w.in.Close()
		w.in = nil
	}
}

// next gives the next file that the patterns select, or nil after the last one.
func (w *walker) next() (*version, error) {
	for {
		record, err := w.record()
		if err != nil || record == nil {
			return nil, err
		}
		f, ok := record.(*mapfile.File)
		if !ok {
			continue
		}
		v := &version{File: *f, disk: -1}
		if vol := w.volumes[f.Volume]; vol != nil {
			v.volume = vol.Name
			if n, ok := w.images[vol.Image]; ok {
				v.disk = n
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
				v.lost = true
			}
		}
		on, ok := w.patterns.On(v.volume)
		if ok && (w.patterns.All() || on.Match(v.Path) == mapfile.Inside) {
			return v, nil
		}
	}
}

// record gives the next record of the maps, nil after the last.
func (w *walker) record() (any, error) {
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
			w.close()
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

func (w *walker) open() error {
	f := w.files[0]
	in, err := repo.OpenMap(w.ctx, w.s, w.p.Point, f)
	if err != nil {
		return err
	}
	w.in, w.r, w.files = in, mapfile.NewReader(repo.Sift(in, w.patterns)), w.files[1:]
	w.volumes, w.images, w.disks = map[int]*mapfile.Volume{}, map[int]int{}, nil
	for n := range w.p.Disks {
		if w.p.Disks[n].Map.Name == f.Name {
			w.disks = append(w.disks, n)
		}
	}
	return nil
}

// order compares paths as maps have them: depth first, names in the order of their bytes.
func order(a, b string) int {
	for a != b {
		var x, y string
		x, a, _ = strings.Cut(a, "/")
		y, b, _ = strings.Cut(b, "/")
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
	}
	return 0
}

// placed calls yield with every stretch of the disk that a file's bytes, or what they are decoded from, lie in, until
// it returns false.
func placed(list []mapfile.Extent, disk int, images map[int]int, yield func(disk int, off, n int64) bool) bool {
	for i := range list {
		x := &list[i]
		on := disk
		if x.Image != mapfile.None {
			on = images[x.Image]
		}
		if x.Pack != nil {
			if !placed(x.Pack.Parts, on, images, yield) {
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
