package partition

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmkit/fixtures"
	"vmkit/formats"
)

// lvCase is a line of what the guest's kernel read from a logical volume.
type lvCase struct {
	group, name string
	size        int64
	sha         string
	what        string
}

func lvCases(t testing.TB) map[string][]lvCase {
	cases := make(map[string][]lvCase)
	for _, line := range fixtures.Expect(t, "lvm", "expect") {
		f := strings.SplitN(line, " ", 5)
		size, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		c := lvCase{group: f[0], name: f[1], size: size, sha: f[3]}
		if len(f) == 5 {
			c.what = strings.TrimSpace(f[4])
		}
		cases[c.group] = append(cases[c.group], c)
	}
	return cases
}

func (c lvCase) compare(t *testing.T, vols []Volume) *Volume {
	t.Helper()
	v := find(t, vols, "vg/"+c.name)
	if v.Kind != KindLV || v.Size != c.size {
		t.Errorf("%s: kind %s, %d bytes, the kernel says %d", v.Name, v.Kind, v.Size, c.size)
		return &v
	}
	off, n := int64(0), v.Size
	switch {
	case strings.HasPrefix(c.what, "first 2 MiB"):
		n = 2 << 20
	case strings.HasPrefix(c.what, "sectors "):
		var first, last int64
		fmt.Sscanf(c.what, "sectors %d to %d", &first, &last)
		off, n = first*512, (last-first+1)*512
	}
	got, err := sha(v.Disk, off, n)
	if err != nil || got != c.sha {
		t.Errorf("%s (%s) reads as %s (%v), the kernel says %s", v.Name, c.what, got, err, c.sha)
	}
	return &v
}

func TestLVM(t *testing.T) {
	for group, cases := range lvCases(t) {
		if group == "nested" {
			continue // see TestNested
		}
		t.Run(group, func(t *testing.T) {
			images := stored(t, "lvm", group)
			vols := scanAll(t, images, Options{})
			listed := make(map[string]bool)
			for _, c := range cases {
				listed[c.name] = true
				if c.group == "cache" && c.name == "writeback" {
					v := find(t, vols, "vg/writeback")
					if _, err := sha(v.Disk, 0, v.Size); err == nil || len(v.Problems) == 0 || !strings.Contains(v.Problems[0].Error(), "writeback") {
						t.Errorf("%s: %v, %v", v.Name, err, v.Problems)
					}
					continue
				}
				v := c.compare(t, vols)
				if len(v.Problems) > 0 {
					t.Errorf("%s: %v", v.Name, v.Problems)
				}
				if v.Image < 0 && len(v.Segments) == 0 {
					t.Errorf("%s has neither a place nor segments", v.Name)
				}
				var at int64
				for _, s := range v.Segments {
					if s.At != at || s.Len <= 0 || len(s.Volumes) != len(s.Starts) || len(s.Volumes) == 0 && s.Kind != "zero" {
						t.Errorf("%s: segments %v", v.Name, v.Segments)
						break
					}
					at += s.Len
				}
				if v.Segments != nil && at != v.Size {
					t.Errorf("%s: segments end at %d of %d", v.Name, at, v.Size)
				}
			}
			for _, v := range vols {
				if name, ok := strings.CutPrefix(v.Name, "vg/"); ok && !listed[name] && v.Type != "thin-pool" {
					t.Errorf("%s is listed, the kernel has no such volume", v.Name)
				}
			}
		})
	}
}

// TestLVMLost leaves out one physical volume after the other: what has a spare copy reads as before, the rest says
// what is missing, and nothing reads as something else.
func TestLVMLost(t *testing.T) {
	for _, group := range []string{"raid", "plain"} {
		cases := lvCases(t)[group]
		images := stored(t, "lvm", group)
		for lost := range images {
			left := slices.Delete(slices.Clone(images), lost, lost+1)
			vols := scanAll(t, left, Options{})
			_, problems := said(vols)
			if !strings.Contains(problems, "is missing") {
				t.Errorf("%s without disk %d: problems %q", group, lost, problems)
			}
			for _, c := range cases {
				v := find(t, vols, "vg/"+c.name)
				got, err := sha(v.Disk, 0, v.Size)
				spare := group == "raid" && !strings.HasPrefix(c.name, "raid0")
				if spare && (err != nil || got != c.sha) {
					t.Errorf("%s without disk %d: %s, %v", c.name, lost, got, err)
				}
				if err == nil && got != c.sha {
					t.Errorf("%s without disk %d reads as something else", c.name, lost)
				}
				if err != nil && len(v.Problems) == 0 {
					t.Errorf("%s without disk %d: %v, but no problem", c.name, lost, err)
				}
			}
		}
	}
}

// TestLVMTwoLost leaves out every two physical volumes: the second parity brings level 6 back.
func TestLVMTwoLost(t *testing.T) {
	images := stored(t, "lvm", "raid")
	for a := range images {
		for b := range a {
			vols := scanAll(t, slices.Delete(slices.Delete(slices.Clone(images), a, a+1), b, b+1), Options{})
			for _, c := range lvCases(t)["raid"] {
				if !strings.HasPrefix(c.name, "raid6") {
					continue
				}
				v := find(t, vols, "vg/"+c.name)
				if got, err := sha(v.Disk, 0, v.Size); err != nil || got != c.sha {
					t.Errorf("%s without disks %d and %d: %s, %v", c.name, b, a, got, err)
				}
			}
		}
	}
}

// TestNested reads LUKS2 on a logical volume that lies on a mirror and on a disk, also without a half of the mirror.
func TestNested(t *testing.T) {
	c := lvCases(t)["nested"][0]
	images := stored(t, "lvm", "nested")
	for _, lost := range []int{-1, 0, 1} {
		left := slices.Clone(images)
		if lost >= 0 {
			left = slices.Delete(left, lost, lost+1)
		}
		vols := scanAll(t, left, Options{Passphrase: passphrase(luksPassphrase)})
		v := find(t, vols, "vg/sealed/luks")
		if v.Kind != KindLUKS || v.Size != c.size || v.Label != "sealed" || len(v.Problems) > 0 {
			t.Errorf("%+v", v)
		}
		if got, err := sha(v.Disk, 0, v.Size); err != nil || got != c.sha {
			t.Errorf("without %d: %s, %v", lost, got, err)
		}
		var path []string
		for i := v.In; i >= 0; i = vols[i].In {
			path = append(path, string(vols[i].Kind))
		}
		if got := strings.Join(path, " "); got != "lv md disk" {
			t.Errorf("it lies in %s", got)
		}
	}
	vols := scanAll(t, images[:2], Options{Passphrase: passphrase(luksPassphrase)})
	v := find(t, vols, "vg/sealed/luks")
	if _, err := sha(v.Disk, 0, v.Size); !errors.Is(err, formats.ErrMissing) {
		t.Errorf("without the third disk: %v", err)
	}
	if lv := find(t, vols, "vg/sealed"); len(lv.Problems) == 0 {
		t.Error("without the third disk: no problem")
	}
}

// TestLVMTwice takes a group and its clone together.
func TestLVMTwice(t *testing.T) {
	images := append(stored(t, "lvm", "plain"), stored(t, "lvm", "plain")...)
	for i := range images {
		images[i] = numbered(images[i].Name, i, images[i].Disk)
	}
	vols := scanAll(t, images, Options{})
	for _, c := range lvCases(t)["plain"] {
		for _, prefix := range []string{"vg/", "vg~2/"} {
			v := find(t, vols, prefix+c.name)
			if got, err := sha(v.Disk, 0, v.Size); err != nil || got != c.sha {
				t.Errorf("%s: %s, %v", v.Name, got, err)
			}
			e, err := v.Disk.ExtentAt(0, 1)
			if err != nil || (e.Image >= len(images)/2) != (prefix == "vg~2/") {
				t.Errorf("%s lies on image %d, %v", v.Name, e.Image, err)
			}
		}
	}
	if v := find(t, vols, "m0~2/disk"); v.Image != 3 {
		t.Errorf("%+v", v)
	}
}

func TestLVMText(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"a = 1", "map[a:1]"}, {"a=-5 b=\"x\\\"y\\\\\" c = [1, \"two\", 3] # end", `map[a:-5 b:x"y\ c:[1 two 3]]`}, {"f = 1.5\n#c\n", "map[f:1.5]"},
		{"e = []", "map[e:[]]"}, {"", "map[]"},
	} {
		n, err := parseLVM([]byte(c.text))
		if err != nil || fmt.Sprint(n.values) != c.want {
			t.Errorf("%q: %v, %v", c.text, n, err)
		}
	}
	for _, bad := range []string{"a", "a {", "a = ", "a = \"x", "a = [1", "}", "a = [[1]]", "= 1", "a { b = 1", strings.Repeat("a {", 100), "a = \"x\ny\""} {
		if n, err := parseLVM([]byte(bad)); err == nil {
			t.Errorf("%q was parsed: %v", bad, n.values)
		}
	}
}

// lvmDisk is a physical volume with this text.
func lvmDisk(text string) []byte {
	b := make([]byte, 64<<10)
	l := b[512:]
	copy(l, lvmLabel)
	le.PutUint64(l[8:], 1)
	le.PutUint32(l[20:], 32)
	copy(l[24:], lvmType)
	h := l[32:]
	copy(h, "0123456789abcdefghijklmnopqrstuv")
	le.PutUint64(h[32:], uint64(len(b)))
	le.PutUint64(h[40:], 32<<10) // data
	le.PutUint64(h[72:], 4096)   // metadata
	le.PutUint64(h[80:], 28<<10)
	le.PutUint32(l[16:], lvmCRC(l[20:512]))
	m := b[4096:]
	copy(m[4:], mdaMagic)
	le.PutUint32(m[20:], 1)
	le.PutUint64(m[24:], 4096)
	le.PutUint64(m[32:], 28<<10)
	le.PutUint64(m[40:], 512)
	le.PutUint64(m[48:], uint64(len(text)))
	le.PutUint32(m[56:], lvmCRC([]byte(text)))
	copy(m[512:], text)
	le.PutUint32(m, lvmCRC(m[4:512]))
	return b
}

const lvmSample = `vg { id = "g" seqno = 3 extent_size = 8 status = ["READ"]
physical_volumes { pv0 { id = "012345-6789-abcd-efgh-ijkl-mnop-qrstuv" pe_start = 64 pe_count = 8 } }
logical_volumes {
one { id = "1" status = ["READ", "VISIBLE"] segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv0", 1] } }
LV
} }
`

func TestLVMHostile(t *testing.T) {
	for _, c := range []struct{ name, lv, problem string }{
		{"fine", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 1 type = "zero" } }`, ""},
		{"loop", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 1 type = "striped" stripes = ["two", 0] } }`, "made of itself"},
		{"longer loop", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 1 type = "striped" stripes = ["three", 0] } }
			three { segment1 { start_extent = 0 extent_count = 1 type = "striped" stripes = ["two", 0] } }`, "made of itself"},
		{"unknown type", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 1 type = "vdo" } }`, `type "vdo": unsupported`},
		{"unknown volume", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 1 type = "striped" stripes = ["pv9", 0] } }`, "unknown volume pv9"},
		{"past the end", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 1 type = "striped" stripes = ["pv0", 99999] } }`, "ends before extent"},
		{"huge", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 9007199254740992 type = "striped" stripes = ["pv0", 1] } }`, "extents of two"},
		{"huge start", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 1 type = "striped" stripes = ["pv0", 9007199254740992] } }`, "extent"},
		{"negative", `two { status = ["VISIBLE"] segment1 { start_extent = -1 extent_count = -1 type = "striped" stripes = ["pv0", -1] } }`, "list of volumes"},
		{"hole", `two { status = ["VISIBLE"] segment1 { start_extent = 5 extent_count = 1 type = "striped" stripes = ["pv0", 1] } }`, "no segment covers"},
		{"overlap", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 2 type = "zero" } segment2 { start_extent = 1 extent_count = 2 type = "zero" } }`, "extents of two"},
		{"no stripes", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 1 type = "striped" stripe_count = 2 stripes = [] } }`, "number of stripes"},
		{"no stripe size", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 2 stripes = ["pv0", 0, "pv0", 1] } }`, "stripe size"},
		{"no extents", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 0 type = "mirror" mirrors = ["pv0", 0, "pv0", 1] } }`, "without extents"},
		{"no pool", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 1 type = "thin" thin_pool = "one" device_id = 1 } }`, "not a thin pool"},
		{"raid of nothing", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 1 type = "raid5" stripe_size = 8 raids = ["a", "b"] } }`, "number of legs"},
		{"snapshot of nothing", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 1 type = "zero" } }
			snapshot0 { segment1 { type = "snapshot" origin = "none" cow_store = "two" chunk_size = 8 } status = ["VISIBLE"] }`, "origin of snapshot two"},
		{"bad name", `"../x" { }`, "no name"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := memory(lvmDisk(strings.Replace(lvmSample, "LV", c.lv, 1)))
			vols := scan(t, d, Options{})
			_, problems := said(vols)
			if !strings.Contains(problems, c.problem) || c.problem == "" && problems != "" {
				t.Errorf("problems %q, want %q", problems, c.problem)
			}
			if c.name == "bad name" {
				return
			}
			v := find(t, vols, "vg/one")
			if v.Start != 32<<10+4096 || v.Size != 8192 || v.Image != 0 {
				t.Errorf("one: %+v", v)
			}
			for _, v := range vols {
				v.Disk.ReadAt(make([]byte, 4096), 0)
			}
		})
	}
}

// TestLVMDepth builds volumes of volumes, and many stretches of many.
func TestLVMDepth(t *testing.T) {
	var s strings.Builder
	for i := range 100 {
		fmt.Fprintf(&s, "v%d { status = [\"VISIBLE\"] segment1 { start_extent = 0 extent_count = 1 type = \"striped\" stripes = [\"v%d\", 0] } }\n", i, i+1)
	}
	vols := scan(t, memory(lvmDisk(strings.Replace(lvmSample, "LV", s.String(), 1))), Options{})
	if _, problems := said(vols); !strings.Contains(problems, "volumes made of volumes") {
		t.Errorf("problems %.300q", problems)
	}
	s.Reset()
	size := 1
	for i := range 4 {
		fmt.Fprintf(&s, "w%d {", i)
		if i == 3 {
			s.WriteString(" status = [\"VISIBLE\"]")
		}
		below := fmt.Sprintf("w%d", i-1)
		if i == 0 {
			below = "pv0"
		}
		for j := range 50 {
			fmt.Fprintf(&s, " segment%d { start_extent = %d extent_count = %d type = \"striped\" stripes = [\"%s\", 0] }", j, j*size, size, below)
		}
		size *= 50
		s.WriteString(" }\n")
	}
	disk := lvmDisk(strings.Replace(lvmSample, "LV", s.String(), 1))
	vols = scan(t, memory(disk), Options{})
	if _, problems := said(vols); !strings.Contains(problems, "stretches of w2") {
		t.Errorf("problems %.300q", problems)
	}
}

func FuzzLVM(f *testing.F) {
	f.Add([]byte(strings.Replace(lvmSample, "LV", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 2 type = "raid1" raids = ["a", "one"] } }`, 1)))
	f.Add([]byte(strings.Replace(lvmSample, "LV", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 2 stripe_size = 4 stripes = ["pv0", 0, "one", 1] } }`, 1)))
	f.Add([]byte(strings.Replace(lvmSample, "LV", `two { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 2 type = "thin-pool" metadata = "one" pool = "one" chunk_size = 128 } } t { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 9 type = "thin" thin_pool = "two" device_id = 1 } } snapshot1 { segment1 { type = "snapshot" origin = "one" cow_store = "two" } }`, 1)))
	f.Fuzz(func(t *testing.T, text []byte) {
		if len(text) > 20<<10 {
			return
		}
		vols, err := Scan([]*formats.Image{image("web1", memory(lvmDisk(string(text))))}, Options{})
		if err != nil {
			t.Fatal(err)
		}
		checkVolumes(t, vols)
		for _, v := range vols {
			walkExtents(t, v.Disk)
		}
	})
}

// walkExtents goes through a volume's extents and checks what every mapper owes.
func walkExtents(t testing.TB, d formats.Disk) {
	t.Helper()
	for off, n := int64(0), 0; off < d.Size() && n < 200; n++ {
		e, err := d.ExtentAt(off, d.Size()-off)
		if e.Len <= 0 || e.Len > d.Size()-off || err != nil && e.Kind != formats.Missing {
			t.Fatalf("extent at %d of %d: %+v, %v", off, d.Size(), e, err)
		}
		if e.Kind == formats.Packed && (e.Skip < 0 || e.Skip+e.Len > e.Pack.Full) {
			t.Fatalf("extent at %d: %+v of %+v", off, e, e.Pack)
		}
		off += e.Len
	}
}

// TestLVMDamaged damages the text that counts: an older generation in the ring is used, and said so.
func TestLVMDamaged(t *testing.T) {
	images := stored(t, "lvm", "plain")
	b := make([]byte, images[0].Size())
	if _, err := images[0].ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	p, err := readPV(memory(b))
	if err != nil || p.group == nil {
		t.Fatal(err)
	}
	seqno := p.group.seqno
	i := strings.LastIndex(string(b[:1<<20]), fmt.Sprintf("seqno = %d\n", seqno))
	if i < 0 {
		t.Fatal("the text is not where it was looked for")
	}
	b[i+len("seqno = ")]++
	p, err = readPV(memory(b))
	if err != nil || p.group == nil || p.group.seqno >= seqno || len(p.problems) != 1 || !strings.Contains(p.problems[0].Error(), "older generation") {
		t.Fatalf("%v, %+v", err, p)
	}
	// Another disk has the newest text: nothing is lost.
	damaged := slices.Clone(images)
	damaged[0] = numbered("m0", 0, memory(b))
	vols := scanAll(t, damaged, Options{})
	for _, c := range lvCases(t)["plain"] {
		c.compare(t, vols)
	}
	if _, problems := said(vols); !strings.Contains(problems, "lvm2 metadata: checksum") {
		t.Errorf("problems %q", problems)
	}
}
