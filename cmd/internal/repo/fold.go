package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"vmkit/formats/qcow2"
)

// fold makes the last of a chain's points build on the one at base (-1: on none): its images are replaced, each under
// its own name, by ones that hold what those between held too. What the point shows stays the same, and is verified on
// the way; at every moment in between it restores, since its account of what it builds on is changed only when all
// images are there, and the points between are removed by others, later.
func fold(ctx context.Context, s Store, chain []*Point, base int, progress func(int64)) (*Point, error) {
	old := chain[len(chain)-1]
	p := *old
	p.Disks = append([]Disk(nil), old.Disks...)
	p.Parent = ""
	if base >= 0 {
		p.Parent = chain[base].Name
	}
	p.Stored = 0
	for n := range p.Disks {
		f := &folding{ctx: ctx, s: s, chain: chain, base: base, n: n, d: &p.Disks[n]}
		if err := f.run(progress); err != nil {
			return nil, fmt.Errorf("point %s of %s, disk %s: %w", p.Name, p.Machine, p.Disks[n].Name, err)
		}
		p.Disks[n].Stored = p.Disks[n].Image.Size + p.Disks[n].Sums.Size
		if n == 0 {
			p.Disks[n].Stored += p.Disks[n].Map.Size
		}
		p.Stored += p.Disks[n].Stored
	}
	for _, f := range p.Config {
		p.Stored += f.Size
	}
	if err := WritePoint(ctx, s, &p, false); err != nil {
		return nil, err
	}
	var left []string
	for n := range old.Disks {
		left = append(left, path.Join(p.Machine, old.Disks[n].Sums.Name))
	}
	return &p, s.Remove(ctx, left...)
}

// folding is the fold of one disk.
type folding struct {
	ctx   context.Context
	s     Store
	chain []*Point
	base  int
	n     int
	d     *Disk // of the new point
}

func (f *folding) run(progress func(int64)) error {
	d, machine := f.d, f.chain[0].Machine
	src, err := OpenVerified(f.ctx, f.s, f.chain, f.n, nil)
	if err != nil {
		return err
	}
	defer src.Close()
	kind, err := qcow2.Compression(src.Files[0])
	if err != nil {
		return err
	}
	r := &imageRun{
		src: src, size: d.Size, cluster: d.Cluster, codec: kind, packed: true, tree: NewTree(), zero: ZeroSum(d.Cluster), progress: progress,
		free: &ranges{newBitset((d.Size + d.Cluster - 1) / d.Cluster), d.Cluster, d.Size}, // exact, whatever the size
		hint: newRanges(d.Size, d.Cluster), quiet: newRanges(d.Size, max(d.Size, 1)),
	}
	r.quiet.inner(0, d.Size)
	if err := f.survey(src, r); err != nil {
		return err
	}
	layout := qcow2.Layout{Size: d.Size, Cluster: d.Cluster, Codec: kind, Head: Head}
	if f.base >= 0 {
		layout.Backing, layout.BackingFormat = f.chain[f.base].Disks[f.n].Image.Name, qcow2.Format.Name
		if r.parent, err = OpenAccount(f.ctx, f.s, f.chain[:f.base+1], f.n); err != nil {
			return err
		}
		defer r.parent.Close()
	}
	sums, err := f.s.Create(f.ctx, path.Join(machine, f.sumsName()), false)
	if err != nil {
		return err
	}
	defer sums.Abort()
	hashed := &hashedWriter{sums, sha256.New(), f.sumsName()}
	r.sums = NewSumsWriter(hashed, d.Size, d.Cluster)
	file, err := f.s.Create(f.ctx, path.Join(machine, d.Image.Name), false)
	if err != nil {
		return err
	}
	image := newHalvesWriter(file)
	defer image.Abort()
	if r.out, err = qcow2.NewWriter(image, layout); err != nil {
		return err
	}
	if err := r.run(f.ctx); err != nil {
		return err
	}
	if got := r.tree.Root(); got != d.Root {
		return fmt.Errorf("its clusters make up %s, not the root %s that the point has", got, d.Root)
	}
	if err := r.out.Close(); err != nil {
		return err
	}
	if err := r.sums.End(d.Root); err != nil {
		return err
	}
	if d.Sums, err = hashed.commit(f.ctx); err != nil {
		return err
	}
	info, err := image.Commit(f.ctx)
	d.Image.Size, d.Image.Halves = info.Size, image.sums()
	return err
}

// sumsName gives a name for the new sums: not that of the old ones, which count until the point says otherwise.
func (f *folding) sumsName() string {
	name := strings.TrimSuffix(f.d.Image.Name, imageEnd)
	old := f.chain[len(f.chain)-1].Disks[f.n].Sums.Name
	if first := name + ".1" + sumsEnd; old != first {
		return first
	}
	return name + ".2" + sumsEnd
}

// survey finds out what no point holds, and what the points that are folded hold.
func (f *folding) survey(src *Verified, r *imageRun) error {
	for i, total := int64(0), r.free.n; i < total; {
		run, err := src.At(i, total-i)
		if err != nil {
			return err
		}
		if !run.Held() {
			r.free.set(i, i+run.N, true)
		}
		i += run.N
	}
	for _, p := range f.chain[f.base+1:] {
		if err := eachRun(f.ctx, f.s, p, f.n, func(run Run) { r.hint.outer(run.First*r.cluster, run.N*r.cluster, true) }); err != nil {
			return err
		}
	}
	return nil
}

// eachRun calls do with what the image of disk n of a point holds.
func eachRun(ctx context.Context, s Store, p *Point, n int, do func(Run)) error {
	in, err := OpenSums(ctx, s, p, n)
	if err != nil {
		return err
	}
	defer in.Close()
	for {
		run, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		do(run)
	}
}
