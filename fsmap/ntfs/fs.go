package ntfs

import (
	"bytes"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sort"
	"sync"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/overlay"
	"vmkit/fsmap/mapfile"
)

// Driver is the row of the table.
var Driver = fsmap.Driver{Name: "ntfs", Probe: probe, Open: open}

func probe(_ io.ReaderAt, _ int64, head []byte) (string, bool) {
	if len(head) < bootSize || !bytes.Equal(head[bootOEM:bootOEM+8], []byte("NTFS    ")) {
		return "", false
	}
	// A FAT boot sector with this OEM name has a FAT and a root directory.
	return "ntfs", le.Uint16(head[14:]) == 0 && head[16] == 0
}

// fs is an opened NTFS volume. It is immutable but for its caches, which lock.
type fs struct {
	r          *ondisk.Cache
	size       int64
	cluster    int64 // bytes
	clusters   int64
	recordSize int64
	records    int64
	mft        stream
	info       fsmap.Info
	metadata   bool
	major      uint8
	over       *overlay.Volume // what the replay of the log changed, or nil
	disk       io.ReaderAt     // where there is an overlay, the volume without it
	changed    []int64         // the sectors that the log changed, in order

	// doubtful says why the bitmap of clusters can't be relied upon.
	doubtful string

	sdsOnce sync.Once
	owners  map[uint32]owner
	sdsErr  error
}

// boot is what the boot sector says.
type boot struct {
	cluster, clusters, mft, mirr, recordSize int64
	serial                                   uint64
}

func parseBoot(b []byte, off, size int64) (boot, error) {
	bad := func(field string, at int64, got any) (boot, error) {
		return boot{}, ondisk.Corrupt("ntfs boot sector", field, off+at, got)
	}
	if _, ok := probe(nil, 0, b); !ok {
		return boot{}, &ondisk.Error{What: "ntfs boot sector", Off: off, Err: ondisk.ErrNot}
	}
	sector := int64(le.Uint16(b[bootBytesPerSector:]))
	if sector < 256 || sector > 4096 || sector&(sector-1) != 0 {
		return bad("bytes per sector", bootBytesPerSector, sector)
	}
	per := int64(b[bootSectorsPerCluster])
	if per > 0x80 {
		if per < 0xE0 {
			return bad("sectors per cluster", bootSectorsPerCluster, per)
		}
		per = 1 << (256 - per)
	}
	if per == 0 || per&(per-1) != 0 || sector*per > maxCluster {
		return bad("sectors per cluster", bootSectorsPerCluster, per)
	}
	x := boot{cluster: sector * per, serial: le.Uint64(b[bootSerial:])}
	sectors := le.Uint64(b[bootSectors:])
	if sectors == 0 || sectors > 1<<62/uint64(sector) {
		return bad("sectors", bootSectors, sectors)
	}
	x.clusters = int64(sectors) / per
	x.mft, x.mirr = int64(le.Uint64(b[bootMFT:])), int64(le.Uint64(b[bootMFTMirr:]))
	if x.mft <= 0 || x.mft >= x.clusters {
		return bad("cluster of the MFT", bootMFT, x.mft)
	}
	switch n := int8(b[bootRecordSize]); {
	case n > 0:
		x.recordSize = int64(n) * x.cluster
	case n >= -16:
		x.recordSize = 1 << -n
	}
	if x.recordSize < stride || x.recordSize > maxRecord || x.recordSize&(x.recordSize-1) != 0 {
		return bad("size of MFT records", bootRecordSize, int8(b[bootRecordSize]))
	}
	return x, nil
}

// cacheLimit bounds the pages of the MFT and of indexes that are kept.
const (
	cachePage  = 64 << 10
	cacheLimit = 8 << 20
)

func open(r io.ReaderAt, size int64, o fsmap.Options) (fsmap.FS, error) {
	f := &fs{r: ondisk.NewCache(r, size, cachePage, cacheLimit), size: size, metadata: o.Metadata}
	b, err := ondisk.Read(r, 0, bootSize, "ntfs boot sector")
	if err != nil {
		return nil, err
	}
	x, err := parseBoot(b, 0, size)
	if err != nil {
		return nil, err
	}
	f.cluster, f.clusters, f.recordSize = x.cluster, x.clusters, x.recordSize
	f.info = fsmap.Info{
		Type: "ntfs", UUID: fmt.Sprintf("%016X", x.serial), BlockSize: x.cluster, Size: x.clusters * x.cluster,
		Used: mapfile.None, Root: fsmap.Ref{ID: recRoot}, Journal: "none", Extra: map[string]any{},
	}
	if f.info.Size > size {
		f.problem(ondisk.Truncated("ntfs", "the volume is shorter than the file system", size, f.info.Size))
	}
	if err := f.openMFT(x); err != nil {
		return nil, err
	}
	if err := f.recover(o.Journal, x); err != nil {
		return nil, err
	}
	f.readVolume()
	f.readUsed()
	f.readShadows()
	f.findHibernation()
	return f, nil
}

func (f *fs) problem(err error) { f.info.Problems = append(f.info.Problems, err) }
func (f *fs) note(format string, a ...any) {
	f.info.Notes = append(f.info.Notes, fmt.Sprintf(format, a...))
}
func (f *fs) Info() *fsmap.Info { return &f.info }

// openMFT finds the runs of the MFT. Record 0 describes them; where its attribute list spreads them over more records,
// those lie in parts of the MFT that earlier ones describe.
func (f *fs) openMFT(x boot) error {
	err := f.bootstrap(x.mft)
	if err != nil && x.mirr > 0 && x.mirr < x.clusters {
		if f.bootstrap(x.mirr) == nil {
			f.note("first MFT record read from $MFTMirr: %v", err)
			err = nil
		}
	}
	return err
}

func (f *fs) bootstrap(lcn int64) error {
	b := make([]byte, f.recordSize)
	if err := ondisk.ReadFull(f.r, b, lcn*f.cluster, "ntfs first MFT record"); err != nil {
		return err
	}
	if err := fixup(b, "FILE", "ntfs first MFT record", lcn*f.cluster); err != nil {
		return err
	}
	ino := &inode{no: recMFT, rec: b}
	var list attr
	for off := int(le.Uint16(b[recAttrs:])); ; {
		a, next, ok, err := nextAttr(b, recMFT, off)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		switch {
		case a.typ == atData && a.name == "":
			if !a.nonRes || a.lowest != 0 {
				return ondisk.Corrupt("ntfs MFT", "its data is not in clusters", lcn*f.cluster, nil)
			}
			f.mft = stream{f: f, size: a.size}
			if err := f.pairs(b, a, f.mft.add); err != nil {
				return err
			}
			f.records = a.init / f.recordSize
		case a.typ == atAttributeList:
			list = a
		}
		off = next
	}
	if len(f.mft.runs) == 0 || f.records < firstUser {
		return ondisk.Corrupt("ntfs MFT", "records", lcn*f.cluster, f.records)
	}
	if list.typ == 0 {
		return nil
	}
	entries, err := f.attrList(ino, list)
	if err != nil {
		return err
	}
	for _, e := range entries {
		no, _ := mftRef(e.ref)
		if e.typ != atData || e.name != "" || e.lowest == 0 || no == recMFT {
			continue
		}
		ext := make([]byte, f.recordSize)
		if err := f.readRecord(no, ext); err != nil {
			return fmt.Errorf("extent list of the MFT: %w", err)
		}
		for off := int(le.Uint16(ext[recAttrs:])); ; {
			a, next, ok, err := nextAttr(ext, no, off)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			if a.typ == atData && a.name == "" && a.lowest == e.lowest {
				if err := f.pairs(ext, a, f.mft.add); err != nil {
					return err
				}
			}
			off = next
		}
	}
	return nil
}

// stream is the content of a non-resident attribute.
type stream struct {
	f    *fs
	runs []run // in order of vcn, gapless
	size int64
}

func (s *stream) add(r run) error {
	if n := len(s.runs); n > 0 {
		p := &s.runs[n-1]
		if r.vcn != p.vcn+p.n {
			return ondisk.Corrupt("data runs", "first cluster of a segment", -1, r.vcn)
		}
		if p.lcn >= 0 && r.lcn == p.lcn+p.n || p.lcn < 0 && r.lcn < 0 {
			p.n += r.n
			return nil
		}
	} else if r.vcn != 0 {
		return ondisk.Corrupt("data runs", "first cluster", -1, r.vcn)
	}
	s.runs = append(s.runs, r)
	return nil
}

// at gives where byte off lies in the volume, and how many follow it there; ok is false in a hole and behind the end.
func (s *stream) at(off int64) (pos, n int64, ok bool) {
	vcn := off / s.f.cluster
	i := sort.Search(len(s.runs), func(i int) bool { return s.runs[i].vcn+s.runs[i].n > vcn })
	if i == len(s.runs) || off < 0 {
		return 0, 0, false
	}
	r := s.runs[i]
	in := off - r.vcn*s.f.cluster
	return r.lcn*s.f.cluster + in, r.n*s.f.cluster - in, r.lcn >= 0
}

// ReadAt implements io.ReaderAt; holes read as zeros.
func (s *stream) ReadAt(p []byte, off int64) (int, error) {
	var n int
	for n < len(p) {
		at := off + int64(n)
		if at >= s.size {
			return n, io.EOF
		}
		pos, run, ok := s.at(at)
		m := int(min(int64(len(p)-n), s.size-at))
		if run > 0 {
			m = int(min(int64(m), run))
		}
		switch {
		case ok:
			if err := ondisk.ReadFull(s.f.r, p[n:n+m], pos, "ntfs stream"); err != nil {
				return n, err
			}
		case run == 0:
			return n, ondisk.Truncated("ntfs stream", "position behind its clusters", -1, at)
		default:
			clear(p[n : n+m])
		}
		n += m
	}
	return n, nil
}

// readVolume takes the label, the version and the flags from $Volume.
func (f *fs) readVolume() {
	ino := f.newInode()
	if err := f.load(ino, recVolume, 0); err != nil {
		f.problem(fmt.Errorf("$Volume: %w", err))
		return
	}
	for _, a := range ino.attrs {
		if a.nonRes || a.record != recVolume {
			continue
		}
		v := ino.rec[a.value : a.value+a.valueLen]
		switch {
		case a.typ == atVolumeName:
			f.info.Label = string(appendUTF16(nil, v))
		case a.typ == atVolumeInformation && len(v) >= viFlags+2:
			f.major = v[viMajor]
			f.info.Extra["version"] = fmt.Sprintf("%d.%d", v[viMajor], v[viMinor])
			if le.Uint16(v[viFlags:])&volDirty != 0 {
				f.doubtful = "the dirty flag is set: Windows would check this volume"
				f.note("%s", f.doubtful)
			}
		}
	}
}

// readUsed counts the bits of $Bitmap.
func (f *fs) readUsed() {
	const maxBitmap = 64 << 20 // bytes: 2 TiB of 4 KiB clusters
	ino := f.newInode()
	if f.load(ino, recBitmapRec, 0) != nil {
		return
	}
	s, err := f.open(ino, atData, "")
	if err != nil || s.size > maxBitmap || s.size < (f.clusters+7)/8 {
		return
	}
	var used int64
	buf := make([]byte, 256<<10)
	for off := int64(0); off < f.clusters/8; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), f.clusters/8-off)]
		if _, err := s.ReadAt(b, off); err != nil {
			return
		}
		for ; len(b) >= 8; b = b[8:] {
			used += int64(bits.OnesCount64(le.Uint64(b)))
		}
		for _, c := range b {
			used += int64(bits.OnesCount8(c))
		}
	}
	f.info.Used = used * f.cluster
}

// segments gives the indexes of an attribute's segments in order of their first cluster.
func (ino *inode) segments(typ uint32, name string) []int {
	ino.seg = ino.seg[:0]
	for i := range ino.attrs {
		if a := &ino.attrs[i]; a.typ == typ && a.name == name {
			ino.seg = append(ino.seg, i)
		}
	}
	if len(ino.seg) > 1 {
		slices.SortStableFunc(ino.seg, func(a, b int) int {
			return int(min(1, max(-1, ino.attrs[a].lowest-ino.attrs[b].lowest)))
		})
	}
	return ino.seg
}

// open gives the content of a non-resident attribute, whose runs are read at once.
func (f *fs) open(ino *inode, typ uint32, name string) (*stream, error) {
	seg := ino.segments(typ, name)
	if len(seg) == 0 {
		return nil, ondisk.Corrupt("mft record", fmt.Sprintf("no attribute %#x in record", typ), -1, ino.no)
	}
	first := ino.attrs[seg[0]]
	if !first.nonRes {
		return nil, ondisk.Corrupt("mft record", "attribute is resident in record", -1, ino.no)
	}
	s := &stream{f: f, size: first.size}
	for _, i := range seg {
		if err := f.eachRun(ino, ino.attrs[i], s.add); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// eachRun decodes one segment's runs, reading the extension record that holds it where it isn't at hand.
func (f *fs) eachRun(ino *inode, a attr, add func(run) error) error {
	b, err := f.holder(ino, a.record)
	if err != nil {
		return err
	}
	return f.pairs(b, a, add)
}

// value reads a whole attribute, resident or not, of at most limit bytes.
func (f *fs) value(ino *inode, typ uint32, name string, limit int64) ([]byte, error) {
	seg := ino.segments(typ, name)
	if len(seg) == 0 {
		return nil, nil
	}
	a := ino.attrs[seg[0]]
	if !a.nonRes {
		b, err := f.holder(ino, a.record)
		if err != nil {
			return nil, err
		}
		return b[a.value : a.value+a.valueLen], nil
	}
	if a.size > limit {
		return nil, ondisk.Unsupported("attribute", fmt.Sprintf("%#x: length", typ), -1, a.size)
	}
	s, err := f.open(ino, typ, name)
	if err != nil {
		return nil, err
	}
	b := make([]byte, s.size)
	return b, ondisk.ReadFull(s, b, 0, "ntfs attribute")
}
