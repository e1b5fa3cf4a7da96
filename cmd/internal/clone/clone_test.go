package clone

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmkit/formats"
	"vmkit/formats/formatstest"
	"vmkit/fsmap/mapfile"
)

var instant = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)

// machine makes the record of a machine of files: PATH|ROLE[|FORMAT[|DISK]].
func machine(t testing.TB, name string, files ...string) *Machine {
	t.Helper()
	vm := &mapfile.VM{Type: "vm", Name: name, Driver: "files", Target: "files:" + name, StateFound: "off", Mode: "off", FrozenAt: &instant}
	for _, f := range files {
		p := strings.Split(f, "|")
		v := mapfile.VMFile{Path: p[0], Role: p[1]}
		if len(p) > 2 {
			v.Format = p[2]
		}
		if len(p) > 3 {
			v.Disk = p[3]
		}
		vm.Files = append(vm.Files, v)
	}
	return wrap(t, vm)
}

func wrap(t testing.TB, vm *mapfile.VM) *Machine {
	t.Helper()
	raw, err := json.Marshal(vm)
	if err != nil {
		t.Fatal(err)
	}
	return &Machine{VM: vm, Raw: raw}
}

// tryClone makes a clone of what nobody can let go.
func tryClone(t testing.TB, m *Machine, o Options) (*mapfile.Clone, []*mapfile.Problem, error) {
	t.Helper()
	if o.Dir == "" {
		o.Dir = "out"
	}
	c, err := Start(t.Context(), m, &o)
	if err != nil {
		return nil, nil, err
	}
	return c.Finish(t.Context())
}

// mustClone makes a clone without any problem.
func mustClone(t testing.TB, m *Machine, o Options) *mapfile.Clone {
	t.Helper()
	r, problems, err := tryClone(t, m, o)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Path, p.Error)
	}
	return r
}

// sums gives a line for each file below a folder, with what it holds.
func sums(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %x\n", path, sha256.Sum256(content))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// left gives what is in a folder, with what is hidden.
func left(t testing.TB, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// noise makes a raw file with data here and there, and holes.
func noise(t testing.TB, path string, size int64, seed uint64) {
	t.Helper()
	write(t, path, "")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 128<<10)
	for range 6 {
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		if _, err := f.WriteAt(b, rnd.Int64N((size-int64(len(b)))>>12)<<12); err != nil {
			t.Fatal(err)
		}
	}
}

// qemuImg runs qemu-img; it skips the test where it is absent.
func qemuImg(t testing.TB, args ...string) []byte {
	t.Helper()
	return formatstest.Exec(t, "qemu-img", args...)
}

// scribble writes into an image, other places for each seed.
func scribble(t testing.TB, format, path string, seed int) {
	t.Helper()
	formatstest.Exec(t, "qemu-io", "-f", format, "-c", fmt.Sprintf("write -P %d %dk 192k", seed, 640*seed), path)
}

// layers gives the files of a chain as QEMU finds them.
func layers(t testing.TB, path string) (names []string) {
	t.Helper()
	var chain []struct {
		Filename string
	}
	if err := json.Unmarshal(qemuImg(t, "info", "--backing-chain", "--output=json", path), &chain); err != nil {
		t.Fatal(err)
	}
	for _, c := range chain {
		names = append(names, c.Filename)
	}
	return names
}

// sameLayers holds each layer of a clone's disk against the machine's, and checks that none lies elsewhere.
func sameLayers(t testing.TB, of, clone string, n int) {
	t.Helper()
	a, b := layers(t, of), layers(t, clone)
	if len(a) != n || len(b) != n {
		t.Fatalf("%d layers of %s, %d of %s: want %d", len(a), of, len(b), clone, n)
	}
	for i := range a {
		if filepath.Dir(b[i]) != filepath.Dir(clone) {
			t.Errorf("layer %d of the clone is %s", i, b[i])
		}
		qemuImg(t, "compare", "-U", a[i], b[i])
	}
	qemuImg(t, "check", clone)
}

// TestChain: three layers in three folders, two of which have one name, with a blank, a quote, a comma and a colon.
func TestChain(t *testing.T) {
	t.Chdir(t.TempDir())
	noise(t, "a/it's, 1:2.img", 8<<20, 1)
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", "../a/it's, 1:2.img", "-F", "raw", write0(t, "b/disk.qcow2"))
	scribble(t, "qcow2", "b/disk.qcow2", 1)
	abs, err := filepath.Abs("b/disk.qcow2")
	if err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", abs, "-F", "qcow2", write0(t, "c/disk.qcow2"))
	scribble(t, "qcow2", "c/disk.qcow2", 2)
	before := sums(t, ".")
	r := mustClone(t, machine(t, "web1", "c/disk.qcow2|disk|qcow2|vda", "b/disk.qcow2|backing", "a/it's, 1:2.img|backing"), Options{})
	want := []string{"disk.qcow2", "disk-2.qcow2", "it's, 1:2.img"}
	for i, f := range r.Files {
		if f.Path != filepath.Join("out/web1-20261122T090000Z", want[i]) || f.Method != "copy" {
			t.Errorf("file %d: %+v", i, f)
		}
	}
	if !slices.Equal(r.Images, []string{r.Files[0].Path}) {
		t.Errorf("images %q", r.Images)
	}
	sameLayers(t, "c/disk.qcow2", r.Images[0], 3)
	if after := sums(t, "."); !strings.HasPrefix(after, before) {
		t.Errorf("the machine's files were changed:\n%s\n%s", before, after)
	}
}

// write0 makes a file's folder.
func write0(t testing.TB, path string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestJSONBacking(t *testing.T) {
	t.Chdir(t.TempDir())
	noise(t, "base.raw", 4<<20, 2)
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", `json:{"driver":"raw","offset":65536,"file":{"driver":"file","filename":"base.raw"}}`, "-F", "raw", "top.qcow2", "2M")
	scribble(t, "qcow2", "top.qcow2", 1)
	r := mustClone(t, machine(t, "m", "top.qcow2|disk|qcow2", "base.raw|backing"), Options{Name: "x"})
	if len(r.Notes) != 1 || !strings.Contains(r.Notes[0], "is not followed") { // vmkit does not, QEMU does
		t.Errorf("notes %q", r.Notes)
	}
	qemuImg(t, "convert", "-O", "raw", "top.qcow2", "truth.raw")
	t.Chdir(r.Folder) // such a name begins where QEMU runs
	qemuImg(t, "compare", "-f", "raw", "../../truth.raw", "top.qcow2")

	// What says no more than a file and its format becomes a plain name.
	t.Chdir("../..")
	noise(t, "sub/base.raw", 4<<20, 2)
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", `json:{"driver":"raw","file":{"driver":"file","filename":"sub/base.raw"},"read-only":true}`, "-F", "raw", "two.qcow2", "4M")
	m := machine(t, "m", "two.qcow2|disk|qcow2", "sub/base.raw|backing")
	m.VM.Dir = "."
	r = mustClone(t, m, Options{Name: "y"})
	sameLayers(t, "two.qcow2", r.Images[0], 2)
}

func TestDataFile(t *testing.T) {
	t.Chdir(t.TempDir())
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file=web1.data,data_file_raw=on", "web1.qcow2", "4M")
	scribble(t, "qcow2", "web1.qcow2", 1)
	r := mustClone(t, machine(t, "web1", "web1.qcow2|disk|qcow2", "web1.data|backing"), Options{Name: "web 2"})
	if got := left(t, r.Folder); !slices.Equal(got, []string{"clone.json", "web 2.data", "web 2.qcow2"}) {
		t.Errorf("the clone has %q", got)
	}
	t.Chdir(r.Folder) // where QEMU looks for it
	qemuImg(t, "compare", "-f", "raw", "../../web1.data", "web 2.qcow2")
	qemuImg(t, "check", "web 2.qcow2")
}

func TestVMDK(t *testing.T) {
	for _, subformat := range []string{"monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"} {
		t.Run(subformat, func(t *testing.T) {
			t.Chdir(t.TempDir())
			noise(t, "truth.raw", 8<<20, 3)
			qemuImg(t, "convert", "-O", "vmdk", "-o", "subformat="+subformat, "truth.raw", "Virtual 01.vmdk")
			files := []string{"Virtual 01.vmdk|disk|vmdk|scsi0:0"}
			extents, err := filepath.Glob("Virtual 01-*.vmdk")
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range extents {
				files = append(files, e+"|backing")
			}
			layers := 1
			if subformat == "monolithicSparse" {
				qemuImg(t, "create", "-q", "-f", "vmdk", "-b", "Virtual 01.vmdk", "-F", "vmdk", "Virtual 01-000001.vmdk")
				scribble(t, "vmdk", "Virtual 01-000001.vmdk", 1)
				files = []string{"Virtual 01-000001.vmdk|disk|vmdk|scsi0:0", "Virtual 01.vmdk|backing"}
				layers = 2
			}
			r := mustClone(t, machine(t, "Virtual 01", files...), Options{Name: `Virtual "03"`})
			if got := left(t, r.Folder)[0]; !strings.HasPrefix(got, "Virtual _03_") {
				t.Errorf("%s: quotes have no place in a descriptor", got)
			}
			// What the clone still took from the machine would be missed now.
			if err := os.Mkdir("away", 0o755); err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				name, _, _ := strings.Cut(f, "|")
				if err := os.Rename(name, filepath.Join("away", name)); err != nil {
					t.Fatal(err)
				}
			}
			top, _, _ := strings.Cut(files[0], "|")
			if subformat == "streamOptimized" {
				qemuImg(t, "compare", filepath.Join("away", top), r.Images[0])
				return
			}
			sameLayers(t, filepath.Join("away", top), r.Images[0], layers)
		})
	}
}

// TestGuestData: what looks like an image on a raw disk is the guest's.
func TestGuestData(t *testing.T) {
	t.Chdir(t.TempDir())
	qemuImg(t, "create", "-q", "-f", "qcow2", "-u", "-b", "other.raw", "-F", "raw", "evil.raw", "4M")
	noise(t, "other.raw", 4<<20, 4)
	write(t, "d-flat.vmdk", "# Disk DescriptorFile\nversion=1\nCID=1\nRW 8 FLAT \"other.raw\" 0\n"+strings.Repeat("\x00", 4096))
	write(t, "d.vmdk", "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"d-flat.vmdk\" 0\n")
	r := mustClone(t, machine(t, "m", "evil.raw|disk|raw", "other.raw|disk|raw", "d.vmdk|disk|vmdk", "d-flat.vmdk|backing"), Options{Name: "n"})
	for _, f := range r.Files {
		if read(t, f.Path) != read(t, f.From) {
			t.Errorf("%s was changed", f.Path)
		}
	}
}

// TestReferenceOutside: a layer that the record does not have is a gap, and so is an image that can't be read.
func TestReferenceOutside(t *testing.T) {
	t.Chdir(t.TempDir())
	noise(t, "elsewhere/base.raw", 4<<20, 5)
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", "elsewhere/base.raw", "-F", "raw", "top.qcow2")
	write(t, "broken.qcow2", "QFI\xfb\x00\x00\x00\x07"+strings.Repeat("x", 1000))
	r, problems, err := tryClone(t, machine(t, "m", "top.qcow2|disk|qcow2", "broken.qcow2|disk|qcow2"), Options{})
	var got []string
	for _, p := range problems {
		got = append(got, filepath.Base(p.Path)+": "+p.Error)
	}
	text := strings.Join(got, "\n")
	if err != nil || len(problems) != 2 || !strings.Contains(r.Notes[0], "broken.qcow2 could not be checked") || !strings.Contains(text, "top.qcow2: in the clone") || !strings.Contains(text, "broken.qcow2: its references") || strings.Contains(text, tempPrefix) {
		t.Errorf("%v: %s", err, text)
	}
}

func TestSparse(t *testing.T) {
	t.Chdir(t.TempDir())
	noise(t, "big.raw", 256<<20+511, 6)
	var total int64
	o := Options{Dir: "out", Workers: 3, Progress: func(_ string, n int64) (func(int64), func()) {
		total = n
		return func(int64) {}, func() {}
	}}
	r := mustClone(t, machine(t, "m", "big.raw|disk|raw"), o)
	a, b := open(t, "big.raw"), open(t, r.Images[0])
	for off := int64(0); off < 256<<20+511; {
		h1, e1 := formats.Region(a, off)
		h2, e2 := formats.Region(b, off)
		if h1 != h2 || e1 != e2 {
			t.Fatalf("at %d: hole %v up to %d, in the clone %v up to %d", off, h1, e1, h2, e2)
		}
		off = e1
	}
	if total <= 0 || total > 4<<20 {
		t.Errorf("%d bytes to copy were told", total)
	}
	if sa, sb := stat(t, "big.raw"), stat(t, r.Images[0]); sa.Size() != sb.Size() || !sa.ModTime().Equal(sb.ModTime()) {
		t.Errorf("size and time %v, %v", sb.Size(), sb.ModTime())
	}
	if out, err := exec.Command("cmp", "big.raw", r.Images[0]).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func open(t testing.TB, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func stat(t testing.TB, path string) os.FileInfo {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestRoles(t *testing.T) {
	t.Chdir(t.TempDir())
	var files []string
	for _, f := range []string{"m.vmss|memory", "m.log|log", "m.lck|lock", "cd.iso|media", "s.vmsn|memory", "m.nvram|firmware", "d.raw|disk|raw", "odd.cfg|config"} {
		name, _, _ := strings.Cut(f, "|")
		write(t, name, name)
		files = append(files, f)
	}
	if err := os.Symlink("d.raw", "link"); err != nil {
		t.Fatal(err)
	}
	r := mustClone(t, machine(t, "m", append(files, "link|disk|raw")...), Options{Sums: true})
	if got := left(t, r.Folder); !slices.Equal(got, []string{"SHA256SUMS", "clone.json", "d.raw", "m.nvram", "odd.cfg", "s.vmsn"}) {
		t.Errorf("the clone has %q", got)
	}
	want := []string{"left behind: m.vmss (memory), m.log (log), m.lck (lock), cd.iso (media)", "odd.cfg is taken over as it is"}
	if !slices.Equal(r.Notes, want) {
		t.Errorf("notes %q", r.Notes)
	}
	if _, _, err := tryClone(t, machine(t, "n", "m.lck|lock"), Options{}); err == nil {
		t.Error("a clone of nothing")
	}
	if _, _, err := tryClone(t, machine(t, "n", ".|disk|raw"), Options{}); err == nil || !strings.Contains(err.Error(), "neither a file") {
		t.Errorf("a folder as a disk: %v", err)
	}
	esx := machine(t, "n", "[ds 1] web/web.vmdk|disk|vmdk")
	esx.VM.Driver = "esx"
	if _, _, err := tryClone(t, esx, Options{}); err == nil || !strings.Contains(err.Error(), "datastore that is not mounted here") {
		t.Errorf("a file elsewhere: %v", err)
	}
	if got := left(t, "out"); len(got) != 1 {
		t.Errorf("left behind: %q", got)
	}
	cmd := exec.Command("sha256sum", "--check", "--strict", "SHA256SUMS")
	cmd.Dir = r.Folder
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Count(out, []byte("OK")) != 4 {
		t.Errorf("%v: %s", err, out)
	}
}

// TestRecord: the stream that lies in the clone is the one that is written, and carries the vm record on as it came.
func TestRecord(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "d.raw", "d")
	m := machine(t, "m", "d.raw|disk|raw")
	m.Raw = json.RawMessage(`{"type":"vm","later":[1,2.50],"name":"m"}`)
	r := mustClone(t, m, Options{})
	text := read(t, filepath.Join(r.Folder, RecordName))
	if !strings.Contains(text, `"of":{"type":"vm","later":[1,2.50],"name":"m"}`) || !strings.HasSuffix(text, "{\"type\":\"end\",\"clones\":1,\"problems\":0}\n") {
		t.Errorf("clone.json holds %s", text)
	}
	// One that is too long with all that it could tell.
	m = machine(t, "long", "d.raw|disk|raw")
	m.VM.Changed = []mapfile.Changed{{Disk: "vda", State: "complete", Ranges: make([][2]int64, 200_000)}}
	if r := mustClone(t, wrap(t, m.VM), Options{}); !slices.Equal(r.Notes, []string{"the ranges that changed did not fit into the record"}) || !strings.Contains(string(r.Of), `"name":"long"`) {
		t.Errorf("%q, %.300s", r.Notes, r.Of)
	}
	r.Registered = "somewhere"
	if err := Save(r, nil); err != nil {
		t.Fatal(err)
	}
	if text := read(t, filepath.Join(r.Folder, RecordName)); !strings.Contains(text, `"registered":"somewhere"`) || len(left(t, r.Folder)) != 2 {
		t.Errorf("clone.json holds %s", text)
	}
}
