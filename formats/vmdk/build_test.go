package vmdk_test

import (
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// No program at hand writes ESXi's extents, or streams as VMware does. They are built here from the published layout
// ("Virtual Disk Format 5.0") and, for seSparse, from how QEMU reads it; that qemu-img convert gives the content back
// is the proof.

type builder struct{ bytes.Buffer }

func (b *builder) sectors() uint64 { return uint64(b.Len()) / 512 }

func (b *builder) pad(to int) {
	if n := b.Len() % to; n > 0 {
		b.Write(make([]byte, to-n))
	}
}

func (b *builder) le(v ...any) {
	for _, x := range v {
		if err := binary.Write(&b.Buffer, binary.LittleEndian, x); err != nil {
			panic(err)
		}
	}
}

func (b *builder) save(t testing.TB, path string) {
	t.Helper()
	write(t, path, b.Bytes())
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// pieces cuts content into grains; nil where one is all zeros.
func pieces(content []byte, grain int) (list [][]byte) {
	for off := 0; off < len(content); off += grain {
		p := content[off:min(off+grain, len(content))]
		if len(bytes.Trim(p, "\x00")) == 0 {
			p = nil
		}
		list = append(list, p)
	}
	return list
}

func hostedHeader(flags uint32, capacity, rgd, gd, overhead uint64, compression uint16) []byte {
	var b builder
	b.WriteString("KDMV")
	b.le(uint32(3), flags, capacity, uint64(128), uint64(1), uint64(20), uint32(512), rgd, gd, overhead)
	b.WriteString("\x00\n \r\n")
	b.le(compression)
	b.pad(512)
	return b.Bytes()
}

// vmwareStream builds a stream-optimized disk as VMware's programs do: the directory's place in a footer, a grain table
// behind every 512 grains that has any, markers before everything. VMware's overhead is 128 sectors.
func vmwareStream(content []byte, overhead int) []byte {
	const grain = 64 << 10
	capacity := uint64(len(content)) / 512
	var b builder
	b.Write(hostedHeader(0x30001, capacity, 0, 1<<64-1, uint64(overhead), 1))
	fmt.Fprintf(&b, "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n"+
		"RW %d SPARSE \"call-me-stream.vmdk\"\n", capacity)
	b.pad(overhead * 512)
	marker := func(sectors uint64, typ uint32) {
		b.le(sectors, uint32(0), typ)
		b.pad(512)
	}
	grains := pieces(content, grain)
	var dir []uint32
	for first := 0; first < len(grains); first += 512 {
		table, any := make([]uint32, 512), false
		for i, p := range grains[first:min(first+512, len(grains))] {
			if p == nil {
				continue
			}
			any = true
			table[i] = uint32(b.sectors())
			var z bytes.Buffer
			w := zlib.NewWriter(&z)
			w.Write(p)
			w.Close()
			b.le(uint64(first+i)*128, uint32(z.Len()))
			b.Write(z.Bytes())
			b.pad(512)
		}
		if !any {
			dir = append(dir, 0)
			continue
		}
		marker(4, 1)
		dir = append(dir, uint32(b.sectors()))
		b.le(table)
	}
	marker((uint64(len(dir))*4+511)/512, 2)
	gd := b.sectors()
	b.le(dir)
	b.pad(512)
	marker(1, 3)
	b.Write(hostedHeader(0x30001, capacity, 0, gd, uint64(overhead), 1))
	marker(0, 0)
	return b.Bytes()
}

// cowd builds an ESXi host sparse extent: grains of a sector as ESX makes them, or of any size.
func cowd(content []byte, grain int) []byte {
	grains := pieces(content, grain)
	tables := (len(grains) + 4095) / 4096
	var b builder
	b.WriteString("COWD")
	b.le(uint32(1), uint32(3), uint32(len(content)/512), uint32(grain/512), uint32(4), uint32(tables), uint32(0))
	b.pad(2048)
	dir := make([]uint32, tables)
	at := b.Len()
	b.le(dir)
	b.pad(512)
	for i := range dir {
		part := grains[i*4096 : min((i+1)*4096, len(grains))]
		table := make([]uint32, 4096)
		dir[i] = uint32(b.sectors())
		tableAt := b.Len()
		b.le(table)
		any := false
		for j, p := range part {
			if p != nil {
				any = true
				table[j] = uint32(b.sectors())
				b.Write(p)
				b.pad(grain)
				b.pad(512)
			}
		}
		if !any {
			dir[i] = 0
			b.Truncate(tableAt)
			continue
		}
		put(b.Bytes()[tableAt:], table)
	}
	put(b.Bytes()[at:], dir)
	return b.Bytes()
}

// put writes numbers over what is there.
func put(dst []byte, v any) {
	if _, err := binary.Encode(dst, binary.LittleEndian, v); err != nil {
		panic(err)
	}
}

// seSparse builds a space-efficient sparse extent. Grains for which zeroed or unmapped say so are marked thus.
func seSparse(content []byte, zeroed, unmapped func(grain int) bool) []byte {
	const grain = 4096
	capacity := uint64(len(content)) / 512
	grains := pieces(content, grain)
	count := (len(grains) + 4095) / 4096
	gdSectors := uint64(count*8+511) / 512
	gd, gts := uint64(8), 8+gdSectors
	data := (gts + uint64(count)*64 + 7) / 8 * 8
	var b builder
	b.le(uint64(0xcafebabe), uint64(0x0000000200000001), capacity, uint64(8), uint64(64), uint64(0), [4]uint64{},
		uint64(1), uint64(1), uint64(2), uint64(1), uint64(3), uint64(1), gd, gdSectors, gts, uint64(count)*64,
		uint64(4), uint64(1), uint64(5), uint64(1), data, uint64(len(grains))*8)
	b.pad(512)
	b.le(uint64(0xcafecafe), uint64(0), uint64(1), uint64(0))
	b.pad(4096)
	// Tables are numbered from the last to the first, grains from behind, so that order proves nothing.
	next := uint64(0)
	var tables builder
	dir := make([]uint64, count)
	place := make(map[uint64][]byte)
	for i := range dir {
		n := count - 1 - i
		dir[n] = 0x1000000000000000 | uint64(i)
		table := make([]uint64, 4096)
		for j := range table {
			switch g := n*4096 + j; {
			case g >= len(grains):
			case zeroed(g):
				table[j] = 0x2000000000000000
			case unmapped(g):
				table[j] = 0x1000000000000000
			case grains[g] != nil:
				// The number's low 12 bits stand at bit 48.
				table[j] = 0x3000000000000000 | next&0xfff<<48 | next>>12
				place[next] = grains[g]
				next++
			}
		}
		tables.le(table)
	}
	b.le(dir)
	b.pad(512)
	b.Write(tables.Bytes())
	b.pad(4096)
	for i := range next {
		b.Write(place[i])
		b.pad(4096)
	}
	return b.Bytes()
}

// describe writes a descriptor with the extents that lines list. (A comment stands before the first: QEMU counts a line
// that follows an empty one twice.)
func describe(t testing.TB, path, createType, more string, lines ...string) string {
	t.Helper()
	text := "# Disk DescriptorFile\nversion=1\nCID=0badcafe\nparentCID=ffffffff\ncreateType=\"" + createType + "\"\n" + more + "# Extent description\n"
	for _, l := range lines {
		text += l + "\n"
	}
	write(t, path, []byte(text+"\nddb.adapterType = \"lsilogic\"\n"))
	return path
}

// sizeLine makes an extent's line for n bytes.
func sizeLine(n int, rest string) string { return fmt.Sprintf("RW %d %s", n/512, rest) }

func in(t testing.TB, name string) string { return filepath.Join(t.TempDir(), name) }
