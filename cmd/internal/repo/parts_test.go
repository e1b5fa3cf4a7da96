package repo

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"vmkit/cmd/internal/live"
	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// TestBitset holds runs against a plain list.
func TestBitset(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int64{1, 63, 64, 65, 1000} {
		s, want := newBitset(n), make([]bool, n)
		for range 50 {
			a := r.Int64N(n)
			b, in := a+r.Int64N(n-a+1), r.IntN(2) > 0
			s.set(a, b, in)
			for i := a; i < b; i++ {
				want[i] = in
			}
			for i := int64(0); i < n; i++ {
				in, end := s.run(i)
				k := i
				for k < n && want[k] == want[i] {
					k++
				}
				if in != want[i] || end != k {
					t.Fatalf("of %d at %d: %v up to %d, not %v up to %d", n, i, in, end, want[i], k)
				}
			}
		}
	}
}

// TestRanges: a set of bytes by units errs to one side, and tells clusters that lie in it.
func TestRanges(t *testing.T) {
	const size = 10*64<<10 + 5000
	r := newRanges(size, 4<<10)
	r.inner(1000, 200_000) // whole units from 4096 to 200704
	r.inner(size-9000, 9000)
	r.outer(70_000, 1, false) // the unit at 69632
	for _, tt := range []struct {
		i  int64
		in bool
		n  int64
	}{{0, false, 1}, {1, false, 1}, {2, true, 1}, {3, false, 1}, {4, false, 5}, {10, true, 1}} {
		if in, n := r.clusters(tt.i, 64<<10, 11-tt.i); in != tt.in || tt.i != 4 && n != tt.n {
			t.Errorf("cluster %d: %v, %d", tt.i, in, n)
		}
	}
	if big := newRanges(16<<40, 4<<10); big.n > maxUnits || big.unit != 128<<10 {
		t.Errorf("%d units of %d bytes", big.n, big.unit)
	}
}

// TestTree: the root is what sha256sum of the joined hashes gives, whatever stretches it was given by.
func TestTree(t *testing.T) {
	zero := ZeroSum(4096)
	var leaves [][]byte
	tree := NewTree()
	add := func(s Sum, n int64) {
		tree.Add(s, n)
		for range n {
			leaves = append(leaves, s[:])
		}
	}
	add(sha256.Sum256([]byte("a")), 1)
	add(zero, 3000)
	add(Sum{}, 5000)
	add(sha256.Sum256([]byte("b")), 1)
	var groups []byte
	for g := range slices.Chunk(leaves, 1024) {
		h := sha256.Sum256(bytes.Join(g, nil))
		groups = append(groups, h[:]...)
	}
	want := sha256.Sum256(groups)
	if got := tree.Root(); got != hex.EncodeToString(want[:]) {
		t.Errorf("root %s", got)
	}
}

// sumsPoint stores a .sums file and gives a point that has it.
func sumsPoint(t *testing.T, s Store, name string, size int64, runs ...Run) *Point {
	t.Helper()
	p := &Point{Machine: "m", Name: name, Disks: []Disk{{Size: size, Cluster: 4096}}}
	w, err := s.Create(t.Context(), "m/"+name+sumsEnd, false)
	if err != nil {
		t.Fatal(err)
	}
	h := &hashedWriter{w, sha256.New(), name + sumsEnd}
	sums := NewSumsWriter(h, size, 4096)
	for _, r := range runs {
		sums.Add(r)
	}
	if err := sums.End("0123"); err != nil {
		t.Fatal(err)
	}
	if p.Disks[0].Sums, err = h.commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestAccount: of each cluster the newest point that holds it counts.
func TestAccount(t *testing.T) {
	s, err := OpenDir(t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	zero := ZeroSum(4096)
	sum := func(text string) Sum { return sha256.Sum256([]byte(text)) }
	const size = 20*4096 - 100
	chain := []*Point{
		sumsPoint(t, s, "a", size, Run{First: 0, N: 1, Sum: sum("a0")}, Run{First: 1, N: 4, Sum: zero, Zero: true}, Run{First: 5, N: 3, Sum: zero, Zero: true},
			Run{First: 10, N: 1, Sum: sum("a10")}, Run{First: 19, N: 1, Sum: zero, Zero: true}),
		sumsPoint(t, s, "b", size, Run{First: 2, N: 1, Sum: sum("b2")}, Run{First: 10, N: 2, Sum: zero, Zero: true}),
	}
	a, err := OpenAccount(t.Context(), s, chain, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	want := map[int64]Sum{0: sum("a0"), 2: sum("b2"), 19: zero}
	for _, i := range []int64{1, 3, 4, 5, 6, 7, 10, 11} {
		want[i] = zero
	}
	for i := int64(0); i < 20; {
		r, err := a.At(i, 20)
		if err != nil || r.N < 1 {
			t.Fatalf("cluster %d: %+v, %v", i, r, err)
		}
		for k := i; k < i+r.N; k++ {
			if r.Sum != want[k] || r.Zero != (want[k] == zero) {
				t.Errorf("cluster %d: %x, not %x", k, r.Sum, want[k])
			}
		}
		i += r.N
	}
	if err := a.Finish(); err != nil {
		t.Error(err)
	}
}

// FuzzSums: no .sums file, however it is broken, gives anything but runs in order, or an error.
func FuzzSums(f *testing.F) {
	f.Add([]byte("# vmkit sums 1 disk 65536 cluster 4096\n# zero 0 8192\n# root 00\n"))
	f.Add([]byte("# vmkit sums 1 disk 65536 cluster 4096\n" + strings.Repeat("0a", 32) + "  4096\n# root 00\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		sum := sha256.Sum256(b)
		p := &Point{Machine: "m", Name: "p", Disks: []Disk{{Size: 65536, Cluster: 4096, Sums: StoredFile{Name: "p.sums", SHA256: hex.EncodeToString(sum[:])}}}}
		r, err := OpenSums(t.Context(), memStore{b}, p, 0)
		if err != nil {
			return
		}
		next := int64(0)
		for {
			x, err := r.Next()
			if err != nil {
				if err != io.EOF && !errors.Is(err, ondisk.ErrCorrupt) && !errors.Is(err, ondisk.ErrTruncated) {
					t.Errorf("error of no kind: %v", err)
				}
				return
			}
			if x.First < next || x.N < 1 || x.First+x.N > 16 || !x.Held() {
				t.Fatalf("%+v after cluster %d", x, next)
			}
			next = x.First + x.N
		}
	})
}

// memStore is a store with one file.
type memStore struct{ b []byte }

func (m memStore) URL() string { return "mem" }
func (m memStore) Open(context.Context, string) (Object, error) {
	return memory{bytes.NewReader(m.b)}, nil
}
func (m memStore) Create(context.Context, string, bool) (Writer, error) {
	return nil, errors.ErrUnsupported
}
func (m memStore) List(context.Context, string, func(Info) error) error { return nil }
func (m memStore) Remove(context.Context, ...string) error              { return nil }
func (m memStore) Lock(context.Context, string) (func() error, error) {
	return nil, errors.ErrUnsupported
}
func (m memStore) Close() error { return nil }

func TestReadRanges(t *testing.T) {
	for _, tt := range []struct{ in, disk, want string }{
		{`{"type":"changed","disk":"vda","ranges":[[0,10],[20,5]]}`, "vda", "[[0 10] [20 5]]"},
		{`{"type":"vm","name":"x","changed":[{"disk":"vda","state":"complete","ranges":[[1,2]]},{"disk":"vdb","state":"lost"}]}`, "vda", "[[1 2]]"},
		{`[{"start":0,"length":5,"depth":0,"present":true,"zero":false,"data":true},{"start":5,"length":5,"depth":1,"present":true,"data":true},
		   {"start":10,"length":5,"depth":0,"present":false},{"start":15,"length":1,"depth":0,"zero":true}]`, "disk0", "[[0 5] [15 1] [0 0]]"},
		{`[{"offset":0,"length":5,"type":0,"description":"clean"},{"offset":5,"length":7,"type":1,"description":"dirty"}]`, "disk0", "[[5 7] [0 0]]"},
		{`[]`, "disk0", "[[0 0]]"},
	} {
		c, err := ReadRanges(strings.NewReader(tt.in))
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		var got [][2]int64
		ok := c.mark(tt.disk, true, func(off, n int64) bool { got = append(got, [2]int64{off, n}); return true })
		if !ok || fmt.Sprint(got) != tt.want {
			t.Errorf("%s: %v, %v", tt.in, ok, got)
		}
	}
	for _, in := range []string{"", `{"type":"end"}`, `[{"length":4}]`, `{"type":"changed","disk":"a","ranges":[[-1,5]]}`, `{"type":`, `7`} {
		if _, err := ReadRanges(strings.NewReader(in)); err == nil {
			t.Errorf("%q is no error", in)
		}
	}
}

// TestDifferences: extents are compared by where they lie, holes and unwritten ones too.
func TestDifferences(t *testing.T) {
	x := func(at, place, n int64) live.Extent { return live.Extent{At: at, Place: place, Len: n} }
	unwritten, nowhere := x(40, 540, 10), x(50, 550, 10)
	unwritten.Unwritten, nowhere.NoPlace = true, true
	var shared bool
	got := differences(
		[]live.Extent{x(0, 100, 20), x(30, 530, 10), x(40, 540, 10), nowhere, x(70, 570, 10)},
		[]live.Extent{x(0, 100, 10), x(10, 900, 5), x(15, 115, 5), x(30, 530, 10), unwritten, nowhere, x(60, 1, 10)}, 90, &shared)
	if want := "[[10 15] [40 80]]"; fmt.Sprint(got) != want || !shared {
		t.Errorf("%v, shared %v, not %s", got, shared, want)
	}
	if differences([]live.Extent{x(0, 1, 5)}, []live.Extent{x(0, 9, 5)}, 5, new(bool)) == nil {
		t.Error("what lies elsewhere is the same")
	}
	var parts []string
	hit(got, 12, 40, func(off, n int64) { parts = append(parts, fmt.Sprintf("%d+%d", off, n)) })
	if fmt.Sprint(parts) != "[12+3 40+12]" {
		t.Errorf("%q", parts)
	}
}

// layout is a mapper of a list of extents.
type layout []formats.Extent

func (l layout) Size() (n int64) {
	for _, e := range l {
		n += e.Len
	}
	return n
}

func (l layout) ReadAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }

func (l layout) ExtentAt(off, max int64) (formats.Extent, error) {
	at := int64(0)
	for _, e := range l {
		if off < at+e.Len {
			d := off - at
			e.Off, e.Skip, e.Len = e.Off+d, e.Skip+d, min(max, e.Len-d)
			return e, nil
		}
		at += e.Len
	}
	return formats.Extent{}, io.EOF
}

// TestCompareLayouts: what lies at another place, or in a changed part of a file, has changed.
func TestCompareLayouts(t *testing.T) {
	f, g := &formats.File{}, &formats.File{}
	data := func(off, n int64, of *formats.File) formats.Extent {
		return formats.Extent{Kind: formats.Data, Len: n, Off: off, File: of}
	}
	packed := func(off, n int64, of *formats.File) formats.Extent {
		return formats.Extent{Kind: formats.Packed, Len: n, Pack: &formats.Pack{Parts: []formats.Extent{data(off, 5, of)}}}
	}
	zero := formats.Extent{Kind: formats.Zero, Len: 10}
	img := func(of *formats.File, l ...formats.Extent) *formats.Image {
		return &formats.Image{Disk: layout(l), Files: []*formats.File{of}}
	}
	var got []string
	if err := compareLayouts(
		img(f, data(0, 30, f), zero, zero, data(100, 10, f), packed(200, 10, f), packed(210, 10, f)),
		img(g, data(0, 20, g), data(50, 10, g), zero, data(60, 10, g), zero, packed(200, 10, g), packed(210, 10, g)),
		[][][2]int64{{{5, 8}, {212, 213}}}, func(off, n int64) bool { got = append(got, fmt.Sprintf("%d+%d", off, n)); return true }); err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprint(got); s != "[5+3 20+10 40+10 50+10 70+10]" {
		t.Errorf("changed: %s", s)
	}
}

// TestFileKey: keys are in the order of a map, a folder before what is in it and that before its next sibling.
func TestFileKey(t *testing.T) {
	list := []fileKey{{0, "/", ""}, {0, "/a", ""}, {0, "/a", "stream"}, {0, "/a/b", ""}, {0, "/a/b/c", ""}, {0, "/a.b", ""}, {0, "/a0", ""}, {1, "/", ""}}
	for i := range list {
		for k := range list {
			if got := list[i].compare(&list[k]); got < 0 != (i < k) || got > 0 != (i > k) {
				t.Errorf("%v and %v: %d", list[i], list[k], got)
			}
		}
	}
}
