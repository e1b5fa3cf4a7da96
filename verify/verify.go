package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

// Options says how things are compared.
type Options struct {
	Dir   string // relative names lie below it
	Extra bool   // files that the account doesn't name are differences too

	Images   string     // look host files up in this folder by name, and nowhere else
	AnyMTime bool       // take host files whose time of change isn't the one in the map
	Keys     codec.Keys // gives the keys of packed extents that need one
	// Open, where set, opens the host files that don't lie on this host; for others it gives nil.
	Open func(path string) (ondisk.HostFile, error)
	// Image, where set, is told of each image, before anything of it is read.
	Image func(*mapfile.Image)

	Workers int // 0: one for each processor

	Out      *mapfile.Writer                  // where findings go; nil: nowhere
	Warn     func(format string, args ...any) // tells the user of each difference and problem
	Progress func(files, bytes int64)
}

// Summary tells what came of a comparison.
type Summary struct {
	Checked     int64 // files that were compared
	Differences int64
	Problems    int64 // passed on, and met

	read, locked int64 // files of a map that could be read, and those that could not only for want of a key
}

// Locked tells whether all that a map has is encrypted.
func (s *Summary) Locked() bool { return s.locked > 0 && s.read == 0 }

// The names of what can differ.
const (
	Content  = "content"
	Size     = "size"
	Mode     = "mode"
	Owner    = "owner"
	MTime    = "time"
	Type     = "type"
	Target   = "target"
	Xattr    = "xattr"
	Links    = "links"
	Device   = "device"
	Missing  = "missing" // the account has it, what it is compared with has not
	Extra    = "extra"   // the other way round
	HostFile = "host file"
	Extents  = "extents" // the bytes lie elsewhere
)

// run is a comparison: files are compared by several workers, and told of in order.
type run struct {
	Options
	ctx    context.Context
	cancel context.CancelCauseFunc
	sum    Summary
	order  chan *task
	tasks  chan *task
	group  sync.WaitGroup
}

// task is something to be compared, and what came of it.
type task struct {
	do   func(*task)
	done chan struct{}

	checked  int64
	bytes    int64
	read     int64
	locked   int64
	findings []mapfile.Finding
	problems []mapfile.Problem
	line     []byte        // passed on
	reached  chan struct{} // closed when all before it were told
}

func newRun(ctx context.Context, o Options) *run {
	r := &run{Options: o}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	if r.Workers <= 0 {
		r.Workers = runtime.GOMAXPROCS(0)
	}
	if r.Warn == nil {
		r.Warn = func(string, ...any) {}
	}
	if r.Progress == nil {
		r.Progress = func(int64, int64) {}
	}
	r.order, r.tasks = make(chan *task, 32*r.Workers), make(chan *task, r.Workers)
	for range r.Workers {
		r.group.Go(func() {
			for t := range r.tasks {
				t.do(t)
				close(t.done)
			}
		})
	}
	r.group.Go(r.tell)
	return r
}

// submit has something compared.
func (r *run) submit(do func(*task)) error {
	t := &task{do: do, done: make(chan struct{})}
	select {
	case r.order <- t:
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
	r.tasks <- t
	return nil
}

// say puts something that needs no work in its place among the others.
func (r *run) say(t *task) error {
	t.done = make(chan struct{})
	close(t.done)
	select {
	case r.order <- t:
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
}

// barrier waits until all that was submitted is done.
func (r *run) barrier() error {
	t := &task{reached: make(chan struct{})}
	if err := r.say(t); err != nil {
		return err
	}
	<-t.reached
	return context.Cause(r.ctx)
}

// pass passes on a record.
func (r *run) pass(p *mapfile.Problem, line []byte) error {
	if p != nil {
		return r.say(&task{problems: []mapfile.Problem{*p}})
	}
	return r.say(&task{line: append(line, '\n')})
}

// tell writes what came of the tasks, in order.
func (r *run) tell() {
	for t := range r.order {
		<-t.done
		if t.reached != nil {
			close(t.reached)
		}
		if r.ctx.Err() != nil {
			continue
		}
		r.sum.Checked += t.checked
		r.sum.read += t.read
		r.sum.locked += t.locked
		var err error
		if t.line != nil && r.Out != nil {
			err = r.Out.Lines(t.line, mapfile.End{})
		}
		for i := range t.findings {
			f := &t.findings[i]
			r.sum.Differences++
			r.Warn("%s", Text(f))
			if r.Out != nil {
				err = errors.Join(err, r.Out.Finding(f))
			}
		}
		for i := range t.problems {
			r.sum.Problems++
			if r.Out != nil {
				err = errors.Join(err, r.Out.Problem(&t.problems[i]))
			}
		}
		if err != nil {
			r.cancel(err)
		}
		r.Progress(t.checked, t.bytes)
	}
}

// finish ends the comparison; err is what kept it from going on.
func (r *run) finish(err error) (Summary, error) {
	close(r.order)
	close(r.tasks)
	r.group.Wait()
	if cause := context.Cause(r.ctx); cause != nil && (err == nil || errors.Is(err, context.Canceled)) {
		err = cause
	}
	r.cancel(nil)
	if err == nil && r.Out != nil {
		err = r.Out.End(&mapfile.End{Kind: mapfile.EndOfFindings, Checked: r.sum.Checked, Differences: r.sum.Differences, Problems: r.sum.Problems})
	}
	return r.sum, err
}

// Text renders a finding for people.
func Text(f *mapfile.Finding) string {
	path := f.Path
	if f.Stream != "" {
		path += ":" + f.Stream
	}
	reader := ""
	if f.Reader != "" {
		reader = f.Reader + ": "
	}
	switch f.What {
	case Missing:
		return fmt.Sprintf("%s%s: missing: %s", reader, path, f.Expected)
	case Extra:
		return fmt.Sprintf("%s%s: not in the account: %s", reader, path, f.Found)
	}
	return fmt.Sprintf("%s%s: %s is %s, should be %s", reader, path, f.What, f.Found, f.Expected)
}

// diff notes a difference.
func (t *task) diff(at mapfile.Finding, what, expected, found string) {
	at.What, at.Expected, at.Found = what, expected, found
	t.findings = append(t.findings, at)
}

// problem notes what could not be compared.
func (t *task) problem(at mapfile.Finding, what string, err error) {
	t.problems = append(t.problems, mapfile.Problem{Image: mapfile.None, Volume: at.Volume, Path: at.Path, Stream: at.Stream, What: what, Error: err.Error()})
}

// errNothing is what a stream without anything to compare gives.
var errNothing = errors.New("there is neither a result nor a map in what was read")

// Records compares what a stream of records tells: results with the files that they name, a map with its host files.
// Problems and records of other kinds are passed on.
func Records(ctx context.Context, in *mapfile.Reader, o Options) (Summary, error) {
	r := newRun(ctx, o)
	return r.finish(r.records(in))
}

func (r *run) records(in *mapfile.Reader) error {
	results := newResults(r)
	var m *mapCheck
	defer func() {
		if m != nil {
			m.close()
		}
	}()
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		rec, err := in.Next()
		if err == io.EOF {
			if m == nil && results.seen == 0 && !results.ended {
				return errNothing
			}
			return results.end()
		}
		if err != nil {
			return fmt.Errorf("records: %w", err)
		}
		switch x := rec.(type) {
		case *mapfile.Problem:
			err = r.pass(x, nil)
		case *mapfile.Other:
			err = r.pass(nil, x.Raw)
		case *mapfile.Result:
			err = results.add(x)
		case *mapfile.End:
			results.ended = results.ended || x.Kind == mapfile.EndOfResults
			if m != nil {
				err = m.end()
			}
		case *mapfile.Map:
			m = newMapCheck(r)
		case *mapfile.Image:
			err = m.image(x)
		case *mapfile.Volume:
			m.volumes[x.ID] = x
		case *mapfile.File:
			err = m.file(x)
		case *mapfile.Extents:
			err = m.extents(x)
		}
		if err != nil {
			return err
		}
	}
}
