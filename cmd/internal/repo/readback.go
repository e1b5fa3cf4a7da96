package repo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"slices"

	"vmkit/formats"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// readBack reads files back from what was stored: the stored map, rebased onto the point's images, must have all their
// bytes in the repository, and they must be those of the source.
func (b *maker) readBack(ctx context.Context) error {
	share := b.Sample
	switch b.Verify {
	case "none":
		return nil
	case "full":
		share = 1
	}
	env := formats.NewEnv(0)
	var images []*formats.Image
	for n := range b.p.Disks {
		c, err := OpenDisk(ctx, b.s, b.p, n, true, env)
		if err != nil {
			return err
		}
		defer c.Close()
		// The map knows the images by the numbers and names that they had.
		c.Number, c.Name = b.m.Images[n].Number, b.m.Images[n].Name
		c.Disk = formats.Numbered(c.Disk, c.Number)
		images = append(images, c.Image)
	}
	r, stop, err := openMap(ctx, b.s, b.p, b.mapFile)
	if err != nil {
		return err
	}
	defer stop()
	v := &readBack{b: b, images: images, rand: mathrand.New(mathrand.NewChaCha8(seed())), share: share, leftOut: b.survey.leftOut}
	// The records of the files that are chosen go on to Rebase.
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		w := mapfile.NewWriter(io.Discard)
		_, err := fsmap.Rebase(ctx, mapfile.NewReader(pr), images, fsmap.Config{Problem: v.problem}, w)
		pr.CloseWithError(err)
		done <- err
	}()
	err = v.read(ctx, r, mapfile.NewWriter(pw))
	pw.CloseWithError(err)
	if e := <-done; err == nil {
		err = e
	}
	if err == nil {
		err = v.err
	}
	if err != nil {
		return fmt.Errorf("reading back what was stored: %w", err)
	}
	b.p.Disks[0].Verified = v.bytes
	return nil
}

// differs says that the repository has not what the source has.
type differs struct {
	path  string
	image int
	off   int64
}

func (d *differs) Error() string {
	return fmt.Sprintf("%s: what the repository has around byte %d of disk %d is not what the source has", d.path, d.off, d.image)
}

type readBack struct {
	b       *maker
	images  []*formats.Image
	rand    *mathrand.Rand
	share   float64
	leftOut []string
	volumes map[int]*mapfile.Volume
	names   mapfile.Names
	bytes   int64
	err     error // from Rebase
	in, out [256 << 10]byte
}

// problem is told what the rebased map lacks. What lacked before is no news.
func (v *readBack) problem(n *mapfile.Names, p *mapfile.Problem) {
	if v.err == nil && p.What == "content" && p.Image == mapfile.None {
		v.err = errors.New(n.Problem(p))
	}
}

// read goes through the map, and compares the files that are chosen.
func (v *readBack) read(ctx context.Context, r *mapfile.Reader, w *mapfile.Writer) error {
	v.volumes = map[int]*mapfile.Volume{}
	chosen := false
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		record, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch x := record.(type) {
		case *mapfile.Map:
			err = w.Map(x)
		case *mapfile.Image:
			err = w.Image(x)
		case *mapfile.Volume:
			c := *x
			v.volumes[x.ID] = &c
			err = w.Volume(x)
		case *mapfile.File:
			if chosen = x.Kind == mapfile.Regular && v.rand.Float64() < v.share && !v.isLeftOut(x); chosen {
				if err = v.compare(x.Volume, x.Path, x.Extents); err == nil {
					err = w.File(x)
				}
			}
		case *mapfile.Extents:
			if chosen {
				if err = v.compare(x.Volume, x.Path, x.Extents); err == nil {
					err = w.Extents(x)
				}
			}
		case *mapfile.End:
			end := w.Count()
			err = w.End(&end)
		}
		if err != nil {
			return err
		}
	}
}

func (v *readBack) isLeftOut(f *mapfile.File) bool {
	return len(v.leftOut) > 0 && slices.Contains(v.leftOut, v.volumes[f.Volume].Name+":"+f.Path)
}

// compare reads extents from the source and from the repository.
func (v *readBack) compare(volume int, name string, list []mapfile.Extent) error {
	for i := range list {
		x := &list[i]
		image := x.Image
		if image == mapfile.None {
			image = v.volumes[volume].Image
		}
		if x.Pack != nil {
			if err := v.compare(volume, name, x.Pack.Parts); err != nil {
				return err
			}
			continue
		}
		if x.Disk == mapfile.None || x.Kind != mapfile.Data || image < 0 || image >= len(v.images) {
			continue
		}
		for at := int64(0); at < x.Len; at += int64(len(v.in)) {
			n := min(x.Len-at, int64(len(v.in)))
			for _, side := range []struct {
				what string
				d    formats.Disk
				p    []byte
			}{{"the source", v.b.m.Images[image], v.in[:n]}, {"the repository", v.images[image], v.out[:n]}} {
				if k, err := side.d.ReadAt(side.p, x.Disk+at); int64(k) < n {
					return fmt.Errorf("%s: byte %d of disk %d in %s: %w", name, x.Disk+at+int64(k), image, side.what, err)
				}
			}
			if !bytes.Equal(v.in[:n], v.out[:n]) {
				return &differs{name, image, x.Disk + at}
			}
			v.bytes += n
		}
	}
	return nil
}
