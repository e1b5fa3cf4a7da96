package clone

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"vmkit/cmd/internal/hypervisor/domain"
	"vmkit/fsmap/mapfile"
)

// Finish turns the cloned data into a clone, when the machine was released: it rewrites references, puts everything on
// the disk, waits for what the journal tells of the release, and gives the clone its name. Problems are gaps that the
// clone has all the same.
func (c *Clone) Finish(ctx context.Context) (record *mapfile.Clone, problems []*mapfile.Problem, err error) {
	defer c.Discard()
	if err := c.rewrite(); err != nil {
		return nil, nil, err
	}
	if err := c.settle(ctx); err != nil {
		return nil, nil, err
	}
	record = &mapfile.Clone{Type: "clone", Name: c.name, Folder: c.stage.final(), Images: []string{}}
	if record.Released, err = c.released(ctx); err != nil {
		return nil, nil, err
	}
	for _, it := range c.items {
		path := filepath.Join(record.Folder, it.name)
		record.Files = append(record.Files, mapfile.CloneFile{
			Path: path, Role: it.Role, Disk: it.Disk, From: it.Path, Method: it.method, Size: it.size, SHA256: it.sum,
		})
		if it.Role == mapfile.RoleDisk {
			record.Images = append(record.Images, path)
		}
	}
	for _, f := range c.made {
		f.Path = filepath.Join(record.Folder, f.Path)
		record.Files = append(record.Files, f)
	}
	if err := c.carry(record); err != nil {
		return nil, nil, err
	}
	var stream bytes.Buffer
	if err := Write(mapfile.NewWriter(&stream), []*mapfile.Clone{record}, c.problems); err != nil {
		return nil, nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	st := c.stage
	c.stage = nil
	return record, c.problems, st.commit(stream.Bytes())
}

// carry puts the notes and the vm record into the clone's. What changed since a point that was tracked, a hint that can
// be had without, stays out where all of it would not fit into a line.
func (c *Clone) carry(record *mapfile.Clone) error {
	record.Of, record.Notes = c.raw, c.notes
	b, err := json.Marshal(record)
	if err != nil || len(b) < mapfile.MaxLine {
		return err
	}
	var of map[string]json.RawMessage
	if err := json.Unmarshal(c.raw, &of); err != nil {
		return err
	}
	delete(of, "changed")
	c.note("the ranges that changed did not fit into the record")
	record.Notes = c.notes
	record.Of, err = json.Marshal(of)
	return err
}

// Save writes the record of a finished clone anew.
func Save(record *mapfile.Clone, problems []*mapfile.Problem) error {
	path := filepath.Join(record.Folder, RecordName)
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	err = errors.Join(Write(mapfile.NewWriter(f), []*mapfile.Clone{record}, problems), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	return syncDir(record.Folder)
}

// Write writes a whole stream of clone records.
func Write(w *mapfile.Writer, clones []*mapfile.Clone, problems []*mapfile.Problem) error {
	for _, r := range clones {
		if err := w.Record(r); err != nil {
			return err
		}
	}
	for _, p := range problems {
		if err := w.Problem(p); err != nil {
			return err
		}
	}
	return w.End(&mapfile.End{Kind: mapfile.EndOfClones, Clones: int64(len(clones)), Problems: int64(len(problems))})
}

// rewrite changes what must not be as it is in the machine. Configurations come first: they decide on the identities of
// disks.
func (c *Clone) rewrite() error {
	for _, it := range c.items {
		if it.Role == mapfile.RoleConfig {
			if err := c.rewriteConfig(it); err != nil {
				return fmt.Errorf("%s: %w", it.Path, err)
			}
		}
	}
	c.relinkDisks()
	if len(c.vm.Command) > 0 {
		if err := c.writeCommand(); err != nil {
			return err
		}
	}
	c.checkChains()
	return nil
}

// maxConfig bounds a configuration that is rewritten.
const maxConfig = 16 << 20

// rewriteConfig rewrites a file of the configuration, told by its name and content.
func (c *Clone) rewriteConfig(it *item) error {
	if it.size > maxConfig {
		c.problem(it.name, "a configuration of %d bytes is not rewritten", it.size)
		return nil
	}
	old := make([]byte, it.size)
	if _, err := it.dst.ReadAt(old, 0); err != nil && err != io.EOF {
		return err
	}
	var now []byte
	var err error
	switch ext := strings.ToLower(filepath.Ext(it.name)); {
	case ext == ".vmx":
		now, err = c.rewriteVMX(it, old)
	case ext == ".vmsd":
		now, err = c.rewriteVMSD(it, old)
	case ext == ".vmxf":
		now, err = c.rewriteVMXF(old)
	case ext == ".vbox":
		now, err = c.rewriteVBox(it, old)
	case domain.Is(old):
		now, err = c.rewriteDomain(it, old)
	default:
		c.note("%s is taken over as it is", it.name)
		return nil
	}
	if err != nil {
		c.problem(it.name, "it could not be rewritten, and is as the machine's own: %v", err)
		return nil
	}
	return it.replace(now)
}

// replace gives a file of the clone another content.
func (it *item) replace(b []byte) error {
	it.method, it.size = rewritten, int64(len(b))
	if _, err := it.dst.WriteAt(b, 0); err != nil {
		return err
	}
	return it.dst.Truncate(it.size)
}

// settle puts the files on the disk, with the times of their sources, and sums them up.
func (c *Clone) settle(ctx context.Context) error {
	g, all := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, it := range c.items {
		g.Go(func() error {
			if err := all.Err(); err != nil {
				return err
			}
			if c.o.Sums {
				sum, err := checksum(all, it.dst)
				if err != nil {
					return err
				}
				it.sum = sum
			}
			if it.method != rewritten {
				if err := os.Chtimes(it.dst.Name(), time.Time{}, it.info.ModTime()); err != nil {
					return err
				}
			}
			return it.dst.Sync()
		})
	}
	if err := g.Wait(); err != nil || !c.o.Sums {
		return err
	}
	return c.writeSums(ctx)
}

func checksum(ctx context.Context, f *os.File) (string, error) {
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	buf := make([]byte, chunk)
	for off := int64(0); off < st.Size(); {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		n, err := f.ReadAt(buf[:min(chunk, st.Size()-off)], off)
		if n == 0 {
			return "", err
		}
		h.Write(buf[:n])
		off += int64(n)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// writeSums writes the list that sha256sum --check reads, in the clone's folder.
func (c *Clone) writeSums(ctx context.Context) error {
	var b strings.Builder
	line := func(sum, name string) {
		if escaped := strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\r", `\r`).Replace(name); escaped != name {
			b.WriteByte('\\')
			name = escaped
		}
		fmt.Fprintf(&b, "%s  %s\n", sum, name)
	}
	for _, it := range c.items {
		line(it.sum, it.name)
	}
	for i := range c.made {
		f, err := os.Open(c.stage.path(c.made[i].Path))
		if err != nil {
			return err
		}
		c.made[i].SHA256, err = checksum(ctx, f)
		f.Close()
		if err != nil {
			return err
		}
		line(c.made[i].SHA256, c.made[i].Path)
	}
	return c.make(sumsName, roleSums, []byte(b.String()), 0o666)
}

// make writes a file of the clone that the machine has none of.
func (c *Clone) make(name, role string, b []byte, mode os.FileMode) error {
	f, err := os.OpenFile(c.stage.path(name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	c.made = append(c.made, mapfile.CloneFile{Path: name, Role: role, Method: made, Size: int64(len(b))})
	return err
}
