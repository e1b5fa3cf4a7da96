package mapfile

import (
	"fmt"
	"io"
)

// Writer writes a stream of records. Its first error sticks: every later call returns it. It is not safe for
// concurrent use.
type Writer struct {
	w     io.Writer
	buf   []byte
	lost  []Problem // of the file whose extents are still being written
	count End
	err   error
}

// flushAt is how many bytes are gathered before they are written.
const flushAt = 256 << 10

// NewWriter returns a Writer to w. Nothing but Flush, and a full buffer, reaches w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Map writes a map record and begins to count anew.
func (w *Writer) Map(m *Map) error {
	w.count = End{}
	w.buf = AppendMap(w.buf, m)
	return w.spill()
}

// Image writes an image record.
func (w *Writer) Image(m *Image) error {
	w.buf = AppendImage(w.buf, m)
	return w.spill()
}

// Volume writes a volume record.
func (w *Writer) Volume(v *Volume) error {
	w.buf = AppendVolume(w.buf, v)
	return w.spill()
}

// File writes a file record and, where its extents don't fit into one, extents records. With f.More, calls of Extents
// must follow.
func (w *Writer) File(f *File) error {
	if f.Stream == "" {
		w.count.Files++
		if f.Kind == Regular {
			w.count.Bytes += f.Size
		}
	}
	var lost []Problem
	w.buf, lost = AppendFile(w.buf, f)
	return w.settle(lost, f.More)
}

// Extents continues a file, or begins or continues a volume's own extents.
func (w *Writer) Extents(x *Extents) error {
	var lost []Problem
	w.buf, lost = AppendExtents(w.buf, x)
	return w.settle(lost, x.More)
}

// settle writes, once the file is whole, the problems that writing it brought up.
func (w *Writer) settle(lost []Problem, more bool) error {
	if lost != nil || w.lost != nil {
		w.lost = append(w.lost, lost...)
		if !more {
			for i := range w.lost {
				w.Problem(&w.lost[i])
			}
			w.lost = nil
		}
	}
	return w.spill()
}

// Problem writes a problem record.
func (w *Writer) Problem(p *Problem) error {
	w.count.Problems++
	w.buf = AppendProblem(w.buf, p)
	return w.spill()
}

// Result writes a result record.
func (w *Writer) Result(r *Result) error {
	switch r.Status {
	case "ok":
		w.count.OK++
		w.count.Bytes += r.Size
	case "partial":
		w.count.Partial++
	case "failed":
		w.count.Failed++
	case "skipped":
		w.count.Skipped++
	}
	w.buf = AppendResult(w.buf, r)
	return w.spill()
}

// Finding writes a finding record.
func (w *Writer) Finding(f *Finding) error {
	w.count.Differences++
	w.buf = AppendFinding(w.buf, f)
	return w.spill()
}

// Other writes a record as it was read.
func (w *Writer) Other(o *Other) error {
	w.buf = append(append(w.buf, o.Raw...), '\n')
	return w.spill()
}

// Lines writes whole lines that the Append functions made, and adds c to what is counted.
func (w *Writer) Lines(lines []byte, c End) error {
	w.count.Files += c.Files
	w.count.Bytes += c.Bytes
	w.count.Problems += c.Problems
	w.buf = append(w.buf, lines...)
	return w.spill()
}

// Count tells what was written since the stream or the last map began; Kind and Checked are the caller's to set.
func (w *Writer) Count() End { return w.count }

// End writes an end record and flushes.
func (w *Writer) End(e *End) error {
	w.buf = AppendEnd(w.buf, e)
	return w.Flush()
}

func (w *Writer) spill() error {
	if len(w.buf) < flushAt {
		return w.err
	}
	return w.Flush()
}

// Flush writes out what was gathered.
func (w *Writer) Flush() error {
	if w.err == nil && len(w.buf) > 0 {
		n, err := w.w.Write(w.buf)
		if err == nil && n < len(w.buf) {
			err = fmt.Errorf("wrote %d bytes of %d: %w", n, len(w.buf), io.ErrShortWrite)
		}
		w.err = err
	}
	w.buf = w.buf[:0]
	return w.err
}
