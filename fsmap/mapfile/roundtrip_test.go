package mapfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// genName draws what names come as: plain, with odd characters, or any bytes without NUL.
func genName() *rapid.Generator[string] {
	return rapid.OneOf(
		rapid.StringMatching(`[a-z0-9._-]{1,12}`),
		rapid.StringN(1, 20, 60),
		rapid.Map(rapid.SliceOfN(rapid.ByteRange(1, 255), 1, 20), func(b []byte) string { return string(b) }),
	)
}

func genTime() *rapid.Generator[Time] {
	return rapid.Custom(func(t *rapid.T) Time {
		if rapid.Bool().Draw(t, "unknown") {
			return Time{}
		}
		return Time{rapid.Int64().Draw(t, "sec"), rapid.Int32Range(0, 999999999).Draw(t, "nsec"), true}
	})
}

func genOptional() *rapid.Generator[int64] {
	return rapid.OneOf(rapid.Just(int64(None)), rapid.Int64Range(0, math.MaxInt64))
}

// genExtent draws an extent of n bytes at at; file ids below 2 and image ids below 2 are known.
func genExtent(t *rapid.T, at, n int64, depth int) Extent {
	e := Extent{At: at, Len: n, Disk: None, Image: None, File: None, Off: None}
	kinds := []Kind{Data, Zero, Hole, Unwritten, Missing, Encrypted, Packed}
	if n <= 100 {
		kinds = append(kinds, Inline)
	}
	if depth > 3 {
		kinds = kinds[:6]
	}
	e.Kind = rapid.SampledFrom(kinds).Draw(t, "kind")
	if e.Kind != Inline {
		e.Disk = rapid.OneOf(rapid.Just(int64(None)), rapid.Int64Range(0, 1<<55)).Draw(t, "disk")
	}
	if rapid.Bool().Draw(t, "other image") {
		e.Image = 1
	}
	switch e.Kind {
	case Data:
		if e.Disk == None || rapid.Bool().Draw(t, "has file") {
			e.File, e.Off = rapid.IntRange(0, 1).Draw(t, "file"), rapid.Int64Range(0, 1<<55).Draw(t, "off")
		}
	case Inline:
		e.Bytes = rapid.SliceOfN(rapid.Byte(), int(n), int(n)).Draw(t, "bytes")
	case Packed:
		e.Skip = rapid.Int64Range(0, 1<<20).Draw(t, "skip")
		e.Pack = &Pack{Codec: "zlib", Full: e.Skip + n + rapid.Int64Range(0, 9).Draw(t, "rest")}
		if rapid.Bool().Draw(t, "aes") {
			e.Pack.Codec, e.Pack.Sector, e.Pack.IV, e.Pack.Key = "aes-xts-plain64", 512, rapid.Uint64().Draw(t, "iv"), "key 0"
		} else if rapid.Bool().Draw(t, "raid6") {
			e.Pack.Codec, e.Pack.Factors = "raid6", rapid.SliceOfN(rapid.Byte(), 1, 4).Draw(t, "factors")
		} else {
			e.Pack.Pad = rapid.Bool().Draw(t, "pad")
		}
		for range rapid.IntRange(1, 3).Draw(t, "parts") {
			e.Pack.Parts = append(e.Pack.Parts, genExtent(t, None, rapid.Int64Range(1, 1<<30).Draw(t, "len"), depth+1))
		}
	}
	return e
}

func genFile() *rapid.Generator[*File] {
	return rapid.Custom(func(t *rapid.T) *File {
		f := &File{Volume: 0, Path: "/" + genName().Draw(t, "path"), Inode: rapid.Uint64().Draw(t, "inode"),
			Kind: rapid.SampledFrom([]FileKind{Regular, Regular, Directory, Symlink, FIFO, Socket, Char, Block}).Draw(t, "file kind"),
			Mode: rapid.OneOf(rapid.Just(int64(None)), rapid.Int64Range(0, 0o7777)).Draw(t, "mode"),
			UID:  genOptional().Draw(t, "uid"), GID: genOptional().Draw(t, "gid"), Links: genOptional().Draw(t, "links"),
			MTime: genTime().Draw(t, "mtime"), ATime: genTime().Draw(t, "atime"), CTime: genTime().Draw(t, "ctime"), BTime: genTime().Draw(t, "btime"),
			Project: rapid.Uint32().Draw(t, "project"), Sequence: rapid.Uint64().Draw(t, "sequence"),
		}
		switch f.Kind {
		case Symlink:
			f.Target = genName().Draw(t, "target")
		case Char, Block:
			f.Major, f.Minor = rapid.Uint32().Draw(t, "major"), rapid.Uint32().Draw(t, "minor")
		case Regular:
			for range rapid.IntRange(0, 5).Draw(t, "extents") {
				n := rapid.OneOf(rapid.Int64Range(1, 100), rapid.Int64Range(1, 1<<50)).Draw(t, "len")
				f.Extents = append(f.Extents, genExtent(t, f.Size, n, 0))
				f.Size += n
			}
			if rapid.Bool().Draw(t, "stream") {
				f.Stream = genName().Draw(t, "stream")
			}
		}
		names := map[string]bool{}
		for range rapid.IntRange(0, 3).Draw(t, "xattrs") {
			n := genName().Draw(t, "xattr")
			if !names[n] {
				f.Xattrs = append(f.Xattrs, Xattr{n, rapid.SliceOf(rapid.Byte()).Draw(t, "value")})
			}
			names[n] = true
		}
		return f
	})
}

// head writes what the drawn files refer to.
func head(w *Writer) {
	w.Map(&Map{Version: 1, Tool: "test", Created: Time{Known: true}})
	w.Image(&Image{ID: 0, Name: "a", Format: "raw", Size: 1, Files: []HostFile{{ID: 0, Path: "a.img"}}})
	w.Image(&Image{ID: 1, Name: "b", Format: "raw", Size: 1, Files: []HostFile{{ID: 1, Path: "b.img"}}})
	w.Volume(&Volume{ID: 0, Name: "disk", Kind: "disk", Size: 1, Image: 0, In: None, Used: None})
}

// same compares records as their meaning goes: xattrs are a set, nil is empty.
var same = cmp.Options{
	cmpopts.EquateEmpty(),
	cmpopts.SortSlices(func(a, b Xattr) bool { return a.Name < b.Name }),
}

func readAll(t interface{ Fatalf(string, ...any) }, b []byte) (recs []any) {
	r := NewReader(bytes.NewReader(b))
	for {
		rec, err := r.Next()
		if err == io.EOF {
			return recs
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		switch x := rec.(type) {
		case *File:
			f := *x
			f.Extents = append([]Extent(nil), f.Extents...)
			rec = &f
		case *Extents:
			f := *x
			f.Extents = append([]Extent(nil), f.Extents...)
			rec = &f
		case *Problem:
			f := *x
			rec = &f
		case *Result:
			f := *x
			rec = &f
		}
		recs = append(recs, rec)
	}
}

func TestFileRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := genFile().Draw(t, "file")
		var buf bytes.Buffer
		w := NewWriter(&buf)
		head(w)
		if err := w.File(f); err != nil {
			t.Fatal(err)
		}
		c := w.Count()
		w.End(&c)
		for line := range bytes.Lines(buf.Bytes()) {
			if !json.Valid(line) {
				t.Fatalf("not JSON: %s", line)
			}
		}
		recs := readAll(t, buf.Bytes())
		if d := cmp.Diff(f, recs[4], same); d != "" {
			t.Fatalf("%s\n%s", d, buf.Bytes())
		}
	})
}

func TestOtherRecordsRoundTrip(t *testing.T) {
	now := TimeOf(time.Date(2026, 11, 22, 9, 0, 0, 5, time.UTC))
	recs := []any{
		&Map{Version: 1, Tool: "vmmap 0.1.0", Created: now, Options: map[string]any{"journal": "replay", "n": json.Number("9007199254740993")}, Rest: Rest(`,"later":[1]`)},
		&Image{ID: 0, Name: "web\xff1", Format: "qcow2", Size: 1 << 34, State: "clean", Encryption: "luks",
			Files:     []HostFile{{0, "web1.qcow2", "top", 1 << 30, now}, {1, "b\xffse", "backing", 9, Time{}}},
			Snapshots: []Snapshot{{"1", "s\xff", 1 << 34, now, 77}, {"2", "t", None, Time{}, 0}},
			Bitmaps:   []Bitmap{{"b0", 65536, "consistent", true}}, Notes: []string{"odd <but> fine"}, Identity: &Identity{"S1", "gpt", "2f3a", "ab12"}, Clone: json.RawMessage(`{"type":"clone"}`), Rest: Rest(`,"x":{"y":"z"}`)},
		&Volume{ID: 0, Name: "disk", Kind: "disk", Size: 1 << 34, In: None, Used: None},
		&Volume{ID: 1, Name: "vg0/root", Kind: "lv", Scheme: "lvm2", Number: 3, Start: None, Size: 5, Image: None, In: 0,
			Segments: []Segment{{0, 5, "striped", []int{0, 0}, []int64{7, 1 << 60}, 65536}},
			TypeID:   "83", Type: "Linux", PartUUID: "u", PartName: "n\x01", Attrs: []string{"boot"}, FS: "ext4", UUID: "v", Label: "l\xfe", Journal: "replayed",
			BlockSize: 4096, Used: 3, Snapshots: []string{"a", "b"}, Extra: map[string]any{"features": []any{"x"}}, Notes: []string{"n"}, Rest: Rest(`,"q":1.5e3`)},
		&Problem{Image: 0, Volume: 1, Path: "/a\xff", Stream: "s", What: "inode", Error: "corrupt", Rest: Rest(`,"byte":77`)},
		&Problem{Image: None, Volume: None, What: "x"},
		&Result{Volume: 1, Name: "vg0/root", Path: "/\xff", Stream: "s", Kind: Regular, To: "out/\xff", Size: 1 << 60, SHA256: strings.Repeat("0f", 32), Status: "ok", Error: "e",
			Mode: 0o4755, UID: 1 << 31, GID: 0, MTime: now, Target: "t\xff", Xattrs: []Xattr{{"user.a", []byte{0, 1}}}, Rest: Rest(`,"z":true`)},
		&Result{Volume: 1, Name: "p1", Path: "/b", Status: "skipped", Error: "why", Mode: None, UID: None, GID: None},
		&Finding{What: "content", Volume: 1, Path: "/\xff", Stream: "\xff", Expected: "a\xff", Found: "b\xff", Reader: "go-diskfs", Rest: Rest(`,"k":null`)},
		&Finding{What: "size", Volume: None, Path: "/p", Expected: "1", Found: "2"},
		&Other{Type: "x-unknown", Raw: json.RawMessage(`{"note": "from a later version", "type": "x-unknown"}`)},
		&End{Files: 1, Bytes: 2, Problems: 3, Rest: Rest(`,"u":0`)},
		&End{Kind: EndOfResults, OK: 1, Partial: 2, Failed: 3, Skipped: 4, Bytes: 5, Problems: 6},
		&End{Kind: EndOfFindings, Checked: 1, Differences: 2, Problems: 3},
		&End{Kind: EndOfVMs, VMs: 1},
		&End{Kind: EndOfClones, Clones: 2, Problems: 3},
	}
	var buf bytes.Buffer
	w := NewWriter(&buf)
	for _, rec := range recs {
		switch x := rec.(type) {
		case *Map:
			w.Map(x)
		case *Image:
			w.Image(x)
		case *Volume:
			w.Volume(x)
		case *Problem:
			w.Problem(x)
		case *Result:
			w.Result(x)
		case *Finding:
			w.Finding(x)
		case *Other:
			w.Other(x)
		case *End:
			w.End(x)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	// A null field says nothing and is not passed on.
	recs[8].(*Finding).Rest = nil
	if d := cmp.Diff(recs, readAll(t, buf.Bytes()), same); d != "" {
		t.Fatal(d)
	}
}

// TestLongFiles plants what doesn't fit in a line, and reads it back whole.
func TestLongFiles(t *testing.T) {
	many := func(n int64, each func(i int64) Extent) (list []Extent) {
		var at int64
		for i := range n {
			e := each(i)
			e.At = at
			at += e.Len
			list = append(list, e)
		}
		return list
	}
	data := func(i int64) Extent {
		return Extent{Len: 4096, Kind: Data, Disk: 1<<50 + i*8192, Image: None, File: 0, Off: 1<<50 + i*8192}
	}
	big := bytes.Repeat([]byte("inline "), 300000)
	packed := func(parts int64) Extent {
		return Extent{Len: 10, Kind: Packed, Disk: 7, Image: None, File: None, Off: None,
			Pack: &Pack{Codec: "xor", Full: 10, Parts: many(parts, data)}}
	}
	fix := func(e Extent) Extent {
		for i := range e.Pack.Parts {
			e.Pack.Parts[i].At = None
		}
		return e
	}
	tests := []struct {
		name     string
		f        File
		problems int
	}{
		{"many extents", File{Extents: many(8192, data)}, 0},
		{"long path", File{Path: "/" + strings.Repeat("\x01\xff", MaxPath/2-1), Extents: many(3000, data)}, 0},
		{"inline of 2 MB", File{Extents: []Extent{{Len: int64(len(big)), Kind: Inline, Disk: None, Image: None, File: None, Off: None, Bytes: big}}}, 0},
		{"large packs", File{Extents: many(5, func(int64) Extent { return fix(packed(5000)) })}, 0},
		{"a pack too large", File{Extents: many(3, func(i int64) Extent { return fix(packed(1 + 20000*(i%2))) })}, 1},
		{"xattrs too large", File{Xattrs: []Xattr{{"user.a", big[:65536]}, {"user.b", big}, {"user.c", big[:65536]}}, Extents: many(3, data)}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.f
			f.Kind, f.Mode, f.UID, f.GID, f.Links = Regular, None, None, None, None
			if f.Path == "" {
				f.Path = "/f"
			}
			for _, e := range f.Extents {
				f.Size += e.Len
			}
			var buf bytes.Buffer
			w := NewWriter(&buf)
			head(w)
			// In two halves, as a caller writes who doesn't hold the whole list.
			half, rest := f, Extents{Path: f.Path, Extents: f.Extents[len(f.Extents)/2:]}
			half.Extents, half.More = f.Extents[:len(f.Extents)/2], true
			w.File(&half)
			w.Extents(&rest)
			c := w.Count()
			w.End(&c)
			if c.Problems != int64(tt.problems) || c.Files != 1 || c.Bytes != f.Size {
				t.Errorf("counts are %+v", c)
			}
			for line := range bytes.Lines(buf.Bytes()) {
				if len(line) > MaxLine || !json.Valid(line) {
					t.Fatalf("bad line of %d bytes", len(line))
				}
			}
			var got []Extent
			var at int64
			problems := 0
			for _, rec := range readAll(t, buf.Bytes()) {
				switch x := rec.(type) {
				case *File:
					got = append(got, x.Extents...)
					at += x.Size
					if x.Path != f.Path {
						t.Error("other path")
					}
				case *Extents:
					got = append(got, x.Extents...)
				case *Problem:
					problems++
				}
			}
			if problems != tt.problems {
				t.Errorf("%d problems", problems)
			}
			if tt.problems == 0 {
				if !reflect.DeepEqual(merged(f.Extents), merged(got)) {
					t.Error("other extents")
				}
			}
		})
	}
}

// merged joins neighbouring inline extents.
func merged(list []Extent) (out []Extent) {
	for _, e := range list {
		if n := len(out); n > 0 && e.Kind == Inline && out[n-1].Kind == Inline {
			out[n-1].Bytes = append(bytes.Clone(out[n-1].Bytes), e.Bytes...)
			out[n-1].Len += e.Len
			continue
		}
		out = append(out, e)
	}
	return out
}

func TestTimes(t *testing.T) {
	for _, tt := range []struct {
		t Time
		s string
	}{
		{Time{0, 0, true}, "1970-01-01T00:00:00Z"},
		{Time{0, 1, true}, "1970-01-01T00:00:00.000000001Z"},
		{Time{-1, 999999999, true}, "1969-12-31T23:59:59.999999999Z"},
		{Time{951782400, 0, true}, "2000-02-29T00:00:00Z"},
		{Time{253402300799, 0, true}, "9999-12-31T23:59:59Z"},
		{Time{253402300800, 0, true}, "10000-01-01T00:00:00Z"},
		{Time{-62167219201, 0, true}, "-0001-12-31T23:59:59Z"},
		{Time{-62167219200, 0, true}, "0000-01-01T00:00:00Z"},
		{Time{math.MaxInt64, 0, true}, "292277026596-12-04T15:30:07Z"},
		{Time{math.MinInt64, 0, true}, "-292277022657-01-27T08:29:52Z"},
	} {
		if got := tt.t.String(); got != tt.s {
			t.Errorf("%d is %s, should be %s", tt.t.Sec, got, tt.s)
		}
		if got, err := parseTime([]byte(tt.s)); err != nil || got != tt.t {
			t.Errorf("%s is %v, %v", tt.s, got, err)
		}
	}
	// ext4's nanosecond field holds more than a second's worth.
	if got := (Time{5, 1073741823, true}).String(); got != "1970-01-01T00:00:06.073741823Z" {
		t.Error(got)
	}
	for _, s := range []string{"", "1970-01-01T00:00:00", "1970-01-01 00:00:00Z", "1970-13-01T00:00:00Z", "1970-02-29T00:00:00Z", "1970-01-01T24:00:00Z",
		"1970-01-01T00:00:00.Z", "1970-01-01T00:00:00.1234567890Z", "970-01-01T00:00:00Z", "292277026596-12-04T15:30:08Z", "-292277022657-01-27T08:29:51Z",
		"999999999999-01-01T00:00:00Z", "1970-01-01T00:00:00+00:00"} {
		if got, err := parseTime([]byte(s)); err == nil {
			t.Errorf("%q is %v", s, got)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		sec := rapid.Int64Range(-62135596800, 253402300799).Draw(t, "sec")
		ns := rapid.Int64Range(0, 999999999).Draw(t, "ns")
		x := Time{sec, int32(ns), true}
		if p, err := time.Parse(time.RFC3339Nano, x.String()); err != nil || p.Unix() != sec || int64(p.Nanosecond()) != ns {
			t.Fatalf("%s: %v, %v", x, p, err)
		}
	})
}

// A writer that is full.
type full struct{}

func (full) Write(p []byte) (int, error) { return 0, errors.New("disk full") }

func TestWriterErrorSticks(t *testing.T) {
	w := NewWriter(full{})
	w.Problem(&Problem{})
	if w.Flush() == nil || w.Problem(&Problem{}) == nil || w.End(&End{}) == nil {
		t.Error("an error was lost")
	}
}
