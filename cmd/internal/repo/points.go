package repo

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"

	"vmkit/formats/ondisk"
)

// Ends of the names of a point's files.
const (
	pointEnd = ".json"
	imageEnd = ".qcow2"
	mapEnd   = ".map.zst"
	sumsEnd  = ".sums"
	// configDir ends the name of the folder of configuration files.
	configDir = ".config"
)

// maxPoint bounds a point's own file: a clone record alone has up to 1 MiB.
const maxPoint = 64 << 20

// ValidMachine tells whether a machine can be called so in a repository, whatever store that is.
func ValidMachine(name string) error {
	bad := func(r rune) bool { return r == '/' || r == '\\' || unicode.IsControl(r) }
	if name == "" || len(name) > 200 || name[0] == '.' || strings.IndexFunc(name, bad) >= 0 || strings.ToValidUTF8(name, "") != name {
		return fmt.Errorf("%q can't be a machine's name in a repository", name)
	}
	return nil
}

// plainName tells whether name is that of a file in the folder itself.
func plainName(name string) bool { return validName(name) && !strings.Contains(name, "/") }

// Machines gives the names of the machines that have points, in byte order.
func Machines(ctx context.Context, s Store) ([]string, error) {
	var list []string
	err := s.List(ctx, "", func(i Info) error {
		machine, file, ok := strings.Cut(i.Name, "/")
		if ok && plainName(file) && strings.HasSuffix(file, pointEnd) && (len(list) == 0 || list[len(list)-1] != machine) {
			list = append(list, machine)
		}
		return nil
	})
	slices.Sort(list)
	return slices.Compact(list), err
}

// Points gives a machine's points, hidden ones too, oldest first: by the instant that they show, then by that of their making. Where
// some can't be read, it gives the others with the error.
func Points(ctx context.Context, s Store, machine string) ([]*Point, error) {
	if err := ValidMachine(machine); err != nil {
		return nil, err
	}
	var names []string
	if err := s.List(ctx, machine+"/", func(i Info) error {
		file := strings.TrimPrefix(i.Name, machine+"/")
		if name, ok := strings.CutSuffix(file, pointEnd); ok && plainName(file) {
			names = append(names, name)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	var list []*Point
	var errs []error
	for _, name := range names {
		p, err := ReadPoint(ctx, s, machine, name)
		if errors.Is(err, ErrNotExist) { // it was removed meanwhile
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, p)
	}
	slices.SortStableFunc(list, func(a, b *Point) int { return cmp.Or(a.At.Compare(b.At), a.Made.Compare(b.Made)) })
	return list, errors.Join(errs...)
}

// ReadPoint reads one point, and checks what it says as far as that takes no other file.
func ReadPoint(ctx context.Context, s Store, machine, name string) (*Point, error) {
	file := path.Join(machine, name+pointEnd)
	b, err := ReadFile(ctx, s, file, maxPoint)
	if err != nil {
		return nil, err
	}
	if err := unseal(b); err != nil {
		return nil, fmt.Errorf("%s: %w", Path(s, file), err)
	}
	p := &Point{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", Path(s, file), err, ondisk.ErrCorrupt)
	}
	if err := p.check(machine, name); err != nil {
		return nil, fmt.Errorf("%s: %w", Path(s, file), err)
	}
	return p, nil
}

func (p *Point) check(machine, name string) error {
	switch {
	case p.Version < 1:
		return ondisk.Corrupt("point", "version", -1, p.Version)
	case p.Version > PointVersion:
		return ondisk.Unsupported("point", "version", -1, p.Version)
	case p.Machine != machine || p.Name != name:
		return ondisk.Corrupt("point", "name", -1, fmt.Sprintf("%q of %q", p.Name, p.Machine))
	case p.Parent != "" && !plainName(p.Parent):
		return ondisk.Corrupt("point", "parent", -1, fmt.Sprintf("%q", p.Parent))
	}
	for i := range p.Disks {
		d := &p.Disks[i]
		if d.Size < 0 || d.Cluster < 512 || d.Cluster > 2<<20 || d.Cluster&(d.Cluster-1) != 0 {
			return ondisk.Corrupt("point", fmt.Sprintf("disk %d: size or cluster size", i), -1, fmt.Sprintf("%d, %d", d.Size, d.Cluster))
		}
	}
	for _, f := range p.Files() {
		if !validName(f.Name) || f.Size < 0 {
			return ondisk.Corrupt("point", "file", -1, fmt.Sprintf("%q, %d bytes", f.Name, f.Size))
		}
	}
	return nil
}

// Files gives all files of the point but its own, each once. Disks that were mapped together share one map.
func (p *Point) Files() []StoredFile {
	var list []StoredFile
	add := func(f StoredFile) {
		if f.Name != "" && !slices.ContainsFunc(list, func(x StoredFile) bool { return x.Name == f.Name }) {
			list = append(list, f)
		}
	}
	for i := range p.Disks {
		add(p.Disks[i].Image)
		add(p.Disks[i].Map)
		add(p.Disks[i].Sums)
	}
	for _, f := range p.Config {
		add(f)
	}
	return list
}

// Maps gives the maps of the point's disks, each once.
func (p *Point) Maps() (list []StoredFile) {
	for i := range p.Disks {
		f := p.Disks[i].Map
		if f.Name != "" && !slices.ContainsFunc(list, func(x StoredFile) bool { return x.Name == f.Name }) {
			list = append(list, f)
		}
	}
	return list
}

// WritePoint commits a point: with it, it exists. A new one never replaces another.
func WritePoint(ctx context.Context, s Store, p *Point, exclusive bool) error {
	b, err := seal(p)
	if err != nil {
		return err
	}
	w, err := s.Create(ctx, path.Join(p.Machine, p.Name+pointEnd), exclusive)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := w.Write(b); err != nil {
		return err
	}
	_, err = w.Commit(ctx)
	return err
}

// Unfinished gives the names of a machine's files that belong to no point: those of a run that was interrupted before it
// committed, where the caller holds the machine's lock.
func Unfinished(ctx context.Context, s Store, machine string, points []*Point) ([]string, error) {
	known := map[string]bool{}
	for _, p := range points {
		known[path.Join(machine, p.Name+pointEnd)] = true
		for _, f := range p.Files() {
			known[path.Join(machine, f.Name)] = true
		}
	}
	var list []string
	err := s.List(ctx, machine+"/", func(i Info) error {
		if !known[i.Name] && pointFile(strings.TrimPrefix(i.Name, machine+"/")) {
			list = append(list, i.Name)
		}
		return nil
	})
	return list, err
}

// pointFile tells whether a name is one that a file of a point has: what somebody else put there is left alone.
func pointFile(name string) bool {
	point, rest, ok := strings.Cut(name, ".")
	if !ok || !isPointName(point) {
		return false
	}
	return strings.HasPrefix(rest, configDir[1:]+"/") ||
		plainName(rest) && (strings.HasSuffix(rest, imageEnd) || strings.HasSuffix(rest, mapEnd) || strings.HasSuffix(rest, sumsEnd))
}

// ReadFile reads a whole file of at most limit bytes.
func ReadFile(ctx context.Context, s Store, name string, limit int64) ([]byte, error) {
	o, err := s.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer o.Close()
	if o.Size() > limit {
		return nil, fmt.Errorf("%s: %w", Path(s, name), ondisk.Unsupported("file", "size", -1, o.Size()))
	}
	b := make([]byte, o.Size())
	if n, err := o.ReadAt(b, 0); n < len(b) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("%s: %w", Path(s, name), err)
	}
	return b, nil
}

var pointName = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z(-[0-9]+)?$`)

func isPointName(s string) bool { return pointName.MatchString(s) }

// NewPointName names a point after the instant that it shows, apart from the points that there are.
func NewPointName(at time.Time, points []*Point) string {
	first := at.UTC().Format("20060102T150405Z")
	name := first
	for i := 2; slices.ContainsFunc(points, func(p *Point) bool { return p.Name == name }); i++ {
		name = fmt.Sprintf("%s-%d", first, i)
	}
	return name
}
