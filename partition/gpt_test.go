package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"os/exec"
	"strings"
	"testing"

	"vmkit/formats/ondisk"
)

const gptScript = "label: gpt\nstart=2048,size=2048,type=U,name=one\nstart=8192,size=4096,type=L,name=two\nstart=60000,size=5000,type=L,name=three\n"

// gptDisk makes a disk of 32 MiB with three partitions.
func gptDisk(t testing.TB) []byte {
	t.Helper()
	path := emptyDisk(t, 65536)
	sfdisk(t, path, gptScript)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// refresh computes a header's checksums again.
func refresh(b []byte, lba int) {
	h := b[lba*512 : lba*512+512]
	first, n := le.Uint64(h[72:])*512, uint64(le.Uint32(h[80:]))*uint64(le.Uint32(h[84:]))
	if first+n <= uint64(len(b)) {
		le.PutUint32(h[88:], crc32.ChecksumIEEE(b[first:first+n]))
	}
	clear(h[16:20])
	le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
}

// said collects what is noted of all volumes, and their problems.
func said(vols []Volume) (notes, problems string) {
	for _, v := range vols {
		notes += strings.Join(v.Notes, "; ") + "\n"
		for _, err := range v.Problems {
			problems += err.Error() + "\n"
		}
	}
	return notes, problems
}

func TestGPTDamage(t *testing.T) {
	const last = 65535
	sound := gptDisk(t)
	for _, c := range []struct {
		name          string
		damage        func(b []byte) []byte
		names         string // the partitions that are left
		note, problem string
	}{
		{"sound", func(b []byte) []byte { return b }, "p1 p2 p3", "", ""},
		{"primary header", func(b []byte) []byte { b[512+30]++; return b }, "p1 p2 p3", "backup GPT at sector 65535 is used: gpt header: checksum", ""},
		{"primary header gone", func(b []byte) []byte { clear(b[512:1024]); return b }, "p1 p2 p3", "there is no primary one", ""},
		{"primary entries", func(b []byte) []byte { b[1024+32]++; return b }, "p1 p2 p3", "is used: gpt header: checksum of the entries", ""},
		{"backup header", func(b []byte) []byte { b[last*512+30]++; return b }, "p1 p2 p3", "backup GPT is not usable: backup gpt header: checksum", ""},
		{"backup gone", func(b []byte) []byte { clear(b[last*512:]); return b }, "p1 p2 p3", "no backup GPT", ""},
		{"both headers", func(b []byte) []byte { b[512+60]++; b[last*512+60]++; return b }, "p1 p2 p3", "", "checksum"},
		{"all entries", func(b []byte) []byte { b[1024+56]++; b[len(b)-33*512+56]++; return b }, "p1 p2 p3", "", "checksum of the entries"},
		{"first MiB", func(b []byte) []byte { clear(b[:1<<20]); return b }, "p1 p2 p3", "no protective MBR", ""},
		{"protective MBR gone", func(b []byte) []byte { clear(b[:512]); return b }, "p1 p2 p3", "no protective MBR", ""},
		{"grown", func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) }, "p1 p2 p3", "the disk grew", ""},
		{"cut behind the last partition", func(b []byte) []byte { return b[:65010*512] }, "p1 p2 p3", "the image was cut", ""},
		{"cut in the last partition", func(b []byte) []byte { return b[:62000*512] }, "p1 p2 p3", "the image was cut", "lie past the end of the disk"},
		{"cut before the last partition", func(b []byte) []byte { return b[:20000*512] }, "p1 p2", "the image was cut", "p3 lies past the end"},
		{"protective only", func(b []byte) []byte { clear(b[512:]); return b }, "", "", "there is no usable one"},
		{"hybrid", func(b []byte) []byte {
			copy(b[462:], []byte{0, 0, 0, 0, 0x83, 0, 0, 0, 0, 32, 0, 0, 0, 16, 0, 0})
			return b
		}, "p1 p2 p3", "hybrid MBR", ""},
		{"hybrid, no GPT", func(b []byte) []byte {
			copy(b[462:], []byte{0, 0, 0, 0, 0x83, 0, 0, 0, 0, 32, 0, 0, 0, 16, 0, 0})
			clear(b[512:])
			return b
		}, "p2", "", "there is no usable one"},
		{"MBR beside it", func(b []byte) []byte { b[450] = 0x83; return b }, "p1", "it is not used", ""},
		{"overlap", func(b []byte) []byte {
			le.PutUint64(b[1024+128+32:], 3000)
			refresh(b, 1)
			return b
		}, "p1 p2 p3", "it overlaps p1", ""},
		{"end before start", func(b []byte) []byte {
			le.PutUint64(b[1024+128+40:], 3000)
			refresh(b, 1)
			return b
		}, "p1 p3", "differs from the primary", "p2: first sector 8192, last 3000"},
		{"ends of the world", func(b []byte) []byte {
			le.PutUint64(b[1024+40:], 1<<64-1)
			le.PutUint64(b[1024+128+32:], 1<<63)
			le.PutUint64(b[1024+128+40:], 1<<64-1)
			refresh(b, 1)
			return b
		}, "p1 p3", "differs from the primary", "p2 lies past the end"},
		{"too many entries", func(b []byte) []byte {
			for _, lba := range []int{1, last} {
				le.PutUint32(b[lba*512+80:], 1<<31)
				refresh(b, lba)
			}
			return b
		}, "", "", "there is no usable one"},
		{"odd entry size", func(b []byte) []byte {
			for _, lba := range []int{1, last} {
				le.PutUint32(b[lba*512+84:], 96)
				refresh(b, lba)
			}
			return b
		}, "", "", "there is no usable one"},
		{"huge header", func(b []byte) []byte { le.PutUint32(b[512+12:], 1<<31); return b }, "p1 p2 p3", "header size", ""},
		{"entries far away", func(b []byte) []byte {
			le.PutUint64(b[512+72:], 1<<62)
			refresh(b, 1)
			return b
		}, "p1 p2 p3", "sector of the entries", ""},
		{"headers differ", func(b []byte) []byte {
			b[1024+56]++
			refresh(b, 1)
			return b
		}, "p1 p2 p3", "differs from the primary", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			vols := scan(t, memory(c.damage(bytes.Clone(sound))), Options{})
			var names []string
			for _, v := range vols {
				if v.Kind == KindPartition {
					names = append(names, v.Name)
				}
			}
			if got := strings.Join(names, " "); got != c.names {
				t.Errorf("partitions %q, want %q", got, c.names)
			}
			notes, problems := said(vols)
			var found []error
			if err := Check(memory(c.damage(bytes.Clone(sound))), Options{}, func(err error) { found = append(found, err) }); err != nil {
				t.Error(err)
			}
			if (len(found) == 0) != (c.name == "sound" || c.name == "hybrid" || c.name == "MBR beside it") {
				t.Errorf("Check reports %v", found)
			}
			if !strings.Contains(notes, c.note) || c.note == "" && strings.TrimSpace(notes) != "" {
				t.Errorf("notes %q, want %q", notes, c.note)
			}
			if !strings.Contains(problems, c.problem) || c.problem == "" && problems != "" {
				t.Errorf("problems %q, want %q", problems, c.problem)
			}
		})
	}
}

// TestGPT4096 takes a disk with 4096-byte sectors as fdisk makes it.
func TestGPT4096(t *testing.T) {
	path := emptyDisk(t, 131072)
	c := exec.Command(tool(t, "fdisk"), "-b", "4096", path)
	c.Stdin = strings.NewReader("g\nn\n1\n256\n2303\nn\n2\n4096\n8191\nw\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("fdisk: %v\n%s", err, out)
	}
	for _, o := range []Options{{}, {SectorSize: 4096}} {
		vols := scan(t, file(t, path), o)
		if v := find(t, vols, "p1"); v.Start != 1<<20 || v.Size != 8<<20 {
			t.Errorf("p1 is %d+%d", v.Start, v.Size)
		}
		if v := find(t, vols, "p2"); v.Start != 16<<20 || v.Size != 16<<20 {
			t.Errorf("p2 is %d+%d", v.Start, v.Size)
		}
		if notes, problems := said(vols); strings.TrimSpace(notes) != "" || problems != "" {
			t.Errorf("%s%s", notes, problems)
		}
	}
	vols := scan(t, file(t, path), Options{SectorSize: 512})
	if _, problems := said(vols); !strings.Contains(problems, "no usable one") {
		t.Errorf("with 512-byte sectors: %v %q", volumeNames(vols), problems)
	}
	if _, err := Scan(nil, Options{SectorSize: 1000}); !errors.Is(err, ondisk.ErrUnsupported) {
		t.Errorf("sector size 1000: %v", err)
	}
}

func TestLayout(t *testing.T) {
	for _, c := range []struct {
		v    any
		size int
	}{
		{mbrEntry{}, 16}, {mbrSector{}, 512}, {gptHeader{}, 92}, {gptEntry{}, 128}, {bsdHead{}, 148}, {bsdEntry{}, 16},
		{apmEntry{}, 92}, {md1Super{}, 256}, {md0Super{}, 4096}, {md0Disk{}, 128},
	} {
		if n := binary.Size(c.v); n != c.size {
			t.Errorf("%T has %d bytes, want %d", c.v, n, c.size)
		}
	}
	// Offsets of fields that stand behind others of varied width: a byte there must show up in the field.
	b := bytes.Repeat([]byte{0}, 4096)
	b[440], b[446+4], b[446+8] = 1, 2, 3
	var m mbrSector
	decode(t, b, &m)
	if m.DiskID != 1 || m.Entries[0].Type != 2 || m.Entries[0].Start != 3 {
		t.Errorf("mbr %+v", m)
	}
	clear(b)
	b[16], b[24], b[32], b[56], b[72], b[80], b[84], b[88] = 1, 2, 3, 4, 5, 6, 7, 8
	var g gptHeader
	decode(t, b, &g)
	if g.CRC != 1 || g.MyLBA != 2 || g.AltLBA != 3 || g.DiskGUID[0] != 4 || g.EntriesLBA != 5 || g.Count != 6 || g.EntrySize != 7 || g.EntriesCRC != 8 {
		t.Errorf("gpt header %+v", g)
	}
	clear(b)
	b[40], b[114], b[132], b[136], b[138] = 1, 2, 3, 4, 5
	var d bsdHead
	decode(t, b, &d)
	if d.SectorSize != 1 || d.Version != 2 || d.Magic2 != 3 || d.Checksum != 4 || d.Count != 5 {
		t.Errorf("bsd label %+v", d)
	}
	clear(b)
	b[8], b[72], b[76], b[80], b[88], b[92], b[128], b[136], b[144], b[152], b[160], b[200], b[208], b[216], b[220] = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
	var s md1Super
	decode(t, b, &s)
	if s.FeatureMap != 1 || s.Level != 2 || s.Layout != 3 || s.Size != 4 || s.ChunkSize != 5 || s.RaidDisks != 6 || s.DataOffset != 7 || s.DataSize != 8 ||
		s.SuperOffset != 9 || s.RecoveryOffset != 10 || s.DevNumber != 11 || s.Events != 12 || s.ResyncOffset != 13 || s.Checksum != 14 || s.MaxDev != 15 {
		t.Errorf("md 1 %+v", s)
	}
	clear(b)
	b[7*4], b[8*4], b[10*4], b[13*4], b[33*4], b[38*4], b[39*4], b[43*4], b[64*4], b[65*4], b[992*4+12], b[992*4+16] = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
	var z md0Super
	decode(t, b, &z)
	if z.Level != 1 || z.Size != 2 || z.RaidDisks != 3 || z.UUID1 != 4 || z.State != 5 || z.Checksum != 6 || z.EventsLo != 7 || z.RecoveryCP != 8 ||
		z.Layout != 9 || z.ChunkSize != 10 || z.ThisDisk.RaidDisk != 11 || z.ThisDisk.State != 12 {
		t.Errorf("md 0.90 %+v", z)
	}
}

func decode(t *testing.T, b []byte, v any) {
	t.Helper()
	if _, err := binary.Decode(b, le, v); err != nil {
		t.Fatal(err)
	}
}
