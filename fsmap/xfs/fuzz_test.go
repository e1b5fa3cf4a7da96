package xfs

import (
	"bytes"
	"encoding/binary"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"vmkit/fixtures"
	"vmkit/fsmap"
)

var damages = flag.Int("xfs.damages", 8, "images that TestDamageAtRandom damages of each case")

// edited is an image with sectors changed. Fuzzing changes metadata, not the empty space around it: a position counts
// among the sectors that hold anything.
type edited struct {
	base    []byte
	sectors map[int64][]byte
}

func (e *edited) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(e.base)) {
		return 0, io.EOF
	}
	n := copy(p, e.base[off:])
	for s := off / sector; s*sector < off+int64(n); s++ {
		if b, ok := e.sectors[s]; ok {
			if to := s*sector - off; to >= 0 {
				copy(p[to:n], b)
			} else {
				copy(p[:n], b[-to:])
			}
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// edit applies changes: two bytes of the sector's place among used, two of the position in it, a length, the bytes.
func edit(base []byte, used []int64, changes []byte) *edited {
	e := &edited{base: base, sectors: make(map[int64][]byte)}
	for len(changes) >= 5 && len(e.sectors) < 64 {
		s := used[int(binary.LittleEndian.Uint16(changes))%len(used)]
		at, n := int(binary.LittleEndian.Uint16(changes[2:]))%sector, int(changes[4])
		changes = changes[5:]
		n = min(n, len(changes))
		b := e.sectors[s]
		if b == nil {
			b = bytes.Clone(base[s*sector : (s+1)*sector])
			e.sectors[s] = b
		}
		copy(b[at:], changes[:n])
		changes = changes[n:]
	}
	return e
}

func usedSectors(base []byte, from, to int64) (used []int64) {
	zero := make([]byte, sector)
	for s := from; s < to; s++ {
		if !bytes.Equal(base[s*sector:(s+1)*sector], zero) {
			used = append(used, s)
		}
	}
	return used
}

func readFixture(f *testing.F, name string) []byte {
	f.Helper()
	b, err := os.ReadFile(fixtures.Image(f, name, "disk.img.zst"))
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// walkAll reads as a map would, but follows only some names of each directory.
func walkAll(fs fsmap.FS) {
	todo := []fsmap.Entry{{Ref: fs.Info().Root}}
	var runs fsmap.Runs
	for n := 0; len(todo) > 0 && n < 400; n++ {
		e := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		var node fsmap.Node
		node.Reset()
		if fs.Node(e, &node) != nil {
			continue
		}
		runs.Reset(node.Size)
		_ = fs.Runs(&node, nil, &runs)
		names := 0
		_ = fs.ReadDir(&node, func(e fsmap.Entry) bool {
			if names++; names < 14 {
				todo = append(todo, fsmap.Entry{Ref: e.Ref, Kind: e.Kind})
			}
			return names < 5000
		})
	}
}

// FuzzOpen changes metadata anywhere. Checksums don't stand in the way: a wrong one is only reported.
func FuzzOpen(f *testing.F) {
	bases := [][]byte{readFixture(f, "xfs-v5-1k"), readFixture(f, "xfs-v4")}
	var used [][]int64
	for _, b := range bases {
		used = append(used, usedSectors(b, 0, int64(len(b))/sector))
	}
	f.Add([]byte{0})
	f.Add([]byte{0, 0, 0, 0, 0, 4, 1, 2, 3, 4})
	f.Add([]byte{1, 9, 0, 56, 0, 8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 {
			return
		}
		i := int(in[0]) % len(bases)
		r := edit(bases[i], used[i], in[1:])
		if fs, err := Driver.Open(r, int64(len(r.base)), fsmap.Options{Metadata: in[0] > 127}); err == nil {
			walkAll(fs)
		}
	})
}

// FuzzLog changes a log, whose records have checksums, in two ways: its blocks, and what a sound record holds.
func FuzzLog(f *testing.F) {
	base := readFixture(f, "xfs-v5-dirty")
	g, _, err := superblock(bytes.NewReader(base), 0)
	if err != nil {
		f.Fatal(err)
	}
	l, err := openLog(bytes.NewReader(base), g, int64(len(base)))
	if err != nil {
		f.Fatal(err)
	}
	st, err := l.find()
	if err != nil {
		f.Fatal(err)
	}
	off, _ := g.place(g.sb.LogStart, 1)
	used := usedSectors(base, off/sector, off/sector+l.n)
	seeds := 0
	_, err = l.records(st.head, st.tail, func(r *record) error {
		if seeds++; seeds%8 == 0 && len(r.data) < 16<<10 {
			f.Add(append([]byte{0}, r.data...))
		}
		return nil
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{1, 5, 0, 0, 0, 4, 0xfe, 0xed, 0xba, 0xbe})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) == 0 {
			return
		}
		if in[0]&1 != 0 {
			r := edit(base, used, in[1:])
			if fs, err := Driver.Open(r, int64(len(base)), fsmap.Options{}); err == nil {
				walkAll(fs)
			}
			return
		}
		fs := &fsys{geometry: g, r: bytes.NewReader(base), size: int64(len(base))}
		p := newReplay(fs)
		for _, commit := range []func(*trans) error{p.findCancelled, p.apply} {
			gr := gather{open: make(map[uint32]*trans), commit: commit}
			rec := record{lsn: 1 << 40, ord: binary.LittleEndian, ops: 1 << 20, data: bytes.Clone(in[1:])}
			if gr.record(&rec) != nil {
				return
			}
		}
		if p.stamp() != nil {
			return
		}
		fs.take(p)
		fs.ready()
		fs.describe()
		walkAll(fs)
	})
}

// TestDamageAtRandom does what FuzzOpen does, without guidance but fast.
func TestDamageAtRandom(t *testing.T) {
	for _, name := range []string{"xfs-v5-1k", "xfs-v4", "xfs-v5-dirty", "xfs-v4-dirty", "xfs-intents"} {
		base, err := os.ReadFile(fixtures.Image(t, name, "disk.img.zst"))
		if err != nil {
			t.Fatal(err)
		}
		used := usedSectors(base, 0, int64(len(base))/sector)
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 2))
		t.Log(name, "seed", seed)
		for range *damages {
			var in []byte
			for range r.IntN(40) + 1 {
				in = binary.LittleEndian.AppendUint16(in, uint16(r.Uint32()))
				at := r.IntN(sector)
				if r.IntN(2) == 0 { // fields at the head of an inode or a block
					at = r.IntN(2)*256 + r.IntN(120)
				}
				in = binary.LittleEndian.AppendUint16(in, uint16(at))
				n := r.IntN(4) + 1
				in = append(in, byte(n))
				for range n {
					in = append(in, []byte{0, 1, 0x7f, 0x80, 0xff, byte(r.Uint32())}[r.IntN(6)])
				}
			}
			e := edit(base, used, in)
			delete(e.sectors, 0)
			if fs, err := Driver.Open(e, int64(len(base)), fsmap.Options{}); err == nil {
				walkAll(fs)
			}
		}
	}
}
