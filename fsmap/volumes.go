package fsmap

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"vmkit/formats"
	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
	"vmkit/partition"
)

// volume is a volume of the map, with its file system where it has one that can be read.
type volume struct {
	partition.Volume
	rec      mapfile.Volume
	env      *formats.Env
	on       mapfile.Patterns
	selected bool
	driver   *Driver
	fs       FS
	disks    []formats.Disk // that Run.Dev counts in
	trouble  []error        // what stands in the way of reading its file system
}

// dividedOf tells of each volume whether others lie in it.
func dividedOf(list []partition.Volume) []bool {
	divided := make([]bool, len(list))
	for i := range list {
		if in := list[i].In; in >= 0 {
			divided[in] = true
		}
		for _, s := range list[i].Segments {
			for _, in := range s.Volumes {
				divided[in] = true
			}
		}
	}
	return divided
}

// volumes writes the volume records, for which the file systems are opened.
func (b *builder) volumes(list []partition.Volume) {
	divided := dividedOf(list)
	head := make([]byte, ProbeLen)
	for i := range list {
		v := &volume{Volume: list[i], rec: volumeRecord(i, &list[i]), env: b.c.Partition.Env}
		v.on, v.selected = b.c.Patterns.On(v.Name)
		b.vols = append(b.vols, v)
		switch {
		case v.Kind == partition.KindGap || v.Kind == partition.KindTable || divided[i] || b.c.NoFS:
		case b.c.Mounts != nil:
			c, _ := partition.Recognise(v.Disk, v.Size)
			v.rec.FS, v.rec.UUID, v.rec.Label = c.Name, c.UUID, c.Label
		default:
			v.probe(b.c.Drivers, head)
		}
	}
	for _, set := range sets(b.vols) {
		openSet(set, b.c.FS)
	}
	if b.c.Mounts != nil && !b.c.NoFS {
		b.mounts(list, head)
	}
	for _, v := range b.vols {
		b.names.See(&v.rec)
		b.w.Volume(&v.rec)
		b.notes(b.names.Problem(&mapfile.Problem{Image: v.rec.Image, Volume: v.rec.ID}), v.rec.Notes)
		for _, err := range v.Problems {
			b.volumeProblem(v, "volume", err)
		}
		for _, err := range v.trouble {
			b.volumeProblem(v, "file system", err)
			if v.fs == nil && v.rec.FS != "" && errors.Is(err, ondisk.ErrUnsupported) {
				b.unread = append(b.unread, v.rec.FS)
			}
		}
		if v.Kind == partition.KindLUKS && v.fs != nil {
			b.secret = true
		}
	}
}

func volumeRecord(id int, v *partition.Volume) mapfile.Volume {
	rec := mapfile.Volume{
		ID: id, Name: v.Name, Kind: string(v.Kind), Scheme: v.Scheme, Number: v.Number, Start: v.Start, Size: v.Size, Image: v.Image, In: v.In,
		TypeID: v.TypeID, Type: v.Type, PartUUID: v.UUID, PartName: v.Label, Attrs: v.Attrs, Used: mapfile.None, FS: v.Holds, Notes: slices.Clip(v.Notes),
	}
	if v.Image < 0 {
		rec.Image, rec.Start = mapfile.None, mapfile.None
	}
	for _, s := range v.Segments {
		rec.Segments = append(rec.Segments, mapfile.Segment{At: s.At, Len: s.Len, Kind: s.Kind, Volumes: s.Volumes, Starts: s.Starts, Stripe: s.Stripe})
	}
	return rec
}

// probe finds out what a volume holds.
func (v *volume) probe(drivers []Driver, head []byte) {
	if v.Holds != "" {
		c, _ := partition.Recognise(v.Disk, v.Size)
		v.rec.UUID, v.rec.Label = c.UUID, c.Label
		return
	}
	head, ok := v.first(head)
	if !ok {
		return
	}
	for i := range drivers {
		name, ok := drivers[i].Probe(v.Disk, v.Size, head)
		if !ok {
			continue
		}
		if v.driver != nil {
			v.fail("it looks like %s and like %s: %w", v.rec.FS, name, ondisk.ErrUnsupported)
			v.driver, v.rec.FS = nil, ""
			return
		}
		v.driver, v.rec.FS = &drivers[i], name
	}
	if v.driver == nil {
		v.recognise(head)
	}
}

// first reads the volume's first bytes into head.
func (v *volume) first(head []byte) ([]byte, bool) {
	head = head[:min(v.Size, ProbeLen)]
	if n, err := v.Disk.ReadAt(head, 0); n < len(head) && !errors.Is(err, io.EOF) {
		v.fail("reading its first bytes: %w", err)
		return nil, false
	}
	return head, true
}

func (v *volume) fail(format string, args ...any) {
	v.trouble = append(v.trouble, fmt.Errorf(format, args...))
}

// recognise names what no driver reads.
func (v *volume) recognise(head []byte) {
	c, ok := partition.Recognise(v.Disk, v.Size)
	v.rec.FS, v.rec.UUID, v.rec.Label = c.Name, c.UUID, c.Label
	switch {
	case ok && c.What == partition.Crypto:
		v.fail("%s: %w", c.Name, formats.ErrEncrypted)
	case ok && c.What != partition.Other:
		v.fail("%s: %w", c.Name, ondisk.ErrUnsupported)
	case ok || noFileSystem[v.TypeID] || zeros(head) && v.Kind != partition.KindDisk:
	default:
		switch survey(v.Disk) {
		case formats.Zero:
		case formats.Encrypted:
			v.fail("unknown file system: %w", formats.ErrEncrypted)
		default:
			v.fail("unknown file system: no mark of any was found: %w", ondisk.ErrUnsupported)
		}
	}
}

// sets groups the volumes with a driver by file system. The parts of one that spans several volumes are in the order of
// their numbers; a second part of the same number belongs to a copy of the whole.
func sets(vols []*volume) [][]*volume {
	type part struct {
		id     string
		number uint64
	}
	var all [][]*volume
	seen := map[part]int{}
	byID := map[string]int{} // index in all
	numbers := map[*volume]uint64{}
	for _, v := range vols {
		if v.driver == nil || !v.selected {
			continue
		}
		if v.driver.MemberOf == nil {
			all = append(all, []*volume{v})
			continue
		}
		id, number, err := v.driver.MemberOf(v.Disk, v.Size)
		if err != nil {
			v.fail("%s: %w", v.rec.FS, err)
			continue
		}
		p := part{id, number}
		id = fmt.Sprintf("%s#%d", id, seen[p])
		seen[p]++
		numbers[v] = number
		i, ok := byID[id]
		if !ok {
			i = len(all)
			byID[id], all = i, append(all, nil)
		}
		all[i] = append(all[i], v)
	}
	for _, set := range all {
		slices.SortStableFunc(set, func(a, b *volume) int { return cmp.Compare(numbers[a], numbers[b]) })
	}
	return all
}

// openSet opens the file system of a set. It belongs to the first of its volumes in the map.
func openSet(set []*volume, o Options) {
	first := slices.MinFunc(set, func(a, b *volume) int { return cmp.Compare(a.rec.ID, b.rec.ID) })
	d := first.driver
	var fs FS
	var err error
	if d.MemberOf != nil {
		members := make([]Member, len(set))
		for i, v := range set {
			members[i] = Member{v.Disk, v.Size}
		}
		fs, err = d.OpenSet(members, o)
	} else {
		fs, err = d.Open(first.Disk, first.Size, o)
	}
	if err != nil {
		first.fail("%s: %w", first.rec.FS, err)
		return
	}
	first.attach(set, fs)
}

// attach makes v the volume of an open file system, which spans the volumes of set.
func (v *volume) attach(set []*volume, fs FS) {
	first, info := v, fs.Info()
	for _, v := range set {
		v.rec.FS, v.rec.UUID, v.rec.Label = info.Type, info.UUID, info.Label
		first.disks = append(first.disks, v.Disk)
		if v != first {
			v.rec.Extra = map[string]any{"member_of": first.Name}
		}
	}
	r := &first.rec
	r.Journal, r.BlockSize, r.Used, r.Snapshots, r.Extra = info.Journal, info.BlockSize, info.Used, info.Snapshots, info.Extra
	r.Notes = append(r.Notes, info.Notes...)
	first.fs, first.trouble = fs, append(first.trouble, info.Problems...)
}

// mounts takes over the file systems that the caller has open.
func (b *builder) mounts(list []partition.Volume, head []byte) {
	for _, m := range b.c.Mounts(list) {
		first := b.vols[m.Volumes[0]]
		if m.FS == nil {
			if m.Err != nil {
				first.trouble = append(first.trouble, m.Err)
			} else if head, ok := first.first(head); ok {
				first.recognise(head)
			}
			continue
		}
		var set []*volume
		for _, i := range m.Volumes {
			set = append(set, b.vols[i])
		}
		info := m.FS.Info()
		info.Type, info.UUID, info.Label = cmp.Or(info.Type, first.rec.FS), cmp.Or(info.UUID, first.rec.UUID), cmp.Or(info.Label, first.rec.Label)
		if m.On != nil {
			first.on, first.selected = *m.On, true
		}
		first.attach(set, m.FS)
	}
}

// survey tells, as far as that is cheap, whether something in a disk is encrypted, or all of it is zeros, or neither.
func survey(d formats.Disk) formats.Kind {
	kind := formats.Zero
	for at, tries := int64(0), 0; at < d.Size(); tries++ {
		e, err := d.ExtentAt(at, d.Size()-at)
		if e.Kind == formats.Encrypted {
			return e.Kind
		}
		if err != nil || tries > 1000 {
			return formats.Data
		}
		if e.Kind != formats.Zero {
			kind = formats.Data
		}
		at += e.Len
	}
	return kind
}

// noFileSystem are the types of partitions that hold something else by design.
var noFileSystem = map[string]bool{
	"21686148-6449-6e6f-744e-656564454649": true, // BIOS boot
	"e3c9e316-0b5c-4db8-817d-f92df00215ae": true, // Microsoft reserved
	"9e1a2d38-c612-4316-aa26-8b49521e5a8b": true, // PowerPC PReP boot
	"0x41":                                 true, // PReP boot
}
