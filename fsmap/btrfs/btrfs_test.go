package btrfs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/fixtures"
	"vmkit/fsmap"
	"vmkit/fsmap/fsmaptest"
	"vmkit/fsmap/mapfile"
)

// member opens one stored image.
func member(t testing.TB, path string) fsmap.Member {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return fsmap.Member{R: f, Size: st.Size()}
}

func walk(t testing.TB, o fsmap.Options, members ...fsmap.Member) *fsmaptest.Tree {
	t.Helper()
	fs, err := openSet(members, o)
	if err != nil {
		t.Fatal(err)
	}
	return fsmaptest.WalkSet(t, fs, members)
}

func sound(t testing.TB, tree *fsmaptest.Tree) {
	t.Helper()
	for _, e := range tree.Errs() {
		t.Error(e)
	}
	for _, err := range tree.FS.Info().Problems {
		t.Error(err)
	}
}

// TestSingle compares subvolumes, compression and shared extents with the kernel's mount.
func TestSingle(t *testing.T) {
	tree := walk(t, fsmap.Options{}, member(t, fixtures.Image(t, "btrfs", "single.img.zst")))
	tree.Compare(t, fixtures.Expect(t, "btrfs", "single.tree.tsv"), 0)
	sound(t, tree)
	info := tree.FS.Info()
	if info.Label != "vmkit single" || info.Journal != "clean" || len(info.Snapshots) != 1 {
		t.Errorf("volume: %+v", info)
	}
	numbers := map[uint64]string{}
	for path, f := range tree.Files {
		if other, ok := numbers[f.Inode]; ok && f.Ref != tree.Files[other].Ref {
			t.Errorf("%s and %s have one inode number", path, other)
		}
		numbers[f.Inode] = path
	}
	kinds := map[mapfile.Kind]int{}
	codecs := map[string]int{}
	for _, f := range tree.Files {
		for _, x := range f.Runs {
			kinds[x.Kind]++
			if x.Pack != nil {
				codecs[x.Pack.Codec]++
			}
		}
	}
	for _, k := range []mapfile.Kind{mapfile.Data, mapfile.Hole, mapfile.Unwritten, mapfile.Packed} {
		if kinds[k] == 0 {
			t.Errorf("no run of kind %v: the image does not test it", k)
		}
	}
	for _, c := range codecs {
		if c == 0 || len(codecs) != 3 {
			t.Errorf("codecs %v: the image should have three", codecs)
		}
	}
	if x := tree.Files["xattrs"].Xattrs; len(x) != 2 || x[0].Name != "user.large" && x[1].Name != "user.large" {
		t.Errorf("xattrs: %v", x)
	}
}

// TestLog compares the state after replay with the kernel's mount, which replays; without, it is another state.
func TestLog(t *testing.T) {
	path := fixtures.Image(t, "btrfs", "log.img.zst")
	tree := walk(t, fsmap.Options{Journal: fsmap.JournalReplay}, member(t, path))
	tree.Compare(t, fixtures.Expect(t, "btrfs", "log.tree.tsv"), 0)
	sound(t, tree)
	if j := tree.FS.Info().Journal; j != "replayed" {
		t.Errorf("journal is %q", j)
	}
	stale := walk(t, fsmap.Options{Journal: fsmap.JournalIgnore}, member(t, path))
	if stale.Files["new file"] != nil || stale.Files["many/file 011"] == nil || stale.FS.Info().Journal != "ignored" {
		t.Error("ignoring the log shows what only the log has")
	}
	if _, err := openSet([]fsmap.Member{member(t, path)}, fsmap.Options{Journal: fsmap.JournalFail}); err == nil {
		t.Error("a log that holds work is no error with --journal fail")
	}
}

// TestRAID reads arrays whole, and without every device, or two, that their level can do without.
func TestRAID(t *testing.T) {
	for _, c := range []struct{ level, devices, spare int }{{5, 3, 1}, {6, 4, 2}} {
		name := fmt.Sprintf("raid%d", c.level)
		dir := filepath.Dir(fixtures.Image(t, "btrfs", name+".tar.zst"))
		expect := fixtures.Expect(t, "btrfs", name+".tree.tsv")
		for absent := range 1 << c.devices {
			var members []fsmap.Member
			for i := range c.devices {
				if absent>>i&1 == 0 {
					members = append(members, member(t, filepath.Join(dir, fmt.Sprintf("%s-%d.img", name, i+1))))
				}
			}
			lost := c.devices - len(members)
			t.Run(fmt.Sprintf("%s without %0*b", name, c.devices, absent), func(t *testing.T) {
				switch {
				case len(members) == 0:
					return
				case lost > c.spare:
					if fs, err := openSet(members, fsmap.Options{}); err == nil && len(fs.Info().Problems) == 0 {
						t.Errorf("%d devices are absent, and nothing is said", lost)
					}
					return
				}
				tree := walk(t, fsmap.Options{}, members...)
				tree.Compare(t, expect, 0)
				sound(t, tree)
				notes := strings.Join(tree.FS.Info().Notes, "\n")
				if (lost > 0) != strings.Contains(notes, fmt.Sprintf("%d of %d devices are absent", lost, c.devices)) {
					t.Errorf("notes: %s", notes)
				}
			})
		}
	}
}

// TestXXHash holds the checksum against the reference implementation's vectors (xxhsum 0.8.1 -H1, seed 0).
func TestXXHash(t *testing.T) {
	for in, want := range map[string]uint64{
		"":    0xef46db3751d8e999,
		"a":   0xd24ec4f1a98c6e5b,
		"abc": 0x44bc2cf5ad770999,
		"0123456789abcdef0123456789abcdef0123456789abcdef": 0xe35216444a3c253b,
	} {
		if got := xxhash64([]byte(in)); got != want {
			t.Errorf("xxhash64(%q) = %#x, should be %#x", in, got, want)
		}
	}
}

// TestConcurrent asks from several goroutines at once.
func TestConcurrent(t *testing.T) {
	walk(t, fsmap.Options{Journal: fsmap.JournalReplay}, member(t, fixtures.Image(t, "btrfs", "log.img.zst"))).Concurrent(t)
}

// FuzzOpen damages a sound image at up to eight places and walks it.
func FuzzOpen(f *testing.F) {
	b, err := os.ReadFile(fixtures.Image(f, "btrfs", "log.img.zst"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("\x00\x00\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, patch []byte) {
		r := &patched{base: b, at: map[int64]byte{}}
		for i := 0; i+5 <= len(patch) && i < 8*5; i += 5 {
			r.at[int64(le.Uint32(patch[i:]))%int64(len(b))] = patch[i+4]
		}
		members := []fsmap.Member{{R: r, Size: int64(len(b))}}
		fs, err := openSet(members, fsmap.Options{Journal: fsmap.JournalReplay})
		if err == nil {
			fsmaptest.WalkSet(t, fs, members)
		}
	})
}

// patched is an image with some bytes changed, whose checksums are made right again so that parsers see the bytes.
type patched struct {
	base []byte
	at   map[int64]byte
}

func (p *patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := bytes.NewReader(p.base).ReadAt(b, off)
	hit := false
	for at, c := range p.at {
		if at >= off && at < off+int64(n) {
			b[at-off], hit = c, true
		}
	}
	if hit && (n == 16384 || n == superSize) {
		le.PutUint32(b, crc32c(b[csumSize:n]))
	}
	return n, err
}

// TestPad: the decoded length of a compressed extent counts whole sectors, its coded bytes end where the file did when
// it was written. A random crash showed one in a file that had grown since (Linux 6.18).
func TestPad(t *testing.T) {
	f := &fs{chunks: chunkMap{sizes: []int64{1 << 30}, byID: map[uint64]int{}, chunks: []chunk{{length: 1 << 30, stripeLen: 1 << 16, stripes: []stripe{{}}}}}}
	b := make([]byte, feSize)
	b[feType], b[feCompression] = feKindRegular, 3
	le.PutUint64(b[feRAM:], 8192)
	le.PutUint64(b[feDisk:], 1<<20)
	le.PutUint64(b[feDiskLen:], 4096)
	for _, c := range []struct {
		n, size int64
		pad     bool
	}{{8192, 5044, false}, {8192, 8192, false}, {4096, 1 << 20, false}, {8192, 1 << 20, true}} {
		le.PutUint64(b[feLen:], uint64(c.n))
		var r fsmap.Runs
		r.Reset(c.size)
		if err := f.extent(item{key: key{257, tExtentData, 0}, data: b}, &r); err != nil || len(r.List) == 0 || r.List[0].Pack.Pad != c.pad {
			t.Errorf("%d bytes of the extent in a file of %d: %+v, %v", c.n, c.size, r.List, err)
		}
	}
}
