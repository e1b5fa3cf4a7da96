package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/formatstest"
)

type counts struct {
	Corruptions int
	Leaks       int
	CheckErrors int `json:"check-errors"`
}

// qemuCheck is what qemu-img check counts.
func qemuCheck(t testing.TB, path string) (c counts, ok bool) {
	t.Helper()
	cmd := exec.Command(formatstest.Tool(t, "qemu-img"), "check", "-f", "qcow2", "--output=json", path)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return c, json.Unmarshal(out, &c) == nil
}

func ourCheck(t testing.TB, path string) (c counts, found []formats.Finding, err error) {
	t.Helper()
	src := &formats.OSSource{}
	defer src.Close()
	o := &formats.Opener{Formats: table, Source: src}
	_, err = o.Check(path, func(f formats.Finding) {
		found = append(found, f)
		switch {
		case f.Leak:
			c.Leaks++
		case f.What != "overlap": // QEMU only sees its effect on the count
			c.Corruptions++
		}
	})
	return c, found, err
}

// checked makes an image of small clusters with snapshots and a bitmap.
func checked(t testing.TB, options string) (path string, b []byte) {
	path = filepath.Join(t.TempDir(), "disk.qcow2")
	create(t, path, "qcow2", options, 512<<10)
	scribble(t, path, "qcow2", 1, 20, true)
	if small := strings.HasSuffix(options, "bits=1") || strings.HasSuffix(options, "bits=4"); !small { // which leave no room
		formatstest.Exec(t, "qemu-img", "snapshot", "-c", "one", path)
		scribble(t, path, "qcow2", 2, 10, false)
		formatstest.Exec(t, "qemu-img", "snapshot", "-c", "two", path)
	}
	if !strings.Contains(options, "compat=0.10") {
		formatstest.Exec(t, "qemu-img", "bitmap", "--add", path, "bitmap")
		scribble(t, path, "qcow2", 3, 10, false)
	}
	return path, mustRead(t, path)
}

var checkedOptions = []string{
	"cluster_size=512", "cluster_size=512,compat=0.10", "cluster_size=512,refcount_bits=1", "cluster_size=512,refcount_bits=4",
	"cluster_size=4k,refcount_bits=64", "cluster_size=16k,extended_l2=on", "cluster_size=64k,compression_type=zstd",
}

func TestCheckSound(t *testing.T) {
	for _, options := range checkedOptions {
		path, _ := checked(t, options)
		if c, found, err := ourCheck(t, path); err != nil || len(found) > 0 {
			t.Errorf("%s: %+v, %v, %v", options, c, err, found)
		}
	}
	t.Chdir(t.TempDir())
	create(t, "data.qcow2", "qcow2", "data_file=disk.data", 9<<20)
	scribble(t, "data.qcow2", "qcow2", 3, 80, false)
	mustWrite(t, "secret", []byte("secret"))
	formatstest.Exec(t, "qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,file=secret",
		"-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", "luks.qcow2", "4M")
	create(t, "full.qcow2", "qcow2", "preallocation=metadata", 64<<20)
	for _, path := range []string{"data.qcow2", "luks.qcow2", "full.qcow2"} {
		if c, found, err := ourCheck(t, path); err != nil || len(found) > 0 {
			t.Errorf("%s: %+v, %v, %v", path, c, err, found)
		}
	}
}

// metadata gives the positions of the words of L1 and L2 tables, of the refcount table and of refcount blocks.
func metadata(b []byte) (l1, l2, table, blocks []int) {
	be := binary.BigEndian
	cluster := 1 << be.Uint32(b[20:])
	start := int(be.Uint64(b[40:]))
	for i := range int(be.Uint32(b[36:])) {
		l1 = append(l1, start+8*i)
		if at := int(be.Uint64(b[start+8*i:]) & 0xfffffffffffe00); at != 0 {
			for j := 0; j < cluster; j += 8 {
				l2 = append(l2, at+j)
			}
		}
	}
	start = int(be.Uint64(b[48:]))
	for i := 0; i < cluster; i += 8 {
		if at := int(be.Uint64(b[start+i:])); at != 0 {
			table = append(table, start+i)
			for j := 0; j < cluster; j += 8 {
				if be.Uint64(b[at+j:]) != 0 {
					blocks = append(blocks, at+j)
				}
			}
		}
	}
	return l1, l2, table, blocks
}

// TestCheckLikeQEMU damages one word of the metadata after the other and compares with qemu-img check. QEMU counts what
// is wrong in an L2 table once for each state that uses it, vmkit once.
func TestCheckLikeQEMU(t *testing.T) {
	be := binary.BigEndian
	bad := filepath.Join(t.TempDir(), "bad.qcow2")
	for _, options := range checkedOptions {
		_, sound := checked(t, options)
		l1, l2, table, blocks := metadata(sound)
		kinds := [][]int{l1, l2, l2, table, blocks}
		r := rand.New(rand.NewPCG(1, 1))
		cluster := 1 << be.Uint32(sound[20:])
		exact := 0
		for i := range 30 {
			b := bytes.Clone(sound)
			words := kinds[i%len(kinds)]
			at := words[r.IntN(len(words))]
			was := be.Uint64(b[at:])
			now := []uint64{was ^ 1<<r.IntN(64), 0, 1<<63 | uint64(r.IntN(len(b)/cluster)*cluster), be.Uint64(b[l2[r.IntN(len(l2))]:])}[r.IntN(4)]
			be.PutUint64(b[at:], now)
			mustWrite(t, bad, b)
			q, ok := qemuCheck(t, bad)
			c, found, err := ourCheck(t, bad)
			if !ok {
				continue // it doesn't open it at all
			}
			same := q.Leaks == c.Leaks && q.Corruptions == c.Corruptions
			if !same && slices.ContainsFunc(found, func(f formats.Finding) bool { return f.What == "entry" || f.What == "table" || f.What == "overlap" }) {
				same = (q.Corruptions > 0) == (c.Corruptions > 0) && (q.Leaks == c.Leaks || at == table[0])
			} else {
				exact++
			}
			if !same || err != nil {
				t.Errorf("%s: word %#x %#x -> %#x: qemu-img %+v, vmkit %+v %v\n%+v", options, at, was, now, q, c, err, found)
			}
		}
		t.Logf("%s: %d of 30 counts are the same", options, exact)
	}
}

// TestCheckPlanted plants one fault of each kind.
func TestCheckPlanted(t *testing.T) {
	be := binary.BigEndian
	_, sound := checked(t, "cluster_size=512")
	l1, l2, table, blocks := metadata(sound)
	in := func(words []int, which func(e uint64) bool) int {
		return words[slices.IndexFunc(words, func(at int) bool { return which(be.Uint64(sound[at:])) })]
	}
	set := func(at int, f func(e uint64) uint64) func(b []byte) {
		return func(b []byte) { be.PutUint64(b[at:], f(be.Uint64(b[at:]))) }
	}
	standard := in(l2, func(e uint64) bool { return e>>63 == 1 && e&1 == 0 })
	packed := in(l2, func(e uint64) bool { return e>>62 == 1 })
	last := blocks[len(blocks)-1]
	ext := bytes.Index(sound, []byte{0x23, 0x85, 0x28, 0x75})
	dir := int(be.Uint64(sound[ext+8+16:]))
	for _, tc := range []struct {
		what, name string
		set        func(b []byte)
	}{
		{"leak", "a refcount too high", set(last, func(e uint64) uint64 { return e + 1<<48 })},
		{"refcount", "a refcount too low", set(blocks[0], func(e uint64) uint64 { return e - 1<<48 })},
		{"copied", "a copied bit that is not set", set(standard, func(e uint64) uint64 { return e &^ (1 << 63) })},
		{"copied", "a copied bit in the L1 table", set(l1[0], func(e uint64) uint64 { return e ^ 1<<63 })},
		{"overlap", "a cluster on the refcount table", set(standard, func(uint64) uint64 { return 1<<63 | uint64(table[0]) })},
		{"overlap", "a cluster on an L2 table", set(standard, func(uint64) uint64 { return 1<<63 | uint64(l2[0]) })},
		{"entry", "a reserved bit in the L1 table", set(l1[0], func(e uint64) uint64 { return e | 1<<60 })},
		{"entry", "an L2 table off its cluster", set(l1[0], func(e uint64) uint64 { return e | 1<<8 })},
		{"entry", "an L2 table outside the file", set(l1[0], func(e uint64) uint64 { return e | 1<<40 })},
		{"entry", "a reserved bit in an L2 table", set(standard, func(e uint64) uint64 { return e | 1<<3 })},
		{"entry", "a cluster outside the file", set(standard, func(e uint64) uint64 { return e | 1<<40 })},
		{"entry", "a compressed cluster outside the file", set(packed, func(e uint64) uint64 { return e | 1<<40 })},
		{"entry", "a copied compressed cluster", set(packed, func(e uint64) uint64 { return e | 1<<63 })},
		{"table", "a refcount block off its cluster", set(table[0], func(e uint64) uint64 { return e | 8 })},
		{"table", "a refcount block outside the file", set(table[0], func(e uint64) uint64 { return e | 1<<40 })},
		{"bitmaps", "a bitmap's type", func(b []byte) { b[dir+16] = 7 }},
		{"bitmaps", "a bitmap's entry", func(b []byte) { b[be.Uint64(b[dir:])] = 1 }},
		{"snapshots", "a snapshot's L1 table", func(b []byte) { b[be.Uint64(b[64:])+7] = 1 }},
		{"snapshots", "the snapshot table's end", func(b []byte) { be.PutUint32(b[60:], 900) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := bytes.Clone(sound)
			tc.set(b)
			path := filepath.Join(t.TempDir(), "bad.qcow2")
			mustWrite(t, path, b)
			_, found, err := ourCheck(t, path)
			if err != nil || !slices.ContainsFunc(found, func(f formats.Finding) bool { return f.What == tc.what && f.File.Path == path && f.Off >= 0 }) {
				t.Errorf("found %+v, %v; want %s", found, err, tc.what)
			}
			if !bytes.Equal(mustRead(t, path), b) {
				t.Error("the image was changed")
			}
		})
	}
}
