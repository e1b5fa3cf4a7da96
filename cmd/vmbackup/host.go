package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/formats"
	formatsall "vmkit/formats/all"
	"vmkit/fsmap/mapfile"
)

// hostOptions checks the options for the host's own files.
func (o *options) hostOptions(t *cli.Term) (h repo.HostOptions, err error) {
	if len(o.host) == 0 && (o.exact || o.hostName != "" || len(o.exclude) > 0) {
		return h, cli.Usagef("--host-name, --exclude and --exact go with --host")
	}
	for _, s := range o.host {
		p, err := repo.ParseHostPath(s)
		if err != nil {
			return h, cli.Usagef("--host: %w", err)
		}
		h.Paths = append(h.Paths, p)
	}
	if h.Exclude, err = mapfile.ParsePatterns(o.exclude); err != nil {
		return h, cli.Usagef("--exclude: %w", err)
	}
	h.Problem = t.Problem
	return h, nil
}

// backupHost makes the point of this host's files, and those of the guests whose disks are among them.
func (o *options) backupHost(ctx context.Context, t *cli.Term, s repo.Store, w *mapfile.Writer, h repo.HostOptions, e repo.Options, made *int64) (*repo.Point, error) {
	m := &repo.Machine{Name: o.hostName, At: time.Now()}
	if m.Name == "" {
		name, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("this host has no name: give one with --host-name: %w", err)
		}
		m.Name = name
	}
	if !o.exact {
		taken := map[string]bool{m.Name: true}
		h.Guest = func(ctx context.Context, path string) (*repo.Kept, error) {
			if !diskImage(path) {
				return nil, nil
			}
			base := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
			name := base
			for i := 2; taken[name] || repo.ValidMachine(name) != nil && i < 3; i++ {
				name = fmt.Sprintf("guest-%s-%d", base, i)
			}
			taken[name] = true
			p, err := o.backup(ctx, t, s, &machine{name: name, images: []string{path}}, e)
			if err != nil {
				return nil, fmt.Errorf("as a guest's disk: %w", err)
			}
			*made++
			d := p.Disks[0]
			return &repo.Kept{Machine: p.Machine, Point: p.Name, Disk: d.Name, Format: d.Format}, report(t, w, p)
		}
	}
	progress := t.Progress(m.Name, -1, false)
	defer progress.Done()
	e.Progress = progress.Add
	return repo.BackupHost(ctx, s, m, h, e)
}

// imageNames end the names of disk images.
var imageNames = []string{".qcow2", ".qcow", ".vmdk", ".vdi", ".vhd", ".vhdx"}

// diskImage tells whether a file of this host is a guest's disk: of a format that is recognised, or raw with a partition
// table of the newer kind. Of small files, which there are many of, only those are looked at that are called so.
func diskImage(path string) bool {
	if st, err := os.Stat(path); err != nil || st.Size() < formats.ProbeLen && !slices.Contains(imageNames, strings.ToLower(filepath.Ext(path))) {
		return false
	}
	src := &formats.OSSource{ForceShare: true}
	defer src.Close()
	f, err := src.Open(path)
	if err != nil {
		return false
	}
	head := make([]byte, min(f.Size, formats.ProbeLen))
	if n, _ := f.ReadAt(head, 0); n < len(head) {
		return false
	}
	for _, x := range formatsall.Formats {
		if x.Probe != nil && x.Members == nil && x.Probe(f, head) {
			return true
		}
	}
	return len(head) > 520 && string(head[510:520]) == "\x55\xaaEFI PART"
}
