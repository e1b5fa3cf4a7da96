package repo

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	mathrand "math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/formats/qcow2"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// Options says how points are made.
type Options struct {
	Full        bool // even where there is a parent
	Incremental bool // an error where there is none
	Reread      bool // read everything, whatever tells of changes
	AllBlocks   bool // leave out nothing
	WithoutSwap bool // leave out what swap and hibernation hold
	// Sample is how much of what nothing says to have changed is read and compared all the same: 0 to 1.
	Sample float64
	// Verify says how much is read back from the repository: "sample", "full", "none".
	Verify      string
	Compression string // "zstd", "zlib", "none"
	Cluster     int64  // bytes, in full points; 0: as the point before, or qcow2.DefaultCluster
	Chain       int    // points in a chain at most; 0: any number
	Ranges      *ChangedRanges
	Bitmap      string // name of a persistent bitmap to believe, besides those of the point before
	Run, Tool   string
	Warn        func(format string, args ...any)
	Progress    func(bytes int64)
}

// Machine is what a point is made of.
type Machine struct {
	Name   string
	Images []*formats.Image // its disks
	Disks  []string         // their names, or nil
	// Build makes the map of the images.
	Build func(context.Context, fsmap.Config, *mapfile.Writer) (fsmap.Summary, error)
	// Open opens another image, the parent's source, in the same way as these; nil: that isn't wanted.
	Open func(name string) (*formats.Image, func(), error)
	// Config is what goes into the map's making besides: what is told of problems and notes.
	Config fsmap.Config
	At     time.Time       // the instant that the images show
	Clone  json.RawMessage // the clone record as it came
	VM     *mapfile.VM
	Files  []ConfigFile
}

// ConfigFile is a file of a machine's configuration on this host.
type ConfigFile struct{ Path, Role string }

// maker makes one point.
type maker struct {
	Options
	s       Store
	m       *Machine
	p       *Point
	chain   []*Point // the parent's, the parent last; empty for a full point
	survey  survey
	mapFile StoredFile
	names   []string // of files that were written
	host    bool     // the machine is this host, whose files lie in one disk
	// fallback says why no point is built upon, though there is one.
	fallback string
}

// Backup makes a point of a machine.
func Backup(ctx context.Context, s Store, m *Machine, o Options) (*Point, error) {
	b := &maker{Options: o, s: s, m: m}
	return b.run(ctx, b.make)
}

// run makes a point by make, which is given the points that there are, and commits it.
func (b *maker) run(ctx context.Context, make func(context.Context, []*Point) error) (*Point, error) {
	s, m := b.s, b.m
	if err := ValidMachine(m.Name); err != nil {
		return nil, err
	}
	unlock, err := s.Lock(ctx, m.Name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	points, err := Points(ctx, s, m.Name)
	if err != nil && len(points) == 0 {
		return nil, err
	}
	if err != nil {
		// The files of a point that can't be read look like those of none.
		b.Warn("%s: what interrupted runs left is not removed: %v", m.Name, err)
	} else if err := tidy(ctx, s, m.Name, points, b.Warn); err != nil {
		return nil, err
	}
	start := time.Now()
	b.p = &Point{Version: PointVersion, Machine: m.Name, Name: NewPointName(m.At, points), Tool: b.Tool, Run: b.Run, At: m.At.UTC(), Clone: m.Clone}
	if err = make(ctx, points); err == nil {
		b.p.Made = time.Now().UTC()
		b.p.Seconds = time.Since(start).Seconds()
		err = WritePoint(ctx, s, b.p, true)
	}
	if err != nil {
		// What is left after that, the next run removes.
		s.Remove(context.WithoutCancel(ctx), b.names...)
		return nil, fmt.Errorf("%s: %w", m.Name, err)
	}
	return b.p, nil
}

// tidy removes what interrupted runs left.
func tidy(ctx context.Context, s Store, machine string, points []*Point, warn func(string, ...any)) error {
	left, err := Unfinished(ctx, s, machine, points)
	if err != nil || len(left) == 0 {
		return err
	}
	warn("%s: an earlier run was interrupted: its %d files are removed", machine, len(left))
	return s.Remove(ctx, left...)
}

func (b *maker) make(ctx context.Context, points []*Point) error {
	for i, img := range b.m.Images {
		d := Disk{Name: fmt.Sprintf("disk%d", i), Format: img.Format, Size: img.Size()}
		if i < len(b.m.Disks) && b.m.Disks[i] != "" {
			d.Name = b.m.Disks[i]
		}
		for _, f := range img.Files {
			d.Source = append(d.Source, SourceFile{f.Path, f.Size, f.MTime.UTC()})
		}
		if slices.ContainsFunc(b.p.Disks, func(x Disk) bool { return x.Name == d.Name }) {
			return fmt.Errorf("two disks are called %q", d.Name)
		}
		b.p.Disks = append(b.p.Disks, d)
	}
	why, err := b.choose(ctx, points)
	if err != nil {
		return err
	}
	if why == "" {
		if err := b.look(ctx, true); err != nil {
			return err
		}
		if b.survey.parent != nil && b.survey.parent.another(b.survey.names) {
			why = "another disk: it has no file system of the point before"
		}
	} else if err := b.look(ctx, false); err != nil {
		return err
	}
	if err := b.fall(why, len(points) > 0); err != nil {
		return err
	}
	err = b.disks(ctx)
	if x := (*wrongParent)(nil); errors.As(err, &x) && !b.Incremental {
		b.Warn("%s: a full point is made: %v", b.m.Name, x)
		b.chain = nil
		err = b.again(ctx, x.Error())
	}
	if err != nil {
		return err
	}
	if err := b.config(ctx); err != nil {
		return err
	}
	err = b.readBack(ctx)
	if x := (*differs)(nil); errors.As(err, &x) && b.hinted() {
		b.Warn("%s: everything is read: %v", b.m.Name, err)
		b.Reread = true
		if err = b.again(ctx, err.Error()); err == nil {
			err = b.readBack(ctx)
		}
	}
	return err
}

// fall makes the point a full one, where there is a reason.
func (b *maker) fall(why string, before bool) error {
	switch {
	case why == "":
		return nil
	case b.Incremental:
		return fmt.Errorf("no incremental point can be made: %s", why)
	}
	if b.chain = nil; before && !b.Full {
		b.Warn("%s: a full point is made: %s", b.m.Name, why)
		b.fallback = why
	}
	return nil
}

// hinted tells whether a disk's changes were taken from somewhere.
func (b *maker) hinted() bool {
	return slices.ContainsFunc(b.p.Disks, func(d Disk) bool { return d.Changes != changesFull && d.Changes != changesReread })
}

// again writes the images anew, for a reason.
func (b *maker) again(ctx context.Context, why string) error {
	b.fallback = why
	images := slices.DeleteFunc(slices.Clone(b.names), func(name string) bool {
		return !strings.HasSuffix(name, imageEnd) && !strings.HasSuffix(name, sumsEnd)
	})
	b.names = slices.DeleteFunc(b.names, func(name string) bool { return slices.Contains(images, name) })
	if err := b.s.Remove(ctx, images...); err != nil {
		return err
	}
	return b.disks(ctx)
}

// disks writes the images of all disks.
func (b *maker) disks(ctx context.Context) error {
	b.p.Parent, b.p.Totals = "", Totals{}
	for _, f := range b.p.Config {
		b.p.Stored += f.Size
	}
	if len(b.chain) > 0 {
		b.p.Parent = b.chain[len(b.chain)-1].Name
	}
	for n := range b.p.Disks {
		d := &b.p.Disks[n]
		d.Fallback, d.Notes = b.fallback, nil
		if err := b.disk(ctx, n); err != nil {
			return fmt.Errorf("%s: %w", d.Name, err)
		}
		for _, x := range b.survey.leftOut {
			d.Notes = append(d.Notes, "left out: "+x)
		}
		b.p.add(&d.Totals)
	}
	return nil
}

func (t *Totals) add(o *Totals) {
	t.Size += o.Size
	t.Used += o.Used
	t.Read += o.Read
	t.Changed += o.Changed
	t.Stored += o.Stored
}

// choose finds the parent and its chain, or says why there is none.
func (b *maker) choose(ctx context.Context, points []*Point) (why string, err error) {
	if b.Full {
		return "it was asked for", nil
	}
	byName := map[string]*Point{}
	var last *Point
	for _, p := range points {
		byName[p.Name] = p
		if !p.Hidden {
			last = p
		}
	}
	if last == nil {
		return "there is no point to build upon", nil
	}
	var chain []*Point
	for p := last; p != nil; p = byName[p.Parent] {
		if chain = append(chain, p); len(chain) > formats.MaxChain/2 {
			return "the chain of points is too long", nil
		}
		if p.Parent != "" && byName[p.Parent] == nil {
			return fmt.Sprintf("point %s, which point %s builds upon, is not there", p.Parent, p.Name), nil
		}
	}
	if b.Chain > 0 && len(chain) >= b.Chain {
		return fmt.Sprintf("the chain has %d points", len(chain)), nil
	}
	if why := b.otherDisks(last); why != "" {
		return why, nil
	}
	for _, p := range chain {
		for i := range p.Disks {
			if why, err := b.lacks(ctx, p, &p.Disks[i].Image); why != "" || err != nil {
				return why, err
			}
		}
	}
	slices.Reverse(chain)
	b.chain = chain
	return "", nil
}

// otherDisks says in what the machine's disks are not those of the last point.
func (b *maker) otherDisks(last *Point) string {
	if len(last.Disks) != len(b.p.Disks) {
		return fmt.Sprintf("the point before has %d disks, the machine now %d", len(last.Disks), len(b.p.Disks))
	}
	for i := range b.p.Disks {
		was, is := &last.Disks[i], &b.p.Disks[i]
		switch {
		case was.Name != is.Name:
			return fmt.Sprintf("disk %d was %s and is %s", i, was.Name, is.Name)
		case was.Size != is.Size && !b.host:
			return fmt.Sprintf("%s had %d bytes and has %d", is.Name, was.Size, is.Size)
		case b.Cluster != 0 && was.Cluster != b.Cluster:
			return fmt.Sprintf("%s has clusters of %d bytes", is.Name, was.Cluster)
		}
	}
	return ""
}

// lacks says what is wrong with an image of the chain, as far as its name and length tell.
func (b *maker) lacks(ctx context.Context, p *Point, f *StoredFile) (why string, err error) {
	o, err := b.s.Open(ctx, path.Join(p.Machine, f.Name))
	if errors.Is(err, ErrNotExist) {
		return fmt.Sprintf("%s of point %s is not there", f.Name, p.Name), nil
	}
	if err != nil {
		return "", err
	}
	defer o.Close()
	if o.Size() != f.Size {
		return fmt.Sprintf("%s of point %s has %d bytes, not %d", f.Name, p.Name, o.Size(), f.Size), nil
	}
	return "", nil
}

// create begins a file of the point.
func (b *maker) create(ctx context.Context, name string) (*hashedWriter, error) {
	w, err := b.s.Create(ctx, path.Join(b.m.Name, name), true)
	if err != nil {
		return nil, err
	}
	b.names = append(b.names, path.Join(b.m.Name, name))
	return &hashedWriter{w, sha256.New(), name}, nil
}

// hashedWriter takes the hash of what is written in order.
type hashedWriter struct {
	Writer
	hash hash.Hash
	name string
}

func (h *hashedWriter) Write(p []byte) (int, error) {
	h.hash.Write(p)
	return h.Writer.Write(p)
}

// commit ends the file.
func (h *hashedWriter) commit(ctx context.Context) (StoredFile, error) {
	info, err := h.Commit(ctx)
	return StoredFile{Name: h.name, Size: info.Size, SHA256: hex.EncodeToString(h.hash.Sum(nil))}, err
}

// look makes the map of all disks.
func (b *maker) look(ctx context.Context, compare bool) error {
	b.survey.images, b.survey.withoutSwap = b.m.Images, b.WithoutSwap
	if compare {
		last := b.chain[len(b.chain)-1]
		parent, err := openParent(ctx, b.s, last, last.Disks[0].Map)
		if err != nil {
			b.Warn("%s: all is compared: %v", b.m.Name, err)
		} else {
			defer parent.stop()
			b.survey.parent = parent
		}
	}
	w, err := b.create(ctx, b.stem(0)+mapEnd)
	if err != nil {
		return err
	}
	defer w.Abort()
	if err := b.survey.run(ctx, b.m.Build, b.m.Config, w); err != nil {
		return err
	}
	b.mapFile, err = w.commit(ctx)
	return err
}

// disk writes the image of disk n, with its sums.
func (b *maker) disk(ctx context.Context, n int) error {
	d := &b.p.Disks[n]
	d.Cluster = b.Cluster
	if len(b.chain) > 0 {
		d.Cluster = b.chain[len(b.chain)-1].Disks[n].Cluster
	} else if d.Cluster == 0 {
		d.Cluster = qcow2.DefaultCluster
	}
	d.Map = b.mapFile
	var hint *ranges
	switch d.Changes = changesFull; {
	case len(b.chain) == 0:
	case b.Reread || b.survey.parent == nil:
		d.Changes = changesReread
	default:
		hint, d.Changes = b.changes(n)
	}
	err := b.image(ctx, n, hint)
	if l := (*lie)(nil); errors.As(err, &l) {
		d.Fallback = fmt.Sprintf("%s: %v", d.Changes, l)
		b.Warn("%s: %s: everything is read: %s", b.m.Name, d.Name, d.Fallback)
		d.Changes = changesReread
		err = b.image(ctx, n, nil)
	}
	return err
}

// wrongParent says that the parent's chain is not what its points say.
type wrongParent struct{ err error }

func (w *wrongParent) Error() string { return "the point before can't be built upon: " + w.err.Error() }
func (w *wrongParent) Unwrap() error { return w.err }

// notParent makes of an error with the parent's files, where it says that they are not what they should be, one that says
// that nothing can be built upon them.
func notParent(err error) error {
	for _, kind := range []error{ErrNotExist, ondisk.ErrCorrupt, ondisk.ErrTruncated, ondisk.ErrUnsupported} {
		if errors.Is(err, kind) {
			return &wrongParent{err}
		}
	}
	return err
}

// stem gives what the names of the files of disk n begin with.
func (b *maker) stem(n int) string {
	if b.host {
		return b.p.Name + ".files"
	}
	return fmt.Sprintf("%s.disk%d", b.p.Name, n)
}

// image writes the image of disk n. hint is nil where all is read.
func (b *maker) image(ctx context.Context, n int, hint *ranges) error {
	d := &b.p.Disks[n]
	name := b.stem(n)
	know := b.survey.disks[n]
	r := &imageRun{
		src: b.m.Images[n], size: d.Size, cluster: d.Cluster, quiet: know.quiet, hint: hint, sample: b.Sample,
		tree: NewTree(), zero: ZeroSum(d.Cluster), progress: b.Progress, packed: b.Compression != "none", codec: codec.Zstd,
		rand: mathrand.New(mathrand.NewChaCha8(seed())),
	}
	if b.Compression == "zlib" {
		r.codec = codec.Deflate
	}
	if !b.AllBlocks {
		r.free = know.free
	}
	layout := qcow2.Layout{Size: d.Size, Cluster: d.Cluster, Codec: r.codec, Head: Head}
	if len(b.chain) > 0 {
		last := b.chain[len(b.chain)-1]
		layout.Backing, layout.BackingFormat = last.Disks[n].Image.Name, qcow2.Format.Name
		a, err := OpenAccount(ctx, b.s, b.chain, n)
		if err != nil {
			return notParent(err)
		}
		defer a.Close()
		r.parent, r.was = a, NewTree()
	}
	file, err := b.s.Create(ctx, path.Join(b.m.Name, name+imageEnd), true)
	if err != nil {
		return err
	}
	image := newHalvesWriter(file)
	defer image.Abort()
	if r.out, err = qcow2.NewWriter(image, layout); err != nil {
		return err
	}
	sums, err := b.s.Create(ctx, path.Join(b.m.Name, name+sumsEnd), true)
	if err != nil {
		return err
	}
	hashed := &hashedWriter{sums, sha256.New(), name + sumsEnd}
	defer sums.Abort()
	r.sums = NewSumsWriter(hashed, d.Size, d.Cluster)
	if err := r.run(ctx); err != nil {
		return err
	}
	if r.was != nil {
		if last := b.chain[len(b.chain)-1]; r.was.Root() != last.Disks[n].Root {
			return &wrongParent{fmt.Errorf("the sums of %s do not make up its root", last.Name)}
		}
	}
	if err := r.out.Close(); err != nil {
		return err
	}
	d.Root = r.tree.Root()
	if err := r.sums.End(d.Root); err != nil {
		return err
	}
	b.names = append(b.names, path.Join(b.m.Name, name+imageEnd), path.Join(b.m.Name, name+sumsEnd))
	info, err := image.Commit(ctx)
	if err != nil {
		return err
	}
	d.Image = StoredFile{Name: name + imageEnd, Size: info.Size, Halves: image.sums()}
	if d.Sums, err = hashed.commit(ctx); err != nil {
		return err
	}
	d.Sampled, d.LeftOut = r.sampled, r.leftOut
	d.Totals = Totals{Size: d.Size, Used: r.used, Read: r.read, Changed: changed(hint, d), Stored: d.Image.Size + d.Sums.Size}
	if n == 0 {
		d.Stored += d.Map.Size
	}
	return nil
}

// changed gives how many bytes a source of changes named.
func changed(hint *ranges, d *Disk) int64 {
	if hint == nil {
		return d.Size
	}
	var sum int64
	for at := int64(0); at < hint.n; {
		in, end := hint.run(at)
		if in {
			sum += min(end*hint.unit, d.Size) - at*hint.unit
		}
		at = end
	}
	return sum
}

func seed() (b [32]byte) {
	rand.Read(b[:])
	return b
}

// config stores the machine's configuration files.
func (b *maker) config(ctx context.Context) error {
	taken := map[string]bool{}
	for _, f := range b.m.Files {
		base := filepath.Base(f.Path)
		name := base
		for i := 2; taken[name]; i++ {
			name = fmt.Sprintf("%d-%s", i, base)
		}
		taken[name] = true
		if err := b.copy(ctx, f, b.p.Name+configDir+"/"+name); err != nil {
			return fmt.Errorf("%s: %w", f.Path, err)
		}
	}
	return nil
}

func (b *maker) copy(ctx context.Context, f ConfigFile, name string) error {
	in, err := os.Open(f.Path)
	if err != nil {
		return err
	}
	defer in.Close()
	w, err := b.create(ctx, name)
	if err != nil {
		return err
	}
	defer w.Abort()
	if _, err := io.Copy(w, in); err != nil {
		return err
	}
	stored, err := w.commit(ctx)
	stored.Role = f.Role
	b.p.Config = append(b.p.Config, stored)
	b.p.Stored += stored.Size
	return err
}
