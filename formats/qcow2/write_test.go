package qcow2_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/formats/formatstest"
	"vmkit/formats/qcow2"
)

// target is a file that a Writer writes.
type target struct{ *os.File }

func (t target) WriteHead(p []byte, off int64) error {
	_, err := t.WriteAt(p, off)
	return err
}

func newTarget(t *testing.T, path string) target {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return target{f}
}

// cluster makes content of the n-th kind: zeros, compressible by more or less, or not at all.
func cluster(r *rand.Rand, b []byte) {
	switch r.IntN(5) {
	case 0:
		clear(b)
	case 1:
		for i := range b {
			b[i] = byte(r.IntN(3))
		}
	case 2:
		copy(b, bytes.Repeat([]byte(fmt.Sprintf("line %d\n", r.Uint32())), len(b)/6))
	case 3:
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	case 4:
		clear(b)
		b[r.IntN(len(b))] = 1
	}
}

// write writes an image of size bytes into which each cluster goes with a certain chance, and the same onto the raw
// disk at raw.
func write(t *testing.T, r *rand.Rand, path, raw string, o qcow2.Layout, chance float64, compress bool) {
	t.Helper()
	out, disk := newTarget(t, path), newTarget(t, raw+".new")
	if old, err := os.ReadFile(raw); err == nil {
		disk.Write(old)
	}
	if err := disk.Truncate(o.Size); err != nil {
		t.Fatal(err)
	}
	o.Head = 8 << 20
	w, err := qcow2.NewWriter(out, o)
	if err != nil {
		t.Fatal(err)
	}
	p, err := qcow2.NewPacker(o.Codec)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, o.Cluster)
	for i := int64(0); i < w.Clusters(); i++ {
		if r.Float64() > chance {
			continue
		}
		cluster(r, b)
		end := min(o.Size-i*o.Cluster, o.Cluster)
		clear(b[end:])
		if _, err := disk.WriteAt(b[:end], i*o.Cluster); err != nil {
			t.Fatal(err)
		}
		var packed []byte
		switch {
		case len(bytes.Trim(b, "\x00")) == 0:
			n := int64(1)
			if r.IntN(20) == 0 { // a long stretch
				n = min(w.Clusters()-i, r.Int64N(3*o.Cluster/8))
				if _, err := disk.WriteAt(make([]byte, min(n*o.Cluster, o.Size-i*o.Cluster)), i*o.Cluster); err != nil {
					t.Fatal(err)
				}
			}
			err = w.Zero(i, n)
			i += n - 1
		case compress:
			packed = p.Pack(nil, b)
			fallthrough
		default:
			if packed != nil {
				err = w.Packed(i, packed)
			} else {
				err = w.Data(i, b)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if st, err := out.Stat(); err != nil || st.Size() != w.Written() || w.Written()%o.Cluster != 0 {
		t.Errorf("%v bytes, %v, written %d", st.Size(), err, w.Written())
	}
	if err := os.Rename(raw+".new", raw); err != nil {
		t.Fatal(err)
	}
}

// TestWriter: QEMU finds nothing wrong with what is written, and the bytes that were; so does vmkit.
func TestWriter(t *testing.T) {
	formatstest.Tool(t, "qemu-img")
	for i, tt := range []struct {
		cluster, size int64
		codec         string
		compress      bool
	}{
		{4 << 10, 11<<20 + 512*3, codec.Zstd, true},
		{4 << 10, 5 << 20, codec.Deflate, true},
		{64 << 10, 20<<20 + 1000, codec.Zstd, true},
		{64 << 10, 12 << 20, codec.Deflate, true},
		{64 << 10, 12 << 20, codec.Zstd, false},
		{2 << 20, 20 << 20, codec.Zstd, true},
		{64 << 10, 0, codec.Zstd, true},
	} {
		t.Run(fmt.Sprintf("%d-%s-%v-%d", tt.cluster, tt.codec, tt.compress, tt.size), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(i), 7))
			dir := t.TempDir()
			raw := filepath.Join(dir, "disk.raw")
			o := qcow2.Layout{Size: tt.size, Cluster: tt.cluster, Codec: tt.codec}
			for k := range 3 {
				path := filepath.Join(dir, fmt.Sprintf("%d.qcow2", k))
				write(t, r, path, raw, o, []float64{0.9, 0.1, 0.5}[k], tt.compress)
				formatstest.Exec(t, "qemu-img", "check", path)
				formatstest.Exec(t, "qemu-img", "compare", "-F", "raw", path, raw)
				ours(t, path, raw)
				o.Backing, o.BackingFormat, o.Size = filepath.Base(path), "qcow2", o.Size+tt.cluster*int64(k)
			}
		})
	}
}

// ours compares what vmkit reads of the image with the raw disk, and has it check the image.
func ours(t *testing.T, path, raw string) {
	t.Helper()
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	img := formatstest.Open(t, table, path, nil)
	got := make([]byte, img.Size())
	if n, err := img.ReadAt(got, 0); n < len(got) || !bytes.Equal(got[:len(want)], want) {
		t.Errorf("%s: %d bytes, %v, which are not those of the disk", path, n, err)
	}
	if err := qcow2.Format.Check(img.Files[0], nil, func(f formats.Finding) { t.Errorf("%s: %+v", path, f) }); err != nil {
		t.Error(err)
	}
}

// TestWriterZeroRanges: ranges of zeros share a table, whose references are counted.
func TestWriterZeroRanges(t *testing.T) {
	path := filepath.Join(t.TempDir(), "zeros.qcow2")
	out := newTarget(t, path)
	const size = 140 << 30 // of 70,000 ranges: more than a reference count holds
	w, err := qcow2.NewWriter(out, qcow2.Layout{Size: size, Cluster: 4 << 10, Codec: codec.Zstd, Head: 32 << 20})
	if err != nil {
		t.Fatal(err)
	}
	b := bytes.Repeat([]byte{7}, 4<<10)
	for _, step := range []error{w.Zero(0, 1000), w.Data(1000, b), w.Zero(1001, w.Clusters()-1001), w.Close()} {
		if step != nil {
			t.Fatal(step)
		}
	}
	if w.Written() > 2<<20 {
		t.Errorf("%d bytes for nothing but zeros", w.Written())
	}
	formatstest.Exec(t, "qemu-img", "check", path)
}

func TestWriterRefuses(t *testing.T) {
	out := newTarget(t, filepath.Join(t.TempDir(), "x"))
	for _, o := range []qcow2.Layout{
		{Size: 1 << 30, Cluster: 3 << 10}, {Size: 1 << 30, Cluster: 512}, {Size: 1 << 30, Cluster: 4 << 20},
		{Size: -1}, {Size: 1 << 60}, {Size: 1 << 50, Head: 1 << 20}, {Size: 1 << 20, Backing: strings.Repeat("x", 2000)},
		{Size: 1 << 20, Codec: "lz4"},
	} {
		if o.Codec == "" {
			o.Codec = codec.Zstd
		}
		if o.Head == 0 {
			o.Head = 8 << 20
		}
		if _, err := qcow2.NewWriter(out, o); err == nil {
			t.Errorf("%+v is no error", o)
		}
	}
	w, err := qcow2.NewWriter(out, qcow2.Layout{Size: 1 << 20, Codec: codec.Zstd, Head: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, qcow2.DefaultCluster)
	if err := w.Data(3, b); err != nil {
		t.Fatal(err)
	}
	for i, err := range []error{w.Data(4, b[:100]), w.Packed(5, nil), w.Data(2, b), w.Zero(15, 2), w.Data(16, b)} {
		if err == nil {
			t.Errorf("step %d is no error", i)
		}
	}
}

// TestUnheld: what no layer holds is missing where that was asked for, what one holds as zeros is zeros.
func TestUnheld(t *testing.T) {
	dir := t.TempDir()
	o := qcow2.Layout{Size: 4 * qcow2.DefaultCluster, Codec: codec.Zstd, Head: 8 << 20}
	for i, name := range []string{"base.qcow2", "top.qcow2"} {
		w, err := qcow2.NewWriter(newTarget(t, filepath.Join(dir, name)), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Zero(int64(2*i), 1), w.Data(int64(2*i+1), make([]byte, qcow2.DefaultCluster)), w.Close()); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			o.Backing, o.BackingFormat = "base.qcow2", "qcow2"
		}
	}
	for _, tt := range []struct {
		name string
		want string
	}{{"base.qcow2", "zero data missing missing"}, {"top.qcow2", "zero data zero data"}} {
		img := formatstest.Open(t, table, filepath.Join(dir, tt.name), func(o *formats.Opener) { o.Unheld = true })
		var got []string
		for at := int64(0); at < img.Size(); at += qcow2.DefaultCluster {
			e, err := img.ExtentAt(at, qcow2.DefaultCluster)
			if err != nil || e.Len != qcow2.DefaultCluster {
				t.Errorf("%s at %d: %d bytes, %v", tt.name, at, e.Len, err)
			}
			got = append(got, e.Kind.String())
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s: %s, not %s", tt.name, s, tt.want)
		}
	}
}
