package extract

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"vmkit/fsmap/mapfile"
)

const fuzzHead = `{"type":"map","version":1,"created":"2026-01-01T00:00:00Z"}
{"type":"image","id":0,"name":"h","format":"raw","size":16,"files":[{"id":0,"path":"host.img","size":16}]}
`

// FuzzExtract: whatever a map says, nothing is written outside the folder, and every way of extracting ends.
func FuzzExtract(f *testing.F) {
	file := func(path, rest string) string {
		return `{"type":"file","volume":0,"path":"` + path + `",` + rest + "}\n"
	}
	vol := func(name string) string {
		return `{"type":"volume","id":0,"name":"` + name + `","kind":"disk","start":0,"size":16,"image":0}` + "\n"
	}
	const end = `{"type":"end"}` + "\n"
	const x = `"kind":"regular","size":1,"links":2,"inode":7,"mode":"6755","extents":[{"at":0,"len":1,"kind":"inline","base64":"eA=="}]`
	f.Add([]byte(vol("p1") + file("/", `"kind":"directory"`) + file("/a", x) + file("/b", x) + file("/../up", x) + end))
	f.Add([]byte(vol("../v") + file("/a", x) + end))
	f.Add([]byte(vol("p1") + file("/l", `"kind":"symlink","target":"../../.."`) + file("/l/up", x) + file("/d", `"kind":"fifo"`) + end))
	f.Add([]byte(vol("p1") + file("/a", `"kind":"regular","size":9,"extents":[{"at":0,"len":4,"kind":"data","disk":0,"file":0,"off":0},{"at":4,"len":5,"kind":"packed","codec":"zlib","full":9,"skip":1,"parts":[{"len":3,"kind":"data","disk":0,"file":0,"off":0}]}]`) + end))
	maxHoles = 1 << 20
	f.Cleanup(func() { maxHoles = 8 << 30 })
	top := f.TempDir()
	if err := os.WriteFile(filepath.Join(top, "host.img"), []byte("0123456789abcdef"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		in := append([]byte(fuzzHead), body...)
		reader := func() *mapfile.Reader { return mapfile.NewReader(bytes.NewReader(in)) }
		work := t.TempDir()
		o := Options{Images: top, Streams: true, Workers: 2}
		ToDir(context.Background(), reader(), filepath.Join(work, "a", "out"), o)
		for dir, want := range map[string]string{work: "a", filepath.Join(work, "a"): "out"} {
			if list, err := os.ReadDir(dir); err == nil {
				for _, e := range list {
					if e.Name() != want {
						t.Fatalf("%s was written outside the folder", e.Name())
					}
				}
			}
		}
		limited := &limitedWriter{n: 1 << 20}
		ToTar(context.Background(), reader(), limited, o)
		limited.n = 1 << 20
		Cat(context.Background(), reader(), limited, o)
	})
}

// limitedWriter is full after n bytes: holes may be long.
type limitedWriter struct{ n int }

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.n -= len(p); w.n < 0 {
		return 0, os.ErrClosed
	}
	return len(p), nil
}
