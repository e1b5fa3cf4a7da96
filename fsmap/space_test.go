package fsmap

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/partition"
)

// freer is a file system that says what is free of it.
type freer struct {
	FS
	list [][2]int64
}

func (f freer) Free(yield func(off, n int64) bool) error {
	s := Stretches{Yield: yield}
	for _, x := range f.list {
		s.Add(x[0], x[1])
	}
	s.End()
	return nil
}

// flat is a disk of zeros.
type flat int64

func (f flat) Size() int64                           { return int64(f) }
func (f flat) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }
func (f flat) ExtentAt(off, max int64) (formats.Extent, error) {
	return formats.Extent{Len: min(max, int64(f)-off, 3), Kind: formats.Zero, Disk: off}, nil
}

// TestSpace: what is free is what every volume that has it says so of.
func TestSpace(t *testing.T) {
	disk := flat(100)
	part := func(start, size int64, free ...[2]int64) *volume {
		d := formats.Section(disk, start, size)
		v := &volume{Volume: partition.Volume{Name: "p", Kind: partition.KindPartition, In: 0, Disk: d, Size: size}, disks: []formats.Disk{d}}
		v.rec.Journal = "clean"
		if free != nil {
			v.fs = freer{list: free}
		}
		return v
	}
	for _, tt := range []struct {
		name string
		vols []*volume
		edit func(vols []*volume)
		want string
	}{
		{"one", []*volume{part(10, 50, [2]int64{0, 5}, [2]int64{5, 5}, [2]int64{20, 10})}, nil, "10-20 30-40"},
		{"shared with one that needs all", []*volume{part(10, 50, [2]int64{0, 50}), part(30, 10)}, nil, "10-30 40-60"},
		{"shared with one that needs some", []*volume{part(10, 50, [2]int64{0, 50}), part(30, 10, [2]int64{2, 3})}, nil, "10-30 32-35 40-60"},
		{"journal that is not known", []*volume{part(10, 50, [2]int64{0, 50})}, func(v []*volume) { v[1].rec.Journal = "unreplayed" }, ""},
		{"journal ignored", []*volume{part(10, 50, [2]int64{0, 50})}, func(v []*volume) { v[1].rec.Journal = "ignored" }, ""},
		{"journal replayed", []*volume{part(10, 50, [2]int64{0, 50})}, func(v []*volume) { v[1].rec.Journal = "replayed" }, "10-60"},
		{"trouble", []*volume{part(10, 50, [2]int64{0, 50})}, func(v []*volume) { v[1].trouble = append(v[1].trouble, errors.New("x")) }, ""},
		{"of several volumes", []*volume{part(10, 50, [2]int64{0, 50})}, func(v []*volume) { v[1].disks = append(v[1].disks, disk) }, ""},
		{"RAID", []*volume{part(10, 50, [2]int64{0, 50})}, func(v []*volume) { v[1].Kind = partition.KindMD }, ""},
		{"thin", []*volume{part(10, 50, [2]int64{0, 50})}, func(v []*volume) { v[1].Segments = []partition.Segment{{Kind: "thin", Volumes: []int{0}}} }, ""},
		{"linear", []*volume{part(10, 50, [2]int64{0, 50})}, func(v []*volume) { v[1].Segments = []partition.Segment{{Kind: "linear", Volumes: []int{0}}} }, "10-60"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			whole := &volume{Volume: partition.Volume{Name: "disk", Kind: partition.KindDisk, In: -1, Disk: disk, Size: 100}}
			vols := append([]*volume{whole}, tt.vols...)
			if tt.edit != nil {
				tt.edit(vols)
			}
			var free [100]bool
			b := &builder{vols: vols, c: &Config{Space: func(_ int, off, n int64, is bool) {
				for i := off; i < off+n; i++ {
					free[i] = is
				}
			}}}
			var list []partition.Volume
			for _, v := range vols {
				list = append(list, v.Volume)
			}
			b.space(list, dividedOf(list))
			var got []string
			for i := 0; i < 100; i++ {
				if free[i] {
					end := i
					for end < 100 && free[end] {
						end++
					}
					got = append(got, fmt.Sprintf("%d-%d", i, end))
					i = end
				}
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("free is %q, not %q", s, tt.want)
			}
		})
	}
}

func TestStretches(t *testing.T) {
	var got [][2]int64
	s := Stretches{Yield: func(off, n int64) bool { got = append(got, [2]int64{off, n}); return len(got) < 3 }}
	s.Zeros([]byte{0xf0, 0xff, 0x00, 0xfe}, 25, 0, 2) // zeros: 0-3, 16-24
	s.Zeros([]byte{0xfe}, 4, 100, 2)                  // goes on at 100
	more := s.Zeros([]byte{0xfd}, 8, 200, 2) && s.End()
	if want := [][2]int64{{0, 16}, {64, 40}, {204, 4}}; !slices.Equal(got, want) || more {
		t.Errorf("%v, more %v", got, more)
	}
}
