package repo_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmkit/cmd/internal/repo"
	"vmkit/cmd/internal/repo/repotest"
	"vmkit/fsmap/mapfile"
)

// prune prunes web1, and gives what was done as lines.
func prune(t *testing.T, s repo.Store, o repo.PruneOptions) []string {
	t.Helper()
	var done []string
	o.Zone = time.UTC
	o.Tell = func(a repo.Action) error {
		done = append(done, a.What+" "+a.Point)
		return nil
	}
	if err := repo.Prune(t.Context(), s, "web1", o); err != nil {
		t.Fatal(err)
	}
	return done
}

// checkAll reads every visible point, and compares it with what was put there.
func checkAll(t *testing.T, s repo.Store, list []*repotest.Made) (visible []string) {
	t.Helper()
	points, err := repo.Points(t.Context(), s, "web1")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		if p.Hidden {
			continue
		}
		visible = append(visible, p.Name)
		i := slices.IndexFunc(list, func(m *repotest.Made) bool { return m.Name == p.Name })
		v := verified(t, s, "web1", p.Name)
		if b, err := io.ReadAll(io.NewSectionReader(v, 0, v.Size())); err != nil || !bytes.Equal(b, list[i].Bytes()) {
			t.Fatalf("point %s holds other bytes, or none: %v", p.Name, err)
		}
	}
	return visible
}

func TestKeep(t *testing.T) {
	var points []*repo.Point
	for day := range 100 { // two a day
		for _, hour := range []int{3, 15} {
			at := time.Date(2026, 8, 1, hour, 0, 0, 0, time.UTC).AddDate(0, 0, day)
			points = append(points, &repo.Point{Name: at.Format("0102T15"), At: at})
		}
	}
	for _, tt := range []struct {
		keep repo.Keep
		want string
	}{
		{repo.Keep{}, "1108T15"},
		{repo.Keep{Last: 3}, "1107T15 1108T03 1108T15"},
		{repo.Keep{Daily: 3}, "1106T15 1107T15 1108T15"},
		{repo.Keep{Weekly: 3}, "1025T15 1101T15 1108T15"},
		{repo.Keep{Monthly: 9}, "0831T15 0930T15 1031T15 1108T15"},
		{repo.Keep{Last: 2, Daily: 2, Weekly: 2}, "1101T15 1107T15 1108T03 1108T15"},
	} {
		tt.keep.Zone = time.UTC
		var got []string
		for i, why := range tt.keep.Choose(points) {
			if why != "" {
				got = append(got, points[i].Name)
			}
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%+v keeps %s, not %s", tt.keep, s, tt.want)
		}
	}
	points[199].Hidden = true
	if why := (&repo.Keep{Last: 1, Zone: time.UTC}).Choose(points); why[199] != "" || why[198] != "last" {
		t.Errorf("a hidden point counts: %q", why[198:])
	}
}

// TestPrune drops points of random chains, and holds what is left against what it was.
func TestPrune(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			dir := t.TempDir()
			s := openDir(t, dir)
			list := made(t, s, "web1", 120, 8, seed)
			r := rand.New(rand.NewPCG(seed, 1))
			for left := len(list); left > 1; {
				keep := repo.Keep{Last: 1 + r.IntN(8)}
				waste := []float64{0, 0.3, 1, 1000}[r.IntN(4)]
				plan := prune(t, s, repo.PruneOptions{Keep: keep, Waste: waste, DryRun: true})
				if done := prune(t, s, repo.PruneOptions{Keep: keep, Waste: waste}); !slices.Equal(plan, done) {
					t.Errorf("planned %q, done %q", plan, done)
				}
				visible := checkAll(t, s, list)
				if left = min(keep.Last, left); len(visible) != left || visible[left-1] != list[len(list)-1].Name {
					t.Fatalf("%d points are visible, not %d", len(visible), left)
				}
			}
			// With everything folded, one full point is left, and no file that belongs to no point.
			prune(t, s, repo.PruneOptions{Keep: repo.Keep{Last: 1}})
			checkAll(t, s, list)
			if files, _ := filepath.Glob(filepath.Join(dir, "web1", "*")); len(files) != 4 { // with the lock
				t.Errorf("left are %q", files)
			}
		})
	}
}

// TestPruneSparing: while little is waste, nothing is written; a hidden full point stays.
func TestPruneSparing(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir)
	all, some := map[int][]byte{}, map[int][]byte{}
	for i := range 3000 {
		all[i] = repotest.Noise(uint64(i), repotest.Cluster)
		if i%100 == 0 {
			some[i] = repotest.Noise(uint64(i+1), repotest.Cluster)
		}
	}
	list := []*repotest.Made{repotest.Make(t, s, "web1", begin, nil, 3000, all)}
	for day := range 5 {
		list = append(list, repotest.Make(t, s, "web1", begin.AddDate(0, 0, day+1), list[day], 3000, some))
	}
	full, err := os.Stat(filepath.Join(dir, "web1", list[0].Disks[0].Image.Name))
	if err != nil {
		t.Fatal(err)
	}
	done := prune(t, s, repo.PruneOptions{Keep: repo.Keep{Last: 2}, Waste: 0.3})
	if st, err := os.Stat(filepath.Join(dir, "web1", list[0].Disks[0].Image.Name)); err != nil || !st.ModTime().Equal(full.ModTime()) {
		t.Errorf("the full image was written anew: %q, %v", done, err)
	}
	checkAll(t, s, list)
	// The increments that were hidden are folded: all they hold is replaced by the next one.
	if points, err := repo.Points(t.Context(), s, "web1"); err != nil || len(points) != 3 {
		t.Errorf("%d points are left, by %q: %v", len(points), done, err)
	}
}

// TestPruneChain: the newest point of a chain that is too long becomes a full one.
func TestPruneChain(t *testing.T) {
	s := openDir(t, t.TempDir())
	list := made(t, s, "web1", 100, 6, 3)
	if done := prune(t, s, repo.PruneOptions{Keep: repo.Keep{Last: 9}, Waste: 1000, Chain: 6}); len(done) != 6 {
		t.Errorf("done: %q", done)
	}
	done := prune(t, s, repo.PruneOptions{Keep: repo.Keep{Last: 9}, Waste: 1000, Chain: 5})
	if done[6] != "full "+list[5].Name {
		t.Errorf("done: %q", done)
	}
	if chain := lineage(t, s, "web1", repo.Latest); len(chain) != 1 {
		t.Errorf("the newest point's chain has %d", len(chain))
	}
	checkAll(t, s, list)
}

// TestPruneDamage: nothing is dropped while something is damaged, and nothing damaged is folded into another point.
func TestPruneDamage(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir)
	list := made(t, s, "web1", 100, 3, 4)
	o := repo.PruneOptions{Keep: repo.Keep{Last: 1, Zone: time.UTC}, Tell: func(repo.Action) error { return nil }}
	flip := func(name string, at func(b []byte) int) {
		t.Helper()
		path := filepath.Join(dir, "web1", name)
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		b[at(b)] ^= 1
		repotest.Write(t, path, string(b))
	}
	middle := func(b []byte) int { return len(b) / 2 }
	flip(list[0].Name+".json", middle)
	if err := repo.Prune(t.Context(), s, "web1", o); err == nil || !strings.Contains(err.Error(), "nothing is dropped") {
		t.Errorf("a damaged point: %v", err)
	}
	flip(list[0].Name+".json", middle)
	flip(list[1].Disks[0].Image.Name, func(b []byte) int {
		for i, c := range list[1].Disk { // a cluster of its own that is stored as it is
			if i%3 == 0 && c != nil && !bytes.Equal(c, list[0].Disk[i]) && bytes.Equal(c, list[2].Disk[i]) && bytes.Contains(b, c) {
				return bytes.Index(b, c)
			}
		}
		t.Fatal("no such cluster")
		return 0
	})
	before, _ := os.ReadFile(filepath.Join(dir, "web1", list[2].Disks[0].Image.Name))
	if err := repo.Prune(t.Context(), s, "web1", o); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("a damaged block: %v", err)
	}
	if after, _ := os.ReadFile(filepath.Join(dir, "web1", list[2].Disks[0].Image.Name)); !bytes.Equal(before, after) {
		t.Error("an image was replaced")
	}
}

// TestPruneS3: the same in a bucket, and a reader that has an image open which is replaced gets no mixture.
func TestPruneS3(t *testing.T) {
	repotest.Start(t)
	s := openS3(t)
	defer s.Close()
	list := made(t, s, "web1", 60, 4, 5)
	reader := verified(t, s, "web1", repo.Latest)
	done := prune(t, s, repo.PruneOptions{Keep: repo.Keep{Last: 2}})
	if visible := checkAll(t, s, list); len(visible) != 2 {
		t.Errorf("%d points are visible, by %q", len(visible), done)
	}
	o := repo.CheckOptions{Sample: 1, Progress: func(int64) {}, Report: func(f mapfile.Finding) error { return fmt.Errorf("%+v", f) }}
	if n, err := repo.Check(t.Context(), s, "web1", o); err != nil || n == 0 {
		t.Errorf("%d files were checked: %v", n, err)
	}
	if b, err := io.ReadAll(io.NewSectionReader(reader, 0, reader.Size())); err == nil && !bytes.Equal(b, list[3].Bytes()) {
		t.Error("a reader gets other bytes")
	}
}
