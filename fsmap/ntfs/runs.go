package ntfs

import (
	"fmt"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// Runs implements fsmap.FS.
func (f *fs) Runs(n *fsmap.Node, s *fsmap.Stream, r *fsmap.Runs) error {
	ino := n.Priv.(*inode)
	name := ""
	if s != nil {
		name = s.Name
	} else if ino.wof.chunk != 0 {
		return f.wofRuns(ino, r)
	} else if ino.wof.err != nil {
		r.Fill(mapfile.Missing)
		return ino.wof.err
	}
	seg := ino.segments(atData, name)
	if len(seg) == 0 {
		return nil // a file without a data attribute is empty
	}
	first := ino.attrs[seg[0]]
	switch {
	case !first.nonRes:
		return f.residentRuns(ino, first, r)
	case first.lowest != 0:
		return ondisk.Corrupt("data attribute", "first cluster", -1, first.lowest)
	case first.flags&flCompressed != 0 && first.unit != 0 && first.flags&flEncrypted == 0:
		return f.compressedRuns(ino, seg, first, r)
	}
	var next int64 // cluster
	for _, i := range seg {
		err := f.eachRun(ino, ino.attrs[i], func(x run) error {
			if x.vcn != next {
				return ondisk.Corrupt("data attribute", "a segment is missing before cluster", -1, x.vcn)
			}
			next += x.n
			if first.flags&flEncrypted != 0 && x.lcn >= 0 {
				return r.Append(fsmap.Run{At: x.vcn * f.cluster, Len: x.n * f.cluster, Kind: mapfile.Encrypted, Off: x.lcn * f.cluster})
			}
			return f.plainRun(x, first.init, r)
		})
		if err != nil {
			return err
		}
	}
	if end := next * f.cluster; end < min(first.init, r.Size()) {
		return ondisk.Truncated("data attribute", "clusters end before the size, at", -1, end)
	}
	return nil
}

// plainRun appends a run of clusters that hold what they hold. Bytes behind the valid data length read as zeros. What is
// left of the cluster in which it ends is written with zeros by every driver; the clusters after it were never written.
func (f *fs) plainRun(x run, init int64, r *fsmap.Runs) error {
	at, n := x.vcn*f.cluster, x.n*f.cluster
	if x.lcn < 0 || at >= r.Size() {
		return nil
	}
	off := x.lcn * f.cluster
	valid := max(0, min(n, init-at))
	if valid > 0 {
		if err := f.data(r, at, valid, off); err != nil {
			return err
		}
		if slack := min(n, (valid+f.cluster-1)/f.cluster*f.cluster) - valid; slack > 0 {
			if err := r.Append(fsmap.Run{At: at + valid, Len: slack, Kind: mapfile.Zero}); err != nil {
				return err
			}
			valid += slack
		}
	}
	if valid < n {
		return r.Unwritten(at+valid, n-valid, off+valid)
	}
	return nil
}

// residentRuns says where a value inside an MFT record lies. The bytes that the update sequence stands in for lie
// verbatim nowhere, unless they happen to be the same.
func (f *fs) residentRuns(ino *inode, a attr, r *fsmap.Runs) error {
	b, err := f.holder(ino, a.record)
	if err != nil {
		return err
	}
	usa := int(le.Uint16(b[msUSAOffset:]))
	usn := le.Uint16(b[usa:])
	for at := 0; at < a.valueLen; {
		in := a.value + at
		end := (in/stride + 1) * stride
		n := min(a.valueLen-at, end-2-in)
		if n <= 0 { // in the protected two bytes
			n = min(a.valueLen-at, end-in)
			if le.Uint16(b[end-2:]) != usn {
				if err := r.Inline(int64(at), append([]byte(nil), b[in:in+n]...)); err != nil {
					return err
				}
				at += n
				continue
			}
		}
		pos, run, ok := f.recordPos(a.record, int64(in))
		if !ok {
			return ondisk.Corrupt("mft record", "a hole in the MFT at record", -1, a.record)
		}
		n = int(min(int64(n), run))
		if err := f.data(r, int64(at), int64(n), pos); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// compressedRuns goes through the compression units: one without clusters is a hole, one with all of them holds plain
// bytes, and one whose last clusters are lacking is LZNT1.
func (f *fs) compressedRuns(ino *inode, seg []int, first attr, r *fsmap.Runs) error {
	unit := int64(1) << first.unit // clusters
	if unit*f.cluster > codec.MaxFull {
		return ondisk.Corrupt("data attribute", "compression unit", -1, first.unit)
	}
	u := unitReader{f: f, unit: unit, init: first.init, r: r}
	for _, i := range seg {
		if err := f.eachRun(ino, ino.attrs[i], u.add); err != nil {
			return err
		}
	}
	return u.flush()
}

// unitReader gathers runs into compression units.
type unitReader struct {
	f          *fs
	unit, init int64
	r          *fsmap.Runs
	parts      []run // of the current unit
	vcn        int64 // next cluster
}

func (u *unitReader) add(x run) error {
	if x.vcn != u.vcn {
		return ondisk.Corrupt("data attribute", "a segment is missing before cluster", -1, x.vcn)
	}
	for x.n > 0 {
		left := u.unit - x.vcn%u.unit
		if len(u.parts) == 0 && x.n >= u.unit && x.vcn%u.unit == 0 {
			whole := x.n / u.unit * u.unit
			if err := u.f.plainRun(run{x.vcn, x.lcn, whole}, u.init, u.r); err != nil {
				return err
			}
			x.vcn, x.n, u.vcn = x.vcn+whole, x.n-whole, u.vcn+whole
			if x.lcn >= 0 {
				x.lcn += whole
			}
			continue
		}
		n := min(x.n, left)
		u.parts = append(u.parts, run{x.vcn, x.lcn, n})
		x.vcn, x.n, u.vcn = x.vcn+n, x.n-n, u.vcn+n
		if x.lcn >= 0 {
			x.lcn += n
		}
		if n == left {
			if err := u.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *unitReader) flush() error {
	parts := u.parts
	u.parts = u.parts[:0]
	if len(parts) == 0 {
		return nil
	}
	at := parts[0].vcn * u.f.cluster
	var used, holes int64
	for _, p := range parts {
		switch {
		case p.lcn < 0:
			holes += p.n
		case holes > 0:
			return ondisk.Corrupt("compression unit", "clusters behind a hole, at file position", -1, at)
		default:
			used += p.n
		}
	}
	switch {
	case used == 0:
		return nil
	case used == u.unit:
		for _, p := range parts {
			if err := u.f.plainRun(p, u.init, u.r); err != nil {
				return err
			}
		}
		return nil
	}
	full := min(u.unit*u.f.cluster, u.init-at)
	if full <= 0 {
		return nil
	}
	pack := &fsmap.Pack{Spec: codec.Spec{Codec: codec.LZNT1, Full: full}}
	for _, p := range parts {
		if p.lcn < 0 {
			continue
		}
		off, n := p.lcn*u.f.cluster, p.n*u.f.cluster
		if u.f.over.Touches(off, n) {
			return ondisk.Unsupported("compression unit", "changed by $LogFile, at file position", -1, at)
		}
		if k := len(pack.Parts); k > 0 && pack.Parts[k-1].Off+pack.Parts[k-1].Len == off {
			pack.Parts[k-1].Len += n
			continue
		}
		pack.Parts = append(pack.Parts, fsmap.Run{Len: n, Kind: mapfile.Data, Off: off})
	}
	return u.r.Packed(at, full, 0, pack)
}

// wof is what the reparse point of a file that the Windows Overlay Filter compressed says.
type wof struct {
	chunk int64 // bytes of a chunk, 0 for other files
	codec string
	err   error
}

// wofStream is the stream that holds the compressed bytes.
const wofStream = "WofCompressedData"

// wofRuns makes a packed run of each chunk. The stream begins with the position of each chunk but the first, counted
// from the table's end, in 4 bytes or, for files of 4 GiB and more, in 8; a chunk as long as its content is plain.
func (f *fs) wofRuns(ino *inode, r *fsmap.Runs) error {
	fail := func(err error) error {
		r.Fill(mapfile.Missing)
		return err
	}
	seg := ino.segments(atData, wofStream)
	if len(seg) == 0 {
		return fail(ondisk.Corrupt("wof file", "it has no stream "+wofStream, -1, nil))
	}
	var src fsmap.Runs
	src.Reset(ino.attrs[seg[0]].size)
	err := f.Runs(&fsmap.Node{Priv: ino}, &fsmap.Stream{Name: wofStream}, &src)
	if err != nil {
		return fail(err)
	}
	src.Fill(mapfile.Hole)
	size, chunk := r.Size(), ino.wof.chunk
	chunks := (size + chunk - 1) / chunk
	width := int64(4)
	if size >= 1<<32 {
		width = 8
	}
	if chunks == 0 {
		return nil
	}
	head := (chunks - 1) * width
	if head > src.Size() {
		return fail(ondisk.Truncated("wof file", "table of chunks", -1, chunks))
	}
	table := make([]byte, head)
	if err := f.readRuns(src.List, table); err != nil {
		return fail(err)
	}
	at := func(i int64) int64 {
		switch {
		case i == 0:
			return head
		case i == chunks:
			return src.Size()
		case width == 4:
			return head + int64(le.Uint32(table[(i-1)*4:]))
		}
		return head + int64(le.Uint64(table[(i-1)*8:])&(1<<62-1))
	}
	next := 0 // index into src.List: chunks lie in order
	for i := range chunks {
		from, to := at(i), at(i+1)
		full := min(chunk, size-i*chunk)
		if from < head || to <= from || to > src.Size() || to-from > full {
			return fail(ondisk.Corrupt("wof file", fmt.Sprintf("chunk %d of %d: position", i, chunks), -1, from))
		}
		var parts []fsmap.Run
		parts, next = cut(src.List, next, from, to)
		if to-from == full {
			p := i * chunk
			for _, q := range parts {
				q.At = p
				if err := r.Append(q); err != nil {
					return err
				}
				p += q.Len
			}
			continue
		}
		if err := r.Packed(i*chunk, full, 0, &fsmap.Pack{Spec: codec.Spec{Codec: ino.wof.codec, Full: full}, Parts: parts}); err != nil {
			return err
		}
	}
	return nil
}

// cut gives the runs of positions from to to, looking from index i on, and the index to go on from.
func cut(list []fsmap.Run, i int, from, to int64) ([]fsmap.Run, int) {
	var out []fsmap.Run
	for i < len(list) && list[i].At+list[i].Len <= from {
		i++
	}
	for j := i; j < len(list) && list[j].At < to; j++ {
		x := list[j]
		a, b := max(from, x.At), min(to, x.At+x.Len)
		skip := a - x.At
		switch x.Kind {
		case mapfile.Data, mapfile.Unwritten:
			x.Off += skip
		case mapfile.Packed:
			x.Skip += skip
		case mapfile.Inline:
			x.Bytes = x.Bytes[skip : skip+b-a]
		}
		x.At, x.Len = a, b-a
		out = append(out, x)
	}
	return out, i
}

// readRuns reads the first len(p) bytes of a run list that holds plain data.
func (f *fs) readRuns(list []fsmap.Run, p []byte) error {
	for _, x := range list {
		if len(p) == 0 {
			break
		}
		n := min(int64(len(p)), x.Len)
		switch x.Kind {
		case mapfile.Data:
			if err := ondisk.ReadFull(f.r, p[:n], x.Off, "wof file"); err != nil {
				return err
			}
		case mapfile.Inline:
			copy(p, x.Bytes[:n])
		case mapfile.Hole, mapfile.Unwritten, mapfile.Zero:
			clear(p[:n])
		default:
			return ondisk.Unsupported("wof file", "its table of chunks is "+x.Kind.String(), -1, nil)
		}
		p = p[n:]
	}
	return nil
}
