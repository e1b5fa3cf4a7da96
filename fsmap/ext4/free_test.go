package ext4_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"vmkit/formats/formatstest"
	"vmkit/fsmap"
	"vmkit/fsmap/ext4"
)

// TestFree: what Free gives is what dumpe2fs calls free.
func TestFree(t *testing.T) {
	formatstest.Tool(t, "dumpe2fs")
	tree := t.TempDir()
	for i := range 300 {
		path := filepath.Join(tree, fmt.Sprintf("d%d", i%7), fmt.Sprintf("f%d", i))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, i*977), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range []string{
		"-t ext4 -b 4096", "-t ext4 -b 1024", "-t ext4 -b 1024 -g 1024 -O ^64bit", "-t ext2 -b 1024", "-t ext3 -b 2048 -g 2048", "-t ext4 -O ^metadata_csum,uninit_bg",
		"-t ext4 -O bigalloc -C 16384 -b 1024", "-t ext4 -O meta_bg,^resize_inode -b 1024 -g 512", "-t ext4 -O ^flex_bg -g 4096", "-t ext4 -E packed_meta_blocks=1",
	} {
		t.Run(args, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "fs.img")
			formatstest.Exec(t, "mke2fs", append(append([]string{"-q", "-d", tree}, strings.Fields(args)...), path, "150M")...)
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			st, _ := f.Stat()
			fs, err := ext4.Driver.Open(f, st.Size(), fsmap.Options{})
			if err != nil {
				t.Fatal(err)
			}
			size := fs.Info().BlockSize
			got := make([]byte, st.Size()/size)
			if err := fs.(fsmap.Freer).Free(func(off, n int64) bool {
				for i := off / size; i < (off+n)/size; i++ {
					got[i]++
				}
				return true
			}); err != nil {
				t.Error(err)
			}
			want := make([]byte, len(got))
			free := 0
			for _, m := range regexp.MustCompile(`(?m)^ *Free blocks: (.*)$`).FindAllStringSubmatch(string(formatstest.Exec(t, "dumpe2fs", path)), -1) {
				for _, r := range strings.Split(m[1], ", ") {
					a, b, ok := strings.Cut(r, "-")
					first, err := strconv.Atoi(a)
					if err != nil {
						continue // the superblock's own count, or nothing
					}
					last := first
					if ok {
						last, _ = strconv.Atoi(b)
					}
					if strings.Contains(args, "bigalloc") { // it names the first block of a cluster
						last += 15 // 16 blocks of 1 KiB
					}
					if !strings.Contains(m[0], "  ") { // the line of the superblock is not indented
						continue
					}
					for i := first; i <= last && i < len(want); i++ {
						want[i] = 1
						free++
					}
				}
			}
			over, under := 0, 0
			for i := range want {
				if got[i] > want[i] {
					over++
				}
				if got[i] < want[i] {
					under++
				}
			}
			if over > 0 || under > free/20 || free == 0 {
				t.Errorf("%d blocks are called free that are not, %d of %d free ones are not", over, under, free)
			}
		})
	}
}
