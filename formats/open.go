package formats

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
)

// Source opens the host files that images consist of, and closes them all in the end. It decides which names an image
// may reach: a hostile image must not make us read the host's files.
type Source interface {
	// Open opens an image that the user named.
	Open(name string) (*File, error)
	// Companion opens a file that the image file of names: beside it, or in a folder that the user allowed. An absent
	// file is an error that wraps fs.ErrNotExist and says where it was looked for; a name that may not be followed
	// (it climbs out, is a URL or a json: name) is an error that says so and what to do.
	Companion(of *File, name string, role Role) (*File, error)
}

// Format is one row of the table of formats.
type Format struct {
	Name string
	// Probe tells whether the file is of this format. It is pure and cheap: head holds the file's first bytes (up to
	// ProbeLen), and few more are read.
	Probe func(f *File, head []byte) bool
	// Members lists the images that a file of this format holds, where it holds several; else it is nil.
	Members func(f *File) ([]string, error)
	// Open reads the image's own structures. It returns an image whose Disk, Format, State, Files and so on are set;
	// Name and Number are the Opener's. Companions are opened through o.
	Open func(f *File, o *Opener) (*Image, error)
	// Check reports what is wrong in the image's own structure; nil where there is none to check. See Opener.Check.
	Check func(f *File, o *Opener, report func(Finding)) error
}

// ProbeLen is how many bytes of a file a probe sees without asking for more: 64 KiB holds every format's magic but
// those at the end, which a probe reads itself.
const ProbeLen = 64 << 10

// MaxChain bounds the layers of a backing chain. QEMU itself gets slow long before; 256 is more than any tool writes.
const MaxChain = 256

// Passphrase asks for the secret that opens what names (an image, a volume). ok is false when there is none. It is
// asked again for the same what when a secret turned out to be wrong, until ok is false.
type Passphrase func(what string) (secret []byte, ok bool)

// Opener opens images with their companions by the table of formats. The zero value of each option is the strict one.
type Opener struct {
	Formats []Format
	Source  Source
	Env     *Env
	// AllowMissing makes an absent layer a range of kind Missing instead of an error.
	AllowMissing bool
	// Unheld makes what no layer of a chain holds a range of kind Missing, instead of the zeros that it reads as: a backup
	// leaves out what nothing used. Formats without such ranges don't look at it.
	Unheld bool
	// Snapshot names the internal snapshot that the top image is opened at, by ID or name; empty: the active state.
	Snapshot string
	// Format forces the top image's format; empty: probed.
	Format string
	// Passphrase is asked for the secrets of encrypted images; nil: there are none.
	Passphrase Passphrase
	// Member names the image of a container that holds several. Open sets it from a name like web1.ova:disk2.vmdk.
	Member string

	n     *counters
	chain []string // keys of the files of the layers above, to cut cycles
	// probed says that this layer's format was guessed: it may not name further files.
	probed bool
}

type counters struct{ image, file int }

// Env is what reading needs at run time: decoded clusters kept for a while, and keys. It is shared by all the images
// and volumes of one run, and safe for concurrent use.
type Env struct {
	cache packCache
	keys  keyRing
}

// NewEnv makes an Env whose cache of decoded packs holds at most cacheBytes (0: DefaultCache).
func NewEnv(cacheBytes int64) *Env {
	if cacheBytes <= 0 {
		cacheBytes = DefaultCache
	}
	e := &Env{}
	e.cache.limit = cacheBytes
	return e
}

// DefaultCache bounds decoded clusters kept in memory: 16 MiB, that is 256 clusters of 64 KiB.
const DefaultCache = 16 << 20

// SetKey stores the secret of a key id, to be found by Keys.
func (e *Env) SetKey(id string, secret []byte) { e.keys.set(id, secret) }

// Keys finds secrets by id.
func (e *Env) Keys() codec.Keys { return e.keys.get }

// numbered is a disk whose extents carry the image's number.
type numbered struct {
	Disk
	n int
}

func (d numbered) ExtentAt(off, max int64) (Extent, error) {
	e, err := d.Disk.ExtentAt(off, max)
	e.Image = d.n
	return e, err
}

// Numbered makes a disk's extents say that they lie on image number n.
func Numbered(d Disk, n int) Disk {
	if n == 0 {
		return d
	}
	return numbered{d, n}
}

// Section is the n bytes of d from off, a partition for example. The caller has checked that they lie inside d.
func Section(d Disk, off, n int64) Disk { return section{d, off, n} }

type section struct {
	d      Disk
	off, n int64
}

func (s section) Size() int64 { return s.n }

func (s section) ReadAt(p []byte, off int64) (int, error) {
	return readClipped(s.d, p, s.off, off, s.n)
}

func (s section) ExtentAt(off, max int64) (Extent, error) {
	if off < 0 || off >= s.n {
		return Extent{}, fmt.Errorf("position %d outside a volume of %d bytes", off, s.n)
	}
	return s.d.ExtentAt(s.off+off, min(max, s.n-off))
}

// Open opens the image that the user named, with everything that it refers to. Images are numbered in the order in
// which they are opened.
func (o *Opener) Open(name string) (*Image, error) {
	o.start()
	f, member, err := o.find(name)
	if err != nil {
		return nil, err
	}
	o.number(f, RoleTop)
	format, assumed, err := o.choose(f, o.Format)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	layer := *o
	layer.chain, layer.Member = []string{f.Key}, member
	img, err := format.Open(f, &layer)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if o.Snapshot != "" && len(img.Snapshots) == 0 {
		return nil, fmt.Errorf("%s: it has no internal snapshot %q", name, o.Snapshot)
	}
	img.Number, img.Assumed = o.n.image, assumed
	img.Name = strings.TrimSuffix(filepath.Base(name), filepath.Ext(name))
	for _, f := range img.Files {
		if f.InUse {
			img.State = StateInUse
		}
		img.Notes = append(img.Notes, f.Notes...)
	}
	img.Disk = Numbered(img.Disk, img.Number)
	o.n.image++
	return img, nil
}

// find opens the file of a name, which may be CONTAINER:MEMBER where no file is called so.
func (o *Opener) find(name string) (f *File, member string, err error) {
	f, err = o.Source.Open(name)
	if i := strings.LastIndexByte(name, ':'); i > 0 && errors.Is(err, fs.ErrNotExist) {
		if c, e := o.Source.Open(name[:i]); e == nil {
			return c, name[i+1:], nil
		}
	}
	return f, o.Member, err
}

// Names gives the names under which Open opens all the images that a file holds: its own, or, where it is a container
// of several, one for each.
func (o *Opener) Names(name string) ([]string, error) {
	o.start()
	f, member, err := o.find(name)
	if err != nil {
		return nil, err
	}
	t, _, err := o.choose(f, o.Format)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if t.Members == nil || member != "" {
		return []string{name}, nil
	}
	names, err := t.Members(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for i := range names {
		names[i] = name + ":" + names[i]
	}
	return names, nil
}

// Inside opens the image that lies in a container, as it is, from base on. It may name no other files: what lies beside
// the container is not meant by it.
func (o *Opener) Inside(in *File, name string, base, size int64) (*Image, error) {
	f := &File{
		ReaderAt: io.NewSectionReader(in, base, size), Path: in.Path + ":" + name, Role: in.Role, Size: size, MTime: in.MTime,
		Image: in.Image, ID: in.ID, In: in, Base: base, InUse: in.InUse, Key: fmt.Sprintf("%s+%d", in.Key, base),
	}
	t, assumed, err := o.choose(f, "")
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	layer := *o
	layer.chain, layer.Member, layer.probed = append(slices.Clone(o.chain), f.Key), "", true
	if len(layer.chain) > 2 {
		return nil, ondisk.Unsupported("image", "containers in containers", -1, nil)
	}
	img, err := t.Open(f, &layer)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	img.Files, img.Assumed = []*File{in}, assumed
	return img, nil
}

func (o *Opener) start() {
	if o.n == nil {
		o.n = &counters{}
	}
	if o.Env == nil {
		o.Env = NewEnv(0)
	}
}

func (o *Opener) number(f *File, role Role) {
	f.Role, f.Image, f.ID = role, o.n.image, o.n.file
	o.n.file++
}

// choose finds the format of f: the one that is named, the one that claims it, or raw.
func (o *Opener) choose(f *File, name string) (Format, bool, error) {
	if name != "" {
		i := slices.IndexFunc(o.Formats, func(t Format) bool { return t.Name == name })
		if i < 0 {
			return Format{}, false, ondisk.Unsupported("image format", fmt.Sprintf("%q", name), -1, nil)
		}
		return o.Formats[i], false, nil
	}
	head := make([]byte, min(f.Size, ProbeLen))
	if n, err := f.ReadAt(head, 0); n < len(head) && err != nil && !errors.Is(err, io.EOF) {
		return Format{}, false, err
	}
	var hits []Format
	for _, t := range o.Formats {
		if t.Probe != nil && t.Probe(f, head) {
			hits = append(hits, t)
		}
	}
	switch len(hits) {
	case 1:
		return hits[0], false, nil
	case 0:
		i := slices.IndexFunc(o.Formats, func(t Format) bool { return t.Name == "raw" })
		if i < 0 {
			return Format{}, false, ondisk.Unsupported("image", "format unknown", -1, nil)
		}
		return o.Formats[i], true, nil
	}
	return Format{}, false, ondisk.Corrupt("image", fmt.Sprintf("it looks like %s and like %s; name one with --format", hits[0].Name, hits[1].Name), -1, nil)
}

// Companion opens a file that of names and that is no layer of its own: a descriptor's extent, an external data file.
// With AllowMissing an absent one is nil without an error.
func (o *Opener) Companion(of *File, name string, role Role) (*File, error) {
	if o.probed {
		return nil, fmt.Errorf("its format was guessed, so it may not name other files (%q): %w", name, ondisk.ErrUnsupported)
	}
	f, err := o.Source.Companion(of, name, role)
	if err != nil {
		if o.AllowMissing && errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return nil, err
	}
	if slices.Contains(o.chain, f.Key) {
		return nil, ondisk.Corrupt("image", fmt.Sprintf("%s refers to itself through %q", of.Path, name), -1, nil)
	}
	o.number(f, role)
	return f, nil
}

// Backing opens the layer that of names as the one below it. format is what the header says; where it says nothing
// the layer is probed, and what was probed may not name further files. size is used for a layer that is absent where
// AllowMissing lets it be: an image of that size whose every byte is missing, with the reason among its Problems.
func (o *Opener) Backing(of *File, name, format string, size int64) (*Image, error) {
	if len(o.chain) >= MaxChain {
		return nil, ondisk.Unsupported("image", "layers in the chain", -1, len(o.chain)+1)
	}
	allowed := *o
	allowed.AllowMissing = false
	f, err := allowed.Companion(of, name, RoleBacking)
	if err != nil {
		if o.AllowMissing && errors.Is(err, fs.ErrNotExist) {
			return &Image{Disk: NewDisk(absent(size), o.Env), Absent: true, Problems: []error{err}}, nil
		}
		return nil, err
	}
	t, assumed, err := o.choose(f, format)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	layer := *o
	layer.chain = append(slices.Clone(o.chain), f.Key)
	layer.Snapshot = ""
	layer.probed = format == ""
	img, err := t.Open(f, &layer)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Path, err)
	}
	img.Assumed = assumed
	return img, nil
}

// absent is the place of a layer that could not be found.
type absent int64

func (a absent) Size() int64 { return int64(a) }

func (a absent) ExtentAt(off, max int64) (Extent, error) {
	return Extent{Len: min(max, int64(a)-off), Kind: Missing, Disk: off}, nil
}
