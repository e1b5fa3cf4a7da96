package formats_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"vmkit/formats"
	"vmkit/formats/formatstest"
	"vmkit/formats/ondisk"
	"vmkit/formats/raw"
)

// pieces is a disk of given extents, data lying in one file at the same offset.
type pieces struct {
	f    *formats.File
	size int64
	at   []piece
}

type piece struct {
	end  int64
	kind formats.Kind
}

func (p *pieces) Size() int64 { return p.size }

func (p *pieces) ExtentAt(off, max int64) (formats.Extent, error) {
	for _, q := range p.at {
		if off < q.end {
			e := formats.Extent{Len: min(max, q.end-off), Kind: q.kind, Disk: off}
			if q.kind == formats.Data {
				e.File, e.Off = p.f, off
			}
			return e, nil
		}
	}
	return formats.Extent{Len: min(max, p.size-off), Kind: formats.Zero, Disk: off}, nil
}

func noise(n int64) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{9}).Read(b)
	return b
}

func disk(b []byte, at ...piece) formats.Disk {
	f := &formats.File{ReaderAt: bytes.NewReader(b), Path: "file", Size: int64(len(b))}
	return formats.NewDisk(&pieces{f, int64(len(b)), at}, formats.NewEnv(0))
}

// zeroSink counts the zeros that it was not handed.
type zeroSink struct {
	bytes.Buffer
	skipped int64
}

func (z *zeroSink) WriteZeros(n int64) error {
	z.skipped += n
	z.Write(make([]byte, n))
	return nil
}

func TestCopy(t *testing.T) {
	b := noise(3<<20 + 777)
	clear(b[1<<20 : 2<<20+5])
	d := disk(b, piece{1 << 20, formats.Data}, piece{2<<20 + 5, formats.Zero}, piece{int64(len(b)), formats.Data})
	for _, workers := range []int{0, 1, 2, 7} {
		var plain bytes.Buffer
		var sparse zeroSink
		for _, w := range []io.Writer{&plain, &sparse} {
			if n, err := formats.Copy(t.Context(), w, d, workers); n != int64(len(b)) || err != nil {
				t.Fatalf("%d workers: %d bytes, %v", workers, n, err)
			}
		}
		if !bytes.Equal(plain.Bytes(), b) || !bytes.Equal(sparse.Bytes(), b) {
			t.Errorf("%d workers: the bytes differ", workers)
		}
		if sparse.skipped != 1<<20+5 {
			t.Errorf("%d zeros were left out, want 1 MiB and 5", sparse.skipped)
		}
	}
	if n, err := formats.Copy(t.Context(), io.Discard, disk(nil), 2); n != 0 || err != nil {
		t.Errorf("an empty disk: %d, %v", n, err)
	}
}

// TestCopyStops checks that what can't be had ends the copy right before it, and nothing else is written.
func TestCopyStops(t *testing.T) {
	b := noise(5 << 20)
	d := disk(b, piece{2<<20 + 4096, formats.Data}, piece{3 << 20, formats.Missing}, piece{5 << 20, formats.Data})
	var w bytes.Buffer
	n, err := formats.Copy(t.Context(), &w, d, 3)
	if !errors.Is(err, ondisk.ErrTruncated) {
		t.Errorf("error %v", err)
	}
	if n != int64(w.Len()) || n != 2<<20+4096 || !bytes.Equal(w.Bytes(), b[:n]) {
		t.Errorf("%d bytes were written, %d told", w.Len(), n)
	}
}

type failing struct{ left int }

func (f *failing) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func TestCopyEndsEarly(t *testing.T) {
	d := disk(noise(8<<20), piece{8 << 20, formats.Data})
	if _, err := formats.Copy(t.Context(), &failing{left: 3 << 20}, d, 2); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a closed pipe: %v", err)
	}
	zeros := disk(make([]byte, 8<<20))
	if _, err := formats.Copy(t.Context(), &failing{left: 3 << 20}, zeros, 2); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a closed pipe, zeros: %v", err)
	}
	for _, d := range []formats.Disk{d, zeros} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := formats.Copy(ctx, io.Discard, d, 2); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
}

// TestCopyHoles checks that holes of a host file are not read, though the image calls them data.
func TestCopyHoles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	check(t, err)
	defer f.Close()
	b := make([]byte, 64<<20)
	copy(b[32<<20:], noise(1<<20))
	_, err = f.WriteAt(b[32<<20:33<<20], 32<<20)
	check(t, err)
	check(t, f.Truncate(64<<20))
	img := formatstest.Open(t, []formats.Format{raw.Format}, path, nil)
	if e, err := img.ExtentAt(0, 1); err != nil || e.Kind != formats.Zero {
		t.Skip("the file system tells no holes")
	}
	d := formats.NewDisk(&pieces{img.Files[0], 64 << 20, []piece{{64 << 20, formats.Data}}}, formats.NewEnv(0))
	var w zeroSink
	if _, err := formats.Copy(t.Context(), &w, d, 2); err != nil || !bytes.Equal(w.Bytes(), b) {
		t.Errorf("the bytes differ, %v", err)
	}
	if w.skipped < 60<<20 {
		t.Errorf("only %d bytes were left out", w.skipped)
	}
}
