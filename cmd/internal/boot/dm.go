package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/live"
	"vmkit/formats"
	"vmkit/partition"
)

// maxStretches bounds the pieces of a volume that a device is made of.
const maxStretches = 10000

// stretch is a part of a volume that lies on a disk as it is.
type stretch struct {
	image      int
	at, off, n int64
}

// stretches tells where a volume lies on the disks.
func stretches(v *partition.Volume) ([]stretch, error) {
	var list []stretch
	for at := int64(0); at < v.Size; {
		e, err := v.Disk.ExtentAt(at, v.Size-at)
		switch {
		case err != nil:
			return nil, err
		case e.Kind != formats.Data || e.Disk == formats.NoPos:
			return nil, fmt.Errorf("the machine makes devices of volumes that lie on the disks as they are, and byte %d of %s is %s", at, v.Name, e.Kind)
		case at%512 != 0 || e.Disk%512 != 0:
			return nil, fmt.Errorf("byte %d of %s lies at byte %d of a disk, which is no sector's start", at, v.Name, e.Disk)
		}
		if k := len(list) - 1; k >= 0 && list[k].image == e.File.Image && list[k].off+list[k].n == e.Disk {
			list[k].n += e.Len
		} else {
			list = append(list, stretch{image: e.File.Image, at: at, off: e.Disk, n: e.Len})
		}
		if at += e.Len; len(list) > maxStretches {
			return nil, fmt.Errorf("%s lies in more than %d pieces", v.Name, maxStretches)
		}
	}
	return list, nil
}

// device gives the block device of a volume: the disk's or the partition's that the kernel has, or one that is made.
func (a *Appliance) device(v *partition.Volume) (string, error) {
	list, err := stretches(v)
	if err != nil {
		return "", err
	}
	if len(list) == 1 {
		s, disk := list[0], a.nodes[list[0].image]
		if s.off == 0 && v.Kind == partition.KindDisk {
			return "/dev/" + disk, nil
		}
		parts, _ := filepath.Glob(filepath.Join("/sys/block", disk, disk+"*"))
		for _, p := range parts {
			if sysNumber(p, "start")*512 == s.off && sysNumber(p, "size")*512 == s.n {
				return "/dev/" + filepath.Base(p), nil
			}
		}
	}
	return a.linear(v, list)
}

func sysNumber(dir, name string) int64 {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// The device mapper's calls and structures, from linux/dm-ioctl.h.
const (
	dmCreate = 0xc138fd03
	dmResume = 0xc138fd06
	dmLoad   = 0xc138fd09

	dmHead      = 312
	dmDataSize  = 12 // u32
	dmDataStart = 16 // u32
	dmTargets   = 20 // u32
	dmDev       = 40 // u64
	dmName      = 48 // 128 bytes

	dmSpec       = 40
	dmSpecStart  = 0  // u64, sectors
	dmSpecLength = 8  // u64, sectors
	dmSpecNext   = 20 // u32: where the next one begins
	dmSpecType   = 24 // 16 bytes
)

// linear makes a device of stretches of the disks.
func (a *Appliance) linear(v *partition.Volume, list []stretch) (string, error) {
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return "", fmt.Errorf("the kernel has no device mapper: %w", err)
	}
	defer control.Close()
	le := binary.NativeEndian
	var table []byte
	for i, s := range list {
		sectors := s.n / 512
		if s.n%512 != 0 && i < len(list)-1 || sectors == 0 {
			return "", errors.New("a piece of it is no whole number of sectors")
		}
		spec := make([]byte, dmSpec)
		le.PutUint64(spec[dmSpecStart:], uint64(s.at/512))
		le.PutUint64(spec[dmSpecLength:], uint64(sectors))
		copy(spec[dmSpecType:], "linear")
		spec = fmt.Appendf(spec, "/dev/%s %d\x00", a.nodes[s.image], s.off/512)
		spec = append(spec, make([]byte, -len(spec)&7)...)
		le.PutUint32(spec[dmSpecNext:], uint32(len(spec)))
		table = append(table, spec...)
	}
	call := func(request uint, targets int, data []byte) ([]byte, error) {
		b := append(make([]byte, dmHead), data...)
		le.PutUint32(b, 4) // version 4.0.0: any kernel's
		le.PutUint32(b[dmDataSize:], uint32(len(b)))
		le.PutUint32(b[dmDataStart:], dmHead)
		le.PutUint32(b[dmTargets:], uint32(targets))
		copy(b[dmName:dmName+127], fmt.Sprintf("vmkit-%d", a.made))
		return b, live.Ioctl(int(control.Fd()), request, b)
	}
	a.made++
	if _, err = call(dmCreate, 0, nil); err == nil {
		if _, err = call(dmLoad, len(list), table); err == nil {
			var b []byte
			if b, err = call(dmResume, 0, nil); err == nil {
				dev := le.Uint64(b[dmDev:])
				return fmt.Sprintf("/dev/dm-%d", unix.Minor(dev)), nil
			}
		}
	}
	return "", fmt.Errorf("making a device of %s: %w", v.Name, err)
}
