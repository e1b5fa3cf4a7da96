package iso9660

import (
	"encoding/binary"
	"fmt"
	"math"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// inode is what a Node carries in Priv.
type inode struct {
	sections []section
	attrs    attributes
	// refuse says why the content can't be had.
	refuse error
}

// Node implements fsmap.FS.
func (v *volume) Node(e fsmap.Entry, n *fsmap.Node) error {
	n.Ref, n.Aux, n.Inode = e.Ref, e.Aux, e.Ref.ID
	p, ok := n.Priv.(*inode)
	if !ok {
		p = new(inode)
		n.Priv = p
	}
	p.sections, p.refuse = p.sections[:0], nil
	pos := int64(e.Ref.ID)
	rec, err := v.record(pos)
	if err != nil {
		return err
	}
	a := &p.attrs
	*a = attributes{name: a.name[:0], target: a.target[:0]}
	if v.tree == rockRidge {
		if err := v.rockRidgeOf(rec, pos, a); err != nil {
			n.Problems = append(n.Problems, err)
		}
		if a.child != 0 {
			// The directory was moved, since ISO 9660 allows only eight levels: it describes itself there.
			if pos, rec, err = v.moved(a.child); err != nil {
				return err
			}
			if err := v.rockRidgeOf(rec, pos, a); err != nil {
				n.Problems = append(n.Problems, err)
			}
		}
	}
	n.Kind = v.kind(rec, a)
	n.MTime = recordTime(rec[recDate:])
	if err := v.sectionsOf(rec, pos, p); err != nil {
		n.Problems = append(n.Problems, err)
	}
	if n.Kind == mapfile.Regular {
		for _, s := range p.sections {
			n.Size += int64(s.size)
		}
	}
	if v.tree == rockRidge {
		v.posix(n, a, pos)
	}
	if e.Aux != 0 {
		if s, err := v.stream(int64(e.Aux)); err != nil {
			n.Problems = append(n.Problems, err)
		} else {
			n.Streams = append(n.Streams, s)
		}
	}
	return nil
}

// posix sets what Rock Ridge says.
func (v *volume) posix(n *fsmap.Node, a *attributes, pos int64) {
	if a.hasMode {
		n.Mode, n.Links, n.UID, n.GID = int64(a.mode&0o7777), int64(a.links), int64(a.uid), int64(a.gid)
	}
	if t := a.times[tfModify]; t.Known {
		n.MTime = t
	}
	n.ATime, n.CTime, n.BTime = a.times[tfAccess], a.times[tfAttributes], a.times[tfCreation]
	switch n.Kind {
	case mapfile.Symlink:
		n.Target, n.Size = append(n.Target, a.target...), int64(len(a.target))
		if !a.hasTarget {
			n.Problems = append(n.Problems, ondisk.Corrupt("directory record", "symlink without a target", pos, nil))
		}
	case mapfile.Char, mapfile.Block:
		n.Major, n.Minor = a.major, a.minor
	case mapfile.Regular:
		if a.zAlgorithm != "" {
			if a.zSize > math.MaxInt64 {
				n.Problems = append(n.Problems, ondisk.Corrupt("zisofs entry", "size", a.zPos, a.zSize))
				a.zSize = uint64(n.Size)
			}
			n.Size = int64(a.zSize)
			n.Attrs = append(n.Attrs, "compressed")
		}
	}
}

// moved gives the record of itself of a directory that was moved.
func (v *volume) moved(block uint32) (int64, []byte, error) {
	pos := int64(block) * v.block
	rec, err := v.record(pos)
	if err != nil {
		return 0, nil, fmt.Errorf("moved directory: %w", err)
	}
	if !isDot(rec) || binary.LittleEndian.Uint32(rec[recExtent:]) != block {
		return 0, nil, ondisk.Corrupt("directory record", "no directory was moved to block", pos, block)
	}
	return pos, rec, nil
}

// sectionsOf gathers where a file lies: a record, and those that follow while they say that the file goes on.
func (v *volume) sectionsOf(rec []byte, pos int64, p *inode) error {
	var doubt error
	for {
		extent, size := both32At(rec, recExtent), both32At(rec, recSize)
		if doubt == nil && (!extent.agree() || !size.agree()) {
			doubt = ondisk.Corrupt("directory record", "extent or size, which differ between the byte orders", pos+recExtent, nil)
		}
		switch number := binary.LittleEndian.Uint16(rec[recVolume:]); {
		case rec[recUnit] != 0 || rec[recGap] != 0:
			p.refuse = ondisk.Unsupported("directory record", "interleaved file, unit and gap", pos+recUnit, rec[recUnit:recUnit+2])
		case v.set > 1 && number != v.number && number != 0:
			p.refuse = ondisk.Unsupported("directory record", fmt.Sprintf("file on another volume than number %d of the set:", v.number), pos+recVolume, number)
		case p.attrs.sparse:
			p.refuse = ondisk.Unsupported("Rock Ridge entry", "SF, a sparse file", pos, nil)
		}
		p.sections = append(p.sections, section{extent.LE + uint32(rec[recExtended]), size.LE})
		if rec[recFlags]&flagMulti == 0 {
			return doubt
		}
		if len(p.sections) == maxSections {
			return ondisk.Unsupported("directory record", "sections of a file, more than", pos, maxSections)
		}
		next, at, err := v.after(rec, pos)
		if err != nil {
			return err
		}
		if !sameFile(rec, next) {
			return ondisk.Corrupt("directory record", "no record goes on with the file, as the one before it says", at, nil)
		}
		rec, pos = next, at
	}
}

// after gives the record behind another: in the same sector, or at the start of the next.
func (v *volume) after(rec []byte, pos int64) ([]byte, int64, error) {
	at := pos + int64(len(rec))
	if at%sectorLen != 0 {
		b, err := v.meta.Slice(at, 1)
		if err != nil {
			return nil, 0, err
		}
		if b[0] == 0 {
			at += sectorLen - at%sectorLen
		}
	}
	next, err := v.record(at)
	return next, at, err
}

func both32At(b []byte, at int) both32 {
	return both32{binary.LittleEndian.Uint32(b[at:]), [4]byte(b[at+4 : at+8])}
}

// stream gives the associated file whose record lies at pos.
func (v *volume) stream(pos int64) (fsmap.Stream, error) {
	rec, err := v.record(pos)
	if err != nil {
		return fsmap.Stream{}, err
	}
	var p inode
	if err := v.sectionsOf(rec, pos, &p); err != nil {
		return fsmap.Stream{}, err
	}
	s := fsmap.Stream{Name: "associated", Aux: uint64(pos)}
	for _, x := range p.sections {
		s.Size += int64(x.size)
	}
	return s, nil
}

// Runs implements fsmap.FS.
func (v *volume) Runs(n *fsmap.Node, s *fsmap.Stream, r *fsmap.Runs) error {
	p, ok := n.Priv.(*inode)
	if !ok || n.Kind != mapfile.Regular {
		return nil
	}
	if s != nil {
		p = new(inode)
		rec, err := v.record(int64(s.Aux))
		if err != nil {
			return err
		}
		if err := v.sectionsOf(rec, int64(s.Aux), p); err != nil {
			return err
		}
	}
	if p.refuse != nil {
		r.Fill(mapfile.Missing)
		return p.refuse
	}
	if p.attrs.zAlgorithm != "" {
		err := v.unpacked(p, r)
		r.Fill(mapfile.Missing)
		return err
	}
	var short error
	at := int64(0)
	for _, x := range p.sections {
		pos, size := int64(x.extent)*v.block, int64(x.size)
		held := max(min(size, v.size-pos), 0)
		if held > 0 {
			if err := r.Data(at, held, pos); err != nil {
				return err
			}
		}
		if held < size {
			if short == nil {
				short = ondisk.Truncated("file", fmt.Sprintf("the volume ends at byte %#x, before a section of %d bytes", v.size, size), pos, nil)
			}
			if err := r.Append(fsmap.Run{At: at + held, Len: size - held, Kind: mapfile.Missing}); err != nil {
				return err
			}
		}
		at += size
	}
	return short
}
