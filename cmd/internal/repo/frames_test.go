package repo

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os/exec"
	"testing"
)

// TestFrames: what a mapWriter writes is what a frameReader, and zstd, reads; what it didn't write is left to others.
func TestFrames(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, size := range []int{0, 1000, 70_000, mapFrame, mapFrame + 1, 5*mapFrame + 12345} {
		text := make([]byte, size)
		for i := range text {
			text[i] = "abcdefgh\n"[r.IntN(9)]
		}
		if size > mapFrame {
			clear(text[:size/2]) // a block of one byte, many times
		}
		var out bytes.Buffer
		w, err := newMapWriter(&out)
		if err != nil {
			t.Fatal(err)
		}
		for rest := text; len(rest) > 0; {
			n := min(len(rest), 1+r.IntN(300_000))
			if _, err := w.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		frames, ok := mapFrames(out.Bytes())
		if !ok || len(frames) != (size+mapFrame-1)/mapFrame {
			t.Fatalf("%d bytes: %d frames, %v", size, len(frames), ok)
		}
		in, err := newFrameReader(frames)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(in); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%d bytes: %d are read, or others: %v", size, len(got), err)
		}
		in.Close()
		if zstd, err := exec.LookPath("zstd"); err == nil && size > 0 {
			c := exec.Command(zstd, "-dc")
			c.Stdin = &out
			if got, err := c.Output(); err != nil || !bytes.Equal(got, text) {
				t.Errorf("%d bytes: zstd reads %d, or others: %v", size, len(got), err)
			}
		}
		for cut := range min(40, len(frames)) { // left in the middle
			early, err := newFrameReader(frames)
			if err != nil {
				t.Fatal(err)
			}
			io.CopyN(io.Discard, early, int64(cut)*1000)
			early.Close()
		}
	}
	for _, bad := range [][]byte{[]byte("junk"), {0x28, 0xb5, 0x2f, 0xfd}, {0x28, 0xb5, 0x2f, 0xfd, 0xa4, 1, 0, 0, 0, 0xff, 0xff, 0xff}} {
		if _, ok := mapFrames(bad); ok {
			t.Errorf("%x counts as frames", bad)
		}
	}
}
