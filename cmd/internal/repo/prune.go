package repo

import (
	"context"
	"fmt"
	"path"
	"slices"

	"vmkit/formats/qcow2"
)

// PruneOptions says what of a machine's points stays, and when they are compacted.
type PruneOptions struct {
	Keep
	DryRun bool
	// Waste is what share of the bytes that have to be written compacting has to free to be worth it.
	Waste float64
	// Chain is how many points may build on one another; the newest of a longer chain is made full. 0: any number.
	Chain    int
	Tell     func(Action) error
	Progress func(bytes int64)
}

// Action is something that pruning does, or would do.
type Action struct {
	Type    string `json:"type"` // "action"
	What    string `json:"what"` // "keep", "hide", "remove", "fold", "full", "clean"
	Machine string `json:"machine"`
	Point   string `json:"point,omitempty"`
	Why     string `json:"why,omitempty"`
	// Freed and Written are bytes; of folds they are estimates.
	Freed   int64 `json:"freed,omitempty"`
	Written int64 `json:"written,omitempty"`
}

// pruner prunes one machine.
type pruner struct {
	PruneOptions
	ctx     context.Context
	s       Store
	machine string
	points  []*Point // that there are, oldest first
}

// Prune drops the points of a machine that aren't to stay. One that others build on is hidden, and folded into them when
// enough of it is waste. Whenever it is interrupted, every point that is visible restores.
func Prune(ctx context.Context, s Store, machine string, o PruneOptions) error {
	p := &pruner{PruneOptions: o, ctx: ctx, s: s, machine: machine}
	if !o.DryRun {
		unlock, err := s.Lock(ctx, machine)
		if err != nil {
			return err
		}
		defer unlock()
	}
	var err error
	if p.points, err = Points(ctx, s, machine); err != nil {
		return fmt.Errorf("%s: nothing is dropped while a point can't be read: %w", machine, err)
	}
	for _, x := range p.points { // what is broken is for people to see to
		if _, err := Lineage(p.points, x); err != nil {
			return fmt.Errorf("%s: nothing is dropped: %w", machine, err)
		}
	}
	for _, do := range []func() error{p.clean, p.hide, p.sweep, p.compact, p.shorten, p.sweep} {
		if err := do(); err != nil {
			return fmt.Errorf("%s: %w", machine, err)
		}
	}
	return nil
}

func (p *pruner) tell(what, point, why string, freed, written int64) error {
	return p.Tell(Action{"action", what, p.machine, point, why, freed, written})
}

// clean removes what runs that were interrupted left.
func (p *pruner) clean() error {
	left, err := Unfinished(p.ctx, p.s, p.machine, p.points)
	if err != nil || len(left) == 0 {
		return err
	}
	if err := p.tell("clean", "", fmt.Sprintf("%d files of a run that was interrupted", len(left)), 0, 0); err != nil || p.DryRun {
		return err
	}
	return p.s.Remove(p.ctx, left...)
}

// hide makes the points invisible that don't stay.
func (p *pruner) hide() error {
	why := p.Choose(p.points)
	for i, x := range p.points {
		switch {
		case x.Hidden:
			continue
		case why[i] != "":
			if err := p.tell("keep", x.Name, why[i], 0, 0); err != nil {
				return err
			}
			continue
		}
		if err := p.tell("hide", x.Name, "no rule keeps it", 0, 0); err != nil {
			return err
		}
		hidden := *x
		hidden.Hidden = true
		p.points[i] = &hidden
		if p.DryRun {
			continue
		}
		if err := WritePoint(p.ctx, p.s, &hidden, false); err != nil {
			return err
		}
	}
	return nil
}

// children gives the points that build on one directly.
func (p *pruner) children(name string) (list []*Point) {
	for _, x := range p.points {
		if x.Parent == name {
			list = append(list, x)
		}
	}
	return list
}

// sweep removes the hidden points that nothing builds on: first what says that they are there.
func (p *pruner) sweep() error {
	for {
		i := slices.IndexFunc(p.points, func(x *Point) bool { return x.Hidden && len(p.children(x.Name)) == 0 })
		if i < 0 {
			return nil
		}
		x := p.points[i]
		if err := p.tell("remove", x.Name, "nothing builds on it", x.Stored, 0); err != nil {
			return err
		}
		p.points = slices.Delete(p.points, i, i+1)
		if p.DryRun {
			continue
		}
		if err := p.s.Remove(p.ctx, path.Join(p.machine, x.Name+pointEnd)); err != nil {
			return err
		}
		var names []string
		for _, f := range x.Files() {
			names = append(names, path.Join(p.machine, f.Name))
		}
		if err := p.s.Remove(p.ctx, names...); err != nil {
			return err
		}
	}
}

// compact folds hidden points into the visible ones that build on them, where enough is waste.
func (p *pruner) compact() error {
	for _, x := range slices.Clone(p.points) {
		if x.Hidden {
			continue
		}
		chain, err := Lineage(p.points, x)
		if err != nil {
			return err
		}
		base, c, err := p.worth(chain)
		if err != nil {
			return err
		}
		if base < len(chain)-2 {
			if err := p.fold("fold", chain, base, fmt.Sprintf("%d points into it", len(chain)-2-base), c); err != nil {
				return err
			}
		}
	}
	return nil
}

// cost is what folding frees and writes, in bytes.
type cost struct{ freed, written int64 }

// worth finds how far down hidden points are worth being folded into the last of a chain: to above base. With none it
// gives the last but one.
func (p *pruner) worth(chain []*Point) (base int, c cost, err error) {
	last := len(chain) - 1
	base = last - 1
	if last == 0 || !chain[last-1].Hidden {
		return base, c, nil
	}
	u, err := newUnion(p.ctx, p.s, chain[last])
	if err != nil {
		return base, c, err
	}
	for i := last - 1; i >= 0 && chain[i].Hidden && len(p.children(chain[i].Name)) == 1; i-- {
		if err := u.add(chain[i]); err != nil {
			return base, c, err
		}
		if x := u.cost(); float64(x.freed) >= p.Waste*float64(x.written) {
			base, c = i-1, x
		}
	}
	return base, c, nil
}

// shorten makes the newest point full where its chain is longer than it may be.
func (p *pruner) shorten() error {
	i := len(p.points) - 1
	for i >= 0 && p.points[i].Hidden {
		i--
	}
	if i < 0 || p.Chain <= 0 {
		return nil
	}
	chain, err := Lineage(p.points, p.points[i])
	if err != nil || len(chain) <= p.Chain {
		return err
	}
	u, err := newUnion(p.ctx, p.s, chain[len(chain)-1])
	if err != nil {
		return err
	}
	for _, x := range chain[:len(chain)-1] {
		if err := u.add(x); err != nil {
			return err
		}
	}
	return p.fold("full", chain, -1, fmt.Sprintf("%d points build on one another", len(chain)), cost{written: u.cost().written})
}

// fold folds, and takes note of the new point.
func (p *pruner) fold(what string, chain []*Point, base int, why string, c cost) error {
	last := chain[len(chain)-1]
	if err := p.tell(what, last.Name, why, c.freed, c.written); err != nil {
		return err
	}
	folded := *last
	folded.Parent = ""
	if base >= 0 {
		folded.Parent = chain[base].Name
	}
	to := &folded
	if !p.DryRun {
		var err error
		if to, err = fold(p.ctx, p.s, chain, base, p.Progress); err != nil {
			return err
		}
	}
	p.points[slices.Index(p.points, last)] = to
	return nil
}

// union counts what the images of several points hold, and what one image in their place would.
type union struct {
	ctx          context.Context
	s            Store
	seen         []*ranges // by disk: what those that were added hold
	held, kept   int64     // bytes that the images hold, and those of them that nothing newer replaces
	stored, size int64     // bytes of the images, and about what they take besides their clusters
}

// emptyImage is about what an image takes besides its clusters.
const emptyImage = 5 * qcow2.DefaultCluster

func newUnion(ctx context.Context, s Store, p *Point) (*union, error) {
	u := &union{ctx: ctx, s: s}
	for n := range p.Disks {
		u.seen = append(u.seen, newRanges(p.Disks[n].Size, p.Disks[n].Cluster))
	}
	return u, u.add(p)
}

// add adds a point that those before build on.
func (u *union) add(p *Point) error {
	if len(p.Disks) != len(u.seen) {
		return fmt.Errorf("point %s has other disks than those that build on it", p.Name)
	}
	for n := range p.Disks {
		d, seen := &p.Disks[n], u.seen[n]
		u.stored += d.Image.Size
		u.size += emptyImage
		if err := eachRun(u.ctx, u.s, p, n, func(r Run) {
			off := r.First * d.Cluster
			length := min(r.N*d.Cluster, d.Size-off)
			if !r.Zero {
				u.held += length
				for at, end := off/seen.unit, (off+length+seen.unit-1)/seen.unit; at < end; {
					in, next := seen.run(at)
					if next = min(next, end); !in {
						u.kept += min((next-at)*seen.unit, length)
					}
					at = next
				}
			}
			seen.outer(off, length, true)
		}); err != nil {
			return err
		}
	}
	return nil
}

// cost estimates what one image in the place of all frees and writes.
func (u *union) cost() cost {
	var c cost
	if u.held > 0 {
		c.written = int64(float64(max(u.stored-u.size, 0)) * min(float64(u.kept)/float64(u.held), 1))
	}
	c.written += emptyImage * int64(len(u.seen))
	c.freed = max(u.stored-c.written, 0)
	return c
}
