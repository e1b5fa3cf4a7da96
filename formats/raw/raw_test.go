package raw_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"vmkit/formats"
	"vmkit/formats/formatstest"
	"vmkit/formats/raw"
)

var table = []formats.Format{raw.Format}

// sparse writes a file of data and holes, and gives its bytes.
func sparse(t *testing.T, path string, size int64, data ...int64) []byte {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	for i := 0; i < len(data); i += 2 {
		p := all[data[i]:data[i+1]]
		r.Read(p)
		if _, err := f.WriteAt(p, data[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return all
}

func TestRaw(t *testing.T) {
	for name, data := range map[string][]int64{
		"empty":          {},
		"full":           {0, 3<<20 + 17},
		"hole first":     {1 << 20, 3<<20 + 17},
		"hole last":      {0, 1 << 20},
		"several":        {0, 4096, 1 << 20, 2 << 20, 3 << 20, 3<<20 + 17},
		"not at a block": {100, 200, 700_001, 900_003},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.img")
			all := sparse(t, path, 3<<20+17, data...)
			formatstest.Run(t, formatstest.Case{
				Open:  func(t testing.TB) *formats.Image { return formatstest.Open(t, table, path, nil) },
				Truth: bytes.NewReader(all), Size: int64(len(all)),
			})
			formatstest.CompareMap(t, path, formatstest.Open(t, table, path, nil), "-f", "raw")
		})
	}
}

func TestHoleIsZero(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	sparse(t, path, 8<<20, 4<<20, 5<<20)
	img := formatstest.Open(t, table, path, nil)
	if !img.Assumed {
		t.Error("raw is not said to be assumed")
	}
	e, err := img.ExtentAt(1<<20, 100<<20)
	if err != nil || e.Kind == formats.Data {
		t.Skipf("the file system of %s tells no holes: %v %v", path, e.Kind, err)
	}
	if e.Kind != formats.Zero || e.Len != 3<<20 {
		t.Errorf("got %v of %d bytes, want 3 MiB of zeros", e.Kind, e.Len)
	}
}
