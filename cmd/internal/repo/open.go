package repo

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"vmkit/formats"
	"vmkit/formats/ondisk"
	"vmkit/formats/qcow2"
)

// OpenStore opens the store that --repo names: a folder, or s3://BUCKET/PREFIX. create makes the folder where it isn't
// there.
func OpenStore(ctx context.Context, name string, create bool) (Store, error) {
	if strings.HasPrefix(name, "s3://") {
		return OpenS3(ctx, name)
	}
	return OpenDir(name, create)
}

// Source is a formats.Source whose names are those of a Store: so points open like any image, wherever they are. An
// image may refer to files of its own folder only, by their plain names. It is safe for concurrent use.
type Source struct {
	Context context.Context
	Store   Store

	mu   sync.Mutex
	open []Object
	name map[string]string // by File.Path
}

// Path gives what a map calls a file of a store: a path of the host, or a URL.
func Path(s Store, name string) string {
	if _, ok := s.(*Dir); ok {
		return filepath.Join(s.URL(), filepath.FromSlash(name))
	}
	return s.URL() + "/" + name
}

// Open implements formats.Source.
func (s *Source) Open(name string) (*formats.File, error) {
	o, err := s.Store.Open(s.Context, name)
	if err != nil {
		return nil, err
	}
	f := &formats.File{ReaderAt: o, Path: Path(s.Store, name), Size: o.Size(), MTime: o.MTime(), Key: name}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.name == nil {
		s.name = map[string]string{}
	}
	s.open, s.name[f.Path] = append(s.open, o), name
	return f, nil
}

// Companion implements formats.Source.
func (s *Source) Companion(of *formats.File, name string, _ formats.Role) (*formats.File, error) {
	if !plainName(name) {
		return nil, fmt.Errorf("%s: a point's image may refer to files beside it only, not to %q: %w", of.Path, name, ondisk.ErrUnsupported)
	}
	s.mu.Lock()
	folder := path.Dir(s.name[of.Path])
	s.mu.Unlock()
	return s.Open(path.Join(folder, name))
}

// Close closes all files.
func (s *Source) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, o := range s.open {
		errs = append(errs, o.Close())
	}
	s.open = nil
	return errors.Join(errs...)
}

// Chain is a disk of a point, opened with the images that it overlays.
type Chain struct {
	*formats.Image
	source *Source
}

// Close closes the images' files.
func (c *Chain) Close() error { return c.source.Close() }

// OpenDisk opens disk n of a point. With unheld what no image of the chain holds, as nothing used it, is of kind
// missing; else it reads as zeros, as it does for QEMU. env may be nil.
func OpenDisk(ctx context.Context, s Store, p *Point, n int, unheld bool, env *formats.Env) (*Chain, error) {
	d := &p.Disks[n]
	src := &Source{Context: ctx, Store: s}
	o := formats.Opener{Formats: []formats.Format{qcow2.Format}, Format: qcow2.Format.Name, Source: src, Env: env, Unheld: unheld}
	img, err := o.Open(path.Join(p.Machine, d.Image.Name))
	if err == nil && img.Size() < d.Size {
		err = fmt.Errorf("%s: it holds a disk of %d bytes, not %d: %w", d.Image.Name, img.Size(), d.Size, ondisk.ErrCorrupt)
	}
	if err != nil {
		src.Close()
		return nil, fmt.Errorf("point %s of %s: %w", p.Name, p.Machine, err)
	}
	if img.Size() > d.Size { // an image has whole sectors
		img.Disk = formats.Section(img.Disk, 0, d.Size)
	}
	img.Name = d.Name
	return &Chain{img, src}, nil
}
