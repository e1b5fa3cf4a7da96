package vbox

import (
	"encoding/xml"
	"fmt"
	"strings"

	"vmkit/cmd/internal/hypervisor/hostfiles"
	"vmkit/fsmap/mapfile"
)

// Settings is what a machine's settings, the .vbox file, say of its files. Relative names start at its folder.
type Settings struct {
	XMLName xml.Name `xml:"VirtualBox"`
	Machine struct {
		UUID           string   `xml:"uuid,attr"`
		Name           string   `xml:"name,attr"`
		StateFile      string   `xml:"stateFile,attr"` // of a saved machine
		SnapshotFolder string   `xml:"snapshotFolder,attr"`
		HardDisks      []Medium `xml:"MediaRegistry>HardDisks>HardDisk"`
		Snapshot       snapshot `xml:"Snapshot"`
		// Controllers stand under Hardware since version 1.19 of the format, that is VirtualBox 7.
		Controllers []controller `xml:"StorageControllers>StorageController"`
		Newer       []controller `xml:"Hardware>StorageControllers>StorageController"`
		NVRAM       struct {
			Path string `xml:"path,attr"`
		} `xml:"Hardware>BIOS>NVRAM"`
	} `xml:"Machine"`
}

type snapshot struct {
	StateFile string     `xml:"stateFile,attr"`
	Children  []snapshot `xml:"Snapshots>Snapshot"`
}

// states gives the files of saved memory of a snapshot and of those after it.
func (s *snapshot) states() (files []string) {
	if s.StateFile != "" {
		files = append(files, s.StateFile)
	}
	for i := range s.Children {
		files = append(files, s.Children[i].states()...)
	}
	return files
}

// Medium is a hard disk that the machine knows. Those based on it are inside.
type Medium struct {
	UUID     string   `xml:"uuid,attr"`
	Location string   `xml:"location,attr"`
	Format   string   `xml:"format,attr"`
	Children []Medium `xml:"HardDisk"`
}

type controller struct {
	Name    string `xml:"name,attr"`
	Devices []struct {
		Type   string `xml:"type,attr"`
		Port   string `xml:"port,attr"`
		Device string `xml:"device,attr"`
		Image  struct {
			UUID string `xml:"uuid,attr"`
		} `xml:"Image"`
	} `xml:"AttachedDevice"`
}

// maxSettings bounds a settings file: machines with hundreds of snapshots have a megabyte.
const maxSettings = 16 << 20

// ParseSettings reads a settings file.
func ParseSettings(b []byte) (*Settings, error) {
	if len(b) > maxSettings {
		return nil, fmt.Errorf("settings of %d bytes: at most %d are read", len(b), maxSettings)
	}
	s := &Settings{}
	if err := xml.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("the settings: %w", err)
	}
	if s.Machine.Name == "" {
		return nil, fmt.Errorf("the settings name no machine")
	}
	s.Machine.UUID = strings.Trim(s.Machine.UUID, "{}")
	return s, nil
}

// Disk is a hard disk of the machine.
type Disk struct {
	Name  string   // of its place: "SATA-0-0"
	UUID  string   // of the image that is attached
	Chain []Medium // that image, then those below it; empty where the settings don't tell
}

// Disks gives the hard disks that are attached, in the order of their places.
func (s *Settings) Disks() (disks []Disk) {
	for _, c := range append(s.Machine.Controllers, s.Machine.Newer...) {
		for _, d := range c.Devices {
			if d.Type != "HardDisk" || d.Image.UUID == "" {
				continue
			}
			name := fmt.Sprintf("%s-%s-%s", c.Name, d.Port, d.Device)
			disks = append(disks, Disk{name, d.Image.UUID, find(s.Machine.HardDisks, d.Image.UUID)})
		}
	}
	return disks
}

// find gives the medium of a UUID and those that it is based on.
func find(media []Medium, uuid string) []Medium {
	for _, m := range media {
		if strings.EqualFold(m.UUID, uuid) {
			return []Medium{m}
		}
		if chain := find(m.Children, uuid); chain != nil {
			return append(chain, m)
		}
	}
	return nil
}

// AddFiles appends the files that settings name to a machine's. path gives the place of a name, or an error where it may
// not be followed; allow is as in hostfiles.Chain.
func (s *Settings) AddFiles(vm *mapfile.VM, path func(string) (string, error), allow []string) error {
	for _, d := range s.Disks() {
		if len(d.Chain) == 0 {
			return fmt.Errorf("%s: the settings don't say where its image %s is", d.Name, d.UUID)
		}
		for i, m := range d.Chain {
			p, err := path(m.Location)
			if err != nil {
				return fmt.Errorf("%s: %w", d.Name, err)
			}
			files, notes, err := hostfiles.Chain(p, "", d.Name, allow)
			if err != nil {
				return fmt.Errorf("%s: %w", d.Name, err)
			}
			if i == 0 && len(d.Chain) == 1 {
				vm.Notes = append(vm.Notes, notes...) // a differencing image alone doesn't know the one below it
			}
			if i > 0 {
				files[0].Role = mapfile.RoleBacking
			}
			hostfiles.Merge(vm, files)
		}
	}
	if err := addNamed(vm, path, mapfile.RoleFirmware, s.Machine.NVRAM.Path); err != nil {
		return err
	}
	return addNamed(vm, path, mapfile.RoleMemory, append(s.Machine.Snapshot.states(), s.Machine.StateFile)...)
}

func addNamed(vm *mapfile.VM, path func(string) (string, error), role string, names ...string) error {
	for _, name := range names {
		if name == "" {
			continue
		}
		p, err := path(name)
		if err != nil {
			return err
		}
		hostfiles.Add(vm, p, role)
	}
	return nil
}
