package partition

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// thinGroup opens the stored group with a thin pool, down to the pool.
func thinGroup(t testing.TB) (*lvmGroup, *thinPool) {
	t.Helper()
	images := stored(t, "lvm", "thin")
	p, err := readPV(images[0])
	if err != nil {
		t.Fatal(err)
	}
	s := &scanner{o: Options{Env: formats.NewEnv(0)}, pvs: []*lvmPV{p}}
	g := s.groups()[0]
	if err := g.open(s); err != nil {
		t.Fatal(err)
	}
	pool, _, err := g.pool("pool")
	if err != nil {
		t.Fatal(err)
	}
	return g, pool
}

func TestThinDamaged(t *testing.T) {
	g, pool := thinGroup(t)
	meta := make([]byte, pool.meta.Size())
	if _, err := pool.meta.ReadAt(meta, 0); err != nil {
		t.Fatal(err)
	}
	root, err := pool.device(1)
	if err != nil {
		t.Fatal(err)
	}
	open := func(damage func(b []byte)) (*thinPool, error) {
		b := append([]byte{}, meta...)
		damage(b)
		return openThinPool(memory(b), pool.data, g.env)
	}
	for name, damage := range map[string]func(b []byte){
		"checksum": func(b []byte) { b[100]++ },
		"magic":    func(b []byte) { b[32]++ },
		"version":  func(b []byte) { b[40] = 9; fixThin(b, true) },
		"chunk":    func(b []byte) { b[336]++; fixThin(b, true) },
		"features": func(b []byte) { b[360] = 1; fixThin(b, true) },
	} {
		if _, err := open(damage); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p, err := open(func(b []byte) { b[root*thinBlock+100]++ })
	if err != nil {
		t.Fatal(err)
	}
	v := &thin{pool: p, root: root, n: 1 << 20}
	e, err := v.ExtentAt(70000, 1<<20-70000)
	if !errors.Is(err, ondisk.ErrCorrupt) || e.Kind != formats.Missing || e.Len != 2<<16-70000 {
		t.Errorf("damaged node: %+v, %v", e, err)
	}
	if _, err := p.device(4711); !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("unknown device: %v", err)
	}
}

// fixThin makes the checksum of a block right.
func fixThin(b []byte, super bool) {
	xor := uint32(thinNodeXOR)
	if super {
		xor = thinSuperXOR
	}
	le.PutUint32(b, thinChecksum(b[:thinBlock], xor))
}

func FuzzThin(f *testing.F) {
	_, pool := thinGroup(f)
	// The superblock and the nodes of the first two devices, renumbered to lie side by side.
	var seed []byte
	b, _ := pool.meta.Slice(0, thinBlock)
	seed = append(seed, b...)
	le.PutUint64(seed[320:], 1)
	for i, block := range []uint64{pool.root, 0, 0} {
		if i > 0 {
			block, _ = pool.device(int64(i))
		}
		b, err := pool.meta.Slice(int64(block)*thinBlock, thinBlock)
		if err != nil {
			f.Fatal(err)
		}
		n := append([]byte{}, b...)
		le.PutUint64(n[8:], uint64(i+1))
		if i == 0 {
			room := le.Uint32(n[20:])
			for j := range le.Uint32(n[16:]) {
				le.PutUint64(n[thinNodeHead+8*room+8*j:], uint64(2+j%2))
			}
		}
		seed = append(seed, n...)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, meta []byte) {
		if len(meta) < thinBlock || len(meta) > 16*thinBlock {
			return
		}
		for i := 0; i+thinBlock <= len(meta); i += thinBlock {
			fixThin(meta[i:], i == 0)
		}
		p, err := openThinPool(memory(meta), nothing{formats.Zero, 1 << 30}, formats.NewEnv(0))
		if err != nil {
			return
		}
		for id := range int64(4) {
			if root, err := p.device(id); err == nil {
				walkExtents(t, formats.NewDisk(&thin{pool: p, root: root, n: 1<<30 + 5}, formats.NewEnv(0)))
			}
		}
	})
}

func FuzzSnapshot(f *testing.F) {
	store := make([]byte, 64<<10)
	le.PutUint32(store, cowMagic)
	le.PutUint32(store[4:], 1)
	le.PutUint32(store[8:], cowVersion)
	le.PutUint32(store[12:], 8)
	for i, e := range [][2]uint64{{3, 2}, {4, 3}, {9, 5}, {1, 4}} {
		le.PutUint64(store[4096+16*i:], e[0])
		le.PutUint64(store[4096+16*i+8:], e[1])
	}
	f.Add(store)
	f.Fuzz(func(t *testing.T, store []byte) {
		env := formats.NewEnv(0)
		c, err := openCow(nothing{formats.Zero, 1<<20 + 100}, memory(store), env)
		if err == nil {
			walkExtents(t, formats.NewDisk(c, env))
		}
	})
}

// TestConcurrent reads the volumes of a thin pool, and a degraded array, by several readers at once.
func TestConcurrent(t *testing.T) {
	images := append(stored(t, "lvm", "thin"), stored(t, "md", "raid5-1.2")[1:]...)
	for i := range images {
		images[i] = numbered(images[i].Name, i, images[i].Disk)
	}
	want := make(map[string]string)
	vols := scanAll(t, images, Options{})
	for _, v := range vols {
		if v.Name == "vg/t1" || v.Name == "vg/snap" || v.Kind == KindMD {
			want[v.Name], _ = sha(v.Disk, 0, v.Size)
		}
	}
	if len(want) != 3 {
		t.Fatalf("volumes %v", want)
	}
	var wait sync.WaitGroup
	for range 4 {
		for _, v := range vols {
			if want[v.Name] == "" {
				continue
			}
			wait.Go(func() {
				if got, err := sha(v.Disk, 0, v.Size); err != nil || got != want[v.Name] {
					t.Errorf("%s: %s, %v", v.Name, got, err)
				}
			})
		}
	}
	wait.Wait()
}
