package clone

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// A QEMU machine's configuration is its command line. The clone gets one of its own, as a shell script, that names the
// clone's disks, and reaches nothing outside: no network, no socket or file that the machine's devices lead to.

// What becomes of an option of QEMU.
type action int

const (
	keep    action = iota // with its argument
	flag                  // kept, and has no argument
	drop                  // with its argument
	dropped               // has no argument
	disk                  // its argument is an image that is written to
	file                  // its argument is a file that is read
	special
)

// options tells what becomes of which option; those that aren't here are kept, with an argument if one follows.
var options = map[string]action{
	"nodefaults": flag, "no-user-config": flag, "snapshot": flag, "no-reboot": flag, "no-shutdown": flag,
	"no-acpi": flag, "no-hpet": flag, "no-fd-bootchk": flag, "enable-kvm": flag, "full-screen": flag, "win2k-hack": flag,
	"usb": flag, "alt-grab": flag, "ctrl-grab": flag, "no-quit": flag, "singlestep": flag, "mem-prealloc": flag,
	"semihosting": flag, "old-param": flag, "nodefconfig": flag, "enable-fips": flag, "show-cursor": flag,

	"nographic": dropped, "curses": dropped, "daemonize": dropped, "S": dropped, "s": dropped, "preconfig": dropped, "xen-attach": dropped,

	"monitor": drop, "qmp": drop, "qmp-pretty": drop, "mon": drop, "pidfile": drop, "chroot": drop, "runas": drop, "run-with": drop,
	"D": drop, "incoming": drop, "loadvm": drop, "vnc": drop, "spice": drop, "gdb": drop, "add-fd": drop, "name": drop, "uuid": drop,
	"net": drop, "nic": drop, "virtfs": drop, "fsdev": drop, "writeconfig": drop, "tpmdev": drop, "mem-path": drop, "trace": drop,
	"display": drop, "qtest": drop, "qtest-log": drop,

	"hda": disk, "hdb": disk, "hdc": disk, "hdd": disk, "fda": disk, "fdb": disk, "sd": disk, "mtdblock": disk, "pflash": disk,
	"cdrom": file, "kernel": file, "initrd": file, "dtb": file, "bios": file,

	"drive": special, "blockdev": special, "device": special, "object": special, "netdev": special, "chardev": special,
	"serial": special, "parallel": special, "debugcon": special, "audiodev": special, "usbdevice": special, "fw_cfg": special,
	"smbios": special, "acpitable": special, "readconfig": special,
}

// command rewrites a command line.
type command struct {
	c   *Clone
	out [][]string // an option and its argument each
}

// writeCommand writes the script that starts the clone.
func (c *Clone) writeCommand() error {
	r := &command{c: c}
	if err := r.rewrite(c.vm.Command); err != nil {
		c.problem(runName, "the machine's command line can't be rewritten: %v", err)
		return nil
	}
	var b strings.Builder
	b.WriteString("#!/bin/sh\n# Starts this clone. Its network leads nowhere. What is given to this script is given to QEMU.\n")
	b.WriteString("cd \"$(dirname \"$0\")\" || exit\nexec")
	for i, words := range r.out {
		if i > 0 {
			b.WriteString(" \\\n\t")
		}
		for _, w := range words {
			b.WriteString(" '" + strings.ReplaceAll(w, "'", `'\''`) + "'")
		}
	}
	b.WriteString(" \\\n\t\"$@\"\n")
	return c.make(runName, roleCommand, []byte(b.String()), 0o777)
}

func (r *command) rewrite(args []string) error {
	program := args[0]
	if strings.Contains(program, "/") {
		program = r.absolute(program)
	}
	r.out = append(r.out, []string{program})
	r.add("name", "guest="+escape(r.c.name))
	r.add("uuid", newUUID())
	r.add("display", "none")
	r.add("nic", "none")
	for args = args[1:]; len(args) > 0; {
		name, isOption := strings.CutPrefix(args[0], "-")
		name = strings.TrimPrefix(name, "-")
		if !isOption {
			path, err := r.disk(args[0])
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			r.out = append(r.out, []string{path})
			args = args[1:]
			continue
		}
		act, known := options[name]
		if act == flag || act == dropped || !known && (len(args) == 1 || strings.HasPrefix(args[1], "-")) {
			if act != dropped {
				r.out = append(r.out, args[:1])
			}
			args = args[1:]
			continue
		}
		if len(args) == 1 {
			return fmt.Errorf("%s has no argument", args[0])
		}
		if err := r.option(name, act, args[1]); err != nil {
			return fmt.Errorf("%s %s: %w", args[0], args[1], err)
		}
		args = args[2:]
	}
	return nil
}

// option rewrites an option with an argument.
func (r *command) option(name string, act action, arg string) error {
	switch act {
	case drop:
		return nil
	case disk:
		path, err := r.disk(arg)
		if err != nil {
			return err
		}
		r.add(name, path)
		return nil
	case file:
		r.add(name, r.place(arg))
		return nil
	case special:
		return r.special(name, arg)
	}
	if strings.Contains(arg, "/") {
		r.c.note("%s passes %q on to QEMU as the machine does", runName, "-"+name+" "+arg)
	}
	r.add(name, arg)
	return nil
}

func (r *command) add(name, arg string) { r.out = append(r.out, []string{"-" + name, arg}) }

// errOutside says that the machine writes to what the clone has no copy of.
var errOutside = errors.New("it is written to, and is not among the machine's files")

// disk gives the clone's copy of an image that the machine writes to.
func (r *command) disk(name string) (string, error) {
	it := r.c.find(r.c.vm.Dir, qemuPath(name))
	if it == nil {
		return "", errOutside
	}
	return "./" + it.name, nil
}

// place gives the path of a file that is only read: the clone's, or the machine's.
func (r *command) place(name string) string {
	if it := r.c.find(r.c.vm.Dir, qemuPath(name)); it != nil {
		return "./" + it.name
	}
	return r.absolute(name)
}

func (r *command) absolute(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(r.c.vm.Dir, name)
}

func (r *command) special(name, arg string) error {
	switch name {
	case "readconfig":
		return errors.New("the machine's devices stand in a file")
	case "serial", "parallel", "debugcon":
		if arg != "none" && !strings.HasPrefix(arg, "chardev:") {
			arg = "null"
		}
		r.add(name, arg)
		return nil
	case "usbdevice":
		if !strings.Contains(arg, ":") {
			r.add(name, arg)
		}
		return nil
	}
	p, err := parseProps(arg)
	if err != nil {
		return err
	}
	switch name {
	case "drive", "blockdev":
		if err := r.image(p, name == "drive"); err != nil {
			return err
		}
	case "netdev":
		// The card stays, on a hub of its own that nothing else is on.
		p = hubport(p.get("id"), len(r.out))
	case "chardev":
		p = &props{list: []prop{{"", "null"}, {"id", p.get("id")}}}
	case "audiodev":
		p = &props{list: []prop{{"", "none"}, {"id", p.get("id")}}}
	case "device":
		if !r.device(p) {
			return nil
		}
	case "object":
		if !r.object(p) {
			return nil
		}
	default: // -fw_cfg, -smbios, -acpitable
		if f := p.get("file"); f != "" {
			p.set("file", r.place(f))
		}
	}
	r.add(name, p.String())
	return nil
}

func hubport(id string, n int) *props {
	return &props{list: []prop{{"", "hubport"}, {"hubid", fmt.Sprint(n)}, {"id", id}}}
}

// image rewrites the files of -drive and -blockdev. "file" is a file's name in the former, a node's in the latter.
func (r *command) image(p *props, drive bool) error {
	local := func(it *item) string { return "./" + it.name }
	var others []string
	if p.tree != nil {
		others = r.c.renameNodes(p.tree, nil, local)
	}
	for i, kv := range p.list {
		part := kv.key[strings.LastIndexByte(kv.key, '.')+1:]
		text, isJSON := strings.CutPrefix(kv.value, "json:")
		switch {
		case (part == "driver" || i == 0 && part == "") && !slices.Contains(localDrivers, kv.value):
			others = append(others, kv.value+":")
		case part != "filename" && (kv.key != "file" || !drive), kv.value == "":
		case isJSON:
			tree, err := parseNodes(text)
			if err != nil {
				return err
			}
			others = append(others, r.c.renameNodes(tree, nil, local)...)
			b, err := json.Marshal(tree)
			if err != nil {
				return err
			}
			p.list[i].value = "json:" + string(b)
		default:
			if it := r.c.find(r.c.vm.Dir, qemuPath(kv.value)); it != nil {
				p.list[i].value = local(it)
			} else {
				others = append(others, kv.value)
				p.list[i].value = r.absolute(kv.value)
			}
		}
	}
	if len(others) == 0 || p.get("media") == "cdrom" || p.on("readonly") || p.on("read-only") {
		return nil
	}
	return fmt.Errorf("%q: %w", others[0], errOutside)
}

// foreign are devices that reach into the host, by the beginnings of their names.
var foreign = []string{"vfio-", "usb-host", "usb-redir", "virtio-9p", "vhost-", "ivshmem", "tpm-", "pvpanic-pci-host"}

// device tells whether the clone has a device; its network address is a new one.
func (r *command) device(p *props) bool {
	driver := p.get("driver")
	for _, f := range foreign {
		if strings.HasPrefix(driver, f) {
			r.c.note("a device %s, which reaches into the host, is not in the clone", driver)
			return false
		}
	}
	if p.get("mac") != "" {
		p.set("mac", newMAC(0x52, 0x54, 0x00))
	}
	return true
}

// object tells whether the clone has an object; memory is its own.
func (r *command) object(p *props) bool {
	switch kind := p.get("qom-type"); {
	case kind == "memory-backend-file":
		r.c.note("memory of the machine that lies in a file is ordinary memory in the clone")
		p.set("qom-type", "memory-backend-ram")
		for _, key := range []string{"mem-path", "share", "pmem", "align", "discard-data", "readonly"} {
			p.delete(key)
		}
	case strings.HasPrefix(kind, "secret"):
		if f := p.get("file"); f != "" {
			p.set("file", r.place(f))
		}
	case strings.HasPrefix(kind, "filter-"), strings.HasPrefix(kind, "can-host"), kind == "input-linux", strings.HasPrefix(kind, "colo-"):
		r.c.note("an object %s, which reaches into the host, is not in the clone", kind)
		return false
	}
	return true
}

// prop is a key and its value, as QEMU's options have them.
type prop struct{ key, value string }

// props are the properties of an option: a list, in which commas in values are doubled, or JSON.
type props struct {
	list []prop
	tree map[string]any // nil: list
}

// implied are the keys whose values come first without them.
var implied = []string{"driver", "qom-type", "type"}

func parseProps(arg string) (*props, error) {
	if strings.HasPrefix(arg, "{") {
		tree, err := parseNodes(arg)
		return &props{tree: tree}, err
	}
	p := &props{}
	const comma = "\x00" // no argument of a command holds it
	for i, part := range strings.Split(strings.ReplaceAll(arg, ",,", comma), ",") {
		part = strings.ReplaceAll(part, comma, ",")
		key, value, ok := strings.Cut(part, "=")
		switch {
		case !ok && i > 0:
			key, value = part, "on" // what a key alone means
		case !ok:
			key, value = "", part
		}
		if key == "" && (ok || i > 0) || strings.Contains(key, ",") {
			return nil, fmt.Errorf("%q is no property", part)
		}
		p.list = append(p.list, prop{key, value})
	}
	return p, nil
}

// index finds a key, or what stands in its place without it.
func (p *props) index(key string) int {
	i := slices.IndexFunc(p.list, func(kv prop) bool { return kv.key == key })
	if i < 0 && len(p.list) > 0 && p.list[0].key == "" && slices.Contains(implied, key) {
		return 0
	}
	return i
}

func (p *props) get(key string) string {
	if p.tree != nil {
		s, _ := p.tree[key].(string)
		return s
	}
	if i := p.index(key); i >= 0 {
		return p.list[i].value
	}
	return ""
}

func (p *props) on(key string) bool {
	if p.tree != nil {
		b, _ := p.tree[key].(bool)
		return b
	}
	return p.get(key) == "on" || p.get(key) == "true" || p.get(key) == "yes"
}

func (p *props) set(key, value string) {
	if p.tree != nil {
		p.tree[key] = value
	} else if i := p.index(key); i >= 0 {
		p.list[i].value = value
	}
}

func (p *props) delete(key string) {
	delete(p.tree, key)
	p.list = slices.DeleteFunc(p.list, func(kv prop) bool { return kv.key == key })
}

func (p *props) String() string {
	if p.tree != nil {
		b, err := json.Marshal(p.tree)
		if err != nil {
			return "" // it was JSON before
		}
		return string(b)
	}
	var parts []string
	for _, kv := range p.list {
		if kv.key == "" {
			parts = append(parts, escape(kv.value))
		} else {
			parts = append(parts, kv.key+"="+escape(kv.value))
		}
	}
	return strings.Join(parts, ",")
}

// escape doubles the commas of a value.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
