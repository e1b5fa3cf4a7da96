package fsmap

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/fsmap/mapfile"
	"vmkit/partition"
)

// mounted makes volume i a file system that the caller has open.
func mounted(fs FS, i int) func([]partition.Volume) []Mount {
	return func([]partition.Volume) []Mount { return []Mount{{Volumes: []int{i}, FS: fs}} }
}

// TestDiskOnly: a map with positions in the disk only has none in host files, and rebased it is the one that the image
// gives by itself.
func TestDiskOnly(t *testing.T) {
	fs := packs()
	_, _, want := build(t, fs, Config{Mounts: mounted(fs, 0)}, container(8))
	_, _, from := build(t, fs, Config{Mounts: mounted(fs, 0), DiskOnly: true}, container(3))
	if hostPosition.Match(from) || !bytes.Contains(from, []byte(`"files":[],"identity":{"table":""`)) {
		t.Fatalf("not without host files: %.2000s", from)
	}
	var got bytes.Buffer
	if _, err := Rebase(t.Context(), mapfile.NewReader(bytes.NewReader(from)), []*formats.Image{container(8)}, Config{}, mapfile.NewWriter(&got)); err != nil {
		t.Fatal(err)
	}
	same(t, "rebased", got.Bytes(), want)
}

// TestMounts: what the caller couldn't open is a problem, and what it doesn't speak of is only named.
func TestMounts(t *testing.T) {
	fs := tree("a")
	all := mapfile.Patterns{}
	for name, tt := range map[string]struct {
		mounts []Mount
		files  int64
		what   string
	}{
		"none":     {nil, 0, ""},
		"failed":   {[]Mount{{Volumes: []int{0}, Err: errors.New("no such driver")}}, 0, `"what":"file system","error":"no such driver"`},
		"unknown":  {[]Mount{{Volumes: []int{0}}}, 0, `"error":"unknown file system: no mark of any was found: unsupported"`},
		"selected": {[]Mount{{Volumes: []int{0}, FS: fs, On: &all}}, 2, ""},
	} {
		only, err := mapfile.ParsePatterns([]string{"/none"})
		if err != nil {
			t.Fatal(err)
		}
		c := Config{Mounts: func([]partition.Volume) []Mount { return tt.mounts }}
		if name == "selected" {
			c.Patterns = only // which the mount's own go before
		}
		_, s, out := build(t, fs, c, fakeImage(1<<20))
		if s.Files != tt.files || !strings.Contains(string(out), tt.what) {
			t.Errorf("%s: %d files, want %d and %s: %s", name, s.Files, tt.files, tt.what, out)
		}
	}
}

// image makes a raw image of random bytes with one partition, by number of the table and of its bytes.
func image(id, seed byte) *formats.Image {
	b := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{seed}).Read(b)
	clear(b[:512])
	binary.LittleEndian.PutUint32(b[440:], uint32(id))
	b[450], b[454], b[458], b[510], b[511] = 0x83, 8, 200, 0x55, 0xaa
	f := &formats.File{ReaderAt: bytes.NewReader(b), Path: "x.img", Size: int64(len(b))}
	return &formats.Image{Disk: formats.NewDisk(formats.Plain(f), formats.NewEnv(0)), Name: "x", Format: "raw", State: formats.StateClean, Files: []*formats.File{f}}
}

// TestIdentity: a map is laid over the disk that it is of, whatever its files have become, and over no other.
func TestIdentity(t *testing.T) {
	fs := tree("a", "b")
	_, _, from := build(t, fs, Config{DiskOnly: true, Mounts: mounted(fs, 2)}, image(1, 1))
	for name, tt := range map[string]struct {
		images []*formats.Image
		err    string
	}{
		"the same":         {[]*formats.Image{image(1, 1)}, ""},
		"other files":      {[]*formats.Image{image(1, 2)}, ""},
		"another disk":     {[]*formats.Image{image(2, 1)}, "image x: x is another disk: its partition table is mbr 00000002, the map's is mbr 00000001"},
		"the second":       {[]*formats.Image{image(2, 1), image(1, 1)}, ""},
		"no table":         {[]*formats.Image{fakeImage(1 << 20)}, "its partition table is none, the map's is mbr 00000001"},
		"the size differs": {[]*formats.Image{fakeImage(2 << 20)}, "none of the images that were given is a disk of 1048576 bytes"},
	} {
		for i, img := range tt.images {
			img.Number = i
			img.Files[0].Image, img.Files[0].ID = i, i
		}
		var got bytes.Buffer
		_, err := Rebase(t.Context(), mapfile.NewReader(bytes.NewReader(from)), tt.images, Config{}, mapfile.NewWriter(&got))
		if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
			t.Errorf("%s: %v, want %q", name, err, tt.err)
		}
		if file := []byte(`"file":1,`); err == nil && bytes.Contains(got.Bytes(), file) != (name == "the second") {
			t.Errorf("%s: it lies in another image: %s", name, got.Bytes())
		}
	}
	// One of several devices with the same UUID is not another of them.
	member := func(dev byte) *formats.Image {
		img := image(1, 1)
		b := make([]byte, 1<<20)
		img.ReadAt(b, 0)
		copy(b[4096+64<<10+64:], "_BHRfS_M")
		b[4096+64<<10+0x10b] = dev
		img.Files[0].ReaderAt = bytes.NewReader(b)
		return img
	}
	_, _, one := build(t, fs, Config{DiskOnly: true, Mounts: mounted(fs, 2)}, member(1))
	for dev, ok := range map[byte]bool{1: true, 2: false} {
		_, err := Rebase(t.Context(), mapfile.NewReader(bytes.NewReader(one)), []*formats.Image{member(dev)}, Config{}, mapfile.NewWriter(&bytes.Buffer{}))
		if (err == nil) != ok {
			t.Errorf("member %d: %v", dev, err)
		}
	}
	// Where the partitions lie counts too.
	moved := image(1, 1)
	b := make([]byte, 1<<20)
	moved.ReadAt(b, 0)
	b[454] = 9
	moved.Files[0].ReaderAt = bytes.NewReader(b)
	_, err := Rebase(t.Context(), mapfile.NewReader(bytes.NewReader(from)), []*formats.Image{moved}, Config{}, mapfile.NewWriter(&bytes.Buffer{}))
	if err == nil || !strings.Contains(err.Error(), "its partitions, or the ids of what they hold, are others") {
		t.Errorf("a partition was moved: %v", err)
	}
}

// TestRebaseHashes: files whose hash the map has are compared.
func TestRebaseHashes(t *testing.T) {
	fs := tree("a", "b")
	_, _, from := build(t, fs, Config{Hash: true}, image(1, 1))
	rebase := func(img *formats.Image, c Config) (string, error) {
		var got bytes.Buffer
		_, err := Rebase(t.Context(), mapfile.NewReader(bytes.NewReader(from)), []*formats.Image{img}, c, mapfile.NewWriter(&got))
		return got.String(), err
	}
	if got, err := rebase(image(1, 1), Config{}); err != nil || strings.Contains(got, "problem\"") {
		t.Errorf("the same image: %v %s", err, got)
	}
	if got, err := rebase(image(1, 2), Config{}); err == nil || !strings.Contains(err.Error(), "none of the 2 files that were compared") || strings.Contains(got, `"end"`) {
		t.Errorf("other bytes: %v %s", err, got)
	}
	one := image(1, 1)
	b := make([]byte, 1<<20)
	one.ReadAt(b, 0)
	b[4096+205] ^= 1 // of a, on the partition
	one.Files[0].ReaderAt = bytes.NewReader(b)
	if got, err := rebase(one, Config{}); err != nil || strings.Count(got, `"type":"problem"`) != 1 || !strings.Contains(got, `"path":"/a","what":"content","error":"its bytes are not those that the guest read`) {
		t.Errorf("one byte: %v %s", err, got)
	}
	// The guest saw what the image doesn't have: that byte is carried, and the file is what it read.
	b[4096+205] ^= 1
	right := b[4096+205 : 4096+206]
	b = bytes.Clone(b)
	b[4096+205] ^= 1
	one.Files[0].ReaderAt = bytes.NewReader(b)
	changes := func(img *formats.Image, off, n int64) (int64, []byte) {
		if img == one && off <= 4096+205 && off+n > 4096+205 {
			return 4096 + 205, right
		}
		return 0, nil
	}
	got, err := rebase(one, Config{Changes: changes})
	if err != nil || strings.Contains(got, `"type":"problem"`) ||
		!strings.Contains(got, `"extents":[{"at":0,"len":5,"kind":"data","disk":4296,"file":0,"off":4296},{"at":5,"len":1,"kind":"inline","base64":"`) ||
		!strings.Contains(got, `{"at":6,"len":4,"kind":"data","disk":4302,"file":0,"off":4302}]`) {
		t.Errorf("a change: %v %s", err, got)
	}
}

// TestChangedPack: coded bytes that the guest changed can't be had from the image.
func TestChangedPack(t *testing.T) {
	_, _, from := build(t, packs(), Config{DiskOnly: true, Mounts: mounted(packs(), 0)}, container(3))
	changes := func(_ *formats.Image, off, n int64) (int64, []byte) { return off, make([]byte, n) }
	var got bytes.Buffer
	s, err := Rebase(t.Context(), mapfile.NewReader(bytes.NewReader(from)), []*formats.Image{container(3)}, Config{Changes: changes}, mapfile.NewWriter(&got))
	if err != nil || s.Problems == 0 || bytes.Contains(got.Bytes(), []byte(`"codec":"zstd"`)) || !bytes.Contains(got.Bytes(), []byte("the guest saw after it had replayed its logs")) {
		t.Errorf("%v, %d problems: %.3000s", err, s.Problems, got.Bytes())
	}
}
