package partition

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// mmls gives start and length in sectors of what Sleuth Kit lists in numbered slots.
func mmls(t *testing.T, path string, args ...string) [][2]int64 {
	t.Helper()
	out, err := exec.Command(tool(t, "mmls"), append(args, path)...).Output()
	if err != nil {
		t.Fatalf("mmls: %v", err)
	}
	var list [][2]int64
	for _, m := range regexp.MustCompile(`(?m)^\d+:\s+\d\S*\s+(\d+)\s+\d+\s+(\d+)\s`).FindAllStringSubmatch(string(out), -1) {
		var start, n int64
		fmt.Sscan(strings.TrimLeft(m[1], "0")+" "+strings.TrimLeft(m[2], "0"), &start, &n)
		list = append(list, [2]int64{start, n})
	}
	return list
}

// TestBSD makes a BSD label in a slice with fdisk.
func TestBSD(t *testing.T) {
	path := emptyDisk(t, 32768)
	c := exec.Command(tool(t, "fdisk"), path)
	c.Stdin = strings.NewReader("o\nn\np\n1\n2048\n16383\nt\na5\nn\np\n2\n16384\n\nb\ny\nn\na\n2048\n8191\nn\ne\n8192\n16383\nt\na\n7\nt\ne\n7\nw\nr\nw\n")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("fdisk: %v\n%s", err, out)
	}
	vols := scan(t, file(t, path), Options{})
	slice := find(t, vols, "p1")
	for name, want := range map[string][3]int64{"p5": {2048, 6144, 0}, "p1": {2048, 14336, 0}, "p2": {16384, 16384, 0}} {
		if v := find(t, vols, name); v.Start != want[0]*512 || v.Size != want[1]*512 {
			t.Errorf("%s is %d+%d", name, v.Start/512, v.Size/512)
		}
	}
	if v := find(t, vols, "p5"); vols[v.In].Name != slice.Name || v.Scheme != "bsd" || v.Label != "a" {
		t.Errorf("p5: %+v", v)
	}
	n := 0
	for _, p := range mmls(t, path, "-t", "bsd", "-o", "2048") {
		for _, v := range vols {
			if v.Scheme == "bsd" && v.Kind == KindPartition && v.Start == p[0]*512 && v.Size == p[1]*512 {
				n++
			}
		}
	}
	if n != 2 {
		t.Errorf("%d partitions agree with mmls, want 2: %v", n, volumeNames(vols))
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[2048*512+512+150]++
	if _, problems := said(scan(t, memory(b), Options{})); !strings.Contains(problems, "BSD label: checksum") {
		t.Errorf("damaged label: %q", problems)
	}
	// Without the MBR the label in the second sector of the disk counts.
	bare := append([]byte{}, b[2048*512:]...)
	bare[512+150]--
	if v := find(t, scan(t, memory(bare), Options{}), "p5"); v.Label != "e" {
		t.Errorf("label on the bare disk: %+v", v)
	}
}

// TestAppleMap makes a hybrid CD with an Apple partition map.
func TestAppleMap(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "hello"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "cd.iso")
	if out, err := exec.Command(tool(t, "genisoimage"), "-quiet", "-hfs", "-part", "-o", path, dir).CombinedOutput(); err != nil {
		t.Fatalf("genisoimage: %v\n%s", err, out)
	}
	vols := scan(t, file(t, path), Options{})
	for _, p := range mmls(t, path, "-t", "mac") {
		ok := false
		for _, v := range vols {
			ok = ok || v.Scheme == "apm" && v.Start == p[0]*512 && v.Size == p[1]*512
		}
		if !ok {
			t.Errorf("mmls lists sectors %d+%d, not found in %v", p[0], p[1], volumeNames(vols))
		}
	}
	if v := find(t, vols, "p2"); v.Type != "Apple_HFS" {
		t.Errorf("p2: %+v", v)
	}
}

// TestForeign looks at tables that are named and not read.
func TestForeign(t *testing.T) {
	sun := make([]byte, 65536)
	be.PutUint16(sun[508:], sunMagic)
	be.PutUint16(sun[510:], sunMagic)
	sgi := make([]byte, 65536)
	be.PutUint32(sgi, sgiMagic)
	dasd := make([]byte, 65536)
	be.PutUint32(dasd[8192:], dasdMagic)
	amiga := make([]byte, 65536)
	be.PutUint32(amiga[1024:], rdbMagic)
	atari := make([]byte, 65536)
	copy(atari[atariOff:], "\x01GEM\x00\x00\x00\x02\x00\x00\x00\x40")
	for name, b := range map[string][]byte{"Sun": sun, "SGI": sgi, "DASD": dasd, "Amiga": amiga, "Atari": atari} {
		vols := scan(t, memory(b), Options{})
		if _, problems := said(vols); !strings.Contains(problems, name) || !strings.Contains(problems, "unsupported") || len(vols) != 1 {
			t.Errorf("%s: %q %v", name, problems, volumeNames(vols))
		}
	}
}

func FuzzScan(f *testing.F) {
	small := mbrDisk(40, [4]uint32{0x80, 0x83, 1, 5}, [4]uint32{0, 5, 10, 20}, [4]uint32{0, 0xa5, 6, 4})
	putMBR(small[10*512:], [4]uint32{0, 0x83, 1, 2}, [4]uint32{0, 5, 5, 5})
	putMBR(small[15*512:], [4]uint32{0, 0x83, 1, 2})
	le.PutUint32(small[7*512:], bsdMagic)
	le.PutUint32(small[7*512+132:], bsdMagic)
	le.PutUint16(small[7*512+138:], 8)
	f.Add(small)
	g := make([]byte, 16*512)
	putMBR(g, [4]uint32{0, 0xee, 1, 15})
	for _, at := range []int{512, 15 * 512} {
		copy(g[at:], gptMagic)
		le.PutUint32(g[at+12:], 92)
		le.PutUint64(g[at+24:], uint64(at/512))
		le.PutUint64(g[at+32:], uint64(16-at/512))
		le.PutUint64(g[at+72:], 2)
		le.PutUint32(g[at+80:], 8)
		le.PutUint32(g[at+84:], 128)
		g[1024], g[1024+32], g[1024+40] = 1, 4, 10
		refresh(g, at/512)
	}
	f.Add(g)
	apm := make([]byte, 8192)
	copy(apm, "ER\x02\x00")
	for i := 1; i < 4; i++ {
		copy(apm[512*i:], "PM\x00\x00\x00\x00\x00\x03\x00\x00\x00\x04\x00\x00\x00\x02name")
	}
	f.Add(apm)
	f.Fuzz(func(t *testing.T, b []byte) {
		scan(t, memory(b), Options{})
		Recognise(memory(b), int64(len(b)))
	})
}
