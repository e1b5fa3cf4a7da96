package live_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmkit/cmd/internal/live"
	"vmkit/cmd/internal/live/livetest"
	"vmkit/fixtures"
	"vmkit/formats"
	formatsall "vmkit/formats/all"
	"vmkit/fsmap"
	fsmapall "vmkit/fsmap/all"
	"vmkit/fsmap/mapfile"
)

// fill makes in $1 what a file system can hold. The names of the files stay, and nothing is written after it.
const fill = `set -eu
cd "$1"; mkdir -p dir/sub empty under deep
head -c 3000000 /dev/urandom > dir/big; echo small > dir/small; ln -s small dir/link; ln -s "$(printf %0900d 7)" dir/long
mkfifo dir/fifo; mknod null c 1 3; ln dir/big hard; : > zero; yes text | head -c 900000 > text
truncate -s 40M sparse; printf x | dd of=sparse bs=1 seek=25000000 conv=notrunc status=none
fallocate -l 1M pre; printf hello | dd of=pre conv=notrunc status=none
setfattr -n user.x -v y dir/small; setfacl -m u:7:r dir/small; chattr +d text; chattr +A zero
for i in $(seq 100); do echo file $i > dir/sub/f$i; done
for i in $(seq 0 2 20); do dd if=/dev/urandom of=pieces bs=4096 count=1 seek=$i conv=notrunc status=none; sync pieces; done
printf 'a\tb\nc\200' > "$(printf 'odd\n\377')"; chmod 4711 text; chown 12:34 text
`

// TestKernel maps mounted file systems by the kernel's word, and lays the map over the image once it is unmounted: file by
// file it is the one that the image gives from outside, and every file's bytes follow from it.
func TestKernel(t *testing.T) {
	for _, tt := range []struct {
		name, mkfs, options, more string
	}{
		{"ext4", "mkfs.ext4 -q -F", "", ""},
		{"ext4-inline", "mkfs.ext4 -q -F -b 1024 -O inline_data", "", ""},
		{"xfs", "mkfs.xfs -q", "", "cp --reflink=always dir/big clone"},
		{"btrfs", "mkfs.btrfs -q", "", "btrfs -q subvolume create sv; echo in > sv/file; btrfs -q subvolume create sv/nest; btrfs -q subvolume snapshot sv snap; cp --reflink=always dir/big clone"},
		{"btrfs-zstd", "mkfs.btrfs -q", "compress=zstd", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			image, at := mountImage(t, tt.mkfs, tt.options, fill+tt.more)
			// What lies below another mount is there as well.
			if err := os.WriteFile(filepath.Join(at, "under/hidden"), []byte("hidden\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			want := hashes(t, at)
			need(t, "mount", "-t", "tmpfs", "none", filepath.Join(at, "under"))
			var stream bytes.Buffer
			liveMap(t, at, &stream)
			need(t, "umount", filepath.Join(at, "under"))
			need(t, "umount", at)

			images := open(t, image)
			var inside, outside bytes.Buffer
			_, err := fsmap.Rebase(t.Context(), mapfile.NewReader(&stream), images, fsmap.Config{}, mapfile.NewWriter(&inside))
			if err != nil {
				t.Fatal(err)
			}
			c := fsmap.Config{Drivers: fsmapall.Drivers, FS: fsmap.Options{Journal: fsmap.JournalReplay}}
			if _, err := fsmap.Build(t.Context(), images, c, mapfile.NewWriter(&outside)); err != nil {
				t.Fatal(err)
			}
			got, problems := livetest.Read(t, inside.Bytes())
			from, _ := livetest.Read(t, outside.Bytes())
			if len(problems) > 0 {
				t.Errorf("problems: %q", problems)
			}
			livetest.Compare(t, got, from, nil)
			for path, sum := range livetest.Closure(t, filepath.Join(fixtures.Dir(t, "."), "closure.py"), "", inside.Bytes()) {
				if w := want[path]; w != sum && !strings.Contains(path, "odd") {
					t.Errorf("%s has %s, want %s", path, sum, w)
				}
				delete(want, path)
			}
			if len(want) > 1 { // the odd name
				t.Errorf("not made from the map: %v", want)
			}
		})
	}
}

// mountImage makes a file system in a file, mounts it and runs a script on it.
func mountImage(t *testing.T, mkfs, options, script string) (image, at string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root may mount")
	}
	for _, tool := range []string{strings.Fields(mkfs)[0], "mount", "setfattr", "setfacl", "chattr"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	image, at = filepath.Join(t.TempDir(), "disk.img"), t.TempDir()
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(320 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	need(t, "sh", "-c", mkfs+" "+image+" 2>/dev/null")
	args := []string{"-o", strings.TrimSuffix("loop,"+options, ","), image, at}
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Skipf("mount %v: %v: %s", args, err, out)
	}
	t.Cleanup(func() {
		exec.Command("umount", filepath.Join(at, "under")).Run()
		exec.Command("umount", at).Run()
	})
	need(t, "sh", "-c", script, "fill", at)
	return image, at
}

func need(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func open(t *testing.T, names ...string) []*formats.Image {
	t.Helper()
	src := &formats.OSSource{}
	t.Cleanup(func() { src.Close() })
	o := &formats.Opener{Formats: formatsall.Formats, Source: src, Format: "raw"}
	var images []*formats.Image
	for _, name := range names {
		img, err := o.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, img)
	}
	return images
}

// liveMap writes the map of what is mounted at a folder.
func liveMap(t *testing.T, at string, w io.Writer) {
	t.Helper()
	plan, err := live.Find([]string{at}, live.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer plan.Close()
	images := open(t, plan.Disks()...)
	plan.Name(images)
	c := fsmap.Config{DiskOnly: true, Mounts: plan.Mounts}
	s, err := fsmap.Build(t.Context(), images, c, mapfile.NewWriter(w))
	if err != nil {
		t.Fatal(err)
	}
	if s.Problems > 0 {
		t.Errorf("%d problems", s.Problems)
	}
}

// hashes gives the SHA-256 of the regular files below a folder, as the kernel reads them.
func hashes(t *testing.T, at string) map[string]string {
	t.Helper()
	sums := map[string]string{}
	err := filepath.WalkDir(at, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		sums["disk"+strings.TrimPrefix(path, at)] = fmt.Sprintf("%x", sha256.Sum256(b))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return sums
}

// TestChanging maps a file system while it is being written to: the map is whole, and what it says of a file that stayed
// is right.
func TestChanging(t *testing.T) {
	image, at := mountImage(t, "mkfs.ext4 -q -F", "", `cd "$1"; mkdir under; head -c 200000 /dev/urandom > stays`)
	want := hashes(t, at)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			name := filepath.Join(at, fmt.Sprint("f", i%50))
			os.WriteFile(name, make([]byte, i%9*1000+1), 0o600)
			os.Remove(filepath.Join(at, fmt.Sprint("f", (i+7)%50)))
		}
	}()
	time.Sleep(100 * time.Millisecond)
	plan, err := live.Find([]string{at}, live.Options{Hash: true})
	if err != nil {
		t.Fatal(err)
	}
	var stream, inside bytes.Buffer
	images := open(t, plan.Disks()...)
	c := fsmap.Config{DiskOnly: true, Mounts: plan.Mounts}
	_, err = fsmap.Build(t.Context(), images, c, mapfile.NewWriter(&stream))
	close(stop)
	<-done
	plan.Close()
	need(t, "umount", at)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fsmap.Rebase(t.Context(), mapfile.NewReader(&stream), open(t, image), fsmap.Config{}, mapfile.NewWriter(&inside)); err != nil {
		t.Fatal(err)
	}
	var found bool
	for r := mapfile.NewReader(&inside); ; {
		record, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if f, ok := record.(*mapfile.File); ok && f.Path == "/stays" {
			found = f.SHA256 == want["disk/stays"]
		}
	}
	if !found {
		t.Error("the file that stayed has no hash, or another")
	}
}

// TestNoDisk: what lies on no disk is refused.
func TestNoDisk(t *testing.T) {
	for _, path := range []string{"/proc", "/nowhere"} {
		if _, err := live.Find([]string{path}, live.Options{}); err == nil {
			t.Errorf("%s is mapped", path)
		}
	}
}
