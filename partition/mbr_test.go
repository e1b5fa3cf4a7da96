package partition

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// mbrDisk makes a disk of n sectors with an MBR of these entries: boot, type, start, count.
func mbrDisk(n int64, entries ...[4]uint32) []byte {
	b := make([]byte, n*512)
	putMBR(b, entries...)
	return b
}

func putMBR(b []byte, entries ...[4]uint32) {
	le.PutUint16(b[510:], mbrMagic)
	for i, e := range entries {
		p := b[446+16*i:]
		p[0], p[4] = byte(e[0]), byte(e[1])
		le.PutUint32(p[8:], e[2])
		le.PutUint32(p[12:], e[3])
	}
}

func TestMBRDamage(t *testing.T) {
	ebr := func(b []byte, sector int, entries ...[4]uint32) { putMBR(b[sector*512:], entries...) }
	for _, c := range []struct {
		name          string
		disk          func() []byte
		names         string
		note, problem string
	}{
		{"chain comes back", func() []byte {
			b := mbrDisk(4096, [4]uint32{0, 5, 100, 3000})
			ebr(b, 100, [4]uint32{0, 0x83, 1, 10}, [4]uint32{0, 5, 200, 100})
			ebr(b, 300, [4]uint32{0, 0x83, 1, 10}, [4]uint32{0, 5, 0, 100})
			return b
		}, "p5 p6", "", "the chain comes back to sector 100"},
		{"chain onto itself", func() []byte {
			b := mbrDisk(4096, [4]uint32{0, 5, 100, 3000})
			ebr(b, 100, [4]uint32{0, 0x83, 1, 10}, [4]uint32{0, 5, 0, 100})
			return b
		}, "p5", "", "the chain comes back"},
		{"chain leaves the disk", func() []byte {
			b := mbrDisk(4096, [4]uint32{0, 5, 100, 3000})
			ebr(b, 100, [4]uint32{0, 0x83, 1, 10}, [4]uint32{0, 5, 1 << 31, 100})
			return b
		}, "p5", "", "extended boot record of p1"},
		{"no EBR", func() []byte { return mbrDisk(4096, [4]uint32{0, 5, 100, 3000}) }, "", "", "extended boot record of p1: magic 0"},
		{"two extended", func() []byte {
			b := mbrDisk(4096, [4]uint32{0, 5, 100, 500}, [4]uint32{0x80, 0x83, 1, 50}, [4]uint32{0, 0xf, 1000, 500})
			ebr(b, 100, [4]uint32{0, 0x83, 1, 10})
			ebr(b, 1000, [4]uint32{0, 7, 1, 10})
			return b
		}, "p2 p5 p6", "", ""},
		{"past the end", func() []byte { return mbrDisk(4096, [4]uint32{0, 0x83, 1, 8000}, [4]uint32{0, 0x83, 8001, 10}) }, "p1", "", "p2 lies past the end"},
		{"largest", func() []byte {
			return mbrDisk(4096, [4]uint32{0, 0x83, 1, 1<<32 - 1}, [4]uint32{0, 0x83, 1<<32 - 1, 1<<32 - 1})
		}, "p1", "", "p2 lies past the end"},
		{"overlapping", func() []byte { return mbrDisk(4096, [4]uint32{0, 0x83, 1, 100}, [4]uint32{0, 7, 50, 100}) }, "p1 p2", "it overlaps p1", ""},
		{"isohybrid", func() []byte { return mbrDisk(4096, [4]uint32{0x80, 0x17, 0, 4096}, [4]uint32{0, 0xef, 500, 100}) }, "p1 p2", "it overlaps p1", ""},
		{"boot code", func() []byte { return mbrDisk(4096, [4]uint32{0x41, 0x42, 1, 100}) }, "", "", ""},
		{"not a sector", func() []byte { return mbrDisk(4096)[:100] }, "", "", ""},
		{"no bytes", func() []byte { return nil }, "", "", ""},
		{"one sector", func() []byte { return mbrDisk(1, [4]uint32{0, 0x83, 0, 1}) }, "p1", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			vols := scan(t, memory(c.disk()), Options{})
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
			if !strings.Contains(notes, c.note) {
				t.Errorf("notes %q, want %q", notes, c.note)
			}
			if !strings.Contains(problems, c.problem) || c.problem == "" && problems != "" {
				t.Errorf("problems %q, want %q", problems, c.problem)
			}
		})
	}
}

func TestLongChain(t *testing.T) {
	b := mbrDisk(20000, [4]uint32{0, 5, 1, 19999})
	for i := uint32(0); i < 9000; i++ {
		putMBR(b[(1+2*i)*512:], [4]uint32{0, 0x83, 1, 1}, [4]uint32{0, 5, 2*i + 2, 2})
	}
	vols := scan(t, memory(b), Options{})
	if _, problems := said(vols); !strings.Contains(problems, "only the first are listed") {
		t.Errorf("problems %q", problems)
	}
	if len(vols) > maxVolumes {
		t.Errorf("%d volumes", len(vols))
	}
}

// TestBareFileSystems makes file systems on the whole disk: none may be taken for a table.
func TestBareFileSystems(t *testing.T) {
	for _, c := range []struct{ name, command string }{
		{"vfat", "mkfs.fat -F 16 FILE"}, {"vfat", "mkfs.fat -F 32 -s 1 FILE"}, {"vfat", "mkfs.fat -F 12 FILE"},
		{"vfat", "mkfs.fat --mbr=no FILE"}, {"ntfs", "mkfs.ntfs -F -Q FILE"}, {"exfat", "mkfs.exfat FILE"}, {"ext4", "mke2fs -q -F -t ext4 FILE"},
		{"ext2", "mke2fs -q -F -t ext2 FILE"}, {"xfs", "mkfs.xfs -q FILE"}, {"btrfs", "mkfs.btrfs -q FILE"}, {"swap", "mkswap FILE"},
		{"minix", "mkfs.minix FILE"}, {"minix", "mkfs.minix -3 FILE"}, {"bfs", "mkfs.bfs FILE"}, {"crypto_LUKS", "cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 FILE /etc/hostname"},
		{"crypto_LUKS", "cryptsetup -q luksFormat --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 FILE /etc/hostname"},
	} {
		t.Run(c.command, func(t *testing.T) {
			args := strings.Fields(c.command)
			size := int64(40 << 20)
			if args[0] == "mkfs.btrfs" || args[0] == "mkfs.xfs" {
				size = 320 << 20
			}
			path := emptyDisk(t, size/512)
			for i := range args {
				args[i] = strings.ReplaceAll(args[i], "FILE", path)
			}
			if out, err := exec.Command(tool(t, args[0]), args[1:]...).CombinedOutput(); err != nil {
				t.Skipf("%s: %v\n%s", args[0], err, out)
			}
			d := file(t, path)
			if vols := scan(t, d, Options{}); vols[0].Name != "disk" || len(vols) > 1 && vols[1].Kind != KindLUKS {
				t.Errorf("volumes %v", volumeNames(vols))
			}
			got, ok := Recognise(d, d.Size())
			if !ok || got.Name != c.name {
				t.Errorf("recognised as %+v", got)
			}
			blkid(t, path, got)
			// The backup GPT of an earlier use must not come back.
			b, err := os.ReadFile(path)
			if err != nil || size > 40<<20 {
				return
			}
			old := emptyDisk(t, size/512)
			sfdisk(t, old, "label: gpt\nstart=2048,size=2048\n")
			was, err := os.ReadFile(old)
			if err != nil {
				t.Fatal(err)
			}
			copy(b[len(b)-33*512:], was[len(was)-33*512:])
			if vols := scan(t, memory(b), Options{}); len(vols) > 1 && vols[1].Kind != KindLUKS {
				t.Errorf("with an old backup GPT: %v", volumeNames(vols))
			}
		})
	}
}

// blkid compares what was recognised with what blkid says.
func blkid(t *testing.T, path string, got Content) {
	t.Helper()
	out, err := exec.Command(tool(t, "blkid"), "-p", "-o", "export", path).Output()
	if err != nil {
		t.Logf("blkid: %v", err)
	}
	want := make(map[string]string)
	for line := range bytes.Lines(out) {
		k, v, _ := strings.Cut(strings.TrimSpace(string(line)), "=")
		want[k] = v
	}
	if got.Name != want["TYPE"] || string(got.What) != want["USAGE"] || got.UUID != want["UUID"] || got.Label != want["LABEL"] {
		t.Errorf("recognised %+v, blkid says %v", got, want)
	}
}

// TestMBR4096 takes an MBR that counts in sectors of 4096 bytes, as fdisk makes it, with a swap area in the partition.
func TestMBR4096(t *testing.T) {
	path, swap := emptyDisk(t, 131072), emptyDisk(t, 16384)
	c := exec.Command(tool(t, "fdisk"), "-b", "4096", path)
	c.Stdin = strings.NewReader("o\nn\np\n1\n256\n2303\nw\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("fdisk: %v\n%s", err, out)
	}
	if v := find(t, scan(t, file(t, path), Options{}), "p1"); v.Start != 256*512 {
		t.Errorf("nothing recognised: p1 starts at %d", v.Start)
	}
	if out, err := exec.Command(tool(t, "mkswap"), swap).CombinedOutput(); err != nil {
		t.Fatalf("mkswap: %v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := os.ReadFile(swap)
	if err != nil {
		t.Fatal(err)
	}
	copy(b[256*4096:], s)
	vols := scan(t, memory(b), Options{})
	v := find(t, vols, "p1")
	if v.Start != 256*4096 || v.Size != 2048*4096 || v.Holds != "swap" {
		t.Errorf("p1 is %d+%d, holds %q", v.Start, v.Size, v.Holds)
	}
	if notes, _ := said(vols); !strings.Contains(notes, "sectors of 4096 bytes") {
		t.Errorf("notes %q", notes)
	}
}
