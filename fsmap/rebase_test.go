package fsmap

import (
	"bytes"
	"regexp"
	"testing"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/fsmap/mapfile"
)

// container is an image of the disk that big's map is of, with ranges of all kinds, placed by seed.
func container(seed int64) *formats.Image {
	img := fakeImage(1 << 20)
	f := img.Files[0]
	f.ID = int(seed)
	d := &fakeDisk{size: 1 << 20}
	for at, i := int64(0), seed; at < d.size; i++ {
		n := min(1000+i*7919%3000, d.size-at)
		e := formats.Extent{Len: n, Kind: formats.Data, File: f, Off: (i * 104729) % (1 << 22)}
		switch i % 11 {
		case 3:
			e = formats.Extent{Len: n, Kind: formats.Zero}
		case 5:
			part := formats.Extent{Len: 100, Kind: formats.Data, Disk: formats.NoPos, File: f, Off: i * 100}
			e = formats.Extent{Len: n, Kind: formats.Packed, Pack: &formats.Pack{Spec: codec.Spec{Codec: codec.Deflate, Full: n}, Parts: []formats.Extent{part}}}
		}
		d.extents = append(d.extents, e)
		at += n
	}
	img.Disk = d
	return img
}

// packs gives some files what a file system packs itself.
func packs() *fakeFS {
	fs := big()
	for id, n := range fs.nodes {
		if n.kind != mapfile.Regular || id%5 != 0 || n.runsErr != nil {
			continue
		}
		off := int64(id) * 150
		zstd := &Pack{Spec: codec.Spec{Codec: codec.Zstd, Full: 5000}, Parts: []Run{
			{Len: 3000, Kind: mapfile.Data, Off: off}, {Len: 4, Kind: mapfile.Inline, Bytes: []byte("abcd")},
		}}
		xor := &Pack{Spec: codec.Spec{Codec: codec.XOR, Full: 4096}, Parts: []Run{
			{Len: 4096, Kind: mapfile.Data, Off: off + 5000}, {Len: 4096, Kind: mapfile.Data, Off: off + 300000},
		}}
		if id%2 == 0 {
			xor.Codec, xor.Factors, zstd.Pad = codec.RAID6, []byte{3, 142}, true
		}
		n.size = 20000
		n.runs = []Run{
			{At: 0, Len: 4000, Kind: mapfile.Packed, Skip: 500, Pack: zstd},
			{At: 4000, Len: 4000, Kind: mapfile.Packed, Skip: 90, Pack: xor},
			{At: 9000, Len: 3000, Kind: mapfile.Unwritten, Off: off},
			{At: 12000, Len: 3, Kind: mapfile.Inline, Bytes: []byte("xyz")},
			{At: 12003, Len: 700, Kind: mapfile.Encrypted, Off: off},
			{At: 13000, Len: 6000, Kind: mapfile.Data, Off: off},
		}
	}
	return fs
}

var hostPosition = regexp.MustCompile(`,"file":\d+,"off":\d+`)

// TestRebase: a map that is rebased onto another container is, byte for byte, the map that is made from that container;
// with its positions in host files or without.
func TestRebase(t *testing.T) {
	fs := packs()
	_, s, from := build(t, fs, Config{}, container(3))
	_, _, want := build(t, fs, Config{}, container(8))
	if s.Problems == 0 || bytes.Equal(from, want) {
		t.Fatal("not what was to be tested")
	}
	_, _, plain := build(t, fs, Config{}, fakeImage(1<<20))
	for name, stream := range map[string][]byte{"from a container": from, "disk positions only": hostPosition.ReplaceAll(plain, nil)} {
		var got bytes.Buffer
		if _, err := Rebase(t.Context(), mapfile.NewReader(bytes.NewReader(stream)), []*formats.Image{container(8)}, Config{}, mapfile.NewWriter(&got)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		same(t, name, got.Bytes(), want)
	}
}

func same(t *testing.T, name string, got, want []byte) {
	t.Helper()
	g, w := bytes.Split(got, []byte("\n")), bytes.Split(want, []byte("\n"))
	for i := range min(len(g), len(w)) {
		if !bytes.Equal(g[i], w[i]) {
			t.Fatalf("%s: line %d\n%.3000s\nwant\n%.3000s", name, i+1, g[i], w[i])
		}
	}
	if len(g) != len(w) {
		t.Fatalf("%s: %d lines, want %d", name, len(g), len(w))
	}
}

func TestRebaseOther(t *testing.T) {
	_, _, from := build(t, tree("a"), Config{}, fakeImage(1<<20))
	var got bytes.Buffer
	if _, err := Rebase(t.Context(), mapfile.NewReader(bytes.NewReader(from)), []*formats.Image{fakeImage(2 << 20)}, Config{}, mapfile.NewWriter(&got)); err == nil {
		t.Error("a disk of another size is taken")
	}
	if bytes.Contains(got.Bytes(), []byte(`"end"`)) {
		t.Error("the stream has an end")
	}
}
