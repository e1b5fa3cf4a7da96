package repo

import (
	"fmt"
	"slices"
	"strings"

	"vmkit/formats/ondisk"
)

// Lineage gives the points that p's image overlays, the full one first and p last.
func Lineage(points []*Point, p *Point) ([]*Point, error) {
	list := []*Point{p}
	for p.Parent != "" {
		i := slices.IndexFunc(points, func(x *Point) bool { return x.Name == p.Parent })
		switch {
		case i < 0:
			return nil, fmt.Errorf("point %s of %s: its parent %s is not there: %w", p.Name, p.Machine, p.Parent, ondisk.ErrTruncated)
		case slices.Contains(list, points[i]):
			return nil, ondisk.Corrupt("point "+p.Name+" of "+p.Machine, "parents that go round in a circle", -1, p.Parent)
		}
		p = points[i]
		list = append(list, p)
	}
	slices.Reverse(list)
	return list, nil
}

// Latest is the name that stands for the newest point.
const Latest = "latest"

// Choose finds the visible point that a user means: by its name, "latest", or the beginning of a time, such as
// 2026-11-20 or 20261120T09, when it is the newest of those.
func Choose(points []*Point, name string) (*Point, error) {
	prefix := strings.NewReplacer("-", "", ":", "").Replace(name)
	var found, hidden *Point
	for _, p := range points { // oldest first
		switch exact := p.Name == name; {
		case !exact && name != Latest && !(len(prefix) >= 4 && strings.HasPrefix(p.Name, prefix)):
		case p.Hidden:
			if exact {
				hidden = p
			}
		case exact:
			return p, nil
		default:
			found = p
		}
	}
	switch {
	case hidden != nil:
		return nil, fmt.Errorf("point %s of %s was dropped; it is kept only for those that build on it", name, hidden.Machine)
	case found == nil:
		return nil, fmt.Errorf("there is no point %q", name)
	}
	return found, nil
}
