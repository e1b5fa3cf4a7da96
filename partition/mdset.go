package partition

import (
	"cmp"
	"fmt"
	"slices"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// mdMember is a volume with an md superblock.
type mdMember struct {
	*mdSuper
	vol  int
	disk formats.Disk
	used bool
}

// mdSet is the members of one array that go together: of each role the newest.
type mdSet struct {
	*mdSuper // the newest
	roles    []*mdMember
	notes    []string
	problems []error
}

const maxRAIDDisks = 1024

// mdSets sorts the members that no set has used yet. Two members with the same role and the same number of events are
// of an array and its clone; an older one is stale.
func (s *scanner) mdSets() []*mdSet {
	var order []string
	byUUID := make(map[string][]*mdMember)
	for _, m := range s.md {
		if m.used {
			continue
		}
		if byUUID[m.uuid] == nil {
			order = append(order, m.uuid)
		}
		byUUID[m.uuid] = append(byUUID[m.uuid], m)
	}
	var sets []*mdSet
	for _, u := range order {
		var events uint64
		for _, m := range byUUID[u] {
			if m.role != mdSpare {
				events = max(events, m.events)
			}
		}
		var mine []*mdSet
		for _, m := range byUUID[u] {
			// One event behind is what an update that was cut short leaves.
			if m.role < 0 || m.events+1 < events || m.disks < 1 || m.disks > maxRAIDDisks || m.role >= m.disks {
				continue
			}
			i := slices.IndexFunc(mine, func(set *mdSet) bool {
				return m.disks == set.disks && m.level == set.level && (set.roles[m.role] == nil || set.roles[m.role].replaces() != m.replaces())
			})
			if i < 0 {
				mine = append(mine, &mdSet{mdSuper: m.mdSuper, roles: make([]*mdMember, m.disks)})
				i = len(mine) - 1
			}
			set := mine[i]
			if old := set.roles[m.role]; old == nil || old.replaces() {
				set.roles[m.role] = m
			}
			if m.events > set.events {
				set.mdSuper = m.mdSuper
			}
		}
		sets = append(sets, mine...)
	}
	return sets
}

// replaces says that the member is the copy that another of its role is being replaced by.
func (m *mdMember) replaces() bool { return m.features&mdReplacement != 0 }

// assembleMD appends the arrays whose members are all there, or, when nothing else can be found any more, all.
func (s *scanner) assembleMD(all bool) bool {
	any := false
	for _, set := range s.mdSets() {
		if !all && slices.Contains(set.roles, nil) {
			continue
		}
		any = true
		s.addMD(set)
	}
	if all {
		for _, m := range s.md {
			if m.used {
				continue
			}
			m.used = true
			v := &s.vols[m.vol]
			switch m.role {
			case mdSpare:
				v.Notes = append(v.Notes, "spare of the md array "+m.uuid)
			case mdFaulty:
				v.Notes = append(v.Notes, "faulty member of the md array "+m.uuid)
			case mdJournal:
				v.Notes = append(v.Notes, "journal of the md array "+m.uuid)
			default:
				v.Notes = append(v.Notes, fmt.Sprintf("stale member %d of the md array %s, after %d events", m.role, m.uuid, m.events))
			}
		}
	}
	return any
}

func (s *scanner) addMD(set *mdSet) {
	first := -1
	var seg Segment
	for _, m := range set.roles {
		if m == nil {
			continue
		}
		m.used = true
		if first < 0 {
			first = m.vol
		}
		seg.Volumes, seg.Starts = append(seg.Volumes, m.vol), append(seg.Starts, m.dataOff*512)
	}
	m, err := set.compose()
	if err != nil {
		set.problems = append(set.problems, err)
	}
	if m == nil || m.Size() == 0 {
		s.vols[first].Problems = append(s.vols[first].Problems, set.problems...)
		return
	}
	seg.Len, seg.Kind = m.Size(), set.typ()
	if set.level != 1 && set.level != mdLinear {
		seg.Stripe = set.chunk * 512
	}
	number := 127
	for ; set.minor < 0 && s.names[fmt.Sprintf("md%d", number)] && number > 0; number-- {
	}
	if set.minor >= 0 {
		number = set.minor
	}
	s.add(Volume{
		Kind: KindMD, Scheme: "md", Image: -1, Start: -1, Size: m.Size(), In: first, UUID: set.uuid, Label: set.name, Type: seg.Kind,
		Segments: []Segment{seg}, Disk: formats.NewDisk(m, s.o.Env), Notes: set.notes, Problems: set.problems,
	}, fmt.Sprintf("md%d", number))
}

func (set *mdSet) typ() string {
	if set.level == mdLinear {
		return "linear"
	}
	return fmt.Sprintf("raid%d", set.level)
}

// compose makes the array of its members.
func (set *mdSet) compose() (formats.Mapper, error) {
	const what = "md array"
	if f := set.features &^ mdFeatures; f != 0 {
		return nil, ondisk.Unsupported(what, "feature bits", set.at+8, fmt.Sprintf("%#x", f))
	}
	if set.reshape {
		return nil, ondisk.Unsupported(what, "it changes its shape", -1, nil)
	}
	var lost []int
	legs := make([]formats.Mapper, len(set.roles))
	for i, m := range set.roles {
		if m == nil {
			lost = append(lost, i)
			continue
		}
		if m.err != nil {
			set.problems = append(set.problems, m.err)
		}
		leg, err := set.data(m)
		if err != nil {
			return nil, err
		}
		legs[i] = leg
		if m.recovery >= 0 && m.recovery < set.size {
			set.notes = append(set.notes, fmt.Sprintf("member %d is rebuilt up to sector %d", i, m.recovery))
		}
	}
	if set.level == 0 || set.level == mdLinear {
		if len(lost) > 0 { // the sizes of the lost ones are not known, and so not where anything lies
			return nil, ondisk.Truncated(what, fmt.Sprintf("%s without redundancy, missing members", set.typ()), -1, lost)
		}
		if set.level == mdLinear {
			j := &joined{}
			for _, l := range legs {
				j.add(section(l, 0, set.whole(l.Size())))
			}
			return j, nil
		}
		return set.raid0(legs)
	}
	each := set.whole(set.size * 512)
	if each <= 0 || each > maxLVBytes/int64(len(legs)) {
		return nil, ondisk.Corrupt(what, "size of a member", set.at, set.size)
	}
	for _, i := range lost {
		legs[i] = nothing{formats.Missing, each}
	}
	if len(lost) > 0 {
		set.notes = append(set.notes, fmt.Sprintf("degraded: members missing: %v", lost))
	}
	enough := func(n int) {
		if len(lost) > n {
			set.problems = append(set.problems, ondisk.Truncated(what, fmt.Sprintf("%s, missing members", set.typ()), -1, lost))
		} else if len(lost) > 0 && set.level != 1 && set.level != 10 && set.resync < set.size {
			set.problems = append(set.problems, ondisk.Corrupt(what, "degraded and not in sync: what is computed from parity may be wrong; in sync up to sector", -1, set.resync))
		}
	}
	switch set.level {
	case 1:
		enough(len(legs) - 1)
		return mirror{legs, each}, nil
	case 4, 5, 6:
		spare := max(set.level-4, 1)
		if len(legs) <= spare || set.chunk <= 0 {
			return nil, ondisk.Corrupt(what, "number of members", set.at, len(legs))
		}
		enough(spare)
		if set.features&mdHasJournal != 0 {
			set.problems = append(set.problems, ondisk.Unsupported(what, "its journal may hold writes that are not in it", -1, nil))
		}
		f, err := parityLayout(set.level, set.layout, len(legs))
		if err != nil {
			return nil, err
		}
		return &parity{legs: legs, chunk: set.chunk * 512, place: f, parity: spare, n: each * int64(len(legs)-spare), ddf: set.level == 6 && ddfQ(set.layout)}, nil
	case 10:
		if set.chunk <= 0 {
			return nil, ondisk.Corrupt(what, "chunk size", set.at, set.chunk)
		}
		r, err := newRAID10(legs, set.layout, set.chunk*512, each)
		if err != nil {
			return nil, err
		}
		enough(r.near*r.far - 1)
		return r, nil
	}
	return nil, ondisk.Unsupported(what, "level", set.at, set.level)
}

// whole rounds bytes down to whole chunks, where the array has chunks.
func (set *mdSet) whole(n int64) int64 {
	if c := set.chunk * 512; c > 0 {
		return n / c * c
	}
	return n
}

// data is the part of a member that holds the array's bytes. What is not rebuilt yet, and what the list of bad blocks
// names, is missing.
func (set *mdSet) data(m *mdMember) (formats.Mapper, error) {
	size := set.size
	if size == 0 || m.level == 0 || m.level == mdLinear {
		size = m.dataSize
	}
	if m.dataOff > m.disk.Size()/512 || size <= 0 || size > maxLVBytes/512 {
		return nil, ondisk.Corrupt("md superblock", "place of the data", m.at+128, fmt.Sprintf("%d+%d", m.dataOff, size))
	}
	if m.chunk < 0 || m.chunk > 1<<32 {
		return nil, ondisk.Corrupt("md superblock", "chunk size", m.at+88, m.chunk)
	}
	leg := section(m.disk, m.dataOff*512, size*512)
	bad, err := m.badBlocks()
	if err != nil {
		return nil, err
	}
	if len(bad) > 0 {
		set.notes = append(set.notes, fmt.Sprintf("member %d has bad blocks", m.role))
	}
	if m.recovery >= 0 && m.recovery < size {
		bad = append(bad, [2]int64{m.recovery * 512, size * 512})
	}
	slices.SortFunc(bad, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
	return without(leg, bad), nil
}

// badBlocks reads the member's log of blocks that it could not write: they are stale. Positions count in the device.
func (m *mdMember) badBlocks() ([][2]int64, error) {
	if m.badSize == 0 {
		return nil, nil
	}
	n := min(int64(m.badSize), maxBadLog) * 512
	b, err := ondisk.Read(m.disk, m.at+m.badOff*512, n, "md bad block log")
	if err != nil {
		return nil, err
	}
	var out [][2]int64
	for ; len(b) >= 8; b = b[8:] {
		e := le.Uint64(b)
		if e == 1<<64-1 {
			break
		}
		start := (int64(min(e>>10, 1<<44))<<m.badShift - m.dataOff) * 512
		out = append(out, [2]int64{start, start + int64(e&0x3ff)<<m.badShift*512})
	}
	return out, nil
}

// raid0 stripes over zones: where members differ in size, the larger ones go on alone.
func (set *mdSet) raid0(legs []formats.Mapper) (formats.Mapper, error) {
	chunk := set.chunk * 512
	if chunk <= 0 {
		return nil, ondisk.Corrupt("md array", "chunk size", set.at, set.chunk)
	}
	j := &joined{}
	for done := int64(0); ; {
		var zone []formats.Mapper
		end := int64(-1)
		for _, l := range legs {
			if n := set.whole(l.Size()); n > done {
				zone = append(zone, l)
				if end < 0 || n < end {
					end = n
				}
			}
		}
		if zone == nil {
			return j, nil
		}
		n := (end - done) * int64(len(zone))
		if done > 0 {
			switch {
			case set.layout == raid0Original: // the member is told by the chunk's number in the array
				turn := int(j.Size() / chunk % int64(len(zone)))
				zone = slices.Concat(zone[turn:], zone[:turn])
			case set.layout != raid0Alternate:
				set.problems = append(set.problems, ondisk.Unsupported("md array", "raid0 of unequal members whose superblock does not say how zones are laid out, layout", set.at, set.layout))
				j.add(nothing{formats.Missing, n})
				done = end
				continue
			}
		}
		for i, l := range zone {
			zone[i] = section(l, done, end-done)
		}
		j.add(striped{legs: zone, chunk: chunk, n: n})
		done = end
	}
}
