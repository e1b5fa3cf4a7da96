package fsmaptest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// Listing is a file system rendered as fixtures/xfs-oracle/list.py does, so that the two can be compared line by line.
type Listing struct {
	Lines []string
	// Problems are those of single files.
	Problems []string

	fs      fsmap.FS
	members []fsmap.Member
	times   bool
}

// List renders all of a file system.
func List(fs fsmap.FS, times bool, members ...fsmap.Member) *Listing {
	l := &Listing{fs: fs, members: members, times: times}
	l.walk("/", fsmap.Entry{Ref: fs.Info().Root})
	return l
}

func (l *Listing) problem(path string, err error) {
	l.Problems = append(l.Problems, path+": "+err.Error())
}

func (l *Listing) walk(path string, e fsmap.Entry) {
	var n fsmap.Node
	n.Reset()
	if err := l.fs.Node(e, &n); err != nil {
		l.problem(path, err)
		return
	}
	for _, err := range n.Problems {
		l.problem(path, err)
	}
	l.Lines = append(l.Lines, l.row(path, &n))
	if n.Kind != mapfile.Directory {
		return
	}
	var names []fsmap.Entry
	err := l.fs.ReadDir(&n, func(e fsmap.Entry) bool {
		e.Name = bytes.Clone(e.Name)
		names = append(names, e)
		return len(names) < 1<<20
	})
	if err != nil {
		l.problem(path, err)
	}
	slices.SortFunc(names, func(a, b fsmap.Entry) int { return bytes.Compare(a.Name, b.Name) })
	for _, e := range names {
		if len(l.Lines) > 1<<17 || strings.Count(path, "/") > 200 {
			return
		}
		l.walk(strings.TrimSuffix(path, "/")+"/"+string(e.Name), e)
	}
}

func (l *Listing) row(path string, n *fsmap.Node) string {
	sha, target, ext, size := "-", "-", "-", int64(0)
	switch n.Kind {
	case mapfile.Regular:
		size = n.Size
		sha, ext = l.content(path, n)
	case mapfile.Symlink:
		size = n.Size
		target = escape(string(n.Target))
	case mapfile.Char, mapfile.Block:
		target = fmt.Sprintf("%d:%d", n.Major, n.Minor)
	}
	project := uint32(0)
	if n.Kind == mapfile.Regular || n.Kind == mapfile.Directory {
		project = n.Project
	}
	cols := []string{escape(path), string(rune(n.Kind)), fmt.Sprintf("%04o", n.Mode), strconv.FormatInt(n.UID, 10), strconv.FormatInt(n.GID, 10),
		strconv.FormatInt(n.Links, 10), strconv.FormatInt(size, 10), strconv.Itoa(int(project)), stamp(n.MTime)}
	if l.times {
		cols = append(cols, stamp(n.CTime), stamp(n.ATime), stamp(n.BTime))
	}
	var xa []string
	for _, x := range n.Xattrs {
		h := sha256.Sum256(x.Value)
		xa = append(xa, escape(x.Name)+"="+hex.EncodeToString(h[:8]))
	}
	slices.Sort(xa)
	attrs := "-"
	if len(xa) > 0 {
		attrs = strings.Join(xa, ",")
	}
	return strings.Join(append(cols, sha, target, attrs, ext), "\t")
}

// content reads a file through its runs alone.
func (l *Listing) content(path string, n *fsmap.Node) (sha, ext string) {
	var runs fsmap.Runs
	runs.Reset(n.Size)
	if err := l.fs.Runs(n, nil, &runs); err != nil {
		l.problem(path, err)
	}
	runs.Fill(mapfile.Hole)
	var list []string
	for _, x := range runs.List {
		switch x.Kind {
		case mapfile.Data:
			list = append(list, fmt.Sprintf("%d:%d:%d", x.At, x.Off, x.Len))
		case mapfile.Unwritten:
			list = append(list, fmt.Sprintf("%d:%d:%du", x.At, x.Off, x.Len))
		case mapfile.Hole:
		default:
			list = append(list, fmt.Sprintf("%d:%s:%d", x.At, x.Kind, x.Len))
		}
	}
	sha, ext = "-", "-"
	if len(list) > 0 {
		ext = strings.Join(list, ",")
	}
	if n.Size >= 1<<32 {
		return sha, ext // as in list.py
	}
	sha, err := digest(l.members, runs.List)
	if err != nil {
		l.problem(path, err)
	}
	return sha, ext
}

func stamp(t mapfile.Time) string {
	if !t.Known {
		return "-"
	}
	n := new(big.Int).Mul(big.NewInt(t.Sec), big.NewInt(1e9))
	return n.Add(n, big.NewInt(int64(t.Nsec))).String()
}

func escape(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < 32 || c >= 127 || c == '\\' {
			fmt.Fprintf(&b, "\\x%02x", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// CompareLists reports the first differences between two listings.
func CompareLists(t testing.TB, got, want []string) {
	t.Helper()
	key := func(s string) string { k, _, _ := strings.Cut(s, "\t"); return k }
	g, w := make(map[string]string), make(map[string]string)
	for _, s := range got {
		g[key(s)] = s
	}
	shown := 0
	say := func(f string, a ...any) {
		if shown++; shown <= 10 {
			t.Errorf(f, a...)
		}
	}
	for _, s := range want {
		k := key(s)
		w[k] = s
		switch x, ok := g[k]; {
		case !ok:
			say("lacks %s", s)
		case x != s:
			a, b := x, s
			for i := 0; i+200 < min(len(x), len(s)); i += 100 { // long lists of extents: from about where they part
				if x[:i+100] == s[:i+100] {
					a, b = k+" … "+x[i+100:], k+" … "+s[i+100:]
				}
			}
			say("differs:\n got  %s\n want %s", a, b)
		}
	}
	for _, s := range got {
		if _, ok := w[key(s)]; !ok {
			say("has %s", s)
		}
	}
	if shown > 10 {
		t.Errorf("and %d more differences", shown-10)
	}
}
