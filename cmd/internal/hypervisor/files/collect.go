package files

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vmkit/cmd/internal/hypervisor/domain"
	"vmkit/cmd/internal/hypervisor/hostfiles"
	"vmkit/cmd/internal/hypervisor/vbox"
	"vmkit/cmd/internal/hypervisor/vmx"
	"vmkit/formats"
	"vmkit/formats/all"
	"vmkit/fsmap/mapfile"
)

// collector gathers the files of one machine. What a configuration or an image names is followed only into the folders
// that were named: it may be evidence, and hostile.
type collector struct {
	vm     *mapfile.VM
	allow  []string // folders
	others []string // files of the folder that are no part of a machine
}

// maxEntries bounds the files of a machine's folder: those with many snapshots, split into 2 GiB parts, have thousands.
const maxEntries = 100_000

func (c *collector) collect(paths []string) error {
	var configs, images, rest []string
	c.allow = slices.Clone(c.allow)
	for _, path := range paths {
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		if !st.IsDir() {
			c.allow = append(c.allow, filepath.Dir(path))
			if configKind(path) != "" {
				configs = append(configs, path)
			} else {
				images = append(images, path)
			}
			continue
		}
		c.allow = append(c.allow, path)
		files, err := walk(path)
		if err != nil {
			return err
		}
		for _, f := range files {
			if configKind(f) != "" {
				configs = append(configs, f)
			} else {
				rest = append(rest, f)
			}
		}
	}
	switch len(configs) {
	case 0:
	case 1:
		if err := c.config(configs[0]); err != nil {
			return fmt.Errorf("%s: %w", configs[0], err)
		}
		if !slices.ContainsFunc(paths, isDir) { // the configuration was named, not its folder
			var err error
			if rest, err = companions(configs[0]); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("several machines are there: name one of %s", strings.Join(configs, ", "))
	}
	if c.vm.Name == "" {
		c.vm.Name = filepath.Base(paths[0])
		if !isDir(paths[0]) {
			c.vm.Name = stem(paths[0])
		}
	}
	rest = slices.DeleteFunc(rest, func(path string) bool {
		outside := !within(path, c.allow) // by a symbolic link
		if outside {
			c.others = append(c.others, filepath.Base(path))
		}
		return outside
	})
	for _, path := range rest {
		if isImage(path) {
			images = append(images, path)
		}
	}
	if err := c.images(images); err != nil {
		return err
	}
	for _, path := range rest {
		c.other(path)
	}
	if len(c.others) > 0 {
		c.vm.Notes = append(c.vm.Notes, "files that are no part of a machine stay behind: "+strings.Join(c.others, ", "))
	}
	return nil
}

// walk gives the files of a machine's folder: its own, those of VirtualBox's snapshots and of VMware's lock folders.
func walk(dir string) (files []string, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.Type().IsRegular() || e.Type()&fs.ModeSymlink != 0 && regular(path):
			files = append(files, path)
		case e.IsDir() && (e.Name() == "Snapshots" || e.Name() == "Logs" || strings.HasSuffix(e.Name(), ".lck")):
			below, err := walk(path)
			if err != nil {
				return nil, err
			}
			files = append(files, below...)
		}
		if len(files) > maxEntries {
			return nil, fmt.Errorf("%s holds more than %d files: name the machine's images", dir, maxEntries)
		}
	}
	return files, nil
}

func regular(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// stem gives a file's name without its extension.
func stem(path string) string {
	return strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
}

// companions gives the files beside a configuration: all, or, where other machines are in the folder too, those that
// have its name, as VMware names them. Of images there only those count that the configuration names.
func companions(config string) (files []string, err error) {
	beside, err := walk(filepath.Dir(config))
	if err != nil {
		return nil, err
	}
	alone := !slices.ContainsFunc(beside, func(f string) bool { return f != config && configKind(f) != "" })
	for _, f := range beside {
		if f != config && (alone || strings.HasPrefix(filepath.Base(f), stem(config)+".") && role(f) != "") {
			files = append(files, f)
		}
	}
	return files, nil
}

// configKind tells whether a file is a machine's configuration, and of which kind.
func configKind(path string) string {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".vmx":
		return "vmx"
	case ".vbox":
		return "vbox"
	case ".xml":
		head, err := readHead(path, 64<<10)
		if err == nil && domain.Is(head) {
			return "domain"
		}
	}
	return ""
}

func readHead(path string, n int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, n))
}

// maxConfig bounds a configuration before its own parser does.
const maxConfig = 32 << 20

// config reads a configuration and adds the files that it names.
func (c *collector) config(path string) error {
	text, err := readHead(path, maxConfig)
	if err != nil {
		return err
	}
	hostfiles.Add(c.vm, path, mapfile.RoleConfig)
	resolve := func(name string) (string, error) { return c.resolve(filepath.Dir(path), name) }
	switch configKind(path) {
	case "vmx":
		return c.vmx(text, resolve)
	case "vbox":
		s, err := vbox.ParseSettings(text)
		if err != nil {
			return err
		}
		c.vm.Name, c.vm.UUID = s.Machine.Name, s.Machine.UUID
		if s.Machine.StateFile != "" {
			c.vm.StateFound = "suspended"
		}
		return s.AddFiles(c.vm, resolve, c.allow)
	}
	return c.domain(text, resolve)
}

func (c *collector) vmx(text []byte, resolve func(string) (string, error)) error {
	f, err := vmx.Parse(text)
	if err != nil {
		return err
	}
	if f.Value("encryption.data") != "" {
		return errors.New("it is encrypted, so which files it has can't be seen: name its images")
	}
	c.vm.Name, c.vm.UUID = f.Value("displayName"), f.UUID()
	for _, d := range f.Devices() {
		path, err := resolve(d.File)
		switch {
		case err != nil && d.Disk:
			return fmt.Errorf("%s: %w", d.Node, err)
		case err != nil: // a CD that lies elsewhere
		case d.Disk:
			if err := hostfiles.AddDisk(c.vm, path, "", d.Node, c.allow); err != nil {
				return fmt.Errorf("%s: %w", d.Node, err)
			}
		default:
			if st, err := os.Stat(path); err == nil {
				c.vm.Files = append(c.vm.Files, mapfile.VMFile{Path: path, Role: mapfile.RoleBacking, Disk: d.Node, Size: st.Size()})
			}
		}
	}
	for _, named := range [][2]string{{"nvram", mapfile.RoleFirmware}, {"checkpoint.vmState", mapfile.RoleMemory}} {
		key, role := named[0], named[1]
		if f.Value(key) == "" {
			continue
		}
		// VMware names the variables of the firmware before there are any.
		path, err := resolve(f.Value(key))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", key, err)
		}
		if err == nil && hostfiles.Add(c.vm, path, role) && role == mapfile.RoleMemory {
			c.vm.StateFound = "suspended"
		}
	}
	return nil
}

func (c *collector) domain(text []byte, resolve func(string) (string, error)) error {
	d, err := domain.Parse(string(text))
	if err != nil {
		return err
	}
	c.vm.Name, c.vm.UUID = d.Name, d.UUID
	for _, k := range d.Images() {
		if k.Source.Path() == "" {
			c.vm.Notes = append(c.vm.Notes, fmt.Sprintf("%s: it is no file of this host (%s), so it is not among the machine's files", k.Target.Dev, k.Type))
			continue
		}
		path, err := resolve(k.Source.Path())
		if err == nil {
			err = hostfiles.AddDisk(c.vm, path, k.Driver.Type, k.Target.Dev, c.allow)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", k.Target.Dev, err)
		}
	}
	if p := d.NVRAMPath(); p != "" {
		path, err := resolve(p)
		if err == nil {
			hostfiles.Add(c.vm, path, mapfile.RoleFirmware)
		} else if !errors.Is(err, fs.ErrNotExist) { // libvirt makes it at the first start
			return err
		}
	}
	return nil
}

// resolve gives the path of a name in a configuration that lies in folder. One that lies outside of all that was named
// may have been gathered into that folder; else it is an error.
func (c *collector) resolve(folder, name string) (string, error) {
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(folder, name)
	}
	if within(path, c.allow) {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	base := name[strings.LastIndexAny(name, `/\`)+1:]
	gathered := filepath.Join(folder, base)
	if _, err := os.Stat(gathered); base != "" && err == nil && within(gathered, c.allow) {
		return gathered, nil
	}
	if !within(path, c.allow) {
		return "", fmt.Errorf("%s lies outside of what was named: name it too, behind a comma", path)
	}
	return "", fmt.Errorf("%s: %w", path, fs.ErrNotExist)
}

// within tells whether a path lies in one of the folders, symbolic links followed.
func within(path string, folders []string) bool {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return slices.ContainsFunc(folders, func(dir string) bool {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
		}
		rel, err := filepath.Rel(dir, path)
		return err == nil && filepath.IsLocal(rel)
	})
}

// rawExtensions are those of images that have no format of their own.
var rawExtensions = []string{".img", ".raw", ".dd"}

// isImage tells whether a file is a disk image: one that a format claims, or that is called so.
func isImage(path string) bool {
	if slices.Contains(rawExtensions, strings.ToLower(filepath.Ext(path))) {
		return true
	}
	if role(path) != "" {
		return false
	}
	src := &formats.OSSource{ForceShare: true}
	defer src.Close()
	f, err := src.Open(path)
	if err != nil {
		return false
	}
	head := make([]byte, min(f.Size, formats.ProbeLen))
	if n, err := f.ReadAt(head, 0); n < len(head) && err != nil {
		return false
	}
	return slices.ContainsFunc(all.Formats, func(t formats.Format) bool { return t.Probe != nil && t.Probe(f, head) })
}

// images adds images that no configuration names. One that another stands on is a layer of that one; with a
// configuration, all are layers: of snapshots.
func (c *collector) images(paths []string) error {
	configured := len(hostfiles.Paths(c.vm, mapfile.RoleDisk)) > 0
	var chains [][]mapfile.VMFile
	below := map[string]bool{}
	for _, path := range paths {
		if slices.Contains(hostfiles.Paths(c.vm), path) {
			continue
		}
		files, notes, err := hostfiles.Chain(path, "", stem(path), c.allow)
		if err != nil {
			return err
		}
		c.vm.Notes = append(c.vm.Notes, notes...)
		chains = append(chains, files)
		for _, f := range files[1:] {
			below[f.Path] = true
		}
	}
	for _, files := range chains {
		if below[files[0].Path] {
			continue
		}
		if configured {
			files[0].Role = mapfile.RoleBacking
		}
		hostfiles.Merge(c.vm, files)
	}
	return nil
}

// other adds a file of a machine's folder that is no image, by its name.
func (c *collector) other(path string) {
	if r := role(path); r != "" {
		hostfiles.Add(c.vm, path, r)
	} else if !slices.Contains(hostfiles.Paths(c.vm), path) {
		c.others = append(c.others, filepath.Base(path))
	}
}

// role tells from a file's name what it is to a machine, or "".
func role(path string) string {
	name := strings.ToLower(filepath.Base(path))
	if strings.HasSuffix(filepath.Dir(path), ".lck") || strings.HasSuffix(name, ".writelock") {
		return mapfile.RoleLock
	}
	switch filepath.Ext(name) {
	case ".vmxf", ".vmsd", ".vmpl", ".vbox-prev":
		return mapfile.RoleConfig
	case ".nvram", ".fd":
		return mapfile.RoleFirmware
	case ".vmss", ".vmsn", ".vmem", ".sav", ".save":
		return mapfile.RoleMemory
	case ".log":
		return mapfile.RoleLog
	case ".permall":
		return mapfile.RoleFirmware
	}
	return ""
}
