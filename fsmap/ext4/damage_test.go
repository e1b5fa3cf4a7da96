package ext4

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"vmkit/fixtures"
	"vmkit/fsmap"
	"vmkit/fsmap/fsmaptest"
	"vmkit/fsmap/mapfile"
)

// loaded gives a stored image's bytes.
func loaded(t testing.TB, name, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(fixtures.Image(t, name, file+".img.zst"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func opened(t testing.TB, b []byte, o fsmap.Options) *fsys {
	t.Helper()
	return fsmaptest.Open(t, Driver, bytes.NewReader(b), int64(len(b)), o).(*fsys)
}

// find gives the inode of a path.
func (f *fsys) find(t testing.TB, path string) *inode {
	t.Helper()
	ino := uint32(inoRoot)
	for name := range strings.SplitSeq(path, "/") {
		next := uint32(0)
		f.names(ino, func(e fsmap.Entry) {
			if string(e.Name) == name {
				next = uint32(e.Ref.ID)
			}
		})
		if ino = next; ino == 0 {
			t.Fatalf("%s: no %s", path, name)
		}
	}
	in := new(inode)
	if err := f.load(ino, in); err != nil {
		t.Fatal(err)
	}
	return in
}

// content gives the position of a byte of a file in the volume.
func (f *fsys) content(t testing.TB, in *inode, at int64) int64 {
	t.Helper()
	var r fsmap.Runs
	r.Reset(max(in.size, at+1))
	if err := f.runs(in, &r, false); err != nil {
		t.Fatal(err)
	}
	for _, x := range r.List {
		if x.At <= at && at < x.At+x.Len {
			return x.Off + at - x.At
		}
	}
	t.Fatalf("no byte %d", at)
	return 0
}

// survey gives where each file of the tree lies, and all that is said to be wrong, with paths.
func (f *fsys) survey(t testing.TB) (places map[string]string, said []string) {
	t.Helper()
	places = make(map[string]string)
	said = append(said, f.info.Notes...)
	for _, err := range f.info.Problems {
		said = append(said, err.Error())
	}
	var visit func(e fsmap.Entry, path string)
	visit = func(e fsmap.Entry, path string) {
		var n fsmap.Node
		n.Reset()
		errs := []error{f.Node(e, &n)}
		errs = append(errs, n.Problems...)
		var r fsmap.Runs
		r.Reset(n.Size)
		switch n.Kind {
		case mapfile.Regular:
			errs = append(errs, f.Runs(&n, nil, &r))
		case mapfile.Directory:
			errs = append(errs, f.ReadDir(&n, func(e fsmap.Entry) bool {
				visit(e, strings.TrimPrefix(path+"/"+string(e.Name), "/"))
				return true
			}))
		}
		places[path] = fmt.Sprint(n.Kind, n.Size, n.Target, r.List)
		for _, err := range errs {
			if err != nil {
				said = append(said, path+": "+err.Error())
			}
		}
	}
	visit(fsmap.Entry{Ref: f.info.Root}, "")
	return places, said
}

// TestDamage flips a byte here and there: what is said of it, and that all the rest is read as before.
func TestDamage(t *testing.T) {
	type at func(f *fsys) int64
	file := func(path string, off int64) at { return func(f *fsys) int64 { return f.find(t, path).off + off } }
	inside := func(path string, off int64) at {
		return func(f *fsys) int64 { return f.content(t, f.find(t, path), off) }
	}
	const k4, k1 = "ext4-kernel/ext4-4k", "ext4-kernel/ext4-crc16"
	for _, c := range []struct {
		name, image string
		at          at
		want        string // in an error, a problem or a note
		lost        string // a path whose content can't be told
	}{
		{"superblock", k4, func(*fsys) int64 { return sbPos + 0x90 }, "ext superblock: checksum", ""},
		{"block size without checksum", "ext4-kernel/ext2-1k", func(*fsys) int64 { return sbPos + 0x19 }, "the backup superblock of group 1 is used", ""},
		{"descriptor", k4, func(f *fsys) int64 { return int64(f.descBlock(0))<<f.shift + 0x20 }, "descriptor of group 0: checksum", ""},
		{"descriptor with a copy", k1, func(f *fsys) int64 { return int64(f.descBlock(0))<<f.shift + gdLen + 0x10 }, "its copy in block", ""},
		{"descriptor of meta_bg", "ext4-kernel/ext4-metabg", func(f *fsys) int64 { return int64(f.descBlock(0))<<f.shift + gdTableLo + 1 }, "its copy in block", ""},
		{"multiple mount protection", "ext4-kernel/ext4-bigalloc", func(f *fsys) int64 { return int64(f.sb.MMPBlock)<<f.shift + 100 }, "multiple mount protection: checksum", ""},
		{"inode", k4, file("sizes/s700", iVersion), "sizes/s700: inode", ""},
		{"inode's place", k4, file("special/suid", iBlock+exLen+eeStartHi+1), "special/suid: inode", "special/suid"},
		{"extent tree", k4, func(f *fsys) int64 {
			return int64(le.Uint32(f.find(t, "sparse/pieces").raw[iBlock+exLen+eiLeafLo:]))<<f.shift + 8
		}, "sparse/pieces: extent tree of inode", ""},
		{"directory", k4, inside("dirs", 4096-1), "dirs: directory inode", ""},
		{"hash tree", k4, inside("dirs/many", 4096-1), "dirs/many: hash tree of directory inode", ""},
		{"leaf of a hash tree", k4, inside("dirs/many", 8192-1), "dirs/many: directory inode", ""},
		{"xattr in the inode", k4, file("xattrs/small", 252), "xattrs/small: inode", ""},
		{"xattr block without checksum", k1, func(f *fsys) int64 { return int64(f.fileACL(f.find(t, "xattrs/big")))<<f.shift + 1000 }, `hash of "big"`, ""},
		{"xattr block", k4, func(f *fsys) int64 { return int64(f.fileACL(f.find(t, "xattrs/many")))<<f.shift + 20 }, "xattrs/many: xattr block: checksum", ""},
		{"xattr's value in an inode", k4, func(f *fsys) int64 {
			it := f.find(t, "xattrs/huge").ibody()
			for it.next() && it.inum == 0 {
			}
			var in inode
			if err := f.load(it.inum, &in); err != nil {
				t.Fatal(err)
			}
			return f.content(t, &in, 5000)
		}, "hash of an xattr's value", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			folder, file, _ := strings.Cut(c.image, "/")
			b := loaded(t, folder, file)
			sound := opened(t, b, fsmap.Options{})
			before, said := sound.survey(t)
			if len(said) > 0 {
				t.Errorf("said of the sound one: %q", said)
			}
			b[c.at(sound)] ^= 0x10
			after, said := opened(t, b, fsmap.Options{}).survey(t)
			if all := strings.Join(said, "\n"); !strings.Contains(all, c.want) {
				t.Errorf("said:\n%s\nshould say %s", all, c.want)
			}
			for path, place := range before {
				if after[path] != place && path != c.lost {
					t.Errorf("%s: %s, should be %s", path, after[path], place)
				}
			}
		})
	}
}

// TestZeroedSuper finds a file system by its backup.
func TestZeroedSuper(t *testing.T) {
	b := loaded(t, "ext4-kernel", "ext2-1k")
	clear(b[sbPos : sbPos+sbLen])
	f := opened(t, b, fsmap.Options{})
	if len(f.info.Notes) != 1 || !strings.Contains(f.info.Notes[0], "backup superblock of group 1") {
		t.Errorf("notes %q", f.info.Notes)
	}
	f.find(t, "sizes/s700")
	copy(b[65600:], "_BHRfS_M")
	if _, ok := probe(bytes.NewReader(b), int64(len(b)), b[:fsmap.ProbeLen]); ok {
		t.Error("a btrfs over it is not seen")
	}
}

// TestDamagedJournal replays what is before the damage, and says so.
func TestDamagedJournal(t *testing.T) {
	const csum3, csum1, fast = "csum3-64bit", "csum1-64bit", "fast"
	for _, c := range []struct {
		name, image string
		block       func(j *journal) int64 // whose byte 20 is flipped
		want        string
		partly      bool // some of it was replayed
	}{
		{"superblock", csum3, func(j *journal) int64 { return j.off + 0x40 }, "checksum of its superblock", false},
		{"descriptor", csum3, func(j *journal) int64 { return j.nth(jbDescriptor, 5) }, "checksum of a descriptor", true},
		{"content", csum3, func(j *journal) int64 { return j.nth(jbDescriptor, 5) + j.f.blockSize }, "checksum of block", true},
		{"commit", csum3, func(j *journal) int64 { return j.nth(jbCommit, 5) }, "checksum of the commit", true},
		{"commit of version 1", csum1, func(j *journal) int64 { return j.nth(jbDescriptor, 5) + j.f.blockSize }, "checksum of the commit", true},
		{"revoke block", csum3, func(j *journal) int64 { return j.nth(jbRevoke, 1) }, "checksum of a descriptor", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := loaded(t, "ext4-journal", c.image)
			f := &fsys{size: int64(len(b))}
			var err error
			if f.geometry, _, _, err = primary(bytes.NewReader(b), f.size); err != nil {
				t.Fatal(err)
			}
			f.attach(bytes.NewReader(b))
			j, err := f.openJournal()
			if err != nil {
				t.Fatal(err)
			}
			b[c.block(j)+20] ^= 0x10
			f = opened(t, b, fsmap.Options{})
			if f.info.Journal != "unreplayed" || len(f.info.Problems) != 1 || !strings.Contains(f.info.Problems[0].Error(), c.want) {
				t.Errorf("journal %s, problems %q", f.info.Journal, f.info.Problems)
			}
			if (f.over != nil) != c.partly {
				t.Errorf("replayed in part: %v", f.over != nil)
			}
			if _, err := Driver.Open(bytes.NewReader(b), int64(len(b)), fsmap.Options{Journal: fsmap.JournalFail}); err == nil {
				t.Error("no error where the journal may not be replayed")
			}
		})
	}
}

// nth gives the position of the n-th block of a kind in the log.
func (j *journal) nth(kind uint32, n int) int64 {
	for block, left := j.sb.Start, j.last-j.first; left > 0; block, left = j.after(block, 1), left-1 {
		off, err := j.read(block)
		if err == nil && be.Uint32(j.buf) == jbdMagic && be.Uint32(j.buf[jhType:]) == kind {
			if n--; n == 0 {
				return off
			}
		}
	}
	panic("no such block")
}
