package fsmap

import (
	"context"
	"errors"
	"fmt"
	"io"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/fsmap/mapfile"
)

// Rebase copies maps from r to w, with the positions in host files taken anew from images: the same virtual disks, now
// in other containers, or ones that a map, which may have only disk positions, was made without. The guest is not read.
// Each image of a map is found among images by its size and name.
func Rebase(ctx context.Context, r *mapfile.Reader, images []*formats.Image, c Config, w *mapfile.Writer) (Summary, error) {
	b := &rebaser{images: images, c: &c, w: w}
	b.out = newRecorder(b.flush)
	for {
		if err := ctx.Err(); err != nil {
			return Summary{}, err
		}
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			return Summary{End: b.end}, nil
		}
		if err != nil {
			return Summary{}, fmt.Errorf("the map: %w", err)
		}
		if err := b.record(record); err != nil {
			return Summary{}, err
		}
	}
}

type rebaser struct {
	images []*formats.Image
	c      *Config
	w      *mapfile.Writer
	names  mapfile.Names
	out    *recorder
	end    mapfile.End

	// Of the map that is being copied: its images by id, which of ours each is, and the image of each volume.
	olds    map[int]mapfile.Image
	dev     map[int]int
	volumes map[int]int
	// had says that the file whose extents were copied last had a gap, and has that it has one still.
	had, has bool
}

// record copies one record.
func (b *rebaser) record(record any) error {
	b.names.See(record)
	switch x := record.(type) {
	case *mapfile.Map:
		b.olds, b.dev, b.volumes = map[int]mapfile.Image{}, map[int]int{}, map[int]int{}
		b.out.comp.ids = map[int]int{}
		return b.w.Map(x)
	case *mapfile.Image:
		return b.image(x)
	case *mapfile.Volume:
		b.volumes[x.ID] = x.Image
		return b.w.Volume(x)
	case *mapfile.File:
		b.use(x.Volume)
		b.had = false
		b.out.begin(x)
		b.out.rec.More = false
		b.extents(x.Extents, x.More)
	case *mapfile.Extents:
		if !b.out.open {
			b.use(x.Volume)
			b.had = false
			b.out.beginOwn(x.Volume)
		}
		b.extents(x.Extents, x.More)
	case *mapfile.Problem:
		if f := &b.out.rec; x.What == "content" && x.Path == f.Path && x.Stream == f.Stream && x.Volume == f.Volume && b.had && !b.has {
			return nil // what was missing is there now
		}
		err := b.w.Problem(x)
		b.tell(x)
		return err
	case *mapfile.End:
		b.end = b.w.Count()
		b.end.Rest = x.Rest
		return b.w.End(&b.end)
	case *mapfile.Other:
		return b.w.Other(x)
	}
	return b.flush()
}

// image finds the image that holds the disk of old now, and writes its record.
func (b *rebaser) image(old *mapfile.Image) error {
	found := -1
	for i, img := range b.images {
		if _, taken := b.out.comp.ids[img.Number]; taken || img.Size() != old.Size {
			continue
		}
		if found < 0 || img.Name == old.Name && b.images[found].Name != old.Name {
			found = i
		}
	}
	if found < 0 {
		return fmt.Errorf("image %s: none of the images that were given is a disk of %d bytes", old.Name, old.Size)
	}
	img := b.images[found]
	b.olds[old.ID], b.dev[old.ID], b.out.comp.ids[img.Number] = *old, found, old.ID
	rec := imageRecord(img)
	rec.ID, rec.Name, rec.Clone, rec.Rest = old.ID, old.Name, old.Clone, old.Rest
	b.names.See(rec)
	return b.w.Image(rec)
}

// use sets what the extents of a volume's files lie on.
func (b *rebaser) use(volume int) {
	disks := make([]formats.Disk, len(b.images))
	for i, img := range b.images {
		disks[i] = img.Disk
	}
	b.out.comp.use(b.volumes[volume], disks...)
}

// extents takes extents of a file, of which more follow or not.
func (b *rebaser) extents(list []mapfile.Extent, more bool) {
	c := &b.out.comp
	for i := range list {
		x := &list[i]
		b.had = b.had || x.Kind == mapfile.Missing || x.Kind == mapfile.Encrypted
		r := Run{At: x.At}
		if !b.place(x, c.image, &r) {
			c.push(x)
			continue
		}
		before := len(c.out)
		c.run(&r)
		// A container of its own disk, such as LUKS, has a place that its parts don't tell.
		if x.Kind == mapfile.Packed && r.Kind == mapfile.Packed && x.Disk != mapfile.None {
			for j := before; j < len(c.out); j++ {
				c.out[j].Disk, c.out[j].Image = x.Disk+c.out[j].At-x.At, x.Image
			}
		}
	}
	if b.out.open = more; more {
		return
	}
	b.out.end()
	err := c.gap()
	if b.has = err != nil; b.has && !b.had {
		f := &b.out.rec
		b.out.problem(mapfile.Problem{Image: mapfile.None, Volume: f.Volume, Path: f.Path, Stream: f.Stream, What: "content", Error: err.Error()})
	}
}

// place makes r the run of a virtual disk that x, within something on image around, is; false where x doesn't depend
// on the container.
func (b *rebaser) place(x *mapfile.Extent, around int, r *Run) bool {
	image := x.Image
	if image == mapfile.None {
		image = around
	}
	r.Len, r.Kind, r.Off, r.Dev, r.Skip, r.Bytes = x.Len, x.Kind, x.Disk, b.dev[image], x.Skip, x.Bytes
	switch x.Kind {
	case mapfile.Hole, mapfile.Unwritten, mapfile.Inline:
		return false
	case mapfile.Packed:
		if x.Disk != mapfile.None && !placed(x.Pack) {
			r.Kind = mapfile.Data // the container's own way to hold a range of the disk
			return true
		}
		r.Pack = &Pack{Spec: codec.Spec{Codec: x.Pack.Codec, Full: x.Pack.Full, Sector: x.Pack.Sector, IV: x.Pack.IV, Key: x.Pack.Key, Factors: x.Pack.Factors}}
		for i := range x.Pack.Parts {
			var part Run
			b.place(&x.Pack.Parts[i], image, &part)
			r.Pack.Parts = append(r.Pack.Parts, part)
		}
		return true
	case mapfile.Encrypted:
		// What the image itself had encrypted may be readable now; what a file system or a volume has is still not.
		if b.olds[image].Encryption == "" {
			return false
		}
	}
	if x.Disk == mapfile.None {
		if x.Kind == mapfile.Data { // in a file of the old container, at a place that nobody knows on the disk
			r.Kind = mapfile.Missing
			return true
		}
		return false
	}
	r.Kind = mapfile.Data
	return true
}

// placed tells whether any part of a pack has a place on a virtual disk.
func placed(p *mapfile.Pack) bool {
	for i := range p.Parts {
		if x := &p.Parts[i]; x.Disk != mapfile.None || x.Pack != nil && placed(x.Pack) {
			return true
		}
	}
	return false
}

// flush writes the records that were made.
func (b *rebaser) flush() error {
	o := b.out
	err := b.w.Lines(o.lines, o.count)
	for i := range o.problems {
		b.tell(&o.problems[i])
	}
	o.lines, o.count, o.problems = o.lines[:0], mapfile.End{}, o.problems[:0]
	return err
}

func (b *rebaser) tell(p *mapfile.Problem) {
	if b.c.Problem != nil {
		b.c.Problem(&b.names, p)
	}
}
