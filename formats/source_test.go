package formats_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"vmkit/formats"
)

// tree makes files (content is their own path), folders (name ends in /) and links ("name -> target").
func tree(t *testing.T, names ...string) string {
	t.Helper()
	top := t.TempDir()
	for _, n := range names {
		n, target, link := strings.Cut(n, " -> ")
		path := filepath.Join(top, n)
		if strings.HasSuffix(n, "/") {
			check(t, os.MkdirAll(path, 0o755))
			continue
		}
		check(t, os.MkdirAll(filepath.Dir(path), 0o755))
		if link {
			check(t, os.Symlink(strings.Replace(target, "TOP", top, 1), path))
		} else {
			check(t, os.WriteFile(path, []byte(n), 0o644))
		}
	}
	return top
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCompanion(t *testing.T) {
	top := tree(t, "vm/top", "vm/base", "vm/sub/deep", "vm/dir/", "other/secret", "other/shared", "pool/real", "pool/beside",
		"vm/inside -> base", "vm/abs -> TOP/vm/base", "vm/out -> ../other/secret", "vm/outdir -> ../other", "vm/dangling -> gone",
		"vm/loop -> loop", "link -> pool/real", "vmlink -> vm", "vm/ext -> ../allowed/ext", "allowed/ext")
	check(t, unix.Mkfifo(filepath.Join(top, "vm/pipe"), 0o600))
	for _, tc := range []struct {
		image, name string
		want        string // the content, or a part of the error
		absent      bool
	}{
		{image: "vm/top", name: "base", want: "vm/base"},
		{image: "vm/top", name: "./base", want: "vm/base"},
		{image: "vm/top", name: "file:base", want: "vm/base"},
		{image: "vm/top", name: "sub/deep", want: "vm/sub/deep"},
		{image: "vm/top", name: "sub/../base", want: "vm/base"},
		{image: "vm/top", name: "../vm/base", want: "vm/base"},
		{image: "vm/top", name: "TOP/vm/base", want: "vm/base"},
		{image: "vm/top", name: "file://TOP/vm/base", want: "vm/base"},
		{image: "vm/top", name: "inside", want: "vm/base"},
		{image: "vm/top", name: "abs", want: "vm/base"},
		{image: "vm/top", name: "ext", want: "allowed/ext"},
		{image: "vm/top", name: "TOP/allowed/ext", want: "allowed/ext"},
		{image: "vmlink/top", name: "base", want: "vm/base"},
		{image: "vmlink/top", name: "TOP/vm/base", want: "vm/base"},
		{image: "vmlink/top", name: "TOP/vmlink/base", want: "vm/base"},
		{image: "link", name: "TOP/pool/beside", want: "pool/beside"},

		{image: "vm/top", name: "../other/secret", want: "--allow-dir TOP/other"},
		{image: "vm/top", name: "TOP/other/secret", want: "--allow-dir TOP/other"},
		{image: "vm/top", name: "TOP/other/gone", want: "outside"},
		{image: "vm/top", name: "TOP/nowhere/gone", want: "outside"},
		{image: "vm/top", name: "out", want: "outside"},
		{image: "vm/top", name: "outdir/secret", want: "outside"},
		{image: "vm/top", name: "outdir/../other/secret", want: "is not there", absent: true}, // cleaned first: vm/other/secret
		{image: "vm/sub/deep", name: "../base", want: "outside"},
		{image: "vm/top", name: "/etc/passwd", want: "outside"},
		{image: "vm/top", name: "/dev/null", want: "outside"},

		{image: "vm/top", name: "gone", want: "TOP/vm/gone is not there", absent: true},
		{image: "vm/top", name: "dangling", want: "is not there", absent: true},
		{image: "vm/top", name: "sub/gone/x", want: "TOP/vm/sub/gone/x is not there", absent: true},
		{image: "vm/top", name: "loop", want: "loop"},
		{image: "vm/top", name: "dir", want: "is a folder"},
		{image: "vm/top", name: "pipe", want: "is a pipe"},
		{image: "vm/top", name: "", want: "corrupt"},
		{image: "vm/top", name: "a\x00b", want: "corrupt"},
		{image: "vm/top", name: `json:{"driver":"file","filename":"/etc/passwd"}`, want: `"json:" is not followed`},
		{image: "vm/top", name: "nbd://localhost/x", want: `"nbd:" is not followed`},
		{image: "vm/top", name: "https://example.org/x", want: `"https:" is not followed`},
		{image: "vm/top", name: `C:\vms\base`, want: "--images"},
	} {
		t.Run(tc.image+" names "+strings.ReplaceAll(tc.name, "/", "|"), func(t *testing.T) {
			s := &formats.OSSource{AllowDirs: []string{filepath.Join(top, "allowed")}}
			defer s.Close()
			of, err := s.Open(filepath.Join(top, tc.image))
			check(t, err)
			f, err := s.Companion(of, strings.Replace(tc.name, "TOP", top, 1), formats.RoleBacking)
			if err == nil {
				b := make([]byte, f.Size)
				f.ReadAt(b, 0)
				if string(b) != tc.want {
					t.Errorf("opened %s with %q, want %q", f.Path, b, tc.want)
				}
				return
			}
			if want := strings.Replace(tc.want, "TOP", top, 1); !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want one line with %q", err, want)
			}
			if errors.Is(err, fs.ErrNotExist) != tc.absent {
				t.Errorf("error %q: is fs.ErrNotExist %v, want %v", err, !tc.absent, tc.absent)
			}
		})
	}
}

func TestRelativePaths(t *testing.T) {
	t.Chdir(tree(t, "vm/top", "vm/base", "base", "other/x"))
	s := &formats.OSSource{AllowDirs: []string{"other"}}
	defer s.Close()
	of, err := s.Open("vm/top")
	check(t, err)
	f, err := s.Companion(of, "base", formats.RoleBacking)
	check(t, err)
	if f.Path != "vm/base" {
		t.Errorf("found as %s, want vm/base", f.Path)
	}
	f, err = s.Companion(of, "../other/x", formats.RoleBacking)
	check(t, err)
	if f.Path != "other/x" {
		t.Errorf("found as %s, want other/x", f.Path)
	}
	if _, err = s.Companion(of, "../base", formats.RoleBacking); err == nil {
		t.Error("climbed out of the folder")
	}
}

func TestImages(t *testing.T) {
	top := tree(t, "pool/top", "pool/base", "vm/top", "vm/base", "vm/other", "secret", "pool/out -> ../secret")
	s := &formats.OSSource{Images: filepath.Join(top, "pool")}
	defer s.Close()
	of, err := s.Open("/somewhere/else/top")
	check(t, err)
	for name, want := range map[string]string{
		"base": "pool/base", "/var/lib/libvirt/images/base": "pool/base", `C:\vms\base`: "pool/base", "../base": "pool/base",
		filepath.Join(top, "vm/other"): "", "other": "", "out": "", "json:{}": "", "..": "", "/": "",
	} {
		f, err := s.Companion(of, name, formats.RoleBacking)
		switch {
		case want == "" && err == nil:
			t.Errorf("%s was opened as %s", name, f.Path)
		case want != "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case want != "" && f.Path != filepath.Join(top, want):
			t.Errorf("%s was opened as %s, want %s", name, f.Path, want)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	top := tree(t, "dir/")
	check(t, unix.Mkfifo(filepath.Join(top, "pipe"), 0o600))
	l, err := net.Listen("unix", filepath.Join(top, "socket"))
	check(t, err)
	defer l.Close()
	s := &formats.OSSource{}
	for name, want := range map[string]string{"dir": "a folder", "pipe": "a pipe", "socket": "a socket", "gone": "is not there", "/dev/zero": "a character device"} {
		if !filepath.IsAbs(name) {
			name = filepath.Join(top, name)
		}
		if _, err := s.Open(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", name, err, want)
		}
	}
}

func TestKeyAndClose(t *testing.T) {
	top := tree(t, "a", "b", "link -> a")
	check(t, os.Link(filepath.Join(top, "a"), filepath.Join(top, "hard")))
	s := &formats.OSSource{}
	keys := map[string]string{}
	var last *formats.File
	for _, n := range []string{"a", "b", "link", "hard"} {
		f, err := s.Open(filepath.Join(top, n))
		check(t, err)
		keys[n], last = f.Key, f
	}
	if keys["a"] != keys["link"] || keys["a"] != keys["hard"] || keys["a"] == keys["b"] {
		t.Errorf("keys %v", keys)
	}
	check(t, s.Close())
	if _, err := last.ReadAt(make([]byte, 1), 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

// TestInUse takes the lock that QEMU takes on an image that a guest may write to.
func TestInUse(t *testing.T) {
	top := tree(t, "disk")
	path := filepath.Join(top, "disk")
	h, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	defer h.Close()
	lock := func(at int64, typ int16) {
		t.Helper()
		check(t, unix.FcntlFlock(h.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: at, Len: 1}))
	}
	strict, share := &formats.OSSource{}, &formats.OSSource{ForceShare: true}
	defer strict.Close()
	defer share.Close()
	lock(100, unix.F_RDLCK) // a reader
	lock(201, unix.F_RDLCK)
	f, err := strict.Open(path)
	check(t, err)
	if f.InUse {
		t.Error("a reader's lock is taken for a writer's")
	}
	lock(101, unix.F_RDLCK)
	if _, err := strict.Open(path); err == nil || !strings.Contains(err.Error(), "in use") || !strings.Contains(err.Error(), "--force-share") {
		t.Errorf("error %v", err)
	}
	f, err = share.Open(path)
	check(t, err)
	if !f.InUse {
		t.Error("a writer's lock is not seen")
	}
}

func TestVMwareLock(t *testing.T) {
	top := tree(t, "a.vmdk", "a.vmdk.lck/M12345.lck", "b.vmdk", "b.vmdk.lck/", "c.vmdk", "c.vmdk.WRITELOCK")
	s := &formats.OSSource{}
	defer s.Close()
	for name, noted := range map[string]int{"a.vmdk": 1, "b.vmdk": 0, "c.vmdk": 1} {
		f, err := s.Open(filepath.Join(top, name))
		check(t, err)
		if len(f.Notes) != noted {
			t.Errorf("%s: notes %q, want %d", name, f.Notes, noted)
		}
	}
}
