package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/cmd/internal/repo"
	"vmkit/cmd/internal/repo/repotest"
	"vmkit/formats/formatstest"
)

// cloneRecord is what vmclone says of a clone of an image.
func cloneRecord(name, img, config, changed string) string {
	return fmt.Sprintf(`{"type":"clone","name":"%s-20261122T090000Z","folder":"/x","of":{"type":"vm","name":"%s","driver":"qmp","target":"qmp:/x",`+
		`"state_found":"running","quiesced":true,"frozen_at":"2026-11-22T09:00:00Z","files":[],"changed":[%s]},`+
		`"files":[{"path":%q,"role":"disk","disk":"vda","from":"/vm.img","method":"copy","size":1},{"path":%q,"role":"config","from":"/vm.xml","method":"copy","size":1}],"images":[%q]}`,
		name, name, changed, img, config, img) + "\n" + `{"type":"end","clones":1}` + "\n"
}

// TestTracked: clone records with tracked changes, which are believed where they begin at the point before.
func TestTracked(t *testing.T) {
	img, tree := ext4(t, "40M")
	dir := t.TempDir()
	repoDir, config := filepath.Join(dir, "repo"), filepath.Join(dir, "web1.xml")
	write(t, config, []byte("<domain/>"))
	from := func(changed string) *repo.Point {
		t.Helper()
		status, points, stderr := vmbackup(t, cloneRecord("web1", img, config, changed), "--repo", repoDir)
		if status != 0 || len(points) != 1 {
			t.Fatalf("status %d, %d points; %s", status, len(points), stderr)
		}
		return points[0]
	}
	first := from(`{"disk":"vda","state":"first","point":"A"}`)
	if first.Machine != "web1" || first.Name != "20261122T090000Z" || first.Disks[0].Name != "vda" || len(first.Config) != 1 || first.Config[0].Role != "config" {
		t.Errorf("%+v", first)
	}
	if b, err := os.ReadFile(filepath.Join(repoDir, "web1", first.Config[0].Name)); err != nil || string(b) != "<domain/>" {
		t.Errorf("%q, %v", b, err)
	}
	put(t, img, tree, "new", noise(1, 500_000))
	var list []string
	for _, at := range inner(t, img, "new") {
		list = append(list, fmt.Sprintf("[%d,65536]", at))
	}
	file := strings.Join(list, ",")
	for _, tt := range []struct{ changed, changes, fallback string }{
		// Metadata changed too, and a record that leaves it out is caught.
		{`{"disk":"vda","state":"complete","since":"A","point":"B","ranges":[` + file + `]}`, "reread", "tracked: what belongs to no file"},
		{`{"disk":"vda","state":"complete","since":"B","point":"C","ranges":[]}`, "tracked", ""},
		{`{"disk":"vda","state":"complete","since":"A","point":"D","ranges":[]}`, "reread", ""},
		{`{"disk":"vda","state":"lost","since":"D","point":"E","reason":"power"}`, "reread", ""},
		{`{"disk":"vdb","state":"complete","since":"E","point":"F"}`, "reread", ""},
	} {
		p := from(tt.changed)
		if d := p.Disks[0]; d.Changes != tt.changes || !strings.HasPrefix(d.Fallback, tt.fallback) || (tt.fallback == "") != (d.Fallback == "") {
			t.Errorf("%s: changes %q, fallback %q", tt.changed, d.Changes, d.Fallback)
		}
		sound(t, repoDir, p, tree, "")
	}
}

// TestBitmap: a persistent bitmap that QEMU kept.
func TestBitmap(t *testing.T) {
	raw, tree := ext4(t, "40M")
	dir := t.TempDir()
	img, repoDir := filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "repo")
	put(t, raw, tree, "big", noise(3, 1<<20))
	at := inner(t, raw, "big")[0]
	formatstest.Exec(t, "qemu-img", "convert", "-O", "qcow2", raw, img)
	formatstest.Exec(t, "qemu-img", "bitmap", "--add", img, "since-first")
	backup(t, "--repo", repoDir, "--all-blocks", "web1="+img)
	formatstest.Exec(t, "qemu-io", "-c", fmt.Sprintf("write -P 9 %d 65536", at), img)
	formatstest.Exec(t, "qemu-img", "convert", "-O", "raw", img, raw)
	p := backup(t, "--repo", repoDir, "--all-blocks", "--bitmap", "since-first", "--sample", "0", "web1="+img)
	if d := p.Disks[0]; d.Changes != "bitmap" || d.Fallback != "" || d.Totals.Changed != 65536 {
		t.Errorf("%+v", d)
	}
	sound(t, repoDir, p, "", raw)
	_, _, stderr := vmbackup(t, "", "--repo", repoDir, "--all-blocks", "--bitmap", "nothing", "web1="+img)
	if !strings.Contains(stderr, "there is none called nothing") {
		t.Errorf("stderr: %s", stderr)
	}
}

// TestFiemap: clones on a file system that shares blocks.
func TestFiemap(t *testing.T) {
	mnt := formatstest.Mount(t, "mkfs.xfs", "400M")
	raw, tree := ext4(t, "40M")
	put(t, raw, tree, "big", noise(3, 2<<20))
	big := inner(t, raw, "big")
	dir, repoDir := filepath.Join(mnt, "clones"), filepath.Join(t.TempDir(), "repo")
	os.Mkdir(dir, 0o755)
	for _, format := range []string{"raw", "qcow2"} {
		live := filepath.Join(dir, "live."+format)
		formatstest.Exec(t, "qemu-img", "convert", "-O", format, raw, live)
		clone := func(n int) string {
			path := filepath.Join(dir, fmt.Sprintf("%s%d.img", format, n))
			formatstest.Exec(t, "cp", "--reflink=always", live, path)
			return path
		}
		backup(t, "--repo", repoDir, format+"="+clone(0))
		for i := 1; i < 3; i++ {
			if format == "raw" {
				put(t, live, tree, fmt.Sprintf("new%d", i), noise(uint64(i), 300_000))
			} else {
				formatstest.Exec(t, "qemu-io", "-c", fmt.Sprintf("write -P %d %d 5K", i, big[i]), live)
			}
			c := clone(i)
			p := backup(t, "--repo", repoDir, "--verify", "full", "--sample", "0", "--all-blocks", format+"="+c)
			if d := p.Disks[0]; d.Changes != "fiemap" || d.Fallback != "" || d.Totals.Changed > 4<<20 {
				t.Errorf("%s: %+v", format, d)
			}
			if i == 2 && format == "raw" {
				sound(t, repoDir, p, tree, "")
			}
			// The clone before is no longer what it was: it is not compared.
			if i == 2 {
				patch(t, c, []byte("x"), 20<<20)
				p := backup(t, "--repo", repoDir, "--all-blocks", format+"="+clone(9))
				if p.Disks[0].Changes != "reread" {
					t.Errorf("changes %q", p.Disks[0].Changes)
				}
			}
		}
	}
}

// TestAnotherDisk: what can't be built upon is found out, and a full point is made, which says why.
func TestAnotherDisk(t *testing.T) {
	img, _ := ext4(t, "40M")
	other, _ := ext4(t, "40M")
	larger, _ := ext4(t, "44M")
	dir := t.TempDir()
	repoDir := filepath.Join(dir, "repo")
	backup(t, "--repo", repoDir, "web1="+img)
	for _, tt := range []struct {
		why  string
		args []string
	}{
		{"another disk", []string{"web1=" + other}},
		{"had 41943040 bytes and has 46137344", []string{"web1=" + larger}},
		{"1 disks, the machine now 2", []string{"web1=" + larger, "web1=" + other}},
		{"has clusters of 65536 bytes", []string{"--cluster", "4K", "web1=" + larger, "web1=" + other}},
		{"the chain has 1 points", []string{"--chain", "1", "web1=" + larger, "web1=" + other}},
	} {
		refused(t, 4, tt.why, append([]string{"--repo", repoDir, "--incremental"}, tt.args...)...)
		p := backup(t, append([]string{"--repo", repoDir}, tt.args...)...)
		if p.Parent != "" || !strings.Contains(p.Disks[0].Fallback, tt.why) {
			t.Errorf("%q: parent %q, fallback %q", tt.args, p.Parent, p.Disks[0].Fallback)
		}
		for n := range p.Disks {
			formatstest.Exec(t, "qemu-img", "check", image(repoDir, p, n))
		}
	}
	// A chain whose sums are damaged.
	last := backup(t, "--repo", repoDir, "web2="+img)
	sums := filepath.Join(repoDir, "web2", last.Disks[0].Sums.Name)
	b, err := os.ReadFile(sums)
	if err != nil {
		t.Fatal(err)
	}
	b[200] ^= 1
	write(t, sums, b)
	refused(t, 4, "can't be built upon", "--repo", repoDir, "--incremental", "web2="+img)
	if p := backup(t, "--repo", repoDir, "web2="+img); p.Parent != "" || !strings.Contains(p.Disks[0].Fallback, "can't be built upon") {
		t.Errorf("parent %q, fallback %q", p.Parent, p.Disks[0].Fallback)
	}
	// One whose image is gone, or was cut.
	for _, damage := range []func(string) error{os.Remove, func(path string) error { return os.Truncate(path, 100_000) }} {
		last = backup(t, "--repo", repoDir, "--full", "web3="+img)
		if err := damage(image(repoDir, last, 0)); err != nil {
			t.Fatal(err)
		}
		if p := backup(t, "--repo", repoDir, "web3="+img); p.Parent != "" || !strings.Contains(p.Disks[0].Fallback, "of point "+last.Name) {
			t.Errorf("parent %q, fallback %q", p.Parent, p.Disks[0].Fallback)
		}
	}
	refused(t, 2, "of one machine", "--repo", repoDir, "--changed-ranges", ranges(t, ""), "a="+img, "b="+img)
	array := filepath.Join(dir, "array")
	write(t, array, []byte(`[{"start":0,"length":65536,"depth":0,"present":true,"zero":false,"data":true}]`))
	refused(t, 2, "of one disk", "--repo", repoDir, "--changed-ranges", array, "a="+img, "a="+img)
	p := backup(t, "--repo", repoDir, "--changed-ranges", array, "web2="+img)
	if d := p.Disks[0]; d.Changes != "ranges" || d.Totals.Changed != 65536 {
		t.Errorf("%+v", d)
	}
}

// TestS3: points in a bucket, whose objects are what lies in a folder.
func TestS3(t *testing.T) {
	g := repotest.Start(t)
	img, tree := ext4(t, "40M")
	url := "s3://" + repotest.Bucket + "/site"
	first := backup(t, "--repo", url, "--verify", "full", "web1="+img)
	put(t, img, tree, "new", noise(1, 500_000))
	p := backup(t, "--repo", url, "--verify", "full", "web1="+img)
	if p.Parent != first.Name || p.Stored > 2<<20 {
		t.Errorf("parent %q, %d bytes", p.Parent, p.Stored)
	}
	sound(t, filepath.Join(g.Dir, "site"), p, tree, "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	refused(t, 4, "s3://", "--repo", url, "web1="+img)
}
