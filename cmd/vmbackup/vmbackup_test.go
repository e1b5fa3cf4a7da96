package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmkit/cmd/internal/cli/clitest"
	"vmkit/cmd/internal/repo"
	"vmkit/fixtures"
	"vmkit/formats/formatstest"
)

func TestMain(m *testing.M) { clitest.Main(m, map[string]func(){"vmbackup": main}) }

func TestScripts(t *testing.T) {
	clitest.Scripts(t, "testdata", map[string]string{
		"disk.qcow2": fixtures.Image(t, "gpt-disk", "disk.qcow2.zst"),
		"fat.img":    fixtures.Image(t, "fat-mtools", "fat12.img.zst"),
	})
}

func TestDocs(t *testing.T) { clitest.Docs(t, command(), "vmbackup.1") }

// vmbackup runs the command in process.
func vmbackup(t *testing.T, stdin string, args ...string) (status int, points []*repo.Point, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(t.Context(), args, strings.NewReader(stdin), &out, &errs)
	for d := json.NewDecoder(&out); ; {
		var p repo.Point
		var raw json.RawMessage
		if err := d.Decode(&raw); errors.Is(err, io.EOF) {
			return status, points, errs.String()
		} else if err != nil {
			t.Fatalf("%v in the output; stderr: %s", err, errs.String())
		}
		raw = bytes.Replace(raw, []byte(`"type":"point",`), nil, 1)
		if !bytes.HasPrefix(raw, []byte(`{"type":"end"`)) {
			if err := json.Unmarshal(raw, &p); err != nil {
				t.Fatal(err)
			}
			points = append(points, &p)
		}
	}
}

// backup makes one point.
func backup(t *testing.T, args ...string) *repo.Point {
	t.Helper()
	status, points, stderr := vmbackup(t, "", args...)
	if status != 0 || len(points) != 1 {
		t.Fatalf("vmbackup %q: status %d, %d points; %s", args, status, len(points), stderr)
	}
	return points[0]
}

// refused runs a command that has to fail with a status and a message.
func refused(t *testing.T, status int, message string, args ...string) {
	t.Helper()
	if s, points, stderr := vmbackup(t, "", args...); s != status || len(points) > 0 || !strings.Contains(stderr, message) {
		t.Errorf("vmbackup %q: status %d, %d points; %s", args, s, len(points), stderr)
	}
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	formatstest.Exec(t, "cp", "--sparse=always", from, to)
}

// patch writes bytes into an image.
func patch(t *testing.T, path string, b []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(b, off)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 1))
	for i := range b {
		if i%3 > 0 {
			b[i] = byte(r.Uint32())
		}
	}
	return b
}

// ext4 makes a file system with some files in it and gives its image and the folder of the files.
func ext4(t *testing.T, size string) (img, tree string) {
	t.Helper()
	formatstest.Tool(t, "debugfs")
	dir := t.TempDir()
	img, tree = filepath.Join(dir, "disk.img"), filepath.Join(dir, "tree")
	for i := range 60 {
		write(t, filepath.Join(tree, fmt.Sprintf("d%d/f%d", i%5, i)), noise(uint64(i), 1000*i+i*i*40))
	}
	formatstest.Exec(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", tree, img, size)
	return img, tree
}

// put writes a file into the file system of an image, as a guest would have.
func put(t *testing.T, img, tree, name string, b []byte) {
	t.Helper()
	path := filepath.Join(tree, name)
	if _, err := os.Stat(path); err == nil {
		formatstest.Exec(t, "debugfs", "-w", "-R", "rm "+name, img)
	}
	write(t, path, b)
	formatstest.Exec(t, "debugfs", "-w", "-R", "write "+path+" "+name, img)
}

// places gives the blocks of a file, as bytes in the volume.
func places(t *testing.T, img, name string) (list []int64) {
	t.Helper()
	for _, f := range strings.Fields(string(formatstest.Exec(t, "debugfs", "-R", "blocks "+name, img))) {
		var n int64
		fmt.Sscan(f, &n)
		list = append(list, n*4096)
	}
	return list
}

// inner gives the clusters that hold blocks of a file and nothing else.
func inner(t *testing.T, img, name string) (list []int64) {
	t.Helper()
	blocks := map[int64]int{}
	for _, at := range places(t, img, name) {
		if at &^= 65535; blocks[at] == 15 {
			list = append(list, at)
		}
		blocks[at]++
	}
	if len(list) == 0 {
		t.Fatalf("%s has no cluster for itself", name)
	}
	return list
}

// image gives the path of a point's image.
func image(repoDir string, p *repo.Point, n int) string {
	return filepath.Join(repoDir, p.Machine, p.Disks[n].Image.Name)
}

// sound has QEMU check the image, and compares the files in it with those of a folder by way of debugfs; with a source,
// it compares all bytes.
func sound(t *testing.T, repoDir string, p *repo.Point, tree, source string) {
	t.Helper()
	path := image(repoDir, p, 0)
	formatstest.Exec(t, "qemu-img", "check", path)
	if source != "" {
		formatstest.Exec(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, path)
	}
	if tree != "" {
		raw := filepath.Join(t.TempDir(), "restored.img")
		formatstest.Exec(t, "qemu-img", "convert", "-O", "raw", path, raw)
		formatstest.Exec(t, "e2fsck", "-fn", raw)
		out := filepath.Join(filepath.Dir(raw), "out")
		os.Mkdir(out, 0o755)
		formatstest.Exec(t, "debugfs", "-R", "rdump / "+out, raw)
		formatstest.Exec(t, "diff", "-r", "--exclude=lost+found", tree, out)
	}
}

// TestIncrementals: ten points of each of two guests, one with nothing left out. Every point, the old ones too, is found
// to be right in the end.
func TestIncrementals(t *testing.T) {
	for _, all := range []bool{true, false} {
		t.Run(fmt.Sprintf("all-blocks-%v", all), func(t *testing.T) {
			img, tree := ext4(t, "80M")
			dir := filepath.Join(t.TempDir(), "repo")
			args := []string{"--repo", dir, "--verify", "full", fmt.Sprintf("--all-blocks=%v", all), "web1=" + img}
			var points []*repo.Point
			var images, trees []string
			for i := range 11 {
				if i > 0 {
					put(t, img, tree, fmt.Sprintf("new%d", i), noise(uint64(100+i), 50_000*i))
					put(t, img, tree, "again", noise(uint64(200+i), 300_000))
				}
				p := backup(t, args...)
				if full := p.Parent == ""; full != (i == 0) || !full && p.Parent != points[i-1].Name {
					t.Errorf("point %d has parent %q", i, p.Parent)
				}
				if i > 0 && (p.Stored > 4<<20 || p.Stored < 300_000) {
					t.Errorf("point %d stored %d bytes", i, p.Stored)
				}
				points = append(points, p)
				images = append(images, filepath.Join(t.TempDir(), "was.img"))
				copyFile(t, img, images[i])
				trees = append(trees, filepath.Join(t.TempDir(), "tree"))
				formatstest.Exec(t, "cp", "-r", tree, trees[i])
			}
			for i, p := range points {
				source := ""
				if all {
					source = images[i]
				}
				sound(t, dir, p, trees[i], source)
			}
			// Each opens in QEMU, with an overlay to write into.
			over := filepath.Join(t.TempDir(), "overlay.qcow2")
			formatstest.Exec(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image(dir, points[10], 0), over)
			formatstest.Exec(t, "qemu-io", "-c", "write -P 7 1M 1M", "-c", "read -P 7 1M 1M", over)
		})
	}
}

// TestNTFS: incremental points of an NTFS guest on a partition, whose image is QCOW2.
func TestNTFS(t *testing.T) {
	formatstest.Tool(t, "ntfscp")
	dir := t.TempDir()
	raw, img, repoDir := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "repo")
	formatstest.Exec(t, "truncate", "-s", "40M", raw)
	formatstest.Exec(t, "mkntfs", "-q", "-F", "-Q", raw)
	var points []*repo.Point
	for i := range 5 {
		for k := range 3 {
			f := filepath.Join(dir, "f")
			write(t, f, noise(uint64(i*10+k), 100_000*(k+1)))
			formatstest.Exec(t, "ntfscp", "-q", raw, f, fmt.Sprintf("file%d", (i+k)%4))
		}
		formatstest.Exec(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, img)
		p := backup(t, "--repo", repoDir, "--verify", "full", "--all-blocks", "win="+img)
		formatstest.Exec(t, "qemu-img", "check", image(repoDir, p, 0))
		formatstest.Exec(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, image(repoDir, p, 0))
		points = append(points, p)
	}
	if p := points[4]; p.Parent != points[3].Name || p.Disks[0].Format != "qcow2" || p.Stored > 2<<20 {
		t.Errorf("the last point: %+v", p)
	}
	// Without what is free the files are what they were.
	p := backup(t, "--repo", repoDir, "--full", "--verify", "full", "win="+img)
	if p.Disks[0].LeftOut < 10<<20 {
		t.Errorf("only %d bytes are left out", p.Disks[0].LeftOut)
	}
	restored := filepath.Join(dir, "restored.raw")
	formatstest.Exec(t, "qemu-img", "convert", "-O", "raw", image(repoDir, p, 0), restored)
	formatstest.Exec(t, "ntfsfix", "-n", restored)
	for i := range 4 {
		name := fmt.Sprintf("file%d", i)
		if !bytes.Equal(formatstest.Exec(t, "ntfscat", raw, name), formatstest.Exec(t, "ntfscat", restored, name)) {
			t.Errorf("%s differs", name)
		}
	}
}

// ranges writes a file of changed ranges.
func ranges(t *testing.T, list string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "changed.json")
	write(t, path, []byte(`{"type":"changed","disk":"disk0","ranges":[`+list+`]}`))
	return path
}

// everything names the whole disk but for some clusters.
func everything(size int64, but ...int64) string {
	var b strings.Builder
	for at := int64(0); at < size; at += 64 << 10 {
		skip := false
		for _, x := range but {
			skip = skip || x/(64<<10) == at/(64<<10)
		}
		if !skip {
			fmt.Fprintf(&b, ",[%d,65536]", at)
		}
	}
	return b.String()[1:]
}

// TestHeldByNobody: blocks of a file reached the disk before the first point and its inode after it. They did not change
// since, but nothing holds them.
func TestHeldByNobody(t *testing.T) {
	img, tree := ext4(t, "80M")
	dir := t.TempDir()
	before := filepath.Join(dir, "before.img")
	copyFile(t, img, before)
	late := noise(77, 700_000)
	put(t, img, tree, "late", late)
	blocks := places(t, img, "late")
	for i, at := range blocks[:len(late)/4096] {
		patch(t, before, late[i*4096:(i+1)*4096], at)
	}
	repoDir := filepath.Join(dir, "repo")
	first := backup(t, "--repo", repoDir, "web1="+before)
	if first.Disks[0].LeftOut < 30<<20 {
		t.Errorf("only %d bytes were left out", first.Disks[0].LeftOut)
	}
	// The ranges are true: the file's blocks did not change.
	p := backup(t, "--repo", repoDir, "--verify", "full", "--sample", "0", "--changed-ranges", ranges(t, everything(80<<20, inner(t, img, "late")...)), "web1="+img)
	if d := p.Disks[0]; d.Changes != "ranges" || d.Fallback != "" || p.Stored < 650_000 {
		t.Errorf("changes %q, fallback %q, stored %d", d.Changes, d.Fallback, p.Stored)
	}
	sound(t, repoDir, p, tree, "")
}

// TestHeldByAnOlderPoint is the same where an older point of the chain holds what the blocks had been before.
func TestHeldByAnOlderPoint(t *testing.T) {
	img, tree := ext4(t, "80M")
	dir := t.TempDir()
	before, repoDir := filepath.Join(dir, "before.img"), filepath.Join(dir, "repo")
	put(t, img, tree, "old", noise(76, 700_000))
	backup(t, "--repo", repoDir, "web1="+img)
	was := inner(t, img, "old")
	os.Remove(filepath.Join(tree, "old"))
	formatstest.Exec(t, "debugfs", "-w", "-R", "rm old", img)
	copyFile(t, img, before)
	late := noise(77, 700_000)
	put(t, img, tree, "late", late)
	blocks := places(t, img, "late")
	for i, at := range blocks[:len(late)/4096] {
		patch(t, before, late[i*4096:(i+1)*4096], at)
	}
	is := inner(t, img, "late")
	if !slices.Contains(was, is[1]) {
		t.Fatalf("late lies at %d, old lay at %d", is, was)
	}
	backup(t, "--repo", repoDir, "web1="+before)
	p := backup(t, "--repo", repoDir, "--verify", "none", "--sample", "0", "--changed-ranges", ranges(t, everything(80<<20, is...)), "web1="+img)
	sound(t, repoDir, p, tree, "")
}

// TestLies: a changed block that the source of changes keeps secret.
func TestLies(t *testing.T) {
	img, tree := ext4(t, "80M")
	// A file of whole clusters of its own, so that no other is looked at for its sake.
	put(t, img, tree, "big", noise(5, 1<<20))
	inside := inner(t, img, "big")[1] + 4096
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, img string)
		args   []string
		caught string // what the fallback names, or "" where nothing is caught
		stored bool   // the change is in the point
	}{
		{"metadata", func(t *testing.T, img string) {
			formatstest.Exec(t, "debugfs", "-w", "-R", "set_inode_field /d1/f1 uid 1234", img)
		}, nil, "belongs to no file", true},
		{"changed times", func(t *testing.T, img string) {
			patch(t, img, noise(6, 4096), inside)
			formatstest.Exec(t, "debugfs", "-w", "-R", "set_inode_field big mtime 20300101000000", img)
		}, nil, "no file, or to one that is not as it was", true},
		{"same times", func(t *testing.T, img string) { patch(t, img, noise(6, 4096), inside) }, []string{"--sample", "0", "--verify", "none"}, "", false},
		{"same times, sampled", func(t *testing.T, img string) { patch(t, img, noise(6, 4096), inside) }, []string{"--sample", "100%"}, "a file that is as it was", true},
		{"same times, reread", func(t *testing.T, img string) { patch(t, img, noise(6, 4096), inside) }, []string{"--reread"}, "", true},
		{"same times, read back", func(t *testing.T, img string) { patch(t, img, noise(6, 4096), inside) }, []string{"--sample", "0", "--verify", "full"}, "reading back", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			now, repoDir := filepath.Join(dir, "now.img"), filepath.Join(dir, "repo")
			copyFile(t, img, now)
			backup(t, "--repo", repoDir, "--all-blocks", "web1="+now)
			tt.change(t, now)
			p := backup(t, append(tt.args, "--repo", repoDir, "--all-blocks", "--changed-ranges", ranges(t, ""), "web1="+now)...)
			d := p.Disks[0]
			if (tt.caught == "") != (d.Fallback == "") || !strings.Contains(d.Fallback, tt.caught) {
				t.Errorf("fallback: %q", d.Fallback)
			}
			if tt.stored {
				sound(t, repoDir, p, "", now)
			}
		})
	}
}

// TestSampleOdds: with one changed cluster and a sample of half, it is found about half of the times.
func TestSampleOdds(t *testing.T) {
	img, tree := ext4(t, "40M")
	put(t, img, tree, "big", noise(5, 1<<20))
	inside := inner(t, img, "big")[1] + 4096
	dir := t.TempDir()
	repoDir, again := filepath.Join(dir, "repo"), filepath.Join(dir, "again")
	backup(t, "--repo", repoDir, "web1="+img)
	patch(t, img, noise(6, 4096), inside)
	found := 0
	const tries = 40
	for range tries {
		formatstest.Exec(t, "cp", "-r", repoDir, again)
		p := backup(t, "--repo", again, "--sample", "50%", "--verify", "none", "--changed-ranges", ranges(t, ""), "web1="+img)
		if p.Disks[0].Fallback != "" {
			found++
		}
		os.RemoveAll(again)
	}
	if found < 5 || found > 35 { // 1 in 10 million by chance
		t.Errorf("found %d of %d times", found, tries)
	}
}

// TestInterrupted: what an interrupted run left is found and removed; what is not a point's is left alone.
func TestInterrupted(t *testing.T) {
	img, _ := ext4(t, "40M")
	dir := filepath.Join(t.TempDir(), "repo")
	first := backup(t, "--repo", dir, "web1="+img)
	stray := []string{"20200101T000000Z.disk0.qcow2", "20200101T000000Z.disk0.sums", "20200101T000000Z.config/x.xml", ".tmp-abc"}
	kept := []string{"README", "notes.qcow2", first.Disks[0].Image.Name}
	for _, name := range append(stray, kept[:2]...) {
		write(t, filepath.Join(dir, "web1", name), []byte("x"))
	}
	status, points, stderr := vmbackup(t, "", "--repo", dir, "web1="+img)
	if status != 0 || len(points) != 1 || !strings.Contains(stderr, "interrupted: its 3 files are removed") {
		t.Fatalf("status %d, %s", status, stderr)
	}
	for _, name := range stray {
		if _, err := os.Stat(filepath.Join(dir, "web1", name)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
	for _, name := range kept {
		if _, err := os.Stat(filepath.Join(dir, "web1", name)); err != nil {
			t.Error(err)
		}
	}
}

// TestTwoWriters: one machine has one writer, several machines have several.
func TestTwoWriters(t *testing.T) {
	img, _ := ext4(t, "40M")
	dir := filepath.Join(t.TempDir(), "repo")
	s, err := repo.OpenDir(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	unlock, err := s.Lock(t.Context(), "web1")
	if err != nil {
		t.Fatal(err)
	}
	refused(t, 4, "another writer is at work", "--repo", dir, "web1="+img)
	backup(t, "--repo", dir, "web2="+img)
	unlock()
	backup(t, "--repo", dir, "web1="+img)
}

// TestDiskFull: one clear line, no new point, and the old one is as it was.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	img, tree := ext4(t, "40M")
	mnt := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", mnt).CombinedOutput(); err != nil {
		t.Skipf("no tmpfs: %s", out)
	}
	defer exec.Command("umount", mnt).Run()
	dir := filepath.Join(mnt, "repo")
	first := backup(t, "--repo", dir, "web1="+img)
	put(t, img, tree, "more", noise(9, 6<<20))
	refused(t, 4, "no space left on device", "--repo", dir, "web1="+img)
	left, _ := filepath.Glob(filepath.Join(dir, "web1", "*"))
	if len(left) != 5 { // with the lock
		t.Errorf("left: %q", left)
	}
	formatstest.Exec(t, "qemu-img", "check", image(dir, first, 0))
}
