package vmdk_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"vmkit/formats"
	"vmkit/formats/all"
	"vmkit/formats/formatstest"
)

// content makes a raw disk: noise, text, holes, and single sectors around the borders of grains and grain tables.
func content(t testing.TB, dir string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, "content.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rnd := rand.New(rand.NewPCG(uint64(size), 7))
	put := func(off, n int64, noise bool) {
		if off >= size {
			return
		}
		b := make([]byte, min(n, size-off))
		for i := range b {
			b[i] = byte(i / 100)
			if noise {
				b[i] = byte(rnd.Uint32())
			}
		}
		if _, err := f.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	put(0, 1<<20, true)
	put(3<<20, 700<<10, false)
	put(32<<20-512, 1024, true) // a border of grain tables
	put(40<<20, 3<<20+512, false)
	put(64<<20-66000, 132000, true)
	put(size-600, 600, true)
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return path
}

// image converts a raw disk to a VMDK of a subformat, and gives the path of its descriptor.
func image(t testing.TB, raw, subformat string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.vmdk")
	formatstest.Exec(t, "qemu-img", append(append([]string{"convert", "-O", "vmdk", "-o", "subformat=" + subformat}, args...), raw, path)...)
	return path
}

func opener(path string) func(testing.TB) *formats.Image {
	return func(t testing.TB) *formats.Image { return formatstest.Open(t, all.Formats, path, nil) }
}

const diskSize = 70<<20 + 512*3 // no whole number of grains

func TestQEMU(t *testing.T) {
	for _, sub := range []string{"monolithicSparse", "streamOptimized", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"} {
		t.Run(sub, func(t *testing.T) {
			path := image(t, content(t, t.TempDir(), diskSize), sub)
			truth, size := formatstest.Convert(t, path)
			formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: truth, Size: size})
			img := opener(path)(t)
			if img.Format != "vmdk" || img.State != formats.StateClean || len(img.Notes) > 0 || len(img.Problems) > 0 {
				t.Errorf("%s, %s, notes %q, problems %v", img.Format, img.State, img.Notes, img.Problems)
			}
			formatstest.CompareMap(t, path, img)
		})
	}
}
