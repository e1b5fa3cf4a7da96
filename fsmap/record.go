package fsmap

import (
	"vmkit/fsmap/mapfile"
)

// recorder makes the records of files one after the other: begin, extents pushed into comp, end. It cuts lists of
// extents that are too long for a record. One goroutine uses it.
type recorder struct {
	comp composer
	rec  mapfile.File
	// own says that these are a volume's own extents, so that there is no file record.
	own   bool
	begun bool              // the first record was made, and more extents follow
	open  bool              // Rebase: the file goes on in the next record that is read
	held  []mapfile.Problem // that follow the file's last record

	lines    []byte
	count    mapfile.End
	problems []mapfile.Problem // that are among the lines
	// long is called when lines have grown long while a file is not whole.
	long func() error
}

func newRecorder(long func() error) *recorder {
	r := &recorder{long: long}
	r.comp.full = r.spill
	return r
}

// begin starts on the file rec.
func (r *recorder) begin(rec *mapfile.File) {
	r.rec, r.own, r.begun = *rec, false, false
	r.comp.begin()
}

// beginOwn starts on the extents of a volume itself.
func (r *recorder) beginOwn(volume int) {
	r.rec, r.own, r.begun = mapfile.File{Volume: volume}, true, true
	r.comp.begin()
}

// end makes the file's last record.
func (r *recorder) end() { r.record(false) }

// spill makes a record of all extents but the last, which may go on.
func (r *recorder) spill() {
	out := r.comp.out
	last := len(out) - 1
	r.comp.out = out[:last]
	r.record(true)
	r.comp.out = append(out[:0], out[last])
	if len(r.lines) >= maxLines {
		r.long()
	}
}

// record makes the file's record, or one that continues it, with the extents that there are. more says that others
// follow.
func (r *recorder) record(more bool) {
	f := &r.rec
	var lost []mapfile.Problem
	if r.begun {
		x := mapfile.Extents{Volume: f.Volume, Path: f.Path, Stream: f.Stream, Extents: r.comp.out, More: more}
		r.lines, lost = mapfile.AppendExtents(r.lines, &x)
	} else {
		f.Extents, f.More = r.comp.out, more
		r.lines, lost = mapfile.AppendFile(r.lines, f)
		if f.Stream == "" {
			r.count.Files++
			if f.Kind == mapfile.Regular {
				r.count.Bytes += f.Size
			}
		}
	}
	r.begun = more
	r.held = append(r.held, lost...)
	if !more {
		for i := range r.held {
			r.problem(r.held[i])
		}
		r.held = r.held[:0]
	}
}

// problem makes a problem record.
func (r *recorder) problem(p mapfile.Problem) {
	r.lines = mapfile.AppendProblem(r.lines, &p)
	r.count.Problems++
	r.problems = append(r.problems, p)
}
