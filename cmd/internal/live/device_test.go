package live

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/partition"
)

// fakeSys makes a /sys of block devices: "sda", a disk; "sda/sda1 2048", a partition that starts there; "md0: sda1 sdb",
// a device made of others; a "key=value" is an attribute.
func fakeSys(t *testing.T, lines ...string) *sys {
	t.Helper()
	s := &sys{t.TempDir()}
	write := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, line := range lines {
		f := strings.Fields(line)
		name, isMade := strings.CutSuffix(f[0], ":")
		dir := filepath.Join(s.root, "devices", name)
		write(filepath.Join(dir, "size"), "20480")
		for _, w := range f[1:] {
			switch key, value, ok := strings.Cut(w, "="); {
			case ok:
				write(filepath.Join(dir, key), value)
			case isMade:
				write(filepath.Join(dir, "slaves", w), "")
			default:
				write(filepath.Join(dir, "start"), w)
				write(filepath.Join(dir, "partition"), strings.TrimLeft(filepath.Base(name), "abdmps"))
			}
		}
		link := filepath.Join(s.root, "class/block", filepath.Base(name))
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(dir, link); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func TestVolumes(t *testing.T) {
	s := fakeSys(t,
		"sda serial=S1", "sda/sda1 2048", "sda/sda2 4096", "sda/sda5 8192 size=2048", "sdb", "sdb/sdb1 2048",
		"md0: sda1 sdb1 md/level=raid1", "md0/md0p1 64 partition=1",
		"dm-0: sda2 dm/uuid=CRYPT-LUKS2-0123-root dm/name=root", "dm-1: dm-0 dm/uuid=LVM-abc dm/name=my--vg-web--root",
		"dm-2: sda2 dm/uuid=other dm/name=odd", "dm-3: dm-3")
	const size = 20480 << 9
	vols := []partition.Volume{
		{Name: "sda/disk", Kind: partition.KindDisk, Image: 0, In: -1, Size: size},
		{Name: "sda/p1", Kind: partition.KindPartition, Image: 0, Start: 2048 << 9, In: 0, Size: size},
		{Name: "sda/p2", Kind: partition.KindPartition, Image: 0, Start: 4096 << 9, In: 0, Size: size},
		{Name: "sda/p4", Kind: partition.KindPartition, Image: 0, Start: 6144 << 9, In: 0, Size: size},
		{Name: "sda/p5", Kind: partition.KindPartition, Image: 0, Start: 8192 << 9, In: 3, Size: 4096 << 9},
		{Name: "sdb/disk", Kind: partition.KindDisk, Image: 1, In: -1, Size: size},
		{Name: "sdb/p1", Kind: partition.KindPartition, Image: 1, Start: 2048 << 9, In: 5, Size: size},
		{Name: "md127", Kind: partition.KindMD, Image: -1, In: -1, Size: size, Segments: []partition.Segment{{Volumes: []int{1, 6}, Starts: []int64{0, 0}}}},
		{Name: "md127/p1", Kind: partition.KindPartition, Image: -1, In: 7, Size: size, Segments: []partition.Segment{{Volumes: []int{7}, Starts: []int64{64 << 9}}}},
		{Name: "sda/p2/luks", Kind: partition.KindLUKS, Image: -1, In: 2, Size: size},
		{Name: "my-vg/web-root", Kind: partition.KindLV, Image: -1, In: -1, Size: size},
	}
	v := &volumes{sys: s, list: vols, disks: map[string]int{"sda": 0, "sdb": 5}}
	for name, want := range map[string]string{
		"sda": "sda/disk", "sda1": "sda/p1", "sda2": "sda/p2", "sdb1": "sdb/p1", "md0": "md127", "md0p1": "md127/p1",
		"dm-0": "sda/p2/luks", "dm-1": "my-vg/web-root",
		"sda5": "error: sda5 has 1048576 bytes in the kernel, and 2097152 in the tables on the disk (sda/p5)",
		"dm-2": "error: dm-2 (odd): none of the volumes on the disks is this device",
		"dm-3": "error: dm-3: devices on devices, more than 16 deep",
	} {
		d, err := s.byName(name)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if i, err := v.of(d, 0); err != nil {
			got = "error: " + err.Error()
		} else {
			got = vols[i].Name
		}
		if got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	d, err := s.byName("dm-1")
	if err != nil {
		t.Fatal(err)
	}
	if disks, err := s.disks(d, nil, 0); err != nil || strings.Join(disks, " ") != "sda" {
		t.Errorf("dm-1 lies on %v, %v", disks, err)
	}
	d, _ = s.byName("md0p1")
	if disks, err := s.disks(d, nil, 0); err != nil || strings.Join(disks, " ") != "sda sdb" {
		t.Errorf("md0p1 lies on %v, %v", disks, err)
	}
	if d, _ = s.byName("dm-3"); d != nil {
		if _, err := s.disks(d, nil, 0); err == nil {
			t.Error("a device that lies on itself has disks")
		}
	}
	if got := s.serial("sda"); got != "S1" {
		t.Errorf("serial %q", got)
	}
}

func TestLVName(t *testing.T) {
	for dm, want := range map[string]string{"vg0-root": "vg0/root", "my--vg-a--b": "my-vg/a-b", "a----b-c": "a--b/c"} {
		if got := lvName(dm); got != want {
			t.Errorf("%s is %s, want %s", dm, got, want)
		}
	}
}

// TestAgree reads a volume's blocks past the cache and where they were said to lie.
func TestAgree(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	b := make([]byte, 64*sampleSize)
	for i := range b {
		b[i] = byte(i / sampleSize)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	f := &formats.File{ReaderAt: bytes.NewReader(b), Path: path, Size: int64(len(b))}
	disk := formats.NewDisk(formats.Plain(f), formats.NewEnv(0))
	err := agree(path, &partition.Volume{Name: "x", Size: disk.Size(), Disk: disk})
	if err != nil {
		t.Skip("the file system of " + strconv.Quote(path) + " takes no O_DIRECT: " + err.Error())
	}
	moved := formats.Section(disk, sampleSize, disk.Size()-sampleSize)
	if err := agree(path, &partition.Volume{Name: "x", Size: moved.Size(), Disk: moved}); err == nil || !strings.Contains(err.Error(), "isn't what lies at byte 4096") {
		t.Errorf("blocks that lie elsewhere agree: %v", err)
	}
}
