package iso9660

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"
	"strings"
	"unicode/utf16"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/claim"
	"vmkit/fsmap/internal/names"
	"vmkit/fsmap/mapfile"
)

// Driver is the row of the table of file systems.
var Driver = fsmap.Driver{Name: "iso9660", Probe: probe, Open: open}

const (
	cachePage  = 16 << 10
	cacheBytes = 2 << 20
)

// tree is the kind of names that are shown.
type tree uint8

const (
	plain tree = iota
	joliet
	rockRidge
)

// volume is an opened ISO 9660 volume.
type volume struct {
	meta   *ondisk.Cache
	size   int64
	block  int64  // bytes
	number uint16 // of the volume in its set
	set    uint16 // volumes in it
	tree   tree
	skip   int // bytes before the system use entries of each record but the first
	root   section
	rootID uint64
	claims claim.Table
	inf    fsmap.Info
}

// section is a stretch of a file, in blocks.
type section struct {
	extent uint32 // first block
	size   uint32 // bytes
}

func probe(_ io.ReaderAt, _ int64, head []byte) (string, bool) {
	const at = systemArea * sectorLen
	if len(head) < at+sectorLen {
		return "", false
	}
	return "iso9660", string(head[at+1:at+6]) == standardID || string(head[at+9:at+14]) == highSierra
}

// descriptors is what the volume descriptors of a session hold.
type descriptors struct {
	primary, joliet *volumeDescriptor
	level           int // of Joliet
	at              int64
	catalog         uint32 // sector of El Torito's boot catalog, or 0
	udf             bool
}

// readDescriptors reads the volume descriptors of the session that starts at a sector.
func readDescriptors(r io.ReaderAt, session int64) (*descriptors, error) {
	const what = "volume descriptor"
	d := new(descriptors)
	var b [sectorLen]byte
	for i := range int64(maxVolDescs) {
		pos := (session + systemArea + i) * sectorLen
		if err := ondisk.ReadFull(r, b[:], pos, what); err != nil {
			if d.primary != nil {
				break
			}
			return nil, err
		}
		if string(b[9:14]) == highSierra {
			return nil, ondisk.Unsupported(what, "High Sierra", pos, nil)
		}
		if id := string(b[1:6]); id != standardID {
			// Behind the last one UDF's recognition sequence may follow.
			if id == "NSR02" || id == "NSR03" {
				d.udf = true
			}
			if id == "BEA01" || d.udf {
				continue
			}
			break
		}
		switch b[0] {
		case vdBoot:
			if strings.HasPrefix(string(b[7:39]), bootSystem) {
				d.catalog = binary.LittleEndian.Uint32(b[bootCatalog:])
			}
		case vdPrimary, vdSupplementary:
			v := new(volumeDescriptor)
			if _, err := binary.Decode(b[:], binary.LittleEndian, v); err != nil {
				return nil, err
			}
			if b[0] == vdPrimary {
				if d.primary == nil {
					d.primary, d.at = v, pos
				}
				continue
			}
			for level, escape := range jolietEscapes {
				if bytes.HasPrefix(v.Escapes[:], []byte(escape)) {
					d.joliet, d.level = v, level+1
				}
			}
		}
	}
	if d.primary == nil {
		return nil, &ondisk.Error{What: what, Field: "primary one", Off: (session + systemArea) * sectorLen, Err: ondisk.ErrNot}
	}
	return d, nil
}

func open(r io.ReaderAt, size int64, _ fsmap.Options) (fsmap.FS, error) {
	d, err := readDescriptors(r, 0)
	if err != nil {
		return nil, err
	}
	v := &volume{meta: ondisk.NewCache(r, size, cachePage, cacheBytes), size: size}
	d, sessions, start := lastSession(v.meta, d)
	p := d.primary
	if p.BlockSize.LE < 512 || p.BlockSize.LE > sectorLen || bits.OnesCount16(p.BlockSize.LE) != 1 {
		return nil, ondisk.Unsupported("volume descriptor", "bytes in a block", d.at+128, p.BlockSize.LE)
	}
	v.block, v.number, v.set = int64(p.BlockSize.LE), p.Sequence.LE, p.SetSize.LE
	v.inf = fsmap.Info{Type: "iso9660", UUID: uuid(p), Label: label(d), BlockSize: v.block, Size: int64(p.Space.LE) * v.block, Journal: "none",
		Extra: map[string]any{}}
	v.inf.Used = v.inf.Size
	note := func(format string, args ...any) { v.inf.Notes = append(v.inf.Notes, fmt.Sprintf(format, args...)) }
	if sessions > 1 {
		note("it has %d sessions: the last, at byte %#x, is shown", sessions, start*sectorLen)
	}
	if !p.Space.agree() || !p.BlockSize.agree() || !p.Sequence.agree() || !p.SetSize.agree() {
		note("its volume descriptor's numbers differ between the byte orders: the little-endian ones are used")
	}
	if d.udf {
		note("it holds UDF too, which is not read")
	}
	if size < v.inf.Size {
		note("it has %d bytes of the %d that its volume descriptor says", size, v.inf.Size)
	}
	if p.SetSize.LE > 1 {
		note("it is number %d of a set of %d volumes", p.Sequence.LE, p.SetSize.LE)
	}
	if err := v.choose(d); err != nil {
		return nil, err
	}
	v.bootImages(d)
	return v, nil
}

// choose picks the tree that Linux would mount.
func (v *volume) choose(d *descriptors) error {
	root, err := v.rootOf(d.primary, d.at)
	if err != nil {
		return err
	}
	v.root = root
	var extensions []string
	rr, err := v.rockRidge()
	if err != nil {
		v.inf.Problems = append(v.inf.Problems, err)
	}
	if rr {
		extensions, v.tree = append(extensions, "Rock Ridge"), rockRidge
	}
	if d.joliet != nil {
		extensions = append(extensions, fmt.Sprintf("Joliet level %d", d.level))
		// As Linux has it, an empty Rock Ridge tree beside Joliet's stands for none.
		if !rr || v.empty() {
			if v.root, err = v.rootOf(d.joliet, -1); err != nil {
				return err
			}
			v.tree = joliet
		}
	}
	v.rootID = uint64(v.root.extent) * uint64(v.block) // its own record "."
	v.inf.Root = fsmap.Ref{ID: v.rootID}
	if len(extensions) > 0 {
		v.inf.Extra["extensions"] = extensions
	}
	return nil
}

// rootOf gives the root directory of a volume descriptor.
func (v *volume) rootOf(d *volumeDescriptor, at int64) (section, error) {
	rec := d.Root[:]
	s := section{binary.LittleEndian.Uint32(rec[recExtent:]), binary.LittleEndian.Uint32(rec[recSize:])}
	s.extent += uint32(rec[recExtended])
	if pos := int64(s.extent) * v.block; s.extent == 0 || !ondisk.Within(pos, minRecord, v.size) {
		return section{}, ondisk.Truncated("volume descriptor", "root directory's block", at, s.extent)
	}
	return s, nil
}

// empty reports whether the root directory has no names.
func (v *volume) empty() bool {
	n := 0
	_ = v.records(v.root, func(rec []byte, _ int64) bool {
		if !isDot(rec) {
			n++
		}
		return n == 0
	})
	return n == 0
}

// uuid gives what blkid takes for one: the time of the last change, or of the making.
func uuid(p *volumeDescriptor) string {
	d := string(p.Modified.Digits[:])
	if strings.Trim(d, "0\x00 ") == "" {
		d = string(p.Created.Digits[:])
	}
	if strings.Trim(d, "0\x00 ") == "" {
		return ""
	}
	for _, c := range d {
		if c < '0' || c > '9' {
			return ""
		}
	}
	return strings.Join([]string{d[:4], d[4:6], d[6:8], d[8:10], d[10:12], d[12:14], d[14:16]}, "-")
}

// label gives the volume's name: Joliet's, which can be in any script, followed by what only the primary one, which
// is twice as long, has room for.
func label(d *descriptors) string {
	ascii := strings.TrimRight(string(d.primary.VolumeID[:]), " \x00")
	if d.joliet == nil {
		return strings.ToValidUTF8(ascii, "\uFFFD")
	}
	u := make([]uint16, 0, 16)
	for i := 0; i < 32; i += 2 {
		u = append(u, binary.BigEndian.Uint16(d.joliet.VolumeID[i:]))
	}
	wide := strings.TrimRight(string(utf16.Decode(u)), " \x00")
	if wide == "" {
		return strings.ToValidUTF8(ascii, "\uFFFD")
	}
	if len(ascii) > 16 && len(wide) == 16 && strings.EqualFold(ascii[:16], wide) {
		return ascii
	}
	return wide
}

// Info implements fsmap.FS.
func (v *volume) Info() *fsmap.Info { return &v.inf }

// Windows of sectors behind a session in which the next is looked for: at once, and behind the gaps that a CD writer
// leaves (lead-out and lead-in: 11,400 sectors after the first session, 6,900 after others).
var sessionGaps = [...]int64{0, 6900, 11400}

const (
	sessionWindow = 512
	maxSessions   = 99 // as on a CD
)

// lastSession gives the volume descriptors of the last session. A session's blocks are counted from the beginning of
// the first, which tells it from another volume that lies behind.
func lastSession(r *ondisk.Cache, d *descriptors) (last *descriptors, sessions int, start int64) {
	sessions = 1
	for sessions < maxSessions {
		next, at := nextSession(r, d, start)
		if next == nil {
			break
		}
		d, start = next, at
		sessions++
	}
	return d, sessions, start
}

func nextSession(r *ondisk.Cache, d *descriptors, start int64) (*descriptors, int64) {
	// The size of a session is counted from its own start by some writers, from the first's by others.
	space := int64(d.primary.Space.LE) * int64(d.primary.BlockSize.LE) / sectorLen
	end := start + space
	for _, gap := range sessionGaps {
		for at := end + gap; at < end+gap+sessionWindow; at++ {
			pos := (at + systemArea) * sectorLen
			if !ondisk.Within(pos, 2*sectorLen, r.Size()) {
				break
			}
			b, err := r.Slice(pos, 7)
			if err != nil || b[0] != vdPrimary || string(b[1:6]) != standardID {
				continue
			}
			next, err := readDescriptors(r, at)
			if err != nil {
				continue
			}
			root := next.primary.Root[:]
			extent := int64(binary.LittleEndian.Uint32(root[recExtent:])) * int64(next.primary.BlockSize.LE)
			if extent < at*sectorLen {
				continue
			}
			if dot, err := r.Slice(extent, minRecord); err != nil || !isDot(dot) || !bytes.Equal(dot[recExtent:recDate], root[recExtent:recDate]) {
				continue
			}
			return next, at
		}
	}
	return nil, 0
}

// isDot reports whether a record is a directory's own, or its parent's.
func isDot(rec []byte) bool { return rec[recNameLen] == 1 && rec[recName] <= 1 }

// appendJoliet appends a name in UCS-2 without its version.
func appendJoliet(dst, b []byte) []byte {
	u := make([]uint16, 0, 64)
	for ; len(b) >= 2; b = b[2:] {
		u = append(u, binary.BigEndian.Uint16(b))
	}
	if n := len(u); n > 2 && u[n-2] == ';' && u[n-1] == '1' {
		u = u[:n-2]
	}
	for len(u) >= 2 && u[len(u)-1] == '.' { // as Linux, and Windows
		u = u[:len(u)-1]
	}
	return names.AppendUTF16(dst, u)
}

// recordTime turns the 7 bytes of a directory record into a Time (ECMA-119, 9.1.5).
func recordTime(b []byte) mapfile.Time {
	return civil(1900+int(b[0]), int(b[1]), int(b[2]), int(b[3]), int(b[4]), int(b[5]), 0, int8(b[6]))
}
