package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"runtime"
	"testing"

	"vmkit/formats"
	"vmkit/formats/qcow2"
)

// huge is an image of 16 TiB whose L2 tables are all allocated, as qemu-img create -o preallocation=metadata makes it:
// tables first, then the clusters in order. It is made up as it is read.
type huge struct {
	head []byte // header and L1 table
}

const (
	hugeSize   = 16 << 40
	hugeTables = hugeSize >> 29 // an L2 table maps 512 MiB
	hugeL2     = 1 << 20
	hugeData   = hugeL2 + hugeTables<<16
)

func (h huge) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < int64(len(h.head)):
		n := copy(p, h.head[off:])
		clear(p[n:])
	case off >= hugeL2 && off < hugeData && off%8 == 0:
		for i := 0; i+8 <= len(p); i += 8 {
			binary.BigEndian.PutUint64(p[i:], 1<<63|uint64(hugeData+(off-hugeL2+int64(i))/8<<16))
		}
	default:
		clear(p)
	}
	return len(p), nil
}

type hugeSource struct{ f *formats.File }

func (s hugeSource) Open(string) (*formats.File, error) { return s.f, nil }
func (s hugeSource) Companion(*formats.File, string, formats.Role) (*formats.File, error) {
	return nil, io.ErrUnexpectedEOF
}

// TestHuge looks at every L2 table of such an image: memory stays within the cache's bound.
func TestHuge(t *testing.T) {
	var b bytes.Buffer
	be := binary.BigEndian
	head := make([]byte, 1<<16)
	be.PutUint32(head, qcow2.Magic)
	be.PutUint32(head[4:], 2)
	be.PutUint32(head[20:], 16)
	be.PutUint64(head[24:], hugeSize)
	be.PutUint32(head[36:], hugeTables)
	be.PutUint64(head[40:], 1<<16)
	b.Write(head)
	for i := range uint64(hugeTables) {
		binary.Write(&b, be, 1<<63|hugeL2+i<<16)
	}
	f := &formats.File{ReaderAt: huge{b.Bytes()}, Path: "huge", Size: hugeData + hugeSize}
	o := &formats.Opener{Formats: table, Source: hugeSource{f}}
	img, err := o.Open("huge")
	if err != nil {
		t.Fatal(err)
	}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var peak uint64
	for i := range int64(hugeTables) {
		off := i<<29 + 12345
		e, err := img.ExtentAt(off, 4096)
		if err != nil || e.Kind != formats.Data || e.Off != hugeData+off {
			t.Fatalf("at %#x: %+v, %v", off, e, err)
		}
		if i%512 == 0 {
			runtime.ReadMemStats(&now)
			peak = max(peak, now.HeapAlloc)
		}
	}
	if used := int64(peak) - int64(before.HeapAlloc); used > 64<<20 {
		t.Errorf("%d MiB of memory", used>>20)
	} else {
		t.Logf("%d KiB of memory at most", used>>10)
	}
	// All of it is one extent, which is told in pieces that stay cheap.
	n := 0
	for off := int64(0); off < 1<<40; n++ {
		e, err := img.ExtentAt(off, hugeSize-off)
		if err != nil || e.Kind != formats.Data || e.Off != hugeData+off {
			t.Fatalf("at %#x: %+v, %v", off, e, err)
		}
		off += e.Len
	}
	if n > 1<<10 {
		t.Errorf("%d extents for the first TiB", n)
	}
}
