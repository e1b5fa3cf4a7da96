package check

import (
	"os/exec"
	"path"
	"strings"
	"testing"
)

// A rule says which packages of vmkit the packages that match from may import. Patterns are path.Match's, with a
// trailing "/..." for everything below. The first rule that matches is the one that counts.
type rule struct {
	from string
	to   []string
	why  string
}

var rules = []rule{
	{"formats/ondisk", nil, "a leaf: every parser stands on it"},
	{"formats/codec", []string{"formats/ondisk"}, "a leaf: bytes in, bytes out"},
	{"fsmap/mapfile", nil, "a leaf: whoever reads maps needs no disk and no file system"},
	{"formats/formatstest", []string{"formats", "formats/ondisk", "formats/codec"}, "the suite that every format's tests call knows none of them"},
	{"formats/all", []string{"formats", "formats/*"}, "the table knows every format, nothing else"},
	{"formats/*", []string{"formats", "formats/ondisk", "formats/codec", "formats/luks"}, "a format knows the vocabulary, and no other format: layers are opened through the Opener"},
	{"formats", []string{"formats/ondisk", "formats/codec"}, "the vocabulary knows no format"},
	{"partition", []string{"formats", "formats/ondisk", "formats/codec", "formats/luks"}, "volumes know disks, and no file system"},
	{"fsmap/all", []string{"fsmap", "fsmap/*"}, "the table knows every driver, nothing else"},
	{"fsmap/internal/*", []string{"fsmap", "fsmap/mapfile", "fsmap/internal/*", "formats/ondisk", "formats/codec"}, "what drivers share is a driver's part"},
	{"fsmap/fsmaptest", []string{"fsmap", "fsmap/mapfile", "formats", "formats/ondisk", "formats/codec"}, "the suite that every driver's tests call knows none of them"},
	{"fsmap/*", []string{"fsmap", "fsmap/mapfile", "fsmap/internal/*", "formats/ondisk", "formats/codec"}, "a driver knows volume offsets only: no image format, no partition, no other driver"},
	{"fsmap", []string{"partition", "formats", "formats/ondisk", "formats/codec", "fsmap/mapfile"}, "Build gets its drivers and images from the caller"},
	{"extract", []string{"fsmap/mapfile", "formats/ondisk", "formats/codec"}, "a map is closed: extracting needs no disk format and no file system"},
	{"verify", []string{"fsmap/mapfile", "formats/ondisk", "formats/codec"}, "an account is independent only if it shares no reader with what it checks"},
	{"fixtures", nil, "test images are opened without vmkit"},
	{"cmd/internal/...", []string{"formats/...", "formats", "partition", "fsmap/...", "fsmap", "extract", "verify", "cmd/internal/..."}, "commands import everything below, and no other command"},
	{"cmd/*", []string{"formats/...", "formats", "partition", "fsmap/...", "fsmap", "extract", "verify", "cmd/internal/..."}, "commands import everything below, and no other command"},
}

// foreign says who may import modules whose readers vmkit compares itself with.
var foreign = map[string][]string{
	"github.com/diskfs/go-diskfs":                {"verify", "partition"},
	"github.com/lima-vm/go-qcow2reader":          {"verify"},
	"github.com/masahiro331/go-ext4-filesystem":  {"verify"},
	"github.com/masahiro331/go-xfs-filesystem":   {"verify"},
	"www.velocidex.com/golang/go-ntfs":           {"verify"},
	"github.com/spf13/pflag":                     {"cmd/..."},
	"github.com/schollz/progressbar":             {"cmd/..."},
	"github.com/rogpeppe/go-internal/testscript": {"cmd/..."},
	"github.com/minio/minio-go":                  {"cmd/internal/repo", "cmd/internal/repo/..."},
	"gopkg.in/ini.v1":                            {"cmd/internal/repo"},
	"encoding/gob":                               {},
	"unsafe":                                     {"cmd/internal/live"}, // ioctls take pointers to structures
	"C":                                          {},
}

func match(pattern, pkg string) bool {
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return strings.HasPrefix(pkg, base+"/")
	}
	ok, _ := path.Match(pattern, pkg)
	return ok
}

func matchAny(patterns []string, pkg string) bool {
	for _, p := range patterns {
		if match(p, pkg) {
			return true
		}
	}
	return false
}

// TestLayers holds every import of the tree against the rules.
func TestLayers(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "vmkit/...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	packages := 0
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		packages++
		pkg := strings.TrimPrefix(f[0], "vmkit/")
		var r *rule
		for i := range rules {
			if match(rules[i].from, pkg) {
				r = &rules[i]
				break
			}
		}
		if r == nil {
			t.Errorf("package %s has no place in the rules: add one with its reason", pkg)
			continue
		}
		for _, imp := range f[1:] {
			if own, ok := strings.CutPrefix(imp, "vmkit/"); ok && !matchAny(r.to, own) {
				t.Errorf("%s imports %s: %s", pkg, own, r.why)
			}
			for module, users := range foreign {
				if (imp == module || strings.HasPrefix(imp, module+"/")) && !matchAny(users, pkg) {
					t.Errorf("%s imports %s: only %v may", pkg, imp, users)
				}
			}
		}
	}
	if packages < 10 {
		t.Errorf("only %d packages were looked at", packages)
	}
}
