package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"vmkit/cmd/internal/cli/clitest"
	"vmkit/cmd/internal/repo"
	"vmkit/cmd/internal/repo/repotest"
	"vmkit/fixtures"
)

func TestMain(m *testing.M) {
	clitest.Main(m, map[string]func(){"vmprune": main, "mkpoint": repotest.MakePoint})
}

func TestScripts(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("no qemu-img to look at images with")
	}
	clitest.Scripts(t, "testdata", map[string]string{"disk.qcow2": fixtures.Image(t, "gpt-disk", "disk.qcow2.zst")})
}

func TestDocs(t *testing.T) { clitest.Docs(t, command(), "vmprune.1") }

// kills is how often vmprune is killed in TestKill: VMPRUNE_KILLS says it.
func kills(t *testing.T) int {
	n, err := strconv.Atoi(os.Getenv("VMPRUNE_KILLS"))
	if err != nil {
		return 12
	}
	return n
}

// TestKill kills vmprune at random moments, while points are added. Every point that is listed then restores to what it
// was, and one that no run had to drop is listed.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	s, err := repo.OpenDir(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	made := map[string][sha256.Size]byte{} // of points by name
	var last *repotest.Made
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var took time.Duration
	for kill := range kills(t) {
		for points, err := repo.Points(t.Context(), s, "web1"); len(visible(points)) < 5; points, err = repo.Points(t.Context(), s, "web1") {
			if err != nil {
				t.Fatal(err)
			}
			last = grow(t, s, at, last, points, r)
			made[last.Name] = sha256.Sum256(last.Bytes())
			at = at.Add(time.Hour)
		}
		keep := 1 + r.IntN(4)
		c := exec.Command("vmprune", "--repo", dir, "--keep-last", fmt.Sprint(keep), "--waste", []string{"0", "33%", "1"}[r.IntN(3)], "--chain", "8")
		var errs bytes.Buffer
		c.Stderr = &errs
		start := time.Now()
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if kill%8 > 0 { // now and then it comes to its end, which tells how long that takes
			time.AfterFunc(time.Duration(r.Int64N(int64(took)+1)), func() { c.Process.Kill() })
		}
		err := c.Wait()
		if err == nil {
			took = max(took, time.Since(start))
		} else if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.Exited() {
			t.Fatalf("vmprune: %v: %s", err, errs.String())
		}
		check(t, s, made, keep)
	}
	left, err := filepath.Glob(filepath.Join(dir, "web1", ".tmp-*"))
	t.Logf("%d runs were killed; unfinished files that wait for the next run: %d, %v", kills(t), len(left), err)
}

func visible(points []*repo.Point) (list []*repo.Point) {
	for _, p := range points {
		if !p.Hidden {
			list = append(list, p)
		}
	}
	return list
}

// grow adds a point to the newest one.
func grow(t *testing.T, s repo.Store, at time.Time, last *repotest.Made, points []*repo.Point, r *rand.Rand) *repotest.Made {
	const n = 400
	clusters := map[int][]byte{}
	for i := range n {
		if last == nil && i%7 > 0 || r.IntN(20) == 0 {
			clusters[i] = repotest.Noise(r.Uint64(), repotest.Cluster)
		}
	}
	if last != nil { // its image may have been replaced, its name not
		now := *last
		now.Point = points[len(points)-1]
		last = &now
	}
	unlock, err := s.Lock(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	return repotest.Make(t, s, "web1", at, last, n, clusters)
}

// check reads all points that are listed.
func check(t *testing.T, s repo.Store, made map[string][sha256.Size]byte, keep int) {
	t.Helper()
	points, err := repo.Points(t.Context(), s, "web1")
	if err != nil {
		t.Fatal(err)
	}
	seen := visible(points)
	names := slices.Sorted(maps.Keys(made))
	if len(seen) < keep || seen[len(seen)-1].Name != names[len(names)-1] {
		t.Fatalf("%d points are left of at least %d", len(seen), keep)
	}
	for _, p := range seen {
		if got, err := sum(t.Context(), s, points, p); err != nil || got != made[p.Name] {
			t.Fatalf("point %s is lost or another: %v", p.Name, err)
		}
	}
}

func sum(ctx context.Context, s repo.Store, points []*repo.Point, p *repo.Point) (sum [sha256.Size]byte, err error) {
	chain, err := repo.Lineage(points, p)
	if err != nil {
		return sum, err
	}
	v, err := repo.OpenVerified(ctx, s, chain, 0, nil)
	if err != nil {
		return sum, err
	}
	defer v.Close()
	h := sha256.New()
	_, err = io.Copy(h, io.NewSectionReader(v, 0, v.Size()))
	h.Sum(sum[:0])
	return sum, err
}
