package formats_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"vmkit/formats"
)

// gaps is a file that tells its holes, and counts how often it is asked. Stretches of it are data and holes in turn.
type gaps struct {
	*bytes.Reader
	ends  []int64
	asked int
}

func (g *gaps) Region(off int64) (hole bool, end int64) {
	g.asked++
	for i, end := range g.ends {
		if off < end {
			return i%2 == 1, end
		}
	}
	return true, 1<<63 - 1
}

// TestPlain asks for extents to and fro: each says what the host does, which is asked seldom.
func TestPlain(t *testing.T) {
	const size = 40<<20 + 777
	r := rand.New(rand.NewPCG(4, 5))
	g := &gaps{Reader: bytes.NewReader(make([]byte, size))}
	for at := int64(0); at < size; {
		n := 4096 * (1 + r.Int64N(300))
		if at > 30<<20 && at < 31<<20 {
			n = 4096 // more than are kept of one block
		}
		at += n
		g.ends = append(g.ends, min(at, size))
	}
	m := formats.Plain(&formats.File{ReaderAt: g, Size: size})
	const lookups = 20000
	for range lookups {
		off, most := r.Int64N(size), 1+r.Int64N(4<<20)
		e, err := m.ExtentAt(off, most)
		if err != nil {
			t.Fatal(err)
		}
		asked := g.asked
		hole, end := g.Region(off)
		g.asked = asked
		if hole != (e.Kind == formats.Zero) || !hole && e.Off != off || e.Disk != off || e.Len != min(most, end-off, size-off) {
			t.Fatalf("at %d, of %d: %+v, the host says hole %t up to %d", off, most, e, hole, end)
		}
	}
	if g.asked > lookups/10 {
		t.Errorf("the host was asked %d times", g.asked)
	}
}
