package clone

import (
	"crypto/rand"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/beevik/etree"

	"vmkit/fsmap/mapfile"
)

// rewriteDomain rewrites libvirt's definition of a machine. libvirt wants absolute paths: a clone that was moved has to
// be defined from a definition that says so.
func (c *Clone) rewriteDomain(it *item, old []byte) ([]byte, error) {
	doc, err := parseXML(old)
	if err != nil {
		return nil, err
	}
	root := doc.Root()
	root.RemoveAttr("id")
	setText(root, "name", libvirtName(c.name))
	setText(root, "uuid", newUUID())
	c.rewriteNVRAM(root, filepath.Dir(it.abs))
	devices := root.SelectElement("devices")
	if devices == nil {
		return doc.WriteToBytes()
	}
	for _, e := range devices.ChildElements() {
		if keep := c.rewriteDomainDevice(e, filepath.Dir(it.abs)); !keep {
			devices.RemoveChild(e)
		}
	}
	if root.FindElement("commandline") != nil {
		c.note("%s passes options of its own to QEMU, which are taken over as they are", it.name)
	}
	if root.FindElement("memoryBacking/source[@type='file']") != nil || root.FindElement("devices/memory[@model='nvdimm']/source") != nil {
		c.note("the memory of the machine lies in a file, which %s still names", it.name)
	}
	return doc.WriteToBytes()
}

// rewriteNVRAM has the firmware's variables be the clone's.
func (c *Clone) rewriteNVRAM(root *etree.Element, folder string) {
	e := root.FindElement("os/nvram")
	if e == nil {
		return
	}
	if src := e.SelectElement("source"); src != nil {
		if o := c.find(folder, src.SelectAttrValue("file", "")); o != nil {
			src.CreateAttr("file", c.absolute(o))
			return
		}
	} else if o := c.find(folder, strings.TrimSpace(e.Text())); o != nil {
		e.SetText(c.absolute(o))
		return
	}
	// libvirt makes one from the template.
	for _, child := range e.ChildElements() {
		e.RemoveChild(child)
	}
	e.SetText("")
	e.RemoveAttr("type")
}

// rewriteDomainDevice rewrites one device, and tells whether the clone keeps it.
func (c *Clone) rewriteDomainDevice(e *etree.Element, folder string) bool {
	switch e.Tag {
	case "disk":
		return c.rewriteDomainDisk(e, folder)
	case "interface":
		setMAC(e)
		if c.o.Isolate {
			link := e.SelectElement("link")
			if link == nil {
				link = e.CreateElement("link")
			}
			link.CreateAttr("state", "down")
		}
		if e.SelectAttrValue("type", "") == "hostdev" {
			c.note("a network card of the host belongs to the machine: the clone has none")
			return false
		}
		if t := e.SelectElement("target"); t != nil { // the host's end of the running machine's
			e.RemoveChild(t)
		}
	case "hostdev", "filesystem", "redirdev", "shmem":
		c.note("a device of the kind %s, which reaches into the host, is not in the clone", e.Tag)
		return false
	case "serial", "parallel", "console", "channel":
		c.rewriteCharDevice(e)
	case "graphics":
		for _, a := range []string{"port", "tlsPort", "websocket", "socket"} {
			e.RemoveAttr(a)
		}
		if e.SelectAttr("autoport") != nil {
			e.CreateAttr("autoport", "yes")
		}
		for _, l := range e.SelectElements("listen") {
			if l.SelectAttrValue("type", "") == "socket" {
				e.RemoveChild(l)
			}
		}
	case "tpm":
		c.note("the state of the machine's TPM stays behind: the clone's is new")
	}
	return true
}

// rewriteDomainDisk rewrites a drive. What its machine could write to, and the clone has no copy of, goes.
func (c *Clone) rewriteDomainDisk(e *etree.Element, folder string) bool {
	for _, name := range []string{"backingStore", "mirror", "transient"} {
		for _, b := range e.SelectElements(name) {
			e.RemoveChild(b)
		}
	}
	src := e.SelectElement("source")
	device := e.SelectAttrValue("device", "disk")
	path := ""
	if src != nil {
		path = src.SelectAttrValue("file", src.SelectAttrValue("dev", ""))
	}
	o := c.find(folder, path)
	if o == nil {
		// The record may know it by its target only: a volume of a pool.
		if t := e.SelectElement("target"); t != nil {
			o = c.disk(t.SelectAttrValue("dev", ""))
		}
	}
	switch {
	case o != nil && device != "cdrom" && device != "floppy" || o != nil && path != "":
		e.CreateAttr("type", "file")
		if src == nil {
			src = e.CreateElement("source")
		}
		src.Attr = nil
		src.CreateAttr("file", c.absolute(o))
		for _, child := range src.ChildElements() {
			if child.Tag != "encryption" && child.Tag != "slices" { // those are of the image, others of the host
				src.RemoveChild(child)
			}
		}
	case device == "cdrom" || src == nil:
	case device == "floppy":
		e.RemoveChild(src)
	default:
		c.note("a disk of the machine is not in its record: the clone has none (%s)", diskSource(src))
		return false
	}
	return true
}

// diskSource tells what a drive's source is.
func diskSource(src *etree.Element) string {
	var parts []string
	for _, a := range src.Attr {
		parts = append(parts, a.Key+" "+a.Value)
	}
	return strings.Join(parts, ", ")
}

// rewriteCharDevice has what a guest writes end in the clone's own terminal, not in the machine's file or socket.
func (c *Clone) rewriteCharDevice(e *etree.Element) {
	switch e.SelectAttrValue("type", "") {
	case "pty", "spicevmc", "null", "unix":
		// Paths of sockets are made anew where there is none.
	default:
		e.CreateAttr("type", "null")
		c.note("a %s device of the machine, which reaches into the host, leads nowhere in the clone", e.Tag)
	}
	for _, name := range []string{"source", "protocol", "log"} {
		for _, s := range e.SelectElements(name) {
			e.RemoveChild(s)
		}
	}
	if e.SelectAttrValue("type", "") == "unix" {
		if e.Tag != "channel" {
			e.CreateAttr("type", "null") // only a channel's socket gets a path by itself
			return
		}
		e.CreateElement("source").CreateAttr("mode", "bind")
	}
	e.RemoveAttr("tty")
}

// disk gives the disk of the clone that the machine calls so.
func (c *Clone) disk(name string) *item {
	for _, it := range c.items {
		if it.Role == mapfile.RoleDisk && strings.EqualFold(it.Disk, name) && name != "" {
			return it
		}
	}
	return nil
}

// absolute is the path that a file of the clone will have.
func (c *Clone) absolute(it *item) string {
	path, err := filepath.Abs(filepath.Join(c.stage.final(), it.name))
	if err != nil {
		return filepath.Join(c.stage.final(), it.name) // there is no current folder
	}
	return path
}

// libvirtName makes a name of what libvirt takes for one.
func libvirtName(name string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '/' {
			return '_'
		}
		return r
	}, name)
}

func setText(parent *etree.Element, tag, text string) {
	e := parent.SelectElement(tag)
	if e == nil {
		e = parent.CreateElement(tag)
	}
	e.SetText(text)
}

// setMAC gives a network card a new address.
func setMAC(e *etree.Element) {
	if mac := e.SelectElement("mac"); mac != nil {
		mac.CreateAttr("address", newMAC(0x52, 0x54, 0x00))
	}
}

// newUUID makes a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// newMAC makes a random address with the prefix of a kind of virtual card.
func newMAC(vendor ...byte) string {
	var b [3]byte
	rand.Read(b[:])
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", vendor[0], vendor[1], vendor[2], b[0], b[1], b[2])
}
