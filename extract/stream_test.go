package extract

import (
	"archive/tar"
	"bytes"
	"compress/zlib"
	"context"
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

func (g *guest) tar(o Options) (outcome, []byte) {
	var b bytes.Buffer
	stream := g.stream()
	out := collect(g.t, "", o, func(o Options) (Summary, error) {
		return ToTar(context.Background(), mapfile.NewReader(bytes.NewReader(stream)), &b, o)
	})
	return out, b.Bytes()
}

func (g *guest) cat(o Options, volume string) (outcome, string) {
	var b bytes.Buffer
	stream := g.stream()
	out := collect(g.t, "", o, func(o Options) (Summary, error) {
		r := mapfile.NewReader(bytes.NewReader(stream))
		if volume != "" {
			return CatVolume(context.Background(), r, &b, volume, o)
		}
		return Cat(context.Background(), r, &b, o)
	})
	return out, b.String()
}

// sampleTree is one of everything that a tar can hold.
func sampleTree(t *testing.T) (g *guest, large []byte) {
	g = newGuest(t)
	large = random(3<<20 + 5)
	var z bytes.Buffer
	zw := zlib.NewWriter(&z)
	zw.Write(large)
	zw.Close()
	coded := g.at(z.Bytes())
	coded.At = mapfile.None
	pack := &mapfile.Pack{Codec: "zlib", Full: int64(len(large)), Parts: []mapfile.Extent{coded}}
	g.folder("/")
	f := g.text("/a", "hello")
	f.Mode, f.Xattrs = 0o4640, []mapfile.Xattr{{Name: "user.a=%", Value: []byte("v\x00\n")}}
	f.UID, f.GID = 1<<21+5, 1<<31
	f.ATime = mapfile.Time{Sec: 5, Nsec: 6, Known: true}
	d := g.folder("/dir")
	d.Mode, d.MTime = 0o1755, mapfile.Time{Sec: 7, Known: true}
	g.add("/dir/large", mapfile.Regular, g.at(large))
	g.add("/dir/packed", mapfile.Regular, packed(pack, 0, pack.Full), inline("tail"))
	g.symlink("/dir/symlink", strings.Repeat("../", 60)+"x")
	g.text("/dir/"+strings.Repeat("long name ", 20), "long")
	g.add("/empty", mapfile.Regular)
	e := g.at([]byte("linked"))
	for _, n := range []string{"/h1", "/h2"} {
		f := g.add(n, mapfile.Regular, e)
		f.Inode, f.Links = 99, 2
	}
	g.text("/old", "x").MTime = mapfile.Time{Sec: -2, Nsec: 500000000, Known: true}
	g.add("/p", mapfile.FIFO)
	g.add("/sparse", mapfile.Regular, other(mapfile.Hole, 1<<20), g.at([]byte("middle")), other(mapfile.Zero, 1<<20), g.at(large[:5000]), other(mapfile.Unwritten, 1<<20))
	g.add("/sparse-large", mapfile.Regular, g.at(large), other(mapfile.Hole, 1<<20), g.at(large[:2<<20]))
	g.text("/\xff\n", "odd name")
	g.add("/zeros", mapfile.Regular, other(mapfile.Hole, 1<<20))
	return g, large
}

// TestTarMembers reads the tar with Go's reader.
func TestTarMembers(t *testing.T) {
	g, large := sampleTree(t)
	o, b := g.tar(Options{})
	if o.err != nil || o.sum.Gaps() || !o.ended {
		t.Fatalf("%v, %+v, %v", o.err, o.sum, o.warned)
	}
	if len(o.results) != len(g.files) {
		t.Errorf("%d results for %d files", len(o.results), len(g.files))
	}
	got := map[string]string{}
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		got[h.Name] = fmt.Sprintf("%c %04o %d %s %s", h.Typeflag, h.Mode, h.ModTime.UnixNano(), h.Linkname, data)
		switch h.Name {
		case "p1/a":
			if h.Uid != 1<<21+5 || h.Gid != 1<<31 || h.PAXRecords["SCHILY.xattr.user.a%3D%25"] != "v\x00\n" || h.AccessTime != time.Unix(5, 6) {
				t.Errorf("%+v", h)
			}
		}
	}
	zero := string(make([]byte, 1<<20))
	const when = 1600000000123456789
	for name, want := range map[string]string{
		"p1/":            fmt.Sprintf("5 0755 %d  ", when),
		"p1/a":           fmt.Sprintf("0 0640 %d  hello", when),
		"p1/dir/":        "5 1755 7000000000  ",
		"p1/dir/large":   fmt.Sprintf("0 0644 %d  %s", when, large),
		"p1/dir/packed":  fmt.Sprintf("0 0644 %d  %stail", when, large),
		"p1/dir/symlink": fmt.Sprintf("2 0644 %d %sx ", when, strings.Repeat("../", 60)),
		"p1/dir/" + strings.Repeat("long name ", 20): fmt.Sprintf("0 0644 %d  long", when),
		"p1/empty":        fmt.Sprintf("0 0644 %d  ", when),
		"p1/h1":           fmt.Sprintf("0 0644 %d  linked", when),
		"p1/h2":           fmt.Sprintf("1 0644 %d p1/h1 ", when),
		"p1/old":          "0 0644 -1500000000  x",
		"p1/p":            fmt.Sprintf("6 0644 %d  ", when),
		"p1/sparse":       fmt.Sprintf("0 0644 %d  %smiddle%s%s%s", when, zero, zero, large[:5000], zero),
		"p1/sparse-large": fmt.Sprintf("0 0644 %d  %s%s%s", when, large, zero, large[:2<<20]),
		"p1/\xff\n":       fmt.Sprintf("0 0644 %d  odd name", when),
		"p1/zeros":        fmt.Sprintf("0 0644 %d  %s", when, zero),
	} {
		if got[name] != want {
			t.Errorf("%q: is %.100q (%d bytes), should be %.100q (%d)", name, got[name], len(got[name]), want, len(want))
		}
	}
	if len(b) > 13<<20 {
		t.Errorf("%d bytes: the holes are in the archive", len(b))
	}
}

// TestTarAndFolder: what GNU tar unpacks is what goes into a folder, and the results say the same.
func TestTarAndFolder(t *testing.T) {
	if _, err := exec.LookPath("tar"); err != nil {
		t.Skip("needs tar")
	}
	g, _ := sampleTree(t)
	g.files[1].UID, g.files[1].GID = mapfile.None, mapfile.None
	o, b := g.tar(Options{})
	direct := g.extract(Options{})
	out := t.TempDir()
	cmd := exec.Command("tar", "--xattrs", "-xpf", "-", "-C", out)
	cmd.Stdin = bytes.NewReader(b)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, msg)
	}
	for key, res := range o.results {
		want := direct.results[key]
		if res.SHA256 != want.SHA256 || res.Status != want.Status || res.Size != want.Size || res.Mode != want.Mode || res.MTime != want.MTime {
			t.Errorf("%s: results %+v and %+v", key, res, want)
		}
		p, q := filepath.Join(out, res.To), want.To
		a, err := os.Lstat(p)
		if err != nil {
			t.Error(err)
			continue
		}
		c, _ := os.Lstat(q)
		if a.Mode() != c.Mode() || !a.ModTime().Equal(c.ModTime()) || a.Size() != c.Size() && !a.IsDir() {
			t.Errorf("%s: %v and %v", key, a, c)
		}
		if res.Kind == mapfile.Regular {
			x, _ := os.ReadFile(p)
			y, _ := os.ReadFile(q)
			if !bytes.Equal(x, y) {
				t.Errorf("%s: other content", key)
			}
		}
	}
	if st := lstat(t, out+"/p1/zeros"); st.Blocks*512 > 64<<10 {
		t.Errorf("zeros takes %d bytes", st.Blocks*512)
	}
	if lstat(t, out+"/p1/h1").Ino != lstat(t, out+"/p1/h2").Ino {
		t.Error("the hard link is lost")
	}
	v := make([]byte, 10)
	if n, err := unix.Getxattr(out+"/p1/a", "user.a=%", v); err == nil && string(v[:n]) != "v\x00\n" {
		t.Errorf("xattr is %q", v[:n])
	}
}

func TestTarGaps(t *testing.T) {
	g := newGuest(t)
	big := random(2 << 20)
	bad := g.at([]byte("not zlib at all"))
	bad.At = mapfile.None
	junk := packed(&mapfile.Pack{Codec: "zlib", Full: 1000, Parts: []mapfile.Extent{bad}}, 0, 1000)
	past := g.at([]byte("x"))
	past.Off, past.Len = 1<<40, 100
	g.folder("/")
	g.add("/all", mapfile.Regular, other(mapfile.Missing, 3<<20))
	g.add("/large", mapfile.Regular, g.at(big), junk, g.at([]byte("end")), past)
	for _, n := range []string{"/link1", "/link2"} {
		f := g.add(n, mapfile.Regular, other(mapfile.Missing, 5), g.at([]byte("x")))
		f.Inode, f.Links = 99, 2
	}
	g.add("/locked", mapfile.Regular, other(mapfile.Encrypted, 5))
	g.add("/small", mapfile.Regular, g.at([]byte("start")), other(mapfile.Missing, 10), g.at([]byte("end")))
	g.add("/unread", mapfile.Regular).Size = 5
	g.text("/z", "after")
	o, b := g.tar(Options{})
	if o.err != nil || !o.ended || o.sum.Failed != 3 || o.sum.Partial != 4 || o.sum.Encrypted != 1 {
		t.Fatalf("%v, %+v", o.err, o.sum)
	}
	got := map[string]string{}
	r := tar.NewReader(bytes.NewReader(b))
	for h, err := r.Next(); err == nil; h, err = r.Next() {
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(data)
	}
	zero := func(n int) string { return string(make([]byte, n)) }
	for name, want := range map[string]string{
		"p1/": "", "p1/z": "after",
		"p1/large.partial": string(big) + zero(1000) + "end" + zero(100),
		"p1/link1.partial": zero(5) + "x", "p1/link2.partial": zero(5) + "x",
		"p1/small.partial": "start" + zero(10) + "end",
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s: %.40q", name, v)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("more members: %v", got)
	}
}

func TestTarHostile(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	g.text("/../up", "x")
	g.text("/dup", "first")
	g.text("/dup", "second")
	g.folder("/e")
	g.text("/e/f", "x")
	g.text("/e", "a file now")
	g.symlink("/l", "/etc")
	g.text("/l/passwd", "x")
	g.add("/s", mapfile.Socket)
	o, b := g.tar(Options{Special: true})
	if o.err != nil {
		t.Fatal(o.err)
	}
	for key, reason := range map[string]string{"/../up": "..", "/dup#": "twice", "/e#": "twice", "/l/passwd": "no folder"} {
		o.want(t, key, "failed", reason, "")
	}
	o.want(t, "/s", "skipped", "tar has none", "")
	names := map[string]bool{}
	r := tar.NewReader(bytes.NewReader(b))
	for h, err := r.Next(); err == nil; h, err = r.Next() {
		if names[h.Name] || strings.Contains(h.Name, "..") || strings.HasPrefix(h.Name, "p1/l/") {
			t.Errorf("member %s", h.Name)
		}
		names[h.Name] = true
	}
}

func TestCat(t *testing.T) {
	g, large := sampleTree(t)
	only := func(names ...string) Options { return Options{Patterns: patterns(names...)} }
	o, got := g.cat(only("/a", "/dir/packed", "/empty", "/sparse"), "")
	zero := string(make([]byte, 1<<20))
	if want := "hello" + string(large) + "tail" + zero + "middle" + zero + string(large[:5000]) + zero; o.err != nil || got != want {
		t.Fatalf("%v, %d bytes, should be %d", o.err, len(got), len(want))
	}
	direct := g.extract(Options{})
	for _, n := range []string{"/a", "/dir/packed", "/empty", "/sparse"} {
		if r := o.results[n]; r.SHA256 != direct.results[n].SHA256 || r.Status != "ok" || r.To != "" {
			t.Errorf("%s: %+v", n, r)
		}
	}
	o, got = g.cat(only("/dir/symlink", "/p"), "")
	if o.err != nil || got != "" || o.sum.Skipped != 2 {
		t.Errorf("%v, %q, %+v", o.err, got, o.sum)
	}
	o.want(t, "/dir/symlink", "skipped", "symlink to ../", "")
}

// TestCatStopsAtGap: what follows lost bytes is not put in their place.
func TestCatStopsAtGap(t *testing.T) {
	g := newGuest(t)
	g.folder("/")
	g.text("/a", "before")
	g.add("/b", mapfile.Regular, g.at([]byte("start")), other(mapfile.Missing, 10), g.at([]byte("end")))
	g.text("/c", "after")
	o, got := g.cat(Options{}, "")
	if o.err != nil || got != "beforestart" || !o.sum.Gaps() || !o.ended {
		t.Errorf("%v, %q, %+v", o.err, got, o.sum)
	}
	o.want(t, "/b", "partial", "bytes 5 to 14: missing", "")
	g = newGuest(t)
	g.add("/unread", mapfile.Regular).Size = 5
	if o, got = g.cat(Options{}, ""); got != "" || o.sum.Partial != 1 {
		t.Errorf("%q, %+v", got, o.sum)
	}
}

func TestCatVolume(t *testing.T) {
	g := newGuest(t)
	data := random(2 << 20)
	e := g.at(data)
	stream := string(g.stream())
	own := func(list ...mapfile.Extent) string {
		var buf bytes.Buffer
		at := int64(0)
		for i := range list {
			list[i].At = at
			at += list[i].Len
			x, _ := mapfile.AppendExtents(nil, &mapfile.Extents{Extents: list[i : i+1], More: i < len(list)-1})
			buf.Write(x)
		}
		return strings.Replace(stream, `{"type":"end"`, buf.String()+`{"type":"end"`, 1)
	}
	a, b := e, e
	a.Len, b.Off, b.Len = 1<<20, b.Off+1<<20, 1<<20-5000
	run := func(in, name string) (Summary, string, error) {
		var w bytes.Buffer
		s, err := CatVolume(context.Background(), mapfile.NewReader(strings.NewReader(in)), &w, name, Options{})
		return s, w.String(), err
	}
	in := own(a, b, other(mapfile.Hole, 5000))
	s, got, err := run(in, "p1")
	if want := string(data[:2<<20-5000]) + string(make([]byte, 5000)); err != nil || got != want || s.OK != 1 {
		t.Errorf("%v, %+v, %d bytes", err, s, len(got))
	}
	if _, _, err = run(in, "p2"); err == nil || !strings.Contains(err.Error(), "p2") {
		t.Error(err)
	}
	s, got, err = run(own(a, other(mapfile.Missing, 1<<20)), "p1")
	if err != nil || got != string(data[:1<<20]) || s.Partial != 1 {
		t.Errorf("%v, %+v, %d bytes", err, s, len(got))
	}
}

type brokenPipe struct{ n int }

func (w *brokenPipe) Write(p []byte) (int, error) {
	if w.n += len(p); w.n > 1<<20 {
		return 0, unix.EPIPE
	}
	return len(p), nil
}

func TestStreamReaderLeaves(t *testing.T) {
	g, _ := sampleTree(t)
	in := func() *mapfile.Reader { return mapfile.NewReader(bytes.NewReader(g.stream())) }
	if _, err := ToTar(context.Background(), in(), &brokenPipe{}, Options{}); !errors.Is(err, unix.EPIPE) {
		t.Error(err)
	}
	if _, err := Cat(context.Background(), in(), &brokenPipe{}, Options{}); !errors.Is(err, unix.EPIPE) {
		t.Error(err)
	}
}
