package verify

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// account collects what a comparison finds.
type account struct {
	sum   Summary
	err   error
	found []string // "what path"
	lines []string
	ended bool
}

func collect(t *testing.T, f func(*mapfile.Writer) (Summary, error)) (a account) {
	t.Helper()
	var buf bytes.Buffer
	w := mapfile.NewWriter(&buf)
	a.sum, a.err = f(w)
	w.Flush()
	r := mapfile.NewReader(bytes.NewReader(buf.Bytes()))
	for {
		rec, err := r.Next()
		if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
			return a
		}
		if err != nil {
			t.Fatal(err)
		}
		switch x := rec.(type) {
		case *mapfile.Finding:
			path := x.Path
			if x.Stream != "" {
				path += ":" + x.Stream
			}
			a.found = append(a.found, x.What+" "+path)
			if x.Expected == x.Found {
				t.Errorf("a finding that tells no difference: %+v", x)
			}
		case *mapfile.End:
			a.ended = true
			if x.Differences != int64(len(a.found)) || x.Differences != a.sum.Differences || x.Checked != a.sum.Checked || x.Problems != a.sum.Problems {
				t.Errorf("end %+v, summary %+v, %d findings", x, a.sum, len(a.found))
			}
		default:
			a.lines = append(a.lines, string(r.Line()))
		}
	}
}

func (a *account) want(t *testing.T, found ...string) {
	t.Helper()
	if a.err != nil || !a.ended {
		t.Errorf("%v, ended %v", a.err, a.ended)
	}
	if strings.Join(a.found, "\n") != strings.Join(found, "\n") {
		t.Errorf("found %q, should be %q", a.found, found)
	}
}

func sum(s string) string {
	h := sha256.Sum256([]byte(s))
	return hex.EncodeToString(h[:])
}

// tree makes a small tree and the results that tell of it.
func tree(t *testing.T) (dir string, results []mapfile.Result) {
	dir = t.TempDir()
	root := filepath.Join(dir, "p1")
	when := time.Unix(1600000000, 123456789)
	add := func(path string, kind mapfile.FileKind, content string) *mapfile.Result {
		to := root + strings.TrimSuffix(path, "/")
		res := mapfile.Result{Volume: 1, Name: "p1", Path: path, Kind: kind, To: to, Size: mapfile.None, Status: "ok",
			Mode: mapfile.None, UID: mapfile.None, GID: mapfile.None, MTime: mapfile.TimeOf(when)}
		var err error
		switch kind {
		case mapfile.Directory:
			err = os.Mkdir(to, 0o755)
			res.Mode = 0o755
		case mapfile.Symlink:
			err = os.Symlink(content, to)
			res.Target = content
		case mapfile.FIFO:
			err = unix.Mkfifo(to, 0o600)
			res.Mode = 0o600
		default:
			err = os.WriteFile(to, []byte(content), 0o640)
			res.Mode, res.Size, res.SHA256 = 0o640, int64(len(content)), sum(content)
		}
		if err != nil {
			t.Fatal(err)
		}
		st, _ := os.Lstat(to)
		_ = st
		res.UID, res.GID = int64(os.Getuid()), int64(os.Getgid())
		results = append(results, res)
		return &results[len(results)-1]
	}
	add("/", mapfile.Directory, "")
	add("/a", mapfile.Regular, "hello")
	add("/d", mapfile.Directory, "")
	add("/d/b", mapfile.Regular, "")
	add("/d/l", mapfile.Symlink, "../a")
	add("/p", mapfile.FIFO, "")
	x := add("/x", mapfile.Regular, "with xattr")
	if unix.Setxattr(x.To, "user.a", []byte("v"), 0) == nil {
		x.Xattrs = []mapfile.Xattr{{Name: "user.a", Value: []byte("v")}}
	}
	for _, res := range results {
		ts := []unix.Timespec{{Sec: 5}, unix.NsecToTimespec(when.UnixNano())}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, res.To, ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
	return dir, results
}

func resultStream(results []mapfile.Result, lines ...string) []byte {
	var buf bytes.Buffer
	w := mapfile.NewWriter(&buf)
	for i := range results {
		w.Result(&results[i])
	}
	for _, l := range lines {
		w.Other(&mapfile.Other{Raw: []byte(l)})
	}
	w.End(&mapfile.End{Kind: mapfile.EndOfResults})
	return buf.Bytes()
}

func records(t *testing.T, stream []byte, o Options) account {
	t.Helper()
	return collect(t, func(w *mapfile.Writer) (Summary, error) {
		o.Out = w
		return Records(context.Background(), mapfile.NewReader(bytes.NewReader(stream)), o)
	})
}

// TestResults plants a difference in each thing that is compared.
func TestResults(t *testing.T) {
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	keepTime := func(path string, f func() error) error {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		if err := f(); err != nil {
			return err
		}
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
	}
	for _, tt := range []struct {
		name  string
		root  bool
		xattr bool
		spoil func(p string) error
		want  []string
	}{
		{"nothing", false, false, func(string) error { return nil }, nil},
		{"content", false, false, func(p string) error {
			return keepTime(p+"/a", func() error { return os.WriteFile(p+"/a", []byte("hallo"), 0) })
		}, []string{"content /a"}},
		{"size", false, false, func(p string) error { return keepTime(p+"/a", func() error { return os.Truncate(p+"/a", 4) }) }, []string{"size /a"}},
		{"mode", false, false, func(p string) error { return os.Chmod(p+"/a", 0o600) }, []string{"mode /a"}},
		{"mode of a folder", false, false, func(p string) error { return os.Chmod(p+"/d", 0o700) }, []string{"mode /d"}},
		{"owner", true, false, func(p string) error { return os.Lchown(p+"/d/l", 1234, 5678) }, []string{"owner /d/l"}},
		{"time", false, false, func(p string) error { return os.Chtimes(p+"/a", time.Time{}, time.Unix(1600000000, 123456788)) }, []string{"time /a"}},
		{"time of a folder", false, false, func(p string) error { return os.Chtimes(p+"/d", time.Time{}, time.Unix(1, 0)) }, []string{"time /d"}},
		{"type", false, false, func(p string) error {
			return errors.Join(os.Remove(p+"/a"), os.Symlink("d/b", p+"/a"), os.Chtimes(p, time.Time{}, time.Unix(1600000000, 123456789)))
		}, []string{"type /a"}},
		{"target", false, false, func(p string) error {
			return keepTime(p+"/d", func() error {
				return errors.Join(os.Remove(p+"/d/l"), os.Symlink("../b", p+"/d/l"),
					unix.UtimesNanoAt(unix.AT_FDCWD, p+"/d/l", []unix.Timespec{{}, {Sec: 1600000000, Nsec: 123456789}}, unix.AT_SYMLINK_NOFOLLOW))
			})
		}, []string{"target /d/l"}},
		{"xattr changed", false, true, func(p string) error { return unix.Setxattr(p+"/x", "user.a", []byte("w"), 0) }, []string{"xattr /x"}},
		{"xattr gone", false, true, func(p string) error { return unix.Removexattr(p+"/x", "user.a") }, []string{"xattr /x"}},
		{"missing", false, false, func(p string) error { return keepTime(p, func() error { return os.Remove(p + "/p") }) }, []string{"missing /p"}},
		{"extra", false, false, func(p string) error {
			return keepTime(p, func() error {
				return errors.Join(os.MkdirAll(p+"/more/below", 0o755), os.WriteFile(p+"/more/below/f", nil, 0o600), os.WriteFile(p+"/z", nil, 0o600))
			})
		}, []string{"extra P/more", "extra P/z"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.root && os.Geteuid() != 0 {
				t.Skip("needs root")
			}
			dir, list := tree(t)
			if tt.xattr && list[len(list)-1].Xattrs == nil {
				t.Skip("the file system has no xattrs")
			}
			p := dir + "/p1"
			must(tt.spoil(p))
			stream := resultStream(list)
			a := records(t, stream, Options{Extra: true})
			for i := range a.found {
				a.found[i] = strings.Replace(a.found[i], p, "P", 1)
			}
			a.want(t, tt.want...)
			if a.sum.Checked != int64(len(list)) {
				t.Errorf("%+v", a.sum)
			}
			if tt.name == "extra" {
				a = records(t, stream, Options{})
				a.want(t)
			}
		})
	}
}

func TestResultsBelowFolder(t *testing.T) {
	dir, list := tree(t)
	for i := range list {
		list[i].To = strings.TrimPrefix(list[i].To, dir+"/")
	}
	list[0].To += "/" // as a tar member
	a := records(t, resultStream(list), Options{Dir: dir, Extra: true})
	a.want(t)
	list[1].Path, list[1].To = "/gone", "p1/gone"
	a = records(t, resultStream(list[1:]), Options{Dir: dir, Extra: true})
	a.want(t, "missing /gone", "extra "+dir+"/p1/a")
}

func TestGapsArePassedOn(t *testing.T) {
	_, list := tree(t)
	list[1].Status, list[1].Error = "partial", "bytes 0 to 4: missing"
	list[3].Status, list[3].Error = "failed", "no place"
	list[5].Status, list[5].Error = "skipped", "device node"
	problem, unknown := `{"type":"problem","what":"planted","error":"corrupt"}`, `{"type":"x-unknown","a":1}`
	a := records(t, resultStream(list, problem, unknown), Options{})
	a.want(t)
	if a.sum.Problems != 3 || len(a.lines) != 4 || a.lines[2] != problem || a.lines[3] != unknown || !strings.Contains(a.lines[0], "partial: bytes 0") {
		t.Errorf("%+v, %q", a.sum, a.lines)
	}
	cut := resultStream(list)
	cut = cut[:len(cut)-20]
	if a = records(t, cut, Options{}); !errors.Is(a.err, io.ErrUnexpectedEOF) || a.ended {
		t.Errorf("%v", a.err)
	}
	if a = records(t, []byte(`{"type":"end","vms":1}`+"\n"), Options{}); !errors.Is(a.err, errNothing) {
		t.Errorf("%v", a.err)
	}
}

func TestSums(t *testing.T) {
	dir := t.TempDir()
	names := []string{"a", "with space", "back\\slash", "new\nline", "sub/b"}
	os.Mkdir(dir+"/sub", 0o755)
	for _, n := range names {
		if err := os.WriteFile(filepath.Join(dir, n), []byte(n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run := func(list string) account {
		return collect(t, func(w *mapfile.Writer) (Summary, error) {
			return Sums(context.Background(), strings.NewReader(list), Options{Dir: dir, Extra: true, Out: w})
		})
	}
	plain := sum("a") + "  a\n" + strings.ToUpper(sum("with space")) + " *with space\n" +
		"\\" + sum("back\\slash") + "  back\\\\slash\n\\" + sum("new\nline") + "  new\\nline\n\n" + "SHA256 (sub/b) = " + sum("sub/b") + "\n"
	a := run(plain)
	a.want(t)
	if a.sum.Checked != 5 {
		t.Errorf("%+v", a.sum)
	}
	a = run(sum("b") + "  a\n" + sum("x") + "  gone\n" + sum("x") + "  sub\n")
	a.want(t, "content a", "missing gone", "type sub", "extra "+dir+"/back\\slash", "extra "+dir+"/new\nline", "extra "+dir+"/sub/b", "extra "+dir+"/with space")
	for _, bad := range []string{"", "hello\n", sum("a")[:63] + "  a\n", sum("a") + " a\n", sum("a") + "  \n", "SHA256 (a = x\n", "zz" + sum("a")[2:] + "  a\n", strings.Repeat("x", maxSumLine+10)} {
		if a = run(bad); a.err == nil || a.ended {
			t.Errorf("%.40q: %v", bad, a.err)
		}
	}
	if _, err := exec.LookPath("sha256sum"); err != nil {
		t.Skip("needs sha256sum for the rest")
	}
	for _, flag := range []string{"--text", "--binary", "--tag"} {
		cmd := exec.Command("sha256sum", append([]string{flag, "--"}, names...)...)
		cmd.Dir = dir
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		a = run(string(out))
		a.want(t)
	}
}

// image is a host file and a map of it.
func image(t *testing.T) (path string, m []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk.img")
	text := strings.Repeat("packed ", 1000)
	var z bytes.Buffer
	zw := zlib.NewWriter(&z)
	zw.Write([]byte(text))
	zw.Close()
	host := "plain" + z.String()
	if err := os.WriteFile(path, []byte(host), 0o600); err != nil {
		t.Fatal(err)
	}
	st, _ := os.Stat(path)
	var buf bytes.Buffer
	w := mapfile.NewWriter(&buf)
	w.Map(&mapfile.Map{Version: 1})
	size := int64(len(host))
	w.Image(&mapfile.Image{Name: "disk", Format: "raw", Size: size, Files: []mapfile.HostFile{{Path: path, Size: size, MTime: mapfile.TimeOf(st.ModTime())}}})
	w.Volume(&mapfile.Volume{Name: "disk", Kind: "disk", Size: size, In: mapfile.None, Used: mapfile.None})
	ext := func(kind mapfile.Kind, at, n int64) mapfile.Extent {
		return mapfile.Extent{At: at, Len: n, Kind: kind, Disk: mapfile.None, Image: mapfile.None, File: mapfile.None, Off: mapfile.None}
	}
	data := func(at, n, off int64) mapfile.Extent {
		e := ext(mapfile.Data, at, n)
		e.Disk, e.File, e.Off = off, 0, off
		return e
	}
	file := func(name, sum string, list ...mapfile.Extent) {
		f := mapfile.File{Path: name, Kind: mapfile.Regular, Mode: 0o644, UID: 0, GID: 0, Links: 1, SHA256: sum}
		for _, e := range list {
			f.Size += e.Len
		}
		f.Extents = list
		w.File(&f)
	}
	in := ext(mapfile.Inline, 5, 2)
	in.Bytes = []byte("in")
	pk := ext(mapfile.Packed, 0, int64(len(text)))
	part := data(0, int64(z.Len()), 5)
	part.At = mapfile.None
	pk.Pack = &mapfile.Pack{Codec: "zlib", Full: int64(len(text)), Parts: []mapfile.Extent{part}}
	half := pk
	half.Skip, half.Len = 7, 7
	w.File(&mapfile.File{Path: "/", Kind: mapfile.Directory, Mode: 0o755, UID: 0, GID: 0, Links: 2})
	file("/a", sum("plainin\x00\x00\x00"), data(0, 5, 0), in, ext(mapfile.Hole, 7, 3))
	file("/b", sum(text), pk)
	file("/c", sum("packed "), half)
	file("/d", "", data(0, 5, 0))
	c := w.Count()
	w.End(&c)
	return path, buf.Bytes()
}

func TestMapAgainstImage(t *testing.T) {
	path, m := image(t)
	a := records(t, m, Options{})
	a.want(t)
	if a.sum.Checked != 5 {
		t.Errorf("%+v", a.sum)
	}
	spoil := func(old, new string) []byte {
		if !bytes.Contains(m, []byte(old)) {
			t.Fatalf("no %s in the map", old)
		}
		return bytes.Replace(m, []byte(old), []byte(new), 1)
	}
	a = records(t, spoil(sum("packed "), sum("other")), Options{})
	a.want(t, "content /c")
	a = records(t, spoil(`"kind":"hole"`, `"kind":"missing"`), Options{})
	a.want(t)
	if a.sum.Problems != 1 || !strings.Contains(a.lines[0], "bytes 7 to 9: missing") {
		t.Errorf("%+v, %q", a.sum, a.lines)
	}
	a = records(t, spoil(`"codec":"zlib"`, `"codec":"aes-xts-plain64"`), Options{})
	if a.want(t); a.sum.Problems != 1 || a.sum.Locked() {
		t.Errorf("%+v, %q", a.sum, a.lines)
	}
	// The image itself changes.
	st, _ := os.Stat(path)
	b, _ := os.ReadFile(path)
	b[0] = 'P'
	os.WriteFile(path, b, 0o600)
	a = records(t, m, Options{AnyMTime: true})
	a.want(t, "content /a")
	a = records(t, m, Options{})
	a.want(t, "host file "+path, "content /a")
	os.Truncate(path, st.Size()-1)
	a = records(t, m, Options{AnyMTime: true})
	a.want(t, "host file "+path, "content /a")
	if a.sum.Problems != 2 { // what is packed ends too soon
		t.Errorf("%+v, %q", a.sum, a.lines)
	}
	moved := t.TempDir()
	os.WriteFile(moved+"/disk.img", append([]byte("plain"), b[5:]...), 0o600)
	os.Remove(path)
	a = records(t, m, Options{Images: moved, AnyMTime: true})
	a.want(t)
	a = records(t, m, Options{})
	a.want(t, "missing "+path)
	if a.sum.Problems != 4 {
		t.Errorf("%+v", a.sum)
	}
}

// twoMaps makes maps of the same small tree and lets change spoil a file of the second.
func twoMaps(change func(path string, f *mapfile.File), drop ...string) (old, now []byte) {
	build := func(second bool) []byte {
		var buf bytes.Buffer
		w := mapfile.NewWriter(&buf)
		w.Map(&mapfile.Map{Version: 1})
		w.Image(&mapfile.Image{Name: "disk", Format: "raw", Size: 9, Files: []mapfile.HostFile{{Path: "x", Size: 9}}})
		w.Volume(&mapfile.Volume{ID: 0, Name: "disk", Kind: "disk", Size: 9, In: mapfile.None, Used: mapfile.None})
		w.Volume(&mapfile.Volume{ID: 1, Name: "p1", Kind: "partition", Size: 9, In: 0, Used: mapfile.None, FS: "ext4"})
		for _, n := range []string{"/", "/a", "/a/x", "/a-b", "/dev", "/f", "/l"} {
			f := mapfile.File{Volume: 1, Path: n, Kind: mapfile.Regular, Mode: 0o644, UID: 0, GID: 0, Links: 1, Size: 5, MTime: mapfile.Time{Sec: 1, Known: true},
				Xattrs:  []mapfile.Xattr{{Name: "user.a", Value: []byte("v")}},
				Extents: []mapfile.Extent{{Len: 5, Kind: mapfile.Data, Disk: 3, Image: mapfile.None, File: 0, Off: 3}}}
			switch n {
			case "/", "/a":
				f.Kind, f.Extents = mapfile.Directory, nil
			case "/dev":
				f.Kind, f.Extents, f.Major = mapfile.Char, nil, 5
			case "/l":
				f.Kind, f.Extents, f.Target = mapfile.Symlink, nil, "t"
			}
			if second {
				if change != nil {
					change(n, &f)
				}
				if len(drop) > 0 && drop[0] == n {
					continue
				}
			}
			w.File(&f)
		}
		c := w.Count()
		w.End(&c)
		return buf.Bytes()
	}
	return build(false), build(true)
}

func TestMaps(t *testing.T) {
	on := func(path string, f func(*mapfile.File)) func(string, *mapfile.File) {
		return func(p string, x *mapfile.File) {
			if p == path {
				f(x)
			}
		}
	}
	compare := func(old, now []byte) account {
		return collect(t, func(w *mapfile.Writer) (Summary, error) {
			return Maps(context.Background(), mapfile.NewReader(bytes.NewReader(old)), mapfile.NewReader(bytes.NewReader(now)), Options{Out: w})
		})
	}
	for _, tt := range []struct {
		name   string
		change func(string, *mapfile.File)
		want   []string
	}{
		{"nothing", nil, nil},
		{"extents", on("/f", func(f *mapfile.File) { f.Extents[0].Disk = 4 }), []string{"extents /f"}},
		{"size", on("/f", func(f *mapfile.File) { f.Size, f.Extents[0].Len = 4, 4 }), []string{"size /f", "extents /f"}},
		{"mode", on("/a", func(f *mapfile.File) { f.Mode = 0o600 }), []string{"mode /a"}},
		{"owner", on("/f", func(f *mapfile.File) { f.GID = 7 }), []string{"owner /f"}},
		{"links", on("/f", func(f *mapfile.File) { f.Links = 7 }), []string{"links /f"}},
		{"time", on("/f", func(f *mapfile.File) { f.MTime.Nsec = 1 }), []string{"time /f"}},
		{"target", on("/l", func(f *mapfile.File) { f.Target = "u" }), []string{"target /l"}},
		{"device", on("/dev", func(f *mapfile.File) { f.Minor = 7 }), []string{"device /dev"}},
		{"type", on("/dev", func(f *mapfile.File) { f.Kind = mapfile.FIFO }), []string{"type /dev"}},
		{"xattr", on("/f", func(f *mapfile.File) { f.Xattrs[0].Value = []byte("w") }), []string{"xattr /f"}},
		{"xattr renamed", on("/f", func(f *mapfile.File) { f.Xattrs[0].Name = "user.b" }), []string{"xattr /f", "xattr /f"}},
		{"renamed", on("/a/x", func(f *mapfile.File) { f.Path = "/a/y" }), []string{"missing /a/x", "extra /a/y"}},
		{"stream", on("/f", func(f *mapfile.File) { f.Stream = "s" }), []string{"missing /f", "extra /f:s"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := compare(twoMaps(tt.change))
			a.want(t, tt.want...)
		})
	}
	for _, n := range []string{"/", "/a/x", "/a-b", "/l"} {
		old, now := twoMaps(nil, n)
		a := compare(old, now)
		a.want(t, "missing "+n)
		a = compare(now, old)
		a.want(t, "extra "+n)
	}
	old, now := twoMaps(on("/f", func(f *mapfile.File) { f.SHA256 = sum("b"); f.Extents[0].Disk = 4 }))
	withSum := bytes.Replace(old, []byte(`"path":"/f",`), []byte(`"path":"/f","sha256":"`+sum("a")+`",`), 1)
	a := compare(withSum, now)
	a.want(t, "content /f")
	a = compare(bytes.Replace(withSum, []byte(sum("a")), []byte(sum("b")), 1), now)
	a.want(t) // the bytes moved, and are the same
	other := bytes.Replace(bytes.Replace(old, []byte(`"name":"p1"`), []byte(`"name":"p9"`), 1), []byte(`"fs":"ext4"`), []byte(`"fs":"xfs"`), 1)
	a = compare(old, other)
	a.want(t, "missing p1", "extra p9")
	a = compare(old, bytes.Replace(old, []byte(`"fs":"ext4"`), []byte(`"fs":"xfs"`), 1))
	a.want(t, "file system p1")
	for name, bad := range map[string][]byte{"cut": old[:len(old)-20], "two maps": append(bytes.Clone(old), old...), "no map": []byte(`{"type":"end"}` + "\n"),
		"order": bytes.Replace(old, []byte(`"path":"/a-b"`), []byte(`"path":"/Z"`), 1)} {
		if a = compare(old, bad); a.err == nil || a.ended {
			t.Errorf("%s: %v", name, a.err)
		}
	}
}

// A file of very many extents is compared without holding them.
func TestLongFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	os.WriteFile(path, []byte("abc"), 0o600)
	build := func(last int64) []byte {
		var buf bytes.Buffer
		w := mapfile.NewWriter(&buf)
		w.Map(&mapfile.Map{Version: 1})
		w.Image(&mapfile.Image{Name: "disk", Format: "raw", Size: 3, Files: []mapfile.HostFile{{Path: path, Size: 3}}})
		w.Volume(&mapfile.Volume{Name: "disk", Kind: "disk", Size: 3, In: mapfile.None, Used: mapfile.None})
		f := mapfile.File{Path: "/f", Kind: mapfile.Regular, Mode: mapfile.None, UID: mapfile.None, GID: mapfile.None, Links: mapfile.None}
		var content strings.Builder
		for i := range int64(maxHeld + 3000) {
			off := i * 7 % 3
			if i == maxHeld+2990 {
				off = last
			}
			content.WriteByte("abc"[off])
			f.Extents = append(f.Extents, mapfile.Extent{At: i, Len: 1, Kind: mapfile.Data, Disk: off, Image: mapfile.None, File: 0, Off: off})
		}
		f.Size = int64(len(f.Extents))
		f.SHA256 = sum(content.String())
		if last < 0 {
			f.SHA256 = ""
		}
		w.File(&f)
		c := w.Count()
		w.End(&c)
		return buf.Bytes()
	}
	a := records(t, build(0), Options{})
	a.want(t)
	a = records(t, bytes.Replace(build(0), []byte(`"sha256":"`), []byte(`"x":"`), 1), Options{})
	a.want(t)
	strip := func(b []byte) *mapfile.Reader {
		return mapfile.NewReader(bytes.NewReader(bytes.Replace(b, []byte(`"sha256":"`), []byte(`"x":"`), 1)))
	}
	a = collect(t, func(w *mapfile.Writer) (Summary, error) {
		return Maps(context.Background(), strip(build(0)), strip(build(1)), Options{Out: w})
	})
	a.want(t, "extents /f")
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, list := tree(t)
	_, err := Records(ctx, mapfile.NewReader(bytes.NewReader(resultStream(list))), Options{})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestText(t *testing.T) {
	for want, f := range map[string]mapfile.Finding{
		"/a: size is 2, should be 1":               {What: Size, Path: "/a", Expected: "1", Found: "2"},
		"/a:s: missing: regular":                   {What: Missing, Path: "/a", Stream: "s", Expected: "regular", Found: "nothing"},
		"go-ntfs: /a: not in the account: symlink": {What: Extra, Path: "/a", Expected: "nothing", Found: "symlink", Reader: "go-ntfs"},
	} {
		if got := Text(&f); got != want {
			t.Error(got)
		}
	}
	_ = fmt.Sprint
}
