package formatstest

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vmkit/formats"
)

// Tool gives the path of a program, or skips the test where it is absent.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

// Exec runs a program and gives what it printed; it skips the test where the program is absent.
func Exec(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(Tool(t, name), args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, out, stderr.Bytes())
	}
	return out
}

// Convert has qemu-img write the virtual disk of an image into a raw file. Further arguments go before the image's
// name: "-f", "vpc" for example.
func Convert(t testing.TB, path string, args ...string) (*os.File, int64) {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "truth.raw")
	Exec(t, "qemu-img", append(append([]string{"convert", "-O", "raw"}, args...), path, raw)...)
	f, err := os.Open(raw)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return f, st.Size()
}

// mapEntry is one line of qemu-img map.
type mapEntry struct {
	Start, Length int64
	Depth         int
	Zero, Data    bool
	Offset        *int64
}

// CompareMap holds an image's extents against qemu-img map: which bytes are data, where they lie and in the top image
// or below it, and which are zeros. Further arguments go before the image's name.
func CompareMap(t testing.TB, path string, img *formats.Image, args ...string) {
	t.Helper()
	var entries []mapEntry
	out := Exec(t, "qemu-img", append(append([]string{"map", "--output=json"}, args...), path)...)
	if err := json.Unmarshal(out, &entries); err != nil {
		t.Fatalf("qemu-img map: %v", err)
	}
	var end int64
	for _, q := range entries {
		if q.Start != end {
			t.Fatalf("qemu-img map leaves out %d to %d", end, q.Start)
		}
		for end = q.Start; end < min(q.Start+q.Length, img.Size()); {
			e, err := img.ExtentAt(end, q.Start+q.Length-end)
			if err != nil {
				t.Fatalf("at %#x: %v", end, err)
			}
			if msg := q.compare(e); msg != "" {
				t.Fatalf("at %#x: %s, but qemu-img says %+v: %s", end, show(e), q, msg)
			}
			end += e.Len
		}
		end = q.Start + q.Length
	}
	// qemu-img counts whole sectors.
	if end-img.Size() < 0 || end-img.Size() >= 512 {
		t.Fatalf("qemu-img map ends at %d, the disk at %d", end, img.Size())
	}
}

func (q *mapEntry) compare(e formats.Extent) string {
	switch {
	case q.Data && q.Offset != nil:
		// Where the host file has a hole, QEMU says zero besides.
		if e.Kind == formats.Zero && q.Zero {
			return ""
		}
		if e.Kind != formats.Data {
			return "want data"
		}
		if e.Off != *q.Offset+e.Disk-q.Start {
			return "offset"
		}
		if (q.Depth > 0) != (e.File.Role == formats.RoleBacking) {
			return "depth"
		}
	case q.Data && !q.Zero:
		if e.Kind != formats.Packed {
			return "want packed"
		}
	case q.Zero:
		if e.Kind != formats.Zero {
			return "want zero"
		}
	}
	return ""
}
