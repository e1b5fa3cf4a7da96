package qcow2_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"vmkit/formats"
	"vmkit/formats/formatstest"
	"vmkit/formats/qcow2"
	"vmkit/formats/raw"
)

var table = []formats.Format{raw.Format, qcow2.Format}

// create makes an empty image with qemu-img; options is what follows -o, which may be empty.
func create(t testing.TB, path, format, options string, size int64, more ...string) {
	t.Helper()
	args := []string{"create", "-q", "-f", format}
	if options != "" {
		args = append(args, "-o", options)
	}
	args = append(append(args, more...), path)
	if size > 0 {
		args = append(args, fmt.Sprint(size))
	}
	formatstest.Exec(t, "qemu-img", args...)
}

// scribble has qemu-io do n random things to an image: writes, zeros, discards and, where packed is set, compressed
// clusters; those come first and without discards, since QEMU 7.2 damages images where they are mixed. The same seed
// does the same things.
func scribble(t testing.TB, path, format string, seed uint64, n int, packed bool) {
	t.Helper()
	size := virtualSize(t, path, format)
	cluster := int64(65536)
	if i := clusterSize(t, path); i > 0 {
		cluster = i
	}
	r := rand.New(rand.NewPCG(seed, 0))
	args := []string{"-f", format, "-d", "unmap", "-t", "unsafe"}
	do := func(format string, a ...any) { args = append(args, "-c", fmt.Sprintf(format, a...)) }
	if packed {
		for _, i := range r.Perm(int(min(size/cluster, int64(n))))[:min(size/cluster, int64(n))/3] {
			do("write -c -P %d %d %d", 1+r.IntN(255), int64(i)*cluster, cluster)
		}
	}
	for range n {
		off := r.Int64N(size) &^ 511
		length := min(1+r.Int64N(4*cluster), size-off)
		if r.IntN(2) == 0 {
			length = min((length+511)&^511, size-off)
		}
		whole := off &^ (cluster - 1)
		switch kind := r.IntN(6); {
		case kind == 0:
			do("write -z %d %d", off, length)
		case kind == 1:
			do("write -z -u %d %d", whole, min(3*cluster, size-whole))
		case kind == 2 && !packed:
			do("discard %d %d", whole, min(2*cluster, size-whole))
		default:
			do("write -P %d %d %d", 1+r.IntN(255), off, length)
		}
	}
	formatstest.Exec(t, "qemu-io", append(args, path)...)
}

func run(t *testing.T, path string, set func(*formats.Opener)) {
	t.Helper()
	truth, size := formatstest.Convert(t, path)
	open := func(t testing.TB) *formats.Image { return formatstest.Open(t, table, path, set) }
	formatstest.Run(t, formatstest.Case{Open: open, Truth: truth, Size: size})
	formatstest.CompareMap(t, path, open(t))
}

func TestQcow2(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		name, options string
		size          int64
		packed        bool
	}{
		{name: "v2", options: "compat=0.10", size: 9*mib + 512, packed: true},
		{name: "v3", options: "compat=1.1", size: 9*mib + 512, packed: true},
		{name: "512 bytes", options: "cluster_size=512", size: 3*mib + 512, packed: true},
		{name: "1k", options: "cluster_size=1k", size: 3*mib + 512},
		{name: "4k", options: "cluster_size=4k", size: 9*mib + 1536, packed: true},
		{name: "2M", options: "cluster_size=2M", size: 17*mib + 512, packed: true},
		{name: "zstd", options: "compression_type=zstd", size: 9 * mib, packed: true},
		{name: "zstd 2M", options: "compression_type=zstd,cluster_size=2M", size: 17 * mib, packed: true},
		{name: "extended L2", options: "extended_l2=on", size: 9*mib + 512, packed: true},
		{name: "extended L2, 16k", options: "extended_l2=on,cluster_size=16k", size: 9*mib + 512},
		{name: "extended L2, 2M, zstd", options: "extended_l2=on,cluster_size=2M,compression_type=zstd", size: 17*mib + 512, packed: true},
		{name: "lazy refcounts", options: "lazy_refcounts=on", size: 9 * mib},
		{name: "preallocated metadata", options: "preallocation=metadata", size: 9 * mib},
		{name: "preallocated, 512 bytes", options: "preallocation=falloc,cluster_size=512", size: 3 * mib},
		{name: "refcounts of 1 bit", options: "refcount_bits=1", size: 9 * mib},
		{name: "refcounts of 64 bits", options: "refcount_bits=64", size: 9 * mib, packed: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			create(t, path, "qcow2", tc.options, tc.size)
			scribble(t, path, "qcow2", 1, 60, tc.packed)
			scribble(t, path, "qcow2", 2, 60, false) // over the compressed clusters too
			run(t, path, nil)
		})
	}
}

// TestEmpty reads images that hold nothing, from the smallest to the largest that qemu-img makes.
func TestEmpty(t *testing.T) {
	for _, size := range []int64{512, 65536, 1 << 40} {
		path := filepath.Join(t.TempDir(), "disk.qcow2")
		create(t, path, "qcow2", "", size)
		img := formatstest.Open(t, table, path, nil)
		e, err := img.ExtentAt(0, size)
		if err != nil || e.Kind != formats.Zero || e.Len != size {
			t.Errorf("size %d: %+v, %v", size, e, err)
		}
	}
}

// TestConverted reads what qemu-img convert writes, compressed or not, from a disk of mixed content.
func TestConverted(t *testing.T) {
	src := filepath.Join(t.TempDir(), "src.raw")
	mixed(t, src, 7<<20+512)
	for _, args := range [][]string{
		{}, {"-c"}, {"-o", "compat=0.10"}, {"-c", "-o", "compression_type=zstd"}, {"-c", "-o", "cluster_size=512"},
		{"-c", "-o", "cluster_size=2M"}, {"-o", "extended_l2=on"}, {"-W", "-m", "8"},
	} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.qcow2")
			formatstest.Exec(t, "qemu-img", append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), src, path)...)
			run(t, path, nil)
		})
	}
}

// mixed writes a file of text, noise, zeros and holes.
func mixed(t testing.TB, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	noise := rand.NewChaCha8([32]byte{7})
	r := rand.New(rand.NewPCG(7, 7))
	for off := int64(0); off < size; {
		p := make([]byte, min(1+r.Int64N(200_000), size-off))
		switch r.IntN(4) {
		case 0:
			noise.Read(p)
		case 1:
			for i := range p {
				p[i] = "The quick brown fox jumps over the lazy dog. "[i%45]
			}
		case 2:
			off += int64(len(p)) // a hole
			continue
		}
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		off += int64(len(p))
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

// TestChains reads chains of layers with differing sizes, clusters and formats.
func TestChains(t *testing.T) {
	const mib = 1 << 20
	type layer struct {
		format, options string
		size            int64
	}
	for name, layers := range map[string][]layer{
		"same size":           {{"qcow2", "", 8 * mib}, {"qcow2", "", 0}},
		"over raw":            {{"raw", "", 8*mib + 512}, {"qcow2", "", 0}},
		"overlay larger":      {{"qcow2", "", 5*mib + 512}, {"qcow2", "", 8 * mib}, {"qcow2", "", 11 * mib}},
		"overlay smaller":     {{"qcow2", "", 8 * mib}, {"qcow2", "", 3*mib + 1024}, {"qcow2", "", 6 * mib}},
		"raw of odd size":     {{"raw", "", 3*mib + 5}, {"qcow2", "", 8 * mib}},
		"clusters differ":     {{"qcow2", "cluster_size=2M", 9 * mib}, {"qcow2", "cluster_size=512", 0}, {"qcow2", "cluster_size=64k", 0}},
		"subclusters on top":  {{"qcow2", "", 9*mib + 512}, {"qcow2", "extended_l2=on,cluster_size=128k", 0}},
		"subclusters in all":  {{"qcow2", "extended_l2=on", 9 * mib}, {"qcow2", "extended_l2=on,cluster_size=16k", 0}, {"qcow2", "extended_l2=on", 0}},
		"versions differ":     {{"qcow2", "compat=0.10", 9 * mib}, {"qcow2", "compat=1.1,compression_type=zstd", 0}, {"qcow2", "compat=0.10", 0}},
		"eight of them":       {{"qcow2", "", 8 * mib}, {"qcow2", "", 0}, {"qcow2", "", 0}, {"qcow2", "", 0}, {"qcow2", "", 0}, {"qcow2", "", 0}, {"qcow2", "", 0}, {"qcow2", "", 0}},
		"an empty one on top": {{"qcow2", "", 8 * mib}, {"qcow2", "", 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			var path string
			for i, l := range layers {
				below := path
				path = filepath.Join(dir, fmt.Sprintf("layer%d", i))
				var more []string
				if i > 0 {
					more = []string{"-b", filepath.Base(below), "-F", layers[i-1].format}
				}
				if l.format == "raw" { // qemu-img rounds the size
					mixed(t, path, l.size)
					continue
				}
				create(t, path, l.format, l.options, l.size, more...)
				if name != "an empty one on top" || i == 0 {
					scribble(t, path, l.format, uint64(i+10), 40, true)
				}
			}
			run(t, path, nil)
		})
	}
}
