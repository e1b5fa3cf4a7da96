package repo_test

import (
	"bytes"
	"io"
	"testing"
	"time"

	"vmkit/cmd/internal/repo"
	"vmkit/cmd/internal/repo/repotest"
	"vmkit/fsmap/mapfile"
)

// FuzzFindSum: whatever stands in a .sums file, looking a cluster up ends, and tells of no other clusters than those of
// the disk.
func FuzzFindSum(f *testing.F) {
	const n = 600
	var text bytes.Buffer
	w := repo.NewSumsWriter(&text, n*repotest.Cluster, repotest.Cluster)
	for i := int64(0); i < n; i++ {
		switch {
		case i%50 < 3:
			w.Add(repo.Run{First: i, N: 1, Zero: true})
		case i%7 > 0:
			w.Add(repo.Run{First: i, N: 1, Sum: repo.Sum{1, byte(i), byte(i >> 8)}})
		}
	}
	if err := w.End("00"); err != nil {
		f.Fatal(err)
	}
	f.Add(text.Bytes(), int64(7))
	f.Add(text.Bytes()[:len(text.Bytes())/2], int64(599))
	f.Add([]byte("# zero 0 99999999999999999999\n"), int64(0))
	for i := range int64(n) { // what it tells of a sound file is what was written
		r, held, err := repo.FindSum(text.Bytes(), n*repotest.Cluster, repotest.Cluster, i, n-i)
		want := i%50 < 3 || i%7 > 0
		if err != nil || held != want || r.N < 1 || held && !r.Zero && (r.Sum[1] != byte(i) || r.Sum[2] != byte(i>>8)) {
			f.Fatalf("cluster %d: %+v, %v, %v", i, r, held, err)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte, i int64) {
		if i < 0 || i >= n {
			return
		}
		r, held, err := repo.FindSum(text, n*repotest.Cluster, repotest.Cluster, i, n-i)
		if err == nil && (r.N < 0 || r.N > n-i) || held && !r.Held() {
			t.Errorf("cluster %d: %+v, %v", i, r, held)
		}
	})
}

// FuzzPoint: no text makes reading a point fail otherwise than by an error.
func FuzzPoint(f *testing.F) {
	s, err := repo.OpenDir(f.TempDir(), true)
	if err != nil {
		f.Fatal(err)
	}
	m := repotest.Make(f, s, "web1", time.Unix(1700000000, 0), nil, 4, map[int][]byte{1: make([]byte, repotest.Cluster)})
	b, err := repo.ReadFile(f.Context(), s, "web1/"+m.Name+".json", 1<<20)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) { repo.ParsePoint(b) })
}

// FuzzSift: sifting a map ends, and lets nothing through that wasn't in it.
func FuzzSift(f *testing.F) {
	f.Add([]byte(`{"type":"volume","id":1,"name":"p1"}`+"\n"+`{"type":"file","volume":1,"path":"/etc/a"}`+"\n"), "/etc/*")
	f.Add([]byte(`{"type":"file","volume":`), "p1:/x")
	f.Fuzz(func(t *testing.T, text []byte, pattern string) {
		p, err := mapfile.ParsePatterns([]string{pattern})
		if err != nil {
			return
		}
		out, err := io.ReadAll(repo.Sift(bytes.NewReader(text), p))
		if err != nil || len(out) > len(text) {
			t.Errorf("%d bytes of %d: %v", len(out), len(text), err)
		}
	})
}
