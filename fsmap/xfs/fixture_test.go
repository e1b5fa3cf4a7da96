package xfs

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"vmkit/fixtures"
	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/fsmaptest"
	"vmkit/fsmap/mapfile"
)

// stored are the cases of fixtures/ with what the kernel showed of each image after its own recovery.
var stored = []struct {
	name, journal string
}{
	{"xfs-v5", "clean"},
	{"xfs-v5-1k", "clean"},
	{"xfs-v5-64k", "clean"},
	{"xfs-v5-old", "clean"},
	{"xfs-v5-dirty", "replayed"},
	{"xfs-intents", "replayed"},
	{"xfs-v4", "clean"},
	{"xfs-v4-dirty", "replayed"},
	{"xfs-v4-stripe", "replayed"},
	{"xfs-quota", "clean"},
}

func TestStored(t *testing.T) {
	for _, x := range stored {
		t.Run(x.name, func(t *testing.T) {
			img := fixtures.Image(t, x.name, "disk.img.zst")
			var before []byte
			if x.journal == "replayed" { // where there would be something to write
				before = digest(t, img)
			}
			fs, r := openImage(t, img, fsmap.Options{Journal: fsmap.JournalReplay})
			i := fs.Info()
			if i.Journal != x.journal {
				t.Errorf("journal %s, want %s", i.Journal, x.journal)
			}
			for _, err := range i.Problems {
				t.Error("problem:", err)
			}
			if n := len(fs.(*fsys).patches); (n > 0) != (x.name == "xfs-intents") {
				t.Errorf("%d inodes with open intents", n)
			}
			l := fsmaptest.List(fs, true, fsmap.Member{R: r})
			for _, p := range l.Problems {
				t.Error("problem:", p)
			}
			fsmaptest.CompareLists(t, l.Lines, fixtures.Expect(t, x.name, "expect.tsv.zst"))
			if before != nil && !bytes.Equal(before, digest(t, img)) {
				t.Error("the image was changed")
			}
		})
	}
}

func digest(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(b)
	return h[:]
}

// TestRealtime reads files on a realtime device, which isn't here: missing, holes and files beside them known.
func TestRealtime(t *testing.T) {
	fs, r := openImage(t, fixtures.Image(t, "xfs-realtime", "disk.img.zst"), fsmap.Options{})
	l := fsmaptest.List(fs, true, fsmap.Member{R: r})
	if len(l.Problems) != 2 || !strings.HasPrefix(l.Problems[0], "/on-rt: ") || !strings.HasPrefix(l.Problems[1], "/small: ") {
		t.Error("problems:", l.Problems)
	}
	want := fixtures.Expect(t, "xfs-realtime", "expect.tsv.zst")
	for i, s := range want {
		cols := strings.Split(s, "\t")
		if ext := map[string]string{"/on-rt": "0:missing:327680", "/small": "0:missing:6"}[cols[0]]; ext != "" {
			got := strings.Split(l.Lines[i], "\t")
			if got[len(got)-1] != ext || !slices.Equal(got[:12], cols[:12]) {
				t.Error("realtime file:", l.Lines[i])
			}
			want[i] = l.Lines[i]
		}
	}
	fsmaptest.CompareLists(t, l.Lines, want)
	if fs.Info().Extra["realtime_blocks"] == nil {
		t.Error("the device isn't mentioned")
	}
}

// TestMetadata asks for the file system's own files.
func TestMetadata(t *testing.T) {
	img := fixtures.Image(t, "xfs-quota", "disk.img.zst")
	root := func(o fsmap.Options) (names []string) {
		fs, _ := openImage(t, img, o)
		var n fsmap.Node
		n.Reset()
		if err := fs.Node(fsmap.Entry{Ref: fs.Info().Root}, &n); err != nil {
			t.Fatal(err)
		}
		var entries []fsmap.Entry
		if err := fs.ReadDir(&n, func(e fsmap.Entry) bool {
			if e.Name[0] == '$' {
				names = append(names, string(e.Name))
				entries = append(entries, e)
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			var n fsmap.Node
			n.Reset()
			if err := fs.Node(e, &n); err != nil || n.Kind != mapfile.Regular {
				t.Error(string(e.Name), err)
			}
		}
		return names
	}
	if names := root(fsmap.Options{}); len(names) > 0 {
		t.Error("without asking:", names)
	}
	want := []string{"$quota_user", "$quota_group", "$quota_project", "$realtime_bitmap", "$realtime_summary"}
	if names := root(fsmap.Options{Metadata: true}); !slices.Equal(names, want) {
		t.Error("asked:", names)
	}
}

// TestJournalModes opens an image whose log holds work in each way.
func TestJournalModes(t *testing.T) {
	img := fixtures.Image(t, "xfs-v5-dirty", "disk.img.zst")
	h := openFile(t, img)
	st, _ := h.Stat()
	if _, err := Driver.Open(h, st.Size(), fsmap.Options{Journal: fsmap.JournalFail}); !errors.Is(err, ondisk.ErrUnsupported) {
		t.Error("fail:", err)
	}
	fs, r := openImage(t, img, fsmap.Options{Journal: fsmap.JournalIgnore})
	if fs.Info().Journal != "ignored" || len(fs.Info().Notes) == 0 {
		t.Error("ignore:", fs.Info().Journal, fs.Info().Notes)
	}
	stale := fsmaptest.List(fs, true, fsmap.Member{R: r})
	fs, r = openImage(t, img, fsmap.Options{})
	if now := fsmaptest.List(fs, true, fsmap.Member{R: r}); slices.Equal(now.Lines, stale.Lines) {
		t.Error("replay changes nothing")
	}
}

// damaged is an image in memory with some bytes changed.
type damaged struct {
	r     io.ReaderAt
	bytes map[int64]byte
}

func (d damaged) ReadAt(p []byte, off int64) (int, error) {
	n, err := d.r.ReadAt(p, off)
	for at, b := range d.bytes {
		if at >= off && at < off+int64(n) {
			p[at-off] = b
		}
	}
	return n, err
}

// TestDamaged changes single bytes, and looks for the report and for what is still given.
func TestDamaged(t *testing.T) {
	img := fixtures.Image(t, "xfs-v5", "disk.img.zst")
	h := openFile(t, img)
	st, err := h.Stat()
	if err != nil {
		t.Fatal(err)
	}
	whole, _ := openImage(t, img, fsmap.Options{})
	f := whole.(*fsys)
	all := fsmaptest.List(whole, false, fsmap.Member{R: h}).Lines
	rootOff, _ := f.inodePlace(f.sb.RootIno)
	zero := map[int64]byte{}
	for i := range int64(512) {
		zero[i] = 0
	}
	for _, x := range []struct {
		name  string
		bytes map[int64]byte
		say   string // in a problem or a note
		note  bool
		err   error
	}{
		{name: "superblock-checksum", bytes: map[int64]byte{130: 9}, say: "the first superblock is damaged", note: true},
		{name: "superblock-geometry", bytes: map[int64]byte{86: 0xff, 4: 7}, say: "the first superblock is damaged", note: true},
		{name: "superblock-zeroed", bytes: zero, say: "the first superblock is damaged", note: true},
		{name: "superblock-version", bytes: map[int64]byte{101: 0x0f}, say: "the first superblock is damaged", note: true},
		{name: "inode-checksum", bytes: map[int64]byte{rootOff + diGen: 1}, say: "checksum"},
		{name: "inode-number", bytes: map[int64]byte{rootOff + diIno + 7: 1}, say: "checksum"},
		{name: "inode-magic", bytes: map[int64]byte{rootOff: 0}, err: ondisk.ErrCorrupt},
		{name: "root-mode", bytes: map[int64]byte{rootOff + diMode: 0x81}, err: ondisk.ErrCorrupt},
	} {
		t.Run(x.name, func(t *testing.T) {
			d := damaged{h, x.bytes}
			head := make([]byte, fsmap.ProbeLen)
			if _, err := d.ReadAt(head, 0); err != nil {
				t.Fatal(err)
			}
			if name, ok := Driver.Probe(d, st.Size(), head); name != "xfs" || !ok {
				t.Error("not recognised")
			}
			fs, err := Driver.Open(d, st.Size(), fsmap.Options{})
			if x.err != nil {
				if !errors.Is(err, x.err) || fs != nil {
					t.Fatalf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			l := fsmaptest.List(fs, false, fsmap.Member{R: d})
			said := strings.Join(fs.Info().Notes, "\n")
			if !x.note {
				said = strings.Join(l.Problems, "\n")
			}
			if !strings.Contains(said, x.say) {
				t.Errorf("said %q, want %q", said, x.say)
			}
			fsmaptest.CompareLists(t, l.Lines, all)
		})
	}
}

func clearIncompat(t *testing.T, img string, bits uint32) {
	t.Helper()
	writeIncompat(t, img, func(x uint32) uint32 { return x &^ bits })
}

// TestRefused opens what isn't supported: named, by number.
func TestRefused(t *testing.T) {
	img := fixtures.Image(t, "xfs-v5", "disk.img.zst")
	for bits, want := range map[uint32]string{1 << 8: "0x100 (metadata directory tree)", 1<<9 | 1<<31: "0x80000200 (zoned, bit 31)"} {
		setIncompat(t, img, bits)
		h := openFile(t, img)
		st, _ := h.Stat()
		_, err := Driver.Open(h, st.Size(), fsmap.Options{})
		if !errors.Is(err, ondisk.ErrUnsupported) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		clearIncompat(t, img, bits)
	}
	setIncompat(t, img, incompatNeedsRepair)
	fs, _ := openImage(t, img, fsmap.Options{})
	if len(fs.Info().Problems) != 1 || !strings.Contains(fs.Info().Problems[0].Error(), "xfs_repair") {
		t.Error("needsrepair:", fs.Info().Problems)
	}
}
