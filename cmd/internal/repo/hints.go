package repo

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"

	"vmkit/cmd/internal/live"
	"vmkit/formats"
	"vmkit/fsmap/mapfile"
)

// Sources of changes, as a point names them.
const (
	changesFull    = "full"
	changesRanges  = "ranges"
	changesTracked = "tracked"
	changesBitmap  = "bitmap"
	changesFiemap  = "fiemap"
	changesReread  = "reread"
	changesTimes   = "times" // of a host's files
)

// changes gives what is known of the changes of disk n since the parent, from the first source that there is, and the
// source's name. A file of ranges, which somebody gave for this run, comes first; then what the hypervisor tracked; then
// what this host can find out.
func (b *maker) changes(n int) (*ranges, string) {
	d := &b.p.Disks[n]
	hint := newRanges(d.Size, d.Cluster)
	mark := func(off, n int64) bool {
		hint.outer(off, n, true)
		return true
	}
	if b.Ranges != nil && b.Ranges.mark(d.Name, len(b.p.Disks) == 1, mark) {
		return hint, changesRanges
	}
	since := b.trackedSince(d.Name)
	if b.tracked(d.Name, since, mark) {
		return hint, changesTracked
	}
	if ok, err := b.bitmaps(n, since, mark); ok {
		return hint, changesBitmap
	} else if err != nil {
		b.Warn("%s: %s: the bitmaps can't be used: %v", b.m.Name, d.Name, err)
		hint = newRanges(d.Size, d.Cluster)
	}
	if ok, err := b.clones(n, mark); ok {
		return hint, changesFiemap
	} else if err != nil {
		b.Warn("%s: %s: the clone before can't be compared: %v", b.m.Name, d.Name, err)
	}
	return nil, changesReread
}

// trackedSince gives the hypervisor's name for the instant of the parent point, where it tracks the disk since then.
func (b *maker) trackedSince(disk string) string {
	last := b.chain[len(b.chain)-1]
	var c mapfile.Clone
	var vm mapfile.VM
	if json.Unmarshal(last.Clone, &c) != nil || json.Unmarshal(c.Of, &vm) != nil {
		return ""
	}
	for _, x := range vm.Changed {
		if x.Disk == disk {
			return x.Point
		}
	}
	return ""
}

// tracked marks what the vm record names.
func (b *maker) tracked(disk, since string, mark func(off, n int64) bool) bool {
	if b.m.VM == nil || since == "" {
		return false
	}
	for _, x := range b.m.VM.Changed {
		if x.Disk == disk && x.State == "complete" && x.Since == since {
			for _, r := range x.Ranges {
				mark(r[0], r[1])
			}
			return true
		}
	}
	return false
}

// bitmapPrefix begins the names of the persistent bitmaps of tracked points: vmkit-POINT marks what was written from that
// point on until the next one began.
const bitmapPrefix = "vmkit-"

// bitmaps marks what consistent persistent bitmaps of the image do: those from the parent's point on, or the one that was
// asked for.
func (b *maker) bitmaps(n int, since string, mark func(off, n int64) bool) (bool, error) {
	img := b.m.Images[n]
	found := false
	for _, x := range img.Bitmaps {
		named := b.Bitmap != "" && x.Name == b.Bitmap
		if !named && (b.Bitmap != "" || since == "" || !strings.HasPrefix(x.Name, bitmapPrefix) || x.Name < bitmapPrefix+since) {
			continue
		}
		if x.InUse {
			return false, fmt.Errorf("%s was not stored when the image was last closed", x.Name)
		}
		if err := x.Marked(mark); err != nil {
			return false, err
		}
		found = found || named || x.Name == bitmapPrefix+since
	}
	if !found && b.Bitmap != "" {
		return false, fmt.Errorf("there is none called %s", b.Bitmap)
	}
	return found, nil
}

// clones compares where the kernel says that the host files of the parent's clone and of this one lie: on a file system
// that shares blocks, what lies in the same place is the same.
func (b *maker) clones(n int, mark func(off, n int64) bool) (bool, error) {
	last := b.chain[len(b.chain)-1].Disks[n].Source
	img := b.m.Images[n]
	if b.m.Open == nil || len(last) != len(img.Files) || len(last) == 0 {
		return false, nil
	}
	changed := make([][][2]int64, len(last)) // by file
	for i, f := range img.Files {
		ok, list, err := sameBlocks(&last[i], f)
		if !ok || err != nil {
			return false, err
		}
		changed[i] = list
	}
	old, done, err := b.m.Open(last[0].Path)
	if err != nil {
		return false, err
	}
	defer done()
	if old.Size() != img.Size() {
		return false, nil
	}
	return true, compareLayouts(old, img, changed, mark)
}

// sameBlocks tells whether the file that was read for the parent is still there, beside the new one, and gives the
// stretches in which they don't share blocks.
func sameBlocks(was *SourceFile, is *formats.File) (ok bool, changed [][2]int64, err error) {
	a, err := os.Open(was.Path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil, nil
	}
	if err != nil {
		return false, nil, err
	}
	defer a.Close()
	b, err := os.Open(is.Path)
	if err != nil {
		return false, nil, err
	}
	defer b.Close()
	sa, err := a.Stat()
	if err != nil {
		return false, nil, err
	}
	sb, err := b.Stat()
	if err != nil {
		return false, nil, err
	}
	ua, ok1 := sa.Sys().(*syscall.Stat_t)
	ub, ok2 := sb.Sys().(*syscall.Stat_t)
	switch {
	case !ok1 || !ok2 || ua.Dev != ub.Dev || ua.Ino == ub.Ino || !sa.Mode().IsRegular() || !sb.Mode().IsRegular():
		return false, nil, nil
	case sa.Size() != was.Size || !sa.ModTime().Equal(was.MTime): // it is no longer what was backed up
		return false, nil, nil
	}
	pa, err := placesOf(a, sa.Size())
	if err != nil {
		return false, nil, notSupported(err)
	}
	pb, err := placesOf(b, sb.Size())
	if err != nil {
		return false, nil, notSupported(err)
	}
	shared := false
	changed = differences(pa, pb, max(sa.Size(), sb.Size()), &shared)
	// Where no block is shared, the file system doesn't, or the clone is a copy.
	return shared, changed, nil
}

// notSupported lets a file system pass that can't tell.
func notSupported(err error) error {
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOTTY) {
		return nil
	}
	return err
}

// maxPlaces bounds the extents of one host file that are compared.
const maxPlaces = 4 << 20

func placesOf(f *os.File, size int64) (list []live.Extent, err error) {
	err = live.Extents(int(f.Fd()), size, func(x live.Extent) bool {
		list = append(list, x)
		return len(list) <= maxPlaces
	})
	if err == nil && len(list) > maxPlaces {
		err = fmt.Errorf("%s has more than %d extents", f.Name(), maxPlaces)
	}
	return list, err
}

// differences gives the stretches of two files that don't lie in the same place; shared becomes true where some do.
func differences(a, b []live.Extent, size int64, shared *bool) (list [][2]int64) {
	for at := int64(0); at < size; {
		x, end := placeAt(&a, at, size)
		y, end2 := placeAt(&b, at, size)
		end = min(end, end2)
		switch {
		case x == nil && y == nil:
		case x != nil && y != nil && !x.NoPlace && !y.NoPlace && x.Unwritten == y.Unwritten && x.Place-x.At == y.Place-y.At:
			*shared = true
		case len(list) > 0 && list[len(list)-1][1] == at:
			list[len(list)-1][1] = end
		default:
			list = append(list, [2]int64{at, end})
		}
		at = end
	}
	return list
}

// placeAt gives the extent that holds at, or nil for a hole, and where it ends. at only grows.
func placeAt(list *[]live.Extent, at, size int64) (*live.Extent, int64) {
	for len(*list) > 0 && (*list)[0].At+(*list)[0].Len <= at {
		*list = (*list)[1:]
	}
	if len(*list) == 0 {
		return nil, size
	}
	x := &(*list)[0]
	if x.At > at {
		return nil, min(x.At, size)
	}
	return x, min(x.At+x.Len, size)
}

// compareLayouts marks what two states of a disk don't hold in the same way at the same place of the same file, or in a
// part of one that changed.
func compareLayouts(old, now *formats.Image, changed [][][2]int64, mark func(off, n int64) bool) error {
	for off, size := int64(0), now.Size(); off < size; {
		x, err := old.ExtentAt(off, size-off)
		if err != nil {
			return err
		}
		y, err := now.ExtentAt(off, x.Len)
		if err != nil {
			return err
		}
		switch {
		case x.Kind == formats.Zero && y.Kind == formats.Zero:
		case x.Kind == formats.Data && y.Kind == formats.Data && x.Off == y.Off && fileOf(old, x.File) == fileOf(now, y.File):
			hit(changed[fileOf(now, y.File)], y.Off, y.Len, func(at, n int64) { mark(off+at-y.Off, n) })
		case samePacked(old, now, &x, &y):
			part := &y.Pack.Parts[0]
			hit(changed[fileOf(now, part.File)], part.Off, part.Len, func(int64, int64) { mark(off, y.Len) })
		default:
			mark(off, y.Len)
		}
		off += y.Len
	}
	return nil
}

func fileOf(img *formats.Image, f *formats.File) int {
	return slices.IndexFunc(img.Files, func(x *formats.File) bool { return x == f })
}

// samePacked tells whether two compressed extents are decoded from the same place.
func samePacked(old, now *formats.Image, x, y *formats.Extent) bool {
	if x.Kind != formats.Packed || y.Kind != formats.Packed || x.Skip != y.Skip || x.Pack.Codec != y.Pack.Codec ||
		len(x.Pack.Parts) != 1 || len(y.Pack.Parts) != 1 {
		return false
	}
	p, q := &x.Pack.Parts[0], &y.Pack.Parts[0]
	return p.Kind == formats.Data && q.Kind == formats.Data && p.Off == q.Off && p.Len == q.Len && fileOf(old, p.File) == fileOf(now, q.File)
}

// hit calls do with the parts of a stretch that a sorted list of stretches touches.
func hit(list [][2]int64, off, n int64, do func(off, n int64)) {
	i, _ := slices.BinarySearchFunc(list, off, func(r [2]int64, at int64) int {
		if r[1] <= at {
			return -1
		}
		return 1
	})
	for ; i < len(list) && list[i][0] < off+n; i++ {
		a, b := max(list[i][0], off), min(list[i][1], off+n)
		do(a, b-a)
	}
}

// ChangedRanges are stretches of disks that somebody says to have changed since the point before.
type ChangedRanges struct {
	disks map[string][][2]int64 // by the disk's name; "" for the only one
}

// mark marks those of a disk; false where nothing is told of it.
func (c *ChangedRanges) mark(disk string, only bool, mark func(off, n int64) bool) bool {
	list, ok := c.disks[disk]
	if !ok && only {
		list, ok = c.disks[""]
	}
	for _, r := range list {
		mark(r[0], r[1])
	}
	return ok
}

// Named tells whether the ranges say which disks they are of.
func (c *ChangedRanges) Named() bool { _, ok := c.disks[""]; return !ok }

// ReadRanges reads changed ranges: records of type "changed", as a vm record has them too, or one of two JSON arrays: that
// of `qemu-img map --output=json`, of which what the top layer holds counts, or that of `nbdinfo --map --json` of a dirty
// bitmap.
func ReadRanges(r io.Reader) (*ChangedRanges, error) {
	c := &ChangedRanges{disks: map[string][][2]int64{}}
	for d := json.NewDecoder(r); ; {
		var raw json.RawMessage
		if err := d.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
		var err error
		if raw[0] == '[' {
			err = c.array(raw)
		} else {
			err = c.record(raw)
		}
		if err != nil {
			return nil, err
		}
	}
	if len(c.disks) == 0 {
		return nil, errors.New("it has no changed ranges: neither records of type \"changed\" nor an array")
	}
	for _, list := range c.disks {
		for _, r := range list {
			if r[0] < 0 || r[1] < 0 || r[0] > 1<<62 || r[1] > 1<<62 {
				return nil, fmt.Errorf("a range of %d bytes at %d", r[1], r[0])
			}
		}
	}
	return c, nil
}

func (c *ChangedRanges) record(raw json.RawMessage) error {
	var x struct {
		Type string `json:"type"`
		mapfile.Changed
		VM []mapfile.Changed `json:"changed"`
	}
	if err := json.Unmarshal(raw, &x); err != nil {
		return err
	}
	list := x.VM
	if x.Type == "changed" {
		list = append(list, x.Changed)
	}
	for _, y := range list {
		if y.State == "" || y.State == "complete" {
			c.disks[y.Disk] = append(c.disks[y.Disk], y.Ranges...)
		}
	}
	return nil
}

func (c *ChangedRanges) array(raw json.RawMessage) error {
	var list []struct {
		Start, Offset *int64 // of qemu-img, of nbdinfo
		Length        int64
		Depth         int
		Present       *bool
		Data, Zero    bool
		Type          *int
		Description   string
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return err
	}
	out := c.disks[""]
	for i, x := range list {
		switch {
		case x.Start != nil:
			if x.Depth == 0 && (x.Present == nil && (x.Data || x.Zero) || x.Present != nil && *x.Present) {
				out = append(out, [2]int64{*x.Start, x.Length})
			}
		case x.Offset != nil && x.Type != nil:
			if *x.Type&1 != 0 {
				out = append(out, [2]int64{*x.Offset, x.Length})
			}
		default:
			return fmt.Errorf("entry %d has neither \"start\", as qemu-img map writes, nor \"offset\" and \"type\", as nbdinfo does", i)
		}
	}
	c.disks[""] = append(out, [2]int64{})
	return nil
}
