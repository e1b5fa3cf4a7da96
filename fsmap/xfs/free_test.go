package xfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/fsmap"
)

// TestFree: what Free gives is what xfs_db finds in the trees of free space.
func TestFree(t *testing.T) {
	needKernel(t, "xfs_db")
	for _, args := range []string{"", "-m crc=0", "-b size=1024", "-d agcount=9", "-m reflink=1,rmapbt=1"} {
		t.Run(args, func(t *testing.T) {
			dir := t.TempDir()
			img, mnt := filepath.Join(dir, "fs.img"), filepath.Join(dir, "mnt")
			run(t, "truncate", "-s", "1G", img)
			run(t, "mkfs.xfs", append(strings.Fields(args), "-q", img)...)
			if os.Mkdir(mnt, 0o755); args != "-m crc=0" { // which kernels need not mount any more
				fill(t, img, mnt)
			}
			f, err := os.Open(img)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			fs, err := Driver.Open(f, 1<<30, fsmap.Options{})
			if err != nil {
				t.Fatal(err)
			}
			size := fs.Info().BlockSize
			got := make([]byte, 1<<30/size)
			if err := fs.(fsmap.Freer).Free(func(off, n int64) bool {
				for i := off / size; i < (off+n)/size; i++ {
					got[i]++
				}
				return true
			}); err != nil {
				t.Error(err)
			}
			want := make([]byte, len(got))
			per := int64(fs.(*fsys).sb.AGBlocks)
			for line := range strings.Lines(run(t, "xfs_db", "-r", "-c", "freesp -d", img)) {
				var ag, at, n int64
				if k, _ := fmt.Sscan(line, &ag, &at, &n); k == 3 && len(strings.Fields(line)) == 3 {
					for i := range n {
						want[ag*per+at+i] = 1
					}
				}
			}
			var over, under, all int
			for i := range want {
				all += int(want[i])
				if got[i] > want[i] {
					over++
				} else if got[i] < want[i] {
					under++
				}
			}
			// xfs_db takes the blocks of the free list for free too.
			if over > 0 || under > 20*9 || all == 0 {
				t.Errorf("%d blocks are called free that are not, %d of %d free ones are not", over, under, all)
			}
		})
	}
}

// fill makes files on an image and removes every second.
func fill(t *testing.T, img, mnt string) {
	t.Helper()
	run(t, "mount", "-o", "loop", img, mnt)
	defer run(t, "umount", mnt)
	for i := range 1200 {
		if err := os.WriteFile(filepath.Join(mnt, fmt.Sprint(i)), make([]byte, 5000+i*30), 0o644); err != nil {
			t.Error(err)
		}
	}
	run(t, "sync", "-f", mnt)
	for i := 0; i < 1200; i += 2 {
		os.Remove(filepath.Join(mnt, fmt.Sprint(i)))
	}
}
