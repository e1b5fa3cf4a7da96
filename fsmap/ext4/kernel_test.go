package ext4_test

import (
	"path/filepath"
	"strings"
	"testing"

	"vmkit/fixtures"
	"vmkit/fsmap"
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
