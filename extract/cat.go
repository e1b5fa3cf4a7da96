package extract

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"

	"vmkit/fsmap/mapfile"
)

// Cat writes the content of the chosen regular files to w, one after another. It stops at the first byte that can't be
// had: what would follow could be taken for what is lost.
func Cat(ctx context.Context, in *mapfile.Reader, w io.Writer, o Options) (Summary, error) {
	return cat(ctx, in, w, o, "")
}

// CatVolume writes the content of a whole volume to w. The map must hold the volume's own extents.
func CatVolume(ctx context.Context, in *mapfile.Reader, w io.Writer, volume string, o Options) (Summary, error) {
	if volume == "" {
		return Summary{}, errors.New("no volume was named")
	}
	return cat(ctx, in, w, o, volume)
}

func cat(ctx context.Context, in *mapfile.Reader, w io.Writer, o Options, volume string) (Summary, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := newRun(ctx, o)
	r.volume = volume
	c := &catSink{run: r, w: w}
	if r.Results != nil {
		c.hash = sha256.New()
	}
	c.line = newLine(ctx, cancel, c.take)
	c.reading = newReading(ctx, &r.src, r.Workers)
	err := r.read(in, c)
	if err == nil && volume != "" && !r.seen {
		if err = fmt.Errorf("the map has no extents of volume %s (vmmap --volume-extents puts them there)", volume); !slices.Contains(r.names, volume) {
			err = fmt.Errorf("there is no volume %s, but %s", volume, strings.Join(r.names, ", "))
		}
	}
	c.line.close()
	c.reading.close()
	switch cause := context.Cause(ctx); {
	case cause == errStopped:
		err = nil
	case cause != nil && (err == nil || errors.Is(err, context.Canceled)):
		err = cause
	}
	if err == nil {
		err = r.endResults()
	}
	return r.sum, err
}

// errStopped ends a run at a gap.
var errStopped = errors.New("stopped at a gap")

// catSink writes files one after another.
type catSink struct {
	*run
	w       io.Writer
	line    *line
	reading *reading
	open    bool // a long file is being taken

	// Of the goroutine that writes.
	hash hash.Hash      // nil: nobody wants sums
	res  mapfile.Result // of the file whose pieces are coming
}

func (c *catSink) pass(b []byte, problems int64) error { return c.line.pass(c.run, b, problems) }
func (c *catSink) settle() error                       { return c.line.settle() }

func (c *catSink) file(v *mapfile.Volume, f *mapfile.File, chosen bool) error {
	if c.volume != "" || !chosen || f.Kind == mapfile.Directory { // which stands for what is in it
		return nil
	}
	res := result(v, f)
	if why := c.unfit(f); why != "" {
		res.Status, res.Error = statusSkipped, why
		c.Warn("%s: %s", where(&res), why)
		return c.line.send(&res)
	}
	if err := c.line.send(&res); err != nil {
		return err
	}
	return c.pieces(f.Extents, f.Size, true)
}

// unfit tells why a file has no content that could be written.
func (c *catSink) unfit(f *mapfile.File) string {
	switch why := c.left(f); {
	case f.Kind == mapfile.Symlink:
		return fmt.Sprintf("symlink to %s", f.Target)
	case f.Kind != mapfile.Regular && why == "":
		return "no regular file"
	default:
		return why
	}
}

func (c *catSink) long(v *mapfile.Volume, f *mapfile.File, chosen bool) error {
	c.open = chosen && c.volume == "" && c.unfit(f) == ""
	if !c.open {
		return nil
	}
	res := result(v, f)
	if err := c.line.send(&res); err != nil {
		return err
	}
	return c.pieces(f.Extents, f.Size, false)
}

func (c *catSink) extents(x *mapfile.Extents) error {
	if !c.open {
		return nil
	}
	return c.pieces(x.Extents, 0, !x.More)
}

// own takes a volume's own extents.
func (c *catSink) own(v *mapfile.Volume, x *mapfile.Extents, first bool) error {
	if first {
		err := c.line.send(&mapfile.Result{Volume: v.ID, Name: v.Name, Path: "/", Size: v.Size,
			Mode: mapfile.None, UID: mapfile.None, GID: mapfile.None})
		if err != nil {
			return err
		}
	}
	return c.pieces(x.Extents, 0, !x.More)
}

// pieces has the extents of a file of size bytes read, and sends them on.
func (c *catSink) pieces(list []mapfile.Extent, size int64, last bool) error {
	err := split(list, readsZero, func(l []mapfile.Extent, n int64, zero bool) error {
		p := zeroPiece(n, false)
		if !zero {
			var err error
			if p, err = c.reading.start(l, n, false, false); err != nil {
				return err
			}
		}
		return c.line.send(p)
	})
	if err != nil || !last {
		return err
	}
	p := zeroPiece(0, true)
	if len(list) == 0 && size > 0 {
		p.gaps.add(0, size, errNoExtents)
		p.bad = []bool{true}
	}
	return c.line.send(p)
}

// take writes what comes next.
func (c *catSink) take(it any) error {
	switch x := it.(type) {
	case *mapfile.Result:
		if x.Status != "" {
			c.report(x, false)
			return nil
		}
		if c.res = *x; c.hash != nil {
			c.hash.Reset()
		}
	case *piece:
		return c.piece(x)
	}
	return nil
}

func (c *catSink) piece(p *piece) error {
	<-p.done
	defer c.reading.finish(p)
	good := int64(0)
	for i := range p.list {
		if p.bad != nil && p.bad[i] {
			break
		}
		good += p.list[i].Len
	}
	if err := c.put(p.buf[:good]); err != nil {
		return err
	}
	if p.bad != nil {
		c.res.Status, c.res.Error = statusPartial, p.gaps.String()+"; nothing is written from there on"
		c.report(&c.res, p.gaps.encrypted == p.gaps.bytes)
		return errStopped
	}
	for n := p.size; p.buf == nil && n > 0; {
		k := min(n, int64(len(zeros)))
		if err := c.put(zeros[:k]); err != nil {
			return err
		}
		n -= k
	}
	if p.last {
		c.res.Status = statusOK
		if c.hash != nil {
			c.res.SHA256 = hex.EncodeToString(c.hash.Sum(nil))
		}
		c.report(&c.res, false)
		c.Progress(1, 0)
	}
	return nil
}

func (c *catSink) put(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if c.hash != nil {
		c.hash.Write(p)
	}
	_, err := c.w.Write(p)
	c.Progress(0, int64(len(p)))
	return err
}
