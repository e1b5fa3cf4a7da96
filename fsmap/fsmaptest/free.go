package fsmaptest

import (
	"bytes"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"vmkit/fsmap"
)

// Free compares what the file system of an image calls free with what Sleuth Kit's blkls does, whose units are unit
// bytes, or, for 0, the file system's blocks. It skips the test where blkls is absent.
func Free(t *testing.T, d fsmap.Driver, path string, unit int64) {
	t.Helper()
	if _, err := exec.LookPath("blkls"); err != nil {
		t.Skip("blkls is not installed")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := d.Open(f, st.Size(), fsmap.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if unit == 0 {
		unit = fs.Info().BlockSize
	}
	got := make([]byte, st.Size()/unit+1)
	end := int64(0)
	if err := fs.(fsmap.Freer).Free(func(off, n int64) bool {
		if off < end || n <= 0 || off+n > st.Size() {
			t.Errorf("%d bytes at %d after %d", n, off, end)
			return false
		}
		for i := (off + unit - 1) / unit; i < (off+n)/unit; i++ {
			got[i] = 1
		}
		end = off + n
		return true
	}); err != nil {
		t.Error(err)
	}
	out, err := exec.Command("blkls", "-e", "-l", path).Output()
	if err != nil {
		t.Fatalf("blkls: %v", err)
	}
	var over, under, free int
	for line := range bytes.Lines(out) {
		n, kind, _ := strings.Cut(strings.TrimSpace(string(line)), "|")
		i, err := strconv.Atoi(n)
		if err != nil || i >= len(got) {
			continue
		}
		switch {
		case kind == "f":
			if free++; got[i] == 0 {
				under++
			}
		case got[i] != 0:
			over++
		}
	}
	if over > 0 || under > free/50 || free == 0 {
		t.Errorf("%d units are called free that are not, %d of %d free ones are not", over, under, free)
	}
}
