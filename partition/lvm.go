package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// lvmPV is a physical volume that was found.
type lvmPV struct {
	vol      int // its index among the volumes
	uuid     string
	disk     formats.Disk
	group    *lvmText // the newest text in it, or nil
	problems []error
}

// lvmText is one generation of a group's metadata.
type lvmText struct {
	name, id string
	seqno    int64
	node     *lvmNode
	pvs      []string // UUIDs of the physical volumes
}

// readPV reads the label and the metadata areas of a physical volume.
func readPV(d formats.Disk) (*lvmPV, error) {
	for i := int64(0); i < lvmLabels; i++ {
		b := make([]byte, 512)
		if err := ondisk.ReadFull(d, b, i*512, "lvm2 label"); err != nil {
			return nil, err
		}
		var l lvmLabelHeader
		n, err := binary.Decode(b, le, &l)
		if err != nil || string(l.Magic[:]) != lvmLabel || string(l.Type[:]) != lvmType || l.CRC != lvmCRC(b[20:]) {
			continue
		}
		if l.Offset < uint32(n) || l.Offset > 512-40 {
			return nil, ondisk.Corrupt("lvm2 label", "offset", i*512+20, l.Offset)
		}
		c := ondisk.NewCursor(b[l.Offset:], le, i*512+int64(l.Offset), "lvm2 physical volume header")
		p := &lvmPV{uuid: string(c.Bytes(32)), disk: d}
		c.U64() // size of the device
		areas := func() (list [][2]uint64) {
			for range maxAreas {
				off, size := c.U64(), c.U64()
				if off == 0 || c.Err() != nil {
					break
				}
				list = append(list, [2]uint64{off, size})
			}
			return list
		}
		areas() // of data: the text says it again, by extents
		for _, a := range areas() {
			t, err := readMDA(d, a[0], a[1])
			if err != nil {
				if t != nil {
					err = fmt.Errorf("%w; an older generation, %d, may be used", err, t.seqno)
				}
				p.problems = append(p.problems, err)
			}
			if t != nil && (p.group == nil || t.seqno > p.group.seqno) {
				p.group = t
			}
		}
		return p, c.Err()
	}
	return nil, fmt.Errorf("lvm2 label: %w", ondisk.ErrNot)
}

// readMDA reads the text that a metadata area says is the committed one; nil without an error: the area holds none. With
// an error may come an older text.
func readMDA(d formats.Disk, start, size uint64) (*lvmText, error) {
	if start > uint64(d.Size()) || size > uint64(d.Size())-start || size < 2*mdaHeaderLen {
		return nil, ondisk.Truncated("lvm2 metadata area", "position", int64(min(start, 1<<62)), size)
	}
	at, ring := int64(start), int64(size)-mdaHeaderLen
	b, err := ondisk.Read(d, at, mdaHeaderLen, "lvm2 metadata area")
	if err != nil {
		return nil, err
	}
	var h mdaHeader
	if _, err := binary.Decode(b, le, &h); err != nil {
		return nil, err
	}
	switch {
	case string(h.Magic[:]) != mdaMagic:
		return nil, ondisk.Corrupt("lvm2 metadata area", "magic", at+4, nil)
	case h.CRC != lvmCRC(b[4:]):
		return nil, ondisk.Corrupt("lvm2 metadata area", "checksum", at, fmt.Sprintf("%#x", h.CRC))
	case h.Version != 1:
		return nil, ondisk.Unsupported("lvm2 metadata area", "version", at+20, h.Version)
	}
	l := h.Locations[0]
	if l.Offset == 0 || l.Flags&mdaIgnored != 0 {
		return nil, nil
	}
	if l.Offset < mdaHeaderLen || l.Offset >= size || l.Size == 0 || l.Size > uint64(ring) || l.Size > maxLVMText {
		return nil, ondisk.Corrupt("lvm2 metadata area", "position of the text", at+40, fmt.Sprintf("%d+%d", l.Offset, l.Size))
	}
	text := make([]byte, l.Size)
	n := min(int64(l.Size), int64(size-l.Offset))
	if err := ondisk.ReadFull(d, text[:n], at+int64(l.Offset), "lvm2 metadata"); err != nil {
		return nil, err
	}
	if err := ondisk.ReadFull(d, text[n:], at+mdaHeaderLen, "lvm2 metadata"); err != nil {
		return nil, err
	}
	if crc := lvmCRC(text); crc != l.CRC {
		err := ondisk.Corrupt("lvm2 metadata", "checksum", at+int64(l.Offset), fmt.Sprintf("%#x", crc))
		return olderText(d, at, int64(size)), err
	}
	return parseGroup(text)
}

// olderText looks through a ring for the newest text that can be parsed, as the one that counts is damaged. Texts start
// at sectors, and a text that goes on behind the header is not found; nil: there is none.
func olderText(d formats.Disk, start, size int64) *lvmText {
	b := make([]byte, min(size, maxLVMText))
	n, _ := d.ReadAt(b, start)
	b = b[:n]
	var newest *lvmText
	for off := mdaHeaderLen; off < len(b); off += 512 {
		if !lvmStart.Match(b[off:min(off+300, len(b))]) {
			continue
		}
		if t, err := parseGroup(b[off:]); err == nil && (newest == nil || t.seqno > newest.seqno) {
			newest = t
		}
	}
	return newest
}

// lvmStart is how the text of a group begins.
var lvmStart = regexp.MustCompile(`^[A-Za-z0-9_.+-]+ \{\s+id = "`)

// parseGroup takes a text apart: its one section at the top is the group.
func parseGroup(text []byte) (*lvmText, error) {
	text, _, _ = bytes.Cut(text, []byte{0})
	root, err := parseLVM(text)
	if err != nil {
		return nil, err
	}
	if len(root.sections) != 1 {
		return nil, ondisk.Corrupt("lvm2 metadata", "number of groups", -1, len(root.sections))
	}
	g := root.sections[0]
	t := &lvmText{name: g.name, id: g.text("id"), seqno: g.number("seqno"), node: g}
	if t.id == "" {
		return nil, ondisk.Corrupt("lvm2 metadata", "id of the group", -1, nil)
	}
	if pvs := g.section("physical_volumes"); pvs != nil {
		for _, p := range pvs.sections {
			t.pvs = append(t.pvs, strings.ReplaceAll(p.text("id"), "-", ""))
		}
	}
	return t, nil
}

// lvmGroup is a volume group: the newest text found, and the physical volumes at hand. Two copies of the same group's
// volumes (of a machine and its clone) make two groups.
type lvmGroup struct {
	text *lvmText
	pvs  map[string]*lvmPV // by UUID
	copy int
	name string // unique among the groups
	done bool

	extent int64 // bytes
	lvs    map[string]*lvmLV
	pools  map[string]*thinPool
	stores map[string]*lvmNode // snapshot segments by the name of their store
	env    *formats.Env
	depth  int
	notes  []string
}

// addPV registers a physical volume. The number of earlier ones with its UUID tells which copy of the group it is of.
func (s *scanner) addPV(p *lvmPV) {
	for _, q := range s.pvs {
		if q.uuid == p.uuid {
			s.vols[p.vol].Notes = append(s.vols[p.vol].Notes, fmt.Sprintf("it has the UUID of the physical volume %s too", s.vols[q.vol].Name))
			break
		}
	}
	s.pvs = append(s.pvs, p)
}

// groups sorts the physical volumes into groups, newest text first. Volumes without a text belong where another's
// text names them.
func (s *scanner) groups() []*lvmGroup {
	var list []*lvmGroup
	find := func(id string, copy int) *lvmGroup {
		for _, g := range list {
			if g.text.id == id && g.copy == copy {
				return g
			}
		}
		return nil
	}
	copies := make(map[string]int)
	number := make([]int, len(s.pvs))
	for i, p := range s.pvs {
		number[i] = copies[p.uuid]
		copies[p.uuid]++
	}
	for i, p := range s.pvs {
		if p.group == nil {
			continue
		}
		g := find(p.group.id, number[i])
		if g == nil {
			g = &lvmGroup{text: p.group, copy: number[i], pvs: make(map[string]*lvmPV)}
			list = append(list, g)
		}
		if p.group.seqno > g.text.seqno {
			g.text = p.group
		}
	}
	for _, g := range list {
		for i, p := range s.pvs {
			if number[i] == g.copy && slices.Contains(g.text.pvs, p.uuid) {
				g.pvs[p.uuid] = p
				if p.group != nil && p.group.seqno < g.text.seqno {
					g.notes = append(g.notes, fmt.Sprintf("the metadata on %s is of generation %d, the newest is %d", s.vols[p.vol].Name, p.group.seqno, g.text.seqno))
				}
			}
		}
	}
	return list
}

// complete says that all physical volumes are at hand.
func (g *lvmGroup) complete() bool { return len(g.pvs) == len(g.text.pvs) }

// assembleGroups appends the logical volumes of groups that were not assembled yet: of complete ones, or of all when
// nothing else can be found any more. It reports whether there were any.
func (s *scanner) assembleGroups(all bool) bool {
	any := false
	for _, g := range s.groups() {
		key := fmt.Sprintf("%s %d", g.text.id, g.copy)
		if s.groupsDone[key] || !all && !g.complete() {
			continue
		}
		s.groupsDone[key] = true
		g.name = unique(s.groupNames, component(g.text.name, "vg"))
		any = true
		s.assembleGroup(g)
	}
	return any
}

func (s *scanner) assembleGroup(g *lvmGroup) {
	first := -1
	for _, p := range s.pvs {
		if g.pvs[p.uuid] == p {
			first = p.vol
			break
		}
	}
	if first < 0 {
		return // a text that does not name the volume it lies on
	}
	fail := func(err error) {
		s.vols[first].Problems = append(s.vols[first].Problems, fmt.Errorf("group %s: %w", g.name, err))
	}
	s.vols[first].Notes = append(s.vols[first].Notes, g.notes...)
	if err := g.open(s); err != nil {
		fail(err)
		return
	}
	for _, u := range g.text.pvs {
		if g.pvs[u] == nil {
			fail(ondisk.Truncated("lvm2", "physical volume "+lvmUUID32(u)+" is missing", -1, nil))
		}
	}
	names := make([]string, 0, len(g.lvs))
	for name, lv := range g.lvs {
		if lv.shown || lv.node.has("status", "VISIBLE") && !lv.hidden {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		if len(s.vols) >= maxVolumes {
			fail(ondisk.Unsupported("lvm2", "number of volumes: only the first are listed", -1, maxVolumes))
			return
		}
		s.addLV(g, g.lvs[name], first)
	}
}

func lvmUUID32(s string) string {
	if len(s) == 32 {
		return lvmUUID([]byte(s))
	}
	return s
}

var lvmName = regexp.MustCompile(`^[A-Za-z0-9_.+-]+$`)

// open reads what the text says of the group as a whole.
func (g *lvmGroup) open(s *scanner) error {
	n := g.text.node
	g.extent = n.number("extent_size") * 512
	if g.extent < 512 || g.extent > 1<<50 {
		return ondisk.Corrupt("lvm2 metadata", "extent size", -1, n.values["extent_size"])
	}
	if f := n.list("flags"); len(f) > 0 {
		return ondisk.Unsupported("lvm2 metadata", fmt.Sprintf("flags of the group %v", f), -1, nil)
	}
	if n.has("status", "CLUSTERED") || n.text("lock_type") != "" {
		g.notes = append(g.notes, "the group is shared by several machines")
	}
	g.env = s.o.Env
	g.lvs = make(map[string]*lvmLV)
	g.pools = make(map[string]*thinPool)
	if lvs := n.section("logical_volumes"); lvs != nil {
		for _, v := range lvs.sections {
			if !lvmName.MatchString(v.name) || g.lvs[v.name] != nil {
				return ondisk.Corrupt("lvm2 metadata", "name of a volume", -1, fmt.Sprintf("%q", v.name))
			}
			g.lvs[v.name] = &lvmLV{name: v.name, node: v}
		}
	}
	g.findSnapshots()
	return nil
}

// maxListed bounds the stretches that a volume's record tells of, whose line may have 1 MiB; the volume itself knows all.
const maxListed = 4096

// addLV appends a logical volume.
func (s *scanner) addLV(g *lvmGroup, lv *lvmLV, first int) {
	m, segs, err := g.volume(lv)
	v := Volume{
		Kind: KindLV, Scheme: "lvm2", Image: -1, Start: -1, Size: m.Size(), In: first, UUID: lv.node.text("id"), Type: lv.kind,
		Segments: segs, Disk: formats.NewDisk(m, s.o.Env), Notes: lv.notes,
	}
	if lv.node.list("tags") != nil {
		for _, t := range lv.node.list("tags") {
			v.Attrs = append(v.Attrs, fmt.Sprintf("tag:%v", t))
		}
	}
	if err != nil {
		v.Problems = append(v.Problems, err)
	}
	v.Problems = append(v.Problems, lv.problems...)
	if len(segs) > maxListed {
		v.Notes = append(v.Notes, fmt.Sprintf("it has %d stretches; the first %d are listed", len(segs), maxListed))
		v.Segments = segs[:maxListed]
	}
	if len(segs) > 0 && len(segs[0].Volumes) > 0 {
		v.In = segs[0].Volumes[0]
	}
	if len(segs) == 1 && segs[0].Kind == "linear" && len(segs[0].Volumes) == 1 {
		in := s.vols[v.In]
		if in.Image >= 0 && ondisk.Within(segs[0].Starts[0], v.Size, in.Size) {
			v.Image, v.Start, v.Segments = in.Image, in.Start+segs[0].Starts[0], nil
			v.Disk = formats.Section(in.Disk, segs[0].Starts[0], v.Size)
		}
	}
	if v.Size == 0 {
		if err == nil {
			err = ondisk.Corrupt("lvm2 metadata", "volume without extents", -1, lv.name)
		}
		s.vols[first].Problems = append(s.vols[first].Problems, fmt.Errorf("volume %s/%s: %w", g.name, lv.name, err))
		return
	}
	s.add(v, g.name+"/"+component(lv.name, "lv"))
}

// isMissing reports whether trouble is only the absence of something.
func isMissing(err error) bool { return errors.Is(err, ondisk.ErrTruncated) }
