package repotest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"vmkit/cmd/internal/repo"
)

// Suite holds a Store against what Store's documentation says. open opens the same store anew each time.
func Suite(t *testing.T, open func(t *testing.T) repo.Store) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, repo.Store, func(*testing.T) repo.Store)
	}{
		{"write and read", writeRead}, {"names", names}, {"replace", replace}, {"exclusive", exclusive}, {"abort", abort},
		{"list and remove", listRemove}, {"lock", lock}, {"cancel", cancelled},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := open(t)
			defer s.Close()
			test.run(t, s, open)
		})
	}
}

// Noise gives n bytes that no compression makes shorter, the same for the same seed.
func Noise(seed uint64, n int) []byte {
	var key [32]byte
	key[0] = byte(seed)
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// Write writes a file of the host.
func Write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, s repo.Store, name string, exclusive bool, data []byte) (repo.Info, error) {
	t.Helper()
	w, err := s.Create(t.Context(), name, exclusive)
	if err != nil {
		return repo.Info{}, err
	}
	defer w.Abort()
	if _, err := w.Write(data); err != nil {
		return repo.Info{}, err
	}
	return w.Commit(t.Context())
}

func mustPut(t *testing.T, s repo.Store, name string, data []byte) {
	t.Helper()
	if _, err := put(t, s, name, false, data); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s repo.Store, name string) []byte {
	t.Helper()
	o, err := s.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	b, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func list(t *testing.T, s repo.Store, prefix string) (names []string) {
	t.Helper()
	if err := s.List(t.Context(), prefix, func(i repo.Info) error {
		names = append(names, i.Name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

func writeRead(t *testing.T, s repo.Store, open func(*testing.T) repo.Store) {
	for _, size := range []int{0, 1, 100_000, repo.Head, repo.Head + 1, 3*repo.Head + 4711} {
		name := fmt.Sprintf("web1/%d", size)
		data := Noise(uint64(size), size)
		w, err := s.Create(t.Context(), name, false)
		if err != nil {
			t.Fatal(err)
		}
		for rest := data; len(rest) > 0; { // in pieces of odd lengths
			n := min(len(rest), 1_234_567)
			if _, err := w.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		head := Noise(1, min(size, 3000))
		at := int64(min(size, repo.Head) - len(head))
		copy(data[at:], head)
		if err := w.WriteHead(head, at); err != nil {
			t.Fatal(err)
		}
		if w.WriteHead(make([]byte, 2), int64(min(size, repo.Head))-1) == nil {
			t.Errorf("%d bytes: the head reaches beyond itself", size)
		}
		if names := list(t, s, name); len(names) > 0 {
			t.Errorf("%q is there before Commit", names)
		}
		info, err := w.Commit(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.Abort()
		if info.Name != name || info.Size != int64(size) || info.MTime.IsZero() {
			t.Errorf("%d bytes: Commit gives %+v", size, info)
		}
		other := open(t)
		o, err := other.Open(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if o.Size() != int64(size) || !o.MTime().Equal(info.MTime) {
			t.Errorf("%d bytes: the open file has %d, of %v; Commit said %v", size, o.Size(), o.MTime(), info.MTime)
		}
		checkReads(t, o, data)
		o.Close()
		other.Close()
	}
}

// checkReads reads data in many ways at once.
func checkReads(t *testing.T, o repo.Object, data []byte) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for seed := range uint64(4) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(seed, 0))
			for range 20 {
				off := r.Int64N(int64(len(data)) + 10)
				p := make([]byte, r.IntN(1<<(8+r.IntN(13)))+1)
				n, err := o.ReadAt(p, off)
				want := data[min(off, int64(len(data))):min(off+int64(len(p)), int64(len(data)))]
				if !bytes.Equal(p[:n], want) {
					t.Errorf("%d bytes at %d of %d: %d come, or others", len(p), off, len(data), n)
				}
				if short := n < len(p); short != (err == io.EOF) || !short && err != nil {
					t.Errorf("%d bytes at %d of %d: error %v", len(p), off, len(data), err)
				}
			}
		})
	}
	wg.Go(func() {
		if b, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size())); err != nil || !bytes.Equal(b, data) {
			t.Errorf("all %d bytes: %d come, or others; error %v", len(data), len(b), err)
		}
	})
}

func names(t *testing.T, s repo.Store, _ func(*testing.T) repo.Store) {
	for _, name := range []string{"", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", ".", "a\x00b"} {
		if _, err := put(t, s, name, false, nil); err == nil {
			t.Errorf("%q can be written", name)
		}
		if o, err := s.Open(t.Context(), name); err == nil {
			o.Close()
			t.Errorf("%q can be opened", name)
		}
	}
	for _, name := range []string{"web1/20261122T090000Z.json", "a b/ü.qcow2", "m/p.config/etc/x+y=z&a%20;.xml"} {
		mustPut(t, s, name, []byte(name))
		if string(get(t, s, name)) != name {
			t.Errorf("%q holds something else", name)
		}
	}
	if _, err := s.Open(t.Context(), "web1/nothing"); !errors.Is(err, repo.ErrNotExist) {
		t.Errorf("a file that isn't there: %v", err)
	}
	if _, err := s.Open(t.Context(), "a b"); !errors.Is(err, repo.ErrNotExist) {
		t.Errorf("a folder: %v", err)
	}
}

func replace(t *testing.T, s repo.Store, _ func(*testing.T) repo.Store) {
	old, new := Noise(1, 3<<20), Noise(2, 3<<20)
	mustPut(t, s, "web1/disk", old)
	o, err := s.Open(t.Context(), "web1/disk")
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	p := make([]byte, 1000)
	if _, err := o.ReadAt(p, 0); err != nil || !bytes.Equal(p, old[:1000]) {
		t.Fatalf("before it is replaced: %v", err)
	}
	mustPut(t, s, "web1/disk", new)
	p = make([]byte, 300<<10)
	if _, err := o.ReadAt(p, 2<<20); err == nil && !bytes.Equal(p, old[2<<20:2<<20+len(p)]) || err != nil && !errors.Is(err, repo.ErrChanged) {
		t.Errorf("after it was replaced: neither the old bytes nor ErrChanged: %v", err)
	}
	if !bytes.Equal(get(t, s, "web1/disk"), new) {
		t.Error("the new file has other bytes")
	}
}

func exclusive(t *testing.T, s repo.Store, open func(*testing.T) repo.Store) {
	for _, size := range []int{10, repo.Head + 10} {
		name := fmt.Sprintf("web2/x%d", size)
		if _, err := put(t, s, name, true, Noise(1, size)); err != nil {
			t.Fatal(err)
		}
		if _, err := put(t, s, name, true, Noise(2, size)); !errors.Is(err, repo.ErrExists) {
			t.Errorf("a second time: %v", err)
		}
		if !bytes.Equal(get(t, s, name), Noise(1, size)) {
			t.Error("the second writer replaced it")
		}
	}
	// Of many at once, one wins.
	var wg sync.WaitGroup
	var mu sync.Mutex
	var won []int
	for i := range 8 {
		wg.Go(func() {
			s := open(t)
			defer s.Close()
			_, err := put(t, s, "web2/race", true, fmt.Append(nil, i))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won = append(won, i)
			} else if !errors.Is(err, repo.ErrExists) {
				t.Errorf("racing: %v", err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 || string(get(t, s, "web2/race")) != fmt.Sprint(won[0]) {
		t.Errorf("%v won, the file holds %q", won, get(t, s, "web2/race"))
	}
}

func abort(t *testing.T, s repo.Store, _ func(*testing.T) repo.Store) {
	mustPut(t, s, "web3/kept", []byte("old"))
	for _, size := range []int{10, 2*repo.Head + 10} {
		for _, name := range []string{"web3/kept", "web3/new"} {
			w, err := s.Create(t.Context(), name, false)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(Noise(3, size)); err != nil {
				t.Fatal(err)
			}
			w.Abort()
			w.Abort()
		}
	}
	if got := list(t, s, "web3/"); !slices.Equal(got, []string{"web3/kept"}) || string(get(t, s, "web3/kept")) != "old" {
		t.Errorf("after Abort there are %q", got)
	}
}

func listRemove(t *testing.T, s repo.Store, _ func(*testing.T) repo.Store) {
	all := []string{"web4/a.json", "web4/a.x/1", "web4/a/1", "web4/b.json", "web4x/c"}
	for _, name := range slices.Backward(all) {
		mustPut(t, s, name, []byte("12345"))
	}
	if got := list(t, s, "web4"); !slices.Equal(got, all) {
		t.Errorf("of web4* there are %q, not %q", got, all)
	}
	if got := list(t, s, "web4/a"); !slices.Equal(got, all[:3]) {
		t.Errorf("of web4/a* there are %q", got)
	}
	if got := list(t, s, "nothing/"); len(got) > 0 {
		t.Errorf("of nothing there are %q", got)
	}
	stop := errors.New("enough")
	if err := s.List(t.Context(), "web4", func(i repo.Info) error {
		if i.Size != 5 || i.MTime.IsZero() {
			t.Errorf("the list tells %+v", i)
		}
		return stop
	}); err != stop {
		t.Errorf("the list goes on: %v", err)
	}
	if err := s.Remove(t.Context(), "web4/a.json", "web4/nothing", "web4/a/1", "nothing/at/all"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := list(t, s, "web4"); !slices.Equal(got, []string{"web4/a.x/1", "web4/b.json", "web4x/c"}) {
		t.Errorf("after Remove there are %q", got)
	}
}

func lock(t *testing.T, s repo.Store, open func(*testing.T) repo.Store) {
	other := open(t)
	defer other.Close()
	before := list(t, s, "web5")
	unlock, err := s.Lock(t.Context(), "web5")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []repo.Store{s, other} {
		if _, err := x.Lock(t.Context(), "web5"); !errors.Is(err, repo.ErrLocked) {
			t.Errorf("locked twice: %v", err)
		}
	}
	free, err := other.Lock(t.Context(), "web6")
	if err != nil {
		t.Fatalf("another machine: %v", err)
	}
	if err := free(); err != nil {
		t.Error(err)
	}
	if got := list(t, s, "web5"); !slices.Equal(got, before) {
		t.Errorf("the lock shows: %q", got)
	}
	mustPut(t, s, "web5/x", []byte("x"))
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	unlock, err = other.Lock(t.Context(), "web5")
	if err != nil {
		t.Fatalf("after unlock: %v", err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
}

func cancelled(t *testing.T, s repo.Store, _ func(*testing.T) repo.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	w, err := s.Create(ctx, "web7/x", false)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	w.Write(Noise(1, 2*repo.Head))
	cancel()
	if _, err := w.Commit(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Commit with a cancelled context: %v", err)
	}
	if got := list(t, s, "web7"); len(got) > 0 {
		t.Errorf("after that there are %q", got)
	}
}
