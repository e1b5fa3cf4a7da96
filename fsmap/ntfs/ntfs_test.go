package ntfs

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"

	"vmkit/fixtures"
	"vmkit/fsmap"
	"vmkit/fsmap/fsmaptest"
	"vmkit/fsmap/mapfile"
)

func image(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(fixtures.Image(t, "ntfs-3g", "ntfs.img.zst"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestImage compares a stored image with what ntfs-3g showed of it.
func TestImage(t *testing.T) {
	b := image(t)
	r := bytes.NewReader(b)
	fs := fsmaptest.Open(t, Driver, r, r.Size(), fsmap.Options{})
	info := fs.Info()
	if info.Label != "vmkit ñ" || info.Journal != "clean" || len(info.Problems) > 0 || info.BlockSize != 1024 {
		t.Errorf("volume: %+v", info)
	}
	tree := fsmaptest.Walk(t, fs, r, r.Size())
	tree.Compare(t, fixtures.Expect(t, "ntfs-3g", "tree.tsv"), 0)
	for _, e := range tree.Errs() {
		t.Error(e)
	}
	kinds := map[mapfile.Kind]int{}
	for path, f := range tree.Files {
		for _, x := range f.Runs {
			kinds[x.Kind]++
		}
		if path == "plain.bin" && f.Links != 2 {
			t.Errorf("plain.bin has %d links", f.Links)
		}
		if strings.HasPrefix(path, "resident/") && f.Size < 700 {
			for _, x := range f.Runs {
				if x.Kind == mapfile.Inline && x.Len > 2 {
					t.Errorf("%s: %d bytes inline that lie in the record", path, x.Len)
				}
			}
		}
	}
	for _, k := range []mapfile.Kind{mapfile.Data, mapfile.Hole, mapfile.Packed, mapfile.Inline} {
		if kinds[k] == 0 {
			t.Errorf("no run of kind %v: the image does not test it", k)
		}
	}
	if n := len(tree.Files["pieces.bin"].Runs); n < 500 {
		t.Errorf("pieces.bin has %d runs", n)
	}
	expect := map[string]string{}
	for _, line := range fixtures.Expect(t, "ntfs-3g", "streams.tsv") {
		c := strings.Split(line, "\t")
		expect[c[0]+":"+c[1]] = c[2] + " " + c[3]
	}
	for path, f := range tree.Files {
		for _, s := range f.Streams {
			var runs fsmap.Runs
			runs.Reset(s.Size)
			if err := fs.Runs(&f.Node, &s, &runs); err != nil {
				t.Errorf("%s:%s: %v", path, s.Name, err)
			}
			runs.Fill(mapfile.Hole)
			key := path + ":" + s.Name
			if got := strconv.FormatInt(s.Size, 10) + " " + fsmaptest.Sum(t, r, runs.List); got != expect[key] {
				t.Errorf("stream %s is %s, should be %s", key, got, expect[key])
			}
			delete(expect, key)
		}
	}
	for key := range expect {
		t.Errorf("stream %s: missing", key)
	}
}

// TestMetadata asks for the file system's own files.
func TestMetadata(t *testing.T) {
	b := image(t)
	r := bytes.NewReader(b)
	fs := fsmaptest.Open(t, Driver, r, r.Size(), fsmap.Options{Metadata: true})
	tree := fsmaptest.Walk(t, fs, r, r.Size())
	for _, name := range []string{"$MFT", "$MFTMirr", "$LogFile", "$Volume", "$AttrDef", "$Bitmap", "$Boot", "$BadClus", "$Secure", "$UpCase", "$Extend"} {
		f := tree.Files[name]
		if f == nil {
			t.Errorf("no %s", name)
		} else if f.Kind == mapfile.Regular && f.SHA256 == "" {
			t.Errorf("%s can't be read: %v", name, f.Errs)
		}
	}
	mft := tree.Files["$MFT"]
	if mft == nil || mft.Runs[0].Off != int64(le.Uint64(b[bootMFT:]))*1024 {
		t.Errorf("$MFT does not begin where the boot sector says: %+v", mft)
	}
}

// FuzzBoot changes the boot sector; FuzzRecords the records from the root's on, with users' files among them.
func FuzzBoot(f *testing.F) { fsmaptest.FuzzPart(f, Driver, image(f), 0, bootSize) }

func FuzzRecords(f *testing.F) {
	b := image(f)
	off := int(le.Uint64(b[bootMFT:]))*1024 + recRoot*1024
	fsmaptest.FuzzPart(f, Driver, b, off, 8<<10)
}

func FuzzUserRecords(f *testing.F) {
	b := image(f)
	off := int(le.Uint64(b[bootMFT:]))*1024 + 64*1024
	fsmaptest.FuzzPart(f, Driver, b, off, 16<<10)
}

func FuzzIndex(f *testing.F) {
	b := image(f)
	at := bytes.Index(b, []byte("INDX"))
	if at < 0 {
		f.Fatal("no index block")
	}
	fsmaptest.FuzzPart(f, Driver, b, at, 4096)
}

// TestConcurrent asks from several goroutines at once.
func TestConcurrent(t *testing.T) {
	b := image(t)
	r := bytes.NewReader(b)
	fs := fsmaptest.Open(t, Driver, r, r.Size(), fsmap.Options{})
	fsmaptest.Walk(t, fs, r, r.Size()).Concurrent(t)
}
