// Package ova reads the disks of an OVA: a tar archive that begins with an OVF descriptor, as VMware, VirtualBox and
// oVirt export machines. The disks, stream-optimized VMDKs as a rule, are read where they lie in the archive.
//
// Sources: DMTF DSP0243 "Open Virtualization Format Specification" 2.1, cited as OVF with the section; POSIX pax for the
// archive.
//
// Not supported, and refused by name: disks that are compressed as files or cut into chunks (OVF 7.1), and sparse
// archive members. Hashes in the manifest are not compared.
package ova

import (
	"archive/tar"
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strings"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Format is the row of the table.
var Format = formats.Format{Name: "ova", Probe: probe, Members: members, Open: open}

const (
	// block is the unit of a tar archive.
	block = 512
	// maxMembers and maxOVF bound the archive's members, and the descriptor.
	maxMembers = 4096
	maxOVF     = 4 << 20
)

// probe takes a tar archive whose first member is an OVF descriptor (OVF 5.3); vmkit knows no use for others.
func probe(_ *formats.File, head []byte) bool {
	if len(head) < block {
		return false
	}
	h, err := tar.NewReader(bytes.NewReader(head)).Next()
	return err == nil && isOVF(h.Name)
}

func isOVF(name string) bool { return strings.EqualFold(path.Ext(name), ".ovf") }

// member is a file in the archive.
type member struct {
	name      string
	base      int64
	size      int64 // that the archive says
	notStored string
}

// list goes through the archive. One that is cut is listed up to there.
func list(f *formats.File) (all []member, err error) {
	s := io.NewSectionReader(f, 0, f.Size)
	for r := tar.NewReader(s); ; {
		h, err := r.Next()
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), len(all) > 0 && errors.Is(err, tar.ErrHeader):
			return all, nil
		case errors.Is(err, tar.ErrHeader):
			return nil, &ondisk.Error{What: "ova", Off: 0, Err: ondisk.ErrNot}
		case errors.Is(err, tar.ErrFieldTooLong):
			return nil, ondisk.Corrupt("ova", "archive member with a field too long", -1, nil)
		default:
			return nil, fmt.Errorf("ova: %w", err)
		}
		if h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeGNUSparse {
			continue
		}
		base, err := s.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, fmt.Errorf("ova: %w", err)
		}
		m := member{name: h.Name, base: base, size: h.Size}
		if h.Typeflag == tar.TypeGNUSparse || h.PAXRecords["GNU.sparse.major"] != "" || h.PAXRecords["GNU.sparse.map"] != "" {
			m.notStored = "a sparse archive member"
		}
		if all = append(all, m); len(all) > maxMembers {
			return nil, ondisk.Unsupported("ova", "members of the archive", -1, len(all))
		}
	}
}

// envelope is what is used of the descriptor (OVF 7.1, 9.1).
type envelope struct {
	Files []struct {
		ID          string `xml:"id,attr"`
		Href        string `xml:"href,attr"`
		Compression string `xml:"compression,attr"`
		ChunkSize   string `xml:"chunkSize,attr"`
	} `xml:"References>File"`
	Disks []struct {
		FileRef string `xml:"fileRef,attr"`
	} `xml:"DiskSection>Disk"`
}

// disks finds the disks: the files that the descriptor's disks refer to, in its order. Where it can't be read they are
// told by their extensions, which is noted.
func disks(f *formats.File) (found []member, note string, err error) {
	all, err := list(f)
	if err != nil {
		return nil, "", err
	}
	env, err := readEnvelope(f, all)
	if err != nil {
		for _, m := range all {
			switch strings.ToLower(path.Ext(m.name)) {
			case ".vmdk", ".vhd", ".vhdx", ".vdi", ".qcow2", ".img", ".raw":
				found = append(found, m)
			}
		}
		return found, fmt.Sprintf("%v; the disks are told by their names", err), nil
	}
	for _, d := range env.Disks {
		for _, file := range env.Files {
			if file.ID != d.FileRef || d.FileRef == "" {
				continue
			}
			m := find(all, file.Href)
			switch {
			case file.Compression != "" && file.Compression != "identity":
				m.notStored = "compressed with " + file.Compression
			case file.ChunkSize != "":
				m.notStored = "cut into chunks"
			}
			if !slices.ContainsFunc(found, func(o member) bool { return o.name == m.name }) {
				found = append(found, m)
			}
		}
	}
	return found, "", nil
}

func readEnvelope(f *formats.File, all []member) (*envelope, error) {
	if len(all) == 0 || !isOVF(all[0].name) || all[0].size > maxOVF || all[0].notStored != "" {
		return nil, ondisk.Corrupt("ova", "no OVF descriptor at the start of the archive", 0, nil)
	}
	b, err := ondisk.Read(f, all[0].base, all[0].size, "ovf")
	if err != nil {
		return nil, err
	}
	env := new(envelope)
	if err := xml.Unmarshal(b, env); err != nil {
		return nil, ondisk.Corrupt("ovf", err.Error(), all[0].base, nil)
	}
	return env, nil
}

// find gives the member of a name, which may be escaped as in a URL; base is -1 if there is none.
func find(all []member, name string) member {
	plain, err := url.PathUnescape(name)
	if err != nil {
		plain = name
	}
	for _, want := range []string{name, plain} {
		for _, m := range all {
			if m.name == want || m.name == "./"+want {
				return m
			}
		}
	}
	return member{name: name, base: -1}
}

func members(f *formats.File) ([]string, error) {
	found, _, err := disks(f)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, m := range found {
		names = append(names, m.name)
	}
	if len(names) == 0 {
		return nil, ondisk.Corrupt("ova", "no disk", -1, nil)
	}
	return names, nil
}

func open(f *formats.File, o *formats.Opener) (*formats.Image, error) {
	found, note, err := disks(f)
	if err != nil {
		return nil, err
	}
	m, err := choose(f, found, o.Member)
	if err != nil {
		return nil, err
	}
	size := min(m.size, f.Size-m.base)
	img, err := o.Inside(f, m.name, m.base, size)
	if err != nil {
		return nil, err
	}
	img.Format = "ova"
	if note != "" {
		img.Notes = append(img.Notes, note)
	}
	if size < m.size {
		img.Problems = append(img.Problems, ondisk.Truncated("ova", m.name+" has the length", m.base, m.size))
	}
	return img, nil
}

// choose gives the disk of a name, or the only one.
func choose(f *formats.File, found []member, name string) (member, error) {
	var names []string
	for _, m := range found {
		names = append(names, f.Path+":"+m.name)
	}
	var m member
	switch i := slices.IndexFunc(found, func(m member) bool { return m.name == name }); {
	case len(found) == 0:
		return m, ondisk.Corrupt("ova", "no disk", -1, nil)
	case name == "" && len(found) == 1:
		m = found[0]
	case name == "":
		return m, fmt.Errorf("it holds %d disks, name one: %s: %w", len(found), strings.Join(names, ", "), ondisk.ErrUnsupported)
	case i < 0:
		return m, fmt.Errorf("no disk %q in it, but %s: %w", name, strings.Join(names, ", "), fs.ErrNotExist)
	default:
		m = found[i]
	}
	switch {
	case m.base < 0:
		return m, fmt.Errorf("%s, which the OVF descriptor lists, is not in it: %w", m.name, fs.ErrNotExist)
	case m.notStored != "":
		return m, ondisk.Unsupported("ova", m.name+": "+m.notStored, m.base, nil)
	}
	return m, nil
}
