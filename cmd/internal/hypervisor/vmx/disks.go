package vmx

import (
	"slices"
	"strings"
)

// Device is a drive that a machine's configuration names.
type Device struct {
	Node string // "scsi0:0"
	File string // as it stands there: relative to the configuration's folder, or absolute
	Disk bool   // a hard disk; else a CD or floppy image
}

// Devices gives the drives that have a file and aren't said to be absent, in the order of the file.
func (f *File) Devices() []Device {
	var devices []Device
	for name, value := range f.All() {
		node, key, ok := cutLast(name)
		if !ok || !strings.EqualFold(key, "fileName") || value == "" || !isDrive(node) {
			continue
		}
		if _, said := f.Get(node + ".present"); said && !f.True(node+".present") {
			continue
		}
		if slices.ContainsFunc(devices, func(d Device) bool { return strings.EqualFold(d.Node, node) }) {
			continue
		}
		kind := strings.ToLower(f.Value(node + ".deviceType"))
		if kind == "cdrom-raw" || kind == "atapi-cdrom" {
			continue // a drive of the host, whose name may be "auto detect"
		}
		floppy := strings.HasPrefix(strings.ToLower(node), "floppy")
		if floppy && !strings.EqualFold(f.Value(node+".fileType"), "file") {
			continue
		}
		devices = append(devices, Device{node, value, !floppy && kind != "cdrom-image"})
	}
	return devices
}

// cutLast splits a name at its last dot.
func cutLast(name string) (node, key string, ok bool) {
	i := strings.LastIndexByte(name, '.')
	if i <= 0 {
		return "", "", false
	}
	return name[:i], name[i+1:], true
}

// buses are the names of the controllers that drives hang on.
var buses = []string{"scsi", "ide", "sata", "nvme", "floppy"}

// isDrive tells whether a node is BUS and a number, and, but for floppies, ":" and a number.
func isDrive(node string) bool {
	node = strings.ToLower(node)
	for _, bus := range buses {
		if rest, ok := strings.CutPrefix(node, bus); ok {
			a, b, two := strings.Cut(rest, ":")
			return number(a) && two == (bus != "floppy") && (!two || number(b))
		}
	}
	return false
}

func number(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// UUID gives the machine's UUID in the usual form, or "".
func (f *File) UUID() string {
	s := strings.ToLower(strings.NewReplacer(" ", "", "-", "").Replace(f.Value("uuid.bios")))
	if len(s) != 32 || strings.Trim(s, "0123456789abcdef") != "" {
		return ""
	}
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
