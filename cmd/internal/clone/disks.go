package clone

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"vmkit/formats"
	"vmkit/formats/all"
	"vmkit/formats/qcow2"
	"vmkit/formats/vdi"
	"vmkit/formats/vmdk"
	"vmkit/fsmap/mapfile"
)

// relinkDisks has the images of the clone refer to one another. Which of them are images, and of which format, is
// followed from the disks down, and then from those that the record knows to be layers of snapshots: what a raw disk
// holds is the guest's, whatever it looks like.
func (c *Clone) relinkDisks() {
	for _, role := range []string{mapfile.RoleDisk, mapfile.RoleBacking} {
		for _, it := range c.items {
			if it.Role == role && it.Format != "" {
				c.relink(it, it.Format)
			}
		}
	}
}

// relink rewrites one image, and those below it.
func (c *Clone) relink(it *item, format string) {
	if it.seen {
		return
	}
	it.seen, it.format = true, format
	var err error
	switch format {
	case "qcow2":
		err = c.relinkQCOW2(it)
	case "vmdk":
		err = c.relinkVMDK(it)
	case "vdi":
		err = c.identifyVDI(it)
	}
	if err != nil {
		c.problem(it.name, "its references could not be rewritten: %v", err)
	}
}

// file gives a file of the clone as formats read it.
func (it *item) file() *formats.File {
	return &formats.File{ReaderAt: it.dst, Path: it.dst.Name(), Size: it.size}
}

func (c *Clone) relinkQCOW2(it *item) error {
	f := it.file()
	old, err := qcow2.ReadNames(f)
	if err != nil {
		return err
	}
	now := old
	if old.Data != "" {
		if data := c.findNode(it, old.Data); data != nil {
			data.seen, data.format = true, "raw"
			now.Data = c.nodeName(data)
		}
	}
	if old.Backing != "" {
		below, err := c.backing(it, &now)
		if err != nil {
			return err
		}
		if below != nil {
			// Where nothing says what it is, nobody may go by what it looks like.
			c.relink(below, cmp.Or(now.BackingFormat, below.Format))
		}
	}
	if now == old {
		return nil
	}
	head, err := qcow2.Rename(f, now)
	if err != nil {
		return err
	}
	_, err = it.dst.WriteAt(head, 0)
	return err
}

// backing finds the file that a backing name means, and changes the name to that of the clone.
func (c *Clone) backing(it *item, names *qcow2.Names) (*item, error) {
	text, ok := strings.CutPrefix(names.Backing, "json:")
	if !ok {
		below := c.findNode(it, names.Backing) // with "file:" it begins there, too
		if below == nil || below == it {
			return nil, nil
		}
		names.Backing = qemuName(below.name)
		return below, nil
	}
	tree, err := parseNodes(text)
	if err != nil {
		return nil, fmt.Errorf("backing name %.200q: %w", names.Backing, err)
	}
	var below *item
	c.renameNodes(tree, it, func(o *item) string {
		below = o
		return c.nodeName(o)
	})
	if below == nil || below == it {
		return nil, nil
	}
	if format, ok := plainNode(tree); ok {
		names.Backing, names.BackingFormat = qemuName(below.name), format
		return below, nil
	}
	b, err := json.Marshal(tree)
	names.Backing = "json:" + string(b)
	return below, err
}

// plainKeys are what a json: name may say of a node that the plain name of its file does not, and that makes no
// difference to the bytes.
var plainKeys = []string{"driver", "filename", "node-name", "read-only", "auto-read-only", "discard", "detect-zeroes", "cache", "force-share", "locking", "aio"}

// plainNode gives the format of a description that says no more than a file's name and its format.
func plainNode(tree map[string]any) (format string, ok bool) {
	format, _ = tree["driver"].(string)
	file, _ := tree["file"].(map[string]any)
	for key := range tree {
		if key == "file.driver" || key == "file.filename" {
			continue
		}
		if key != "file" && !slices.Contains(plainKeys, key) {
			return "", false
		}
	}
	for key := range file {
		if !slices.Contains(plainKeys, key) {
			return "", false
		}
	}
	return format, format != "" && format != "file"
}

// findNode gives the file that a name means which QEMU looks up from where it runs, unlike a plain backing name. Other
// programs look it up beside the image that has it, where of is one.
func (c *Clone) findNode(of *item, name string) *item {
	if of != nil {
		if o := c.find(filepath.Dir(of.abs), qemuPath(name)); o != nil || c.vm.Dir == "" {
			return o
		}
	}
	return c.find(c.vm.Dir, qemuPath(name))
}

// nodeName gives such a name: run.sh starts the clone in its folder, libvirt does not.
func (c *Clone) nodeName(it *item) string {
	if c.vm.Driver == "libvirt" {
		return c.absolute(it)
	}
	return qemuName(it.name)
}

// parseNodes reads a description of QEMU's block nodes, as blockdev-add and json: names have it.
func parseNodes(text string) (tree map[string]any, err error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber() // offsets don't fit into floats
	err = d.Decode(&tree)
	return tree, err
}

// localDrivers are QEMU's drivers of formats, and of files that have a name. Others reach what the clone has no copy of.
var localDrivers = []string{
	"file", "host_device", "host_cdrom", "raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc", "parallels", "dmg", "cloop", "bochs", "luks",
	"null-co", "null-aio", "throttle", "copy-on-read", "compress", "preallocate",
}

// renameNodes renames the files in a description of block nodes. It gives the names of those that are not part
// of the clone.
func (c *Clone) renameNodes(tree map[string]any, of *item, name func(*item) string) (others []string) {
	for key, value := range tree {
		switch v := value.(type) {
		case map[string]any:
			others = append(others, c.renameNodes(v, of, name)...)
		case string:
			switch part := key[strings.LastIndexByte(key, '.')+1:]; {
			case part == "driver" && !slices.Contains(localDrivers, v):
				others = append(others, v+":")
			case part == "filename":
				if it := c.findNode(of, v); it != nil {
					tree[key] = name(it)
				} else {
					others = append(others, v)
				}
			}
		}
	}
	slices.Sort(others)
	return others
}

// qemuPath takes QEMU's prefix for files off a name.
func qemuPath(name string) string {
	if rest, ok := strings.CutPrefix(name, "file:"); ok {
		return strings.TrimPrefix(rest, "//")
	}
	return name
}

// qemuName gives the name of a file in the same folder so that QEMU takes it for no protocol.
func qemuName(name string) string {
	if strings.ContainsRune(name, ':') {
		return "./" + name
	}
	return name
}

func (c *Clone) relinkVMDK(it *item) error {
	d, err := vmdk.ReadDescriptor(it.file())
	if d == nil || err != nil {
		return err
	}
	changed := false
	text, err := d.Rename(func(key, value string) string {
		to := value
		switch key {
		case vmdk.KeyExtent:
			if x := c.find(filepath.Dir(it.abs), value); x != nil {
				x.seen = true // whatever an extent holds, it is described here
				to = x.name
			}
		case vmdk.KeyParent:
			if below := c.find(filepath.Dir(it.abs), value); below != nil && below != it {
				c.relink(below, "vmdk")
				to = below.name
			}
		case "ddb.uuid.image", "ddb.uuid.parent":
			if uuid, ok := c.uuids[strings.ToLower(value)]; ok {
				to = uuid
			}
		}
		changed = changed || to != value
		return to
	})
	if err != nil || !changed {
		return err
	}
	if _, err := it.dst.WriteAt(text, d.Off); err != nil || d.Off != 0 {
		return err
	}
	it.size = int64(len(text))
	return it.dst.Truncate(it.size)
}

// identifyVDI gives an image the identity that the machine's new configuration has for it.
func (c *Clone) identifyVDI(it *item) error {
	f := it.file()
	id, err := vdi.ReadIdentity(f)
	if err != nil {
		return err
	}
	now := id
	if uuid, ok := c.uuids[id.UUID]; ok {
		now.UUID = uuid
	}
	if uuid, ok := c.uuids[id.Parent]; ok {
		now.Parent = uuid
	}
	if now == id {
		return nil
	}
	head, err := vdi.Identify(f, now)
	if err != nil {
		return err
	}
	_, err = it.dst.WriteAt(head, 0)
	return err
}

// checkChains opens the disks of the clone with all that is below them, which has to lie in the clone's own folder. One
// that can't be opened where the machine has it either can't be checked, and is no worse for that.
func (c *Clone) checkChains() {
	for _, it := range c.items {
		if it.Role != mapfile.RoleDisk {
			continue
		}
		err := it.open(c.stage.path(it.name), &formats.OSSource{})
		if err == nil {
			continue
		}
		// The folder is called so for a moment only.
		text := strings.ReplaceAll(err.Error(), c.stage.temp, c.stage.final())
		text, _, _ = strings.Cut(text, "; allow it with ") // an option that vmclone has not
		if it.open(it.abs, &formats.OSSource{AllowDirs: []string{"/"}, ForceShare: true}) != nil {
			c.note("%s could not be checked: %s", it.name, text)
			continue
		}
		c.problem(it.name, "in the clone it can't be opened with all of its layers: %s", text)
	}
}

// open opens an image with all of its layers.
func (it *item) open(path string, src *formats.OSSource) error {
	defer src.Close()
	o := &formats.Opener{Formats: all.Formats, Source: src, Format: it.format}
	if !slices.ContainsFunc(all.Formats, func(f formats.Format) bool { return f.Name == it.format }) {
		o.Format = ""
	}
	img, err := o.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(img.Problems...)
}
