package partition

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmkit/formats"
)

// memory is a disk of bytes.
func memory(b []byte) formats.Disk {
	f := &formats.File{ReaderAt: bytes.NewReader(b), Path: "memory", Size: int64(len(b))}
	return formats.NewDisk(flat{f}, formats.NewEnv(0))
}

type flat struct{ f *formats.File }

func (d flat) Size() int64 { return d.f.Size }

func (d flat) ExtentAt(off, max int64) (formats.Extent, error) {
	return formats.Extent{Len: min(max, d.f.Size-off), Kind: formats.Data, Disk: off, File: d.f, Off: off}, nil
}

func image(name string, d formats.Disk) *formats.Image { return &formats.Image{Disk: d, Name: name} }

// file opens a raw image.
func file(t testing.TB, path string) formats.Disk {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return formats.NewDisk(flat{&formats.File{ReaderAt: f, Path: path, Size: st.Size()}}, formats.NewEnv(0))
}

// tool skips the test where a program is absent.
func tool(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		for _, dir := range []string{"/sbin", "/usr/sbin"} {
			if p, err = exec.LookPath(filepath.Join(dir, name)); err == nil {
				return p
			}
		}
		t.Skipf("%s is not installed", name)
	}
	return p
}

// sectorsOf makes an empty disk of n sectors of 512 bytes.
func emptyDisk(t testing.TB, n int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, n*512); err != nil {
		t.Fatal(err)
	}
	return path
}

// sfdisk partitions a file by a script.
func sfdisk(t testing.TB, path, script string) {
	t.Helper()
	c := exec.Command(tool(t, "sfdisk"), "--no-reread", "--no-tell-kernel", "-q", path)
	c.Stdin = strings.NewReader(script)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v\n%s", err, out)
	}
}

// listed is what sfdisk -J says of a disk.
type listed struct {
	Table struct {
		Label      string
		ID         string
		SectorSize int64
		Partitions []struct {
			Node             string
			Start, Size      int64
			Type, UUID, Name string
			Attrs            string
			Bootable         bool
		}
	} `json:"partitiontable"`
}

func sfdiskList(t testing.TB, path string) listed {
	t.Helper()
	out, err := exec.Command(tool(t, "sfdisk"), "-J", path).Output()
	if err != nil {
		t.Fatalf("sfdisk -J: %v", err)
	}
	var l listed
	if err := json.Unmarshal(out, &l); err != nil {
		t.Fatal(err)
	}
	return l
}

// scan scans one image and checks what holds for every disk.
func scan(t testing.TB, d formats.Disk, o Options) []Volume {
	t.Helper()
	vols, err := Scan([]*formats.Image{image("web1", d)}, o)
	if err != nil {
		t.Fatal(err)
	}
	checkVolumes(t, vols)
	return vols
}

// checkVolumes checks what callers of Scan rely on: containers come first, names differ, each container's partitions,
// gaps and tables are in order and cover it, and every volume can be read as long as it is.
func checkVolumes(t testing.TB, vols []Volume) {
	t.Helper()
	names := make(map[string]bool)
	at := make(map[int]int64)
	rel := func(v Volume) int64 {
		if v.Start < 0 {
			return v.Segments[0].Starts[0]
		}
		return v.Start - max(vols[v.In].Start, 0)
	}
	last := make(map[int]int64)
	for i, v := range vols {
		if v.In >= i || names[v.Name] || v.Name == "" || v.Size <= 0 && v.Kind != KindDisk || v.Disk == nil || v.Disk.Size() != v.Size {
			t.Errorf("volume %d %q: in %d, size %d, disk %v", i, v.Name, v.In, v.Size, v.Disk)
		}
		names[v.Name] = true
		switch v.Kind {
		case KindPartition, KindGap, KindTable:
			start := rel(v)
			if start < last[v.In] {
				t.Errorf("%s starts at %d, before one that precedes", v.Name, start)
			}
			if start > at[v.In] {
				t.Errorf("%s starts at %d, covered only to %d", v.Name, start, at[v.In])
			}
			last[v.In], at[v.In] = start, max(at[v.In], start+v.Size)
			if start+v.Size > vols[v.In].Size {
				t.Errorf("%s reaches past its container", v.Name)
			}
		}
	}
	for in, end := range at {
		if end != vols[in].Size {
			t.Errorf("%s is covered to %d of %d", vols[in].Name, end, vols[in].Size)
		}
	}
}

func find(t testing.TB, vols []Volume, name string) Volume {
	t.Helper()
	for _, v := range vols {
		if v.Name == name {
			return v
		}
	}
	t.Fatalf("no volume %q among %v", name, volumeNames(vols))
	return Volume{}
}

func volumeNames(vols []Volume) []string {
	var s []string
	for _, v := range vols {
		s = append(s, v.Name)
	}
	return s
}

// same compares the partitions with sfdisk's list.
func same(t *testing.T, vols []Volume, l listed) {
	t.Helper()
	ss := cmp.Or(l.Table.SectorSize, 512)
	n := 0
	for _, p := range l.Table.Partitions {
		if typ := strings.ToLower(p.Type); typ == "5" || typ == "f" || typ == "85" {
			continue
		}
		n++
		number := p.Node[strings.LastIndexAny(p.Node, "pg ")+1:]
		v := find(t, vols, "p"+number)
		if v.Start != p.Start*ss || v.Size != p.Size*ss {
			t.Errorf("%s is %d+%d, sfdisk says %d+%d", v.Name, v.Start, v.Size, p.Start*ss, p.Size*ss)
		}
		typ := strings.ToLower(p.Type)
		if l.Table.Label == "dos" {
			typ = fmt.Sprintf("0x%02s", typ)
		}
		if v.TypeID != typ || v.Label != p.Name || p.UUID != "" && v.UUID != strings.ToLower(p.UUID) {
			t.Errorf("%s is %q %q %q, sfdisk says %q %q %q", v.Name, v.TypeID, v.Label, v.UUID, p.Type, p.Name, p.UUID)
		}
		// sfdisk writes the numbered ones in one word.
		if got := strings.ReplaceAll(strings.Join(v.Attrs, " "), " GUID:63", ",63"); l.Table.Label == "gpt" && got != p.Attrs || p.Bootable != slices.Contains(v.Attrs, "active") {
			t.Errorf("%s has attributes %q, sfdisk says %q", v.Name, got, p.Attrs)
		}
	}
	for _, v := range vols {
		if v.Kind == KindPartition {
			n--
		}
	}
	if n != 0 {
		t.Errorf("%d partitions fewer than sfdisk lists", n)
	}
}

func TestAgainstSfdisk(t *testing.T) {
	for _, c := range []struct {
		name, script string
		sectors      int64
	}{
		{"primaries", "label: dos\nstart=2048,size=4096,type=83,bootable\nstart=8192,size=4096,type=7\nstart=6144,size=1024,type=82\n", 65536},
		{"logicals", "label: dos\nstart=2048,size=2048,type=c\nstart=4096,size=61000,type=5\nstart=6144,size=4096,type=83\nstart=12288,size=4096,type=8e\nstart=20480,size=100,type=b\n", 65536},
		{"logicals out of order", "label: dos\nstart=2048,size=2048,type=c\nstart=4096,size=61000,type=f\nstart=40960,size=4096,type=83\nstart=12288,size=4096,type=8e\nstart=30720,size=100,type=b\n", 65536},
		{"extended first", "label: dos\n1: start=4096,size=61000,type=85\n2: start=2048,size=2048,type=c\n5: start=40960,size=4096,type=83\n", 65536},
		{"to the last sector", "label: dos\nstart=1,size=65535,type=83\n", 65536},
		{"gpt", "label: gpt\nstart=2048,size=2048,type=U,name=\"EFI\"\nstart=8192,size=4096,type=L,name=\"r\u00f6\u00f6t \u65e5\u672c \U0001f600\",attrs=\"RequiredPartition GUID:60,63\"\nstart=4096,size=2048,type=S\n", 65536},
		{"gpt numbers", "label: gpt\n128: start=2048,size=2048,type=U\n7: start=8192,size=4096,type=L,attrs=LegacyBIOSBootable\n", 65536},
		{"gpt long table", "label: gpt\ntable-length: 1024\nstart=4096,size=2048,type=U\n", 65536},
		{"gpt short table", "label: gpt\ntable-length: 4\nstart=4096,size=2048,type=U\n", 65536},
		{"gpt empty", "label: gpt\n", 65536},
		{"mbr empty", "label: dos\n", 65536},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := emptyDisk(t, c.sectors)
			sfdisk(t, path, c.script)
			vols := scan(t, file(t, path), Options{})
			same(t, vols, sfdiskList(t, path))
			for _, v := range vols {
				if len(v.Problems) > 0 || len(v.Notes) > 0 {
					t.Errorf("%s: %v %v", v.Name, v.Notes, v.Problems)
				}
			}
		})
	}
}
