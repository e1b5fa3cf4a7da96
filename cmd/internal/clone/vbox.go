package clone

import (
	"errors"
	"path/filepath"
	"strings"

	"github.com/beevik/etree"
)

// rewriteVBox rewrites the settings of a VirtualBox machine. VirtualBox knows disks by UUIDs that stand in the images
// too, and takes no second one of the same: relinkDisks gives the images those that are made here.
func (c *Clone) rewriteVBox(it *item, old []byte) ([]byte, error) {
	doc, err := parseXML(old)
	if err != nil {
		return nil, err
	}
	m := doc.FindElement("VirtualBox/Machine")
	if m == nil {
		return nil, errors.New("no element VirtualBox/Machine")
	}
	folder := filepath.Dir(it.abs)
	m.CreateAttr("name", c.name)
	m.CreateAttr("uuid", "{"+newUUID()+"}")
	m.CreateAttr("snapshotFolder", "Snapshots") // in the clone's folder
	for _, a := range []string{"stateFile", "aborted"} {
		m.RemoveAttr(a)
	}
	for _, e := range m.FindElements("//Snapshot") {
		e.RemoveAttr("stateFile")
	}
	c.rewriteMedia(doc, folder)
	for _, e := range m.FindElements("//Adapter[@MACAddress]") {
		e.CreateAttr("MACAddress", strings.ToUpper(strings.ReplaceAll(newMAC(0x08, 0x00, 0x27), ":", "")))
		if c.o.Isolate {
			e.CreateAttr("cable", "false")
		}
	}
	for _, e := range m.FindElements("//NVRAM[@path]") {
		if o := c.find(folder, e.SelectAttrValue("path", "")); o != nil {
			e.CreateAttr("path", o.name)
		} else {
			e.Parent().RemoveChild(e) // VirtualBox makes a new one
		}
	}
	for _, e := range m.FindElements("//SharedFolder") {
		e.Parent().RemoveChild(e)
		c.note("shared folders of the host are not in the clone")
	}
	for _, tag := range []string{"//UART/Port", "//LPT/Port"} {
		for _, e := range m.FindElements(tag) {
			if e.SelectAttrValue("path", "") != "" {
				e.CreateAttr("enabled", "false")
				e.RemoveAttr("path")
			}
		}
	}
	return doc.WriteToBytes()
}

// rewriteMedia gives the disks new identities and their places in the clone. Images of CDs and floppies stay with the
// machine.
func (c *Clone) rewriteMedia(doc *etree.Document, folder string) {
	const braces = "{}"
	for _, e := range doc.FindElements("//MediaRegistry//HardDisk") {
		location := e.SelectAttrValue("location", "")
		o := c.find(folder, location)
		if o == nil {
			c.note("the disk %q of the machine is not in its record, and the clone's settings still name it", location)
			continue
		}
		e.CreateAttr("location", o.name)
		old := strings.ToLower(strings.Trim(e.SelectAttrValue("uuid", ""), braces))
		format := strings.ToLower(e.SelectAttrValue("format", ""))
		switch format {
		case "vdi", "vmdk":
			c.uuids[old] = newUUID()
			if o.Format == "" {
				o.Format = format
			}
		default:
			c.note("%s keeps its UUID: VirtualBox takes the clone only where it does not know the machine's own", o.name)
		}
	}
	for _, e := range doc.FindElements("//*[@uuid]") {
		old := strings.ToLower(strings.Trim(e.SelectAttrValue("uuid", ""), braces))
		if uuid, ok := c.uuids[old]; ok && (e.Tag == "HardDisk" || e.Tag == "Image") {
			e.CreateAttr("uuid", "{"+uuid+"}")
		}
	}
	for _, tag := range []string{"//MediaRegistry/DVDImages/Image", "//MediaRegistry/FloppyImages/Image", "//AttachedDevice[@type='DVD']/Image", "//AttachedDevice[@type='Floppy']/Image"} {
		for _, e := range doc.FindElements(tag) {
			e.Parent().RemoveChild(e)
			c.note("images of CDs and floppies are not in the clone's drives")
		}
	}
}
