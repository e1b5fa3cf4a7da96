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
	var gap, broken error
	add := func(x fsmap.Run) error {
		broken = r.Append(x)
		return broken
	}
	err = f.extents(in, false, func(x extent) error {
		if x.off > math.MaxInt64>>f.blockLog || r.Size() <= int64(x.off<<f.blockLog) {
			return errStop // blocks allocated past the end
		}
		at := int64(x.off << f.blockLog)
		length := int64(min(x.n, (math.MaxInt64-uint64(at))>>f.blockLog)) << f.blockLog
		run := fsmap.Run{At: at, Len: length, Kind: mapfile.Data}
		if x.unwritten {
			run.Kind = mapfile.Unwritten
		}
		switch off, ok := f.place(x.block, x.n); {
		case x.lost || !ok && !in.realtime:
			run.Kind = mapfile.Missing
		case in.realtime:
			run.Kind = mapfile.Missing
			gap = ondisk.Unsupported("xfs file", "content on the realtime device", in.off+diFlags, nil)
		case length > f.size-off:
			if off < f.size {
				run.Len, run.Off = (f.size-off)>>f.blockLog<<f.blockLog, off
				if run.Len > 0 {
					if err := add(run); err != nil {
						return err
					}
				}
				run.At, run.Len = at+run.Len, length-run.Len
			}
			run.Kind, run.Off = mapfile.Missing, 0
			gap = ondisk.Truncated("xfs file", "volume ends before its content", f.size, fmt.Sprintf("%d bytes at %#x", length, off))
		default:
			run.Off = off
		}
		return add(run)
	})
	if err = first(err, gap); err != nil && broken == nil {
		// The walk went to the end and gave what it couldn't read as lost: what follows is a hole, in spite of the error.
		r.Fill(mapfile.Hole)
	}
	return err
}
