package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/fsmap/mapfile"
)

// difference is a file that two points don't have alike.
type difference struct {
	Type   string   `json:"type"` // "difference"
	What   string   `json:"what"` // "added", "removed", "changed"
	Volume string   `json:"volume"`
	Path   string   `json:"path"`
	Stream string   `json:"stream,omitempty"`
	Kind   string   `json:"kind"`
	Size   int64    `json:"size"`
	How    []string `json:"how,omitempty"` // of changed ones: "content", "size", "mode", …
}

// printDiff lists what differs between two points, from their maps and the sums of their blocks.
func (o *options) printDiff(ctx context.Context, t *cli.Term, s repo.Store, args []string) error {
	a, err := findPoint(ctx, t, s, args[0])
	if err != nil {
		return err
	}
	b, err := findPoint(ctx, t, s, args[1])
	if err != nil {
		return err
	}
	out := &records{w: t.Stdout, kind: "differences"}
	err = compare(ctx, s, a, b, mapfile.Patterns{}, func(what string, v *repo.Version, how []string) error {
		if t.People {
			_, err := fmt.Fprintf(t.Stdout, "%s %s:%s%s\n", map[string]string{"added": "+", "removed": "-", "changed": "~"}[what],
				cli.Printable(v.In), cli.Printable(nameOf(&v.File)), strings.Join(append([]string{""}, how...), "  "))
			return err
		}
		return out.write(difference{"difference", what, v.In, v.Path, v.Stream, v.Kind.String(), v.Size, how})
	})
	if err != nil || t.People {
		return err
	}
	return out.end()
}

// nameOf gives a file's path with its stream.
func nameOf(f *mapfile.File) string {
	if f.Stream == "" {
		return f.Path
	}
	return f.Path + ":" + f.Stream
}

// compare goes through the files of two points side by side.
func compare(ctx context.Context, s repo.Store, a, b *point, patterns mapfile.Patterns, tell func(what string, v *repo.Version, how []string) error) error {
	c := &comparison{s: s, ctx: ctx}
	defer c.close()
	if err := c.open(a, b); err != nil {
		return err
	}
	wa, wb := repo.NewWalker(ctx, s, a.Point, patterns), repo.NewWalker(ctx, s, b.Point, patterns)
	defer wa.Close()
	defer wb.Close()
	x, err := wa.Next()
	if err != nil {
		return err
	}
	y, err := wb.Next()
	if err != nil {
		return err
	}
	for x != nil || y != nil {
		side := c.side(wa, wb, x, y)
		switch {
		case side < 0:
			err = tell("removed", x, nil)
		case side > 0:
			err = tell("added", y, nil)
		default:
			var how []string
			if how, err = c.how(x, y); err == nil && len(how) > 0 {
				err = tell("changed", y, how)
			}
		}
		if err == nil && side <= 0 {
			x, err = wa.Next()
		}
		if err == nil && side >= 0 {
			y, err = wb.Next()
		}
		if err != nil {
			return err
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

// comparison holds the sums of two points' blocks against one another.
type comparison struct {
	ctx  context.Context
	s    repo.Store
	a, b []*repo.Verified // by disk of b; nil where a has no such disk, or one of another size
	of   []int            // the disk of a that is the disk of b
}

func (c *comparison) open(a, b *point) error {
	for n := range b.Disks {
		d := &b.Disks[n]
		m := slices.IndexFunc(a.Disks, func(x repo.Disk) bool { return x.Name == d.Name && x.Size == d.Size && x.Cluster == d.Cluster })
		c.of, c.a, c.b = append(c.of, m), append(c.a, nil), append(c.b, nil)
		if m < 0 {
			continue
		}
		err := again(func() (err error) {
			if c.a[n], err = repo.OpenVerified(c.ctx, c.s, a.chain, m, nil); err != nil {
				return err
			}
			c.b[n], err = repo.OpenVerified(c.ctx, c.s, b.chain, n, nil)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) close() {
	for n := range c.a {
		for _, v := range []*repo.Verified{c.a[n], c.b[n]} {
			if v != nil {
				v.Close()
			}
		}
	}
}

// side tells which of two files comes first: the maps of both are in one order, in which volumes stand as they lie on
// the disks.
func (c *comparison) side(wa, wb *repo.Walker, x, y *repo.Version) int {
	switch {
	case x == nil:
		return 1
	case y == nil:
		return -1
	}
	if x.In != y.In {
		// A volume that only one of them has comes first.
		if _, both := wb.Rank(x.In); !both {
			return -1
		}
		other, both := wa.Rank(y.In)
		if !both {
			return 1
		}
		own, _ := wa.Rank(x.In)
		return own - other
	}
	if d := order(strings.TrimPrefix(x.Path, "/"), strings.TrimPrefix(y.Path, "/")); d != 0 {
		return d
	}
	return strings.Compare(x.Stream, y.Stream)
}

// how tells in what two versions of a file differ.
func (c *comparison) how(x, y *repo.Version) (how []string, err error) {
	for _, d := range []struct {
		what string
		not  bool
	}{
		{"kind", x.Kind != y.Kind}, {"size", x.Size != y.Size && x.Kind == mapfile.Regular && y.Kind == mapfile.Regular},
		{"mode", x.Mode != y.Mode}, {"owner", x.UID != y.UID || x.GID != y.GID || x.Owner != y.Owner || x.Group != y.Group},
		{"target", x.Target != y.Target}, {"device", x.Major != y.Major || x.Minor != y.Minor},
		{"attributes", !slices.EqualFunc(x.Xattrs, y.Xattrs, func(p, q mapfile.Xattr) bool { return p.Name == q.Name && string(p.Value) == string(q.Value) })},
		{"time", x.MTime != y.MTime}, {"inode", x.Inode != y.Inode},
	} {
		if d.not {
			how = append(how, d.what)
		}
	}
	if x.Kind != mapfile.Regular || y.Kind != mapfile.Regular {
		return how, nil
	}
	touched := x.MTime != y.MTime || x.CTime != y.CTime || x.Size != y.Size || x.Inode != y.Inode
	changed, err := c.content(x, y, touched)
	if changed {
		how = append([]string{"content"}, how...)
	}
	return how, err
}

// content tells whether two versions of a file have other bytes. Where they lie at the same place, the sums of the
// clusters there tell; a cluster that changed and that other files have a part in is read, but only where the file's
// times don't say that it was written. Where the versions lie elsewhere, the bytes count as others.
func (c *comparison) content(x, y *repo.Version, touched bool) (bool, error) {
	if x.Size != y.Size {
		return true, nil
	}
	if x.Cut || y.Cut || !samePlace(x.Extents, y.Extents) {
		return true, nil
	}
	var err error
	same := y.Places(func(disk int, off, n int64) bool {
		var same bool
		same, err = c.same(disk, off, n, touched)
		return same && err == nil
	})
	return !same, err
}

// samePlace tells whether two lists of extents name the same places of the disk.
func samePlace(a, b []mapfile.Extent) bool {
	return slices.EqualFunc(a, b, func(x, y mapfile.Extent) bool {
		if x.Pack != nil && y.Pack != nil {
			return x.Len == y.Len && x.Skip == y.Skip && x.Pack.Codec == y.Pack.Codec && samePlace(x.Pack.Parts, y.Pack.Parts)
		}
		return x.Kind == y.Kind && x.At == y.At && x.Len == y.Len && x.Disk == y.Disk && x.Image == y.Image && string(x.Bytes) == string(y.Bytes) && (x.Pack == nil) == (y.Pack == nil)
	})
}

// same tells whether a stretch of a disk is the same in both points.
func (c *comparison) same(disk int, off, n int64, touched bool) (bool, error) {
	va, vb := c.a[disk], c.b[disk]
	if va == nil {
		return false, nil
	}
	size := va.ClusterSize()
	for i := off / size; i*size < off+n; {
		last := (off + n - 1) / size
		ra, err := va.At(i, last-i+1)
		if err != nil {
			return false, err
		}
		rb, err := vb.At(i, ra.N)
		if err != nil {
			return false, err
		}
		if ra.Sum != rb.Sum {
			whole := i*size >= off && (i+1)*size <= off+n
			if whole || touched {
				return false, nil
			}
			from, to := max(off, i*size), min(off+n, (i+1)*size)
			p, q := make([]byte, to-from), make([]byte, to-from)
			if _, err := va.ReadAt(p, from); err != nil {
				return false, err
			}
			if _, err := vb.ReadAt(q, from); err != nil {
				return false, err
			}
			if string(p) != string(q) {
				return false, nil
			}
			i++
			continue
		}
		i += rb.N
	}
	return true, nil
}
