package verify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"vmkit/fsmap/mapfile"
)

// SecondReader reads the guest of a map once more through other people's libraries, and compares names, kinds, sizes,
// targets and bytes. Each library works in a child process, started as argv, that calls SecondReaderChild. What is known
// to be a library's fault is told in remark records, and is no difference.
func SecondReader(ctx context.Context, in *mapfile.Reader, argv []string, o Options) (Summary, error) {
	r := newRun(ctx, o)
	s := &second{mapCheck: newMapCheck(r), argv: argv, images: make(map[int]*mapfile.Image)}
	err := s.read(in)
	s.stop()
	s.close()
	return r.finish(err)
}

// second goes through a map and asks the children about each of its files.
type second struct {
	*mapCheck
	argv   []string
	images map[int]*mapfile.Image
	vol    *mapfile.Volume
	others []*other // the libraries that read the volume too
}

// other is a library that reads the volume.
type other struct {
	*reader
	stack []*listing // of the folders down to where the map stands
}

// listing is what a library says that is in a folder.
type listing struct {
	path    string
	entries map[string]replyEntry
	regular int
	seen    int    // regular files of the map that came
	why     string // there is none
}

// These libraries find a file by going through all of the folders above it, from the top, each time. Of the files of a
// large folder they read a sample.
const (
	sampleFrom = 2000
	sample     = 200
)

func (s *second) read(in *mapfile.Reader) error {
	seen := false
	for {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		rec, err := in.Next()
		switch {
		case err == io.EOF && seen:
			return nil
		case err == io.EOF:
			return errNothing
		case err != nil:
			return fmt.Errorf("map: %w", err)
		}
		switch x := rec.(type) {
		case *mapfile.Map:
			seen = true
			s.mapCheck = newMapCheck(s.run)
		case *mapfile.Problem:
			err = s.pass(x, nil)
		case *mapfile.Other:
			err = s.pass(nil, x.Raw)
		case *mapfile.Image:
			s.images[x.ID] = x
			err = s.image(x)
		case *mapfile.Volume:
			s.volumes[x.ID] = x
		case *mapfile.File:
			s.now, s.list = *x, slices.Clone(x.Extents)
			if !x.More {
				err = s.compareFile()
			}
		case *mapfile.Extents:
			if x.Path == "" {
				break
			}
			if len(s.list) <= maxHeld {
				s.list = append(s.list, x.Extents...)
			}
			if !x.More {
				err = s.compareFile()
			}
		case *mapfile.End:
			err = errors.Join(s.leave(), s.end())
		default:
			err = errNothing
		}
		if err != nil {
			return err
		}
	}
}

// remark tells of a reader's own fault or limit.
func (s *second) remark(reader, path, text string) error {
	b, err := json.Marshal(struct {
		Type   string `json:"type"`
		Reader string `json:"reader,omitempty"`
		Volume string `json:"volume"`
		Path   string `json:"path"`
		What   string `json:"what"`
	}{"remark", reader, s.vol.Name, strings.ToValidUTF8(path, "\uFFFD"), text})
	if err != nil {
		return err
	}
	return s.pass(nil, b)
}

// enter starts the readers of a volume.
func (s *second) enter(v *mapfile.Volume) error {
	s.vol = v
	img := s.images[v.Image]
	names := readersOf(v.FS)
	why := ""
	switch {
	case len(names) == 0:
		why = "no second reader for " + v.FS
	case v.Journal == "replayed":
		why = "its journal was replayed: the second readers see the state before"
	case img == nil || v.Start < 0 || len(v.Segments) > 0:
		why = "no second reader for a volume that isn't one range of an image"
	case img.Format != "raw" && img.Format != "qcow2" || img.Encryption != "":
		why = "no second reader for " + img.Format + " " + img.Encryption
	case len(img.Files) == 0 || slices.ContainsFunc(img.Files, func(h mapfile.HostFile) bool { return h.Role != "top" && h.Role != "backing" }):
		why = "no second reader for an image of such parts"
	}
	if why != "" {
		return s.remark("", "/", why)
	}
	i := slices.IndexFunc(s.hosts, func(h hostFile) bool { return h.rec.ID == img.Files[0].ID })
	if i < 0 {
		return nil // it is missing, and was told so
	}
	for _, name := range names {
		if fault := volumeFault(name, v); fault != "" {
			if err := s.remark(name, "/", fault); err != nil {
				return err
			}
			continue
		}
		r := &reader{ctx: s.ctx, argv: s.argv, job: job{Reader: name, Path: s.hosts[i].rec.Path, Format: img.Format, FS: v.FS, Start: v.Start, Size: v.Size}}
		if err := r.start(); err != nil {
			if s.ctx.Err() != nil {
				return s.ctx.Err()
			}
			if err := s.remark(name, "/", err.Error()); err != nil {
				return err
			}
			continue
		}
		s.others = append(s.others, &other{reader: r})
	}
	return nil
}

// leave ends the readers of a volume.
func (s *second) leave() error {
	for _, o := range s.others {
		if err := s.climb(o, ""); err != nil {
			return err
		}
	}
	s.stop()
	s.vol = nil
	return nil
}

func (s *second) stop() {
	for _, o := range s.others {
		o.stop()
	}
	s.others = nil
}

// compareFile compares a file of the map with what the others say of it.
func (s *second) compareFile() error {
	f := &s.now
	if s.vol == nil || s.vol.ID != f.Volume {
		if err := s.leave(); err != nil {
			return err
		}
		if err := s.enter(s.volumes[f.Volume]); err != nil {
			return err
		}
	}
	if f.Stream != "" {
		return nil
	}
	mine := f.SHA256
	for _, o := range s.others {
		if o.gone {
			continue
		}
		if err := s.climb(o, f.Path); err != nil {
			return err
		}
		t := &task{checked: 1}
		if err := s.compareWith(o, t, &mine); err != nil {
			return err
		}
		if err := s.run.say(t); err != nil {
			return err
		}
	}
	return nil
}

// climb leaves the folders that path isn't in, and tells what is in them that the map has not. "" leaves all.
func (s *second) climb(o *other, path string) error {
	for len(o.stack) > 0 {
		l := o.stack[len(o.stack)-1]
		if path != "" && (l.path == "/" || strings.HasPrefix(path, l.path+"/")) {
			return nil
		}
		o.stack = o.stack[:len(o.stack)-1]
		t := &task{}
		names := make([]string, 0, len(l.entries))
		for n := range l.entries {
			names = append(names, n)
		}
		slices.Sort(names)
		for _, n := range names {
			e := l.entries[n]
			at := mapfile.Finding{Volume: s.vol.ID, Path: strings.TrimSuffix(l.path, "/") + "/" + n, Reader: o.job.Reader}
			if fault := extraFault(o.job.Reader, s.vol, at.Path); fault != "" {
				if err := s.remark(o.job.Reader, at.Path, fault); err != nil {
					return err
				}
			} else {
				t.diff(at, Extra, "nothing", e.Kind.String())
			}
		}
		if err := s.run.say(t); err != nil {
			return err
		}
	}
	return nil
}

func (s *second) compareWith(o *other, t *task, mine *string) error {
	f, name := &s.now, o.job.Reader
	at := mapfile.Finding{Volume: s.vol.ID, Path: f.Path, Reader: name}
	e := replyEntry{Kind: mapfile.Directory}
	if f.Path != "/" {
		if len(o.stack) == 0 {
			return nil // a selection of files, without the folder that they are in
		}
		l := o.stack[len(o.stack)-1]
		if l.why != "" {
			return s.below(o, l.why)
		}
		base := f.Path[strings.LastIndexByte(f.Path, '/')+1:]
		var ok bool
		if e, ok = l.entries[base]; !ok {
			if fault := lostFault(name, s.vol, f); fault != "" {
				return errors.Join(s.remark(name, f.Path, fault), s.below(o, fault))
			}
			t.diff(at, Missing, f.Kind.String(), "nothing")
			return s.below(o, "it is missing")
		}
		delete(l.entries, base)
	}
	if e.Kind != f.Kind {
		if fault := kindFault(name, f, e.Kind); fault != "" {
			return errors.Join(s.remark(name, f.Path, fault), s.below(o, fault))
		}
		t.diff(at, Type, f.Kind.String(), e.Kind.String())
		return s.below(o, "it is no folder there")
	}
	switch f.Kind {
	case mapfile.Directory:
		return s.descend(o)
	case mapfile.Symlink:
		return s.target(o, t, at)
	case mapfile.Regular:
		return s.content(o, t, at, e, mine)
	}
	return nil
}

// below makes what is in a folder that can't be listed pass without more words.
func (s *second) below(o *other, why string) error {
	if s.now.Kind == mapfile.Directory {
		o.stack = append(o.stack, &listing{path: s.now.Path, why: why})
	}
	return nil
}

// descend lists a folder.
func (s *second) descend(o *other) error {
	if fault := folderFault(&s.now); fault != "" {
		return errors.Join(s.remark(o.job.Reader, s.now.Path, fault), s.below(o, fault))
	}
	r, err := o.ask(request{What: "list", Path: inner(s.now.Path)}, 0)
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		return errors.Join(s.trouble(o, err), s.below(o, err.Error()))
	}
	l := &listing{path: s.now.Path, entries: make(map[string]replyEntry, len(r.Entries))}
	for _, e := range r.Entries {
		if l.entries[string(e.Name)] = e; e.Kind == mapfile.Regular {
			l.regular++
		}
	}
	o.stack = append(o.stack, l)
	return nil
}

// inner is a path without its first slash.
func inner(path string) []byte { return []byte(strings.TrimPrefix(path, "/")) }

// trouble tells what a reader could not do.
func (s *second) trouble(o *other, err error) error {
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	return s.remark(o.job.Reader, s.now.Path, err.Error())
}

func (s *second) target(o *other, t *task, at mapfile.Finding) error {
	r, err := o.ask(request{What: "target", Path: inner(s.now.Path)}, 0)
	switch {
	case err == nil && r.Unknown:
		return nil
	case err == nil && r.Error != "":
		err = errors.New(r.Error)
	}
	if err != nil {
		return s.trouble(o, err)
	}
	if got := string(r.Target); got != s.now.Target && got != cleaned(s.now.Target) {
		if fault := targetFault(o.job.Reader, s.vol, s.now.Target); fault != "" {
			return s.remark(o.job.Reader, s.now.Path, fault)
		}
		t.diff(at, Target, s.now.Target, got)
	}
	return nil
}

// content compares a regular file's size and bytes. mine keeps the sum of what the map says.
func (s *second) content(o *other, t *task, at mapfile.Finding, e replyEntry, mine *string) error {
	f, name := &s.now, o.job.Reader
	if l := o.stack[len(o.stack)-1]; l.regular > sampleFrom {
		if l.seen++; l.seen%(l.regular/sample) != 1 {
			return nil
		}
	}
	if len(s.list) > maxHeld {
		return s.remark("", f.Path, fmt.Sprintf("more than %d extents: not read", maxHeld))
	}
	if fault := unreadable(name, s.vol, f, s.list); fault != "" {
		return s.remark(name, f.Path, fault)
	}
	if e.Size != f.Size {
		t.diff(at, Size, fmt.Sprint(f.Size), fmt.Sprint(e.Size))
		return nil
	}
	r, err := o.ask(request{What: "read", Path: inner(f.Path), ID: e.ID}, f.Size)
	if err == nil && r.Error != "" {
		err = errors.New(r.Error)
	}
	if err != nil {
		return s.trouble(o, err)
	}
	if *mine == "" {
		x := newSumming(f)
		x.add(s.bytes, s.list)
		var got task
		if x.end(&got); len(got.problems) > 0 {
			t.problems = got.problems
			return nil
		}
		if x.hollow {
			return s.remark("", f.Path, "nearly all holes: not read")
		}
		*mine = x.sum()
	}
	t.bytes += f.Size
	if r.Sum != *mine {
		if fault := contentFault(name, s.vol, s.list); fault != "" {
			return s.remark(name, f.Path, fault)
		}
		t.diff(at, Content, *mine, r.Sum)
	}
	return nil
}
