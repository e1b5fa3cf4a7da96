package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"vmkit/formats"
	formatsall "vmkit/formats/all"
	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	fsmapall "vmkit/fsmap/all"
	"vmkit/fsmap/mapfile"
	"vmkit/partition"
)

// Input is the options that say how images are opened. They are the same in every command that opens any.
type Input struct {
	Snapshot     string
	Format       string
	AllowDirs    []string
	AllowMissing bool
	Folder       string // --images
	ForceShare   bool
	KeyFile      string
	Journal      string
	SectorSize   int64
	Metadata     bool
	Created      string
}

// InputHelp is the part of a command's help that tells the options of Input.
const InputHelp = `
Options for opening images:
      --snapshot NAME    open an internal snapshot, by name or id
      --images DIR       look host files up in DIR by name, and allow no others
      --allow-dir DIR    images may refer to files in DIR too, not only in their own folder
      --allow-missing    go on where a layer of a chain is absent: its ranges are "missing"
      --format NAME      take the image for this format instead of probing
      --force-share      open images that a running machine writes to; the map says so
      --key-file FILE    the passphrase or key of what is encrypted ("-": stdin)
      --journal MODE     replay (into memory, the default), ignore, or fail where one has work
      --sector-size N    logical sector size in bytes, where the image's own word is wrong
      --metadata-files   with the file systems' own files ($MFT, the journal inode)
      --created TIME     the time that the map says it was made at, instead of now
`

// Register defines the options.
func (in *Input) Register(f *pflag.FlagSet) {
	f.StringVar(&in.Snapshot, "snapshot", "", "")
	f.StringVar(&in.Folder, "images", "", "")
	f.StringArrayVar(&in.AllowDirs, "allow-dir", nil, "")
	f.BoolVar(&in.AllowMissing, "allow-missing", false, "")
	f.StringVar(&in.Format, "format", "", "")
	f.BoolVar(&in.ForceShare, "force-share", false, "")
	f.StringVar(&in.KeyFile, "key-file", "", "")
	f.StringVar(&in.Journal, "journal", string(fsmap.JournalReplay), "")
	f.Int64Var(&in.SectorSize, "sector-size", 0, "")
	f.BoolVar(&in.Metadata, "metadata-files", false, "")
	f.StringVar(&in.Created, "created", "", "")
}

// Images are images that were opened together.
type Images struct {
	List []*formats.Image
	Env  *formats.Env

	in      *Input
	t       *Term
	ask     formats.Passphrase
	source  *formats.OSSource
	opener  *formats.Opener
	created mapfile.Time
}

// Open opens the named images. The caller closes them.
func (in *Input) Open(t *Term, names []string) (*Images, error) {
	if err := in.check(); err != nil {
		return nil, err
	}
	created, err := in.created()
	if err != nil {
		return nil, err
	}
	ask, err := in.Passphrase(t)
	if err != nil {
		return nil, err
	}
	im := &Images{
		Env: formats.NewEnv(0), in: in, t: t, ask: ask, created: created,
		source: &formats.OSSource{AllowDirs: in.AllowDirs, Images: in.Folder, ForceShare: in.ForceShare},
	}
	im.opener = &formats.Opener{
		Formats: formatsall.Formats, Source: im.source, Env: im.Env, AllowMissing: in.AllowMissing,
		Snapshot: in.Snapshot, Format: in.Format, Passphrase: ask,
	}
	for _, name := range names {
		if err := im.open(name); err != nil {
			im.Close()
			return nil, err
		}
	}
	return im, nil
}

// open opens what the user named: an image, or all that a container such as an OVA holds.
func (im *Images) open(name string) error {
	all, err := im.opener.Names(name)
	if err != nil {
		return err
	}
	for _, name := range all {
		img, err := im.opener.Open(name)
		if err != nil {
			return err
		}
		im.List = append(im.List, img)
	}
	return nil
}

func (in *Input) check() error {
	switch fsmap.JournalMode(in.Journal) {
	case fsmap.JournalReplay, fsmap.JournalIgnore, fsmap.JournalFail:
	default:
		return Usagef("--journal is replay, ignore or fail, not %q", in.Journal)
	}
	if n := in.SectorSize; n != 0 && (n < 512 || n > 65536 || n&(n-1) != 0) {
		return Usagef("--sector-size is a power of two from 512 to 65536, not %d", n)
	}
	if known := func(f formats.Format) bool { return f.Name == in.Format }; in.Format != "" && !slices.ContainsFunc(formatsall.Formats, known) {
		return Usagef("--format: no format is called %q", in.Format)
	}
	return nil
}

// created gives the time that a map says it was made at: --created, SOURCE_DATE_EPOCH, or now.
func (in *Input) created() (mapfile.Time, error) {
	if in.Created != "" {
		at, err := time.Parse(time.RFC3339Nano, in.Created)
		if err != nil {
			return mapfile.Time{}, Usagef("--created: %q is not a time like 2026-11-22T09:00:00Z", in.Created)
		}
		return mapfile.TimeOf(at), nil
	}
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		sec, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return mapfile.Time{}, Usagef("SOURCE_DATE_EPOCH: %q is not a number of seconds", s)
		}
		return mapfile.Time{Sec: sec, Known: true}, nil
	}
	return mapfile.TimeOf(time.Now().Truncate(time.Second)), nil
}

// Close closes all host files.
func (im *Images) Close() error { return im.source.Close() }

// Check has an image's format check its structure. A format that has none to check is sound.
func (im *Images) Check(name string, report func(formats.Finding)) error {
	_, err := im.opener.Check(name, report)
	if errors.Is(err, ondisk.ErrUnsupported) {
		return nil
	}
	return err
}

// Map writes the map of the images. Of c the caller sets what is to be in the map; how images are read is taken from
// the options.
func (im *Images) Map(ctx context.Context, c fsmap.Config, w *mapfile.Writer) (fsmap.Summary, error) {
	c.Drivers = fsmapall.Drivers
	c.Tool, c.Created = Tool(im.t.Name), im.created
	c.Partition.Env, c.Partition.SectorSize, c.Partition.Passphrase = im.Env, im.in.SectorSize, im.ask
	c.FS.Journal, c.FS.Metadata = fsmap.JournalMode(im.in.Journal), im.in.Metadata
	c.Options = im.in.options(c)
	return fsmap.Build(ctx, im.List, c, w)
}

// Rebase copies a map from r to w as one of the images.
func (im *Images) Rebase(ctx context.Context, r *mapfile.Reader, c fsmap.Config, w *mapfile.Writer) (fsmap.Summary, error) {
	c.Partition = partition.Options{Env: im.Env, SectorSize: im.in.SectorSize}
	return fsmap.Rebase(ctx, r, im.List, c, w)
}

// Keys opens what lies encrypted on the images, and gives the keys that packed extents of their map name.
func (im *Images) Keys() (codec.Keys, error) {
	_, err := partition.Scan(im.List, partition.Options{Env: im.Env, SectorSize: im.in.SectorSize, Passphrase: im.ask})
	return im.Env.Keys(), err
}

// options tells in a map's first record what the map was asked to be.
func (in *Input) options(c fsmap.Config) map[string]any {
	o := map[string]any{}
	set := func(key string, value any, isDefault bool) {
		if !isDefault {
			o[key] = value
		}
	}
	set("snapshot", in.Snapshot, in.Snapshot == "")
	set("format", in.Format, in.Format == "")
	set("allow_missing", true, !in.AllowMissing)
	set("force_share", true, !in.ForceShare)
	set("journal", in.Journal, in.Journal == string(fsmap.JournalReplay))
	set("sector_size", in.SectorSize, in.SectorSize == 0)
	set("metadata_files", true, !in.Metadata)
	set("patterns", c.Patterns.Texts(), c.Patterns.All())
	set("volumes_only", true, !c.NoFiles)
	set("hash", true, !c.Hash)
	set("live", true, c.Mounts == nil)
	return o
}

// MapReader reads a map that is being made.
type MapReader struct {
	*mapfile.Reader
	pipe    *io.PipeReader
	done    chan struct{}
	summary fsmap.Summary
	err     error
}

// Reader makes the map of the images and reads it at the same time. The caller closes it.
func (im *Images) Reader(ctx context.Context, c fsmap.Config) *MapReader {
	r, w := io.Pipe()
	m := &MapReader{Reader: mapfile.NewReader(r), pipe: r, done: make(chan struct{})}
	go func() {
		defer close(m.done)
		m.summary, m.err = im.Map(ctx, c, mapfile.NewWriter(w))
		w.CloseWithError(m.err)
	}()
	return m
}

// Close ends the making of the map and tells what became of it. It is no error to close before the end was read.
func (m *MapReader) Close() (fsmap.Summary, error) {
	m.pipe.Close()
	<-m.done
	if errors.Is(m.err, io.ErrClosedPipe) {
		return m.summary, nil
	}
	return m.summary, m.err
}
