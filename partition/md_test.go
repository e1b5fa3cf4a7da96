package partition

import (
	"crypto/sha256"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmkit/fixtures"
	"vmkit/formats"
)

// stored unpacks a case of several disks and opens them in order.
func stored(t testing.TB, set, name string) []*formats.Image {
	t.Helper()
	first := fixtures.Image(t, set, name+".tar.zst")
	paths, err := filepath.Glob(filepath.Join(filepath.Dir(first), "m*.img"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s/%s: no disks", set, name)
	}
	slices.Sort(paths)
	var images []*formats.Image
	for i, p := range paths {
		images = append(images, numbered(strings.TrimSuffix(filepath.Base(p), ".img"), i, file(t, p)))
	}
	return images
}

func numbered(name string, n int, d formats.Disk) *formats.Image {
	img := image(name, formats.Numbered(d, n))
	img.Number = n
	return img
}

func scanAll(t testing.TB, images []*formats.Image, o Options) []Volume {
	t.Helper()
	vols, err := Scan(images, o)
	if err != nil {
		t.Fatal(err)
	}
	checkVolumes(t, vols)
	return vols
}

// sha reads n bytes of a volume at off, by ReadAt.
func sha(d formats.Disk, off, n int64) (string, error) {
	h := sha256.New()
	m, err := io.CopyBuffer(h, io.NewSectionReader(d, off, n), make([]byte, 100_000))
	if err == nil && m != n {
		err = fmt.Errorf("%d bytes of %d", m, n)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

// mdCase is a line of what the guest's kernel read.
type mdCase struct {
	name string
	size int64
	sha  string
	what string
}

func mdCases(t testing.TB) []mdCase {
	var cases []mdCase
	for _, line := range fixtures.Expect(t, "md", "expect") {
		f := strings.SplitN(line, " ", 4)
		size, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		cases = append(cases, mdCase{f[0], size, f[2], f[3]})
	}
	return cases
}

func TestMD(t *testing.T) {
	for _, c := range mdCases(t) {
		t.Run(c.name, func(t *testing.T) {
			images := stored(t, "md", c.name)
			vols := scanAll(t, images, Options{})
			md := onlyMD(t, vols)
			compareMD(t, md, c)
			if len(md.Problems) > 0 {
				t.Errorf("problems %v", md.Problems)
			}
			level := md.Type
			if level == "raid0" || level == "linear" {
				md := onlyOrNone(scanAll(t, images[1:], Options{}))
				if md != nil {
					t.Errorf("%s without a member is listed as %s", level, md.Name)
				}
				return
			}
			if note := map[string]string{"stale": "degraded: members missing: [0]", "badblocks": "member 0 has bad blocks", "rebuild": "member 1 is rebuilt up to"}[c.name]; note != "" {
				if !strings.Contains(strings.Join(md.Notes, ";"), note) {
					t.Errorf("notes %q, want %q", md.Notes, note)
				}
				return
			}
			for lost := range images {
				left := slices.Delete(slices.Clone(images), lost, lost+1)
				md := onlyMD(t, scanAll(t, left, Options{}))
				compareMD(t, md, c)
				if !strings.Contains(strings.Join(md.Notes, ";"), "degraded") {
					t.Errorf("without member %d: notes %q", lost, md.Notes)
				}
			}
		})
	}
}

func onlyOrNone(vols []Volume) *Volume {
	for i := range vols {
		if vols[i].Kind == KindMD {
			return &vols[i]
		}
	}
	return nil
}

func onlyMD(t testing.TB, vols []Volume) *Volume {
	t.Helper()
	md := onlyOrNone(vols)
	if md == nil {
		_, problems := said(vols)
		t.Fatalf("no array among %v: %s", volumeNames(vols), problems)
	}
	return md
}

func compareMD(t testing.TB, md *Volume, c mdCase) {
	t.Helper()
	if md.Size != c.size {
		t.Errorf("%s has %d bytes, the kernel says %d", md.Name, md.Size, c.size)
		return
	}
	got, err := sha(md.Disk, 0, md.Size)
	if err != nil || got != c.sha {
		t.Errorf("%s reads as %s (%v), the kernel says %s", md.Name, got, err, c.sha)
	}
}

// TestMDNested finds the partitions in a mirror, not in its members.
func TestMDNested(t *testing.T) {
	images := stored(t, "md", "partitioned")
	vols := scanAll(t, images, Options{})
	for name, want := range map[string][2]int64{"md127/p1": {64, 2048}, "md127/p2": {2112, 1024}} {
		v := find(t, vols, name)
		if v.Size != want[1]*512 || v.Segments[0].Starts[0] != want[0]*512 || vols[v.In].Name != "md127" {
			t.Errorf("%+v", v)
		}
	}
	for _, v := range vols {
		if v.Kind == KindPartition && v.Image >= 0 {
			t.Errorf("%s is listed on a member", v.Name)
		}
	}
}

// TestMDTwice takes an array and its clone together.
func TestMDTwice(t *testing.T) {
	images := append(stored(t, "md", "raid5-1.2"), stored(t, "md", "raid5-1.2")...)
	for i := range images {
		images[i] = numbered(images[i].Name, i, images[i].Disk)
	}
	vols := scanAll(t, images, Options{})
	for _, c := range mdCases(t) {
		if c.name != "raid5-1.2" {
			continue
		}
		for _, name := range []string{"md127", "md126"} {
			v := find(t, vols, name)
			compareMD(t, &v, c)
		}
	}
}

// TestMDTwoLost takes every two members of a RAID 6 away: every layout is as the kernel read it whole.
func TestMDTwoLost(t *testing.T) {
	for _, c := range mdCases(t) {
		if !strings.HasPrefix(c.name, "raid6") {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			images := stored(t, "md", c.name)
			for a := range images {
				for b := range a {
					left := slices.Delete(slices.Delete(slices.Clone(images), a, a+1), b, b+1)
					compareMD(t, onlyMD(t, scanAll(t, left, Options{})), c)
				}
			}
			if a := onlyMD(t, scanAll(t, images[:2], Options{})); len(a.Problems) == 0 {
				t.Error("two of five members are not enough, and nothing is said")
			}
		})
	}
}

func FuzzMD(f *testing.F) {
	for _, name := range []string{"raid5-1.2", "raid10-o2-3", "raid1-0.90", "raid0-original"} {
		images := stored(f, "md", name)
		b := make([]byte, 16<<10)
		m := readMD(&view{r: images[0], size: images[0].Size()})
		if _, err := images[0].ReadAt(b[4096:8192], m.at); err != nil {
			f.Fatal(err)
		}
		f.Add(b[4096:8192])
	}
	f.Fuzz(func(t *testing.T, super []byte) {
		if len(super) < 512 || len(super) > 4096 {
			return
		}
		// Two members: as given, and in the other role; checksums and positions made right.
		var images []*formats.Image
		for i := range 2 {
			b := make([]byte, 256<<10)
			s := b[4096:8192]
			if le.Uint32(super[4:]) != 1 {
				s = b[len(b)-64<<10:][:4096]
			}
			copy(s, super)
			fixMD(s, i)
			images = append(images, numbered("m", i, memory(b)))
		}
		vols, err := Scan(images, Options{})
		if err != nil {
			t.Fatal(err)
		}
		checkVolumes(t, vols)
		for _, v := range vols {
			walkExtents(t, v.Disk)
		}
	})
}

// fixMD makes a superblock's checksum right, and its role i.
func fixMD(s []byte, i int) {
	if le.Uint32(s[4:]) == 1 {
		le.PutUint64(s[144:], 8)
		le.PutUint32(s[160:], uint32(i))
		n := le.Uint32(s[220:])
		if n > mdMaxDev {
			return
		}
		le.PutUint32(s[216:], md1Checksum(s[:md1Len+2*n]))
		return
	}
	le.PutUint32(s[992*4+12:], uint32(i))
	var sum uint64
	le.PutUint32(s[38*4:], 0)
	for j := 0; j < len(s); j += 4 {
		sum += uint64(le.Uint32(s[j:]))
	}
	le.PutUint32(s[38*4:], uint32(sum)+uint32(sum>>32))
}
