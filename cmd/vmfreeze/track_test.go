package main

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fsmap/mapfile"
)

// track freezes by a snapshot with --track, writes a pattern while the machine is frozen, and gives what changed on vda.
func (l *lab) track(pattern int) mapfile.Changed {
	l.t.Helper()
	return l.trackIn(pattern, "-m", "snapshot")
}

// trackIn does so in another mode; where the machine stands still, the pattern is written after it.
func (l *lab) trackIn(pattern int, mode ...string) mapfile.Changed {
	l.t.Helper()
	r := l.start("", append(mode, "--track", l.target())...)
	vms, _ := r.records()
	if len(vms) != 1 || len(vms[0].Changed) != 2 {
		l.t.Fatalf("%+v %s", vms, r.stderr.String())
	}
	runs := l.Status() == "running"
	if runs {
		l.write(pattern)
	}
	if status := r.done(); status != 0 {
		l.t.Fatalf("status %d: %s", status, r.stderr.String())
	}
	l.sound()
	if !runs {
		l.write(pattern)
	}
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

func TestTrackOld(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	old := &lab{t: t, journal: memoryDir(t), name: "old-" + filepath.Base(dir)}
	qemutest.Img(t, dir, "create", "-q", "-f", "qcow2", "-o", "compat=0.10", "old.qcow2", "64M")
	old.QEMU = qemutest.Start(t, dir, old.name, "-drive", "if=none,id=vda,file=old.qcow2,format=qcow2")
	r := old.start("", "--track", old.target())
	vms, _ := r.records()
	if len(vms) != 1 || vms[0].Changed[0].State != "lost" || !strings.Contains(vms[0].Changed[0].Reason, "compat") {
		t.Errorf("%+v %s", vms, r.stderr.String())
	}
	if r.done() != 0 {
		t.Error(r.stderr.String())
	}
}

// TestTrackStopped: bitmaps of a machine that stands still are read through QEMU.
func TestTrackStopped(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	suspended := append([]string{"-m", "suspend"}, stopped[2:]...)
	if got := l.trackIn(1, stopped...); got.State != "first" {
		t.Fatalf("%+v", got)
	}
	second := l.trackIn(3, suspended...)
	if second.State != "complete" || second.Granularity != 1<<16 || !slices.Equal(second.Ranges, wrote(1)) {
		t.Fatalf("%+v", second)
	}
	want := []int{1, 3}
	for p := 5; p < 25; p += 2 { // over the number of bitmaps that are kept
		if got := l.trackIn(p, stopped...); got.State != "complete" || !slices.Equal(got.Ranges, wrote(want...)) {
			t.Fatalf("%+v, want %v", got, want)
		}
		want = append(want, p)
	}
	if got := l.track(30); got.State != "complete" || !slices.Equal(got.Ranges, wrote(want...)) {
		t.Fatalf("by a snapshot: %+v, want %v", got, want)
	}
	// Another server runs: it is left alone, and what could not be read is not forgotten.
	server := map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]string{"path": "nbd"}}}
	l.Do("nbd-server-start", server)
	if got := l.trackIn(32, stopped...); got.State != "lost" || !strings.Contains(got.Reason, "already running") {
		t.Fatalf("%+v", got)
	}
	l.Do("nbd-server-stop", nil)
	if got := l.trackIn(34, stopped...); got.State != "complete" || !slices.Equal(got.Ranges, wrote(append(want, 30, 32)...)) {
		t.Fatalf("%+v", got)
	}
	// Killed in the middle of it.
	for _, place := range []string{"begun begin bitmaps", "exporting", "did begin bitmaps", "undo begin bitmaps"} {
		r := l.start(place, append(append([]string{}, stopped...), "--track", l.target())...)
		r.records()
		if r.done(); !strings.Contains(r.stderr.String(), "killed at") {
			t.Fatalf("%s was not reached: %s", place, r.stderr.String())
		}
		l.sound()
		l.Do("nbd-server-start", server) // nothing of ours is left
		l.Do("nbd-server-stop", nil)
	}
	if got := l.trackIn(36, stopped...); got.State != "complete" || !slices.Equal(got.Ranges, wrote(append(want, 30, 32, 34)...)) {
		t.Fatalf("%+v", got)
	}
	l.end(append(want, 30, 32, 34, 36)...)
}
