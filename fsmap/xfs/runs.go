package xfs

import (
	"fmt"
	"math"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// Runs implements fsmap.FS. What can't be had is Missing; the error then says why, and the rest is right.
func (f *fsys) Runs(n *fsmap.Node, _ *fsmap.Stream, r *fsmap.Runs) error {
	in, err := f.priv(n)
	if err != nil {
		return err
	}
	if n.Kind != mapfile.Regular {
		return nil
	}
	if in.runs == nil {
		in.runs = &runs{f: f, in: in}
		in.runs.each = in.runs.extent
	}
	s := in.runs
	s.out, s.gap, s.broken = r, nil, nil
	err = f.extents(in, false, s.each)
	if err = first(err, s.gap); err != nil && s.broken == nil {
		// The walk went to the end and gave what it couldn't read as lost: what follows is a hole, in spite of the error.
		r.Fill(mapfile.Hole)
	}
	return err
}

// runs makes a file's runs of its extents. It is kept with the inode, since there is one for each of millions of files.
type runs struct {
	f    *fsys
	in   *inode
	each func(extent) error // the method extent
	out  *fsmap.Runs
	// gap is what can't be had; broken says that the extents make no list of runs.
	gap, broken error
}

func (s *runs) add(x fsmap.Run) error {
	s.broken = s.out.Append(x)
	return s.broken
}

func (s *runs) extent(x extent) error {
	f := s.f
	if x.off > math.MaxInt64>>f.blockLog || s.out.Size() <= int64(x.off<<f.blockLog) {
		return errStop // blocks allocated past the end
	}
	at := int64(x.off << f.blockLog)
	length := int64(min(x.n, (math.MaxInt64-uint64(at))>>f.blockLog)) << f.blockLog
	run := fsmap.Run{At: at, Len: length, Kind: mapfile.Data}
	if x.unwritten {
		run.Kind = mapfile.Unwritten
	}
	switch off, ok := f.place(x.block, x.n); {
	case x.lost || !ok && !s.in.realtime:
		run.Kind = mapfile.Missing
	case s.in.realtime:
		run.Kind = mapfile.Missing
		s.gap = ondisk.Unsupported("xfs file", "content on the realtime device", s.in.off+diFlags, nil)
	case length > f.size-off:
		if off < f.size {
			run.Len, run.Off = (f.size-off)>>f.blockLog<<f.blockLog, off
			if run.Len > 0 {
				if err := s.add(run); err != nil {
					return err
				}
			}
			run.At, run.Len = at+run.Len, length-run.Len
		}
		run.Kind, run.Off = mapfile.Missing, 0
		s.gap = ondisk.Truncated("xfs file", "volume ends before its content", f.size, fmt.Sprintf("%d bytes at %#x", length, off))
	default:
		run.Off = off
	}
	return s.add(run)
}
