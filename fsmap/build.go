package fsmap

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"vmkit/formats"
	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
	"vmkit/partition"
)

// Config says what Build puts into a map, and how.
type Config struct {
	Drivers []Driver // the table of file systems
	// Tool, Created and Options go into the map record; Clone into the image records.
	Tool    string
	Created mapfile.Time
	Options map[string]any
	Clone   json.RawMessage

	Partition partition.Options
	FS        Options

	// Patterns selects files; the zero value selects all.
	Patterns mapfile.Patterns
	// NoFiles leaves out the files, NoFS all that file systems tell.
	NoFiles, NoFS bool
	// VolumeExtents, where set, picks the volumes whose own extents are put into the map.
	VolumeExtents func(name string) bool
	// Hash adds the SHA-256 of each regular file, which takes reading them all.
	Hash bool
	// DiskOnly leaves the images' containers out of the map: extents have positions in the virtual disks only, and image
	// records tell by Identity which disks these are. Rebase completes such a map.
	DiskOnly bool
	// Mounts, where set, gives the file systems that are already open, instead of Drivers. Of other volumes the map
	// tells only what they are.
	Mounts func([]partition.Volume) []Mount

	// Changes, where set, tells Rebase what the guest saw otherwise than the images have it, as it had replayed its logs:
	// the first such bytes, and where they lie on the disk, of the n at off; nil where there are none.
	Changes func(img *formats.Image, off, n int64) (at int64, bytes []byte)
	// Space, where set, is told what nothing uses: see Space.
	Space Space

	// Workers bounds the goroutines that read and encode; 0: one a processor.
	Workers int
	// Problem and Note are told what goes into the map as problems and notes, in its order; Progress how many more
	// files were done. Each may be nil.
	Problem  func(n *mapfile.Names, p *mapfile.Problem)
	Note     func(where, note string)
	Progress func(files int64)
}

// Mount is an open file system: one that a kernel has mounted.
type Mount struct {
	// Volumes are the indexes of the volumes that Run.Dev counts in; the files belong to the first.
	Volumes []int
	FS      FS
	// On selects files, where it isn't nil, instead of Config.Patterns.
	On *mapfile.Patterns
	// Err says why there is no FS. Where there is neither, the map tells what else the volume holds.
	Err error
}

// Summary is what Build says of a map that is whole.
type Summary struct {
	mapfile.End
	// Encrypted says that all that was asked for is encrypted, and no key was given.
	Encrypted bool
	// Secret says that the map tells something of what lies encrypted on the disk.
	Secret bool
	// Unread names the file systems that were recognised and that no driver reads.
	Unread []string
}

// Build writes the map of images that are taken together, such as the disks of one machine, to w. What can't be read
// becomes a problem record; an error means that there is no map.
func Build(ctx context.Context, images []*formats.Image, c Config, w *mapfile.Writer) (Summary, error) {
	vols, err := partition.Scan(images, c.Partition)
	if err != nil {
		return Summary{}, err
	}
	b := &builder{c: &c, w: w}
	b.head(images, vols)
	b.volumes(vols)
	if c.Space != nil {
		b.space(vols, dividedOf(vols))
	}
	if c.VolumeExtents != nil {
		b.volumeExtents()
	}
	if !c.NoFiles && !c.NoFS {
		if err := b.walk(ctx); err != nil {
			return Summary{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return Summary{}, err
	}
	s := Summary{End: w.Count(), Secret: b.secret, Unread: b.unread}
	s.Encrypted = b.locked && s.Files == 0 || b.content.files > 0 && b.content.locked == b.content.files
	return s, w.End(&s.End)
}

// builder is one run of Build.
type builder struct {
	c       *Config
	w       *mapfile.Writer
	names   mapfile.Names
	vols    []*volume
	locked  bool // an image or a volume is encrypted, and no key was given
	secret  bool // one is, and may have been read
	unread  []string
	content contents
}

// head writes the map record and the images.
func (b *builder) head(images []*formats.Image, vols []partition.Volume) {
	m := &mapfile.Map{Version: mapfile.Version, Tool: b.c.Tool, Created: b.c.Created, Options: b.c.Options}
	b.names.See(m)
	b.w.Map(m)
	for _, img := range images {
		rec := imageRecord(img)
		rec.Clone = b.c.Clone
		where := rec.Files[0].Path
		if b.c.DiskOnly {
			rec.Files, rec.Identity = nil, identity(img, vols)
		}
		b.names.See(rec)
		b.w.Image(rec)
		b.notes(where, rec.Notes)
		b.secret = b.secret || img.Encryption != ""
	}
	for _, img := range images {
		for _, err := range img.Problems {
			b.problem(mapfile.Problem{Image: img.Number, Volume: mapfile.None, What: "image", Error: err.Error()})
		}
	}
}

func imageRecord(img *formats.Image) *mapfile.Image {
	rec := &mapfile.Image{
		ID: img.Number, Name: img.Name, Format: img.Format, Size: img.Size(), State: string(img.State), Encryption: img.Encryption, Notes: img.Notes,
	}
	if img.State == formats.StateInUse {
		rec.Notes = append(slices.Clip(rec.Notes), "another process had it open for writing: what was read may not fit together")
	}
	for _, f := range img.Files {
		rec.Files = append(rec.Files, mapfile.HostFile{ID: f.ID, Path: f.Path, Role: string(f.Role), Size: f.Size, MTime: mapfile.TimeOf(f.MTime)})
	}
	for _, s := range img.Snapshots {
		rec.Snapshots = append(rec.Snapshots, mapfile.Snapshot{ID: s.ID, Name: s.Name, Size: s.Size, Date: mapfile.TimeOf(s.Date), VMState: s.VMState})
	}
	for _, m := range img.Bitmaps {
		state := "consistent"
		if m.InUse {
			state = "in-use"
		}
		rec.Bitmaps = append(rec.Bitmaps, mapfile.Bitmap{Name: m.Name, Granularity: m.Granularity, State: state, Auto: m.Auto})
	}
	return rec
}

// problem writes a problem record and tells of it.
func (b *builder) problem(p mapfile.Problem) {
	b.w.Problem(&p)
	if b.c.Problem != nil {
		b.c.Problem(&b.names, &p)
	}
}

// volumeProblem writes a problem with a volume. That it is encrypted is noted.
func (b *builder) volumeProblem(v *volume, what string, err error) {
	if errors.Is(err, formats.ErrEncrypted) {
		b.locked = true
	}
	b.problem(mapfile.Problem{Image: v.rec.Image, Volume: v.rec.ID, What: what, Error: err.Error()})
}

func (b *builder) notes(where string, notes []string) {
	for _, n := range notes {
		if b.c.Note != nil {
			b.c.Note(where, n)
		}
	}
}

// volumeExtents writes the extents of the volumes that were asked for.
func (b *builder) volumeExtents() {
	for _, v := range b.vols {
		if !b.c.VolumeExtents(v.Name) || v.Size == 0 {
			continue
		}
		r := newRecorder(nil)
		r.comp.diskOnly = b.c.DiskOnly
		r.long = func() error {
			err := b.w.Lines(r.lines, mapfile.End{})
			r.lines = r.lines[:0]
			return err
		}
		r.comp.use(v.rec.Image, v.Disk)
		r.beginOwn(v.rec.ID)
		for at := int64(0); at < v.Size; {
			e, err := r.comp.lookup(0, at, v.Size-at)
			r.comp.extent(at, &e, err)
			at += e.Len
		}
		r.end()
		r.long()
		if err := r.comp.gap(); err != nil {
			b.volumeProblem(v, "content", err)
		}
	}
}

// walk writes the files of all volumes that are selected.
func (b *builder) walk(ctx context.Context) error {
	missed := b.c.Patterns.Texts() // patterns that have selected nothing so far
	hit := func(text string) {
		if i := slices.Index(missed, text); i >= 0 {
			missed = slices.Delete(missed, i, i+1)
		}
	}
	if err := b.pipeline(ctx, func(ctx context.Context, send func(*batch) *batch) error {
		for _, v := range b.vols {
			if v.fs == nil || !v.selected {
				continue
			}
			if err := newWalker(v, b.c.Hash, hit, send).walk(ctx); err != nil {
				return err
			}
			v.fs = nil // a driver's caches are not needed any more
		}
		return nil
	}); err != nil {
		return err
	}
	for _, text := range missed {
		err := &ondisk.Error{What: "pattern", Field: text, Off: -1, Err: errNoMatch}
		b.problem(mapfile.Problem{Image: mapfile.None, Volume: mapfile.None, What: "selection", Error: err.Error()})
	}
	return nil
}

var errNoMatch = errors.New("nothing matches")
