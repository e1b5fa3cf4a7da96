package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"time"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/formats"
	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
	"vmkit/partition"
)

// disks are the disks of a point, opened: each of their clusters is verified when it is read.
type disks struct {
	p      *point
	list   []*repo.Verified
	images []*formats.Image // the same as images that are one file each, so that maps say positions in the disk
	env    *formats.Env
}

// openDisks opens the disks of a point. What no point holds is an error to read.
func openDisks(ctx context.Context, s repo.Store, p *point) (*disks, error) {
	d := &disks{p: p, env: formats.NewEnv(0)}
	err := again(func() error {
		d.close()
		d.list = nil
		for n := range p.Disks {
			v, err := repo.OpenVerified(ctx, s, p.chain, n, d.env)
			if err != nil {
				return err
			}
			v.Unheld = true
			d.list = append(d.list, v)
		}
		return nil
	})
	if err != nil {
		d.close()
		return nil, err
	}
	for n, v := range d.list {
		f := &formats.File{ReaderAt: v, Path: fmt.Sprintf("%s@%s:%s", p.Machine, p.Name, p.Disks[n].Name), Role: formats.RoleTop, Size: v.Size(), Image: n, ID: n}
		img := &formats.Image{Disk: formats.Numbered(formats.NewDisk(formats.Plain(f), d.env), n), Name: p.Disks[n].Name, Number: n, Format: "raw", State: formats.StateClean, Files: []*formats.File{f}}
		d.images = append(d.images, img)
	}
	return d, nil
}

func (d *disks) close() {
	for _, v := range d.list {
		v.Close()
	}
}

// open opens a disk for an extraction, by the path that its image has.
func (d *disks) open(name string) (ondisk.HostFile, error) {
	i := slices.IndexFunc(d.images, func(img *formats.Image) bool { return img.Files[0].Path == name })
	if i < 0 {
		return nil, fmt.Errorf("%s is none of the disks", name)
	}
	return diskFile{d.list[i], name}, nil
}

// diskFile is a disk as a host file.
type diskFile struct {
	v    *repo.Verified
	name string
}

func (f diskFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.v.ReadAt(p, off)
	if err != nil && err != io.EOF && !errors.Is(err, context.Canceled) {
		// As errors of reading are, which keep nobody from reading on behind them.
		err = &fs.PathError{Op: "read", Path: f.name, Err: err}
	}
	return n, err
}

func (f diskFile) Name() string               { return f.name }
func (f diskFile) Close() error               { return nil }
func (f diskFile) Stat() (fs.FileInfo, error) { return diskInfo{f}, nil }

type diskInfo struct{ f diskFile }

func (i diskInfo) Name() string       { return path.Base(i.f.name) }
func (i diskInfo) Size() int64        { return i.f.v.Size() }
func (i diskInfo) Mode() fs.FileMode  { return 0o400 }
func (i diskInfo) ModTime() time.Time { return time.Time{} }
func (i diskInfo) IsDir() bool        { return false }
func (i diskInfo) Sys() any           { return nil }

// rebase writes the maps of a point to w, with what patterns select of them: its images in the order of its disks.
func rebase(ctx context.Context, t *cli.Term, s repo.Store, p *point, images []*formats.Image, env *formats.Env, patterns mapfile.Patterns, w *mapfile.Writer) error {
	files := p.Maps()
	if len(files) == 0 {
		return fmt.Errorf("point %s of %s has no map", p.Name, p.Machine)
	}
	c := fsmap.Config{Problem: t.Problem, Partition: partition.Options{Env: env}}
	for _, f := range files {
		in, err := repo.OpenMap(ctx, s, p.Point, f)
		if err != nil {
			return err
		}
		text, err := nameImages(in, p, f, images)
		if err == nil {
			_, err = fsmap.Rebase(ctx, mapfile.NewReader(repo.Sift(text, patterns)), images, c, w)
		}
		in.Close()
		if err != nil {
			return fmt.Errorf("point %s of %s: %w", p.Name, p.Machine, err)
		}
	}
	return nil
}

var (
	imageLine    = []byte(`{"type":"image",`)
	identityPart = regexp.MustCompile(`,"identity":\{[^{}]*\}`)
)

// nameImages gives the images the names that their map has for them, so that disks of one size are not mixed up: a map
// tells of the disks in the point's order. It gives the map's text without the marks by which such disks are told from
// others: a point's map and disks belong together, and what is marked may differ between versions.
func nameImages(in io.Reader, p *point, f repo.StoredFile, images []*formats.Image) (io.Reader, error) {
	text := bufio.NewReaderSize(in, mapfile.MaxLine)
	var head []byte
	for n := 0; ; {
		line, err := text.ReadSlice('\n')
		if err != nil { // whoever reads it tells what is wrong
			return io.MultiReader(bytes.NewReader(append(head, line...)), text), nil
		}
		if bytes.HasPrefix(line, imageLine) {
			var image struct{ Name string }
			if err := json.Unmarshal(line, &image); err != nil {
				return nil, fmt.Errorf("%s: %w", f.Name, err)
			}
			for n < len(images) && p.Disks[n].Map.Name != f.Name {
				n++
			}
			if n < len(images) {
				images[n].Name = image.Name
				n++
			}
			line = identityPart.ReplaceAll(line, nil)
		} else if len(head) > 0 {
			return io.MultiReader(bytes.NewReader(append(head, line...)), text), nil
		}
		head = append(head, line...)
	}
}
