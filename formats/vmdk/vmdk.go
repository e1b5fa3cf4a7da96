package vmdk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"sort"
	"strings"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Format is the row of the table.
var Format = formats.Format{Name: "vmdk", Probe: probe, Open: open, Check: check}

func probe(_ *formats.File, head []byte) bool {
	return isSparse(head) || isDescriptor(head)
}

func isSparse(head []byte) bool {
	if bytes.HasPrefix(head, []byte(magicHosted)) || bytes.HasPrefix(head, []byte(magicCOWD)) {
		return len(head) >= sector
	}
	// The magic number of seSparse is zeros for a half; the version makes it safe.
	return len(head) >= sector && bytes.HasPrefix(head, []byte(magicSE)) && head[12] == seVersion>>32
}

// disk is the whole virtual disk.
type disk struct {
	size      int64
	parts     []part
	parent    formats.Layer
	orphan    bool // there is a parent, but it can't even be looked for
	encrypted bool
}

// part is where a layer lies on the disk.
type part struct {
	start, end int64
	layer      layer
}

func (d *disk) Size() int64 { return d.size }

func (d *disk) ExtentAt(off, max int64) (formats.Extent, error) {
	p := &d.parts[0]
	if off >= p.end {
		p = &d.parts[sort.Search(len(d.parts), func(i int) bool { return off < d.parts[i].end })]
	}
	e, err := p.layer.extentAt(off-p.start, min(max, p.end-off))
	switch {
	case e.Kind == unallocated && d.orphan:
		e.Kind = formats.Missing
	case e.Kind == unallocated:
		return d.parent.ExtentAt(off, e.Len)
	case d.encrypted && (e.Kind == formats.Data || e.Kind == formats.Packed):
		e = formats.Extent{Len: e.Len, Kind: formats.Encrypted}
	}
	e.Disk = off
	return e, err
}

// plain is a flat extent: a file's bytes from base on. What the file lacks is missing.
type plain struct {
	formats.Mapper
	base int64
}

func (p plain) extentAt(off, max int64) (formats.Extent, error) {
	off += p.base
	if off >= p.Size() {
		return formats.Extent{Len: max, Kind: formats.Missing}, nil
	}
	return p.ExtentAt(off, min(max, p.Size()-off))
}

// blank is an extent without a file: zeros, or bytes that are missing.
type blank formats.Kind

func (b blank) extentAt(_, max int64) (formats.Extent, error) {
	return formats.Extent{Len: max, Kind: formats.Kind(b)}, nil
}

// opening is an image that is being opened.
type opening struct {
	f   *formats.File
	o   *formats.Opener
	d   *descriptor // nil: a sparse extent that has none
	img *formats.Image
	// self is the extent in the descriptor's own file, or nil.
	self  *extent
	disk  *disk
	files map[string]*formats.File // that the descriptor lists, by name
	// sparse are the sparse extents, for Check.
	sparse []*extent
	cache  int64 // of tables, for each extent
}

func open(f *formats.File, o *formats.Opener) (*formats.Image, error) {
	p, err := prepare(f, o)
	if err != nil {
		return nil, err
	}
	return p.img, nil
}

// prepare opens the disk with all its extents and its parent.
func prepare(f *formats.File, o *formats.Opener) (*opening, error) {
	p := &opening{
		f: f, o: o, disk: &disk{}, files: map[string]*formats.File{}, cache: tableCache,
		img: &formats.Image{Format: "vmdk", State: formats.StateClean, Files: []*formats.File{f}},
	}
	text, sparse, err := readDescriptor(f)
	if err != nil {
		return nil, err
	}
	if text != nil {
		if p.d, err = parseDescriptor(text); err != nil {
			return nil, err
		}
		if err := p.refuse(); err != nil {
			return nil, err
		}
	}
	if sparse {
		if p.self, err = openSparse(f, p.cache); err != nil {
			return nil, err
		}
		p.sparse = append(p.sparse, p.self)
	}
	if err := p.extents(); err != nil {
		return nil, err
	}
	if err := p.openParent(); err != nil {
		return nil, err
	}
	p.img.Disk = formats.NewDisk(p.disk, o.Env)
	return p, nil
}

// readDescriptor gives the text that describes the disk, nil if there is none, and tells whether the file is a sparse
// extent itself.
func readDescriptor(f *formats.File) (text []byte, sparse bool, err error) {
	off, n, sparse, err := findDescriptor(f)
	if err != nil || n == 0 {
		return nil, sparse, err
	}
	if text, err = ondisk.Read(f, off, n, "vmdk descriptor"); err != nil || off == 0 {
		return text, sparse, err
	}
	// The parts of a split disk have room for a descriptor, and nothing in it.
	if text, _, _ = bytes.Cut(text, []byte{0}); len(bytes.TrimSpace(text)) == 0 {
		return nil, true, nil
	}
	return text, sparse, nil
}

// findDescriptor tells where the descriptor lies, at byte 0 where the file is nothing else, and how many bytes are
// there for it: 0 where there is none.
func findDescriptor(f *formats.File) (off, n int64, sparse bool, err error) {
	head := make([]byte, min(f.Size, 4096))
	if err := ondisk.ReadFull(f, head, 0, "vmdk"); err != nil {
		return 0, 0, false, err
	}
	switch {
	case !isSparse(head) && !isDescriptor(head):
		return 0, 0, false, &ondisk.Error{What: "vmdk", Off: 0, Err: ondisk.ErrNot}
	case !isSparse(head):
		if f.Size > maxDescriptor {
			return 0, 0, false, ondisk.Corrupt("vmdk descriptor", "length", -1, f.Size)
		}
		return 0, f.Size, false, nil
	case !bytes.HasPrefix(head, []byte(magicHosted)):
		return 0, 0, true, nil
	}
	h, err := readHosted(f)
	if err != nil {
		return 0, 0, true, err
	}
	// Without a capacity the descriptor lists other files (QEMU: vmdk_open_vmdk4).
	sparse = h.Capacity > 0 || h.GDOffset == gdAtEnd
	if h.DescOffset == 0 || h.DescSize == 0 {
		return 0, 0, true, nil
	}
	if h.DescOffset > maxCapacity || h.DescSize > maxDescriptor/sector {
		return 0, 0, sparse, ondisk.Corrupt("vmdk header", "place of the descriptor", 28, fmt.Sprintf("sector %d, %d sectors", h.DescOffset, h.DescSize))
	}
	return int64(h.DescOffset) * sector, int64(h.DescSize) * sector, sparse, nil
}

// refuse turns away what has its bytes elsewhere than in files.
func (p *opening) refuse() error {
	what := func(s string) error {
		return ondisk.Unsupported("vmdk descriptor", s+": its bytes lie on a device or in a store of the hypervisor, not in files", -1, nil)
	}
	switch strings.ToLower(p.d.createType) {
	case "fulldevice", "partitioneddevice", "vmfsraw", "vmfsrdm", "vmfsrdmp", "vmfsrawdevicemap", "vmfspassthroughrawdevicemap", "vsansparse":
		return what("createType " + p.d.createType)
	}
	for _, e := range p.d.extents {
		switch e.kind {
		case "FLAT", "VMFS", "SPARSE", "VMFSSPARSE", "SESPARSE", "ZERO":
		case "VMFSRDM", "VMFSRAW", "VSANSPARSE":
			return what(fmt.Sprintf("line %d: extent of type %s", e.line, e.kind))
		default:
			return ondisk.Unsupported("vmdk descriptor", fmt.Sprintf("line %d: extent type", e.line), -1, e.kind)
		}
		switch scheme, _, ok := strings.Cut(e.name, "://"); {
		case ok && strings.EqualFold(scheme, "vsan"):
			return what(fmt.Sprintf("line %d: extent %q", e.line, e.name))
		case strings.HasPrefix(e.name, `\\.\`), strings.HasPrefix(e.name, "/dev/"):
			return what(fmt.Sprintf("line %d: extent %q", e.line, e.name))
		}
	}
	return nil
}

// extents lays the extents one after another.
func (p *opening) extents() error {
	if p.d != nil && p.d.encrypted {
		p.img.Encryption, p.disk.encrypted = "vmware", true
	}
	lines := []extentLine{{sectors: -1, kind: "SPARSE"}}
	if p.d != nil && (p.self == nil || len(p.d.extents) > 1) {
		lines = p.d.extents
	}
	if len(lines) == 0 {
		return ondisk.Corrupt("vmdk descriptor", "no extents", -1, nil)
	}
	p.cache = tableCache / int64(len(lines))
	for i, line := range lines {
		x := p.self
		if i > 0 || x == nil {
			var err error
			if x, err = p.extent(line); err != nil {
				return err
			}
		}
		if line.sectors < 0 {
			line.sectors = x.sectors
		}
		if err := p.add(line, x); err != nil {
			return err
		}
	}
	if p.self != nil && p.d != nil && len(p.d.extents) == 1 && p.d.extents[0].sectors != p.self.sectors {
		p.note("the descriptor says %d sectors, the extent's header %d; the header counts", p.d.extents[0].sectors, p.self.sectors)
	}
	if p.self != nil && p.d == nil {
		p.img.Problems = append(p.img.Problems, fmt.Errorf(
			"an extent without a descriptor: what it doesn't hold is taken for zeros, but there may be more extents, or a parent; open the disk by its descriptor: %w",
			ondisk.ErrTruncated))
	}
	return nil
}

// add appends an extent to the disk.
func (p *opening) add(line extentLine, x *extent) error {
	if line.sectors == 0 {
		return nil
	}
	if line.sectors > maxCapacity-p.disk.size/sector {
		return ondisk.Corrupt("vmdk descriptor", fmt.Sprintf("line %d: extents of more than 1 EiB", line.line), -1, line.sectors)
	}
	p.img.Notes = append(p.img.Notes, x.notes...)
	p.img.Problems = append(p.img.Problems, x.problems...)
	if x.unclean && p.img.State == formats.StateClean {
		p.img.State = formats.StateDirty
		p.note("it was not closed: its last writes may be lost")
	}
	put := func(l layer, n int64) {
		start := p.disk.size
		p.disk.size += n * sector
		p.disk.parts = append(p.disk.parts, part{start, p.disk.size, l})
	}
	if x.sectors >= line.sectors {
		put(x.layer, line.sectors)
		return nil
	}
	p.img.Problems = append(p.img.Problems, ondisk.Truncated("vmdk descriptor", fmt.Sprintf("line %d: extent %q of %d sectors", line.line, line.name, line.sectors), -1, x.sectors))
	if line.flat() { // it knows itself where its file ends, to the byte
		put(x.layer, line.sectors)
		return nil
	}
	if x.sectors > 0 {
		put(x.layer, x.sectors)
	}
	put(blank(formats.Missing), line.sectors-x.sectors)
	return nil
}

// extent opens the file of a line.
func (p *opening) extent(line extentLine) (*extent, error) {
	if line.kind == "ZERO" {
		return &extent{layer: blank(formats.Zero), sectors: line.sectors}, nil
	}
	f := p.files[line.name]
	if f == nil {
		var err error
		if f, err = p.companion(line); err != nil {
			if p.o.AllowMissing && errors.Is(err, fs.ErrNotExist) {
				p.img.Problems = append(p.img.Problems, err)
				return &extent{layer: blank(formats.Missing), sectors: line.sectors}, nil
			}
			return nil, err
		}
		p.files[line.name] = f
		p.img.Files = append(p.img.Files, f)
	}
	if line.flat() {
		base := line.offset * sector
		return &extent{layer: plain{formats.Plain(f), base}, sectors: max(0, (f.Size-base)/sector)}, nil
	}
	x, err := openSparse(f, p.cache)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	x.in(f.Path)
	p.sparse = append(p.sparse, x)
	return x, nil
}

func (e extentLine) flat() bool { return e.kind == "FLAT" || e.kind == "VMFS" }

func (p *opening) note(format string, args ...any) {
	p.img.Notes = append(p.img.Notes, fmt.Sprintf(format, args...))
}
