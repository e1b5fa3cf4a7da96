package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
)

// machineRecord tells of a machine.
type machineRecord struct {
	Type    string     `json:"type"` // "machine"
	Machine string     `json:"machine"`
	Points  int        `json:"points"`
	Hidden  int        `json:"hidden"`
	Stored  int64      `json:"stored"` // bytes of all its files
	Latest  string     `json:"latest,omitempty"`
	At      *time.Time `json:"at,omitempty"` // the instant that the latest shows
}

// pointRecord tells of a point.
type pointRecord struct {
	Type string `json:"type"` // "point"
	*repo.Point
	Clone int `json:"clone,omitempty"` // hides the point's own, which is long
	Chain int `json:"chain"`           // points that it consists of
}

// records writes records of one kind, a line each, and an end that counts them.
type records struct {
	w     io.Writer
	kind  string
	count int
}

func (r *records) write(v any) error {
	r.count++
	return r.line(v)
}

func (r *records) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = r.w.Write(append(b, '\n'))
	return err
}

func (r *records) end() error {
	_, err := fmt.Fprintf(r.w, "{\"type\":\"end\",%q:%d}\n", r.kind, r.count)
	return err
}

func (o *options) list(ctx context.Context, t *cli.Term, s repo.Store, args []string) error {
	if len(args) == 1 {
		return o.listPoints(ctx, t, s, args[0])
	}
	names, err := repo.Machines(ctx, s)
	if err != nil {
		return err
	}
	out := &records{w: t.Stdout, kind: "machines"}
	table := tabwriter.NewWriter(t.Stdout, 0, 0, 2, ' ', 0)
	if t.People {
		fmt.Fprintln(table, "MACHINE\tPOINTS\tSTORED\tLATEST")
	}
	for _, name := range names {
		points, err := readPoints(ctx, t, s, name)
		if err != nil {
			t.Warn("%v", err)
			t.Note(cli.Gaps)
			continue
		}
		m := machineRecord{Type: "machine", Machine: name}
		for _, p := range points {
			m.Stored += p.Stored
			if p.Hidden {
				m.Hidden++
				continue
			}
			m.Points++
			m.Latest, m.At = p.Name, &p.At
		}
		if t.People {
			fmt.Fprintf(table, "%s\t%d\t%s\t%s\n", cli.Printable(name), m.Points, cli.Size(m.Stored), m.Latest)
		} else if err := out.write(m); err != nil {
			return err
		}
	}
	if t.People {
		return table.Flush()
	}
	return out.end()
}

func (o *options) listPoints(ctx context.Context, t *cli.Term, s repo.Store, machine string) error {
	points, err := readPoints(ctx, t, s, machine)
	if err != nil {
		return err
	}
	out := &records{w: t.Stdout, kind: "points"}
	table := tabwriter.NewWriter(t.Stdout, 0, 0, 2, ' ', 0)
	if t.People {
		fmt.Fprintln(table, "POINT\tPARENT\tAGE\tDISKS\tSIZE\tSTORED\tSTATE")
	}
	for _, p := range points {
		if p.Hidden && !o.hidden {
			continue
		}
		chain, err := repo.Lineage(points, p)
		state := "ok"
		if err != nil {
			t.Warn("%v", err)
			t.Note(cli.Gaps)
			state = "broken"
		} else if p.Hidden {
			state = "hidden"
		}
		if t.People {
			parent := p.Parent
			if parent == "" {
				parent = "full"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", p.Name, parent, age(time.Since(p.At)), len(p.Disks), cli.Size(p.Size), cli.Size(p.Stored), state)
		} else if err := out.write(pointRecord{Type: "point", Point: p, Chain: len(chain)}); err != nil {
			return err
		}
	}
	if t.People {
		return table.Flush()
	}
	return out.end()
}

// age renders a time that went by in its largest unit.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "-"
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f minutes", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f hours", d.Hours())
	}
	return fmt.Sprintf("%.0f days", d.Hours()/24)
}
