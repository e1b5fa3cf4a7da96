package fsmap

import (
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"vmkit/formats"
	"vmkit/formats/codec"
	"vmkit/fsmap/mapfile"
)

// drawDisk makes a disk of random extents of all kinds, in two host files, one of which is a member of an archive.
func drawDisk(t *rapid.T) *fakeDisk {
	outer := &formats.File{Path: "a.ova", ID: 7}
	files := []*formats.File{{Path: "a", ID: 3}, {Path: "a.ova/b", In: outer, Base: 1000}}
	d := &fakeDisk{errs: map[int]error{}, step: rapid.Int64Range(0, 40).Draw(t, "step")}
	packs := []*formats.Pack{}
	for range 3 {
		parts := []formats.Extent{{Len: 20, Kind: formats.Data, Disk: formats.NoPos, File: files[0], Off: int64(5000 + 100*len(packs))}}
		packs = append(packs, &formats.Pack{Spec: codec.Spec{Codec: codec.Deflate, Full: 300}, Parts: parts})
	}
	for i := range rapid.IntRange(1, 12).Draw(t, "extents") {
		e := formats.Extent{Len: rapid.Int64Range(1, 100).Draw(t, "len"), Kind: formats.Kind(rapid.IntRange(1, 5).Draw(t, "kind"))}
		switch e.Kind {
		case formats.Data:
			e.File = files[rapid.IntRange(0, 1).Draw(t, "file")]
			e.Off = rapid.Int64Range(0, 50).Draw(t, "off") * 10
		case formats.Packed:
			e.Pack = packs[rapid.IntRange(0, 2).Draw(t, "pack")]
			e.Skip = rapid.Int64Range(0, 200).Draw(t, "skip")
		case formats.Missing:
			if rapid.Bool().Draw(t, "surprise") {
				d.errs[i] = errors.New("broken table")
			}
		}
		d.extents = append(d.extents, e)
		d.size += e.Len
	}
	return d
}

// what says what a byte of the disk is.
func (d *fakeDisk) what(pos int64) string {
	e, _ := d.ExtentAt(pos, 1)
	switch e.Kind {
	case formats.Data:
		f, off := e.File.Host(e.Off)
		return fmt.Sprintf("data disk %d file %d off %d", pos, f.ID, off)
	case formats.Packed:
		return fmt.Sprintf("packed disk %d part %d skip %d", pos, e.Pack.Parts[0].Off, e.Skip)
	}
	return fmt.Sprintf("%v disk %d", e.Kind, pos)
}

// whatRecord says what byte i of an extent is, in the same words.
func whatRecord(x *mapfile.Extent, i int64) string {
	disk := ""
	if x.Disk != mapfile.None {
		disk = fmt.Sprintf(" disk %d", x.Disk+i)
	}
	switch x.Kind {
	case mapfile.Data:
		return fmt.Sprintf("data%s file %d off %d", disk, x.File, x.Off+i)
	case mapfile.Packed:
		return fmt.Sprintf("packed%s part %d skip %d", disk, x.Pack.Parts[0].Off, x.Skip+i)
	case mapfile.Inline:
		return fmt.Sprintf("inline %d", x.Bytes[i])
	}
	return x.Kind.String() + disk
}

// TestCompose: every byte of a file is what its run and the disk below say, in a list without gaps whose extents could
// not be fewer.
func TestCompose(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDisk(t)
		size := rapid.Int64Range(1, 2000).Draw(t, "size")
		var runs Runs
		runs.Reset(size)
		for runs.Next() < size {
			r := Run{At: runs.Next() + rapid.Int64Range(0, 20).Draw(t, "gap"), Len: rapid.Int64Range(1, 200).Draw(t, "run")}
			switch r.Kind = rapid.SampledFrom([]Kind{mapfile.Data, mapfile.Unwritten, mapfile.Inline, mapfile.Hole}).Draw(t, "run kind"); r.Kind {
			case mapfile.Data, mapfile.Unwritten:
				r.Off = rapid.Int64Range(0, d.size-1).Draw(t, "run off")
				r.Len = min(r.Len, d.size-r.Off)
			case mapfile.Inline:
				r.Bytes = []byte{1, 2, 3}
				r.Len = 3
			}
			if err := runs.Append(r); err != nil {
				t.Fatal(err)
			}
		}
		c := composer{}
		c.use(0, d)
		c.begin()
		for i := range runs.List {
			c.run(&runs.List[i])
		}
		var at int64
		for i := range c.out {
			x := &c.out[i]
			if x.At != at || x.Len <= 0 {
				t.Fatalf("extent %d is %d bytes at %d, expected at %d", i, x.Len, x.At, at)
			}
			if i > 0 && continues(&c.out[i-1], x) {
				t.Fatalf("extents %d and %d are one", i-1, i)
			}
			at += x.Len
		}
		if at != size {
			t.Fatalf("extents end at %d, the file at %d", at, size)
		}
		i := 0
		for j := range runs.List {
			r := &runs.List[j]
			for k := range r.Len {
				for c.out[i].At+c.out[i].Len <= r.At+k {
					i++
				}
				want := r.Kind.String()
				switch r.Kind {
				case mapfile.Data:
					want = d.what(r.Off + k)
				case mapfile.Unwritten:
					want = fmt.Sprintf("unwritten disk %d", r.Off+k)
				case mapfile.Inline:
					want = fmt.Sprintf("inline %d", r.Bytes[k])
				}
				if got := whatRecord(&c.out[i], r.At+k-c.out[i].At); got != want {
					t.Fatalf("byte %d is %s, want %s", r.At+k, got, want)
				}
			}
		}
	})
}

// TestComposePack: a volume's packed run whose coded bytes lie partly in a packed cluster of the image nests, and where
// a part of them is lost, so is all that it decodes to.
func TestComposePack(t *testing.T) {
	f := &formats.File{ID: 1}
	inner := &formats.Pack{Spec: codec.Spec{Codec: codec.Deflate, Full: 64}, Parts: []formats.Extent{{Len: 9, Kind: formats.Data, Disk: formats.NoPos, File: f, Off: 900}}}
	d := &fakeDisk{size: 400, errs: map[int]error{3: errors.New("no layer")}, extents: []formats.Extent{
		{Len: 100, Kind: formats.Data, File: f, Off: 5000},
		{Len: 64, Kind: formats.Packed, Pack: inner},
		{Len: 136, Kind: formats.Zero},
		{Len: 100, Kind: formats.Missing},
	}}
	pack := func(name string, off, n int64) *Pack {
		return &Pack{Spec: codec.Spec{Codec: name, Full: 1000}, Parts: []Run{{Len: n, Kind: mapfile.Data, Off: off}}}
	}
	c := composer{}
	c.use(0, d)
	c.begin()
	c.run(&Run{At: 0, Len: 500, Kind: mapfile.Packed, Skip: 100, Pack: pack(codec.Zstd, 50, 130)})
	c.run(&Run{At: 500, Len: 400, Kind: mapfile.Packed, Pack: pack(codec.Zstd, 290, 20)})
	if len(c.out) != 2 || c.out[0].Kind != mapfile.Packed || c.out[1].Kind != mapfile.Missing || c.missing != 400 || c.err == nil {
		t.Fatalf("%+v, %d missing, %v", c.out, c.missing, c.err)
	}
	x := c.out[0]
	if x.Skip != 100 || x.Pack.Codec != codec.Zstd || len(x.Pack.Parts) != 3 {
		t.Fatalf("%+v of %+v", x, x.Pack)
	}
	data, packed, zero := x.Pack.Parts[0], x.Pack.Parts[1], x.Pack.Parts[2]
	if data.Kind != mapfile.Data || data.Len != 50 || data.Disk != 50 || data.Off != 5050 {
		t.Errorf("first part %+v", data)
	}
	if packed.Kind != mapfile.Packed || packed.Len != 64 || packed.Disk != 100 || packed.Pack.Parts[0].Off != 900 {
		t.Errorf("second part %+v", packed)
	}
	if zero.Kind != mapfile.Zero || zero.Len != 16 || zero.Disk != 164 {
		t.Errorf("third part %+v", zero)
	}
}

// TestComposeSideBySide: parts that lie side by side stay so, whatever they lie on, within another pack too.
func TestComposeSideBySide(t *testing.T) {
	f := &formats.File{ID: 1}
	d := &fakeDisk{size: 300, extents: []formats.Extent{
		{Len: 30, Kind: formats.Data, File: f, Off: 1000},
		{Len: 70, Kind: formats.Data, File: f, Off: 9000},
		{Len: 150, Kind: formats.Data, File: f, Off: 2000},
		{Len: 50, Kind: formats.Zero},
	}}
	c := composer{}
	c.use(0, d)
	c.begin()
	c.run(&Run{At: 0, Len: 80, Kind: mapfile.Packed, Skip: 10, Pack: &Pack{Spec: codec.Spec{Codec: codec.XOR, Full: 100}, Parts: []Run{
		{Len: 100, Kind: mapfile.Data, Off: 0},
		{Len: 100, Kind: mapfile.Data, Off: 190},
	}}})
	var total int64
	for _, x := range c.out {
		total += x.Len
		if x.Kind != mapfile.Packed || x.Pack.Full != x.Len || x.Skip != 0 || len(x.Pack.Parts) != 2 {
			t.Fatalf("%+v of %+v", x, x.Pack)
		}
		for i, want := range []int64{10 + x.At, 200 + x.At} {
			if p := x.Pack.Parts[i]; p.Len != x.Len || p.Disk != want {
				t.Errorf("part %d at %d: %+v", i, x.At, p)
			}
		}
	}
	if total != 80 || len(c.out) != 3 {
		t.Errorf("%d extents of %d bytes", len(c.out), total)
	}

	// Within zlib, after a part that is data, and with factors.
	c.begin()
	raid6 := &Pack{Spec: codec.Spec{Codec: codec.RAID6, Full: 100, Factors: []byte{7, 9}}, Parts: []Run{
		{Len: 100, Kind: mapfile.Data, Off: 0},
		{Len: 100, Kind: mapfile.Data, Off: 190},
	}}
	c.run(&Run{At: 0, Len: 500, Kind: mapfile.Packed, Pack: &Pack{Spec: codec.Spec{Codec: codec.Zlib, Full: 500}, Parts: []Run{
		{Len: 20, Kind: mapfile.Data, Off: 100},
		{Len: 80, Kind: mapfile.Packed, Skip: 10, Pack: raid6},
	}}})
	if len(c.out) != 1 || len(c.out[0].Pack.Parts) != 4 {
		t.Fatalf("%+v", c.out)
	}
	at := int64(0)
	for _, x := range c.out[0].Pack.Parts[1:] {
		if x.Kind != mapfile.Packed || x.Skip != 0 || x.Pack.Full != x.Len || string(x.Pack.Factors) != "\x07\x09" || len(x.Pack.Parts) != 2 {
			t.Fatalf("%+v of %+v", x, x.Pack)
		}
		for i, want := range []int64{10 + at, 200 + at} {
			if p := x.Pack.Parts[i]; p.Len != x.Len || p.Disk != want {
				t.Errorf("part %d at %d: %+v", i, at, p)
			}
		}
		at += x.Len
	}
	if at != 80 {
		t.Errorf("the parts are %d bytes", at)
	}
}

// TestComposeImages: an extent on another image than its volume's says so, also within a pack.
func TestComposeImages(t *testing.T) {
	files := []*formats.File{{ID: 4, Image: 0}, {ID: 5, Image: 1}}
	xor := &formats.Pack{Spec: codec.Spec{Codec: codec.XOR, Full: 50}, Parts: []formats.Extent{
		{Len: 50, Kind: formats.Data, Disk: 10, Image: 0, File: files[0], Off: 10},
		{Len: 50, Kind: formats.Data, Disk: 10, Image: 1, File: files[1], Off: 10},
	}}
	d := &fakeDisk{size: 150, extents: []formats.Extent{
		{Len: 50, Kind: formats.Data, Image: 0, File: files[0]},
		{Len: 50, Kind: formats.Data, Image: 1, File: files[1]},
		{Len: 50, Kind: formats.Packed, Image: 1, Pack: xor},
	}}
	c := composer{}
	c.use(0, d)
	c.begin()
	c.run(&Run{Len: 150, Kind: mapfile.Data})
	if len(c.out) != 3 || c.out[0].Image != mapfile.None || c.out[1].Image != 1 || c.out[2].Image != 1 {
		t.Fatalf("%+v", c.out)
	}
	if p := c.out[2].Pack.Parts; p[0].Image != 0 || p[1].Image != mapfile.None {
		t.Errorf("parts of a pack on image 1: %+v", p)
	}
}
