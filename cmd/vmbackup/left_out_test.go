package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"vmkit/cmd/internal/cli"
	"vmkit/fixtures"
	"vmkit/formats/formatstest"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// fileLines gives the records of all files on the images, with their hashes.
func fileLines(t *testing.T, images []string) []string {
	t.Helper()
	var in cli.Input
	var lines []string
	c := cli.New("map", "")
	in.Register(c.Flags)
	im, err := in.Open(&cli.Term{Name: "map", Stderr: os.Stderr}, images)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	var b bytes.Buffer
	if _, err := im.Map(t.Context(), fsmap.Config{Hash: true}, mapfile.NewWriter(&b)); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		if strings.HasPrefix(line, `{"type":"file"`) || strings.HasPrefix(line, `{"type":"extents"`) {
			lines = append(lines, regexp.MustCompile(`"kind":"(zero|data)"`).ReplaceAllString(line, ""))
		}
	}
	return lines
}

// TestLeftOut: whatever lies between a disk and its file systems, a disk without what nothing uses has the same files at
// the same places, and after a journal's replay by others too.
func TestLeftOut(t *testing.T) {
	for _, tt := range []struct {
		fixture, file string
		some          bool // something is left out
		repair        string
	}{
		{"ext4-journal", "csum3-64bit.img.zst", true, "e2fsck"},
		{"ext4-journal", "ext3.img.zst", true, "e2fsck"},
		{"ext4-journal", "orphan-file.img.zst", true, "e2fsck"},
		{"xfs-v5-dirty", "disk.img.zst", true, "mount"},
		{"ntfs-3g", "ntfs.img.zst", true, ""},
		{"gpt-disk", "disk.qcow2.zst", true, ""},
	} {
		t.Run(tt.fixture+"/"+tt.file, func(t *testing.T) {
			first := fixtures.Image(t, tt.fixture, tt.file)
			images, _ := filepath.Glob(filepath.Join(filepath.Dir(first), "*"))
			repoDir, out := filepath.Join(t.TempDir(), "repo"), t.TempDir()
			args := []string{"--repo", repoDir, "--verify", "full", "--cluster", "4K"}
			for _, img := range images {
				args = append(args, "m="+img)
			}
			status, points, stderr := vmbackup(t, "", args...)
			if status != 0 && status != 3 || len(points) != 1 {
				t.Fatalf("status %d, %s", status, stderr)
			}
			var left int64
			var restored []string
			for n, d := range points[0].Disks {
				left += d.LeftOut
				restored = append(restored, filepath.Join(out, filepath.Base(images[n])))
				formatstest.Exec(t, "qemu-img", "convert", "-O", d.Format, image(repoDir, points[0], n), restored[n])
			}
			if left > 0 != tt.some {
				t.Errorf("%d bytes are left out", left)
			}
			want, got := fileLines(t, images), fileLines(t, restored)
			place := regexp.MustCompile(`"file":\d+,"off":\d+`)
			for i := range want {
				if tt.fixture == "gpt-disk" { // an image has its clusters where it likes
					want[i] = place.ReplaceAllString(want[i], "")
					got[i] = place.ReplaceAllString(got[i], "")
				}
				if len(want) != len(got) || want[i] != got[i] {
					t.Fatalf("of %d and %d files one differs:\n%s%s", len(want), len(got), want[i], got[min(i, len(got)-1)])
				}
			}
			switch tt.repair {
			case "e2fsck":
				for _, img := range []string{images[0], restored[0]} {
					exec.Command("e2fsck", "-fy", img).Run() // 1 is "errors corrected"
					formatstest.Exec(t, "e2fsck", "-fn", img)
				}
				if a, b := fileLines(t, images), fileLines(t, restored); fmt.Sprint(a) != fmt.Sprint(b) {
					t.Error("after e2fsck they differ")
				}
			case "mount":
				mountOnce(t, images[0])
				mountOnce(t, restored[0])
				if a, b := fileLines(t, images), fileLines(t, restored); fmt.Sprint(a) != fmt.Sprint(b) {
					t.Error("after the kernel's recovery they differ")
				}
			}
		})
	}
}

// mountOnce has the kernel recover a file system.
func mountOnce(t *testing.T, img string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	mnt := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop,nouuid", img, mnt).CombinedOutput(); err != nil {
		t.Skipf("the kernel doesn't mount it: %s", out)
	}
	formatstest.Exec(t, "umount", mnt)
}

// TestWithoutSwap: what swap space and page files hold is left out, and their headers are not.
func TestWithoutSwap(t *testing.T) {
	formatstest.Tool(t, "ntfscp")
	dir := t.TempDir()
	disk, part := filepath.Join(dir, "disk.img"), filepath.Join(dir, "ntfs.img")
	formatstest.Exec(t, "truncate", "-s", "64M", disk)
	cmd := exec.Command("sfdisk", "-q", disk)
	cmd.Stdin = strings.NewReader("label: gpt\nstart=2048, size=32768\nstart=36864, size=65536\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v, %s", err, out)
	}
	swap := filepath.Join(dir, "swap")
	write(t, swap, noise(1, 16<<20))
	formatstest.Exec(t, "mkswap", "-q", swap)
	formatstest.Exec(t, "truncate", "-s", "32M", part)
	formatstest.Exec(t, "mkntfs", "-q", "-F", "-Q", part)
	page := filepath.Join(dir, "page")
	write(t, page, noise(2, 4<<20))
	formatstest.Exec(t, "ntfscp", "-q", part, page, "pagefile.sys")
	formatstest.Exec(t, "ntfscp", "-q", part, page, "other.sys")
	for path, off := range map[string]int64{swap: 1 << 20, part: 18 << 20} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		patch(t, disk, b, off)
	}
	repoDir := filepath.Join(dir, "repo")
	with := backup(t, "--repo", repoDir, "--verify", "full", "m="+disk).Disks[0]
	p := backup(t, "--repo", repoDir, "--full", "--verify", "full", "--without-swap", "m="+disk)
	without := p.Disks[0]
	if d := without.LeftOut - with.LeftOut; d < 19<<20 || d > 20<<20 {
		t.Errorf("%d and %d bytes are left out", with.LeftOut, without.LeftOut)
	}
	if s := strings.Join(without.Notes, "; "); s != "left out: p1; left out: p2:/pagefile.sys" {
		t.Errorf("notes: %s", s)
	}
	raw := filepath.Join(dir, "restored")
	formatstest.Exec(t, "qemu-img", "convert", "-O", "raw", image(repoDir, p, 0), raw)
	b, err := os.ReadFile(raw)
	if err != nil || string(b[1<<20+4086:1<<20+4096]) != "SWAPSPACE2" {
		t.Error("the header of the swap space is gone")
	}
}
