package extract

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// work does tasks until there are no more.
func (d *dirSink) work() {
	f := newFiller(&d.src)
	defer f.close()
	for t := range d.tasks {
		for _, i := range t.items {
			if d.ctx.Err() == nil {
				d.do(f, &t.b.items[i])
			}
		}
		t.b.wg.Done()
	}
}

// do makes one file.
func (d *dirSink) do(f *filler, it *item) {
	var err error
	switch it.file.Kind {
	case mapfile.Regular:
		err = d.regular(f, it)
	case mapfile.Symlink:
		err = d.symlink(it)
	default:
		err = d.node(it)
	}
	if err != nil {
		d.failed(it, err)
	}
}

// failed notes why a file could not be made. Where the output as a whole can't be written to, the run ends with the
// error that it returns.
func (d *dirSink) failed(it *item, err error) error {
	it.res.Status, it.res.Error = statusFailed, err.Error()
	it.res.Mode, it.res.UID, it.res.GID = mapfile.None, mapfile.None, mapfile.None // nothing was restored
	it.res.MTime, it.res.Target, it.res.Xattrs = mapfile.Time{}, "", nil
	if fatal(err) {
		err = fmt.Errorf("%s: %w", it.to(d), err)
		d.cancel(err)
		return err
	}
	return nil
}

// fatal tells errors of the output as a whole from those of one file.
func fatal(err error) bool {
	for _, e := range [...]unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EIO, unix.EROFS, unix.ENODEV, unix.EMFILE, unix.ENFILE} {
		if errors.Is(err, e) {
			return true
		}
	}
	return errors.Is(err, context.Canceled)
}

// regular writes a regular file.
func (d *dirSink) regular(f *filler, it *item) error {
	w, err := d.begin(f, it)
	if err != nil {
		return err
	}
	if err = f.add(it.file.Extents); err == nil {
		err = d.complete(f, w)
	}
	if err != nil {
		w.abandon()
	}
	return err
}

// finish takes the batches in order once their files are written.
func (d *dirSink) finish() {
	var last uint64
	for b := range d.retire {
		b.wg.Wait()
		for i := range b.items {
			it := &b.items[i]
			if d.ctx.Err() == nil {
				d.settleItem(it)
			}
			if it.folder != nil {
				it.folder.drop()
			}
		}
		for _, f := range b.leave {
			if d.ctx.Err() == nil {
				if err := f.leave(d); err != nil {
					d.met(f, err)
				}
			}
			f.drop()
		}
		if d.Results != nil && d.ctx.Err() == nil {
			if err := d.Results.Flush(); err != nil {
				d.cancel(err)
			}
		}
		done := uint64(d.sum.Bytes)
		d.Progress(int64(len(b.items)), int64(done-last))
		last = done
		close(b.settled)
	}
}

// settleItem links a further name, and writes the result.
func (d *dirSink) settleItem(it *item) {
	if it.line != nil {
		d.sum.Problems += it.problems
		if d.Results != nil {
			d.note(d.Results.Lines(it.line, mapfile.End{}))
		}
		return
	}
	if it.cut && it.res.Status == statusOK {
		remark(&it.res, shortened)
	}
	if g := it.link; g != nil {
		switch {
		case it.res.Status == "": // a further name
			d.link(it, g)
		case it.res.Status == statusOK:
			g.from, g.res = it.path(), it.res
		}
	}
	d.report(&it.res, it.locked)
}

// report counts, tells and writes a result.
func (r *run) report(res *mapfile.Result, locked bool) {
	r.sum.count(res, locked)
	if res.Status == statusPartial || res.Status == statusFailed {
		r.Warn("%s: %s: %s", where(res), res.Status, res.Error)
	}
	if r.Results != nil {
		r.Results.Result(res) // its error stays with Results: Flush gives it
	}
}

// note ends the run where err isn't nil.
func (d *dirSink) note(err error) {
	if err != nil {
		d.cancel(err)
	}
}

// met makes a problem of what befell a folder after its result was written.
func (d *dirSink) met(f *folder, err error) {
	d.sum.Problems++
	d.Warn("%s: %v", d.prefix+f.path, err)
	if d.Results != nil {
		d.Results.Problem(&mapfile.Problem{Image: mapfile.None, Volume: f.rec.Volume, Path: f.rec.Path, What: "folder", Error: err.Error()})
	}
}

// path gives where an item is put, below the output folder.
func (it *item) path() string { return it.folder.join(it.name) }

// to gives where an item is put, as results tell it.
func (it *item) to(d *dirSink) string { return d.prefix + it.path() }

// link makes a further name of a file. Where the host can't, or the first name didn't become whole, the file is
// written once more.
func (d *dirSink) link(it *item, g *linkGroup) {
	why := ""
	if g.from != "" {
		err := d.linkAt(g.from, it)
		if err == nil {
			res := g.res
			res.Path, res.To = it.res.Path, it.to(d)
			it.res = res
			return
		}
		if errors.Is(err, unix.EEXIST) || errors.Is(err, errSame) {
			d.failed(it, err)
			return
		}
		why = fmt.Sprintf("hard link: %v", err)
	}
	d.do(d.fin, it)
	if it.res.Status == statusOK {
		remark(&it.res, why)
		g.from, g.res = it.path(), it.res
	}
}

// join puts two texts together, with something between them where neither is empty.
func join(a, between, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + between + b
}

// remark adds to what a result says besides its status.
func remark(res *mapfile.Result, text string) { res.Error = join(res.Error, "; ", text) }
