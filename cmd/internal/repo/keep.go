package repo

import (
	"fmt"
	"time"
)

// Keep says which points of a machine stay. The newest one always does.
type Keep struct {
	Last    int // so many of the newest
	Daily   int // the newest of each of so many days that have any
	Weekly  int
	Monthly int
	Zone    *time.Location // whose days these are; nil: the local one
}

// Any tells whether it keeps anything.
func (k *Keep) Any() bool { return k.Last > 0 || k.Daily > 0 || k.Weekly > 0 || k.Monthly > 0 }

// Choose tells of each point, oldest first, why it stays, or "" for one that doesn't. Hidden ones are dropped already.
func (k *Keep) Choose(points []*Point) []string {
	why := make([]string, len(points))
	zone := k.Zone
	if zone == nil {
		zone = time.Local
	}
	add := func(i int, text string) {
		if why[i] != "" {
			why[i] += ", "
		}
		why[i] += text
	}
	for _, rule := range []struct {
		n      int
		name   string
		period func(t time.Time, i int) string
	}{
		{max(k.Last, 1), "last", func(_ time.Time, i int) string { return fmt.Sprint(i) }},
		{k.Daily, "daily", func(t time.Time, _ int) string { return t.Format("2006-01-02") }},
		{k.Weekly, "weekly", func(t time.Time, _ int) string { y, w := t.ISOWeek(); return fmt.Sprint(y, w) }},
		{k.Monthly, "monthly", func(t time.Time, _ int) string { return t.Format("2006-01") }},
	} {
		last, left := "", rule.n
		for i := len(points) - 1; i >= 0 && left > 0; i-- {
			if points[i].Hidden {
				continue
			}
			if p := rule.period(points[i].At.In(zone), i); p != last {
				last = p
				left--
				add(i, rule.name)
			}
		}
	}
	return why
}
