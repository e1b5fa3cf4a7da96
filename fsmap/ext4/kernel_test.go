package ext4_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmkit/fixtures"
	"vmkit/fsmap"
	"vmkit/fsmap/fsmaptest"
	"vmkit/fsmap/mapfile"
)

// images lists the stored images of a case.
func images(t testing.TB, name string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(fixtures.Dir(t, name), "*.img.zst"))
	if err != nil || len(list) == 0 {
		t.Fatalf("no images in %s: %v", name, err)
	}
	for i := range list {
		list[i] = strings.TrimSuffix(filepath.Base(list[i]), ".img.zst")
	}
	return list
}

// TestKernel reads file systems of every kind with one of everything on them.
func TestKernel(t *testing.T) {
	for _, name := range images(t, "ext4-kernel") {
		t.Run(name, func(t *testing.T) {
			tree := walk(t, fixtures.Image(t, "ext4-kernel", name+".img.zst"), fsmap.Options{})
			compare(t, tree, fixtures.Expect(t, "ext4-kernel", name+".tsv.zst"))
			tree.Concurrent(t)
			info := tree.FS.Info()
			if kind := strings.Split(name, "-")[0]; info.Type != kind {
				t.Errorf("type %s, should be %s", info.Type, kind)
			}
			if len(info.Problems) > 0 || len(info.Notes) > 0 {
				t.Errorf("problems %q, notes %q", info.Problems, info.Notes)
			}
			if info.UUID != "01234567-89ab-cdef-0123-456789abcdef" {
				t.Errorf("uuid %s", info.UUID)
			}
		})
	}
}

// TestJournal reads file systems that were kept while they were mounted. The kernel's account is of the state after
// recovery.
func TestJournal(t *testing.T) {
	for _, name := range images(t, "ext4-journal") {
		t.Run(name, func(t *testing.T) {
			path := fixtures.Image(t, "ext4-journal", name+".img.zst")
			want := fixtures.Expect(t, "ext4-journal", name+".tsv.zst")
			tree := walk(t, path, fsmap.Options{Journal: fsmap.JournalReplay})
			without := []int{colATime}
			switch {
			case name == "data" || strings.HasPrefix(name, "csum2"):
				without = append(without, colRuns) // the kernel has put the blocks in their places
			case strings.HasPrefix(name, "orphan"):
				if tree.FS.Info().Extra["orphans"] != 3 {
					t.Errorf("orphans: %v", tree.FS.Info().Extra)
				}
			}
			compare(t, tree, want, without...)
			tree.Concurrent(t)
			if info := tree.FS.Info(); info.Journal != "replayed" || len(info.Problems) > 0 || len(info.Notes) > 0 {
				t.Errorf("journal %s, problems %q, notes %q", info.Journal, info.Problems, info.Notes)
			}

			stale := walk(t, path, fsmap.Options{Journal: fsmap.JournalIgnore})
			if info := stale.FS.Info(); info.Journal != "ignored" || len(info.Notes) == 0 {
				t.Errorf("journal %s, notes %q", info.Journal, info.Notes)
			}
			if same(stale, tree) {
				t.Error("the journal's work changes nothing: this is no test")
			}
			if err := openError(t, path, fsmap.Options{Journal: fsmap.JournalFail}); err == nil {
				t.Error("a journal with work is no error")
			}
		})
	}
}

// same reports whether two trees hold the same names and contents.
func same(a, b *fsmaptest.Tree) bool {
	for path, f := range a.Files {
		if g := b.Files[path]; g == nil || g.SHA256 != f.SHA256 || g.Links != f.Links || len(f.Errs) > 0 {
			return false
		}
	}
	return len(a.Files) == len(b.Files)
}

// TestJournaledData looks at where blocks lie that have their content in the journal only.
func TestJournaledData(t *testing.T) {
	tree := walk(t, fixtures.Image(t, "ext4-journal", "data.img.zst"), fsmap.Options{})
	magic := []byte{0xC0, 0x3B, 0x39, 0x98}
	for path, escaped := range map[string]int{"escaped": 1, "escaped-all": 5, "escaped-short": 0, "plain": 0, "d1/f5": 1, "sparse": 2} {
		n := 0
		for _, r := range tree.Files[path].Runs {
			if r.Kind == mapfile.Inline {
				n++
				if !bytes.HasPrefix(magic, r.Bytes) {
					t.Errorf("%s: inline bytes %x", path, r.Bytes)
				}
			}
		}
		if n != escaped {
			t.Errorf("%s: %d escaped blocks, should be %d", path, n, escaped)
		}
	}
}

// TestEncrypted reads what fscrypt encrypted without its key, as the kernel does.
func TestEncrypted(t *testing.T) {
	for _, name := range images(t, "ext4-encrypt") {
		t.Run(name, func(t *testing.T) {
			tree := walk(t, fixtures.Image(t, "ext4-encrypt", name+".img.zst"), fsmap.Options{})
			compare(t, tree, fixtures.Expect(t, "ext4-encrypt", name+".tsv.zst"))
			n := 0
			for path, f := range tree.Files {
				secret := strings.Contains(path, "/") && !strings.HasPrefix(path, "plain/") || path == "small" || path == "tree"
				if f.Encrypted != secret && f.Kind != mapfile.FIFO {
					t.Errorf("%s: encrypted %v", path, f.Encrypted)
				}
				if f.Kind == mapfile.Regular && secret && f.Size > 0 {
					if n++; len(f.Runs) != 1 || f.Runs[0].Kind != mapfile.Encrypted {
						t.Errorf("%s: runs %v", path, f.Runs)
					}
				}
			}
			if n != 10 {
				t.Errorf("%d encrypted files, should be 10", n)
			}
		})
	}
}

// TestMke2fs reads what mke2fs made of a folder, with blocks that the kernel takes on other machines only.
func TestMke2fs(t *testing.T) {
	want := fixtures.Expect(t, "ext4-mke2fs", "blocks.tsv.zst")
	for _, name := range images(t, "ext4-mke2fs") {
		if name == "casefold" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			tree := walk(t, fixtures.Image(t, "ext4-mke2fs", name+".img.zst"), fsmap.Options{})
			compare(t, tree, want)
			if size := fmt.Sprintf("blocks-%dk", tree.FS.Info().BlockSize>>10); size != name {
				t.Errorf("block size %d", tree.FS.Info().BlockSize)
			}
		})
	}
}

// TestCasefold looks at a directory that folds case: its names are shown as they are stored.
func TestCasefold(t *testing.T) {
	tree := walk(t, fixtures.Image(t, "ext4-mke2fs", "casefold.img.zst"), fsmap.Options{})
	for _, path := range []string{"fold/Größe", "fold/UPPER"} {
		if f := tree.Files[path]; f == nil || f.Size != 7 {
			t.Errorf("%s: %v", path, f)
		}
	}
	if f := tree.Files["fold"]; f == nil || !slices.Equal(f.Attrs, []string{"casefold"}) || len(tree.Errs()) > 0 {
		t.Errorf("%v, errors %q", f, tree.Errs())
	}
}

// TestMetadata asks for the file system's own inodes, and compares the journal with what debugfs takes out.
func TestMetadata(t *testing.T) {
	path := fixtures.Image(t, "ext4-kernel", "ext4-4k.img.zst")
	tree := walk(t, path, fsmap.Options{Metadata: true})
	for name, ino := range map[string]uint64{"$quota.user": 3, "$quota.group": 4, "$resize": 7, "$journal": 8} {
		if f := tree.Files[name]; f == nil || f.Inode != ino || len(f.Errs) > 0 {
			t.Errorf("%s: %v", name, f)
		}
	}
	if tree.Files["$orphans"] == nil || tree.Files["$quota.project"] == nil {
		t.Error("inodes that have no fixed numbers are lacking")
	}
	debugfs, err := exec.LookPath("debugfs")
	if err != nil {
		t.Skip("debugfs is not installed")
	}
	out := filepath.Join(t.TempDir(), "journal")
	if err := exec.Command(debugfs, "-R", "dump <8> "+out, path).Run(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if sum := fmt.Sprintf("%x", sha256.Sum256(b)); sum != tree.Files["$journal"].SHA256 {
		t.Errorf("the journal's sha256 is %s, should be %s", tree.Files["$journal"].SHA256, sum)
	}
}
