package extract

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

// Options says what is extracted, and how.
type Options struct {
	Patterns mapfile.Patterns // which files; all by default

	Owner   bool // restore owners
	Special bool // make device nodes and sockets, set set-id bits and file capabilities
	Streams bool // extract alternate streams, as "name:stream"
	Force   bool // overwrite what existed before

	Images   string     // look host files up in this folder by name, and nowhere else
	AnyMTime bool       // take host files whose time of change isn't the one in the map
	Keys     codec.Keys // gives the keys of packed extents that need one
	// Open, where set, opens the host files that don't lie on this host; for others it gives nil.
	Open func(path string) (ondisk.HostFile, error)
	// Image, where set, is told of each image, before anything of it is read.
	Image func(*mapfile.Image)

	Workers int // 0: one for each processor

	Results  *mapfile.Writer                  // where result records go; nil: nowhere
	Warn     func(format string, args ...any) // tells the user of each gap
	Progress func(files, bytes int64)         // counts what was done
}

// Summary tells what became of a run.
type Summary struct {
	OK, Partial, Failed, Skipped int64
	Bytes                        int64 // of the whole files
	Encrypted                    int64 // of those that are not whole, how many only for want of a key
	Problems                     int64 // passed on from the map, and met
}

// Gaps tells whether anything that was asked for could not be done.
func (s *Summary) Gaps() bool { return s.Problems > 0 || s.Partial > 0 || s.Failed > 0 }

// Locked tells whether all that was asked for is encrypted.
func (s *Summary) Locked() bool {
	return s.Encrypted > 0 && s.Encrypted == s.Partial+s.Failed && s.OK == 0
}

func (s *Summary) count(r *mapfile.Result, encrypted bool) {
	switch r.Status {
	case statusOK:
		s.OK++
		if r.Size > 0 {
			s.Bytes += r.Size
		}
	case statusPartial:
		s.Partial++
	case statusFailed:
		s.Failed++
	case statusSkipped:
		s.Skipped++
	}
	if encrypted && (r.Status == statusPartial || r.Status == statusFailed) {
		s.Encrypted++
	}
}

const (
	statusOK      = "ok"
	statusPartial = "partial"
	statusFailed  = "failed"
	statusSkipped = "skipped"
)

// maxHeld is how many extents of one file are held in memory. A file that has more is written while its extents are
// still being read.
const maxHeld = 128 << 10

// sink takes a map's files one after another.
type sink interface {
	// file takes a file with all of its extents. It copies what it keeps.
	file(v *mapfile.Volume, f *mapfile.File, chosen bool) error
	// long takes a file with more than maxHeld extents, of which f has the first ones. It is followed by extents, the
	// last of which has no More.
	long(v *mapfile.Volume, f *mapfile.File, chosen bool) error
	extents(x *mapfile.Extents) error
	// own takes the own extents of the volume that the run is about.
	own(v *mapfile.Volume, x *mapfile.Extents, first bool) error
	// pass takes a line that goes to the results at this place.
	pass(line []byte, problems int64) error
	// settle waits until all that was given is done.
	settle() error
}

// run holds what all ways of extracting have in common.
type run struct {
	Options
	ctx context.Context
	src source
	sum Summary

	volumes map[int]*mapfile.Volume
	names   []string                 // of all volumes
	on      map[int]mapfile.Patterns // those that may select something on a volume
	hits    map[string]bool          // patterns that did
	volume  string                   // whose own extents are wanted, or empty
	seen    bool                     // they came
	inOwn   bool                     // and go on

	held    mapfile.File // a file whose extents are being gathered
	list    []mapfile.Extent
	holding bool
	long    bool
}

func newRun(ctx context.Context, o Options) *run {
	r := &run{Options: o, ctx: ctx, hits: make(map[string]bool)}
	if r.Workers <= 0 {
		r.Workers = runtime.GOMAXPROCS(0)
	}
	if r.Warn == nil {
		r.Warn = func(string, ...any) {}
	}
	if r.Progress == nil {
		r.Progress = func(int64, int64) {}
	}
	r.src.keys = o.Keys
	r.src.hosts = hosts{folder: o.Images, anyMTime: o.AnyMTime, elsewhere: o.Open}
	r.src.hosts.reset()
	return r
}

// errNoMap is what a stream without a map gives.
var errNoMap = errors.New("there is no map in what was read")

// read takes the stream through s.
func (r *run) read(in *mapfile.Reader, s sink) error {
	defer r.src.hosts.reset()
	maps := 0
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		rec, err := in.Next()
		switch {
		case err == io.EOF && maps == 0:
			return errNoMap
		case err == io.EOF:
			return r.missed(s)
		case err != nil:
			return fmt.Errorf("map: %w", err)
		}
		switch x := rec.(type) {
		case *mapfile.Map:
			maps++
			r.volumes, r.on = make(map[int]*mapfile.Volume), make(map[int]mapfile.Patterns)
		case *mapfile.Image:
			if err = r.src.hosts.add(x); err == nil && r.Image != nil {
				r.Image(x)
			}
		case *mapfile.Volume:
			r.volumes[x.ID] = x
			r.names = append(r.names, x.Name)
			if on, ok := r.Patterns.On(x.Name); ok {
				r.on[x.ID] = on
			}
		case *mapfile.File:
			err = r.file(s, x)
		case *mapfile.Extents:
			err = r.extents(s, x)
		case *mapfile.Problem:
			err = s.pass(mapfile.AppendProblem(nil, x), 1)
		case *mapfile.Other:
			err = s.pass(append(x.Raw, '\n'), 0)
		case *mapfile.End:
			if maps > 0 {
				err = r.endMap(s)
			}
		default:
			err = errNoMap
		}
		if err != nil {
			return err
		}
	}
}

// endMap finishes one map: the next one has its own host files.
func (r *run) endMap(s sink) error {
	if err := s.settle(); err != nil {
		return err
	}
	for _, err := range r.src.hosts.changed() {
		r.Warn("%v, while it was read", err)
		p := mapfile.Problem{Image: mapfile.None, Volume: mapfile.None, What: "host file", Error: err.Error()}
		if err := s.pass(mapfile.AppendProblem(nil, &p), 1); err != nil {
			return err
		}
	}
	r.src.hosts.reset()
	r.src.cache.reset()
	return s.settle()
}

// endResults writes the end of the results.
func (r *run) endResults() error {
	if r.Results == nil {
		return nil
	}
	s := &r.sum
	return r.Results.End(&mapfile.End{Kind: mapfile.EndOfResults, OK: s.OK, Partial: s.Partial, Failed: s.Failed,
		Skipped: s.Skipped, Bytes: s.Bytes, Problems: s.Problems})
}

// chosen tells whether a file is to be extracted.
func (r *run) chosen(v *mapfile.Volume, path string) bool {
	if r.Patterns.All() {
		return true
	}
	on, ok := r.on[v.ID]
	if !ok || on.Match(path) != mapfile.Inside {
		return false
	}
	on.Hits(path, func(text string) { r.hits[text] = true })
	return true
}

// missed makes a problem of each pattern that selected nothing. Where none did, that is an error.
func (r *run) missed(s sink) error {
	if len(r.hits) == 0 && !r.Patterns.All() {
		return fmt.Errorf("no file matches %s", strings.Join(r.Patterns.Texts(), ", "))
	}
	for _, text := range r.Patterns.Texts() {
		if !r.hits[text] {
			r.Warn("no file matches %s", text)
			p := mapfile.Problem{Image: mapfile.None, Volume: mapfile.None, What: "pattern", Error: "no file matches " + text}
			if err := s.pass(mapfile.AppendProblem(nil, &p), 1); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *run) file(s sink, f *mapfile.File) error {
	v := r.volumes[f.Volume]
	if !f.More {
		return s.file(v, f, r.chosen(v, f.Path))
	}
	r.list = append(r.list[:0], f.Extents...)
	r.held, r.holding, r.long = *f, true, false
	return nil
}

func (r *run) extents(s sink, x *mapfile.Extents) error {
	if r.long {
		r.long = x.More
		return s.extents(x)
	}
	if !r.holding {
		return r.own(s, x)
	}
	v := r.volumes[r.held.Volume]
	r.list = append(r.list, x.Extents...)
	r.held.Extents, r.held.More = r.list, x.More
	switch {
	case !x.More:
		r.holding = false
		err := s.file(v, &r.held, r.chosen(v, r.held.Path))
		if cap(r.list) > maxHeld/8 {
			r.list = nil
		}
		return err
	case len(r.list) > maxHeld:
		r.holding, r.long = false, true
		return s.long(v, &r.held, r.chosen(v, r.held.Path))
	}
	return nil
}

// own takes up a volume's own extents.
func (r *run) own(s sink, x *mapfile.Extents) error {
	v := r.volumes[x.Volume]
	if r.volume == "" || v.Name != r.volume || r.seen && !r.inOwn {
		return nil
	}
	first := !r.inOwn
	r.seen, r.inOwn = true, x.More
	return s.own(v, x, first)
}

// result begins the result record of a file.
func result(v *mapfile.Volume, f *mapfile.File) mapfile.Result {
	r := mapfile.Result{Volume: f.Volume, Name: v.Name, Path: f.Path, Stream: f.Stream, Kind: f.Kind,
		Size: mapfile.None, Mode: mapfile.None, UID: mapfile.None, GID: mapfile.None}
	if f.Kind == mapfile.Regular {
		r.Size = f.Size
	}
	return r
}

// where names a file in a message.
func where(r *mapfile.Result) string {
	s := r.Name + ":" + r.Path
	if r.Stream != "" {
		s += ":" + r.Stream
	}
	return s
}

// left tells why a file is left out on purpose, or gives "".
func (r *run) left(f *mapfile.File) string {
	switch {
	case f.Stream != "" && !r.Streams:
		return "alternate stream (--streams extracts it)"
	case f.Kind == mapfile.Char && !r.Special, f.Kind == mapfile.Block && !r.Special:
		return "device node (--special makes it)"
	case f.Kind == mapfile.Socket && !r.Special:
		return "socket (--special makes it)"
	}
	return ""
}

// badPath tells what keeps a path from being one of the host, or gives nil. The map's paths begin with a slash and
// have no empty, "." or ".." names; others would climb out or name one file twice.
func badPath(path string) error {
	if path == "/" {
		return nil
	}
	rest, ok := strings.CutPrefix(path, "/")
	if !ok {
		return errors.New("a path that doesn't begin with a slash")
	}
	return badRelative(rest)
}

// badRelative is badPath for what has no slash before it: a volume's name.
func badRelative(path string) error {
	for name := range strings.SplitSeq(path, "/") {
		switch name {
		case "":
			return errors.New("a path with an empty name in it")
		case ".", "..":
			return fmt.Errorf("a path with %q in it", name)
		}
	}
	if strings.IndexByte(path, 0) >= 0 {
		return errors.New("a path with a NUL in it")
	}
	return nil
}
