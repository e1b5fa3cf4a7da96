package extract

import (
	"context"

	"vmkit/fsmap/mapfile"
)

// line is the way from the goroutine that goes through the map to the one that writes an output that is one stream.
type line struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	items  chan any
	done   chan struct{}
}

// newLine has take called for each item in order, on a goroutine of its own. Its error ends the run.
func newLine(ctx context.Context, cancel context.CancelCauseFunc, take func(any) error) *line {
	l := &line{ctx: ctx, cancel: cancel, items: make(chan any, 128), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for it := range l.items {
			if ctx.Err() != nil {
				continue // until the sender has noticed
			}
			var err error
			switch x := it.(type) {
			case func() error:
				err = x()
			default:
				err = take(x)
			}
			if err != nil {
				cancel(err)
			}
		}
	}()
	return l
}

// send puts an item on the line. A func() error is called when its turn comes.
func (l *line) send(it any) error {
	select {
	case l.items <- it:
		return nil
	case <-l.ctx.Done():
		return context.Cause(l.ctx)
	}
}

// settle waits until all that was sent is written.
func (l *line) settle() error {
	reached := make(chan struct{})
	if err := l.send(func() error { close(reached); return nil }); err != nil {
		return err
	}
	select {
	case <-reached:
	case <-l.ctx.Done():
	}
	return context.Cause(l.ctx)
}

// pass writes a line to the results when its turn comes.
func (l *line) pass(r *run, b []byte, problems int64) error {
	return l.send(func() error {
		r.sum.Problems += problems
		if r.Results == nil {
			return nil
		}
		return r.Results.Lines(b, mapfile.End{})
	})
}

// close waits for the writing to end.
func (l *line) close() {
	close(l.items)
	<-l.done
}
