package fsmap

import (
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
	fs       FS
	disks    []formats.Disk // that Run.Dev counts in
}

// volumes writes the volume records, for which the file systems are opened.
func (b *builder) volumes(list []partition.Volume) {
	divided := make([]bool, len(list)) // those that others lie in
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
	head := make([]byte, ProbeLen)
	for i := range list {
		v := &volume{Volume: list[i], rec: volumeRecord(i, &list[i]), env: b.c.Partition.Env}
		v.on, v.selected = b.c.Patterns.On(v.Name)
		b.vols = append(b.vols, v)
		var problems []error
		if v.Kind != partition.KindGap && v.Kind != partition.KindTable && !divided[i] && !b.c.NoFS {
			problems = b.fileSystem(v, head)
		}
		b.names.See(&v.rec)
		b.w.Volume(&v.rec)
		b.notes(b.names.Problem(&mapfile.Problem{Image: v.rec.Image, Volume: v.rec.ID}), v.rec.Notes)
		for _, err := range v.Problems {
			b.volumeProblem(v, "volume", err)
		}
		for _, err := range problems {
			b.volumeProblem(v, "file system", err)
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

// fileSystem finds out what a volume holds, and opens it where a driver can. It returns what stands in the way.
func (b *builder) fileSystem(v *volume, head []byte) []error {
	if v.Holds != "" {
		c, _ := partition.Recognise(v.Disk, v.Size)
		v.rec.UUID, v.rec.Label = c.UUID, c.Label
		return nil
	}
	head = head[:min(v.Size, ProbeLen)]
	if n, err := v.Disk.ReadAt(head, 0); n < len(head) && !errors.Is(err, io.EOF) {
		return []error{fmt.Errorf("reading its first bytes: %w", err)}
	}
	var d *Driver
	for i := range b.c.Drivers {
		name, ok := b.c.Drivers[i].Probe(v.Disk, v.Size, head)
		if !ok {
			continue
		}
		if d != nil {
			err := fmt.Errorf("it looks like %s and like %s: %w", v.rec.FS, name, ondisk.ErrUnsupported)
			v.rec.FS = ""
			return []error{err}
		}
		d, v.rec.FS = &b.c.Drivers[i], name
	}
	if d == nil {
		return b.recognise(v, head)
	}
	if !v.selected {
		return nil
	}
	fs, err := d.Open(v.Disk, v.Size, b.c.FS)
	if err != nil {
		return []error{fmt.Errorf("%s: %w", v.rec.FS, err)}
	}
	v.fs, v.disks = fs, []formats.Disk{v.Disk}
	info := fs.Info()
	v.rec.FS, v.rec.UUID, v.rec.Label, v.rec.Journal = info.Type, info.UUID, info.Label, info.Journal
	v.rec.BlockSize, v.rec.Used, v.rec.Snapshots, v.rec.Extra = info.BlockSize, info.Used, info.Snapshots, info.Extra
	v.rec.Notes = append(v.rec.Notes, info.Notes...)
	return info.Problems
}

// recognise names what no driver reads.
func (b *builder) recognise(v *volume, head []byte) []error {
	c, ok := partition.Recognise(v.Disk, v.Size)
	v.rec.FS, v.rec.UUID, v.rec.Label = c.Name, c.UUID, c.Label
	switch {
	case ok && c.What == partition.Crypto:
		return []error{fmt.Errorf("%s: %w", c.Name, formats.ErrEncrypted)}
	case ok && c.What != partition.Other:
		return []error{fmt.Errorf("%s: %w", c.Name, ondisk.ErrUnsupported)}
	case ok || noFileSystem[v.TypeID] || zeros(head) && (v.Kind != partition.KindDisk || blank(v.Disk)):
		return nil
	}
	return []error{fmt.Errorf("unknown file system: no mark of any was found: %w", ondisk.ErrUnsupported)}
}

// blank tells whether a disk holds nothing but zeros, as far as that is cheap to tell.
func blank(d formats.Disk) bool {
	for at, tries := int64(0), 0; at < d.Size(); tries++ {
		e, err := d.ExtentAt(at, d.Size()-at)
		if err != nil || e.Kind != formats.Zero || tries > 1000 {
			return false
		}
		at += e.Len
	}
	return true
}

// noFileSystem are the types of partitions that hold something else by design.
var noFileSystem = map[string]bool{
	"21686148-6449-6E6F-744E-656564454649": true, // BIOS boot
	"E3C9E316-0B5C-4DB8-817D-F92DF00215AE": true, // Microsoft reserved
	"9E1A2D38-C612-4316-AA26-8B49521E5A8B": true, // PowerPC PReP boot
	"0x41":                                 true, // PReP boot
}
