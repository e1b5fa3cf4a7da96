package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"vmkit/fsmap/mapfile"
)

// Maps compares two maps, an old one and a new one: which files were added, removed or changed, and in what. Volumes go
// by their names, files by their paths. Where both maps have a file's sum (vmmap --hash), its content is compared;
// where not, whether its bytes still lie where they did.
func Maps(ctx context.Context, old, now *mapfile.Reader, o Options) (Summary, error) {
	r := newRun(ctx, o)
	m := &mapsCheck{run: r, a: side{in: old, name: "first map"}, b: side{in: now, name: "second map"}}
	return r.finish(m.compare())
}

type mapsCheck struct {
	*run
	a, b side
}

// side is one of two maps, of which one file is looked at at a time.
type side struct {
	in      *mapfile.Reader
	name    string
	volumes []*mapfile.Volume
	rank    map[int]int // volume id to its place among those that both have; absent: the other map has it not
	ahead   any         // a record that was read too far

	file    mapfile.File
	extents []mapfile.Extent
	more    uint64 // a hash of the extents that are not held
	ok      bool
	last    mapfile.File // to see that the order is kept
}

func (m *mapsCheck) compare() error {
	for _, s := range []*side{&m.a, &m.b} {
		if err := m.head(s); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if err := m.match(); err != nil {
		return err
	}
	if err := errors.Join(m.next(&m.a), m.next(&m.b)); err != nil {
		return err
	}
	for m.a.ok || m.b.ok {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		t := &task{checked: 1}
		c := m.order()
		switch {
		case c < 0:
			t.diff(m.a.at(), Missing, m.a.file.Kind.String(), "nothing")
		case c > 0:
			t.diff(m.b.at(), Extra, "nothing", m.b.file.Kind.String())
		default:
			m.fields(t)
		}
		if err := m.say(t); err != nil {
			return err
		}
		if c <= 0 {
			if err := m.next(&m.a); err != nil {
				return err
			}
		}
		if c >= 0 {
			if err := m.next(&m.b); err != nil {
				return err
			}
		}
	}
	return nil
}

// head reads up to the first file.
func (m *mapsCheck) head(s *side) error {
	seen := false
	for {
		rec, err := s.in.Next()
		if err != nil {
			return err
		}
		switch x := rec.(type) {
		case *mapfile.Map:
			seen = true
		case *mapfile.Volume:
			s.volumes = append(s.volumes, x)
		case *mapfile.Image, *mapfile.Other:
		case *mapfile.Problem:
			if err := m.pass(x, nil); err != nil {
				return err
			}
		default:
			if !seen {
				return errors.New("not a map")
			}
			s.ahead = rec
			return nil
		}
	}
}

// match finds the volumes that both maps have. Their order must be the same, for files come in it.
func (m *mapsCheck) match() error {
	t := &task{}
	find := func(list []*mapfile.Volume, name string) int {
		return slices.IndexFunc(list, func(v *mapfile.Volume) bool { return v.Name == name })
	}
	m.a.rank, m.b.rank = map[int]int{}, map[int]int{}
	last := -1
	for _, v := range m.a.volumes {
		i := find(m.b.volumes, v.Name)
		at := mapfile.Finding{Volume: v.ID, Path: v.Name}
		if i < 0 {
			t.diff(at, Missing, "volume", "nothing")
			continue
		}
		w := m.b.volumes[i]
		if i < last {
			return fmt.Errorf("the maps have volume %s in different places", v.Name)
		}
		last = i
		m.a.rank[v.ID], m.b.rank[w.ID] = len(m.a.rank), len(m.b.rank)
		if v.Size != w.Size {
			t.diff(at, Size, fmt.Sprint(v.Size), fmt.Sprint(w.Size))
		}
		if v.FS != w.FS || v.UUID != w.UUID {
			t.diff(at, "file system", v.FS+" "+v.UUID, w.FS+" "+w.UUID)
		}
	}
	for _, w := range m.b.volumes {
		if find(m.a.volumes, w.Name) < 0 {
			t.diff(mapfile.Finding{Volume: w.ID, Path: w.Name}, Extra, "nothing", "volume")
		}
	}
	return m.say(t)
}

// next reads the next file of a volume that both maps have.
func (m *mapsCheck) next(s *side) error {
	for {
		f, err := m.read(s)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if s.ok = f; !f {
			return nil
		}
		if _, known := s.rank[s.file.Volume]; !known {
			continue
		}
		if s.last.Path != "" && order(s.rank, &s.last, s.rank, &s.file) > 0 {
			return fmt.Errorf("%s: %s is not in the order of names", s.name, s.file.Path)
		}
		s.last = s.file
		return nil
	}
}

// read reads a file with all of its extents into s.file, and tells whether there was one.
func (m *mapsCheck) read(s *side) (bool, error) {
	for {
		rec := s.ahead
		s.ahead = nil
		if rec == nil {
			var err error
			if rec, err = s.in.Next(); err == io.EOF {
				return false, nil
			} else if err != nil {
				return false, err
			}
		}
		switch x := rec.(type) {
		case *mapfile.Map:
			return false, errors.New("more than one map in a stream can't be compared")
		case *mapfile.Problem:
			if err := m.pass(x, nil); err != nil {
				return false, err
			}
		case *mapfile.File:
			s.file = *x
			s.extents = append(s.extents[:0], x.Extents...)
			s.file.Extents = nil
			return true, m.rest(s, x.More)
		}
	}
}

// rest reads the extents records of a file. What goes beyond maxHeld is only hashed.
func (m *mapsCheck) rest(s *side, more bool) error {
	s.more = 0
	for more {
		rec, err := s.in.Next()
		if err != nil {
			return err
		}
		x, ok := rec.(*mapfile.Extents)
		if !ok {
			return errors.New("extents expected")
		}
		more = x.More
		if len(s.extents) < maxHeld {
			s.extents = append(s.extents, x.Extents...)
			continue
		}
		for i := range x.Extents {
			s.more = s.more*1099511628211 ^ place(&x.Extents[i])
		}
	}
	return nil
}

// place mixes what tells where an extent's bytes are in the virtual disk.
func place(e *mapfile.Extent) uint64 {
	h := uint64(14695981039346656037)
	for _, v := range [...]int64{int64(e.Kind), e.At, e.Len, e.Disk, e.Skip, int64(e.Image)} {
		h = (h ^ uint64(v)) * 1099511628211
	}
	return h
}

func (s *side) at() mapfile.Finding {
	return mapfile.Finding{Volume: s.file.Volume, Path: s.file.Path, Stream: s.file.Stream}
}

// order compares the files that both sides are at.
func (m *mapsCheck) order() int {
	switch {
	case !m.a.ok:
		return 1
	case !m.b.ok:
		return -1
	}
	return order(m.a.rank, &m.a.file, m.b.rank, &m.b.file)
}

// order compares files as maps have them: by volume, depth first with names in the order of their bytes, a file before
// its streams.
func order(ra map[int]int, a *mapfile.File, rb map[int]int, b *mapfile.File) int {
	if c := ra[a.Volume] - rb[b.Volume]; c != 0 {
		return c
	}
	p, q := strings.TrimPrefix(a.Path, "/"), strings.TrimPrefix(b.Path, "/")
	for p != q {
		var x, y string
		x, p, _ = strings.Cut(p, "/")
		y, q, _ = strings.Cut(q, "/")
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
	}
	return strings.Compare(a.Stream, b.Stream)
}

// fields compares two files.
func (m *mapsCheck) fields(t *task) {
	a, b, at := &m.a.file, &m.b.file, m.a.at()
	if a.Kind != b.Kind {
		t.diff(at, Type, a.Kind.String(), b.Kind.String())
		return
	}
	num := func(what string, x, y int64, format string) {
		if x != y {
			t.diff(at, what, fmt.Sprintf(format, x), fmt.Sprintf(format, y))
		}
	}
	if a.Kind == mapfile.Regular {
		num(Size, a.Size, b.Size, "%d")
		m.content(t, at)
	}
	num(Mode, a.Mode, b.Mode, "%04o")
	if a.UID != b.UID || a.GID != b.GID || a.Owner != b.Owner || a.Group != b.Group {
		t.diff(at, Owner, owner(a), owner(b))
	}
	num(Links, a.Links, b.Links, "%d")
	if a.MTime != b.MTime {
		t.diff(at, MTime, a.MTime.String(), b.MTime.String())
	}
	if a.Target != b.Target {
		t.diff(at, Target, a.Target, b.Target)
	}
	if a.Major != b.Major || a.Minor != b.Minor {
		t.diff(at, Device, fmt.Sprintf("%d:%d", a.Major, a.Minor), fmt.Sprintf("%d:%d", b.Major, b.Minor))
	}
	xattrs(t, at, a.Xattrs, b.Xattrs)
}

func owner(f *mapfile.File) string {
	if f.Owner != "" || f.Group != "" {
		return f.Owner + ":" + f.Group
	}
	return fmt.Sprintf("%d:%d", f.UID, f.GID)
}

func xattrs(t *task, at mapfile.Finding, a, b []mapfile.Xattr) {
	values := map[string][]byte{}
	for _, x := range b {
		values[x.Name] = x.Value
	}
	for _, x := range a {
		v, ok := values[x.Name]
		delete(values, x.Name)
		switch {
		case !ok:
			t.diff(at, Xattr, fmt.Sprintf("%s=%x", x.Name, x.Value), x.Name+": nothing")
		case !bytes.Equal(v, x.Value):
			t.diff(at, Xattr, fmt.Sprintf("%s=%x", x.Name, x.Value), fmt.Sprintf("%s=%x", x.Name, v))
		}
	}
	for _, x := range b {
		if v, ok := values[x.Name]; ok {
			t.diff(at, Xattr, x.Name+": nothing", fmt.Sprintf("%s=%x", x.Name, v))
		}
	}
}

// content compares sums, or else places.
func (m *mapsCheck) content(t *task, at mapfile.Finding) {
	a, b := &m.a, &m.b
	if x, y := a.file.SHA256, b.file.SHA256; x != "" && y != "" {
		if x != y {
			t.diff(at, Content, x, y)
		}
		return
	}
	i := 0
	for i < len(a.extents) && i < len(b.extents) && place(&a.extents[i]) == place(&b.extents[i]) && bytes.Equal(a.extents[i].Bytes, b.extents[i].Bytes) {
		i++
	}
	if i < len(a.extents) || i < len(b.extents) {
		t.diff(at, Extents, describe(a.extents, i), describe(b.extents, i))
	} else if a.more != b.more {
		t.diff(at, Extents, fmt.Sprintf("%x as the hash of those from the %dth on", a.more, i), fmt.Sprintf("%x", b.more))
	}
}

// describe renders an extent of a list.
func describe(list []mapfile.Extent, i int) string {
	if i >= len(list) {
		return "nothing more"
	}
	e := &list[i]
	s := fmt.Sprintf("%d bytes of %s at %d", e.Len, e.Kind, e.At)
	if e.Disk != mapfile.None {
		s += fmt.Sprintf(", from byte %d of the disk", e.Disk)
	}
	return s
}
