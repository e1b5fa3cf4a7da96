package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vmkit/cmd/internal/cli"
	"vmkit/cmd/internal/repo"
	"vmkit/formats"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// machine is what becomes a point.
type machine struct {
	name   string
	images []string
	disks  []string // names, or nil
	clone  *mapfile.Clone
	raw    json.RawMessage
	vm     *mapfile.VM
	at     time.Time // the instant that the images show, or zero: now
	allow  []string  // folders that the images may refer to files in, too
}

func (o *options) run(ctx context.Context, t *cli.Term, args []string) error {
	opts, err := o.engine(t)
	if err != nil {
		return err
	}
	machines, err := fromArgs(args)
	if err != nil {
		return err
	}
	host, err := o.hostOptions(t)
	if err != nil {
		return err
	}
	if len(args) == 0 && (len(o.host) == 0 || piped(t.Stdin)) {
		if machines, err = readClones(t, len(o.host) > 0); err != nil {
			return err
		}
	}
	if e := opts.Ranges; e != nil && (len(machines) != 1 || !e.Named() && len(machines[0].images) != 1) {
		return cli.Usagef("--changed-ranges are those of one machine, and an array is that of one disk")
	}
	s, err := repo.OpenStore(ctx, o.repo, true)
	if err != nil {
		return err
	}
	defer s.Close()
	w := mapfile.NewWriter(t.Stdout)
	var made int64
	var failed []error
	if len(o.host) > 0 {
		// Before the machines' points, which take their time: the whole run is to be of one instant.
		if err := o.standStill(ctx, t, &host); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			failed = append(failed, err)
		} else {
			defer func() {
				if err := host.Files.Close(); err != nil {
					t.Error(err)
					t.Note(cli.Gaps)
				}
			}()
		}
	}
	for _, m := range machines {
		p, err := o.backup(ctx, t, s, m, opts)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			failed = append(failed, err)
			continue
		}
		made++
		if err := report(t, w, p); err != nil {
			return err
		}
	}
	if host.Files != nil {
		switch p, err := o.backupHost(ctx, t, s, w, host, opts, &made); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			failed = append(failed, err)
		default:
			made++
			if err := report(t, w, p); err != nil {
				return err
			}
		}
	}
	// One machine's trouble doesn't keep the others from their points.
	if made == 0 {
		return errors.Join(failed...)
	}
	for _, err := range failed {
		t.Error(err)
		t.Note(cli.Gaps)
	}
	if t.People {
		return nil
	}
	if err := w.Record(struct {
		Type   string `json:"type"`
		Points int64  `json:"points"`
	}{"end", made}); err != nil {
		return err
	}
	return w.Flush()
}

// engine checks the options and gives those of package repo.
func (o *options) engine(t *cli.Term) (repo.Options, error) {
	e := repo.Options{
		Full: o.full, Incremental: o.incremental, Reread: o.reread, AllBlocks: o.allBlocks, WithoutSwap: o.withoutSwap,
		Verify: o.verify, Compression: o.compression, Chain: o.chain, Bitmap: o.bitmap,
		Run: strings.ToLower(rand.Text()[:16]), Tool: cli.Tool("vmbackup"), Warn: t.Warn,
	}
	var err error
	switch {
	case o.repo == "":
		return e, cli.Usagef("--repo says where the repository is")
	case o.full && o.incremental:
		return e, cli.Usagef("--full and --incremental exclude each other")
	case !slices.Contains([]string{"sample", "full", "none"}, o.verify):
		return e, cli.Usagef("--verify is sample, full or none, not %q", o.verify)
	case !slices.Contains([]string{"zstd", "zlib", "none"}, o.compression):
		return e, cli.Usagef("--compression is zstd, zlib or none, not %q", o.compression)
	case o.chain < 0:
		return e, cli.Usagef("--chain is the number of points in a chain, or 0 for any")
	}
	if e.Sample, err = cli.Share(o.sample); err != nil {
		return e, cli.Usagef("--sample: %w", err)
	}
	if o.ranges != "" {
		if e.Ranges, err = readRanges(t, o.ranges); err != nil {
			return e, fmt.Errorf("--changed-ranges %s: %w", o.ranges, err)
		}
	}
	if e.Cluster, err = clusterSize(o.cluster); err != nil {
		return e, cli.Usagef("--cluster: %w", err)
	}
	return e, nil
}

func readRanges(t *cli.Term, name string) (*repo.ChangedRanges, error) {
	in, err := t.Input(name)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	return repo.ReadRanges(in)
}

// clusterSize reads a size such as 64K; 0 for none.
func clusterSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	number, unit := s, int64(1)
	for i, u := range "KM" {
		if n, ok := strings.CutSuffix(strings.ToUpper(s), string(u)); ok {
			number, unit = n, 1<<(10*(i+1))
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n <= 0 || n > 2<<20 || n*unit < 4<<10 || n*unit > 2<<20 || n*unit&(n*unit-1) != 0 {
		return 0, fmt.Errorf("%q is no power of two from 4K to 2M", s)
	}
	return n * unit, nil
}

// fromArgs reads MACHINE=IMAGE arguments: the images of one machine are its disks, in their order.
func fromArgs(args []string) ([]*machine, error) {
	var list []*machine
	for _, arg := range args {
		name, image, ok := strings.Cut(arg, "=")
		if !ok || name == "" || image == "" {
			return nil, cli.Usagef("%q is not of the form MACHINE=IMAGE", arg)
		}
		if err := repo.ValidMachine(name); err != nil {
			return nil, cli.Usagef("%w", err)
		}
		i := slices.IndexFunc(list, func(m *machine) bool { return m.name == name })
		if i < 0 {
			i, list = len(list), append(list, &machine{name: name})
		}
		list[i].images = append(list[i].images, image)
	}
	return list, nil
}

// piped tells whether somebody may have sent something.
func piped(stdin io.Reader) bool {
	f, ok := stdin.(*os.File)
	if !ok {
		return true
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice == 0
}

// readClones gives the machines of the clone records on stdin, once their stream is whole. Where none may be enough, an
// empty stream is no error.
func readClones(t *cli.Term, none bool) ([]*machine, error) {
	in, err := t.Input("-")
	if err != nil {
		return nil, cli.Usagef("no MACHINE=IMAGE is given, and stdin is a terminal")
	}
	defer in.Close()
	buf := bufio.NewReader(in)
	if _, err := buf.Peek(1); none && errors.Is(err, io.EOF) {
		return nil, nil
	}
	var list []*machine
	for r := mapfile.NewReader(buf); ; {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("stdin: %w", err)
		}
		x, ok := record.(*mapfile.Other)
		if !ok || x.Type != "clone" {
			continue
		}
		m := &machine{raw: slices.Clone(x.Raw), clone: &mapfile.Clone{}}
		if err := x.Decode(m.clone); err != nil {
			return nil, fmt.Errorf("stdin: %w", err)
		}
		if len(m.clone.Images) == 0 {
			return nil, fmt.Errorf("stdin: clone %s has no image", m.clone.Name)
		}
		m.name, m.images = m.clone.Name, m.clone.Images
		if len(m.clone.Of) > 0 {
			m.vm = &mapfile.VM{}
			if err := json.Unmarshal(m.clone.Of, m.vm); err != nil {
				return nil, fmt.Errorf("stdin: clone %s: its vm record: %w", m.clone.Name, err)
			}
			m.name = cmp.Or(m.vm.Name, m.name)
		}
		for _, image := range m.images {
			name := ""
			for _, f := range m.clone.Files {
				if f.Path == image {
					name = f.Disk
				}
			}
			m.disks = append(m.disks, name)
		}
		list = append(list, m)
	}
	if len(list) == 0 {
		return nil, errors.New("stdin: no clone record, and no MACHINE=IMAGE is given")
	}
	return list, nil
}

// backup makes the point of one machine.
func (o *options) backup(ctx context.Context, t *cli.Term, s repo.Store, m *machine, e repo.Options) (*repo.Point, error) {
	at := m.at
	if at.IsZero() {
		at = time.Now()
	}
	if m.vm != nil && m.vm.FrozenAt != nil {
		at = *m.vm.FrozenAt
	}
	input := o.input
	input.AllowDirs = slices.Concat(input.AllowDirs, m.allow)
	images, err := input.Open(t, m.images)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.name, err)
	}
	defer images.Close()
	var size int64
	for _, img := range images.List {
		size += img.Size()
	}
	progress := t.Progress(m.name, size, false)
	defer progress.Done()
	e.Progress = progress.Add
	in := &repo.Machine{
		Name: m.name, Images: images.List, Disks: m.disks, Build: images.Map, At: at, Clone: m.raw, VM: m.vm,
		Config: fsmap.Config{Problem: t.Problem, Note: func(where, note string) { t.Warn("%s: %s", where, note) }},
	}
	in.Open = func(name string) (*formats.Image, func(), error) {
		old, err := input.Open(t, []string{name})
		if err != nil {
			return nil, nil, err
		}
		return old.List[0], func() { old.Close() }, nil
	}
	if m.clone != nil {
		for _, f := range m.clone.Files {
			if f.Role == mapfile.RoleConfig || f.Role == mapfile.RoleFirmware {
				in.Files = append(in.Files, repo.ConfigFile{Path: f.Path, Role: f.Role})
			}
		}
	}
	return repo.Backup(ctx, s, in, e)
}

// report tells what was made: a record, or a line for people.
func report(t *cli.Term, w *mapfile.Writer, p *repo.Point) error {
	if !t.People {
		if err := w.Record(struct {
			Type string `json:"type"`
			*repo.Point
			Clone string `json:"clone,omitempty"` // instead of the whole record
		}{Type: "point", Point: p}); err != nil {
			return err
		}
		return w.Flush()
	}
	how := "full"
	if p.Parent != "" {
		how = "on " + p.Parent
		for i, d := range p.Disks {
			if i == 0 || d.Changes != p.Disks[0].Changes {
				how += ", " + d.Changes
			}
		}
	}
	_, err := fmt.Fprintf(t.Stdout, "%s %s: %s; %s read, %s stored, %.1f s\n", filepath.Base(p.Machine), p.Name, how, cli.Size(p.Read), cli.Size(p.Stored), p.Seconds)
	return err
}
