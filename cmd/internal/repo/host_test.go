package repo

import (
	"testing"
	"time"

	"vmkit/fsmap/mapfile"
)

// TestSettled: a file whose time is about that of the point before may have changed after it without another time.
func TestSettled(t *testing.T) {
	at := time.Date(2026, 11, 22, 9, 0, 0, 500_000_000, time.UTC)
	for _, tt := range []struct {
		before time.Duration // the file's time, before the point's
		same   bool
	}{{time.Hour, true}, {30 * time.Millisecond, true}, {10 * time.Millisecond, false}, {0, false}, {-time.Second, false}} {
		changed := mapfile.TimeOf(at.Add(-tt.before))
		f := mapfile.File{Path: "/f", Kind: mapfile.Regular, Size: 9, Inode: 7, MTime: changed, CTime: changed}
		h := &hostParent{at: at, cur: f, list: []mapfile.Extent{{Len: 9, Kind: mapfile.Data}}}
		if old, same, likely := h.find(&f); same != tt.same || !likely || len(old) != 1 {
			t.Errorf("%v before: same %v, likely %v", tt.before, same, likely)
		}
	}
}
