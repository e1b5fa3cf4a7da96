package live

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vmkit/formats"
	"vmkit/fsmap"
	"vmkit/partition"
)

// Plan is what Find found: file systems to walk, and the disks that they lie on.
type Plan struct {
	sys     *sys
	systems []*system
	devices [][]*device // by system
	disks   []string    // kernel names
	o       Options
	open    []*FS
	readers []*os.File
}

// Options says what the walk does besides.
type Options struct {
	// Hash takes the SHA-256 of every file, else of a sample.
	Hash bool
}

// Find finds the file systems on disks that paths lie on, and those that are mounted below them.
func Find(paths []string, o Options) (*Plan, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	var full []string
	for _, p := range paths {
		if p, err = filepath.Abs(p); err == nil {
			p, err = filepath.EvalSymlinks(p)
		}
		if err != nil {
			return nil, err
		}
		full = append(full, p)
	}
	p := &Plan{sys: &sys{"/sys"}, o: o}
	if p.systems, err = find(mounts, full, mountOf); err != nil {
		return nil, err
	}
	for _, s := range p.systems {
		devs, err := p.devicesOf(s)
		if err != nil {
			return nil, err
		}
		p.devices = append(p.devices, devs)
		for _, d := range devs {
			if p.disks, err = p.sys.disks(d, p.disks, 0); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(p.disks, func(a, b string) int { // vdb before vdaa
		if len(a) != len(b) {
			return len(a) - len(b)
		}
		return strings.Compare(a, b)
	})
	return p, nil
}

// devicesOf gives the devices of a file system; of a btrfs in the order of their ids.
func (p *Plan) devicesOf(s *system) ([]*device, error) {
	m := &s.mounts[0]
	if m.fs != "btrfs" {
		d, err := p.sys.byNumber(m.dev)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.point, err)
		}
		return []*device{d}, nil
	}
	fd, err := unix.Open(m.point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.point, err)
	}
	defer unix.Close(fd)
	members, err := btrfsMembers(fd)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.point, err)
	}
	var list []*device
	for _, x := range members {
		d, err := p.sys.byNumber(x.dev)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", x.path, err)
		}
		list = append(list, d)
	}
	return list, nil
}

// Disks gives the disks, to be opened as images in this order.
func (p *Plan) Disks() []string {
	var list []string
	for _, d := range p.disks {
		list = append(list, node(d))
	}
	return list
}

// Name tells the opened images which disks they are.
func (p *Plan) Name(images []*formats.Image) {
	for i, img := range images {
		img.Name, img.Serial = p.disks[i], p.sys.serial(p.disks[i])
	}
}

// Opened reads what is in the LUKS container of a UUID, where the kernel has it open. It is partition.Options.Opened.
func (p *Plan) Opened(uuid string) io.ReaderAt {
	ids, _ := filepath.Glob(filepath.Join(p.sys.root, "class/block/dm-*/dm/uuid"))
	for _, path := range ids {
		// "CRYPT-LUKS2-", the UUID without its hyphens, "-", the device's name
		if f := strings.SplitN(text(path), "-", 4); len(f) == 4 && f[0] == "CRYPT" && f[2] == strings.ReplaceAll(uuid, "-", "") {
			dev, err := os.Open(node(filepath.Base(filepath.Dir(filepath.Dir(path)))))
			if err != nil {
				return nil
			}
			p.readers = append(p.readers, dev)
			return dev
		}
	}
	return nil
}

// Mounts opens the file systems. It is fsmap.Config.Mounts for the images that Disks names.
func (p *Plan) Mounts(vols []partition.Volume) []fsmap.Mount {
	find := &volumes{sys: p.sys, list: vols, disks: map[string]int{}}
	for i := range vols {
		if vols[i].Kind == partition.KindDisk {
			find.disks[p.disks[vols[i].Image]] = i
		}
	}
	var list []fsmap.Mount
	for i, s := range p.systems {
		m := fsmap.Mount{}
		for _, d := range p.devices[i] {
			at, err := find.of(d, 0)
			if err == nil && vols[at].Kind != partition.KindDisk {
				err = agree(node(d.name), &vols[at])
			}
			if err != nil {
				m.Err = fmt.Errorf("mounted at %s: %w", s.mounts[0].point, err)
				at = slices.IndexFunc(vols, func(v partition.Volume) bool { return v.Kind == partition.KindDisk })
				m.Volumes = []int{at}
				break
			}
			m.Volumes = append(m.Volumes, at)
		}
		if m.Err == nil {
			m.On, m.Err = s.patterns()
		}
		if m.Err == nil {
			m.FS, m.Err = p.mounted(s, vols, m.Volumes)
		}
		list = append(list, m)
	}
	return list
}

func (p *Plan) mounted(s *system, vols []partition.Volume, on []int) (fsmap.FS, error) {
	fd, err := s.open()
	if err != nil {
		return nil, err
	}
	var sizes []int64
	for _, i := range on {
		sizes = append(sizes, vols[i].Size)
	}
	fs, err := Open(fd, s.mounts[0].fs, sizes, p.o)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	p.open = append(p.open, fs)
	return fs, nil
}

// Close lets go of the file systems.
func (p *Plan) Close() error {
	var errs []error
	for _, fs := range p.open {
		errs = append(errs, fs.Close())
	}
	for _, f := range p.readers {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
