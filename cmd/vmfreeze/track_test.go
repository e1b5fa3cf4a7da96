package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fsmap/mapfile"
)

// track freezes with --track, writes a pattern while the machine is frozen, and gives what changed on vda.
func (l *lab) track(pattern int) mapfile.Changed {
	l.t.Helper()
	r := l.start("", "--track", l.target())
	vms, _ := r.records()
	if len(vms) != 1 || len(vms[0].Changed) != 2 {
		l.t.Fatalf("%+v %s", vms, r.stderr.String())
	}
	l.write(pattern)
	if status := r.done(); status != 0 {
		l.t.Fatalf("status %d: %s", status, r.stderr.String())
	}
	l.sound()
	raw := vms[0].Changed[1]
	if raw.Disk != "vdb" || raw.State != "lost" || !strings.Contains(raw.Reason, "raw images keep no bitmaps") {
		l.t.Errorf("%+v", raw)
	}
	return vms[0].Changed[0]
}

// wrote gives the ranges of patterns that were written.
func wrote(patterns ...int) (ranges [][2]int64) {
	for _, p := range patterns {
		ranges = append(ranges, [2]int64{int64(p) << 16, 1 << 16})
	}
	return ranges
}

func (l *lab) tracked(point string) (status int, stderr string) {
	r := l.start("", "--tracked", point, l.target())
	return r.wait2(), r.stderr.String()
}

func TestTrack(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.write(1)
	first := l.track(3)
	if first.Disk != "vda" || first.State != "first" || first.Point == "" || first.Ranges != nil {
		t.Fatalf("%+v", first)
	}
	l.write(5)
	second := l.track(7)
	if second.State != "complete" || second.Since != first.Point || second.Granularity != 1<<16 || !slices.Equal(second.Ranges, wrote(3, 5)) {
		t.Fatalf("%+v", second)
	}
	// No backup said that it has the second point: nothing was forgotten.
	l.write(9)
	third := l.track(11)
	if third.Since != first.Point || !slices.Equal(third.Ranges, wrote(3, 5, 7, 9)) {
		t.Fatalf("%+v", third)
	}
	if status, stderr := l.tracked("20200101T000000.000000000Z"); status != 4 || !strings.Contains(stderr, "nothing was forgotten") {
		t.Errorf("status %d: %s", status, stderr)
	}
	if status, stderr := l.tracked(third.Point); status != 0 {
		t.Errorf("status %d: %s", status, stderr)
	}
	fourth := l.track(13)
	if fourth.Since != third.Point || !slices.Equal(fourth.Ranges, wrote(11)) {
		t.Fatalf("%+v", fourth)
	}
	// More points than a disk keeps bitmaps: the oldest become one, and stay what was written since the first of them.
	l.tracked(fourth.Point)
	want := []int{13}
	for p := 15; p < 15+2*10; p += 2 {
		got := l.track(p)
		if got.Since != fourth.Point || got.State != "complete" || !slices.Equal(got.Ranges, wrote(want...)) {
			t.Fatalf("%+v, want %v", got, want)
		}
		want = append(want, p)
	}
	// They are kept over an ordinary end.
	l.Quit()
	if n := strings.Count(qemutest.Img(t, l.Dir, "info", "top.qcow2"), "name: vmkit-"); n != 8 {
		t.Errorf("%d bitmaps", n)
	}
	l.again(labDrives...)
	got := l.track(1)
	if got.State != "complete" || !slices.Equal(got.Ranges, wrote(want...)) {
		t.Fatalf("%+v, want %v", got, want)
	}
	// QEMU dies: what was in its memory is lost, and that is said. From then on all is well again.
	l.Kill()
	l.again(labDrives...)
	if got := l.track(2); got.State != "lost" || !strings.Contains(got.Reason, "not stored") || got.Point == "" || got.Ranges != nil {
		t.Fatalf("%+v", got)
	}
	if got := l.track(4); got.State != "complete" || !slices.Equal(got.Ranges, wrote(2)) {
		t.Fatalf("%+v", got)
	}
	l.end(append(want, 1, 2, 4)...)
}

// TestTrackOffline: QEMU dies while overlays are active. The bitmaps are in the disks' files by then, and what a
// recovery puts back is marked in them.
func TestTrackOffline(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	first := l.track(1)
	r := l.start("did snapshot,guard takes over", "--track", l.target())
	r.records()
	r.wait()
	l.write(3)
	l.Kill()
	if status, _, stderr := l.recovers(""); status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	l.again(labDrives...)
	if got := l.track(5); got.State != "complete" || got.Since != first.Point || !slices.Equal(got.Ranges, wrote(1, 3)) {
		t.Fatalf("%+v", got)
	}
	l.end(1, 3, 5)
}

func TestTrackRefused(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	r := l.start("", append(stopped, "--track", l.target())...)
	if status := r.wait2(); status != 4 || !strings.Contains(r.stderr.String(), "mode snapshot only") {
		t.Errorf("status %d: %s", status, r.stderr.String())
	}
	dir := memoryDir(t)
	old := &lab{t: t, journal: memoryDir(t), name: "old-" + filepath.Base(dir)}
	qemutest.Img(t, dir, "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "64M")
	old.QEMU = qemutest.Start(t, dir, old.name, "-drive", "if=none,id=vda,file=old.qcow2,format=qcow2")
	r = old.start("", "--track", old.target())
	vms, _ := r.records()
	if len(vms) != 1 || vms[0].Changed[0].State != "lost" || !strings.Contains(vms[0].Changed[0].Reason, "compat") {
		t.Errorf("%+v %s", vms, r.stderr.String())
	}
	if r.done() != 0 {
		t.Error(r.stderr.String())
	}
}
