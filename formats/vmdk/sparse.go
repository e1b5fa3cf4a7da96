package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
)

// extent is an opened sparse extent, with what was odd about it.
type extent struct {
	layer
	sectors  int64
	unclean  bool
	notes    []string
	problems []error
	// parent is the parent that the extent itself names (COWD), or empty.
	parent string

	// What Check needs: the tables, and what lies at a place that the header tells.
	tables *tableReader
	fixed  []stretch
}

// stretch is a structure in the file.
type stretch struct {
	what      string
	off, size int64
}

func (x *extent) put(what string, off, size int64) {
	x.fixed = append(x.fixed, stretch{what, off, size})
}

func (x *extent) note(format string, args ...any) {
	x.notes = append(x.notes, fmt.Sprintf(format, args...))
}

// in says which file the notes and problems are about.
func (x *extent) in(path string) {
	for i, n := range x.notes {
		x.notes[i] = path + ": " + n
	}
	for i, err := range x.problems {
		x.problems[i] = fmt.Errorf("%s: %w", path, err)
	}
}

func (x *extent) problem(err error) { x.problems = append(x.problems, err) }

// openSparse opens a sparse extent of whichever kind. cache bounds its tables in memory.
func openSparse(f *formats.File, cache int64) (*extent, error) {
	head := make([]byte, min(f.Size, 2048))
	if err := ondisk.ReadFull(f, head, 0, "vmdk header"); err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte(magicHosted)):
		h, err := readHosted(f)
		if err != nil {
			return nil, err
		}
		return openHosted(f, h, cache)
	case bytes.HasPrefix(head, []byte(magicCOWD)):
		return openCOWD(f, cache)
	case bytes.HasPrefix(head, []byte(magicSE)):
		return openSE(f, cache)
	}
	return nil, ondisk.Corrupt("vmdk header", "magic number", 0, fmt.Sprintf("%q", head[:min(len(head), 4)]))
}

// readHosted reads the header of a hosted sparse extent, and checks what a reader must know.
func readHosted(f *formats.File) (*hostedHeader, error) {
	h := new(hostedHeader)
	b, err := ondisk.Read(f, 0, sector, "vmdk header")
	if err != nil {
		return nil, err
	}
	return h, h.decode(b)
}

func (h *hostedHeader) decode(b []byte) error {
	if _, err := binary.Decode(b, binary.LittleEndian, h); err != nil {
		return err
	}
	switch {
	case h.Version == 0 || h.Version > maxVersion:
		return ondisk.Unsupported("vmdk header", "version", 4, h.Version)
	case h.Flags&flagIncompatible&^(flagCompressed|flagMarkers) != 0:
		return ondisk.Unsupported("vmdk header", "flags", 8, fmt.Sprintf("%#x", h.Flags&flagIncompatible&^(flagCompressed|flagMarkers)))
	case h.Compression != compressNone && h.Compression != compressDeflate:
		return ondisk.Unsupported("vmdk header", "compression", 77, h.Compression)
	}
	return nil
}

// geometry checks what sizes memory and loops.
func (h *hostedHeader) geometry() error {
	switch {
	case h.Capacity > maxCapacity:
		return ondisk.Corrupt("vmdk header", "capacity", 12, h.Capacity)
	case h.GrainSize == 0 || h.GrainSize > maxGrain || h.Compression != compressNone && h.GrainSize > codec.MaxFull/sector:
		return ondisk.Corrupt("vmdk header", "grain size", 20, h.GrainSize)
	case h.GTEs == 0 || h.GTEs > maxGTEs:
		return ondisk.Corrupt("vmdk header", "entries of a grain table", 44, h.GTEs)
	}
	if n := h.tables(); n > maxTables {
		return ondisk.Corrupt("vmdk header", "grain tables", 12, n)
	}
	return nil
}

// tables gives the entries of the grain directory.
func (h *hostedHeader) tables() uint64 {
	per := uint64(h.GTEs) * h.GrainSize
	return (h.Capacity + per - 1) / per
}

func openHosted(f *formats.File, h *hostedHeader, cache int64) (*extent, error) {
	if err := h.geometry(); err != nil {
		return nil, err
	}
	x := &extent{sectors: int64(h.Capacity), unclean: h.Unclean != 0}
	if h.Flags&flagNewline != 0 && string(h.NewlineCheck[:]) != newlineCheck {
		x.problem(ondisk.Corrupt("vmdk header", "the file was changed by a transfer as text: line end check", 73, fmt.Sprintf("%q", h.NewlineCheck[:])))
	}
	stream := h.Compression != compressNone && h.Flags&flagMarkers != 0
	if h.GDOffset == gdAtEnd {
		footer, err := readFooter(f)
		if err != nil {
			if !stream {
				return nil, err
			}
			return x, x.scan(f, h, cache, err)
		}
		h = footer
		if err := h.geometry(); err != nil {
			return nil, err
		}
		x.sectors = int64(h.Capacity)
	}
	err := x.load(f, h, cache)
	if err != nil && stream {
		return x, x.scan(f, h, cache, err)
	}
	return x, err
}

// decodeEntry gives the meaning of a grain table's entry.
func (h *hostedHeader) decodeEntry() func([]byte) entry {
	zeroGrain := h.Flags&flagZeroGrain != 0
	return func(b []byte) entry {
		v := binary.LittleEndian.Uint32(b)
		switch {
		case v == 0:
			return entry{}
		case v == 1 && zeroGrain:
			return entry{kind: formats.Zero, raw: 1}
		}
		return entry{kind: formats.Data, off: int64(v) * sector, raw: uint64(v)}
	}
}

func (h *hostedHeader) newGrains(f *formats.File) *grains {
	g := newGrains(f, int64(h.Capacity)*sector, int64(h.GrainSize)*sector, int64(h.GTEs), 4, h.decodeEntry())
	g.compressed = h.Compression != compressNone
	g.markers = h.Flags&flagMarkers != 0
	return g
}

// load reads the grain directory, or what its spare has where it is damaged.
func (x *extent) load(f *formats.File, h *hostedHeader, cache int64) error {
	g := h.newGrains(f)
	x.layer = g
	n := g.tableCount()
	var dirErr, spareErr error
	if h.GDOffset > maxCapacity {
		dirErr = ondisk.Corrupt("vmdk header", "place of the grain directory", 56, h.GDOffset)
	} else {
		g.dir, dirErr = readDir32(f, int64(h.GDOffset)*sector, n, "grain directory")
	}
	var spare []uint32
	if h.Flags&flagRedundant != 0 && h.RGDOffset != 0 {
		if h.RGDOffset > maxCapacity {
			spareErr = ondisk.Corrupt("vmdk header", "place of the redundant grain directory", 48, h.RGDOffset)
		} else {
			spare, spareErr = readDir32(f, int64(h.RGDOffset)*sector, n, "redundant grain directory")
		}
	}
	switch {
	case dirErr != nil && spare == nil:
		return dirErr
	case dirErr != nil:
		x.note("%v; the redundant one is used", dirErr)
		g.dir, spare = spare, nil
	case spareErr != nil:
		x.note("%v; it is not needed", spareErr)
	}
	x.put("header", 0, sector)
	x.put("descriptor", int64(h.DescOffset)*sector, int64(min(h.DescSize, maxDescriptor/sector))*sector)
	if dirErr == nil {
		x.put("grain directory", int64(h.GDOffset)*sector, 4*n)
	}
	if h.Flags&flagRedundant != 0 && spareErr == nil {
		x.put("redundant grain directory", int64(h.RGDOffset)*sector, 4*n)
	}
	repaired := 0
	for i, v := range g.dir {
		if spare != nil && !inside(v, f) && inside(spare[i], f) {
			g.dir[i], spare[i] = spare[i], 0
			repaired++
		}
	}
	x.checkDir(f, g.dir, int64(h.GDOffset)*sector)
	if repaired > 0 {
		x.note("grain directory: %d of %d entries are damaged; the redundant one is used for them", repaired, n)
	}
	x.tables = g.cacheTables(spare, func(v uint32) int64 { return int64(v) * sector }, cache)
	if repaired = x.tables.compare(); repaired > 0 {
		x.note("%d sectors of grain tables are damaged; the redundant ones are used for them", repaired)
	}
	return nil
}

// inside tells whether a table lies behind header and descriptor, and inside the file; the last one may be short.
func inside(v uint32, f *formats.File) bool { return v > 1 && int64(v)*sector < f.Size }

// checkDir reports the tables that lie outside the file.
func (x *extent) checkDir(f *formats.File, dir []uint32, off int64) {
	first, n := 0, 0
	for i, v := range dir {
		if v != 0 && !inside(v, f) {
			if n++; n == 1 {
				first = i
			}
		}
	}
	if n > 0 {
		x.problem(ondisk.Truncated("grain directory", fmt.Sprintf("%d tables outside the file, the first at sector", n), off+4*int64(first), dir[first]))
	}
}

func openCOWD(f *formats.File, cache int64) (*extent, error) {
	var h cowdHeader
	b := make([]byte, 2048)
	if err := ondisk.ReadFull(f, b, 0, "COWD header"); err != nil {
		return nil, err
	}
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
		return nil, err
	}
	switch {
	case h.Version != cowdVersion:
		return nil, ondisk.Unsupported("COWD header", "version", 4, h.Version)
	case h.GrainSize == 0 || h.GrainSize > maxGrain:
		return nil, ondisk.Corrupt("COWD header", "grain size", 16, h.GrainSize)
	}
	x := &extent{sectors: int64(h.Capacity), unclean: binary.LittleEndian.Uint32(b[cowdUnclean:]) != 0}
	// A root extent has numbers here, which are no text.
	if name, _, _ := bytes.Cut(h.ParentName[:], []byte{0}); len(name) > 0 && name[0] >= ' ' && len(name) > 12 {
		x.parent = string(name)
	}
	hosted := hostedHeader{}
	g := newGrains(f, x.sectors*sector, int64(h.GrainSize)*sector, cowdGTEs, 4, hosted.decodeEntry())
	x.layer = g
	n := g.tableCount()
	if n > maxTables || n > int64(h.GDEntries) {
		return nil, ondisk.Corrupt("COWD header", "entries of the grain directory", 24, h.GDEntries)
	}
	var err error
	if g.dir, err = readDir32(f, int64(h.GDOffset)*sector, n, "grain directory"); err != nil {
		return nil, err
	}
	x.checkDir(f, g.dir, int64(h.GDOffset)*sector)
	x.put("header", 0, int64(len(b)))
	x.put("grain directory", int64(h.GDOffset)*sector, 4*n)
	x.tables = g.cacheTables(nil, func(v uint32) int64 { return int64(v) * sector }, cache)
	return x, nil
}

func openSE(f *formats.File, cache int64) (*extent, error) {
	var h seHeader
	b, err := ondisk.Read(f, 0, sector, "vmdk header")
	if err != nil {
		return nil, err
	}
	if _, err := binary.Decode(b, binary.LittleEndian, &h); err != nil {
		return nil, err
	}
	if err := h.check(f); err != nil {
		return nil, err
	}
	x := &extent{sectors: int64(h.Capacity)}
	grainsAt := int64(h.GrainsOffset) * sector
	const grain = seGrainSize * sector
	g := newGrains(f, x.sectors*sector, grain, seGrainTableSize*sector/8, 8, func(b []byte) entry {
		v := binary.LittleEndian.Uint64(b)
		switch v & seTypeMask {
		case seUnallocated:
			if v == 0 {
				return entry{}
			}
		case seUnmapped, seZero:
			return entry{kind: formats.Zero, raw: v}
		case seAllocated:
			// The number's upper 12 bits stand above its lower 48.
			no := v&0x0fff000000000000>>48 | v&0x0000ffffffffffff<<12
			if no < maxCapacity/seGrainSize {
				return entry{kind: formats.Data, off: grainsAt + int64(no)*grain, raw: v}
			}
		}
		return entry{kind: formats.Missing, raw: v}
	})
	x.layer = g
	if err := x.loadSE(f, &h, g); err != nil {
		return nil, err
	}
	x.put("header", 0, sector)
	x.put("volatile header", int64(h.VolatileOffset)*sector, sector)
	x.put("grain directory", int64(h.GDOffset)*sector, 8*g.tableCount())
	tablesAt := int64(h.GTsOffset) * sector
	x.tables = g.cacheTables(nil, func(v uint32) int64 { return tablesAt + int64(v-1)*seGrainTableSize*sector }, cache)
	return x, nil
}

func (h *seHeader) check(f *formats.File) error {
	switch {
	case h.Version != seVersion:
		return ondisk.Unsupported("seSparse header", "version", 8, fmt.Sprintf("%#x", h.Version))
	case h.Capacity > maxCapacity:
		return ondisk.Corrupt("seSparse header", "capacity", 16, h.Capacity)
	case h.GrainSize != seGrainSize:
		return ondisk.Unsupported("seSparse header", "grain size", 24, h.GrainSize)
	case h.GrainTableSize != seGrainTableSize:
		return ondisk.Unsupported("seSparse header", "grain table size", 32, h.GrainTableSize)
	case h.Flags != 0:
		return ondisk.Unsupported("seSparse header", "flags", 40, fmt.Sprintf("%#x", h.Flags))
	}
	for _, at := range []struct {
		name   string
		sector uint64
	}{{"volatile header", h.VolatileOffset}, {"grain directory", h.GDOffset}, {"grain tables", h.GTsOffset}, {"grains", h.GrainsOffset}} {
		if at.sector > maxCapacity {
			return ondisk.Corrupt("seSparse header", "place of the "+at.name, -1, at.sector)
		}
	}
	var v seVolatile
	b, err := ondisk.Read(f, int64(h.VolatileOffset)*sector, sector, "seSparse volatile header")
	if err != nil {
		return err
	}
	if _, err := binary.Decode(b, binary.LittleEndian, &v); err != nil {
		return err
	}
	switch {
	case string(v.Magic[:]) != magicVolatile:
		return ondisk.Corrupt("seSparse volatile header", "magic number", int64(h.VolatileOffset)*sector, fmt.Sprintf("%x", v.Magic))
	case v.ReplayJournal != 0:
		return ondisk.Unsupported("seSparse volatile header", "journal that is to be replayed", int64(h.VolatileOffset)*sector+24, v.ReplayJournal)
	}
	return nil
}

// loadSE reads the grain directory, whose entries number the tables.
func (x *extent) loadSE(f *formats.File, h *seHeader, g *grains) error {
	n, off := g.tableCount(), int64(h.GDOffset)*sector
	if n > maxTables || n > int64(min(h.GDSize, maxCapacity)*sector/8) {
		return ondisk.Corrupt("seSparse header", "size of the grain directory", 136, h.GDSize)
	}
	if !ondisk.Within(off, n*8, f.Size) {
		return ondisk.Truncated("grain directory", "", off, fmt.Sprintf("%d entries", n))
	}
	b, err := ondisk.Read(f, off, n*8, "grain directory")
	if err != nil {
		return err
	}
	g.dir = make([]uint32, n)
	bad := 0
	for i := range g.dir {
		v := binary.LittleEndian.Uint64(b[8*i:])
		switch {
		case v == 0:
		case v&^0xffffffff == seTable && uint32(v) < 1<<32-1:
			g.dir[i] = uint32(v) + 1
		default:
			g.dir[i] = 1<<32 - 1 // lies outside every file
			if bad++; bad == 1 {
				x.problem(ondisk.Corrupt("grain directory", fmt.Sprintf("entry %d", i), off+8*int64(i), fmt.Sprintf("%#x", v)))
			}
		}
	}
	if bad > 1 {
		x.problem(ondisk.Corrupt("grain directory", "more entries that make no sense", -1, bad-1))
	}
	return nil
}
