package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/fsmap/mapfile"
)

// versionRecord is a version of a file.
type versionRecord struct {
	Type    string    `json:"type"` // "version"
	Machine string    `json:"machine"`
	Point   string    `json:"point"`
	At      time.Time `json:"at"`
	Volume  string    `json:"volume"`
	Path    string    `json:"path"`
	Stream  string    `json:"stream,omitempty"`
	What    string    `json:"what"` // "added", "changed", "removed"
	Kind    string    `json:"kind,omitempty"`
	Size    int64     `json:"size"`
	MTime   string    `json:"mtime,omitempty"`
	How     []string  `json:"how,omitempty"`
}

// printHistory lists every version of what a pattern selects that the points of a machine have.
func (o *options) printHistory(ctx context.Context, t *cli.Term, s repo.Store, args []string) error {
	patterns, err := mapfile.ParsePatterns([]string{o.history})
	if err != nil {
		return cli.Usagef("%w", err)
	}
	points, err := readPoints(ctx, t, s, args[0])
	if err != nil {
		return err
	}
	h := &history{t: t, out: &records{w: t.Stdout, kind: "versions"}}
	var last *point
	for _, p := range points {
		if p.Hidden {
			continue
		}
		next, err := choose(points, p.Machine, p.Name)
		if err != nil {
			return err
		}
		h.p = p
		if last == nil {
			err = h.all(ctx, s, next, patterns)
		} else {
			err = compare(ctx, s, last, next, patterns, h.tell)
		}
		if err != nil {
			return err
		}
		last = next
	}
	if h.out.count == 0 {
		return fmt.Errorf("%s: no point has a file that matches %s", args[0], o.history)
	}
	if t.People {
		return nil
	}
	return h.out.end()
}

// history tells of the versions of files.
type history struct {
	t   *cli.Term
	out *records
	p   *repo.Point
}

// all tells of the files of the first point.
func (h *history) all(ctx context.Context, s repo.Store, p *point, patterns mapfile.Patterns) error {
	w := repo.NewWalker(ctx, s, p.Point, patterns)
	defer w.Close()
	for {
		v, err := w.Next()
		if err != nil || v == nil {
			return err
		}
		if err := h.tell("added", v, nil); err != nil {
			return err
		}
	}
}

// tell tells of one version.
func (h *history) tell(what string, v *repo.Version, how []string) error {
	r := versionRecord{Type: "version", Machine: h.p.Machine, Point: h.p.Name, At: h.p.At, Volume: v.In, Path: v.Path, Stream: v.Stream, What: what, How: how}
	if what != "removed" {
		r.Kind, r.Size = v.Kind.String(), v.Size
		if v.MTime.Known {
			r.MTime = v.MTime.String()
		}
	}
	if !h.t.People {
		return h.out.write(r)
	}
	h.out.count++
	_, err := fmt.Fprintf(h.t.Stdout, "%s  %-8s %12d  %s  %s:%s  %s\n", r.Point, what, r.Size, r.MTime, cli.Printable(v.In), cli.Printable(nameOf(&v.File)), strings.Join(how, " "))
	return err
}
