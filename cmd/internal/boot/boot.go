package boot

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"vmkit/formats"
	"vmkit/partition"
)

// Config says what is booted, and how.
type Config struct {
	Images []*formats.Image
	// Kernel and Modules name the kernel and the folder of its modules; empty: the host's newest.
	Kernel, Modules string
	// Program is QEMU's, Accel "kvm", "tcg", or "auto": KVM where it works.
	Program, Accel string
	Memory         int   // MiB
	Output         int64 // bytes that the machine may send
	Timeout        time.Duration
	// Only, Hash and Created are what the map is to have: see fsmap.Config.
	Only    []string
	Hash    bool
	Created string
	// SectorSize is that of partition.Options.
	SectorSize int64

	console string // the last line that the machine printed
	init    []byte // the machine's program, in tests; else this one
}

// maxDisks bounds the disks of a machine: it has 32 slots.
const maxDisks = 24

// Machine is what a machine left: its map, and what it wrote.
type Machine struct {
	spool  *os.File
	layers []*overlay
	images []*formats.Image
}

// Run starts the machine, and returns once it is gone.
func (c *Config) Run(ctx context.Context) (*Machine, error) {
	if len(c.Images) > maxDisks {
		return nil, fmt.Errorf("%d images: the machine has room for %d", len(c.Images), maxDisks)
	}
	k, err := chooseKernel(c.Kernel, c.Modules)
	if err != nil {
		return nil, err
	}
	initrd, disks, err := c.initrd(k)
	if err != nil {
		return nil, err
	}
	defer initrd.Close()
	memories := []*os.File{initrd}
	if f := unpack(k.image); f != nil {
		defer f.Close()
		memories = append(memories, f)
	}
	var tries []string
	switch c.Accel {
	case "auto":
		if f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err == nil {
			f.Close()
			tries = append(tries, "kvm")
		}
		tries = append(tries, "tcg")
	default:
		tries = []string{c.Accel}
	}
	for i, accel := range tries {
		m := &Machine{images: c.Images}
		err := m.prepare(c.SectorSize)
		if err == nil {
			if err = c.run(ctx, accel, k, memories, disks, m.layers, m.spool); err == nil {
				err = m.check(c.console)
			}
		}
		if err == nil {
			return m, nil
		}
		empty := m.spool != nil && size(m.spool) == 0
		m.Close()
		// KVM that fails before the machine's first word says nothing of the images.
		if i == len(tries)-1 || ctx.Err() != nil || !empty {
			return nil, err
		}
	}
	return nil, errSilent
}

func size(f *os.File) int64 {
	n, _ := f.Seek(0, io.SeekEnd)
	return n
}

// prepare makes the files that a machine writes to, for disks of sectors of sector bytes (0: the image's own).
func (m *Machine) prepare(sector int64) error {
	f, err := os.CreateTemp("", "vmkit-boot-")
	if err != nil {
		return err
	}
	os.Remove(f.Name())
	m.spool = f
	for _, img := range m.images {
		o, err := newOverlay(img.Disk, img.Size(), max(img.SectorSize, sector, 512))
		if err != nil {
			return err
		}
		m.layers = append(m.layers, o)
	}
	return nil
}

// Close frees what the machine left.
func (m *Machine) Close() error {
	var errs []error
	if m.spool != nil {
		errs = append(errs, m.spool.Close())
	}
	for _, o := range m.layers {
		errs = append(errs, o.Close())
	}
	return errors.Join(errs...)
}

// maxWord bounds the lines that the machine writes beside the map.
const maxWord = 64 << 10

// check sees that the machine said its first word and no last one.
func (m *Machine) check(console string) error {
	total := size(m.spool)
	if total == 0 {
		return fmt.Errorf("the machine ended without a word; the last on its console: %s", console)
	}
	first, hello := make([]byte, min(total, 256)), word{}.line()
	if _, err := m.spool.ReadAt(first, 0); err != nil {
		return err
	}
	if !bytes.HasPrefix(first, hello) {
		return errors.New("what the machine sent is no map")
	}
	end := make([]byte, min(total-int64(len(hello)), maxWord))
	if _, err := m.spool.ReadAt(end, total-int64(len(end))); err != nil {
		return err
	}
	end = bytes.TrimSuffix(end, []byte("\n"))
	end = end[bytes.LastIndexByte(end, '\n')+1:]
	var w word
	if json.Unmarshal(end, &w) == nil && w.Type == "appliance" && w.Error != "" {
		return fmt.Errorf("in the machine: %s", w.Error)
	}
	if !bytes.HasPrefix(end, []byte(`{"type":"end"`)) {
		return fmt.Errorf("the machine ended before its map did; the last on its console: %s", console)
	}
	_, err := m.spool.Seek(int64(len(hello)), io.SeekStart)
	return err
}

// Map is what the machine sent: a stream that claims to be a map.
func (m *Machine) Map() io.Reader { return m.spool }

// Changes is fsmap.Config.Changes.
func (m *Machine) Changes(img *formats.Image, off, n int64) (int64, []byte) {
	i := slices.Index(m.images, img)
	if i < 0 {
		return 0, nil
	}
	return m.layers[i].changes(off, n)
}

// initrd builds the machine's first file system, in memory: this program, the modules and what it is told.
func (c *Config) initrd(k *kernel) (*os.File, []disk, error) {
	vols, err := partition.Scan(c.Images, partition.Options{SectorSize: c.SectorSize})
	if err != nil {
		return nil, nil, err
	}
	names := slices.Clone(basic)
	for i := range vols {
		v := &vols[i]
		content, ok := partition.Recognise(v.Disk, v.Size)
		if ok && content.What == partition.Filesystem {
			driver := moduleOf(content.Name)
			names = append(append(names, asked[driver]...), driver)
		}
	}
	modules, err := k.load(names)
	if err != nil {
		return nil, nil, err
	}
	self := c.init
	if self == nil {
		if self, err = program(); err != nil {
			return nil, nil, err
		}
	}
	o := order{Only: c.Only, Hash: c.Hash, Created: c.Created, SectorSize: c.SectorSize}
	for i, img := range c.Images {
		o.Disks = append(o.Disks, disk{Name: img.Name, Serial: fmt.Sprintf("vmkit%d", i), Size: img.Size()})
	}
	for _, m := range modules {
		o.Modules = append(o.Modules, m.name)
	}
	told, err := json.Marshal(o)
	if err != nil {
		return nil, nil, err
	}
	f, err := memory("initrd")
	if err != nil {
		return nil, nil, err
	}
	a := &archive{w: f}
	for _, dir := range []string{"dev", "proc", "sys", "mnt", "modules"} {
		a.add(dir, modeDir, nil)
	}
	a.add("init", modeProg, self)
	a.add(orderPath[1:], modeFile, told)
	for _, m := range modules {
		a.add(modulePath(m.name)[1:], modeFile, m.data)
	}
	if err := a.close(); err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("initramfs: %w", err)
	}
	return f, o.Disks, nil
}

// program reads this program, which has to run by itself in the machine.
func program() ([]byte, error) {
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil, errors.New("this program is not linked statically, so that it can't run in the machine: build it with CGO_ENABLED=0")
		}
	}
	return b, nil
}
