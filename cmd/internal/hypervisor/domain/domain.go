// Package domain reads what libvirt's definition of a machine says of its files.
package domain

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// Domain is a machine's definition, as far as its files go.
type Domain struct {
	XMLName xml.Name `xml:"domain"`
	ID      string   `xml:"id,attr"` // of the run of a machine that runs
	Name    string   `xml:"name"`
	UUID    string   `xml:"uuid"`
	NVRAM   struct {
		Path   string `xml:",chardata"`
		Source Source `xml:"source"` // instead of the path, since libvirt 8.5
	} `xml:"os>nvram"`
	Disks []Disk `xml:"devices>disk"`
	TPMs  []struct {
		Backend struct {
			Type    string `xml:"type,attr"`
			Version string `xml:"version,attr"`
		} `xml:"backend"`
	} `xml:"devices>tpm"`
}

// Disk is a drive.
type Disk struct {
	Type   string `xml:"type,attr"`   // "file", "block", "volume", "network", …
	Device string `xml:"device,attr"` // "disk", "cdrom", "floppy", "lun"; empty: "disk"
	Driver struct {
		Type string `xml:"type,attr"`
	} `xml:"driver"`
	Source  Source   `xml:"source"`
	Backing *Backing `xml:"backingStore"`
	Target  struct {
		Dev string `xml:"dev,attr"`
	} `xml:"target"`
	ReadOnly  *struct{} `xml:"readonly"`
	Shareable *struct{} `xml:"shareable"`
	// Mirror is there while a block job copies the disk.
	Mirror *Mirror `xml:"mirror"`
}

// Mirror is a block job.
type Mirror struct {
	Job   string `xml:"job,attr"`   // "active-commit", "copy"
	Ready string `xml:"ready,attr"` // "yes" once it is level, "pivot" and "abort" while it ends
}

// Source is where a drive's bytes are.
type Source struct {
	File     string `xml:"file,attr"`
	Dev      string `xml:"dev,attr"`
	Pool     string `xml:"pool,attr"`
	Volume   string `xml:"volume,attr"`
	Protocol string `xml:"protocol,attr"`
	Name     string `xml:"name,attr"`
}

// Path gives the file or device, or "".
func (s Source) Path() string {
	if s.File != "" {
		return s.File
	}
	return s.Dev
}

// Backing is a layer below a drive's image; an empty one is the end of the chain.
type Backing struct {
	Type   string `xml:"type,attr"`
	Format struct {
		Type string `xml:"type,attr"`
	} `xml:"format"`
	Source  Source   `xml:"source"`
	Backing *Backing `xml:"backingStore"`
}

// maxSize bounds a definition: those of machines with a hundred devices take 60 KiB.
const maxSize = 4 << 20

// Parse reads a definition.
func Parse(text string) (*Domain, error) {
	if len(text) > maxSize {
		return nil, fmt.Errorf("a definition of %d bytes: at most %d are read", len(text), maxSize)
	}
	d := &Domain{}
	if err := xml.Unmarshal([]byte(text), d); err != nil {
		return nil, fmt.Errorf("the definition: %w", err)
	}
	if d.Name == "" {
		return nil, fmt.Errorf("the definition has no name")
	}
	d.NVRAM.Path = strings.TrimSpace(d.NVRAM.Path)
	return d, nil
}

// Is tells whether a text looks like a definition.
func Is(head []byte) bool {
	s := strings.TrimLeft(string(head), "\ufeff \t\r\n")
	for strings.HasPrefix(s, "<!--") || strings.HasPrefix(s, "<?") {
		_, rest, ok := strings.Cut(s, ">")
		if strings.HasPrefix(s, "<!--") {
			_, rest, ok = strings.Cut(s, "-->")
		}
		if !ok {
			return false
		}
		s = strings.TrimLeft(rest, " \t\r\n")
	}
	rest, ok := strings.CutPrefix(s, "<domain")
	return ok && rest != "" && strings.ContainsRune(" \t\r\n>", rune(rest[0]))
}

// NVRAMPath gives the file of the firmware's variables, or "".
func (d *Domain) NVRAMPath() string {
	if p := d.NVRAM.Source.Path(); p != "" {
		return p
	}
	return d.NVRAM.Path
}

// Images gives the drives that are disks, without CDs and floppies.
func (d *Domain) Images() (disks []*Disk) {
	for i := range d.Disks {
		if k := &d.Disks[i]; k.Device == "" || k.Device == "disk" {
			disks = append(disks, k)
		}
	}
	return disks
}

// Disk finds a drive by its target: "vda".
func (d *Domain) Disk(target string) *Disk {
	for i := range d.Disks {
		if d.Disks[i].Target.Dev == target {
			return &d.Disks[i]
		}
	}
	return nil
}
