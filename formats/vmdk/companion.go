package vmdk

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// companion opens the file of an extent's line. One that is not there under its own name is looked for under what it
// may be called now; it is taken if there is just one such file, and if it has the extent's size.
func (p *opening) companion(line extentLine) (*formats.File, error) {
	strict := *p.o
	strict.AllowMissing = false
	name := p.d.fileName(line.name)
	f, err := strict.Companion(p.f, name, formats.RoleExtent)
	if err == nil || !errors.Is(err, fs.ErrNotExist) && name == base(name) {
		return f, err
	}
	guesses := p.guesses(line.name, name)
	hits, keys := []string(nil), []string{p.f.Key}
	for _, g := range guesses {
		c, e := p.o.Source.Companion(p.f, g, formats.RoleExtent)
		if e == nil && !slices.Contains(keys, c.Key) && line.fits(c) {
			hits, keys = append(hits, g), append(keys, c.Key)
		}
	}
	switch len(hits) {
	case 0:
		return nil, err
	case 1:
		f, e := strict.Companion(p.f, hits[0], formats.RoleExtent)
		if e != nil {
			return nil, err
		}
		p.note("extent file %q is not there; %s was taken for it", line.name, hits[0])
		return f, nil
	}
	return nil, fmt.Errorf("%w; several files may be meant: %q", err, hits)
}

// fits tells whether a file has the size that the descriptor says.
func (e extentLine) fits(f *formats.File) bool {
	if e.flat() {
		return f.Size/sector >= e.offset && f.Size/sector-e.offset >= e.sectors
	}
	x, err := openSparse(f, 0)
	return err == nil && x.sectors >= e.sectors
}

// suffixRE takes apart an extent's name: what VMware adds to the descriptor's for a snapshot, and for the extent.
var suffixRE = regexp.MustCompile(`(?i)^.*?(-\d{6})?((?:-flat|-delta|-sesparse|-[sf]\d{3,5})\.vmdk)$`)

// snapshotRE takes the part off a descriptor's name that VMware adds for a snapshot.
var snapshotRE = regexp.MustCompile(`^(.*)-\d{6}$`)

// base gives the last part of a path in the manner of any system.
func base(name string) string { return path.Base(strings.ReplaceAll(name, `\`, "/")) }

// stem gives the name of the descriptor without folders and extension.
func (p *opening) stem() string {
	b := base(p.f.Path)
	return strings.TrimSuffix(b, path.Ext(b))
}

// guesses lists under which other names beside the descriptor a file may be that is not there under its own: as its
// bytes are, with the separators of this system, without its folders, with the base name that the descriptor has now,
// in lower case.
func (p *opening) guesses(names ...string) []string {
	last := names[len(names)-1]
	names = append(names, strings.ReplaceAll(last, `\`, "/"), base(last))
	if m := suffixRE.FindStringSubmatch(base(last)); m != nil {
		names = append(names, p.stem()+m[2], p.stem()+m[1]+m[2])
	}
	return spellings(names, last)
}

// spellings adds the names in lower case, and leaves out doubles and the name that was tried.
func spellings(names []string, tried string) []string {
	for _, n := range slices.Clone(names) {
		names = append(names, strings.ToLower(n))
	}
	var list []string
	for _, n := range names {
		if n != tried && n != "." && n != "/" && !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	return list
}

// openParent opens the disk that this one is the difference to.
func (p *opening) openParent() error {
	var name string
	switch d := p.d; {
	case d == nil && p.self.parent != "":
		return p.orphan(fmt.Sprintf("an extent of a snapshot of %q without a descriptor", p.self.parent))
	case d == nil, d.parent == "" && d.parentCID == noParent:
		return nil
	case d.parent == "" && d.parentCID == 0:
		p.note("parentCID 0 and no parent's name: taken for a disk without parent")
		return nil
	case d.parent == "":
		return p.orphan(fmt.Sprintf("vmdk descriptor: parentCID %08x, but the parent's name is not there", d.parentCID))
	default:
		name = d.fileName(d.parent)
	}
	names := []string{name}
	if c := p.d.parentCID; c != noParent && c != longCID && c != 0 { // else a CID proves nothing
		names = append(names, p.parentNames(name)...)
	}
	name, found := p.o.PickLayer(p.f, names, func(f *formats.File) bool {
		cid, ok := cidOf(f)
		return ok && cid == p.d.parentCID
	})
	if name != names[0] {
		p.note("parent %q is not there; %s, which has the CID that is wanted, was taken for it", names[0], name)
	}
	n := len(p.img.Files)
	var err error
	if p.disk.parent, err = p.o.OpenLayer(p.img, p.f, name, "vmdk", p.disk.size); err != nil {
		return err
	}
	// VMware and QEMU refuse to read what has another CID; here it is a problem, and the bytes are offered, as with a
	// checksum that fails.
	if !found && len(p.img.Files) > n {
		cid, _ := cidOf(p.img.Files[n])
		p.img.Problems = append(p.img.Problems, ondisk.Corrupt("vmdk descriptor",
			fmt.Sprintf("parent %s was changed after the snapshot, or is another disk: it has CID %08x, and parentCID is", name, cid), -1,
			fmt.Sprintf("%08x", p.d.parentCID)))
	}
	return nil
}

// orphan is a disk whose parent can't even be looked for.
func (p *opening) orphan(what string) error {
	err := fmt.Errorf("%s: %w", what, ondisk.ErrTruncated)
	if !p.o.AllowMissing {
		return err
	}
	p.img.Problems = append(p.img.Problems, err)
	p.disk.orphan = true
	return nil
}

func cidOf(f *formats.File) (cid uint32, ok bool) {
	text, _, err := readDescriptor(f)
	if err != nil || text == nil {
		return 0, false
	}
	d, err := parseDescriptor(text)
	if err != nil {
		return 0, false
	}
	return d.cid, d.hasCID
}

// parentNames lists which other names a parent may have, beside the descriptor.
func (p *opening) parentNames(name string) []string {
	b := base(name)
	names := []string{strings.ReplaceAll(name, `\`, "/"), b}
	if m := snapshotRE.FindStringSubmatch(p.stem()); m != nil {
		suffix := ""
		if s := strings.TrimSuffix(b, path.Ext(b)); snapshotRE.MatchString(s) {
			suffix = s[len(s)-len("-000001"):]
		}
		names = append(names, m[1]+suffix+".vmdk")
	}
	return spellings(names, name)
}
