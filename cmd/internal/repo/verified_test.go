package repo_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmkit/cmd/internal/repo"
	"vmkit/cmd/internal/repo/repotest"
	"vmkit/formats"
	"vmkit/formats/ondisk"
)

var begin = time.Date(2026, 11, 20, 9, 0, 0, 0, time.UTC)

// made makes a chain of points with random changes: half the clusters noise, some zeros, some never held.
func made(t *testing.T, s repo.Store, machine string, n, points int, seed uint64) []*repotest.Made {
	t.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	var list []*repotest.Made
	var parent *repotest.Made
	for k := range points {
		clusters := map[int][]byte{}
		for i := range n {
			switch x := r.IntN(20); {
			case k > 0 && x > 4, x == 0:
			case x == 1:
				clusters[i] = make([]byte, repotest.Cluster)
			case x < 4:
				clusters[i] = repotest.Noise(uint64(r.IntN(256)), repotest.Cluster)
			default:
				clusters[i] = bytes.Repeat(fmt.Appendf(nil, "%04d%04d", k, i), repotest.Cluster/8)
			}
		}
		parent = repotest.Make(t, s, machine, begin.AddDate(0, 0, k), parent, n, clusters)
		list = append(list, parent)
	}
	return list
}

func lineage(t *testing.T, s repo.Store, machine, name string) []*repo.Point {
	t.Helper()
	points, err := repo.Points(t.Context(), s, machine)
	if err != nil {
		t.Fatal(err)
	}
	p, err := repo.Choose(points, name)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := repo.Lineage(points, p)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

func verified(t *testing.T, s repo.Store, machine, name string) *repo.Verified {
	t.Helper()
	v, err := repo.OpenVerified(t.Context(), s, lineage(t, s, machine, name), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

func TestVerified(t *testing.T) {
	s := openDir(t, t.TempDir())
	for _, m := range made(t, s, "web1", 2000, 4, 1) {
		v := verified(t, s, "web1", m.Name)
		want := m.Bytes()
		if b, err := io.ReadAll(io.NewSectionReader(v, 0, v.Size())); err != nil || !bytes.Equal(b, want) {
			t.Fatalf("%s: other bytes: %v", m.Name, err)
		}
		var out bytes.Buffer
		if _, err := formats.Copy(t.Context(), &out, v, 2); err != nil || !bytes.Equal(out.Bytes(), want) {
			t.Errorf("%s: Copy gives other bytes: %v", m.Name, err)
		}
		r := rand.New(rand.NewPCG(9, 9))
		v.Unheld = true
		for range 300 {
			off := r.Int64N(v.Size())
			p := make([]byte, r.IntN(3*repotest.Cluster)+1)
			n, err := v.ReadAt(p, off)
			held := true
			for i := off / repotest.Cluster; i*repotest.Cluster < min(off+int64(len(p)), v.Size()); i++ {
				held = held && m.Disk[i] != nil
			}
			switch {
			case !held && !errors.Is(err, repo.ErrUnheld):
				t.Errorf("%d bytes at %d, not all held: %v", len(p), off, err)
			case held && !bytes.Equal(p[:n], want[off:min(off+int64(len(p)), v.Size())]):
				t.Errorf("%d bytes at %d: others", len(p), off)
			}
		}
	}
}

// TestVerifiedDamage: whatever bit of the files flips, never are other bytes given out than were stored.
func TestVerifiedDamage(t *testing.T) {
	dir := t.TempDir()
	s := openDir(t, dir)
	list := made(t, s, "web1", 60, 3, 2)
	want := list[2].Bytes()
	files, err := filepath.Glob(filepath.Join(dir, "web1", "*"))
	if err != nil || len(files) != 9 {
		t.Fatal(files, err)
	}
	r := rand.New(rand.NewPCG(3, 3))
	noticed := 0
	for range 200 {
		file := files[r.IntN(len(files))]
		old, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(old)
		flipped[r.IntN(len(old))] ^= 1 << r.IntN(8)
		repotest.Write(t, file, string(flipped))
		got, err := readAll(t, s)
		if err != nil {
			noticed++
		} else if !bytes.Equal(got, want) {
			t.Fatalf("%s: a flipped bit gives other bytes", file)
		}
		repotest.Write(t, file, string(old))
	}
	if noticed < 30 {
		t.Errorf("only %d flipped bits were noticed", noticed)
	}
}

func readAll(t *testing.T, s repo.Store) ([]byte, error) {
	points, err := repo.Points(t.Context(), s, "web1")
	if err != nil {
		return nil, err
	}
	p, err := repo.Choose(points, repo.Latest)
	if err != nil {
		return nil, err
	}
	chain, err := repo.Lineage(points, p)
	if err != nil {
		return nil, err
	}
	v, err := repo.OpenVerified(t.Context(), s, chain, 0, nil)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	return io.ReadAll(io.NewSectionReader(v, 0, v.Size()))
}

func TestChoose(t *testing.T) {
	points := []*repo.Point{
		{Name: "20261119T090000Z", Machine: "web1"}, {Name: "20261120T090000Z", Machine: "web1"},
		{Name: "20261120T210000Z", Machine: "web1"}, {Name: "20261121T090000Z", Machine: "web1", Hidden: true},
	}
	for name, want := range map[string]string{
		"latest": "20261120T210000Z", "2026-11-20": "20261120T210000Z", "20261119": "20261119T090000Z", "2026-11-20T09": "20261120T090000Z",
		"20261120T090000Z": "20261120T090000Z", "2026": "20261120T210000Z",
		"2026-11-21": "", "20261121T090000Z": "dropped", "202": "", "": "", "2027": "",
	} {
		p, err := repo.Choose(points, name)
		switch {
		case err == nil && p.Name != want, err != nil && strings.HasPrefix(want, "2"), want == "dropped" && !strings.Contains(err.Error(), want):
			t.Errorf("%q: %v, %v; not %q", name, p, err, want)
		}
	}
}

func TestLineage(t *testing.T) {
	a, b, c := &repo.Point{Name: "a", Parent: "c"}, &repo.Point{Name: "b", Parent: "a"}, &repo.Point{Name: "c", Parent: "b"}
	if _, err := repo.Lineage([]*repo.Point{a, b, c}, c); !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("a circle: %v", err)
	}
	if _, err := repo.Lineage([]*repo.Point{b, c}, c); !errors.Is(err, ondisk.ErrTruncated) {
		t.Errorf("a parent that isn't there: %v", err)
	}
}
