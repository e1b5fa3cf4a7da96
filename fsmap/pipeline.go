package fsmap

import (
	"cmp"
	"context"
	"runtime"
	"sync"
)

// window is how many batches a worker may be ahead of the writer.
const window = 4

// pipeline runs produce, which sends batches, and workers, which make their records, and writes these in the order of
// the batches. It returns the first error of either end.
func (b *builder) pipeline(ctx context.Context, produce func(ctx context.Context, send func(*batch) *batch) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n := cmp.Or(b.c.Workers, runtime.GOMAXPROCS(0))
	jobs, order := make(chan *batch), make(chan *batch, n*window)
	buffs, idle := make(chan []byte, n*window), make(chan *batch, 2*n*window)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			k := newWorker(b.c, buffs)
			for batch := range jobs {
				k.work(ctx, batch)
			}
		})
	}
	var failed error
	wg.Go(func() {
		defer close(order)
		defer close(jobs)
		failed = produce(ctx, func(full *batch) *batch {
			if full != nil {
				order <- full // first: a worker may wait for the writer only with the oldest batch
				jobs <- full
			}
			select {
			case b := <-idle:
				return b
			default:
				return &batch{out: make(chan chunk, 1)}
			}
		})
	})
	var err error
	for batch := range order {
		for last := false; !last; {
			c := <-batch.out
			if last = c.last; err == nil {
				if err = b.write(&c); err != nil {
					cancel() // the rest is only taken off the channels
				}
			}
			select {
			case buffs <- c.lines[:0]:
			default:
			}
		}
		batch.items, batch.paths = batch.items[:0], batch.paths[:0]
		select {
		case idle <- batch:
		default:
		}
	}
	wg.Wait()
	return cmp.Or(err, failed)
}

// write writes finished records and tells of what they say.
func (b *builder) write(c *chunk) error {
	err := b.w.Lines(c.lines, c.count)
	for i := range c.problems {
		if b.c.Problem != nil {
			b.c.Problem(&b.names, &c.problems[i])
		}
	}
	b.content.files += c.content.files
	b.content.locked += c.content.locked
	if b.c.Progress != nil {
		b.c.Progress(c.count.Files)
	}
	return err
}

// newWalker makes the walker of a volume. send takes a full batch, or nil, and gives an empty one.
func newWalker(v *volume, hash bool, hit func(string), send func(*batch) *batch) *walker {
	w := &walker{fs: v.fs, size: v.Size, on: v.on, hit: hit, batchSize: batchNames}
	if hash {
		w.batchSize = hashNames
	}
	w.send = func(full *batch) *batch {
		b := send(full)
		b.vol, b.fs = v, w.fs
		return b
	}
	w.batch = w.send(nil)
	return w
}
