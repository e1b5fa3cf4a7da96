package exfat

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/bits"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/internal/dos"
	"vmkit/fsmap/internal/names"
	"vmkit/fsmap/mapfile"
)

// Driver is the row of the table of file systems.
var Driver = fsmap.Driver{Name: "exfat", Probe: probe, Open: open}

const (
	cachePage  = 16 << 10
	cacheBytes = 2 << 20  // tables and directories
	maxBitmap  = 64 << 20 // bytes of the allocation bitmap that are counted: 2²⁹ clusters
	maxUpcase  = 128 << 10
)

// rootID is the root directory's number. Others' is their entry's position in the volume, in units of an entry; this
// one lies in the boot sector.
const rootID = 1

// volume is an opened exFAT.
type volume struct {
	dos.Heap
	root   uint32 // first cluster of the root directory
	active uint16 // flagSecondFAT, where the second table and bitmap count
	dirty  bool
	inf    fsmap.Info
}

func open(r io.ReaderAt, size int64, _ fsmap.Options) (fsmap.FS, error) {
	s, notes, doubt, err := readBoot(r)
	if err != nil {
		return nil, err
	}
	v := &volume{root: s.RootCluster, active: s.Flags & flagSecondFAT, dirty: s.Flags&flagDirty != 0}
	v.Meta = ondisk.NewCache(r, size, cachePage, cacheBytes)
	v.Table = int64(s.FATOffset) << s.SectorShift
	if s.Flags&flagSecondFAT != 0 {
		v.Table += int64(s.FATLength) << s.SectorShift
	}
	v.Bits, v.Shift, v.Last = 32, uint(s.SectorShift+s.ClusterShift), s.Clusters+1
	v.Data = int64(s.HeapOffset) << s.SectorShift
	v.inf = fsmap.Info{Type: "exfat", UUID: fmt.Sprintf("%04X-%04X", s.Serial>>16, s.Serial&0xFFFF), BlockSize: v.Cluster(),
		Size: int64(s.VolumeLength) << s.SectorShift, Used: mapfile.None, Journal: "none", Root: fsmap.Ref{ID: rootID}, Notes: notes,
		Extra: map[string]any{"version": fmt.Sprintf("%d.%02d", s.Revision>>8, s.Revision&0xFF)}}
	note := func(format string, args ...any) { v.inf.Notes = append(v.inf.Notes, fmt.Sprintf(format, args...)) }
	if doubt != nil {
		v.inf.Problems = append(v.inf.Problems, doubt)
	}
	if v.inf.Size > size {
		note("it has %d bytes of the %d that its boot sector says", size, v.inf.Size)
	}
	if s.Flags&flagDirty != 0 {
		note("it was not unmounted cleanly: its dirty flag is set")
	}
	if s.Flags&flagMediaFailure != 0 {
		note("errors were met on its medium: its media failure flag is set")
	}
	v.readRoot(note)
	return v, nil
}

// readRoot takes from the root directory what describes the volume. What can't be read there ReadDir will tell.
func (v *volume) readRoot(note func(string, ...any)) {
	var bitmap, upcase bool
	_ = v.Slots(v.rootDir(), func(b []byte, _ int64) bool {
		for ; len(b) >= dos.SlotLen; b = b[dos.SlotLen:] {
			switch e := b[:dos.SlotLen]; e[0] {
			case typeEnd:
				return false
			case typeBitmap:
				if uint16(e[bitmapFlags])&flagSecondFAT == v.active {
					bitmap = true
					v.countUsed(e, note)
				}
			case typeUpcase:
				upcase = true
				v.checkUpcase(e, note)
			case typeLabel:
				n := min(int(e[labelCount]), maxLabel)
				v.inf.Label = string(names.AppendUTF16(nil, units(e[labelUnits:], n)))
			case typeGUID:
				g := e[guidAt:]
				le := binary.LittleEndian
				v.inf.Extra["guid"] = fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:16])
			}
		}
		return true
	})
	if !bitmap {
		note("it has no allocation bitmap")
	}
	if !upcase {
		note("it has no up-case table")
	}
}

func (v *volume) rootDir() dos.Dir {
	return dos.Dir{Owner: rootID, Start: v.root, Size: -1, Limit: maxDirectory}
}

// read calls fn with pieces of what a directory entry of the root points to.
func (v *volume) read(e []byte, limit int64, fn func([]byte)) error {
	n := binary.LittleEndian.Uint64(e[entLength:])
	if n > uint64(limit) {
		return ondisk.Unsupported("directory entry", "length", -1, n)
	}
	var r fsmap.Runs
	r.Reset(int64(n))
	if err := v.Chain(binary.LittleEndian.Uint32(e[entCluster:]), int64(n), &r); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for _, x := range r.List {
		for x.Len > 0 {
			b := buf[:min(int64(len(buf)), x.Len)]
			if err := ondisk.ReadFull(v.Meta, b, x.Off, "cluster"); err != nil {
				return err
			}
			fn(b)
			x.Off, x.Len = x.Off+int64(len(b)), x.Len-int64(len(b))
		}
	}
	return nil
}

// countUsed counts the clusters in use by the allocation bitmap.
func (v *volume) countUsed(e []byte, note func(string, ...any)) {
	clusters := int64(v.Last) - 1
	if n := binary.LittleEndian.Uint64(e[entLength:]); n < uint64(clusters+7)/8 {
		note("its allocation bitmap has %d bytes for %d clusters", n, clusters)
		return
	}
	used, left := int64(0), clusters
	err := v.read(e, maxBitmap, func(b []byte) {
		for _, c := range b {
			if left < 8 {
				c &= 1<<max(left, 0) - 1
			}
			used += int64(bits.OnesCount8(c))
			left -= 8
		}
	})
	if err != nil {
		note("its allocation bitmap can't be counted: %v", err)
		return
	}
	v.inf.Used = used << v.Shift
}

// checkUpcase verifies the up-case table. Names are shown without it; Windows finds them by it.
func (v *volume) checkUpcase(e []byte, note func(string, ...any)) {
	sum, want := uint32(0), binary.LittleEndian.Uint32(e[upcaseSum:])
	err := v.read(e, maxUpcase, func(b []byte) {
		for _, c := range b {
			sum = sum<<31 | sum>>1
			sum += uint32(c)
		}
	})
	if err == nil && sum != want {
		err = ondisk.Corrupt("up-case table", "checksum", -1, fmt.Sprintf("%#x", sum))
	}
	if err != nil {
		note("its up-case table is damaged: %v", err)
	}
}

// units gives n UTF-16 units.
func units(b []byte, n int) []uint16 {
	u := make([]uint16, n)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return u
}

// Info implements fsmap.FS.
func (v *volume) Info() *fsmap.Info { return &v.inf }

// inode is what a Node carries in Priv.
type inode struct {
	start      uint32
	contiguous bool
	size       int64 // of a directory, or -1
	valid      int64
}

// Node implements fsmap.FS.
func (v *volume) Node(e fsmap.Entry, n *fsmap.Node) error {
	n.Ref, n.Aux, n.Inode = e.Ref, e.Aux, e.Ref.ID
	p, ok := n.Priv.(*inode)
	if !ok {
		p = new(inode)
		n.Priv = p
	}
	if e.Ref.ID == rootID {
		n.Kind = mapfile.Directory
		*p = inode{start: v.root, size: -1}
		return nil
	}
	pos := int64(e.Ref.ID) * dos.SlotLen
	f, err := v.Meta.Slice(pos, dos.SlotLen)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	attr := le.Uint16(f[fileAttrs:])
	n.Kind = mapfile.Regular
	if attr&dos.AttrDirectory != 0 {
		n.Kind = mapfile.Directory
	}
	n.Attrs = dos.AppendAttrs(n.Attrs, attr)
	n.MTime = timeAt(le.Uint32(f[fileModified:]), f[fileModified10], f[fileModifiedTZ])
	n.BTime = timeAt(le.Uint32(f[fileCreated:]), f[fileCreated10], f[fileCreatedTZ])
	n.ATime = timeAt(le.Uint32(f[fileAccessed:]), 0, f[fileAccessedTZ])

	at, doubts := unpackAux(e.Aux)
	n.Problems = doubts.problems(n.Problems, pos)
	if at == 0 {
		return ondisk.Corrupt("file entry", "no stream extension", pos, nil)
	}
	s, err := v.Meta.Slice(at, dos.SlotLen)
	if err != nil {
		return err
	}
	size, valid := le.Uint64(s[entLength:]), le.Uint64(s[streamValid:])
	if size > math.MaxInt64 {
		return ondisk.Corrupt("stream extension", "length", at+entLength, size)
	}
	if valid > size {
		n.Problems = append(n.Problems, ondisk.Corrupt("stream extension", fmt.Sprintf("of %d bytes, valid are", size), at+streamValid, valid))
		valid = size
	}
	*p = inode{start: le.Uint32(s[entCluster:]), contiguous: s[streamFlags]&streamContiguous != 0, size: int64(size), valid: int64(valid)}
	if s[streamFlags]&streamPossible == 0 {
		p.start, p.contiguous = 0, false // then the fields mean nothing (6.3.4.2), and a length is an error
	}
	if n.Kind == mapfile.Regular {
		n.Size = int64(size)
	}
	return nil
}

// timeAt turns a timestamp, hundredths of a second and the offset of its zone into a Time.
func timeAt(stamp uint32, cent, zone uint8) mapfile.Time {
	t := dos.Time(uint16(stamp>>16), uint16(stamp), cent)
	if t.Known && zone&tzValid != 0 {
		quarters := int64(int8(zone<<1) >> 1)
		t.Sec -= quarters * 15 * 60
	}
	return t
}

// Runs implements fsmap.FS.
func (v *volume) Runs(n *fsmap.Node, _ *fsmap.Stream, r *fsmap.Runs) error {
	p, ok := n.Priv.(*inode)
	switch {
	case !ok || n.Kind != mapfile.Regular:
		return nil
	case p.contiguous:
		return v.Contiguous(p.start, p.valid, r)
	}
	return v.Chain(p.start, p.valid, r)
}
