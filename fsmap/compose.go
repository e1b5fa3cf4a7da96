package fsmap

import (
	"fmt"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap/mapfile"
)

// composer turns runs of volumes, or of virtual disks, into extents of a map: it asks them where the bytes lie, and
// keeps the list coalesced. One goroutine uses it.
type composer struct {
	disks []formats.Disk // by Run.Dev
	image int            // that the file's volume lies on; None where it lies on several
	// ids gives the numbers that the map has for images; nil: their own.
	ids map[int]int
	// diskOnly leaves host files out: what an image holds is data of its disk, however it holds it.
	diskOnly bool
	// out is the list so far. full, where set, is called when it has grown past MaxExtents, and takes all but the last.
	out  []mapfile.Extent
	full func()

	// What can't be had since begin, in bytes, and the first error that told so.
	missing, encrypted, usable int64
	err                        error

	// known are the stretches that were asked about last: neighbouring files lie in the same.
	known [8]stretch
	turn  int

	host   *formats.Pack // converted last, as
	packed *mapfile.Pack // this, for extents of image
	around int

	wide *mapfile.Pack // made by beside last
}

type stretch struct {
	dev int
	at  int64
	e   formats.Extent
	err error
}

// ahead is how far the disk is asked about at least: what is cheap to tell serves the files that follow.
const ahead = 4 << 20

func (c *composer) begin() {
	c.out, c.missing, c.encrypted, c.usable, c.err = c.out[:0], 0, 0, 0, nil
}

// use sets what runs lie on: the disks, and the image that extents need not name.
func (c *composer) use(image int, disks ...formats.Disk) {
	c.disks, c.image = disks, image
	clear(c.known[:])
}

// lookup gives the extent that starts at off of disk dev, of at most n bytes. What goes wrong is Missing, with the
// reason.
func (c *composer) lookup(dev int, off, n int64) (formats.Extent, error) {
	for i := range c.known {
		s := &c.known[i]
		if d := off - s.at; d >= 0 && d < s.e.Len && s.dev == dev {
			return cut(s.e, d, n), s.err
		}
	}
	var size int64
	if dev >= 0 && dev < len(c.disks) {
		size = c.disks[dev].Size()
	}
	if off < 0 || off >= size {
		return formats.Extent{Len: n, Kind: formats.Missing, Disk: formats.NoPos},
			&ondisk.Error{What: "run", Field: "position past the end of the volume", Off: -1, Got: off, Err: ondisk.ErrTruncated}
	}
	ask := min(size-off, max(n, ahead))
	e, err := c.disks[dev].ExtentAt(off, ask)
	if e.Len <= 0 || e.Len > ask || err != nil && e.Kind != formats.Missing && e.Kind != formats.Encrypted {
		if err == nil {
			err = fmt.Errorf("extent of %d bytes at %d, of %d asked for", e.Len, off, ask)
		}
		e = formats.Extent{Len: min(n, ask), Kind: formats.Missing, Disk: formats.NoPos}
	}
	c.known[c.turn] = stretch{dev, off, e, err}
	c.turn = (c.turn + 1) % len(c.known)
	return cut(e, 0, n), err
}

// cut gives the part of e that starts d bytes in, at most n bytes long.
func cut(e formats.Extent, d, n int64) formats.Extent {
	if e.Disk != formats.NoPos {
		e.Disk += d
	}
	e.Off += d
	e.Skip += d
	e.Len = min(e.Len-d, n)
	return e
}

// run adds a run of a file.
func (c *composer) run(r *Run) {
	switch r.Kind {
	case mapfile.Data:
		for at, off, n := r.At, r.Off, r.Len; n > 0; {
			e, err := c.lookup(r.Dev, off, n)
			c.extent(at, &e, err)
			at, off, n = at+e.Len, off+e.Len, n-e.Len
		}
	case mapfile.Unwritten, mapfile.Encrypted:
		c.placed(r)
	case mapfile.Packed:
		c.pack(r)
	case mapfile.Inline:
		x := mapfile.Extent{At: r.At, Len: r.Len, Kind: mapfile.Inline, Disk: mapfile.None, Image: mapfile.None, Bytes: r.Bytes}
		if zeros(r.Bytes) {
			x.Kind, x.Bytes = mapfile.Zero, nil
		}
		c.push(&x)
	default: // Hole, Zero, Missing
		c.push(&mapfile.Extent{At: r.At, Len: r.Len, Kind: r.Kind, Disk: mapfile.None, Image: mapfile.None})
	}
}

// placed adds a run whose kind doesn't depend on what lies below it, with its place.
func (c *composer) placed(r *Run) {
	if r.Kind == mapfile.Encrypted && r.Off == 0 {
		c.push(&mapfile.Extent{At: r.At, Len: r.Len, Kind: r.Kind, Disk: mapfile.None, Image: mapfile.None})
		return
	}
	for at, off, n := r.At, r.Off, r.Len; n > 0; {
		e, _ := c.lookup(r.Dev, off, n)
		x := mapfile.Extent{At: at, Len: e.Len, Kind: r.Kind, Disk: mapfile.None, Image: mapfile.None}
		if e.Disk != formats.NoPos {
			x.Disk, x.Image = e.Disk, c.imageOf(&e, c.image)
		}
		c.push(&x)
		at, off, n = at+e.Len, off+e.Len, n-e.Len
	}
}

// extent adds an extent of the disk that lies at position at of the file.
func (c *composer) extent(at int64, e *formats.Extent, err error) {
	x := c.convert(e, c.image)
	x.At = at
	if err != nil && c.err == nil {
		c.err = err
	}
	c.push(&x)
}

var kinds = [...]mapfile.Kind{formats.Data: mapfile.Data, formats.Zero: mapfile.Zero, formats.Packed: mapfile.Packed,
	formats.Missing: mapfile.Missing, formats.Encrypted: mapfile.Encrypted}

// convert gives e as a map has it, within something that lies on image around.
func (c *composer) convert(e *formats.Extent, around int) mapfile.Extent {
	x := mapfile.Extent{Len: e.Len, Kind: kinds[e.Kind], Disk: e.Disk, Image: mapfile.None}
	if e.Disk == formats.NoPos {
		x.Disk = mapfile.None
	}
	if c.diskOnly && x.Disk != mapfile.None && e.Kind != formats.Missing && !(e.Kind == formats.Packed && onDisk(e.Pack)) {
		x.Kind, x.File, x.Off, x.Image = mapfile.Data, mapfile.None, mapfile.None, c.imageOf(e, around)
		return x
	}
	switch e.Kind {
	case formats.Data:
		host, off := e.File.Host(e.Off)
		x.File, x.Off, x.Image = host.ID, off, c.imageOf(e, around)
	case formats.Packed:
		if x.Disk != mapfile.None {
			x.Image = c.imageOf(e, around)
		}
		if x.Image != mapfile.None {
			around = x.Image
		}
		x.Skip, x.Pack = e.Skip, c.convertPack(e.Pack, around, 0)
	default:
		if x.Disk != mapfile.None {
			x.Image = c.imageOf(e, around)
		}
	}
	return x
}

// onDisk tells whether any part of a pack has a place on a virtual disk, as those of a volume have, and those of an
// image's container don't.
func onDisk(p *formats.Pack) bool {
	for i := range p.Parts {
		if x := &p.Parts[i]; x.Disk != formats.NoPos || x.Pack != nil && onDisk(x.Pack) {
			return true
		}
	}
	return false
}

// imageOf gives the image that e lies on where it isn't the one around it.
func (c *composer) imageOf(e *formats.Extent, around int) int {
	n := e.Image
	if e.File != nil {
		n = e.File.Image
	}
	if c.ids != nil {
		n = c.ids[n]
	}
	if n == around {
		return mapfile.None
	}
	return n
}

func (c *composer) convertPack(p *formats.Pack, around, depth int) *mapfile.Pack {
	if p == c.host && around == c.around {
		return c.packed
	}
	q := specOf(&p.Spec)
	q.Parts = make([]mapfile.Extent, 0, len(p.Parts))
	for i := range p.Parts {
		if depth < mapfile.MaxDepth {
			q.Parts = append(q.Parts, c.convert(&p.Parts[i], around))
		}
	}
	if depth == 0 {
		c.host, c.around, c.packed = p, around, q
	}
	return q
}

func specOf(s *codec.Spec) *mapfile.Pack {
	return &mapfile.Pack{Codec: s.Codec, Full: s.Full, Sector: s.Sector, IV: s.IV, Key: s.Key, Factors: s.Factors, Pad: s.Pad}
}

// pack adds a run that is decoded from parts of the volume. Where a part can't be had, neither can the run.
func (c *composer) pack(r *Run) {
	if codec.SideBySide(r.Pack.Codec) {
		c.beside(r)
		return
	}
	x := mapfile.Extent{At: r.At, Len: r.Len, Kind: mapfile.Packed, Disk: mapfile.None, Image: mapfile.None, Skip: r.Skip}
	pack, lost, err := c.resolve(r.Pack, 0)
	if lost != 0 {
		x.Kind, x.Skip = lost, 0
		if c.err == nil {
			c.err = err
		}
	} else {
		x.Pack = pack
	}
	c.push(&x)
}

// resolve gives a volume's pack with the host positions of its parts, or the kind of what can't be had.
func (c *composer) resolve(p *Pack, depth int) (pack *mapfile.Pack, lost mapfile.Kind, err error) {
	q := specOf(&p.Spec)
	if depth >= mapfile.MaxDepth {
		return nil, mapfile.Missing, ondisk.Corrupt("packed run", "depth", -1, depth)
	}
	for i := range p.Parts {
		r := &p.Parts[i]
		x := mapfile.Extent{Len: r.Len, Kind: r.Kind, Disk: mapfile.None, Image: mapfile.None}
		switch r.Kind {
		case mapfile.Data:
			for off, n := r.Off, r.Len; n > 0; {
				e, err := c.lookup(r.Dev, off, n)
				if e.Kind == formats.Missing || e.Kind == formats.Encrypted {
					return nil, kinds[e.Kind], err
				}
				q.Parts = join(q.Parts, c.convert(&e, c.image))
				off, n = off+e.Len, n-e.Len
			}
			continue
		case mapfile.Packed:
			if codec.SideBySide(r.Pack.Codec) {
				c.sideBySide(r.Pack, r.Skip, r.Len, depth+1, func(x mapfile.Extent, e error) bool {
					if x.Pack == nil {
						lost, err = x.Kind, e
					}
					q.Parts = append(q.Parts, x)
					return lost == 0
				})
				if lost != 0 {
					return nil, lost, err
				}
				continue
			}
			x.Skip = r.Skip
			if x.Pack, lost, err = c.resolve(r.Pack, depth+1); lost != 0 {
				return nil, lost, err
			}
		case mapfile.Inline:
			x.Bytes = r.Bytes
		case mapfile.Missing, mapfile.Encrypted:
			return nil, r.Kind, nil
		}
		q.Parts = join(q.Parts, x)
	}
	return q, 0, nil
}

// join appends a part, which may go on where the last one ends.
func join(parts []mapfile.Extent, x mapfile.Extent) []mapfile.Extent {
	if n := len(parts); n > 0 && continues(&parts[n-1], &x) {
		parts[n-1].Len += x.Len
		return parts
	}
	return append(parts, x)
}

// sideBySide resolves n bytes, from skip on, of a pack whose parts lie so, and calls add with each piece: it is cut
// wherever one of the parts is. It stops at what add says so of.
func (c *composer) sideBySide(p *Pack, skip, n int64, depth int, add func(x mapfile.Extent, err error) bool) {
	for n > 0 {
		k := n
		for i := range p.Parts {
			if q := &p.Parts[i]; q.Kind == mapfile.Data {
				e, _ := c.lookup(q.Dev, q.Off+skip, k)
				k = e.Len
			}
		}
		piece := Pack{Spec: p.Spec}
		piece.Full = k
		for _, q := range p.Parts {
			if q.Kind == mapfile.Data {
				q.Off += skip
			} else {
				q.Skip += skip
			}
			q.Len = k
			piece.Parts = append(piece.Parts, q)
		}
		x := mapfile.Extent{Len: k, Kind: mapfile.Packed, Disk: mapfile.None, Image: mapfile.None}
		pack, lost, err := c.resolve(&piece, depth)
		if x.Pack = pack; lost != 0 {
			x.Kind = lost
		}
		if !add(x, err) {
			return
		}
		skip, n = skip+k, n-k
	}
}

// beside adds a run of a pack whose parts lie side by side.
func (c *composer) beside(r *Run) {
	at := r.At
	c.sideBySide(r.Pack, r.Skip, r.Len, 0, func(x mapfile.Extent, err error) bool {
		x.At, at = at, at+x.Len
		if err != nil && c.err == nil {
			c.err = err
		}
		if x.Pack == nil || !c.widen(x.Pack) {
			c.push(&x)
			c.wide = x.Pack
		}
		return true
	})
}

// widen makes the last extent, if beside made it, longer by a pack whose parts all go on where its own end.
func (c *composer) widen(x *mapfile.Pack) bool {
	if len(c.out) == 0 {
		return false
	}
	last := &c.out[len(c.out)-1]
	p := last.Pack
	if p == nil || p != c.wide || p.Full+x.Full > codec.MaxFull || !sameSpec(p, x) {
		return false
	}
	for i := range p.Parts {
		if !continues(&p.Parts[i], &x.Parts[i]) {
			return false
		}
	}
	for i := range p.Parts {
		p.Parts[i].Len += x.Full
	}
	p.Full += x.Full
	last.Len += x.Full
	c.usable += x.Full
	return true
}

// push adds an extent, which may go on where the last one ends.
func (c *composer) push(x *mapfile.Extent) {
	switch x.Kind {
	case mapfile.Missing:
		c.missing += x.Len
	case mapfile.Encrypted:
		c.encrypted += x.Len
	default:
		c.usable += x.Len
	}
	if n := len(c.out); n > 0 && continues(&c.out[n-1], x) {
		c.out[n-1].Len += x.Len
		return
	}
	c.out = append(c.out, *x)
	if len(c.out) > mapfile.MaxExtents && c.full != nil {
		c.full()
	}
}

// continues tells whether x goes on where p ends, so that they are one extent.
func continues(p, x *mapfile.Extent) bool {
	if p.Kind != x.Kind || p.Image != x.Image || (p.Disk == mapfile.None) != (x.Disk == mapfile.None) {
		return false
	}
	disk := p.Disk == mapfile.None || p.Disk+p.Len == x.Disk
	switch x.Kind {
	case mapfile.Data:
		return disk && p.File == x.File && (p.File == mapfile.None || p.Off+p.Len == x.Off)
	case mapfile.Packed:
		return p.Skip+p.Len == x.Skip && samePack(p.Pack, x.Pack)
	case mapfile.Inline:
		return false
	}
	return disk
}

func samePack(p, q *mapfile.Pack) bool {
	if p == q {
		return true
	}
	if p.Full != q.Full || p.IV != q.IV || !sameSpec(p, q) {
		return false
	}
	for i := range p.Parts {
		a, b := &p.Parts[i], &q.Parts[i]
		if a.Len != b.Len || a.Kind != b.Kind || a.Disk != b.Disk || a.Image != b.Image || a.File != b.File || a.Off != b.Off || a.Skip != b.Skip ||
			string(a.Bytes) != string(b.Bytes) || (a.Pack == nil) != (b.Pack == nil) || a.Pack != nil && !samePack(a.Pack, b.Pack) {
			return false
		}
	}
	return true
}

// sameSpec tells whether both are made of as many parts in the same way.
func sameSpec(p, q *mapfile.Pack) bool {
	return p.Codec == q.Codec && p.Key == q.Key && p.Pad == q.Pad && string(p.Factors) == string(q.Factors) && len(p.Parts) == len(q.Parts)
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// gap says why a file's bytes can't be had, or nil where all can.
func (c *composer) gap() error {
	switch {
	case c.missing > 0 && c.err != nil:
		return fmt.Errorf("%d bytes are missing: %w", c.missing, c.err)
	case c.missing > 0:
		return fmt.Errorf("%d bytes are missing: %w", c.missing, ondisk.ErrTruncated)
	case c.encrypted > 0:
		return formats.ErrEncrypted
	}
	return nil
}
