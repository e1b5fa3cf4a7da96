package repo

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/hostsnap"
	"vmkit/formats/formatstest"
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

// TestCopyIsLater: a file that changed between the walk's look at it and its copy is recorded as it was copied.
func TestCopyIsLater(t *testing.T) {
	dir := formatstest.Mount(t, "mkfs.xfs", "300M")
	path := filepath.Join(dir, "f")
	var st unix.Stat_t
	if err := os.WriteFile(path, []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	f := hostRecord("/f", &st)
	f.Xattrs = []mapfile.Xattr{{Name: "user.x"}}
	if err := os.WriteFile(path, []byte("and after"), 0o600); err != nil {
		t.Fatal(err)
	}
	files, err := hostsnap.Take(t.Context(), hostsnap.Reflink, []string{dir}, t.Errorf)
	if err != nil {
		t.Fatal(err)
	}
	b := &hostMaker{HostOptions: HostOptions{Files: files}}
	j := &hostJob{hostSource: hostSource{path: path}}
	if err := b.copy(f, &j.hostSource); err != nil {
		t.Fatal(err)
	}
	if f.Size != 9 || f.Inode != st.Ino || len(f.Xattrs) != 1 || j.size != 9 || j.inode == st.Ino || !j.unchanged() {
		t.Errorf("%+v, %+v", f, j)
	}
	if err := os.WriteFile(path, []byte("last"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(j.path); err != nil || string(got) != "and after" {
		t.Errorf("%q, %v", got, err)
	}
	if err := files.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(j.path); !os.IsNotExist(err) {
		t.Errorf("the copy is still there: %v", err)
	}
}
