package clone

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/beevik/etree"

	"vmkit/cmd/internal/hypervisor/vmx"
)

// Keys of a .vmx that are the machine's own and nobody else's, in lower case.
var (
	// VMware makes new ones: uuid.action says so.
	vmxIdentity = regexp.MustCompile(`^(uuid\.(bios|location)|ethernet\d+\.(generatedaddress|generatedaddressoffset|address))$`)
	// The state that it was suspended in, and what says where it writes besides its folder.
	vmxState = regexp.MustCompile(`^(checkpoint\.vmstate(\.readonly)?|workingdir|sched\.swap\.(dir|derivedname)|(vmx\.)?log\.filename|migrate\.hostlog)$`)
	// Blocks that changed, which VMware tracks in files that a clone has not.
	vmxTracking = regexp.MustCompile(`^((.*\.)?ctkenabled|(.*\.)?changetrackpath)$`)
	vmxPort     = regexp.MustCompile(`^(serial|parallel)\d+$`)
	vmxCard     = regexp.MustCompile(`^ethernet\d+$`)
)

// rewriteVMX rewrites a machine's configuration.
func (c *Clone) rewriteVMX(it *item, old []byte) ([]byte, error) {
	f, err := vmx.Parse(old)
	if err != nil {
		return nil, err
	}
	type entry struct{ name, value string }
	var all []entry
	for name, value := range f.All() {
		all = append(all, entry{name, value})
	}
	devices := map[string]vmx.Device{}
	for _, d := range f.Devices() {
		devices[strings.ToLower(d.Node)] = d
	}
	folder := filepath.Dir(it.abs)
	f.Set("displayName", c.name)
	f.Set("uuid.action", "create")
	for _, e := range all {
		key := strings.ToLower(e.name)
		node, last := key, ""
		if i := strings.LastIndexByte(key, '.'); i > 0 {
			node, last = key[:i], key[i+1:]
		}
		switch {
		case vmxIdentity.MatchString(key), vmxState.MatchString(key), vmxTracking.MatchString(key):
			f.Delete(e.name)
			if vmxCard.MatchString(node) && last == "address" {
				f.Set(node+".addressType", "generated")
			}
		case key == "nvram", key == "extendedconfigfile":
			if o := c.find(folder, e.value); o != nil {
				f.Set(e.name, o.name)
			} else {
				f.Delete(e.name) // VMware makes a new one
			}
		case last == "redo" && e.value != "":
			f.Set(e.name, "")
		case last == "filename":
			c.rewriteDevice(f, folder, node, e.value, devices)
		case c.o.Isolate && last == "present" && vmxCard.MatchString(node):
			f.Set(node+".startConnected", "FALSE")
		}
	}
	if c.o.Isolate {
		f.Set("isolation.tools.hgfs.disable", "TRUE") // folders of the host
	}
	return f.Bytes()
}

// rewriteDevice rewrites the file of a device.
func (c *Clone) rewriteDevice(f *vmx.File, folder, node, value string, devices map[string]vmx.Device) {
	d, drive := devices[node]
	o := c.find(folder, value)
	if o == nil && d.Disk {
		// A configuration that was read during a snapshot names what takes the writes.
		o = c.disk(node)
	}
	switch {
	case o != nil:
		f.Set(node+".fileName", o.name)
	case vmxPort.MatchString(node):
		f.Set(node+".present", "FALSE")
		c.note("%s of the machine writes to %q: the clone has none", node, value)
	case !drive:
	case d.Disk:
		f.Set(node+".present", "FALSE")
		c.note("the disk %q of the machine is not in its record: the clone has none", value)
	case !filepath.IsAbs(value) && !strings.ContainsAny(value, `\:`): // a CD of this host
		f.Set(node+".fileName", filepath.Join(folder, value))
	}
}

// rewriteVMSD rewrites the list of a machine's snapshots.
func (c *Clone) rewriteVMSD(it *item, old []byte) ([]byte, error) {
	f, err := vmx.Parse(old)
	if err != nil {
		return nil, err
	}
	changes := map[string]string{}
	for name, value := range f.All() {
		if strings.HasSuffix(strings.ToLower(name), ".filename") {
			if o := c.find(filepath.Dir(it.abs), value); o != nil {
				changes[name] = o.name
			}
		}
	}
	for name, value := range changes {
		f.Set(name, value)
	}
	return f.Bytes()
}

// rewriteVMXF rewrites the file beside a .vmx that names it.
func (c *Clone) rewriteVMXF(old []byte) ([]byte, error) {
	doc, err := parseXML(old)
	if err != nil {
		return nil, err
	}
	for _, e := range doc.FindElements("//vmxPathName") {
		for _, o := range c.items {
			if filepath.Base(o.abs) == lastName(e.Text()) {
				e.SetText(o.name)
			}
		}
	}
	return doc.WriteToBytes()
}

// parseXML reads a document so that what isn't changed stays as it is.
func parseXML(b []byte) (*etree.Document, error) {
	doc := etree.NewDocument()
	doc.ReadSettings.PreserveCData = true
	doc.WriteSettings.CanonicalAttrVal = true // line ends in names
	if err := doc.ReadFromBytes(b); err != nil {
		return nil, fmt.Errorf("XML: %w", err)
	}
	if doc.Root() == nil {
		return nil, errors.New("XML without an element")
	}
	return doc, nil
}
