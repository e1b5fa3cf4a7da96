package fsmap

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/fsmap/mapfile"
	"vmkit/partition"
)

// Rebase copies maps from r to w, with the positions in host files taken anew from images: the same virtual disks, now
// in other containers, or ones that a map, which may have only disk positions, was made without. The guest is not read.
//
// Each image of a map is found among images by its size, its identity where the map tells that, and its name. Of the
// files whose hash the map has, a sample is read and compared: one that differs is a problem, and where all do, the
// images are not the map's.
func Rebase(ctx context.Context, r *mapfile.Reader, images []*formats.Image, c Config, w *mapfile.Writer) (Summary, error) {
	b := &rebaser{images: images, c: &c, w: w}
	b.out = newRecorder(b.flush)
	for _, img := range images {
		b.disks = append(b.disks, img.Disk)
	}
	b.check.reader = newReader(b.disks, c.Partition.Env)
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
	disks  []formats.Disk
	idents []*mapfile.Identity // of images; nil before they are asked for
	c      *Config
	w      *mapfile.Writer
	names  mapfile.Names
	out    *recorder
	end    mapfile.End
	check  checker
	inline int64 // bytes that changes have put into the map

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
		b.check.begin(x)
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
		if b.check.bad > 0 && b.check.good == 0 {
			return fmt.Errorf("the map is not of these images: none of the %d files that were compared has the bytes that the guest read", b.check.bad)
		}
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
	if old.Identity != nil && b.idents == nil {
		vols, err := partition.Scan(b.images, b.c.Partition)
		if err != nil {
			return err
		}
		for _, img := range b.images {
			b.idents = append(b.idents, identity(img, vols))
		}
	}
	found, other := -1, ""
	for i, img := range b.images {
		if _, taken := b.out.comp.ids[img.Number]; taken || img.Size() != old.Size {
			continue
		}
		if old.Identity != nil {
			if why := differs(old.Identity, b.idents[i]); why != "" {
				other = fmt.Sprintf("%s is another disk: %s", img.Name, why)
				continue
			}
		}
		if found < 0 || img.Name == old.Name && b.images[found].Name != old.Name {
			found = i
		}
	}
	if found < 0 && other != "" {
		return fmt.Errorf("image %s: %s", old.Name, other)
	}
	if found < 0 {
		return fmt.Errorf("image %s: none of the images that were given is a disk of %d bytes", old.Name, old.Size)
	}
	img := b.images[found]
	b.olds[old.ID], b.dev[old.ID], b.out.comp.ids[img.Number] = *old, found, old.ID
	rec := imageRecord(img)
	rec.ID, rec.Name, rec.Clone, rec.Rest = old.ID, old.Name, old.Clone, old.Rest
	if rec.Clone == nil {
		rec.Clone = b.c.Clone
	}
	b.names.See(rec)
	return b.w.Image(rec)
}

// use sets what the extents of a volume's files lie on.
func (b *rebaser) use(volume int) {
	b.out.comp.use(b.volumes[volume], b.disks...)
}

// extents takes extents of a file, of which more follow or not.
func (b *rebaser) extents(list []mapfile.Extent, more bool) {
	c := &b.out.comp
	for i := range list {
		x := &list[i]
		b.had = b.had || x.Kind == mapfile.Missing || x.Kind == mapfile.Encrypted
		var r Run
		if !b.place(x, c.image, &r) {
			b.check.take(&r)
			c.push(x)
			continue
		}
		before := len(c.out)
		b.run(&r)
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
	if err == nil {
		if e := b.check.end(); e != nil {
			f := &b.out.rec
			b.out.problem(mapfile.Problem{Image: mapfile.None, Volume: f.Volume, Path: f.Path, What: "content", Error: e.Error()})
		}
	}
	if b.has = err != nil; b.has && (!b.had || errors.Is(err, errChanged)) {
		f := &b.out.rec
		b.out.problem(mapfile.Problem{Image: mapfile.None, Volume: f.Volume, Path: f.Path, Stream: f.Stream, What: "content", Error: err.Error()})
	}
}

// maxChanged bounds the bytes that changes put into a map: logs hold metadata, and few bytes of files.
const maxChanged = 64 << 20

// run adds a run of virtual disks, with what Config.Changes has of it in its stead.
func (b *rebaser) run(r *Run) {
	c := &b.out.comp
	lose := func(r Run) {
		c.err = cmp.Or(c.err, errChanged)
		r.Kind, r.Pack = mapfile.Missing, nil
		b.check.take(&r)
		c.run(&r)
	}
	if b.c.Changes != nil {
		if r.Kind == mapfile.Packed && b.changed(r.Pack) {
			lose(*r)
			return
		}
		for r.Kind == mapfile.Data && r.Len > 0 {
			at, bytes := b.c.Changes(b.images[r.Dev], r.Off, r.Len)
			if bytes == nil {
				break
			}
			piece := *r
			if piece.Len = at - r.Off; piece.Len > 0 {
				b.check.take(&piece)
				c.run(&piece)
			}
			piece = Run{At: r.At + piece.Len, Len: int64(len(bytes)), Kind: mapfile.Inline, Bytes: bytes}
			r.Len -= piece.At + piece.Len - r.At
			r.At, r.Off = piece.At+piece.Len, at+piece.Len
			if b.inline += piece.Len; b.inline > maxChanged {
				lose(piece)
				continue
			}
			b.check.take(&piece)
			c.run(&piece)
		}
		if r.Len == 0 {
			return
		}
	}
	b.check.take(r)
	c.run(r)
}

var errChanged = errors.New("the image has other bytes there than the guest saw after it had replayed its logs")

// changed tells whether any part of a pack is another than in the image.
func (b *rebaser) changed(p *Pack) bool {
	for i := range p.Parts {
		x := &p.Parts[i]
		if x.Pack != nil && b.changed(x.Pack) {
			return true
		}
		if x.Kind == mapfile.Data {
			if _, bytes := b.c.Changes(b.images[x.Dev], x.Off, x.Len); bytes != nil {
				return true
			}
		}
	}
	return false
}

// checker compares a sample of files with the hashes that the map has.
type checker struct {
	reader    *reader
	want      string // hash of the file that is being read, or "" where it isn't compared
	good, bad int
	bytes     int64
}

// Limits of the sample.
const (
	maxCheckFile = 1 << 20
	maxCheck     = 64 << 20
)

func (k *checker) begin(f *mapfile.File) {
	if k.want = f.SHA256; f.Size > maxCheckFile || k.bytes+f.Size > maxCheck {
		k.want = ""
	}
	if k.want != "" {
		k.bytes += f.Size
		k.reader.begin(f.Size)
	}
}

// take takes a run of the file.
func (k *checker) take(r *Run) {
	if k.want != "" {
		k.reader.take([]Run{*r})
	}
}

// end says how the file differs. One that can't be read is told of where that is found out.
func (k *checker) end() error {
	want := k.want
	if k.want = ""; want == "" {
		return nil
	}
	got, err := k.reader.end()
	switch {
	case got == "" || err != nil:
	case got == want:
		k.good++
	default:
		k.bad++
		return fmt.Errorf("its bytes are not those that the guest read: sha256 %s, the map has %s", got, want)
	}
	return nil
}

// place makes r the run of a virtual disk that x, within something on image around, is; false where x doesn't depend
// on the container.
func (b *rebaser) place(x *mapfile.Extent, around int, r *Run) bool {
	image := x.Image
	if image == mapfile.None {
		image = around
	}
	r.At, r.Len, r.Kind, r.Off, r.Dev, r.Skip, r.Bytes = x.At, x.Len, x.Kind, x.Disk, b.dev[image], x.Skip, x.Bytes
	switch x.Kind {
	case mapfile.Hole, mapfile.Unwritten, mapfile.Inline:
		return false
	case mapfile.Packed:
		if x.Disk != mapfile.None && !placed(x.Pack) {
			r.Kind = mapfile.Data // the container's own way to hold a range of the disk
			return true
		}
		r.Pack = &Pack{Spec: codec.Spec{Codec: x.Pack.Codec, Full: x.Pack.Full, Sector: x.Pack.Sector, IV: x.Pack.IV, Key: x.Pack.Key, Factors: x.Pack.Factors, Pad: x.Pack.Pad}}
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
