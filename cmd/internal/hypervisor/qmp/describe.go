package qmp

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/fsmap/mapfile"
)

// blockDevice is a drive, as query-block tells it.
type blockDevice struct {
	Device    string    `json:"device"`
	QDev      string    `json:"qdev"`
	Removable bool      `json:"removable"`
	Inserted  *inserted `json:"inserted"`
}

// inserted is what is in a drive.
type inserted struct {
	Node  string    `json:"node-name"`
	RO    bool      `json:"ro"`
	Drv   string    `json:"drv"`
	Image imageInfo `json:"image"`
	Cache struct {
		Direct  bool `json:"direct"`
		NoFlush bool `json:"no-flush"`
	} `json:"cache"`
	Encrypted bool         `json:"encrypted"`
	Bitmaps   []bitmapInfo `json:"dirty-bitmaps"`
}

// imageInfo is an image with the chain below it.
type imageInfo struct {
	Filename string     `json:"filename"`
	Format   string     `json:"format"`
	Size     int64      `json:"virtual-size"`
	Backing  *imageInfo `json:"backing-image"`
	Specific struct {
		Data json.RawMessage `json:"data"`
	} `json:"format-specific"`
}

// companions are the files besides the image's own, as its format tells them.
type companions struct {
	DataFile string `json:"data-file"`
	Extents  []struct {
		Filename string `json:"filename"`
		Format   string `json:"format"`
	} `json:"extents"`
}

// maxChain bounds the layers of a chain that are followed.
const maxChain = 256

// disk is a drive with something in it.
type disk struct {
	name string
	blockDevice
	path string // of the top image on the host; "" where it is not a file of this host
	role string
}

// name gives what a drive is called: its id, or that of its device.
func (b *blockDevice) name() string {
	qdev := strings.TrimSuffix(b.QDev, "/virtio-backend")
	return cmp.Or(b.Device, filepath.Base(strings.TrimRight(qdev, "/")), b.Inserted.Node)
}

// firmware tells whether the drive is the flash memory of the firmware.
func (b *blockDevice) firmware() bool {
	return strings.HasPrefix(b.Device, "pflash") || strings.Contains(b.QDev, "flash")
}

// drives asks for all drives with something in them.
func (m *machine) drives(ctx context.Context) ([]blockDevice, error) {
	var all []blockDevice
	if err := m.c.run(ctx, "query-block", nil, &all); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(b blockDevice) bool { return b.Inserted == nil }), nil
}

// Describe tells what the machine is.
func (m *machine) Describe(ctx context.Context) (*mapfile.VM, error) {
	if m.c == nil {
		return nil, fmt.Errorf("%w: QEMU ended", hypervisor.ErrUnavailable)
	}
	vm := &mapfile.VM{
		Type: "vm", Driver: "qmp", Target: "qmp:" + m.socket, Versions: map[string]string{"qemu": m.c.qemu},
		Command: m.command, Dir: m.dir,
	}
	status, err := m.status(ctx)
	if err != nil {
		return nil, err
	}
	vm.StateFound = status
	var name struct{ Name string }
	if err := m.c.run(ctx, "query-name", nil, &name); err != nil {
		return nil, err
	}
	vm.Name = cmp.Or(name.Name, strings.TrimSuffix(filepath.Base(m.socket), filepath.Ext(m.socket)))
	var uuid struct{ UUID string }
	if err := m.c.run(ctx, "query-uuid", nil, &uuid); err != nil && !refused(err) {
		return nil, err
	}
	if strings.Trim(uuid.UUID, "0-") != "" {
		vm.UUID = uuid.UUID
	}
	drives, err := m.drives(ctx)
	if err != nil {
		return nil, err
	}
	m.disks, m.foreign, m.notes = nil, nil, nil
	open := m.openFiles()
	for i := range drives {
		d := disk{blockDevice: drives[i], name: drives[i].name(), role: mapfile.RoleDisk}
		if slices.ContainsFunc(m.disks, func(o disk) bool { return o.name == d.name }) {
			d.name = d.Inserted.Node
		}
		switch {
		case d.firmware():
			d.role = mapfile.RoleFirmware
		case d.Removable && d.Inserted.RO:
			d.role = mapfile.RoleMedia
		}
		files := m.chain(&d, open)
		if len(files) > 0 {
			d.path = files[0].Path
		}
		vm.Files = append(vm.Files, files...)
		m.disks = append(m.disks, d)
	}
	for _, option := range []struct{ name, role string }{{"-readconfig", mapfile.RoleConfig}, {"-pidfile", mapfile.RoleLock}} {
		for _, path := range m.options(option.name) {
			vm.Files = append(vm.Files, mapfile.VMFile{Path: m.resolve(path), Role: option.role})
		}
	}
	for _, tpm := range m.options("-tpmdev") {
		vm.Notes = append(vm.Notes, "the state of its TPM is not among the files: "+tpm)
	}
	vm.Notes = slices.Concat(vm.Notes, m.foreign, m.notes)
	return vm, nil
}

// chain gives the files of a disk, the top first. What lies elsewhere is told in m.foreign.
func (m *machine) chain(d *disk, open map[fileID]bool) []mapfile.VMFile {
	var files []mapfile.VMFile
	add := func(name, role, format string, size int64) bool {
		path, err := m.local(name, open)
		if err != nil {
			what := fmt.Sprintf("%s: %v", d.name, err)
			if d.role == mapfile.RoleMedia {
				m.notes = append(m.notes, what)
			} else {
				m.foreign = append(m.foreign, what)
			}
			return false
		}
		files = append(files, mapfile.VMFile{Path: path, Role: role, Format: format, Disk: d.name, Size: size})
		return true
	}
	role := d.role
	for im, n := &d.Inserted.Image, 0; im != nil && n < maxChain; im, n = im.Backing, n+1 {
		size := int64(0)
		if n == 0 {
			size = im.Size
		}
		if !add(im.Filename, role, im.Format, size) {
			return files
		}
		if role == mapfile.RoleDisk {
			role = mapfile.RoleBacking
		}
		var c companions
		if len(im.Specific.Data) > 0 && json.Unmarshal(im.Specific.Data, &c) == nil {
			if c.DataFile != "" {
				add(beside(im.Filename, c.DataFile), role, "raw", 0)
			}
			for _, x := range c.Extents {
				if x.Filename != im.Filename {
					add(x.Filename, role, strings.ToLower(x.Format), 0)
				}
			}
		}
	}
	return files
}

// beside gives a name that an image holds as its hypervisor looks for it.
func beside(image, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(filepath.Dir(image), name)
}

// local gives the path of a file that QEMU names, and makes sure that it is the one that QEMU has open.
func (m *machine) local(name string, open map[fileID]bool) (string, error) {
	if text, ok := strings.CutPrefix(name, "json:"); ok {
		var node jsonNode
		if err := json.Unmarshal([]byte(text), &node); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		if name = node.file(); name == "" {
			return "", fmt.Errorf("%s is not simply a file of this host: vmkit can't clone it", text)
		}
	}
	name = strings.TrimPrefix(name, "file:")
	// A protocol, as QEMU tells it from a path.
	if i := strings.IndexAny(name, ":/"); i > 0 && name[i] == ':' {
		return "", fmt.Errorf("%s is not a file of this host: vmkit can't clone it", name)
	}
	path := m.resolve(name)
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if open != nil && !open[idOf(st)] {
		return "", fmt.Errorf("%s is not the file that QEMU (process %d) has open: it was replaced, or QEMU sees other folders", path, m.process.PID)
	}
	return path, nil
}

// jsonNode is a node as QEMU writes it where a name can't say it all.
type jsonNode struct {
	Driver   string    `json:"driver"`
	Filename string    `json:"filename"`
	Offset   int64     `json:"offset"`
	Size     *int64    `json:"size"`
	File     *jsonNode `json:"file"`
}

// file gives the one file that the node is, or "".
func (n *jsonNode) file() string {
	for range 8 {
		switch {
		case n == nil || n.Offset != 0 || n.Size != nil:
			return ""
		case n.Driver == "file" || n.Driver == "host_device" || n.Driver == "host_cdrom":
			return n.Filename
		}
		n = n.File
	}
	return ""
}

// resolve gives an absolute path for one that is meant to begin in QEMU's own folder.
func (m *machine) resolve(name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(m.dir, name)
}

// fileID is what two names of one file share.
type fileID struct{ dev, ino uint64 }

func idOf(st os.FileInfo) fileID {
	s, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return fileID{}
	}
	return fileID{uint64(s.Dev), s.Ino}
}

// openFiles gives all files that QEMU has open, or nil where that can't be known.
func (m *machine) openFiles() map[fileID]bool { return openFiles(m.process.PID) }

func openFiles(pid int) map[fileID]bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	open := map[fileID]bool{}
	for _, e := range entries {
		if st, err := os.Stat(filepath.Join(dir, e.Name())); err == nil {
			open[idOf(st)] = true
		}
	}
	return open
}

// options gives the values of an option of QEMU's command line.
func (m *machine) options(name string) []string { return optionsOf(m.command, name) }

func optionsOf(command []string, name string) []string {
	var list []string
	for i := 1; i+1 < len(command); i++ {
		if arg := command[i]; arg == name || arg == "-"+name {
			list = append(list, command[i+1])
		}
	}
	return list
}

// commandLine gives how a process was started.
func commandLine(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil, err
	}
	var list []string
	for arg := range bytes.SplitSeq(bytes.TrimSuffix(b, []byte{0}), []byte{0}) {
		list = append(list, string(arg))
	}
	return list, nil
}

// keyOf gives a key's value in an option such as "socket,id=mon0,path=/run/q.sock", and what stands before the keys.
// A comma in a value is written twice.
func keyOf(option, key string) (value, head string) {
	parts := strings.Split(strings.ReplaceAll(option, ",,", "\x00"), ",")
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(p, "\x00", ",")
		if v, ok := strings.CutPrefix(parts[i], key+"="); ok {
			value = v
		}
	}
	return value, parts[0]
}
