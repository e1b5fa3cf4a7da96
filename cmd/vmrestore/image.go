package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/formats"
	formatsall "vmkit/formats/all"
	"vmkit/formats/ondisk"
)

// The formats of images that are written.
const (
	asQcow2 = "qcow2"
	asRaw   = "raw"
	asVmdk  = "vmdk"
)

// endings are what names of images end with.
var endings = map[string]string{".qcow2": asQcow2, ".raw": asRaw, ".img": asRaw, ".vmdk": asVmdk}

func (o *options) checkImage(args []string) error {
	switch {
	case len(args) != 1:
		return cli.Usagef("MACHINE@POINT is wanted")
	case o.out.Tar != "" || o.out.Cat || o.into != "" || o.output != "" && o.out.Dir != "" || o.output == "" && o.out.Dir == "":
		return cli.Usagef("-o or -C says where the image goes")
	case o.output != "" && o.format == "" && endings[filepath.Ext(o.output)] == "":
		return cli.Usagef("%s: --format says what image that is to be: qcow2, raw or vmdk", o.output)
	case o.format != "" && o.format != asQcow2 && o.format != asRaw && o.format != asVmdk:
		return cli.Usagef("--format is qcow2, raw or vmdk, not %q", o.format)
	}
	return nil
}

// restored tells of a file that was written.
type restored struct {
	Type   string `json:"type"` // "restored"
	Disk   string `json:"disk,omitempty"`
	To     string `json:"to"`
	Format string `json:"format,omitempty"`
	Size   int64  `json:"size"` // of the disk, or the file of the configuration
}

// restoreImage writes the disks of a point as images, and the machine's configuration.
func (o *options) restoreImage(ctx context.Context, t *cli.Term, s repo.Store, args []string) error {
	p, err := findPoint(ctx, t, s, args[0])
	if err != nil {
		return err
	}
	numbers, err := o.chooseDisks(p)
	if err != nil {
		return err
	}
	d, err := openDisks(ctx, s, p)
	if err != nil {
		return err
	}
	defer d.close()
	total := int64(0)
	for _, n := range numbers {
		total += 2 * d.list[n].Size() // written, and read back
	}
	progress := t.Progress("restored", total, false)
	defer progress.Done()
	out := &records{w: t.Stdout, kind: "restored"}
	tell := func(r restored) error {
		r.Type = "restored"
		if !t.People {
			return out.write(r)
		}
		_, err := fmt.Fprintf(t.Stdout, "%s\t%s\n", cli.Size(r.Size), cli.Printable(r.To))
		return err
	}
	for _, n := range numbers {
		name, format := o.imageName(p, n)
		d.list[n].Unheld = false // as QEMU sees it
		w := &imageWriter{v: d.list[n], root: p.Disks[n].Root, cluster: p.Disks[n].Cluster, path: name, format: format, force: o.out.Force, progress: progress}
		if err := w.run(ctx); err != nil {
			return err
		}
		if err := tell(restored{Disk: p.Disks[n].Name, To: name, Format: format, Size: d.list[n].Size()}); err != nil {
			return err
		}
	}
	if err := o.configuration(ctx, s, p, tell); err != nil {
		return err
	}
	if t.People {
		return nil
	}
	return out.end()
}

// chooseDisks gives the numbers of the disks that are wanted.
func (o *options) chooseDisks(p *point) ([]int, error) {
	var numbers []int
	var names []string
	for n := range p.Disks {
		names = append(names, p.Disks[n].Name)
		if o.disk == "" || p.Disks[n].Name == o.disk {
			numbers = append(numbers, n)
		}
	}
	switch {
	case len(numbers) == 0:
		return nil, fmt.Errorf("point %s of %s has no disk %q, but %s", p.Name, p.Machine, o.disk, strings.Join(names, ", "))
	case o.output != "" && len(numbers) > 1:
		return nil, cli.Usagef("%s has %d disks (%s): say which one with --disk, or name a folder with -C", p.Machine, len(numbers), strings.Join(names, ", "))
	}
	return numbers, nil
}

// imageName gives the name and format of the image of disk n.
func (o *options) imageName(p *point, n int) (name, format string) {
	if format = o.format; o.output != "" {
		if format == "" {
			format = endings[filepath.Ext(o.output)]
		}
		return o.output, format
	}
	if format == "" {
		format = asQcow2
	}
	return filepath.Join(o.out.Dir, p.Machine+"-"+p.Disks[n].Name+"."+format), format
}

// configuration writes the files of the machine's configuration into a folder beside the images.
func (o *options) configuration(ctx context.Context, s repo.Store, p *point, tell func(restored) error) error {
	dir := filepath.Join(o.out.Dir, p.Machine+".config")
	if o.output != "" {
		dir = o.output + ".config"
	}
	for _, f := range p.Config {
		b, err := repo.ReadFile(ctx, s, p.Machine+"/"+f.Name, maxConfig)
		if err != nil {
			return err
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != f.SHA256 {
			return ondisk.Corrupt(repo.Path(s, p.Machine+"/"+f.Name), "sha256", -1, hex.EncodeToString(sum[:]))
		}
		_, rel, _ := strings.Cut(f.Name, "/")
		name := filepath.Join(dir, filepath.FromSlash(rel))
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			return err
		}
		out, err := createFile(name, o.out.Force)
		if err != nil {
			return err
		}
		if _, err = out.Write(b); err == nil {
			err = out.commit()
		}
		out.abort()
		if err != nil {
			return err
		}
		if err := tell(restored{To: name, Size: int64(len(b))}); err != nil {
			return err
		}
	}
	return nil
}

// maxConfig bounds a file of the configuration: firmware variables have some MiB.
const maxConfig = 1 << 30

// imageWriter writes a disk as an image, and reads it back.
type imageWriter struct {
	v        *repo.Verified
	root     string
	cluster  int64
	path     string
	format   string
	force    bool
	progress *cli.Progress
}

func (w *imageWriter) run(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(w.path), 0o777); err != nil {
		return err
	}
	disk, head := w.path, ""
	if w.format == asVmdk {
		disk, head = strings.TrimSuffix(w.path, ".vmdk")+"-flat.vmdk", w.path
	}
	f, err := createFile(disk, w.force)
	if err != nil {
		return err
	}
	defer f.abort()
	f.progress = w.progress
	if w.format == asQcow2 {
		err = writeQcow2(ctx, f, w.v)
	} else {
		err = writeRaw(ctx, f, w.v)
	}
	if err != nil {
		return err
	}
	if err := w.readBack(ctx, f); err != nil {
		return err
	}
	if head == "" {
		return f.commit()
	}
	d, err := createFile(head, w.force)
	if err != nil {
		return err
	}
	defer d.abort()
	if _, err := io.WriteString(d, flatDescriptor(filepath.Base(disk), w.v.Size())); err != nil {
		return err
	}
	if err := f.commit(); err != nil {
		return err
	}
	return d.commit()
}

// readBack reads the image that was written, and compares each cluster with the sum that the repository has of it.
func (w *imageWriter) readBack(ctx context.Context, f *file) error {
	format := w.format
	if format == asVmdk {
		format = asRaw
	}
	src := &formats.OSSource{ForceShare: true}
	defer src.Close()
	o := formats.Opener{Formats: formatsall.Formats, Source: src, Format: format}
	img, err := o.Open(f.f.Name())
	if err != nil {
		return fmt.Errorf("reading back what was written: %w", err)
	}
	g, stop := errgroup.WithContext(ctx)
	g.SetLimit(4)
	const piece = 16 << 20
	leaves := make([]repo.Sum, (w.v.Size()+w.cluster-1)/w.cluster)
	for at := int64(0); at < w.v.Size() && stop.Err() == nil; at += piece {
		g.Go(func() error {
			n := min(piece, w.v.Size()-at)
			defer w.progress.Add(n)
			return w.compare(img, at/w.cluster, (at+n+w.cluster-1)/w.cluster, leaves)
		})
	}
	if err := errors.Join(g.Wait(), ctx.Err()); err != nil {
		return err
	}
	tree := repo.NewTree()
	for i := range leaves {
		tree.Add(leaves[i], 1)
	}
	if got := tree.Root(); got != w.root {
		return fmt.Errorf("%s: its clusters make up %s, not the root %s that the point has", w.path, got, w.root)
	}
	return nil
}

// compare reads the clusters from a up to b of the image.
func (w *imageWriter) compare(img formats.Disk, a, b int64, leaves []repo.Sum) error {
	buf := make([]byte, w.cluster)
	for i := a; i < b; {
		r, err := w.v.At(i, b-i)
		if err != nil {
			return err
		}
		for ; r.N > 0; i, r.N = i+1, r.N-1 {
			leaves[i] = r.Sum
			n := min(w.cluster, w.v.Size()-i*w.cluster)
			if e, err := img.ExtentAt(i*w.cluster, n); err == nil && e.Kind == formats.Zero && e.Len == n && (r.Zero || !r.Held()) {
				continue
			}
			if _, err := img.ReadAt(buf[:n], i*w.cluster); err != nil && err != io.EOF {
				return fmt.Errorf("reading back what was written: %w", err)
			}
			clear(buf[n:])
			if r.Held() && sha256.Sum256(buf) != r.Sum || !r.Held() && slices.ContainsFunc(buf, func(c byte) bool { return c != 0 }) {
				return fmt.Errorf("%s: byte %d reads back otherwise than it was written", w.path, i*w.cluster)
			}
		}
	}
	return nil
}
