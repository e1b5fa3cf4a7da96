package xfs

import (
	"os"
	"testing"

	"vmkit/fsmap"
)

// openImage opens the file system in a file.
func openImage(t testing.TB, path string, o fsmap.Options) (fsmap.FS, *os.File) {
	t.Helper()
	h, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	st, err := h.Stat()
	if err != nil {
		t.Fatal(err)
	}
	fs, err := Driver.Open(h, st.Size(), o)
	if err != nil {
		t.Fatal(err)
	}
	return fs, h
}
