package repo

import (
	"bytes"
	"container/list"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"sync"

	"golang.org/x/sync/errgroup"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// ErrUnheld is what a cluster gives that the backup left out, since nothing used it.
var ErrUnheld = errors.New("no point holds this: nothing used it when the backups were made")

// Verified is a disk of a point, of which every cluster is held against its sum before any of it is given out. It is a
// formats.Disk.
type Verified struct {
	*Chain
	Unheld bool // what no point holds is an error; else it reads as zeros, as it does for QEMU

	what    string
	layers  []*finder // the newest first
	cluster int64

	mu    sync.Mutex
	kept  map[int64]*list.Element // clusters that were read last, so that small files side by side need one reading
	order list.List               // of keptCluster, the latest first
}

type keptCluster struct {
	i int64
	b []byte
}

const maxKept = 64

// OpenVerified opens disk n of the last of the points, which form a chain (see Lineage).
func OpenVerified(ctx context.Context, s Store, chain []*Point, n int, env *formats.Env) (*Verified, error) {
	p := chain[len(chain)-1]
	c, err := OpenDisk(ctx, s, p, n, true, env)
	if err != nil {
		return nil, err
	}
	v := &Verified{Chain: c, what: fmt.Sprintf("point %s of %s, disk %s", p.Name, p.Machine, p.Disks[n].Name), cluster: p.Disks[n].Cluster, kept: map[int64]*list.Element{}}
	for i := len(chain) - 1; i >= 0; i-- {
		if n >= len(chain[i].Disks) || chain[i].Disks[n].Cluster != v.cluster {
			err = ondisk.Corrupt("point "+chain[i].Name+" of "+p.Machine, "disks, which are not those of its child", -1, nil)
		} else {
			var f *finder
			if f, err = openFinder(ctx, s, chain[i], n); err == nil {
				v.layers = append(v.layers, f)
			}
		}
		if err != nil {
			v.Close()
			return nil, err
		}
	}
	return v, nil
}

// Close closes the files.
func (v *Verified) Close() error {
	errs := []error{v.Chain.Close()}
	for _, f := range v.layers {
		errs = append(errs, f.o.Close())
	}
	return errors.Join(errs...)
}

// ClusterSize gives the length of the clusters that have sums, in bytes.
func (v *Verified) ClusterSize() int64 { return v.cluster }

// At tells of cluster i, and of those behind it that are of the same kind: at most max.
func (v *Verified) At(i, max int64) (Run, error) {
	r := Run{First: i, N: min(max, (v.Size()+v.cluster-1)/v.cluster-i)}
	for _, f := range v.layers {
		run, held, err := f.find(i, r.N)
		if err != nil {
			return r, err
		}
		if r.N = min(r.N, run.N); held {
			r.Sum, r.Zero = run.Sum, run.Zero
			break
		}
	}
	return r, nil
}

// holder tells which point of the chain holds cluster i, counted from the newest; -1 for none.
func (v *Verified) holder(i int64) (int, error) {
	for k, f := range v.layers {
		if _, held, err := f.find(i, 1); held || err != nil {
			return k, err
		}
	}
	return -1, nil
}

// ReadAt reads whole clusters, several at once.
func (v *Verified) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%s: position %d", v.what, off)
	}
	want := int(min(int64(len(p)), max(v.Size()-off, 0)))
	first, last := off/v.cluster, (off+int64(want)-1)/v.cluster
	piece := func(i int64) error {
		start := i * v.cluster
		from, to := max(off, start), min(off+int64(want), start+v.cluster)
		return v.read(p[from-off:to-off], i, from-start)
	}
	if want > 0 && last-first < 2 {
		for i := first; i <= last; i++ {
			if err := piece(i); err != nil {
				return int(max(i*v.cluster-off, 0)), err
			}
		}
	} else if want > 0 {
		var g errgroup.Group
		g.SetLimit(8)
		for i := first; i <= last; i++ {
			g.Go(func() error { return piece(i) })
		}
		if err := g.Wait(); err != nil {
			return 0, err
		}
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// read gives bytes of cluster i, from skip on.
func (v *Verified) read(p []byte, i, skip int64) error {
	r, err := v.At(i, 1)
	switch {
	case err != nil:
		return err
	case !r.Held(), r.Zero:
		e, err := v.Chain.ExtentAt(i*v.cluster, 1)
		switch {
		case err != nil:
			return err
		case r.Zero && e.Kind != formats.Zero: // it may be stored as data all the same
		case !r.Held() && e.Kind != formats.Missing && e.Kind != formats.Zero: // zeros lie behind the end of a smaller parent
			return ondisk.Corrupt(v.what, "cluster, which an image holds but no account of its sums", i*v.cluster, nil)
		case !r.Held() && v.Unheld:
			return fmt.Errorf("%s, byte %d: %w", v.what, i*v.cluster, ErrUnheld)
		default:
			clear(p)
			return nil
		}
	}
	v.mu.Lock()
	if e := v.kept[i]; e != nil {
		v.order.MoveToFront(e)
		b := e.Value.(keptCluster).b
		v.mu.Unlock()
		copy(p, b[skip:])
		return nil
	}
	v.mu.Unlock()
	b := make([]byte, v.cluster)
	if err := v.verify(b, i, r.Sum); err != nil {
		return err
	}
	copy(p, b[skip:])
	if int64(len(p)) == v.cluster {
		return nil // all of it was wanted: it won't be once more
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.kept[i] == nil {
		v.kept[i] = v.order.PushFront(keptCluster{i, b})
	}
	if v.order.Len() > maxKept {
		e := v.order.Back()
		delete(v.kept, v.order.Remove(e).(keptCluster).i)
	}
	return nil
}

// verify reads cluster i, which the disk's end may cut.
func (v *Verified) verify(b []byte, i int64, want Sum) error {
	n, err := v.Chain.ReadAt(b[:min(v.cluster, v.Size()-i*v.cluster)], i*v.cluster)
	if err != nil && err != io.EOF {
		return fmt.Errorf("%s, byte %d: %w", v.what, i*v.cluster+int64(n), err)
	}
	if sha256.Sum256(b) != want {
		return ondisk.Corrupt(v.what, "cluster, which is not what was backed up: vmverify --repo tells what is damaged", i*v.cluster, nil)
	}
	return nil
}

// ExtentAt implements formats.Disk. It tells what the images say: what they hold is verified when it is read.
func (v *Verified) ExtentAt(off, max int64) (formats.Extent, error) {
	e, err := v.Chain.ExtentAt(off, max)
	if err != nil || e.Kind != formats.Missing && e.Kind != formats.Zero {
		return e, err
	}
	// An image whose tables are damaged may say so of what it holds: such a cluster counts as data.
	i := off / v.cluster
	r, err := v.At(i, (off+e.Len-1)/v.cluster-i+1)
	if err != nil {
		return e, err
	}
	e.Len = min(e.Len, (i+r.N)*v.cluster-off)
	switch {
	case r.Held() && !(r.Zero && e.Kind == formats.Zero):
		e.Kind = formats.Packed
	case !r.Held() && v.Unheld:
		e.Kind = formats.Missing
	default:
		e.Kind = formats.Zero
	}
	return e, nil
}

// finder finds clusters in a .sums file without reading all of it: its lines are in order.
type finder struct {
	what          string
	o             Object
	size, cluster int64
	zero          Sum

	mu     sync.Mutex
	blocks map[int64][]Run // that were read, by number
}

const (
	sumsBlock     = 16 << 10
	maxSumsLine   = 128
	maxSumsBlocks = 256
)

func openFinder(ctx context.Context, s Store, p *Point, n int) (*finder, error) {
	d := &p.Disks[n]
	name := path.Join(p.Machine, d.Sums.Name)
	o, err := s.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	f := &finder{what: Path(s, name), o: o, size: d.Size, cluster: d.Cluster, zero: ZeroSum(d.Cluster), blocks: map[int64][]Run{}}
	if o.Size() != d.Sums.Size {
		o.Close()
		return nil, ondisk.Corrupt(f.what, "size", -1, o.Size())
	}
	return f, nil
}

// find tells of cluster i, and of how many behind it, at most max, the same is true.
func (f *finder) find(i, max int64) (r Run, held bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lo, hi := int64(0), (f.o.Size()+sumsBlock-1)/sumsBlock
	// The last block that begins with a line about i or something before it.
	for hi-lo > 1 {
		mid := (lo + hi) / 2
		runs, err := f.block(mid)
		if err != nil {
			return r, false, err
		}
		if len(runs) == 0 || runs[0].First > i {
			hi = mid
		} else {
			lo = mid
		}
	}
	r.N = max
	for b := lo; b <= lo+1 && b*sumsBlock < f.o.Size(); b++ { // what follows may stand in the next one
		runs, err := f.block(b)
		if err != nil {
			return r, false, err
		}
		for _, x := range runs {
			switch {
			case x.First > i:
				r.N = min(r.N, x.First-i)
				return r, false, nil
			case x.First+x.N > i:
				x.N = min(max, x.First+x.N-i)
				return x, true, nil
			}
		}
	}
	return r, false, nil
}

// block gives the lines that begin in a block of the file; mu is held.
func (f *finder) block(b int64) ([]Run, error) {
	if runs, ok := f.blocks[b]; ok {
		return runs, nil
	}
	// With the byte before it, so as to know whether a line begins where the block does, and the rest of its last line.
	start, end := max(b*sumsBlock-1, 0), min((b+1)*sumsBlock, f.o.Size())
	text := make([]byte, min(end+maxSumsLine, f.o.Size())-start)
	if n, err := f.o.ReadAt(text, start); n < len(text) {
		return nil, fmt.Errorf("%s: %w", f.what, err)
	}
	var runs []Run
	at := 0
	if b > 0 {
		at = bytes.IndexByte(text, '\n') + 1
	}
	for start+int64(at) < end {
		n := bytes.IndexByte(text[at:], '\n')
		if n < 0 {
			return nil, ondisk.Corrupt(f.what, "line", start+int64(at), nil)
		}
		line := text[at : at+n]
		switch x, ok := parseRun(line, f.size, f.cluster, f.zero); {
		case ok && (len(runs) == 0 || x.First >= runs[len(runs)-1].First+runs[len(runs)-1].N):
			runs = append(runs, x)
		case b == 0 && at == 0, bytes.HasPrefix(line, rootLine):
		default:
			return nil, ondisk.Corrupt(f.what, "line", start+int64(at), fmt.Sprintf("%.100q", line))
		}
		at += n + 1
	}
	if len(f.blocks) >= maxSumsBlocks {
		clear(f.blocks)
	}
	f.blocks[b] = runs
	return runs, nil
}
