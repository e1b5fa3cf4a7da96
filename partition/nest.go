package partition

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"vmkit/formats"
	"vmkit/formats/luks"
	"vmkit/formats/ondisk"
)

// maxDepth bounds volumes in volumes: LUKS on LVM on RAID in a partition of a disk is 5.
const maxDepth = 12

// nest finds what is made of the volumes found so far, until nothing new comes up: tables and encrypted containers at
// once, arrays and volume groups when all their members are there, and in the end those that are not complete.
func (s *scanner) nest() {
	s.groupNames, s.groupsDone = make(map[string]bool), make(map[string]bool)
	for next := 0; ; {
		for ; next < len(s.vols); next++ {
			s.look(next)
		}
		if s.assembleMD(false) || s.assembleGroups(false) || s.assembleMD(true) || s.assembleGroups(true) {
			continue
		}
		if next == len(s.vols) {
			s.orphans()
			return
		}
	}
}

// orphans notes the physical volumes that no group names.
func (s *scanner) orphans() {
	for _, p := range s.pvs {
		if !slices.ContainsFunc(s.groups(), func(g *lvmGroup) bool { return g.pvs[p.uuid] == p }) {
			s.vols[p.vol].Notes = append(s.vols[p.vol].Notes, "no volume group names this physical volume")
		}
	}
}

// look recognises what volume i holds, and takes it apart or registers it as a member.
func (s *scanner) look(i int) {
	v := &s.vols[i]
	if v.Kind == KindGap || v.Kind == KindTable {
		return
	}
	if !s.leaf[i] {
		if v.Kind == KindDisk {
			s.firmware(v)
		}
		return
	}
	c, _ := recognise(v.Disk, v.Size, func(m *mark) bool { return v.Kind == KindDisk || !m.firmware() })
	if c.What != Filesystem || c.Name == "zfs_member" {
		v.Holds = c.Name
	}
	if v.Kind != KindDisk && v.Kind != KindPartition && v.Holds == "" {
		s.table(i, nil, v.Name+"/")
		return
	}
	fail := func(err error) { v.Problems = append(v.Problems, err) }
	switch v.Holds {
	case "", "swap", "swsuspend", "jbd", "xfs_external_log":
		return // there are no files in it
	case "linux_raid_member", "LVM2_member", "crypto_LUKS":
	case "BitLocker", "cs_fvault2":
		fail(fmt.Errorf("%s: %w: %w", v.Holds, ondisk.ErrUnsupported, formats.ErrEncrypted))
		return
	default:
		fail(ondisk.Unsupported(v.Holds, "", -1, nil))
		return
	}
	if s.depths[i] >= maxDepth {
		fail(ondisk.Unsupported(v.Holds, "volumes in volumes, depth", -1, s.depths[i]))
		return
	}
	switch v.Holds {
	case "linux_raid_member":
		if m := readMD(&view{r: v.Disk, size: v.Size}); m != nil {
			s.md = append(s.md, &mdMember{mdSuper: m, vol: i, disk: v.Disk})
		}
	case "LVM2_member":
		p, err := readPV(v.Disk)
		if err != nil {
			fail(err)
			return
		}
		p.vol = i
		v.Problems = append(v.Problems, p.problems...)
		s.addPV(p)
	case "crypto_LUKS":
		s.openLUKS(i)
	}
}

// firmware looks for the mark of a firmware's RAID on a disk with partitions.
func (s *scanner) firmware(v *Volume) {
	if c, ok := recognise(v.Disk, v.Size, (*mark).firmware); ok {
		v.Holds = c.Name
		v.Problems = append(v.Problems, ondisk.Unsupported(c.Name, "its partitions are read as if it were one of a mirror", -1, nil))
	}
}

// openLUKS appends the payload of container i: decrypted where a passphrase opens it, else encrypted.
func (s *scanner) openLUKS(i int) {
	v := s.vols[i]
	fail := func(err error) { s.vols[i].Problems = append(s.vols[i].Problems, err) }
	h, err := luks.Read(v.Disk, v.Size)
	if h == nil {
		fail(err)
		return
	}
	p := Volume{
		Kind: KindLUKS, Scheme: fmt.Sprintf("luks%d", h.Version), Image: -1, Start: -1, In: i, UUID: h.UUID, Label: h.Label,
		Type: h.Cipher, Notes: h.Notes,
	}
	if err != nil {
		p.Problems = append(p.Problems, err)
	}
	size := v.Size - h.PayloadOff
	if h.PayloadLen >= 0 && h.PayloadLen != size {
		if h.PayloadLen > size {
			p.Problems = append(p.Problems, ondisk.Truncated("luks", "payload of", h.PayloadOff, h.PayloadLen))
		}
		size = min(size, h.PayloadLen)
	}
	unit := int64(max(h.SectorSize, 512))
	if size = size / unit * unit; h.PayloadOff < 0 || size <= 0 {
		fail(ondisk.Truncated("luks", "the container ends before its payload at", -1, h.PayloadOff))
		return
	}
	p.Size = size
	p.Segments = []Segment{{Len: size, Kind: "crypt", Volumes: []int{i}, Starts: []int64{h.PayloadOff}}}
	var m formats.Mapper = nothing{formats.Encrypted, size}
	plain := &crypt{m: section(v.Disk, h.PayloadOff, size), sector: unit, iv: h.IVStart, key: h.KeyID()}
	if err == nil && s.o.Opened != nil {
		if r := s.o.Opened(h.UUID); r != nil {
			p.Disk = opened{r, plain}
			s.add(p, v.Name+"/luks")
			return
		}
	}
	if err == nil {
		opened, err := s.unlock(v, h)
		if err != nil {
			p.Problems = append(p.Problems, err)
		}
		if opened {
			m = plain
		}
	}
	p.Disk = formats.NewDisk(m, s.o.Env)
	s.add(p, v.Name+"/luks")
}

// opened is the payload of a container that a kernel has open: it is read there, without a key, and lies coded.
type opened struct {
	io.ReaderAt
	*crypt
}

// unlock asks for the passphrase of a container and stores its volume key. That there is none is no error.
func (s *scanner) unlock(v Volume, h *luks.Header) (bool, error) {
	if s.o.Passphrase == nil {
		return false, nil
	}
	secret, ok := s.o.Passphrase(v.Name)
	if !ok {
		return false, nil
	}
	key, err := h.Unlock(v.Disk, secret)
	if err != nil {
		if errors.Is(err, luks.ErrPassphrase) {
			err = fmt.Errorf("luks container %s: %w", h.UUID, err)
		}
		return false, err
	}
	s.o.Env.SetKey(h.KeyID(), key)
	return true, nil
}
