package extract

import (
	"bytes"
	"compress/zlib"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func lstat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t)
}

// every kind of extent gives its bytes.
func TestContent(t *testing.T) {
	g := newGuest(t)
	big := random(3<<20 + 77)
	plain := bytes.Repeat([]byte("compressible "), 20000)
	var z bytes.Buffer
	zw := zlib.NewWriter(&z)
	zw.Write(plain)
	zw.Close()
	// A pack whose coded bytes lie in two places, one of them packed in turn.
	half := z.Len() / 2
	var inner bytes.Buffer
	zw = zlib.NewWriter(&inner)
	zw.Write(z.Bytes()[half:])
	zw.Close()
	first, second := g.at(z.Bytes()[:half]), g.at(inner.Bytes())
	whole := g.at(z.Bytes())
	nest := &mapfile.Pack{Codec: "zlib", Full: int64(z.Len() - half), Parts: []mapfile.Extent{second}}
	two := &mapfile.Pack{Codec: "zlib", Full: int64(len(plain)), Parts: []mapfile.Extent{first, packed(nest, 0, nest.Full)}}
	one := &mapfile.Pack{Codec: "zlib", Full: int64(len(plain)), Parts: []mapfile.Extent{whole}}
	a, b := g.at([]byte("xor")), g.at([]byte("\x00\x01\x02"))
	xor := &mapfile.Pack{Codec: "xor", Full: 3, Parts: []mapfile.Extent{a, b}}
	c, d := g.at([]byte("\x53\x53\x53\x53")), g.at([]byte("raid"))
	raid6 := &mapfile.Pack{Codec: "raid6", Full: 4, Factors: []byte{3, 1}, Parts: []mapfile.Extent{c, d}}
	for _, p := range []*mapfile.Pack{nest, two, one, xor, raid6} {
		for i := range p.Parts {
			p.Parts[i].At = mapfile.None
		}
	}

	g.folder("/")
	g.text("/small", "hello")
	g.add("/empty", mapfile.Regular)
	g.add("/big", mapfile.Regular, g.at(big))
	g.add("/pieces", mapfile.Regular, g.at(big[:100]), inline("in the map"), g.at(big[100:5000]), other(mapfile.Zero, 10), g.at(big[5000:900000]))
	g.add("/sparse", mapfile.Regular, other(mapfile.Hole, 1<<20), g.at([]byte("middle")), other(mapfile.Unwritten, 8192-6), other(mapfile.Zero, 1<<20))
	g.add("/zeros", mapfile.Regular, other(mapfile.Hole, 1<<20))
	g.add("/packed", mapfile.Regular, packed(one, 0, int64(len(plain))))
	g.add("/partly", mapfile.Regular, packed(one, 13, 26), packed(one, 0, 13))
	g.add("/nested", mapfile.Regular, packed(two, 0, int64(len(plain))))
	g.add("/raid6", mapfile.Regular, packed(raid6, 0, 4))
	g.add("/xor", mapfile.Regular, packed(xor, 0, 3))
	slices.SortFunc(g.files, func(a, b mapfile.File) int { return strings.Compare(a.Path, b.Path) })
	for _, workers := range []int{1, 4} {
		o := g.extract(Options{Workers: workers})
		if o.err != nil || o.sum.Gaps() {
			t.Fatalf("%v, %+v, %+v", o.err, o.sum, o.results)
		}
		o.want(t, "/small", "ok", "", "hello")
		o.want(t, "/empty", "ok", "", "")
		o.want(t, "/big", "ok", "", string(big))
		o.want(t, "/pieces", "ok", "", string(big[:100])+"in the map"+string(big[100:5000])+string(make([]byte, 10))+string(big[5000:900000]))
		o.want(t, "/sparse", "ok", "", string(make([]byte, 1<<20))+"middle"+string(make([]byte, 8192-6+1<<20)))
		o.want(t, "/zeros", "ok", "", string(make([]byte, 1<<20)))
		o.want(t, "/packed", "ok", "", string(plain))
		o.want(t, "/partly", "ok", "", "compressible compressible compressible ")
		o.want(t, "/nested", "ok", "", string(plain))
		o.want(t, "/xor", "ok", "", "xnp")
		o.want(t, "/raid6", "ok", "", "\x87\x94\x9c\x91") // 0x53·3 is 0xf5
		if n := lstat(t, o.dir+"/p1/sparse").Blocks * 512; n > 64<<10 {
			t.Errorf("the sparse file takes %d bytes", n)
		}
		want := make([]string, len(g.files))
		for i := range g.files {
			want[i] = g.files[i].Path
		}
		if !slices.Equal(o.order, want) {
			t.Errorf("results come in order %v", o.order)
		}
		if !o.ended {
			t.Error("no end")
		}
	}
}

func TestMetadata(t *testing.T) {
	g := newGuest(t)
	root := g.folder("/")
	root.MTime.Sec = 1000
	d := g.folder("/d")
	d.Mode, d.MTime, d.ATime = 0o1555, mapfile.Time{Sec: 1234567890, Nsec: 5, Known: true}, mapfile.Time{Sec: 77, Known: true}
	f := g.text("/d/f", "x")
	f.Mode, f.ATime = 0o401, mapfile.Time{Sec: 99, Nsec: 1, Known: true}
	f.Xattrs = []mapfile.Xattr{{Name: "user.note", Value: []byte("v\x00")}, {Name: "nonsense", Value: []byte("v")}, {Name: "security.capability", Value: []byte("v")}}
	g.symlink("/d/l", "../nowhere").MTime = mapfile.Time{Sec: 42, Known: true}
	g.add("/d/p", mapfile.FIFO).Mode = 0o640
	g.text("/old", "x").MTime = mapfile.Time{Sec: -5000000000, Nsec: 7, Known: true}
	g.text("/plain", "x").Mode = mapfile.None
	g.text("/setid", "x").Mode = 0o6755
	g.text("/wide", "x").Mode = 0o666

	extract := func(opt Options) outcome {
		o := g.extract(opt)
		t.Cleanup(func() { os.Chmod(o.dir+"/p1/d", 0o755) }) // or only root could remove it
		return o
	}
	o := extract(Options{})
	if o.err != nil || o.sum.Gaps() || len(o.warned) > 0 {
		t.Fatalf("%v, %+v", o.err, o.sum)
	}
	p := o.dir + "/p1"
	if st := lstat(t, p+"/d"); st.Mode&0o7777 != 0o1555 || st.Mtim.Sec != 1234567890 || st.Mtim.Nsec != 5 || st.Atim.Sec != 77 {
		t.Errorf("folder: %+v", st)
	}
	if st := lstat(t, p); st.Mtim.Sec != 1000 {
		t.Errorf("the volume's folder has time %v", st.Mtim)
	}
	if st := lstat(t, p+"/d/f"); st.Mode&0o7777 != 0o401 || st.Mtim.Nsec != 123456789 || st.Atim.Sec != 99 {
		t.Errorf("file: %+v", st)
	}
	if st := lstat(t, p+"/d/l"); st.Mtim.Sec != 42 {
		t.Errorf("symlink: %+v", st)
	}
	if st := lstat(t, p+"/d/p"); st.Mode != syscall.S_IFIFO|0o640 {
		t.Errorf("fifo: %o", st.Mode)
	}
	if st := lstat(t, p+"/setid"); st.Mode&0o7777 != 0o755 {
		t.Errorf("set-id: %o", st.Mode)
	}
	if st := lstat(t, p+"/wide"); st.Mode&0o7777 != 0o666 {
		t.Errorf("wide: %o", st.Mode)
	}
	o.want(t, "/setid", "ok", "set-id", "x")
	o.want(t, "/d/f", "ok", "nonsense not set", "x")
	o.want(t, "/d/f", "ok", "capabilities left out", "x")
	v := make([]byte, 10)
	if n, err := unix.Getxattr(p+"/d/f", "user.note", v); err == nil {
		if string(v[:n]) != "v\x00" {
			t.Errorf("xattr is %q", v[:n])
		}
		if x := o.results["/d/f"].Xattrs; len(x) != 1 || x[0].Name != "user.note" {
			t.Errorf("result tells xattrs %v", x)
		}
	}
	// What the results say is what is there, where a file system can't keep a time too.
	for key, res := range o.results {
		st := lstat(t, res.To)
		if res.MTime.Known && (st.Mtim.Sec != res.MTime.Sec || st.Mtim.Nsec != int64(res.MTime.Nsec)) {
			t.Errorf("%s: time is %v, the result says %v", key, st.Mtim, res.MTime)
		}
		if res.Mode != mapfile.None && int64(st.Mode&0o7777) != res.Mode {
			t.Errorf("%s: mode is %o, the result says %o", key, st.Mode, res.Mode)
		}
	}
	o = extract(Options{Special: true})
	if st := lstat(t, o.dir+"/p1/setid"); st.Mode&0o7777 != 0o6755 {
		t.Errorf("set-id with Special: %o", st.Mode)
	}
}

func TestOwnersAndNodes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	g := newGuest(t)
	own := func(f *mapfile.File) *mapfile.File { f.UID, f.GID = 1234, 2345; return f }
	own(g.folder("/"))
	own(g.text("/a", "x"))
	n := own(g.add("/b", mapfile.Block))
	n.Major, n.Minor = 7, 300
	own(g.add("/c", mapfile.Char))
	own(g.add("/p", mapfile.FIFO))
	own(g.add("/s", mapfile.Socket))
	own(g.symlink("/t", "x"))
	own(g.text("/u", "x")).UID = 1<<32 - 1
	o := g.extract(Options{Owner: true})
	if o.err != nil || o.sum.Gaps() {
		t.Fatalf("%v, %+v", o.err, o.sum)
	}
	for _, n := range []string{"", "/a", "/p", "/t"} {
		if st := lstat(t, o.dir+"/p1"+n); st.Uid != 1234 || st.Gid != 2345 {
			t.Errorf("%s belongs to %d:%d", n, st.Uid, st.Gid)
		}
	}
	for _, n := range []string{"/b", "/c", "/s"} {
		o.want(t, n, "skipped", "--special", "")
	}
	o.want(t, "/u", "ok", "no such id", "x")
	if o.sum.Skipped != 3 {
		t.Errorf("%+v", o.sum)
	}
	o = g.extract(Options{Special: true, Owner: true})
	if st := lstat(t, o.dir+"/p1/b"); st.Mode != syscall.S_IFBLK|0o644 || unix.Major(st.Rdev) != 7 || unix.Minor(st.Rdev) != 300 || st.Uid != 1234 {
		t.Errorf("%+v", st)
	}
	if st := lstat(t, o.dir+"/p1/s"); st.Mode&syscall.S_IFMT != syscall.S_IFSOCK {
		t.Errorf("%+v", st)
	}
}

func TestHardLinks(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	e := g.at([]byte("shared"))
	link := func(path string, inode uint64, links int64, list ...mapfile.Extent) {
		f := g.add(path, mapfile.Regular, list...)
		f.Inode, f.Links = inode, links
	}
	link("/a", 7, 3, e)
	link("/b", 7, 3, e)
	g.folder("/d")
	link("/d/c", 7, 3, e)
	link("/e", 8, 2, g.at([]byte("same inode")))
	link("/f", 8, 2, g.at([]byte("other bytes")))
	link("/g", 9, 2, other(mapfile.Missing, 5))
	link("/h", 9, 2, other(mapfile.Missing, 5))
	o := g.extract(Options{})
	if o.err != nil {
		t.Fatal(o.err)
	}
	for _, n := range []string{"/a", "/b", "/d/c"} {
		o.want(t, n, "ok", "", "shared")
		if lstat(t, o.dir+"/p1"+n).Ino != lstat(t, o.dir+"/p1/a").Ino {
			t.Errorf("%s is no link", n)
		}
	}
	// Two files with one number are no links; what is lost is lost under both names.
	o.want(t, "/e", "ok", "", "same inode")
	o.want(t, "/f", "ok", "", "other bytes")
	o.want(t, "/g", "failed", "missing", "")
	o.want(t, "/h", "failed", "missing", "")
}

func TestGaps(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	bad := g.at([]byte("not zlib at all"))
	bad.At = mapfile.None
	past := g.at([]byte("x"))
	past.Off, past.Len = 1<<40, 100
	long := strings.Repeat("n", 250)
	none := g.at([]byte("x"))
	none.File, none.Off = mapfile.None, mapfile.None
	g.add("/all", mapfile.Regular, other(mapfile.Missing, 100))
	g.add("/bad", mapfile.Regular, packed(&mapfile.Pack{Codec: "zlib", Full: 100, Parts: []mapfile.Extent{bad}}, 0, 100), g.at([]byte("end")))
	g.add("/codec", mapfile.Regular, packed(&mapfile.Pack{Codec: "magic", Full: 100, Parts: []mapfile.Extent{bad}}, 0, 100))
	g.add("/huge", mapfile.Regular, packed(&mapfile.Pack{Codec: "zlib", Full: 1 << 50, Parts: []mapfile.Extent{bad}}, 0, 1<<40))
	g.add("/"+long, mapfile.Regular, g.at([]byte("a")), other(mapfile.Missing, 1))
	g.add("/locked", mapfile.Regular, other(mapfile.Encrypted, 7))
	g.add("/mid", mapfile.Regular, g.at([]byte("start")), other(mapfile.Missing, 10), g.at([]byte("end")))
	g.add("/past", mapfile.Regular, past)
	g.add("/place", mapfile.Regular, none)
	g.add("/unread", mapfile.Regular).Size = 5
	o := g.extract(Options{})
	if o.err != nil || !o.ended || !o.sum.Gaps() || o.sum.Locked() || o.sum.Encrypted != 1 {
		t.Fatalf("%v, %+v", o.err, o.sum)
	}
	o.want(t, "/all", "failed", "bytes 0 to 99: missing", "")
	o.want(t, "/bad", "partial", "codec zlib", string(make([]byte, 100))+"end")
	o.want(t, "/codec", "failed", "magic", "")
	o.want(t, "/huge", "failed", "length", "")
	o.want(t, "/"+long, "partial", "missing", "a\x00")
	o.want(t, "/locked", "failed", "no key", "")
	o.want(t, "/mid", "partial", "bytes 5 to 14: missing", "start"+string(make([]byte, 10))+"end")
	o.want(t, "/past", "failed", "ends at byte", "")
	o.want(t, "/place", "failed", "--rebase", "")
	o.want(t, "/unread", "failed", "doesn't tell", "")
	if to := o.results["/mid"].To; to != o.dir+"/p1/mid.partial" {
		t.Errorf("put at %s", to)
	}
	if len(o.warned) != 10 {
		t.Errorf("%d warnings", len(o.warned))
	}
	if _, err := os.Lstat(o.dir + "/p1/mid"); err == nil {
		t.Error("a partial file under its own name")
	}
}

func TestLocked(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	g.add("/locked", mapfile.Regular, other(mapfile.Encrypted, 7))
	o := g.extract(Options{Patterns: patterns("/locked")})
	if !o.sum.Locked() {
		t.Errorf("%+v", o.sum)
	}
}

func TestSelection(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	g.folder("/etc").Mode = 0o711
	g.text("/etc/passwd", "root")
	g.text("/etc/shadow", "secret")
	g.folder("/usr")
	g.text("/usr/x", "x")
	o := g.extract(Options{Patterns: patterns("p1:/etc/passwd")})
	if o.err != nil || len(o.results) != 1 {
		t.Fatalf("%v, %v", o.err, o.results)
	}
	o.want(t, "/etc/passwd", "ok", "", "root")
	if st := lstat(t, o.dir+"/p1/etc"); st.Mode&0o777 != 0o711 {
		t.Errorf("the folder above has mode %o", st.Mode)
	}
	for _, n := range []string{"/usr", "/etc/shadow"} {
		if _, err := os.Lstat(o.dir + "/p1" + n); err == nil {
			t.Errorf("%s is there", n)
		}
	}
}

func TestPatternsThatMatchNothing(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	g.text("/a", "x")
	o := g.extract(Options{Patterns: patterns("/a", "/b*", "p2:/a")})
	if o.err != nil || o.sum.Problems != 2 || len(o.lines) != 2 || !strings.Contains(o.lines[0], "/b*") || len(o.warned) != 2 {
		t.Errorf("%v, %+v, %q", o.err, o.sum, o.lines)
	}
	o = g.extract(Options{Patterns: patterns("/b", "/c")})
	if o.err == nil || !strings.Contains(o.err.Error(), "/b, /c") || o.ended {
		t.Errorf("%v", o.err)
	}
}

func TestKeys(t *testing.T) {
	g := newGuest(t)
	coded := g.at(make([]byte, 512))
	coded.At = mapfile.None
	p := &mapfile.Pack{Codec: "aes-xts-plain64", Full: 512, Sector: 512, Key: "k", Parts: []mapfile.Extent{coded}}
	g.folder("/")
	g.add("/a", mapfile.Regular, packed(p, 0, 512))
	o := g.extract(Options{Patterns: patterns("/a")})
	if o.want(t, "/a", "failed", "no key", ""); !o.sum.Locked() {
		t.Errorf("%+v", o.sum)
	}
	o = g.extract(Options{Keys: func(id string) ([]byte, bool) { return make([]byte, 32), id == "k" }})
	if r := o.results["/a"]; r.Status != "ok" || o.sum.Gaps() {
		t.Errorf("%+v", r)
	}
}

// TestEndlessHole: a hole takes a guest nothing, and must not take us hours.
func TestEndlessHole(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	g.add("/a", mapfile.Regular, other(mapfile.Hole, 1<<42), g.at([]byte("end")))
	g.text("/b", "after")
	o := g.extract(Options{})
	if r := o.results["/a"]; r.SHA256 != "" || r.Status == "ok" && !strings.Contains(r.Error, noSum) {
		t.Errorf("%+v", r)
	}
	o.want(t, "/b", "ok", "", "after")
	o, _ = g.tar(Options{})
	if r := o.results["/a"]; r.Status != "ok" || r.SHA256 != "" || !strings.Contains(r.Error, noSum) {
		t.Errorf("%+v", r)
	}
}

func TestStreams(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	g.text("/a", "main")
	g.text("/a", "other").Stream = "zone"
	o := g.extract(Options{})
	o.want(t, "/a", "ok", "", "main")
	o.want(t, "/a:zone", "skipped", "--streams", "")
	o = g.extract(Options{Streams: true})
	o.want(t, "/a", "ok", "", "main")
	o.want(t, "/a:zone", "ok", "", "other")
	if b, err := os.ReadFile(o.dir + "/p1/a:zone"); err != nil || string(b) != "other" {
		t.Error(err)
	}
}

func TestPassedOn(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	g.text("/a", "x")
	problem := `{"type":"problem","what":"planted","error":"corrupt","later":[1,2]}`
	unknown := `{"note":"from a later version","type":"x-unknown"}`
	g.lines = []string{problem, unknown}
	o := g.extract(Options{})
	if o.err != nil || o.sum.Problems != 1 || !o.sum.Gaps() || !slices.Equal(o.lines, g.lines) {
		t.Errorf("%v, %+v, %q", o.err, o.sum, o.lines)
	}
}

func TestBadMaps(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	g.text("/a", "x")
	whole := g.stream()
	for name, tt := range map[string]struct {
		in   []byte
		want error
	}{
		"empty":      {nil, io.ErrUnexpectedEOF},
		"cut":        {whole[:len(whole)-60], io.ErrUnexpectedEOF},
		"no map":     {[]byte(`{"type":"end","vms":0}` + "\n"), errNoMap},
		"results":    {[]byte(`{"type":"result","path":"/a","status":"ok"}` + "\n"), errNoMap},
		"not a map":  {[]byte("hello\n"), nil},
		"host files": {bytes.Replace(whole, []byte("disk.img"), []byte("none.img"), 1), fs.ErrNotExist},
	} {
		o := runDir(t, tt.in, filepath.Join(t.TempDir(), "out"), Options{})
		if o.err == nil || o.ended || tt.want != nil && !errors.Is(o.err, tt.want) {
			t.Errorf("%s: %v, ended %v", name, o.err, o.ended)
		}
	}
}

func TestChangedHostFile(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	g.text("/a", "x")
	stream := g.stream()
	path := g.dir + "/disk.img"
	st, _ := os.Stat(path)
	refused := func(what string) {
		t.Helper()
		out := filepath.Join(t.TempDir(), "out")
		o := runDir(t, stream, out, Options{})
		if !errors.Is(o.err, errChanged) || !strings.Contains(o.err.Error(), path) || len(o.results) > 0 {
			t.Errorf("%s: %v", what, o.err)
		}
		if list, _ := os.ReadDir(out); len(list) > 0 {
			t.Errorf("%s: wrote %v", what, list)
		}
	}
	os.Chtimes(path, st.ModTime(), st.ModTime().Add(1))
	refused("time")
	if o := runDir(t, stream, filepath.Join(t.TempDir(), "out"), Options{AnyMTime: true}); o.err != nil {
		t.Error(o.err)
	}
	os.WriteFile(path, append(g.host, 1), 0o600)
	os.Chtimes(path, st.ModTime(), st.ModTime())
	refused("size")
}

func TestImagesFolder(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	g.text("/a", "moved")
	stream := g.stream()
	moved := t.TempDir()
	if err := os.Rename(g.dir+"/disk.img", moved+"/disk.img"); err != nil {
		t.Fatal(err)
	}
	o := runDir(t, stream, filepath.Join(t.TempDir(), "out"), Options{Images: moved})
	o.want(t, "/a", "ok", "", "moved")
}

func TestLongFile(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	var list []mapfile.Extent
	var want []byte
	x := g.at([]byte("0123456789abcdef"))
	for i := range maxHeld + 5000 {
		e := x
		e.Off += int64(i*7) % 15
		e.Len = 1
		want = append(want, g.host[e.Off])
		list = append(list, e)
	}
	g.add("/long", mapfile.Regular, list...).Links = 2
	g.add("/skip", mapfile.Regular, list...)
	g.add("/w", mapfile.Regular, append(slices.Clone(list), other(mapfile.Missing, 1))...)
	g.text("/z", "after")
	o := g.extract(Options{Patterns: patterns("/long", "/w", "/z")})
	if o.err != nil {
		t.Fatal(o.err)
	}
	o.want(t, "/long", "ok", "its other names", string(want))
	o.want(t, "/w", "partial", "missing", string(want)+"\x00")
	o.want(t, "/z", "ok", "", "after")
}

func TestInterrupted(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	for i := range 3000 {
		g.text(fmt.Sprintf("/f%04d", i), "x")
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream := g.stream()
	half := io.MultiReader(bytes.NewReader(stream[:len(stream)/2]), calling(cancel), bytes.NewReader(stream[len(stream)/2:]))
	dir := filepath.Join(t.TempDir(), "out")
	out := collect(t, dir, Options{}, func(o Options) (Summary, error) {
		return ToDir(ctx, mapfile.NewReader(half), dir, o)
	})
	if !errors.Is(out.err, context.Canceled) || out.ended {
		t.Errorf("%v, ended %v", out.err, out.ended)
	}
	noTemps(t, dir)
}

// TestFull: when the output is full the run ends, and no file is cut short under its name.
func TestFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	defer unix.Unmount(dir, 0)
	g := newGuest(t)
	g.folder("/")
	for i := range 20 {
		g.add(fmt.Sprintf("/f%02d", i), mapfile.Regular, g.at(random(200<<10)))
	}
	o := g.into(dir, Options{})
	if !errors.Is(o.err, unix.ENOSPC) || o.ended {
		t.Fatalf("%v, ended %v", o.err, o.ended)
	}
	filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if st, err := e.Info(); err == nil && st.Mode().IsRegular() && st.Size() != 200<<10 {
			t.Errorf("%s has %d bytes", path, st.Size())
		}
		return nil
	})
}

func TestResultsPipeCloses(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	for i := range 3000 {
		g.text(fmt.Sprintf("/f%04d", i), "x")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	_, err = ToDir(context.Background(), mapfile.NewReader(bytes.NewReader(g.stream())), filepath.Join(t.TempDir(), "out"), Options{Results: mapfile.NewWriter(w)})
	if !errors.Is(err, unix.EPIPE) {
		t.Error(err)
	}
}
