package ext4

import (
	"fmt"
	"maps"
	"slices"
	"sort"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// maxFast bounds the area of fast commits that is read; mke2fs makes it a 64th of the journal, at most 16 MiB.
const maxFast = 32 << 20

// fastState is what fast commits change: whole inodes, stretches of files, names. A nil one changes nothing.
type fastState struct {
	inodes  map[uint32][]byte
	patches map[uint32][]extent
	dirs    map[uint32]*fastDir
}

func (s *fastState) inode(ino uint32) []byte {
	if s == nil {
		return nil
	}
	return s.inodes[ino]
}

func (s *fastState) patch(ino uint32) []extent {
	if s == nil {
		return nil
	}
	return s.patches[ino]
}

func (s *fastState) dir(ino uint32) *fastDir {
	if s == nil {
		return nil
	}
	return s.dirs[ino]
}

// fastDir has the names of one directory that fast commits mention: the inode that each has in the end, or 0.
type fastDir struct {
	fresh bool // they made the directory: it had no names before
	names map[string]uint32
}

func (d *fastDir) hides(name []byte) bool {
	_, ok := d.names[string(name)]
	return ok
}

// list gives the names that are there in the end.
func (d *fastDir) list(l *listing) {
	for _, name := range slices.Sorted(maps.Keys(d.names)) {
		if ino := d.names[name]; ino != 0 && l.more {
			l.more = l.add(fsmap.Entry{Name: []byte(name), Ref: fsmap.Ref{ID: uint64(ino)}})
		}
	}
}

// fastTag is one record of a fast commit.
type fastTag struct {
	tag   uint16
	value []byte
}

// name gives what a record says of a name.
func (t fastTag) name() (parent, ino uint32, name string) {
	return le.Uint32(t.value), le.Uint32(t.value[4:]), string(t.value[fcNameLen:])
}

// fastCommits replays the fast commits that follow transaction tid-1 (fs/ext4/fast_commit.c).
func (j *journal) fastCommits(tid uint32) error {
	tags, err := j.fastTags(tid)
	if len(tags) > 0 {
		if e := j.f.fastReplay(tags); err == nil {
			err = e
		}
	}
	return err
}

// fastReplay applies the records of fast commits. What can't be applied is left out, and the first such trouble told.
func (f *fsys) fastReplay(tags []fastTag) (err error) {
	s := &fastState{inodes: make(map[uint32][]byte), patches: make(map[uint32][]extent), dirs: make(map[uint32]*fastDir)}
	f.fastNames(s, tags)
	f.fast = s
	ranges := make(map[uint32][]extent)
	for _, t := range tags {
		if t.tag == fcHead || t.tag == fcPad {
			continue
		}
		ino := le.Uint32(t.value)
		var e error
		switch t.tag {
		case fcInode:
			e = f.fastInode(ino, t.value[4:])
		case fcAddRange:
			ranges[ino] = append(ranges[ino], leaf(t.value[4:]))
		case fcDelRange:
			ranges[ino] = append(ranges[ino], extent{at: uint64(le.Uint32(t.value[4:])), n: uint64(le.Uint32(t.value[8:])), kind: mapfile.Hole})
		case fcCreat, fcLink:
			parent, ino, name := t.name()
			if d := s.dirs[parent]; d.names[name] == 0 {
				d.names[name] = ino
				if t.tag == fcLink {
					_, e = f.fastLinks(parent, ino, 1)
				} else if e = f.fastEmpty(ino); e == nil { // what it has from an earlier life is no more
					_, e = f.fastLinks(parent, ino, 0)
				}
			}
		case fcUnlink:
			parent, ino, name := t.name()
			if d := s.dirs[parent]; d.names[name] == ino {
				d.names[name] = 0
				var links uint16
				if links, e = f.fastLinks(parent, ino, -1); e == nil && links == 0 {
					delete(ranges, ino)
					e = f.fastEmpty(ino)
				}
			}
		}
		if err == nil {
			err = e
		}
	}
	for ino, list := range ranges {
		s.patches[ino] = paint(list)
	}
	return err
}

// fastTags reads the records of all fast commits that are complete.
func (j *journal) fastTags(tid uint32) ([]fastTag, error) {
	f := j.f
	if int64(j.sb.MaxLen-j.last)<<f.shift > maxFast {
		return nil, ondisk.Unsupported("ext journal", "blocks for fast commits", j.off+0x54, j.sb.MaxLen-j.last)
	}
	var list []fastTag
	whole := 0 // records up to the last complete commit
	var sum uint32
	for block := j.last + 1; block < j.sb.MaxLen; block++ {
		if _, err := j.read(block); err != nil {
			return list[:whole], err
		}
		b := slices.Clone(j.buf)
		for p := 0; p+fcTagLen <= len(b); {
			tag, n := le.Uint16(b[p:]), int(le.Uint16(b[p+2:]))
			start := p
			p += fcTagLen
			if !f.fastOK(tag, n) || tag != fcTail && n > len(b)-p || len(b)-p < fcTailLen && tag == fcTail {
				return list[:whole], nil
			}
			v := b[p:min(p+n, len(b))]
			switch tag {
			case fcHead:
				if set := le.Uint32(v); set != 0 {
					return list[:whole], ondisk.Unsupported("ext fast commit", "features", -1, fmt.Sprintf("%#x", set))
				}
				if le.Uint32(v[4:]) != tid {
					return list[:whole], nil
				}
			case fcTail:
				sum = crc32c(sum, b[start:p+4])
				if le.Uint32(v) != tid || le.Uint32(v[4:]) != sum {
					return list[:whole], nil
				}
				sum, whole = 0, len(list)
				p += n
				continue
			default:
				if block == j.last+1 && start == 0 {
					return nil, nil // there is none
				}
			}
			sum = crc32c(sum, b[start:p+n])
			list = append(list, fastTag{tag, v})
			p += n
		}
	}
	return list[:whole], nil
}

// fastOK reports whether a record of a fast commit may have a length.
func (f *fsys) fastOK(tag uint16, n int) bool {
	switch tag {
	case fcAddRange:
		return n == fcAddLen
	case fcDelRange:
		return n == fcDelLen
	case fcCreat, fcLink, fcUnlink:
		return n > fcNameLen && n <= fcNameLen+maxName
	case fcInode:
		return n >= 4+goodOldSize && n <= 4+f.inodeSize
	case fcHead:
		return n == fcHeadLen
	case fcTail:
		return n >= fcTailLen
	}
	return tag == fcPad
}

// fastNames finds what the names that fast commits mention stand for before.
func (f *fsys) fastNames(s *fastState, list []fastTag) {
	made := make(map[uint32]bool)
	for _, t := range list {
		if t.tag != fcCreat && t.tag != fcLink && t.tag != fcUnlink {
			continue
		}
		parent, ino, name := t.name()
		d := s.dirs[parent]
		if d == nil {
			d = &fastDir{names: make(map[string]uint32)}
			s.dirs[parent] = d
		}
		d.names[name] = 0
		made[ino] = made[ino] || t.tag == fcCreat
	}
	for ino, d := range s.dirs {
		if d.fresh = made[ino]; d.fresh {
			continue
		}
		f.names(ino, func(e fsmap.Entry) {
			if _, ok := d.names[string(e.Name)]; ok {
				d.names[string(e.Name)] = uint32(e.Ref.ID)
			}
		})
	}
}

// fastRaw gives an inode that fast commits may change.
func (f *fsys) fastRaw(ino uint32) ([]byte, error) {
	if b := f.fast.inodes[ino]; b != nil {
		return b, nil
	}
	var in inode
	if err := f.load(ino, &in); err != nil {
		return nil, fmt.Errorf("ext fast commit: %w", err)
	}
	f.fast.inodes[ino] = in.raw
	return in.raw, nil
}

// fastInode takes an inode as a fast commit has it. Its extents are not told there.
func (f *fsys) fastInode(ino uint32, v []byte) error {
	raw, err := f.fastRaw(ino)
	if err != nil {
		return err
	}
	copy(raw[:iBlock], v)
	copy(raw[iGeneration:], v[iGeneration:])
	switch {
	case le.Uint32(raw[iFlags:])&flExtents != 0:
		if le.Uint16(raw[iBlock:]) != exMagic {
			return f.fastEmpty(ino)
		}
	case le.Uint32(raw[iFlags:])&flInlineData != 0 || le.Uint16(raw)&modeFmt != modeReg:
		copy(raw[iBlock:iBlock+iBlockLen], v[iBlock:])
	}
	return nil
}

// fastEmpty takes the blocks from an inode.
func (f *fsys) fastEmpty(ino uint32) error {
	raw, err := f.fastRaw(ino)
	if err != nil || le.Uint32(raw[iFlags:])&flInlineData != 0 || le.Uint16(raw)&modeFmt != modeReg {
		return err
	}
	root := raw[iBlock : iBlock+iBlockLen]
	clear(root)
	if le.Uint32(raw[iFlags:])&flExtents != 0 {
		le.PutUint16(root, exMagic)
		le.PutUint16(root[ehMax:], iBlockLen/exLen-1)
	}
	return nil
}

// fastLinks counts a link of an inode more or less, or one that the inode as it came counts already. A directory's
// parent has one more with it. A whole inode that follows says the number anew.
func (f *fsys) fastLinks(parent, ino uint32, d int) (uint16, error) {
	raw, err := f.fastRaw(ino)
	if err != nil {
		return 0, err
	}
	n := uint16(int(le.Uint16(raw[iLinks:])) + d)
	le.PutUint16(raw[iLinks:], n)
	if le.Uint16(raw)&modeFmt == modeDir {
		if d == 0 {
			d = 1
		}
		dir, err := f.fastRaw(parent)
		if err != nil {
			return 0, err
		}
		if k := le.Uint16(dir[iLinks:]); k > 1 { // one stands for too many to count
			le.PutUint16(dir[iLinks:], uint16(int(k)+d))
		}
	}
	return n, nil
}

// paint lays stretches over one another, the last on top, and gives what is seen in the end, in order.
func paint(list []extent) []extent {
	edges := make([]uint64, 0, 2*len(list))
	for _, x := range list {
		edges = append(edges, x.at, x.at+x.n)
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	owner := make([]int, len(edges))  // by the piece that begins at an edge: 1 + the stretch that is seen there
	free := make([]int, len(edges)+1) // the next piece that none was seen in, by halving paths
	for i := range free {
		free[i] = i
	}
	find := func(i int) int {
		for free[i] != i {
			free[i] = free[free[i]]
			i = free[i]
		}
		return i
	}
	for k, x := range slices.Backward(list) {
		i := sort.Search(len(edges), func(i int) bool { return edges[i] >= x.at })
		for i = find(i); i < len(edges) && edges[i] < x.at+x.n; i = find(i) {
			owner[i], free[i] = k+1, i+1
		}
	}
	var seen []extent
	for i, k := range owner {
		if k == 0 {
			continue
		}
		x := list[k-1]
		d := edges[i] - x.at
		x.at, x.block, x.n = edges[i], x.block+d, edges[i+1]-edges[i]
		if n := len(seen); n > 0 && i > 0 && owner[i-1] == k {
			seen[n-1].n += x.n
			continue
		}
		seen = append(seen, x)
	}
	return seen
}
