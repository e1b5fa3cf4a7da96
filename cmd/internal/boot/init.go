package boot

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/live"
	"vmkit/formats"
	"vmkit/fsmap"
	"vmkit/partition"
)

// order is what the machine is told, as /vmkit.json in its initramfs.
type order struct {
	Disks   []disk   `json:"disks"`
	Modules []string `json:"modules"`
	Only    []string `json:"only,omitempty"`
	Hash    bool     `json:"hash,omitempty"`
	Created string   `json:"created,omitempty"`
	// SectorSize is that of partition.Options.
	SectorSize int64 `json:"sector_size,omitempty"`
}

// disk is an image as the machine sees it.
type disk struct {
	Name   string `json:"name"`
	Serial string `json:"serial"`
	Size   int64  `json:"size"`
}

const (
	orderPath = "/vmkit.json"
	portName  = "vmkit.map"
	// portPatience is how long the port may take to come up.
	portPatience = 30 * time.Second
)

// word is a line that the machine writes beside the map: the first, and where it failed the last.
type word struct {
	Type  string `json:"type"` // "appliance"
	Error string `json:"error,omitempty"`
}

func (w word) line() []byte {
	w.Type = "appliance"
	b, _ := json.Marshal(w) // strings only: it can't fail
	return append(b, '\n')
}

// Appliance is the machine as its only program sees it.
type Appliance struct {
	order
	port  *os.File
	nodes []string // of the disks
	made  int      // devices
	open  []*live.FS
}

// Begin makes the first process of a machine ready: kernel file systems, modules, the port to the host. It is for Halt
// to end.
func Begin() (*Appliance, error) {
	a := &Appliance{}
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		os.MkdirAll(m[1], 0o755)
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return a, fmt.Errorf("mounting %s: %w", m[1], err)
		}
	}
	b, err := os.ReadFile(orderPath)
	if err == nil {
		err = json.Unmarshal(b, &a.order)
	}
	if err != nil {
		return a, err
	}
	for _, name := range a.Modules {
		if err := insert(name); err != nil {
			fmt.Fprintf(os.Stderr, "module %s: %v\n", name, err) // whoever needs it will miss it
		}
	}
	if a.port, err = openPort(); err != nil {
		return a, err
	}
	if _, err = a.port.Write(word{}.line()); err != nil {
		return a, err
	}
	return a, a.findDisks()
}

func insert(name string) error {
	f, err := os.Open(modulePath(name))
	if err != nil {
		return err
	}
	defer f.Close()
	if err = unix.FinitModule(int(f.Fd()), "", 0); errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func modulePath(name string) string { return "/modules/" + name + ".ko" }

// openPort opens the virtio port, once it is there.
func openPort() (*os.File, error) {
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, path := range names {
			if b, _ := os.ReadFile(path); strings.TrimSpace(string(b)) == portName {
				return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(path))), os.O_WRONLY, 0)
			}
		}
		if time.Since(begin) > portPatience {
			return nil, errors.New("the port to the host doesn't come up")
		}
	}
}

// findDisks finds each disk by its serial number.
func (a *Appliance) findDisks() error {
	a.nodes = make([]string, len(a.Disks))
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		paths, _ := filepath.Glob("/sys/block/*/serial")
		for _, path := range paths {
			b, _ := os.ReadFile(path)
			if i := slices.IndexFunc(a.Disks, func(d disk) bool { return d.Serial == strings.TrimSpace(string(b)) }); i >= 0 {
				a.nodes[i] = filepath.Base(filepath.Dir(path))
			}
		}
		if !slices.Contains(a.nodes, "") {
			return nil
		}
		if time.Since(begin) > portPatience {
			return errors.New("the disks don't come up")
		}
	}
}

// Devices gives the disks, to be opened as raw images in this order.
func (a *Appliance) Devices() []string {
	var list []string
	for _, n := range a.nodes {
		list = append(list, "/dev/"+n)
	}
	return list
}

// Name gives the opened images the names and sizes that they have on the host.
func (a *Appliance) Name(images []*formats.Image) {
	for i, img := range images {
		img.Name = a.Disks[i].Name
		img.Disk = formats.Section(img.Disk, 0, min(img.Size(), a.Disks[i].Size))
	}
}

// Port is where the map goes.
func (a *Appliance) Port() io.Writer { return a.port }

// Halt tells the host what went wrong, if anything, and ends the machine.
func (a *Appliance) Halt(err error) {
	for _, fs := range a.open {
		fs.Close()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "vmkit: %v\n", err)
	}
	if a.port != nil {
		if err != nil {
			a.port.Write(word{Error: err.Error()}.line())
		}
		a.port.Close()
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

// Mounts mounts every file system on the disks. It is fsmap.Config.Mounts.
func (a *Appliance) Mounts(vols []partition.Volume) []fsmap.Mount {
	inside := make([]bool, len(vols))
	for i := range vols {
		if in := vols[i].In; in >= 0 {
			inside[in] = true
		}
		for _, s := range vols[i].Segments {
			for _, in := range s.Volumes {
				inside[in] = true
			}
		}
	}
	var list []fsmap.Mount
	sets := map[string]int{} // index in list of the btrfs of a UUID
	for i := range vols {
		v := &vols[i]
		if inside[i] || v.Kind == partition.KindGap || v.Kind == partition.KindTable {
			continue
		}
		c, _ := partition.Recognise(v.Disk, v.Size)
		if at, seen := sets[c.UUID]; c.Name == "btrfs" && seen {
			list[at].Volumes = append(list[at].Volumes, i)
			continue
		}
		if c.Name == "btrfs" {
			sets[c.UUID] = len(list)
		}
		list = append(list, fsmap.Mount{Volumes: []int{i}})
	}
	for i := range list {
		m := &list[i]
		c, _ := partition.Recognise(vols[m.Volumes[0]].Disk, vols[m.Volumes[0]].Size)
		if c.What != partition.Filesystem {
			continue
		}
		fs, err := a.mount(vols, m, c.Name)
		if m.Err = err; err == nil {
			m.FS = fs
			a.open = append(a.open, fs)
		}
	}
	return list
}

// mount mounts a file system of one volume or several, read-only. The kernel replays its log all the same.
func (a *Appliance) mount(vols []partition.Volume, m *fsmap.Mount, name string) (*live.FS, error) {
	var nodes []string
	var sizes []int64
	for _, i := range m.Volumes {
		node, err := a.device(&vols[i])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		nodes, sizes = append(nodes, node), append(sizes, vols[i].Size)
	}
	typ, data := mountAs(name)
	if len(nodes) > 1 {
		data = "device=" + strings.Join(nodes, ",device=")
	}
	at := fmt.Sprintf("/mnt/%d", m.Volumes[0])
	if err := os.MkdirAll(at, 0o700); err != nil {
		return nil, err
	}
	log := openLog()
	defer log.Close()
	err := unix.Mount(nodes[0], at, typ, unix.MS_RDONLY|unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, data)
	if errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("%s: the kernel has no driver for it", name)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: the kernel doesn't mount it: %w%s", name, err, lastWord(log))
	}
	root, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	fs, err := live.Open(root, typ, sizes, live.Options{Hash: a.Hash})
	if err != nil {
		unix.Close(root)
		return nil, err
	}
	fs.Info().Type = name
	if doubt := unreplayed(vols[m.Volumes[0]].Disk, name); doubt != nil {
		fs.Info().Problems = append(fs.Info().Problems, doubt)
		fs.Info().Journal = "unreplayed"
	}
	return fs, nil
}

// openLog opens the kernel's log behind what it has said so far.
func openLog() *os.File {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	unix.Seek(fd, 0, io.SeekEnd)
	return os.NewFile(uintptr(fd), "kmsg")
}

// lastWord gives the first thing that the kernel has said since, ready to be appended to an error.
func lastWord(log *os.File) string {
	b := make([]byte, 8<<10)
	n, err := unix.Read(int(log.Fd()), b)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(b[:n]), "\n")
	_, said, _ := strings.Cut(line, ";") // behind priority, number and time
	return " (" + said + ")"
}

// mountAs gives the kernel's name of a file system, and the options that it is mounted with, so that names come as
// UTF-8.
func mountAs(name string) (typ, data string) {
	switch name {
	case "ext2", "ext3", "ext4":
		return "ext4", ""
	case "xfs":
		return name, "nouuid"
	case "ntfs":
		return "ntfs3", "iocharset=utf8"
	case "vfat":
		return name, "utf8=1,iocharset=ascii,codepage=437"
	case "exfat", "jfs":
		return name, "iocharset=utf8"
	case "hfsplus":
		return name, "nls=utf8"
	case "ufs":
		return name, "ufstype=ufs2"
	}
	return name, ""
}

// moduleOf gives the module that has a file system.
func moduleOf(name string) string {
	if name == "iso9660" {
		return "isofs"
	}
	typ, _ := mountAs(name)
	return typ
}

// unreplayed tells of a log with work in it that a kernel passes over when it mounts read-only. Linux replays none of
// JFS (fsck.jfs does) and of HFS+ (macOS does).
func unreplayed(r io.ReaderAt, name string) error {
	b := make([]byte, 44)
	switch name {
	case "jfs": // superblock: s_state
		if _, err := r.ReadAt(b, 32<<10); err != nil || le32(b[40:]) != 0 {
			return errors.New("jfs: it was not unmounted, and the kernel doesn't replay its log: run fsck.jfs on a copy, or take what it shows as it is")
		}
	case "hfsplus": // volume header: attributes, with those of unmounted and journaled
		if _, err := r.ReadAt(b, 1024); err != nil || b[6]&0x01 == 0 && b[6]&0x20 != 0 {
			return errors.New("hfsplus: it was not unmounted, and the kernel doesn't replay its journal")
		}
	}
	return nil
}

func le32(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}
