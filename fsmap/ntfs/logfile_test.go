package ntfs

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmkit/fixtures"
	"vmkit/fsmap"
	"vmkit/fsmap/fsmaptest"
	"vmkit/fsmap/internal/overlay"
	"vmkit/fsmap/mapfile"
)

// logImages are volumes whose logs hold work, by name; what is given out is copied.
var logImages map[string][]byte

func logImage(t testing.TB, name string) []byte {
	t.Helper()
	if logImages == nil {
		logImages = readImages(t, "4096")
	}
	if logImages[name] == nil {
		t.Fatal("no image", name)
	}
	return bytes.Clone(logImages[name])
}

func readImages(t testing.TB, set string) map[string][]byte {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(filepath.Dir(fixtures.Image(t, "ntfs-log", set+".tar.zst")), "*.img"))
	if err != nil || len(paths) < 7 {
		t.Fatal(paths, err)
	}
	images := make(map[string][]byte)
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		images[strings.TrimSuffix(filepath.Base(p), ".img")] = b
	}
	return images
}

func openBytes(t testing.TB, b []byte, mode fsmap.JournalMode) (fsmap.FS, *fsmaptest.Tree) {
	t.Helper()
	r := bytes.NewReader(b)
	f := fsmaptest.Open(t, Driver, r, r.Size(), fsmap.Options{Journal: mode})
	return f, fsmaptest.Walk(t, f, r, r.Size())
}

// TestReplay compares volumes after the replay with what ntfs-3g showed of the states that their logs lead to.
func TestReplay(t *testing.T) {
	for _, set := range []string{"4096", "512", "64k", "4kn"} {
		for name, b := range readImages(t, set) {
			t.Run(set+"/"+name, func(t *testing.T) {
				f, tree := openBytes(t, b, fsmap.JournalReplay)
				if i := f.Info(); i.Journal != "replayed" || len(i.Problems) > 0 {
					t.Errorf("journal %s, problems %v", i.Journal, i.Problems)
				}
				state, _, _ := strings.Cut(name, "-")
				tree.Compare(t, fixtures.Expect(t, "ntfs-log", set+"-"+state+".tsv"), 0)
				for _, e := range tree.Errs() {
					t.Error(e)
				}
				if name == "first-undone" {
					tree.Concurrent(t)
				}
			})
		}
	}
}

// TestReplayModes asks for the state without the replay, and for none.
func TestReplayModes(t *testing.T) {
	b := logImage(t, "second-ended")
	f, tree := openBytes(t, b, fsmap.JournalIgnore)
	if i := f.Info(); i.Journal != "ignored" || len(i.Notes) != 1 || tree.Files["small"] == nil || tree.Files["new"] != nil {
		t.Errorf("journal %s, notes %v, files %v", i.Journal, i.Notes, slices.Sorted(maps.Keys(tree.Files)))
	}
	if _, err := Driver.Open(bytes.NewReader(b), int64(len(b)), fsmap.Options{Journal: fsmap.JournalFail}); err == nil || !strings.Contains(err.Error(), "holds work") {
		t.Errorf("JournalFail: %v", err)
	}
}

// TestReplayedRuns looks at where the bytes are of a file that is in the log only: verbatim in the volume, or in the map.
func TestReplayedRuns(t *testing.T) {
	b := logImage(t, "second-ended")
	_, tree := openBytes(t, b, fsmap.JournalReplay)
	for _, path := range []string{"new/small", "big/name of a file, number 100.txt"} {
		f := tree.Files[path]
		if f == nil || len(f.Runs) == 0 || f.Runs[0].Kind != mapfile.Inline {
			t.Errorf("%s: %+v", path, f)
		}
	}
	// Nothing that a map says of a volume may be untrue of it.
	r := bytes.NewReader(b)
	meta := fsmaptest.Walk(t, fsmaptest.Open(t, Driver, r, r.Size(), fsmap.Options{Metadata: true}), r, r.Size())
	inline := false
	for _, x := range meta.Files["$MFT"].Runs {
		inline = inline || x.Kind == mapfile.Inline
	}
	if !inline || meta.Files["$MFT"].SHA256 == "" {
		t.Error("$MFT has no bytes that only the log holds")
	}
}

// logEdit changes the log of a volume.
type logEdit struct {
	t testing.TB
	b []byte
	f *fs
	l *logFile
}

func editLog(t testing.TB, b []byte) *logEdit {
	t.Helper()
	v, err := open(bytes.NewReader(b), int64(len(b)), fsmap.Options{Journal: fsmap.JournalIgnore})
	if err != nil {
		t.Fatal(err)
	}
	f := v.(*fs)
	ino := f.newInode()
	if err := f.load(ino, recLogFile, 0); err != nil {
		t.Fatal(err)
	}
	s, err := f.open(ino, atData, "")
	if err != nil {
		t.Fatal(err)
	}
	area, err := f.restartArea(s)
	if err != nil {
		t.Fatal(err)
	}
	l, err := openLog(s, area)
	if err != nil {
		t.Fatal(err)
	}
	return &logEdit{t, b, f, l}
}

// raw gives the page of the log at pos as it lies in the volume.
func (e *logEdit) raw(pos int64) []byte {
	at, _, _ := e.l.s.at(pos)
	return e.b[at : at+logPage]
}

// page changes a page, and protects it again.
func (e *logEdit) page(pos int64, change func(b []byte)) {
	e.t.Helper()
	b := e.raw(pos)
	magic := string(b[:4])
	if err := fixup(b, magic, "page", pos); err != nil {
		e.t.Fatal(err)
	}
	change(b)
	if err := protect(b, magic, "page", pos); err != nil {
		e.t.Fatal(err)
	}
}

// restart changes both restart pages; area is where the restart area begins.
func (e *logEdit) restart(change func(b, area []byte)) {
	for pos := int64(0); pos < restarts*logPage; pos += logPage {
		e.page(pos, func(b []byte) { change(b, b[le.Uint16(b[rpArea:]):]) })
	}
}

// records changes up to n of the records behind the restart record that are wanted, of those that lie in one page.
func (e *logEdit) records(n int, want func(*change) bool, change func(header, data []byte)) {
	e.t.Helper()
	var found []int64
	_, err := e.l.walk(e.l.restart, func(r *logRecord) error {
		pos := e.l.position(r.lsn)
		if c, err := parseChange(r); err == nil && len(found) < n && want(c) && pos%logPage+int64(e.l.header+len(r.data)) <= logPage {
			found = append(found, pos)
		}
		return nil
	})
	if err != nil || len(found) == 0 {
		e.t.Fatal("no such record", err)
	}
	for _, pos := range found {
		e.page(pos&^(logPage-1), func(b []byte) {
			at := int(pos % logPage)
			change(b[at:], b[at+e.l.header:])
		})
	}
}

func (e *logEdit) record(want func(*change) bool, change func(header, data []byte)) {
	e.t.Helper()
	e.records(1, want, change)
}

// last turns a condition into one that is true of the last few such records only.
func (e *logEdit) last(want func(*change) bool) func(*change) bool {
	n, seen := 0, 0
	e.l.walk(e.l.restart, func(r *logRecord) error {
		if c, err := parseChange(r); err == nil && want(c) {
			n++
		}
		return nil
	})
	return func(c *change) bool {
		if want(c) {
			seen++
			return seen > n-8
		}
		return false
	}
}

func redo(op uint16) func(*change) bool { return func(c *change) bool { return c.redo == op } }

func set16(b []byte, at int, v uint16) { le.PutUint16(b[at:], v) }

// TestUnreplayed damages logs and volumes. Each must be shown as it lies on disk, with the reason.
func TestUnreplayed(t *testing.T) {
	any := func(c *change) bool { return c.lcns > 0 }
	for _, x := range []struct {
		name, image, reason string
		damage              func(e *logEdit)
	}{
		{"version", "second-ended", "version 3.0", func(e *logEdit) {
			e.restart(func(b, _ []byte) { set16(b, rpMajor, 3); set16(b, rpMinor, 0) })
		}},
		{"page size", "second-ended", "bytes of a page", func(e *logEdit) {
			e.restart(func(b, _ []byte) { le.PutUint32(b[rpLogPage:], 8192) })
		}},
		{"clients", "second-ended", "clients", func(e *logEdit) { e.restart(func(_, a []byte) { set16(a, raClients, 2) }) }},
		{"client name", "second-ended", "client ", func(e *logEdit) { e.restart(func(_, a []byte) { a[0x40+crName+4] = 'X' }) }},
		{"file size", "second-ended", "bytes of the log", func(e *logEdit) { e.restart(func(_, a []byte) { le.PutUint64(a[raFileSize:], 1<<40) }) }},
		{"sequence bits", "second-ended", "bits of the sequence", func(e *logEdit) { e.restart(func(_, a []byte) { le.PutUint32(a[raSeqBits:], 50) }) }},
		{"no restart page", "second-ended", "restart page", func(e *logEdit) { e.raw(0)[510] ^= 1; e.raw(logPage)[510] ^= 1 }},
		{"restart record", "second-ended", "no restart record", func(e *logEdit) {
			e.restart(func(_, a []byte) { le.PutUint64(a[0x40+crRestart:], e.l.restart+8) })
		}},
		{"ends early", "second-ended", "before the restart area's", func(e *logEdit) {
			e.restart(func(_, a []byte) { le.PutUint64(a[raCurrent:], e.l.restart+1<<20) })
		}},
		{"torn page", "second-ended", "breaks off", func(e *logEdit) { e.raw(e.l.first + 4*logPage)[510] ^= 1 }},
		{"lost page", "first-undone", "breaks off", func(e *logEdit) { clear(e.raw(e.l.first + 5*logPage)) }},
		{"unknown operation", "second-ended", "operation 0x30", func(e *logEdit) {
			e.record(any, func(_, d []byte) { set16(d, opRedo, 0x30) })
		}},
		{"hot fix", "second-ended", "HotFix", func(e *logEdit) { e.record(any, func(_, d []byte) { set16(d, opRedo, opHotFix) }) }},
		{"transaction", "second-ended", "transaction", func(e *logEdit) {
			e.record(any, func(h, _ []byte) { le.PutUint32(h[lrTrans:], 5) })
		}},
		{"client of a record", "second-ended", "unknown client", func(e *logEdit) {
			e.record(any, func(h, _ []byte) { set16(h, lrIndex, 1) })
		}},
		{"bytes of a record", "second-ended", "bytes to redo", func(e *logEdit) {
			e.record(redo(opCreateAttr), func(_, d []byte) { set16(d, opRedoLen, 0x7000) })
		}},
		{"offset of an attribute", "second-ended", "offset of an attribute", func(e *logEdit) {
			e.record(redo(opPairs), func(_, d []byte) { set16(d, opRecordOff, le.Uint16(d[opRecordOff:])+8) })
		}},
		{"offset of an entry", "second-ended", "offset of an index entry", func(e *logEdit) {
			e.record(redo(opAddIndex), func(_, d []byte) { set16(d, opAttrOff, le.Uint16(d[opAttrOff:])+8) })
		}},
		{"position of a block", "second-ended", "position of a block", func(e *logEdit) {
			e.record(redo(opAddIndex), func(_, d []byte) { set16(d, opClusterOff, 1) })
		}},
		{"cluster", "second-ended", "$LogFile: cluster", func(e *logEdit) {
			e.records(1<<20, any, func(_, d []byte) { le.PutUint64(d[opClusters:], 1<<40) })
		}},
		{"open attribute", "second-ended", "open attribute", func(e *logEdit) {
			e.record(redo(opSetBits), func(_, d []byte) { set16(d, opAttr, 0x7000) })
		}},
		{"wrong attribute", "second-ended", "operation on a record of the MFT", func(e *logEdit) {
			e.record(redo(opCreateAttr), func(_, d []byte) { set16(d, opAttr, 0x40) })
		}},
		{"place used twice", "second-ended", "two of them used", func(e *logEdit) {
			e.record(func(c *change) bool { return c.redo == opOpenAttr && c.attr > 0x40 }, func(_, d []byte) { set16(d, opAttr, 0x18) })
		}},
		{"prepared", "first-undone", "prepared transaction", func(e *logEdit) {
			e.record(e.last(any), func(_, d []byte) { set16(d, opRedo, opPrepare) })
		}},
		{"undone twice", "first-undone", "LSN of the record to undo next", func(e *logEdit) {
			e.record(e.last(any), func(h, _ []byte) { le.PutUint64(h[lrUndoNext:], le.Uint64(h)+8) })
		}},
		{"table", "second-checkpoint", "table", func(e *logEdit) {
			e.page(e.l.position(e.l.restart)&^(logPage-1), func(b []byte) {
				le.PutUint64(b[int(e.l.position(e.l.restart)%logPage)+e.l.header+rsTransLSN:], e.l.restart)
			})
		}},
		{"table version", "second-checkpoint", "version of the tables", func(e *logEdit) {
			e.page(e.l.position(e.l.restart)&^(logPage-1), func(b []byte) { b[int(e.l.position(e.l.restart)%logPage)+e.l.header] = 2 })
		}},
		{"torn record of the MFT", "second-ended", "block to change (FILE)", func(e *logEdit) {
			pos, _, _ := e.f.recordPos(recRoot, stride-2)
			e.b[pos] ^= 1
		}},
	} {
		t.Run(x.name, func(t *testing.T) {
			b := logImage(t, x.image)
			e := editLog(t, b)
			x.damage(e)
			f, tree := openBytes(t, b, fsmap.JournalReplay)
			i := f.Info()
			if i.Journal != "unreplayed" || len(i.Problems) != 1 || !strings.Contains(i.Problems[0].Error(), x.reason) {
				t.Errorf("journal %s, problems %v", i.Journal, i.Problems)
			}
			if _, stale := openBytes(t, b, fsmap.JournalIgnore); !slices.Equal(slices.Sorted(maps.Keys(tree.Files)), slices.Sorted(maps.Keys(stale.Files))) {
				t.Error("it is not shown as it lies on disk")
			}
			if _, err := Driver.Open(bytes.NewReader(b), int64(len(b)), fsmap.Options{Journal: fsmap.JournalFail}); err == nil {
				t.Error("JournalFail: no error")
			}
		})
	}
}

// TestRestartPages replays from the second page where the first is torn, and takes what a mounted, idle volume leaves
// for clean.
func TestRestartPages(t *testing.T) {
	b := logImage(t, "second-ended")
	e := editLog(t, b)
	e.raw(0)[510] ^= 1
	if f, _ := openBytes(t, b, fsmap.JournalReplay); f.Info().Journal != "replayed" || len(f.Info().Notes) == 0 {
		t.Errorf("torn first page: %+v", f.Info())
	}
	for pos := e.l.first + logPage; pos < e.l.size; pos += logPage {
		copy(e.raw(pos), bytes.Repeat([]byte{0xFF}, logPage))
	}
	e.page(e.l.first, func(b []byte) {
		le.PutUint64(b[lpLSN:], e.l.restart)
		le.PutUint64(b[lpEndLSN:], e.l.restart)
	})
	if f, _ := openBytes(t, b, fsmap.JournalReplay); f.Info().Journal != "clean" || len(f.Info().Problems) > 0 {
		t.Errorf("idle: %+v", f.Info())
	}
	e.page(logPage, func(b []byte) { set16(b, int(le.Uint16(b[rpArea:]))+raFlags, raFlagClean) })
	e.raw(e.l.first)[510] ^= 1 // not looked at
	if f, _ := openBytes(t, b, fsmap.JournalReplay); f.Info().Journal != "clean" || len(f.Info().Problems) > 0 {
		t.Errorf("unmounted: %+v", f.Info())
	}
}

// FuzzLogFile changes bytes of the log's pages, which stay protected against torn writes. A change is a page, a place in
// it and the new byte.
func FuzzLogFile(f *testing.F) {
	b := logImage(f, "first-tables0")
	e := editLog(f, b)
	ring := e.l.position(e.l.restart) / logPage // the log of this image begins near the end of the ring
	f.Add([]byte{0, 0x50, 0, 1, 2, 0x50, 3, 0x30})
	f.Add([]byte{5, 0x70, 0, 8, 7, 0x80, 1, 9, 9, 0x90, 2, 0xFF})
	f.Fuzz(func(t *testing.T, changes []byte) { changedLog(t, b, e, ring, changes) })
}

// changedLog opens the volume b with changes to its log, whose ring the records enter at page ring.
func changedLog(t *testing.T, b []byte, e *logEdit, ring int64, changes []byte) {
	const changeLen = 4
	size := int64(len(b))
	v := overlay.New(bytes.NewReader(b), size, 1<<20, "fuzz")
	for ; len(changes) >= changeLen; changes = changes[changeLen:] {
		pos := int64(changes[0]%36) * logPage
		if pos >= restarts*logPage {
			if pos += ring*logPage - restarts*logPage; pos >= e.l.size {
				pos += e.l.first - e.l.size
			}
		}
		at, _, _ := e.l.s.at(pos)
		p, err := v.Bytes(at, logPage)
		if err != nil {
			t.Fatal(err)
		}
		magic := string(p[:4])
		if fixup(p, magic, "page", pos) != nil {
			continue
		}
		p[int(le.Uint16(changes[1:]))%logPage] = changes[3]
		if protect(p, string(p[:4]), "page", pos) == nil {
			v.Write(at, p)
		}
	}
	fs, err := open(v, size, fsmap.Options{Journal: fsmap.JournalReplay, Metadata: true})
	if err != nil {
		t.Fatal(err) // nothing outside the log was changed
	}
	if i := fs.Info(); (i.Journal == "unreplayed") != (len(i.Problems) > 0) {
		t.Fatalf("journal %s, problems %v", i.Journal, i.Problems)
	}
	var n fsmap.Node
	n.Reset()
	if fs.Node(fsmap.Entry{Ref: fs.Info().Root}, &n) == nil {
		fs.ReadDir(&n, func(e fsmap.Entry) bool {
			var x fsmap.Node
			x.Reset()
			if fs.Node(e, &x) == nil {
				var r fsmap.Runs
				r.Reset(x.Size)
				fs.Runs(&x, nil, &r)
			}
			return true
		})
	}
}
