package vhdx_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/all"
	"vmkit/formats/formatstest"
	"vmkit/formats/ondisk"
)

// logWrite is a sector that a log holds, or zeros from at on.
type logWrite struct {
	at    int
	data  []byte
	zeros int
}

const logGUID = "abcdefab-1234-4321-8765-abcdefabcdef"

// entry makes an entry of a log: header and descriptors, then data sectors.
func entry(seq uint64, tail, fileSize int, writes []logWrite) []byte {
	head := make([]byte, (64+32*len(writes)+4095)/4096*4096)
	var data []byte
	for i, w := range writes {
		d := head[64+32*i:]
		if w.data == nil {
			copy(d, "zero")
			le.PutUint64(d[8:], uint64(w.zeros))
		} else {
			copy(d, "desc")
			copy(d[4:8], w.data[4092:])
			copy(d[8:16], w.data[:8])
			s := bytes.Clone(w.data)
			copy(s, "data")
			le.PutUint32(s[4:], uint32(seq>>32))
			le.PutUint32(s[4092:], uint32(seq))
			data = append(data, s...)
		}
		le.PutUint64(d[16:], uint64(w.at))
		le.PutUint64(d[24:], seq)
	}
	e := append(head, data...)
	copy(e, "loge")
	le.PutUint32(e[8:], uint32(len(e)))
	le.PutUint32(e[12:], uint32(tail))
	le.PutUint64(e[16:], seq)
	le.PutUint32(e[24:], uint32(len(writes)))
	copy(e[32:], guid(logGUID))
	le.PutUint64(e[48:], uint64(fileSize))
	le.PutUint64(e[56:], uint64(fileSize))
	sum(e)
	return e
}

// logged puts entries into the log of a file, the first at a place in the ring, and makes the header say so.
func logged(file []byte, at int, entries ...[]logWrite) []byte {
	file = bytes.Clone(file)
	h := file[64<<10:]
	if le.Uint64(file[128<<10+8:]) > le.Uint64(h[8:]) {
		h = file[128<<10:]
	}
	copy(h[48:64], guid(logGUID))
	sum(h[:4096])
	size, off := int(le.Uint32(h[68:])), int(le.Uint64(h[72:]))
	ring := file[off : off+size]
	tail := at
	for i, w := range entries {
		for _, c := range entry(uint64(10+i), tail, len(file), w) {
			ring[at%size] = c
			at++
		}
	}
	return file
}

// TestLog takes the BAT out of an image and puts it into the log; QEMU's replay, onto a copy, tells what must come out.
func TestLog(t *testing.T) {
	path, raw := image(t, 11*mib, "subformat=dynamic,block_size=1M")
	good := read(t, path)
	bat := batOf(good)
	sector := bytes.Clone(good[bat : bat+4096])
	var scrap [4096]byte
	for i := range scrap {
		scrap[i] = byte(i)
	}
	spoiled := bytes.Clone(good)
	clear(spoiled[bat : bat+4096])
	for _, c := range []struct {
		name    string
		at      int
		entries [][]logWrite
		notes   string
	}{
		{"one entry", 0, [][]logWrite{{{at: bat, data: sector}}}, "1 writes"},
		{"the last one counts", 8192, [][]logWrite{{{at: bat, data: scrap[:]}}, {{at: bat, zeros: 8192}, {at: bat, data: sector}}}, "3 writes"},
		{"over the end of the ring", mib - 4096, [][]logWrite{{{at: bat, data: scrap[:]}, {at: bat, data: sector}}}, "2 writes"},
		{"many", 40960, [][]logWrite{many(bat+8192, 300), {{at: bat, data: sector}}}, "301 writes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dirty := logged(spoiled, c.at, c.entries...)
			path := write(t, in(t, "dirty.vhdx"), dirty)
			formatstest.Run(t, formatstest.Case{Open: opener(path), Truth: bytes.NewReader(raw), Size: int64(len(raw))})
			img := opener(path)(t)
			if img.State != formats.StateDirty || len(img.Notes) != 1 || !strings.Contains(img.Notes[0], c.notes) || len(img.Problems) > 0 {
				t.Errorf("%s, notes %q, problems %v", img.State, img.Notes, img.Problems)
			}
			if b := read(t, path); !bytes.Equal(b, dirty) {
				t.Error("the file was changed")
			}
			if c.name == "many" { // QEMU 7.2 reads every sector of descriptors over the first
				return
			}
			t.Run("qemu", func(t *testing.T) {
				formatstest.Exec(t, "qemu-img", "check", "-q", "-r", "all", path)
				truth, _ := formatstest.Convert(t, path)
				if !bytes.Equal(read(t, truth.Name()), raw) {
					t.Error("QEMU reads something else after its replay")
				}
			})
		})
	}
}

// many makes n writes of zeros, more than fit into one sector of descriptors.
func many(at, n int) (w []logWrite) {
	for range n {
		w = append(w, logWrite{at: at, zeros: 4096})
	}
	return w
}

func batOf(file []byte) int {
	for i := 192<<10 + 16; ; i += 32 {
		if bytes.Equal(file[i:i+16], guid("2dc27766-f623-4200-9d64-115e9bfd4a08")) {
			return int(le.Uint64(file[i+16:]))
		}
	}
}

func TestBadLog(t *testing.T) {
	good := build(2*mib, 512, map[int]byte{0: 6, 1: 6}, nil, nil)
	data := make([]byte, 4096)
	fails := func(name string, b []byte, want error, text string) {
		t.Helper()
		_, err := formatstest.TryOpen(t, all.Formats, write(t, in(t, "x.vhdx"), b), nil)
		if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b := logged(good, 0, []logWrite{{at: 3 * mib, data: data}})
	fails("cut file", b[:len(b)-mib], ondisk.ErrTruncated, "the file was longer")
	b[mib+4096+100]++
	fails("checksum", b, ondisk.ErrCorrupt, "none is whole")
	b = logged(good, 0, []logWrite{{at: 3*mib + 5, data: data}})
	fails("place", b, ondisk.ErrCorrupt, "sequence number or place")
	b = logged(good, 0, []logWrite{{at: 3 * mib, zeros: 77}})
	fails("zeros", b, ondisk.ErrCorrupt, "length of zeros")

	// An entry that was cut short by the crash is not part of the sequence.
	b = logged(good, 0, []logWrite{{at: 3*mib + 8192, zeros: 4096}}, []logWrite{{at: 3 * mib, zeros: 4096}})
	b[mib+4096+70]++
	img := opener(write(t, in(t, "x.vhdx"), b))(t)
	if e, err := img.ExtentAt(0, 10); e.Kind != formats.Data || err != nil {
		t.Errorf("%v, %v", e.Kind, err)
	}
	// A payload block in the log is a gap.
	img = opener(write(t, in(t, "x.vhdx"), logged(good, 0, []logWrite{{at: 5*mib + 4096, data: data}})))(t)
	if e, err := img.ExtentAt(0, 2*mib); e.Kind != formats.Missing || !errors.Is(err, ondisk.ErrUnsupported) {
		t.Errorf("%v, %v", e.Kind, err)
	}
	// A block that the log puts behind the end of the file, which its last entry makes longer, is zeros.
	bat := make([]byte, 4096)
	le.PutUint64(bat, uint64(len(good))|6)
	b = logged(good, 0, []logWrite{{at: 3 * mib, data: bat}})
	e := b[mib : mib+8192]
	le.PutUint64(e[56:], uint64(len(good)+mib))
	sum(e)
	img = opener(write(t, in(t, "x.vhdx"), b))(t)
	if e, err := img.ExtentAt(0, mib); e.Kind != formats.Zero || e.Len != mib || err != nil {
		t.Errorf("%v, %d, %v", e.Kind, e.Len, err)
	}
}
