package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/hostsnap"
	"vmkit/cmd/internal/repo"
	"vmkit/formats"
	formatsall "vmkit/formats/all"
	"vmkit/fsmap/mapfile"
)

// hostOptions checks the options for the host's own files.
func (o *options) hostOptions(t *cli.Term) (h repo.HostOptions, err error) {
	if len(o.host) == 0 && (o.exact || o.hostName != "" || len(o.exclude) > 0 || o.hostSnapshot != string(hostsnap.Auto)) {
		return h, cli.Usagef("--host-name, --host-snapshot, --exclude and --exact go with --host")
	}
	if !slices.Contains(hostsnap.Modes, hostsnap.Mode(o.hostSnapshot)) {
		return h, cli.Usagef("--host-snapshot is auto, btrfs, reflink or none, not %q", o.hostSnapshot)
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

// standStill makes the host's files stand still.
func (o *options) standStill(ctx context.Context, t *cli.Term, h *repo.HostOptions) error {
	var paths []string
	for _, p := range h.Paths {
		paths = append(paths, p.Path)
	}
	var err error
	if h.Files, err = hostsnap.Take(ctx, hostsnap.Mode(o.hostSnapshot), paths, t.Warn); err != nil {
		return fmt.Errorf("--host-snapshot %s: %w", o.hostSnapshot, err)
	}
	return nil
}

// backupHost makes the point of this host's files, and those of the guests whose disks are among them.
func (o *options) backupHost(ctx context.Context, t *cli.Term, s repo.Store, w *mapfile.Writer, h repo.HostOptions, e repo.Options, made *int64) (*repo.Point, error) {
	m := &repo.Machine{Name: o.hostName, At: h.Files.At}
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
			p, err := o.backup(ctx, t, s, o.guest(t, h.Files, name, path), e)
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

// guest is the machine whose disk is among this host's files, at path. In a snapshot nobody writes to it, even if somebody
// does to the file itself.
func (o *options) guest(t *cli.Term, files *hostsnap.Set, name, path string) *machine {
	m := &machine{name: name, images: []string{path}}
	live := files.Live(path)
	if live == path {
		return m
	}
	m.at, m.allow = files.At, []string{filepath.Dir(live)}
	src := &formats.OSSource{}
	defer src.Close()
	if _, err := src.Open(live); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Warn("%s is in use: its point shows what a loss of power would have left", live)
	}
	return m
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
