package extract

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"vmkit/fsmap/mapfile"
)

// TestHostile: nothing outside the folder, nothing lost without a word.
func TestHostile(t *testing.T) {
	g := newGuest(t)
	g.vols = []string{"p1", "../p2", "vg0/root", "/p4", "p5"}
	add := func(vol int, path string) { g.text(path, "x").Volume = vol }
	g.folder("/")
	add(0, "/../up")
	add(0, "/./dot")
	add(0, "//empty")
	add(0, "relative")
	add(0, "/nul\x00byte")
	g.text("/a", "file")
	add(0, "/a/beneath a file")
	g.text("/dup", "first")
	g.text("/dup", "second")
	g.folder("/dup")
	g.symlink("/l", "/etc")
	add(0, "/l/passwd")
	g.symlink("/m", "../../../..")
	add(0, "/m/climbed")
	add(0, "/"+strings.Repeat("deep/", 900)+"f")
	g.symlink("/z", strings.Repeat("t", 5000))
	g.symlink("/zz", "")
	add(1, "/f")
	add(2, "/f")
	add(3, "/f")
	f := g.text("/f", "x")
	f.Volume, f.Stream = 4, "a/b"
	o := g.extract(Options{Streams: true})
	if o.err != nil {
		t.Fatal(o.err)
	}
	for key, reason := range map[string]string{
		"/../up": "..", "/./dot": `"."`, "//empty": "empty", "relative": "slash", "/nul\x00byte": "NUL",
		"/a/beneath a file": "no folder", "/dup#": "twice", "/dup##": "no folder", "/l/passwd": "no folder", "/m/climbed": "no folder",
		"/" + strings.Repeat("deep/", 900) + "f": "name too long",
		"/z":                                     "name too long", "/zz": "no such file", "/f": "volume's name", "/f##": "volume's name", "/f:a/b": "stream's name",
	} {
		o.want(t, key, "failed", reason, "")
	}
	o.want(t, "/a", "ok", "", "file")
	o.want(t, "/f#", "ok", "", "x")
	o.want(t, "/dup", "ok", "", "first")
	if got := len(o.results); got != len(g.files) {
		t.Errorf("%d results for %d files", got, len(g.files))
	}
	// What lies in the test's folder is the output folder alone.
	if list, _ := os.ReadDir(filepath.Dir(o.dir)); len(list) != 1 {
		t.Errorf("outside the output folder: %v", list)
	}
	noTemps(t, o.dir)
}

func TestLongNames(t *testing.T) {
	g := newGuest(t)
	wide := strings.Repeat("長", 200)
	g.folder("/")
	g.folder("/" + wide)
	g.text("/"+wide+"/"+wide+".txt", "one")
	g.text("/"+wide+"/"+wide+"2.txt", "two")
	g.add("/"+wide+"3", mapfile.Regular, g.at([]byte("a")), other(mapfile.Missing, 1))
	o := g.extract(Options{})
	if o.err != nil || o.sum.OK != 4 {
		t.Fatalf("%v, %+v", o.err, o.sum)
	}
	o.want(t, "/"+wide, "ok", shortened, "")
	o.want(t, "/"+wide+"/"+wide+".txt", "ok", shortened, "one")
	o.want(t, "/"+wide+"/"+wide+"2.txt", "ok", shortened, "two")
	o.want(t, "/"+wide+"3", "partial", "missing", "a\x00")
	for key, r := range o.results {
		if n := filepath.Base(r.To); len(n) > 255 || !utf8.ValidString(n) || len(key) > 255 && !strings.HasSuffix(key, "3") && !strings.HasSuffix(n, filepath.Ext(key)) {
			t.Errorf("%s is at %s", key, n)
		}
	}
	if to := o.results["/"+wide+"3"].To; !strings.HasSuffix(to, ".partial") {
		t.Errorf("at %s", to)
	}
}

// noTemps checks that no temporary file was left.
func noTemps(t *testing.T, dir string) {
	t.Helper()
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if strings.Contains(path, ".vmextract-") {
			t.Errorf("left behind: %s", path)
		}
		return nil
	})
}

func TestExistingFiles(t *testing.T) {
	for _, named := range []bool{false, true} {
		t.Run(fmt.Sprintf("named %v", named), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "out")
			p := dir + "/p1"
			if err := os.MkdirAll(p+"/dir", 0o755); err != nil {
				t.Fatal(err)
			}
			outside := filepath.Join(t.TempDir(), "outside")
			for _, n := range []string{p + "/file", outside} {
				if err := os.WriteFile(n, []byte("mine"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			os.Symlink(outside, p+"/link")
			os.Symlink(filepath.Dir(outside), p+"/sub")
			os.WriteFile(p+"/target", nil, 0o600)
			time.Sleep(20 * time.Millisecond) // the kernel's clock for files is coarse
			g := newGuest(t)
			g.folder("/")
			for _, n := range []string{"/dir", "/file", "/link"} {
				g.text(n, "new")
			}
			g.folder("/sub")
			g.text("/sub/f", "new")
			g.symlink("/target", "x")

			force := func(o Options) outcome {
				forceNamed = named
				defer func() { forceNamed = false }()
				return g.into(dir, o)
			}
			o := force(Options{})
			for _, n := range []string{"/dir", "/file", "/link", "/target"} {
				o.want(t, n, "failed", "exists", "")
			}
			o.want(t, "/sub", "failed", "something else", "")
			o.want(t, "/sub/f", "failed", "something else", "")
			if b, _ := os.ReadFile(p + "/file"); string(b) != "mine" {
				t.Errorf("overwritten: %q", b)
			}
			o = force(Options{Force: true})
			o.want(t, "/dir", "failed", "is a directory", "")
			o.want(t, "/file", "ok", "", "new")
			o.want(t, "/link", "ok", "", "new")
			o.want(t, "/target", "ok", "", "")
			o.want(t, "/sub/f", "failed", "something else", "")
			if b, _ := os.ReadFile(outside); string(b) != "mine" {
				t.Errorf("written through a symlink: %q", b)
			}
			if l, _ := os.Readlink(p + "/target"); l != "x" {
				t.Errorf("the symlink leads to %q", l)
			}
			// With Force, a second name that is the same one is still not lost.
			g.files = nil
			g.folder("/")
			g.text("/one", "first")
			g.text("/two", "between")
			g.text("/one", "second")
			o = force(Options{Force: true, Workers: 1})
			o.want(t, "/one", "ok", "", "first")
			o.want(t, "/one#", "failed", "another file of the map", "")
			noTemps(t, dir)
		})
	}
}
