package live

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmkit/formats"
	"vmkit/partition"
)

// sys is what the kernel tells of block devices; a variable so that it can be tested on a folder.
type sys struct{ root string }

// maxStack bounds devices on devices.
const maxStack = 16

// device is a block device as /sys has it.
type device struct {
	name   string // "vda1", "dm-0"
	dir    string
	part   int   // number of the partition, or 0
	start  int64 // of a partition on its disk, bytes
	size   int64
	parent string // disk of a partition
	slaves []string
}

// text reads an attribute; "" where it isn't there.
func text(path ...string) string {
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// sectors reads an attribute that counts sectors of 512 bytes.
func sectors(path ...string) (int64, error) {
	n, err := strconv.ParseInt(text(path...), 10, 64)
	if err != nil || n < 0 || n > 1<<53 {
		return 0, fmt.Errorf("%s: %q is no number of sectors", filepath.Join(path...), text(path...))
	}
	return n << 9, nil
}

// byNumber gives the device of a number such as "8:1".
func (s *sys) byNumber(dev string) (*device, error) {
	return s.at(filepath.Join(s.root, "dev/block", dev))
}

func (s *sys) byName(name string) (*device, error) {
	return s.at(filepath.Join(s.root, "class/block", name))
}

func (s *sys) at(link string) (*device, error) {
	dir, err := filepath.EvalSymlinks(link)
	if err != nil {
		return nil, fmt.Errorf("block device: %w", err)
	}
	d := &device{name: filepath.Base(dir), dir: dir}
	if d.size, err = sectors(dir, "size"); err != nil {
		return nil, err
	}
	if n := text(dir, "partition"); n != "" {
		if d.part, err = strconv.Atoi(n); err != nil || d.part <= 0 {
			return nil, fmt.Errorf("%s: partition number %q", d.name, n)
		}
		d.parent = filepath.Base(filepath.Dir(dir))
		d.start, err = sectors(dir, "start")
		return d, err
	}
	slaves, err := os.ReadDir(filepath.Join(dir, "slaves"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, e := range slaves {
		d.slaves = append(d.slaves, e.Name())
	}
	return d, nil
}

// disks adds to list the names of the whole disks that d lies on. A loop device is one: what is below its file is
// another story.
func (s *sys) disks(d *device, list []string, depth int) ([]string, error) {
	below := d.slaves
	if d.part > 0 {
		below = []string{d.parent}
	}
	if len(below) == 0 {
		if !slices.Contains(list, d.name) {
			list = append(list, d.name)
		}
		return list, nil
	}
	if depth >= maxStack {
		return nil, fmt.Errorf("%s: devices on devices, more than %d deep", d.name, maxStack)
	}
	for _, name := range below {
		x, err := s.byName(name)
		if err == nil {
			list, err = s.disks(x, list, depth+1)
		}
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// serial gives the number that a disk tells of itself, or "".
func (s *sys) serial(disk string) string {
	for _, at := range []string{"serial", "device/serial", "device/wwid", "wwid"} {
		if t := text(s.root, "class/block", disk, at); t != "" {
			return t
		}
	}
	return ""
}

// volumes finds which volumes block devices are.
type volumes struct {
	sys   *sys
	list  []partition.Volume
	disks map[string]int // index of the volume "disk" by the disk's kernel name
}

// of gives the index of the volume that device d is.
func (v *volumes) of(d *device, depth int) (int, error) {
	if depth >= maxStack {
		return 0, fmt.Errorf("%s: devices on devices, more than %d deep", d.name, maxStack)
	}
	i, err := v.pick(d, depth)
	if err != nil {
		return 0, err
	}
	if size := v.list[i].Size; size > d.size || d.size-size >= 1<<20 && v.list[i].Kind != partition.KindMD {
		return 0, fmt.Errorf("%s has %d bytes in the kernel, and %d in the tables on the disk (%s)", d.name, d.size, size, v.list[i].Name)
	}
	return i, nil
}

func (v *volumes) pick(d *device, depth int) (int, error) {
	if i, ok := v.disks[d.name]; ok {
		return i, nil
	}
	if d.part > 0 {
		disk, err := v.sys.byName(d.parent)
		if err != nil {
			return 0, err
		}
		in, err := v.of(disk, depth+1)
		if err != nil {
			return 0, err
		}
		return v.partition(d, in)
	}
	var below []int
	for _, name := range d.slaves {
		x, err := v.sys.byName(name)
		if err != nil {
			return 0, err
		}
		i, err := v.of(x, depth+1)
		if err != nil {
			return 0, err
		}
		below = append(below, i)
	}
	id, name := text(d.dir, "dm/uuid"), text(d.dir, "dm/name")
	for i := range v.list {
		c := &v.list[i]
		switch c.Kind {
		case partition.KindLV:
			if strings.HasPrefix(id, "LVM-") && c.Name == lvName(name) {
				return i, nil
			}
		case partition.KindLUKS:
			if strings.HasPrefix(id, "CRYPT-LUKS") && len(below) == 1 && c.In == below[0] {
				return i, nil
			}
		case partition.KindMD:
			if text(d.dir, "md/level") != "" && len(below) > 0 && madeOf(c, below) {
				return i, nil
			}
		}
	}
	if name != "" {
		return 0, fmt.Errorf("%s (%s): none of the volumes on the disks is this device", d.name, name)
	}
	return 0, fmt.Errorf("%s: none of the volumes on the disks is this device", d.name)
}

// partition finds partition d of the volume in by where it starts.
func (v *volumes) partition(d *device, in int) (int, error) {
	at := v.list[in].Start + d.start
	for i := range v.list {
		c := &v.list[i]
		if c.Kind != partition.KindPartition {
			continue
		}
		if c.Image >= 0 && c.Image == v.list[in].Image && c.Start == at && (c.In == in || v.list[c.In].In == in) ||
			c.Image < 0 && c.In == in && len(c.Segments) == 1 && c.Segments[0].Starts[0] == d.start {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%s: no partition on the disk starts at byte %d, where the kernel has it", d.name, d.start)
}

// madeOf tells whether all of the volumes below are parts of c.
func madeOf(c *partition.Volume, below []int) bool {
	var parts []int
	for _, s := range c.Segments {
		parts = append(parts, s.Volumes...)
	}
	for _, i := range below {
		if !slices.Contains(parts, i) {
			return false
		}
	}
	return true
}

// lvName turns a device-mapper name into the volume's: "vg0-web--root" is vg0/web-root.
func lvName(dm string) string {
	const hyphen = "\x00"
	vg, lv, _ := strings.Cut(strings.ReplaceAll(dm, "--", hyphen), "-")
	return strings.ReplaceAll(vg+"/"+lv, hyphen, "-")
}

// samples is how many blocks are read through the kernel's device and through the volume as it was found on the disks.
const (
	samples    = 32
	sampleSize = 4096
)

// agree reads blocks of a volume as the kernel has it, and where package partition says that they lie. Both are read
// past every cache. A block that is being written is read again.
func agree(node string, v *partition.Volume) error {
	dev, err := openDirect(node)
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	disks := map[string]int{}
	defer func() {
		for _, fd := range disks {
			unix.Close(fd)
		}
	}()
	a, b := aligned(), aligned()
	for i := range int64(samples) {
		at := v.Size / samples * i &^ (sampleSize - 1)
		if at > v.Size-sampleSize {
			break
		}
		e, err := v.Disk.ExtentAt(at, sampleSize)
		if err != nil {
			return err
		}
		if e.Kind != formats.Data || e.Len < sampleSize || e.Off%512 != 0 {
			continue // coded, or cut: there is no one place to read
		}
		fd, ok := disks[e.File.Path]
		if !ok {
			if fd, err = openDirect(e.File.Path); err != nil {
				return err
			}
			disks[e.File.Path] = fd
		}
		same := false
		for try := 0; try < 5 && !same; try++ {
			if _, err := unix.Pread(dev, a, at); err != nil {
				return fmt.Errorf("%s at %d: %w", node, at, err)
			}
			if _, err := unix.Pread(fd, b, e.Off); err != nil {
				return fmt.Errorf("%s at %d: %w", e.File.Path, e.Off, err)
			}
			same = bytes.Equal(a, b)
		}
		if !same {
			return fmt.Errorf("byte %d of %s isn't what lies at byte %d of %s, as the tables on the disk have it", at, node, e.Off, e.File.Path)
		}
	}
	return nil
}

func openDirect(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", path, err)
	}
	return fd, nil
}

// aligned gives a block at an address that O_DIRECT takes.
func aligned() []byte {
	b, err := unix.Mmap(-1, 0, sampleSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]byte, sampleSize)
	}
	return b
}

// node gives the path of a block device.
func node(name string) string { return "/dev/" + strings.ReplaceAll(name, "!", "/") }
