package partition

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Limits. A table that names more is cut there, and says so.
const (
	maxPartitions = 1024 // partitions of one table; Linux numbers 256 at most
	maxVolumes    = 8192 // volumes of one Scan
)

// Scan finds all volumes of the images taken together. Every Volume.In precedes: per image first its disk, then its
// tables, partitions and gaps in disk order, nested ones behind their container; what is made of several volumes comes
// after all images' partitions. The names of several images are made unique (see UniqueNames).
//
// What is wrong with an image's tables stands in its volumes' Problems; an error means that Scan could not be asked so.
func Scan(images []*formats.Image, o Options) ([]Volume, error) {
	if n := o.SectorSize; n != 0 && (n < 512 || n > 64<<10 || n&(n-1) != 0) {
		return nil, ondisk.Unsupported("partition table", "sector size", -1, n)
	}
	if o.Env == nil {
		o.Env = formats.NewEnv(0)
	}
	UniqueNames(images)
	s := &scanner{o: o, names: make(map[string]bool)}
	for _, img := range images {
		prefix := ""
		if len(images) > 1 {
			prefix = img.Name + "/"
		}
		s.disk(img, prefix)
	}
	s.nest()
	return s.vols, nil
}

// UniqueNames gives images that share a name different ones: "web1", "web1~2". Names that could not be a folder's
// become "image".
func UniqueNames(images []*formats.Image) {
	used := make(map[string]bool, len(images))
	for _, img := range images {
		img.Name = unique(used, component(img.Name, "image"))
	}
}

// component makes a name one that a folder may have.
func component(name, instead string) string {
	name = strings.ToValidUTF8(name, "_")
	name = strings.Map(func(r rune) rune {
		if r == '/' || r < ' ' || r == 0x7f {
			return '_'
		}
		return r
	}, name)
	if name == "" || name == "." || name == ".." {
		return instead
	}
	return name
}

// unique takes name, or name~2, name~3… where that is taken. No table and no LVM name has a '~' in it.
func unique(used map[string]bool, name string) string {
	n := name
	for i := 2; used[n]; i++ {
		n = fmt.Sprintf("%s~%d", name, i)
	}
	used[n] = true
	return n
}

type scanner struct {
	o      Options
	vols   []Volume
	depths []int  // how many volumes each lies in
	leaf   []bool // no table was found in it
	names  map[string]bool
	full   bool // maxVolumes was reached

	md         []*mdMember
	pvs        []*lvmPV
	groupNames map[string]bool
	groupsDone map[string]bool
}

// table is what one partition table says.
type table struct {
	scheme   string
	id       string
	entries  []entry // partitions and the table's own sectors; Start counts from the start of the container
	notes    []string
	problems []error
	faults   []error // what Check reports besides: wrong, and resolved
}

// entry is a volume to be, and the table found inside it.
type entry struct {
	Volume
	sub *table
}

func (t *table) note(format string, a ...any) { t.notes = append(t.notes, fmt.Sprintf(format, a...)) }

// resolved notes what is wrong with a table and keeps nobody from using it.
func (t *table) resolved(format string, a ...any) {
	t.note(format, a...)
	t.faults = append(t.faults, fmt.Errorf("%s table: %s: %w", t.scheme, fmt.Sprintf(format, a...), ondisk.ErrCorrupt))
}

func (t *table) problem(err error) { t.problems = append(t.problems, err) }

// own adds sectors that the table itself lies in.
func (t *table) own(start, size int64, what string) {
	t.entries = append(t.entries, entry{Volume: Volume{Kind: KindTable, Scheme: t.scheme, Start: start, Size: size, Type: what}})
}

// add gives the volume a name that no other has, and appends it.
func (s *scanner) add(v Volume, name string) int {
	v.Name = unique(s.names, name)
	depth := 0
	if v.In >= 0 {
		depth = s.depths[v.In] + 1
	}
	s.vols, s.depths, s.leaf = append(s.vols, v), append(s.depths, depth), append(s.leaf, true)
	return len(s.vols) - 1
}

func (s *scanner) disk(img *formats.Image, prefix string) {
	i := s.add(Volume{Kind: KindDisk, Image: img.Number, Size: img.Size(), In: -1, Disk: img.Disk}, prefix+"disk")
	s.table(i, s.sectors(img.SectorSize), prefix)
}

// table looks for a partition table in volume i, and appends what it names. A member of a mirror shows the table that
// lies in the mirror: it is not read there.
func (s *scanner) table(i int, sectors []int64, prefix string) {
	v := &s.vols[i]
	if sectors == nil {
		sectors = s.sectors(0)
	}
	t, err := readTable(v.Disk, sectors)
	// What is encrypted, or missing for a reason that was told, says so where it is read.
	if err != nil && !errors.Is(err, formats.ErrEncrypted) && !(errors.Is(err, formats.ErrMissing) && len(v.Problems) > 0) {
		v.Problems = append(v.Problems, fmt.Errorf("partition table: %w", err))
	}
	if t == nil {
		return
	}
	if m := readMD(&view{r: v.Disk, size: v.Size}); m != nil && m.err == nil && !t.covers(m.at) {
		return
	}
	s.leaf[i] = false
	s.place(i, t, prefix)
}

// covers reports whether byte at lies in a partition.
func (t *table) covers(at int64) bool {
	return slices.ContainsFunc(t.entries, func(e entry) bool { return e.Kind == KindPartition && at >= e.Start && at-e.Start < e.Size })
}

// sectors lists the sector sizes to try, the likeliest first.
func (s *scanner) sectors(stated int64) []int64 {
	if s.o.SectorSize != 0 {
		return []int64{s.o.SectorSize}
	}
	if stated == 4096 {
		return []int64{4096, 512}
	}
	return []int64{512, 4096}
}

// place appends the volumes of a table, with the gaps between them.
func (s *scanner) place(in int, t *table, prefix string) {
	c := s.vols[in]
	c.UUID = cmp.Or(c.UUID, t.id)
	c.Notes = append(c.Notes, t.notes...)
	c.Problems = append(c.Problems, t.problems...)
	slices.SortStableFunc(t.entries, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(kindRank(a.Kind), kindRank(b.Kind)), cmp.Compare(a.Number, b.Number))
	})
	var at int64    // everything before it is covered
	var end int64   // of the partition that reaches furthest
	var last string // its name
	for i := range t.entries {
		e := &t.entries[i]
		name := fmt.Sprintf("p%d", e.Number)
		if e.Start >= c.Size {
			c.Problems = append(c.Problems, ondisk.Truncated(t.scheme+" table", fmt.Sprintf("%s lies past the end of the disk: start", name), -1, e.Start))
			e.Size = 0
			continue
		}
		if e.Size > c.Size-e.Start {
			if e.Kind == KindPartition {
				e.Problems = append(e.Problems, ondisk.Truncated(t.scheme+" table", fmt.Sprintf("%d of its bytes lie past the end of the disk: size", e.Size-(c.Size-e.Start)), -1, e.Size))
			}
			e.Size = c.Size - e.Start
		}
		if e.Kind == KindPartition {
			if e.Start < end {
				e.Notes = append(e.Notes, "it overlaps "+last)
				t.faults = append(t.faults, fmt.Errorf("%s table: %s overlaps %s: %w", t.scheme, name, last, ondisk.ErrCorrupt))
			}
			if e.Start+e.Size > end {
				end, last = e.Start+e.Size, name
			}
		}
	}
	s.vols[in] = c
	var nested []int
	for i := range t.entries {
		e := &t.entries[i]
		if e.Size == 0 {
			continue
		}
		if e.Start > at {
			s.addPart(in, Volume{Kind: KindGap, Start: at, Size: e.Start - at}, prefix)
		}
		e.In = s.addPart(in, e.Volume, prefix)
		if e.sub != nil && e.In >= 0 {
			nested = append(nested, i)
		}
		at = max(at, e.Start+e.Size)
	}
	if at < c.Size {
		s.addPart(in, Volume{Kind: KindGap, Start: at, Size: c.Size - at}, prefix)
	}
	for _, i := range nested {
		s.leaf[t.entries[i].In] = false
		s.place(t.entries[i].In, t.entries[i].sub, prefix)
	}
}

// addPart appends a stretch of volume in and gives its index, or -1 when there are too many.
func (s *scanner) addPart(in int, v Volume, prefix string) int {
	if len(s.vols) >= maxVolumes {
		if !s.full {
			s.full = true
			s.vols[in].Problems = append(s.vols[in].Problems, ondisk.Unsupported("partition table", "number of volumes: only the first are listed", -1, maxVolumes))
		}
		return -1
	}
	c := s.vols[in]
	v.In, v.Image, v.Disk = in, c.Image, formats.Section(c.Disk, v.Start, v.Size)
	at := v.Start
	if c.Image >= 0 {
		v.Start += c.Start
		at = v.Start
	} else {
		v.Segments = []Segment{{Len: v.Size, Kind: "linear", Volumes: []int{in}, Starts: []int64{v.Start}}}
		v.Start = -1
	}
	switch v.Kind {
	case KindPartition:
		return s.add(v, fmt.Sprintf("%sp%d", prefix, v.Number))
	case KindTable:
		return s.add(v, fmt.Sprintf("%stable@%d", prefix, at))
	}
	return s.add(v, fmt.Sprintf("%sgap@%d", prefix, at))
}

// kindRank puts a table before the partition that starts with it (isohybrid).
func kindRank(k Kind) int {
	if k == KindTable {
		return 0
	}
	return 1
}

// readTable finds the one partition table that counts, or nil where there is none. Order and doubts follow the kernel
// and libblkid: a GPT counts when a protective MBR announces it, or when nothing else lies there; an MBR counts unless
// its sector is the boot sector of a file system.
func readTable(d formats.Disk, sectors []int64) (*table, error) {
	size := d.Size()
	head := make([]byte, min(size, 4096))
	if len(head) < mbrSize {
		return nil, nil
	}
	if err := ondisk.ReadFull(d, head, 0, "first sectors"); err != nil {
		return nil, err
	}
	boot := bootSectorFS(head)
	m := parseMBR(head)
	g := findGPT(d, sectors, m)
	if g != nil && m.protective() {
		return g.table(d, m), nil
	}
	if boot != "" {
		return nil, nil
	}
	whole, _ := Recognise(d, size)
	if !m.empty() && m.sane(size) {
		t := m.table(d, sectors, g)
		if whole.Name != "" && whole.Name != "iso9660" && whole.Name != "udf" {
			t.note("the disk as a whole has the mark of %s too", whole.Name)
		}
		return t, nil
	}
	switch {
	case whole.Name == "iso9660" || whole.Name == "udf":
		t, err := readAPM(d, head)
		return t, ignoreNot(err)
	case whole.Name != "":
		return nil, nil
	case g != nil:
		return g.table(d, m), nil
	case m != nil && m.sane(size):
		return m.table(d, sectors, nil), nil
	}
	for _, read := range []func(formats.Disk, []byte) (*table, error){readAPM, readBSDDisk, foreignTable} {
		if t, err := read(d, head); t != nil || ignoreNot(err) != nil {
			return t, err
		}
	}
	return nil, nil
}

func ignoreNot(err error) error {
	if errors.Is(err, ondisk.ErrNot) {
		return nil
	}
	return err
}
