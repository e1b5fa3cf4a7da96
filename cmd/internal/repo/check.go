package repo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"vmkit/formats"
	"vmkit/formats/ondisk"
	"vmkit/formats/qcow2"
	"vmkit/fsmap/mapfile"
)

// CheckOptions says how a machine's points are checked.
type CheckOptions struct {
	// Sample is how much of the clusters is read: 1 is all; less leaves out the hashes of whole images too.
	Sample   float64
	Report   func(mapfile.Finding) error
	Progress func(bytes int64)
}

// Check checks the points of a machine: that they can be read, that what they build on is there, that each file is what
// the point says of it, that images are sound, that every cluster has its sum, and that the sums make up the root. Of
// what is damaged it tells which files of which points it touches. It gives the number of files that it checked; an error
// means that it could not go on.
func Check(ctx context.Context, s Store, machine string, o CheckOptions) (checked int64, err error) {
	c := &checker{CheckOptions: o, ctx: ctx, s: s, machine: machine}
	points, err := Points(ctx, s, machine)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	var many interface{ Unwrap() []error }
	if errors.As(err, &many) {
		for _, err := range many.Unwrap() {
			if err := c.find("point", machine, "sound", err.Error()); err != nil {
				return c.checked, err
			}
		}
	} else if err != nil {
		return 0, err
	}
	c.points = points
	for _, p := range points {
		if err := c.point(p); err != nil {
			return c.checked, err
		}
	}
	if len(c.damaged) > 0 {
		err = c.touched()
	} else {
		err = ctx.Err()
	}
	return c.checked, err
}

// checker checks the points of one machine.
type checker struct {
	CheckOptions
	ctx     context.Context
	s       Store
	machine string
	points  []*Point
	checked int64
	damaged []damage
}

// damage is a stretch of clusters that an image should hold and doesn't.
type damage struct {
	point    *Point
	disk     int
	first, n int64
}

func (c *checker) find(what, name, expected, found string) error {
	return c.Report(mapfile.Finding{What: what, Volume: mapfile.None, Path: name, Expected: expected, Found: found})
}

// bad makes a finding of an error that tells of damage; others end the check.
func (c *checker) bad(what, name string, err error) error {
	if c.ctx.Err() != nil {
		return c.ctx.Err()
	}
	for _, e := range []error{ErrNotExist, ondisk.ErrCorrupt, ondisk.ErrTruncated, ondisk.ErrUnsupported, ondisk.ErrNot, io.ErrUnexpectedEOF} {
		if errors.Is(err, e) {
			return c.find(what, name, "sound", err.Error())
		}
	}
	return err
}

// path gives what findings call a file of the machine.
func (c *checker) path(name string) string { return Path(c.s, path.Join(c.machine, name)) }

func (c *checker) point(p *Point) error {
	chain, err := Lineage(c.points, p)
	if err != nil {
		return c.bad("point", c.path(p.Name+pointEnd), err)
	}
	images := map[string]bool{}
	for n := range p.Disks {
		images[p.Disks[n].Image.Name] = true
	}
	for _, f := range p.Files() {
		if err := c.file(f, images[f.Name]); err != nil {
			return err
		}
	}
	for n := range p.Disks {
		if err := c.structure(p, n); err != nil {
			return err
		}
		if err := c.clusters(p, n); err != nil {
			return err
		}
		if err := c.root(chain, n); err != nil {
			return err
		}
	}
	return nil
}

// file compares a file with what its point says of it.
func (c *checker) file(f StoredFile, image bool) error {
	c.checked++
	name := c.path(f.Name)
	o, err := c.s.Open(c.ctx, path.Join(c.machine, f.Name))
	if err != nil {
		return c.bad("file", name, err)
	}
	defer o.Close()
	if o.Size() != f.Size && !(image && c.Sample < 1) {
		return c.find("size", name, fmt.Sprint(f.Size), fmt.Sprint(o.Size()))
	}
	type part struct {
		off, n int64
		want   string
	}
	parts := []part{{0, o.Size(), f.SHA256}}
	if len(f.Halves) == 2 {
		head := min(Head, o.Size())
		parts = []part{{0, head, f.Halves[0]}, {head, o.Size() - head, f.Halves[1]}}
	}
	if image && c.Sample < 1 {
		return nil
	}
	for _, x := range parts {
		h := sha256.New()
		if _, err := io.CopyBuffer(struct{ io.Writer }{h}, io.NewSectionReader(o, x.off, x.n), make([]byte, 1<<20)); err != nil {
			return c.bad("file", name, err)
		}
		c.Progress(x.n)
		if got := hex.EncodeToString(h.Sum(nil)); x.want != "" && got != x.want {
			if err := c.find("content", name, fmt.Sprintf("sha256 of bytes %d to %d: %s", x.off, x.off+x.n, x.want), got); err != nil {
				return err
			}
		}
	}
	return nil
}

// structure has the tables of an image checked, as qemu-img check does.
func (c *checker) structure(p *Point, n int) error {
	name := path.Join(c.machine, p.Disks[n].Image.Name)
	src := &Source{Context: c.ctx, Store: c.s}
	defer src.Close()
	o := formats.Opener{Formats: []formats.Format{qcow2.Format}, Format: qcow2.Format.Name, Source: src}
	var failed error
	_, err := o.Check(name, func(f formats.Finding) {
		what := "image: " + f.What
		if f.Off != formats.NoPos {
			what = fmt.Sprintf("%s at byte %d", what, f.Off)
		}
		if failed == nil {
			failed = c.find(what, Path(c.s, name), f.Expected, f.Found)
		}
	})
	if err != nil && failed == nil {
		return c.bad("image", Path(c.s, name), err)
	}
	return failed
}

// clusters reads what the image of a point itself holds, and compares it with the sums.
func (c *checker) clusters(p *Point, n int) error {
	d := &p.Disks[n]
	disk, err := OpenDisk(c.ctx, c.s, p, n, true, formats.NewEnv(0))
	if err != nil {
		return c.bad("image", c.path(d.Image.Name), err)
	}
	defer disk.Close()
	var mu sync.Mutex
	var bad []damage
	g, ctx := errgroup.WithContext(c.ctx)
	work := make(chan Run, 64)
	for range 4 {
		g.Go(func() error {
			buf := make([]byte, d.Cluster)
			for r := range work {
				if err := c.cluster(disk, d, r, buf); err != nil {
					if ctx.Err() != nil {
						return ctx.Err()
					}
					mu.Lock()
					bad = append(bad, damage{p, n, r.First, r.N})
					mu.Unlock()
				}
				c.Progress(r.N * d.Cluster)
			}
			return nil
		})
	}
	next := int64(0)
	err = eachRun(c.ctx, c.s, p, n, func(r Run) {
		if own := c.own(disk, d, next, r.First); own >= 0 {
			mu.Lock()
			bad = append(bad, damage{p, n, own, 1})
			mu.Unlock()
		}
		next = r.First + r.N
		if c.Sample >= 1 || rand.Float64() < c.Sample {
			select {
			case work <- r:
			case <-ctx.Done():
			}
		}
	})
	close(work)
	if e := g.Wait(); e != nil {
		return e
	}
	if own := c.own(disk, d, next, (d.Size+d.Cluster-1)/d.Cluster); err == nil && own >= 0 {
		bad = append(bad, damage{p, n, own, 1})
	}
	slices.SortFunc(bad, func(a, b damage) int { return int(a.first - b.first) })
	for _, x := range bad {
		at := fmt.Sprintf("cluster at byte %d of disk %s", x.first*d.Cluster, d.Name)
		if err := c.find(at, c.path(d.Image.Name), "what was backed up", "something else, or nothing"); err != nil {
			return err
		}
	}
	c.damaged = append(c.damaged, bad...)
	if err != nil {
		return c.bad("sums", c.path(d.Sums.Name), err)
	}
	return nil
}

// cluster reads clusters that are alike, and compares them with their sum.
func (c *checker) cluster(disk *Chain, d *Disk, r Run, buf []byte) error {
	for i := r.First; i < r.First+r.N; i++ {
		n := min(d.Cluster, d.Size-i*d.Cluster)
		if r.Zero {
			// Whole stretches of zeros need no reading.
			if e, err := disk.ExtentAt(i*d.Cluster, (r.First+r.N-i)*d.Cluster); err == nil && e.Kind == formats.Zero && e.Len >= n {
				i += max(e.Len/d.Cluster-1, 0)
				continue
			}
		}
		if k, err := disk.ReadAt(buf[:n], i*d.Cluster); int64(k) < n {
			return err
		}
		clear(buf[n:])
		if sha256.Sum256(buf) != r.Sum {
			return ondisk.ErrCorrupt
		}
	}
	return nil
}

// own looks for a cluster from a up to b that the image itself holds, though its sums don't tell of it; -1 for none.
func (c *checker) own(disk *Chain, d *Disk, a, b int64) int64 {
	for at, end := a*d.Cluster, min(b*d.Cluster, d.Size); at < end; {
		e, err := disk.ExtentAt(at, end-at)
		if err != nil || e.Len <= 0 {
			return at / d.Cluster
		}
		file := e.File
		if e.Pack != nil && len(e.Pack.Parts) > 0 {
			file = e.Pack.Parts[0].File
		}
		if file != nil && file == disk.Files[0] {
			return at / d.Cluster
		}
		at += e.Len
	}
	return -1
}

// root computes the root of a disk from the sums of its chain.
func (c *checker) root(chain []*Point, n int) error {
	p := chain[len(chain)-1]
	d := &p.Disks[n]
	a, err := OpenAccount(c.ctx, c.s, chain, n)
	if err != nil {
		return c.bad("sums", c.path(d.Sums.Name), err)
	}
	defer a.Close()
	tree, total := NewTree(), (d.Size+d.Cluster-1)/d.Cluster
	for i := int64(0); i < total; {
		r, err := a.At(i, total-i)
		if err != nil {
			return c.bad("sums", c.path(d.Sums.Name), err)
		}
		tree.Add(r.Sum, r.N)
		i += r.N
	}
	if got := tree.Root(); got != d.Root {
		return c.find("root of disk "+d.Name, c.path(p.Name+pointEnd), d.Root, got)
	}
	return nil
}

// maxTouched bounds the files that are named for one point.
const maxTouched = 1000

// touched tells which files of which points lie in what is damaged.
func (c *checker) touched() error {
	for _, p := range c.points {
		if p.Hidden {
			continue
		}
		if err := c.touches(p); err != nil {
			if err := c.bad("map", c.path(p.Name+pointEnd), err); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *checker) touches(p *Point) error {
	chain, err := Lineage(c.points, p)
	if err != nil {
		return nil // that was told
	}
	bad := make([]*ranges, len(p.Disks))
	for n := range p.Disks {
		if bad[n], err = c.seen(chain, n); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(bad, func(r *ranges) bool { return r != nil }) {
		return nil
	}
	w := NewWalker(c.ctx, c.s, p, mapfile.Patterns{})
	defer w.Close()
	for named := 0; ; {
		v, err := w.Next()
		if err != nil || v == nil {
			return err
		}
		at, on := int64(-1), 0
		v.Places(func(disk int, off, n int64) bool {
			if disk >= len(bad) || bad[disk] == nil {
				return true
			}
			r := bad[disk]
			for i := off / r.unit; i*r.unit < off+n && i < r.n; {
				in, end := r.run(i)
				if in {
					at, on = max(i*r.unit, off), disk
					return false
				}
				i = end
			}
			return true
		})
		if at < 0 {
			continue
		}
		if named++; named > maxTouched {
			return c.find("file", p.Machine+"@"+p.Name, "sound", fmt.Sprintf("more than %d files are touched by what is damaged", maxTouched))
		}
		name := v.Path
		if v.Stream != "" {
			name += ":" + v.Stream
		}
		if err := c.find("file", strings.Join([]string{p.Machine + "@" + p.Name, v.In, name}, ":"), "sound", fmt.Sprintf("damaged at byte %d of disk %s", at, p.Disks[on].Name)); err != nil {
			return err
		}
	}
}

// seen gives the damaged clusters that a point shows: those that nothing newer in its chain replaces. nil is none.
func (c *checker) seen(chain []*Point, n int) (*ranges, error) {
	of := func(x damage) int { return slices.Index(chain, x.point) }
	if !slices.ContainsFunc(c.damaged, func(x damage) bool { return x.disk == n && of(x) >= 0 }) {
		return nil, nil
	}
	v, err := OpenVerified(c.ctx, c.s, chain, n, nil)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	d := &chain[len(chain)-1].Disks[n]
	bad := newRanges(d.Size, d.Cluster)
	for _, x := range c.damaged {
		layer := of(x)
		if x.disk != n || layer < 0 {
			continue
		}
		for i := x.first; i < x.first+x.n; i++ {
			// Where the sums of a newer point can't be read, nobody knows whether it holds the cluster.
			if k, err := v.holder(i); err != nil || k < 0 || k >= len(chain)-1-layer {
				bad.outer(i*d.Cluster, d.Cluster, true)
			}
		}
	}
	return bad, nil
}
