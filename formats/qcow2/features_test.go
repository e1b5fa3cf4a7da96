package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/formatstest"
	"vmkit/formats/ondisk"
)

func TestDataFile(t *testing.T) {
	for name, options := range map[string]string{
		"mapped": "data_file=disk.data", "raw": "data_file=disk.data,data_file_raw=on",
		"small clusters": "data_file=disk.data,cluster_size=4k", "subclusters": "data_file=disk.data,extended_l2=on",
	} {
		t.Run(name, func(t *testing.T) {
			t.Chdir(t.TempDir()) // qemu-img makes the data file relative to the working directory
			create(t, "disk.qcow2", "qcow2", options, 9<<20+512)
			scribble(t, "disk.qcow2", "qcow2", 3, 80, false)
			run(t, "disk.qcow2", nil)
			img := formatstest.Open(t, table, "disk.qcow2", nil)
			if len(img.Files) != 2 || img.Files[1].Path != "disk.data" || img.Files[1].Role != formats.RoleData {
				t.Errorf("files %v", img.Files)
			}
		})
	}
}

func TestDataFileAbsent(t *testing.T) {
	t.Chdir(t.TempDir())
	create(t, "disk.qcow2", "qcow2", "data_file=disk.data", 2<<20)
	formatstest.Exec(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 64k 128k", "-c", "write -z 1M 64k", "disk.qcow2")
	if err := os.Remove("disk.data"); err != nil {
		t.Fatal(err)
	}
	if _, err := formatstest.TryOpen(t, table, "disk.qcow2", nil); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "disk.data is not there") {
		t.Errorf("error %v", err)
	}
	open := func(t testing.TB) *formats.Image {
		return formatstest.Open(t, table, "disk.qcow2", func(o *formats.Opener) { o.AllowMissing = true })
	}
	formatstest.Run(t, formatstest.Case{Open: open, Size: 2 << 20, Truth: bytes.NewReader(make([]byte, 2<<20)), Gone: func(off int64) formats.Kind {
		if off >= 64<<10 && off < 192<<10 {
			return formats.Missing
		}
		return 0
	}})
	if img := open(t); len(img.Problems) != 1 {
		t.Errorf("problems %v", img.Problems)
	}
}

func TestBackingAbsent(t *testing.T) {
	dir := t.TempDir()
	base, top := filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "top.qcow2")
	create(t, base, "qcow2", "", 2<<20)
	create(t, top, "qcow2", "", 3<<20, "-b", "base.qcow2", "-F", "qcow2")
	formatstest.Exec(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 64k 128k", "-c", "write -z 1M 64k", top)
	if err := os.Remove(base); err != nil {
		t.Fatal(err)
	}
	_, err := formatstest.TryOpen(t, table, top, nil)
	if !errors.Is(err, os.ErrNotExist) || err.Error() != fmt.Sprintf("%s: backing file \"base.qcow2\": %s is not there: no such file or directory", top, base) {
		t.Errorf("error %v", err)
	}
	open := func(t testing.TB) *formats.Image {
		return formatstest.Open(t, table, top, func(o *formats.Opener) { o.AllowMissing = true })
	}
	truth := make([]byte, 3<<20)
	for i := range 128 << 10 {
		truth[64<<10+i] = 1
	}
	// How long the base was is not known: even the part that lay past its end is missing.
	formatstest.Run(t, formatstest.Case{Open: open, Size: 3 << 20, Truth: bytes.NewReader(truth), Gone: func(off int64) formats.Kind {
		if truth[off] == 1 || off >= 1<<20 && off < 1<<20+64<<10 {
			return 0
		}
		return formats.Missing
	}})
}

func TestChainRefused(t *testing.T) {
	dir := t.TempDir()
	at := func(n string) string { return filepath.Join(dir, n) }
	chain := func(n, below, format string) {
		t.Helper()
		create(t, at(n), "qcow2", "", 1<<20, "-u", "-b", below, "-F", format)
	}
	chain("self", "self", "qcow2")
	chain("a", "b", "qcow2")
	chain("b", "a", "qcow2")
	chain("json", `json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}`, "raw")
	chain("nbd", "nbd://localhost:1/x", "raw")
	chain("passwd", "/etc/passwd", "raw")
	chain("climb", "../../../../../../../../etc/passwd", "raw")
	chain("nothing", "gone", "qcow2")
	chain("odd", "self", "bochs")
	if err := os.WriteFile(at("guessed"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// Without a format in the header the layer is probed, and what was probed may not name more.
	create(t, at("mid"), "qcow2", "", 1<<20, "-u", "-b", "/etc/passwd", "-F", "raw")
	b := mustRead(t, at("mid"))
	top := bytes.Clone(b)
	name := bytes.Index(top, []byte("/etc/passwd"))
	copy(top[name:], "mid")
	binary.BigEndian.PutUint32(top[16:], 3)
	zeroExtension(t, top)
	mustWrite(t, at("noformat"), top)
	for name, want := range map[string]string{
		"self": "refers to itself", "a": "refers to itself", "json": `"json:" is not followed`, "nbd": `"nbd:" is not followed`,
		"passwd": "--allow-dir /etc", "climb": "lies outside", "nothing": "is not there", "odd": `image format: "bochs": unsupported`,
		"noformat": "its format was guessed",
	} {
		_, err := formatstest.TryOpen(t, table, at(name), func(o *formats.Opener) { o.AllowMissing = name != "nothing" })
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want %q", name, err, want)
		}
	}
}

// zeroExtension makes the header's backing format extension one that nobody knows.
func zeroExtension(t *testing.T, image []byte) {
	t.Helper()
	i := bytes.Index(image, []byte{0xe2, 0x79, 0x2a, 0xca})
	if i < 0 {
		t.Fatal("no backing format in the header")
	}
	copy(image[i:], "none")
}

func mustRead(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustWrite(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestLUKS reads a payload that qemu-img encrypted, with its passphrase, a wrong one, and none.
func TestLUKS(t *testing.T) {
	const passphrase = "correct horse"
	for name, options := range map[string]string{"64k": "", "512 bytes": ",cluster_size=512", "subclusters": ",extended_l2=on"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			src, path, secret := filepath.Join(dir, "src"), filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "secret")
			const size = 3<<20 + 512
			mixed(t, src, size)
			mustWrite(t, secret, []byte(passphrase))
			formatstest.Exec(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "--object", "secret,id=s,file="+secret,
				"-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"+options, src, path)
			truth := bytes.NewReader(mustRead(t, src))
			asked := 0
			open := func(answers ...string) func(t testing.TB) *formats.Image {
				return func(t testing.TB) *formats.Image {
					left := answers
					return formatstest.Open(t, table, path, func(o *formats.Opener) {
						// The suite decodes with an Env of its own: both share the key.
						o.Env = env
						o.Passphrase = func(what string) ([]byte, bool) {
							if asked++; what != path || len(left) == 0 {
								return nil, false
							}
							a := left[0]
							left = left[1:]
							return []byte(a), true
						}
					})
				}
			}
			formatstest.Run(t, formatstest.Case{Open: open(passphrase), Truth: truth, Size: size, Env: env})
			if name != "64k" {
				return // unlocking takes its time
			}
			plain := open("wrong", passphrase)(t)
			formatstest.Run(t, formatstest.Case{Open: open("wrong"), Truth: truth, Size: size, Gone: func(off int64) formats.Kind {
				if e, err := plain.ExtentAt(off, 1); err != nil || e.Kind != formats.Zero {
					return formats.Encrypted
				}
				return 0
			}})
			if img := open()(t); img.Encryption != "luks" {
				t.Errorf("encryption %q", img.Encryption)
			}
			if asked == 0 {
				t.Error("nobody was asked")
			}
		})
	}
}

// TestAES reads a payload with the encryption that QEMU had first, whose sectors are numbered by the virtual disk: with a
// backing file of the same kind, with and without the passphrase.
func TestAES(t *testing.T) {
	dir := t.TempDir()
	src, base, path, secret := filepath.Join(dir, "src"), filepath.Join(dir, "base.qcow2"), filepath.Join(dir, "top.qcow2"), filepath.Join(dir, "secret")
	const size = 3<<20 + 512
	mixed(t, src, size)
	mustWrite(t, secret, []byte("open sesame"))
	object := func(command string, args ...string) []string {
		return append([]string{command, "--object", "secret,id=s,file=" + secret}, args...)
	}
	const encrypt = "encrypt.format=aes,encrypt.key-secret=s"
	formatstest.Exec(t, "qemu-img", object("convert", "-f", "raw", "-O", "qcow2", "-o", encrypt, src, base)...)
	formatstest.Exec(t, "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "base.qcow2", "-F", "qcow2", "--object", "secret,id=s,file="+secret,
		"-o", encrypt+",cluster_size=4k", path, fmt.Sprint(size))
	top := "driver=qcow2,encrypt.key-secret=s,file.filename=" + path + ",backing.encrypt.key-secret=s"
	formatstest.Exec(t, "qemu-io", "--object", "secret,id=s,file="+secret, "--image-opts", "-c", "write -P 3 64k 8k", "-c", "write -P 4 1000k 512", top)
	raw := filepath.Join(dir, "raw")
	formatstest.Exec(t, "qemu-img", object("convert", "--image-opts", "-O", "raw", top, raw)...)
	env := formats.NewEnv(0)
	open := func(secret string) func(t testing.TB) *formats.Image {
		return func(t testing.TB) *formats.Image {
			return formatstest.Open(t, table, path, func(o *formats.Opener) {
				o.Env = env
				o.Passphrase = func(string) ([]byte, bool) { return []byte(secret), secret != "" }
			})
		}
	}
	truth := bytes.NewReader(mustRead(t, raw))
	formatstest.Run(t, formatstest.Case{Open: open("open sesame"), Truth: truth, Size: size, Env: env})
	plain := open("")(t)
	if plain.Encryption != "aes" {
		t.Errorf("encryption %q", plain.Encryption)
	}
	formatstest.Run(t, formatstest.Case{Open: open(""), Truth: truth, Size: size, Gone: func(off int64) formats.Kind {
		if e, err := plain.ExtentAt(off, 1); err != nil || e.Kind != formats.Zero {
			return formats.Encrypted
		}
		return 0
	}})
	// The id of a key is the image's name: where two of one name differ in their keys, nothing is decrypted wrongly.
	other := open("another")(t)
	if e, err := other.ExtentAt(64<<10, 512); err != nil || e.Kind != formats.Encrypted || len(other.Problems) == 0 {
		t.Errorf("two keys of one name: %+v, %v, problems %v", e, err, other.Problems)
	}
}

var env = formats.NewEnv(0)

func TestSnapshots(t *testing.T) {
	for name, options := range map[string]string{"v3": "", "v2": "compat=0.10", "subclusters": "extended_l2=on"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "disk.qcow2")
			base := filepath.Join(dir, "base.raw")
			mixed(t, base, 4<<20)
			create(t, path, "qcow2", options, 6<<20, "-b", "base.raw", "-F", "raw")
			for i, name := range []string{"first", "zweiter ünï", "1"} {
				scribble(t, path, "qcow2", uint64(i), 30, false)
				formatstest.Exec(t, "qemu-img", "snapshot", "-c", name, path)
			}
			if name != "v2" { // version 2 keeps no size
				formatstest.Exec(t, "qemu-img", "resize", "-q", path, "9M")
			}
			scribble(t, path, "qcow2", 9, 30, false)
			run(t, path, nil)
			img := formatstest.Open(t, table, path, nil)
			if len(img.Snapshots) != 3 || img.Snapshots[1].Name != "zweiter ünï" || img.Snapshots[1].ID != "2" || img.Snapshots[1].Size != 6<<20 {
				t.Fatalf("snapshots %+v", img.Snapshots)
			}
			if y := img.Snapshots[0].Date.Year(); y < 2020 || y > 2200 {
				t.Errorf("date %v", img.Snapshots[0].Date)
			}
			// The ID comes before a name that is the same.
			for want, id := range map[string]string{"first": "1", "zweiter ünï": "2", "2": "2", "1": "1", "3": "3"} {
				// qemu-img gives a snapshot the size that the disk has now.
				truth, _ := formatstest.Convert(t, path, "-l", "snapshot.id="+id)
				formatstest.Run(t, formatstest.Case{
					Open: func(t testing.TB) *formats.Image {
						return formatstest.Open(t, table, path, func(o *formats.Opener) { o.Snapshot = want })
					},
					Truth: truth, Size: 6 << 20,
				})
			}
			if _, err := formatstest.TryOpen(t, table, path, func(o *formats.Opener) { o.Snapshot = "gone" }); err == nil || !strings.Contains(err.Error(), `"gone"`) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestBitmaps(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	create(t, path, "qcow2", "", 64<<20)
	formatstest.Exec(t, "qemu-img", "bitmap", "--add", "-g", "64k", path, "one")
	formatstest.Exec(t, "qemu-img", "bitmap", "--add", "-g", "1M", "--disable", path, "zwei")
	formatstest.Exec(t, "qemu-io", "-f", "qcow2", "-c", "write 3M 200k", path)
	img := formatstest.Open(t, table, path, nil)
	if len(img.Bitmaps) != 2 {
		t.Fatalf("bitmaps %+v", img.Bitmaps)
	}
	one, two := img.Bitmaps[0], img.Bitmaps[1]
	if one.Name != "one" || one.Granularity != 64<<10 || !one.Auto || one.InUse || two.Name != "zwei" || two.Granularity != 1<<20 || two.Auto || two.InUse {
		t.Errorf("bitmaps %+v", img.Bitmaps)
	}
	b := mustRead(t, path)
	b[95] &^= 1 // the bit that vouches for them
	mustWrite(t, path, b)
	if img := formatstest.Open(t, table, path, nil); !img.Bitmaps[0].InUse || !img.Bitmaps[1].InUse {
		t.Errorf("stale bitmaps %+v", img.Bitmaps)
	}
}

// TestBitmapMarked reads what was marked by known writes, over several clusters of the bitmap.
func TestBitmapMarked(t *testing.T) {
	const size, grain = 16<<20 + 512, 1024
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	create(t, path, "qcow2", "cluster_size=512", size)
	formatstest.Exec(t, "qemu-img", "bitmap", "--add", "-g", fmt.Sprint(grain), path, "b")
	want := make([]bool, (size+grain-1)/grain)
	r := rand.New(rand.NewPCG(4, 4))
	args := []string{"-f", "qcow2", "-t", "unsafe"}
	write := func(off, n int64) {
		args = append(args, "-c", fmt.Sprintf("write -z %d %d", off, n))
		for i := off / grain; i <= (off+n-1)/grain; i++ {
			want[i] = true
		}
	}
	for range 60 {
		off := r.Int64N(size) &^ 511
		write(off, min(512+r.Int64N(20_000)&^511, size-off))
	}
	write(6<<20, 5<<20) // whole clusters of ones
	write(size-512, 512)
	formatstest.Exec(t, "qemu-io", append(args, path)...)
	got := make([]bool, len(want))
	end := int64(-1)
	err := formatstest.Open(t, table, path, nil).Bitmaps[0].Marked(func(off, n int64) bool {
		if off <= end || n <= 0 || off%grain != 0 || off+n > size {
			t.Errorf("stretch %d+%d after %d", off, n, end)
		}
		end = off + n
		for i := off / grain; i <= (off+n-1)/grain; i++ {
			got[i] = true
		}
		return true
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("the marked stretches differ, %v", err)
	}
	calls := 0
	if err := formatstest.Open(t, table, path, nil).Bitmaps[0].Marked(func(int64, int64) bool { calls++; return false }); err != nil || calls != 1 {
		t.Errorf("after false: %d calls, %v", calls, err)
	}
}

// TestRefused changes single fields of sound headers.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.qcow2")
	create(t, path, "qcow2", "", 2<<20)
	sound := mustRead(t, path)
	u32, u64 := binary.BigEndian.PutUint32, binary.BigEndian.PutUint64
	for _, tc := range []struct {
		name string
		set  func(b []byte) []byte
		is   error
		want string
	}{
		{"version", func(b []byte) []byte { u32(b[4:], 4); return b }, ondisk.ErrUnsupported, "version 4"},
		{"cluster bits low", func(b []byte) []byte { u32(b[20:], 8); return b }, ondisk.ErrCorrupt, "cluster bits 8"},
		{"cluster bits high", func(b []byte) []byte { u32(b[20:], 31); return b }, ondisk.ErrUnsupported, "cluster bits 31"},
		{"cluster bits huge", func(b []byte) []byte { u32(b[20:], 1<<31); return b }, ondisk.ErrUnsupported, "cluster bits"},
		{"size", func(b []byte) []byte { u64(b[24:], 1<<63); return b }, ondisk.ErrCorrupt, "virtual size"},
		{"size beyond L1", func(b []byte) []byte { u64(b[24:], 1<<40); return b }, ondisk.ErrCorrupt, "L1 entries for 1099511627776 bytes 1"},
		{"encryption", func(b []byte) []byte { u32(b[32:], 3); return b }, ondisk.ErrUnsupported, "encryption method 3"},
		{"L1 size", func(b []byte) []byte { u32(b[36:], 1<<32-1); return b }, ondisk.ErrUnsupported, "L1 entries 4294967295"},
		{"L1 offset", func(b []byte) []byte { u64(b[40:], 0x30001); return b }, ondisk.ErrCorrupt, "L1 table's offset"},
		{"L1 beyond the file", func(b []byte) []byte { u64(b[40:], 1<<40); return b }, ondisk.ErrTruncated, "L1 table"},
		{"backing name", func(b []byte) []byte { u64(b[8:], 0x200); u32(b[16:], 1024); return b }, ondisk.ErrCorrupt, "backing file's name 1024"},
		{"backing offset", func(b []byte) []byte { u64(b[8:], 1<<40); u32(b[16:], 10); return b }, ondisk.ErrCorrupt, "backing file's name"},
		{"backing offset, huge", func(b []byte) []byte { u64(b[8:], 1<<64-4); u32(b[16:], 10); return b }, ondisk.ErrCorrupt, "backing file's name"},
		{"incompatible", func(b []byte) []byte { u64(b[72:], 1<<5|1<<63); return b }, ondisk.ErrUnsupported, "incompatible features bit 5, bit 63"},
		{"named", func(b []byte) []byte {
			u64(b[72:], 1<<7)
			i := bytes.Index(b, []byte{0x68, 0x03, 0xf8, 0x57})
			copy(b[i+8:], "\x00\x07quantum clusters\x00")
			return b
		}, ondisk.ErrUnsupported, `bit 7 ("quantum clusters")`},
		{"compression bit alone", func(b []byte) []byte { b[79] |= 8; return b }, ondisk.ErrCorrupt, "compression type 0"},
		{"compression type alone", func(b []byte) []byte { b[104] = 1; return b }, ondisk.ErrCorrupt, "compression type 1"},
		{"compression type", func(b []byte) []byte { b[79] |= 8; b[104] = 9; return b }, ondisk.ErrUnsupported, "compression type 9"},
		{"subclusters too small", func(b []byte) []byte { b[79] |= 16; u32(b[20:], 13); return b }, ondisk.ErrCorrupt, "extended L2 entries 13"},
		{"refcount order", func(b []byte) []byte { u32(b[96:], 7); return b }, ondisk.ErrCorrupt, "refcount order 7"},
		{"header length", func(b []byte) []byte { u32(b[100:], 80); return b }, ondisk.ErrCorrupt, "header length 80"},
		{"header length, huge", func(b []byte) []byte { u32(b[100:], 1<<31); return b }, ondisk.ErrCorrupt, "header length"},
		{"extension", func(b []byte) []byte { u32(b[116:], 1<<31); return b }, ondisk.ErrCorrupt, "header extension"},
		{"data file without a name", func(b []byte) []byte { b[79] |= 4; return b }, ondisk.ErrCorrupt, "external data file"},
		{"cut in the header", func(b []byte) []byte { return b[:90] }, ondisk.ErrTruncated, "header"},
		{"cut in the first version's", func(b []byte) []byte { return b[:60] }, ondisk.ErrTruncated, "header"},
		{"cut before the L1 table", func(b []byte) []byte { return b[:0x20000] }, ondisk.ErrTruncated, "L1 table"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bad.qcow2")
			mustWrite(t, path, tc.set(bytes.Clone(sound)))
			_, err := formatstest.TryOpen(t, table, path, nil)
			if !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want %v with %q", err, tc.is, tc.want)
			}
		})
	}
}

// TestDamage breaks L1 and L2 entries one by one: only what hangs on them may be missing, with an error.
func TestDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	create(t, path, "qcow2", "cluster_size=4k", 4<<20) // an L2 table maps 2 MiB
	formatstest.Exec(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 64k", "-c", "write -P 8 2M 64k", "-c", "write -c -P 9 3M 4k", path)
	sound := mustRead(t, path)
	truth := make([]byte, 4<<20)
	for off, v := range map[int]byte{0: 7, 2 << 20: 8} {
		for i := range 64 << 10 {
			truth[off+i] = v
		}
	}
	for i := range 4 << 10 {
		truth[3<<20+i] = 9
	}
	be := binary.BigEndian
	l1 := int(be.Uint64(sound[40:]))
	l2 := int(be.Uint64(sound[l1+8:]) & (1<<56 - 1)) // of the upper half
	set := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { be.PutUint64(b[at:], v); return b }
	}
	const upper = 2 << 20
	for _, tc := range []struct {
		name     string
		set      func([]byte) []byte
		from, to int64
		is       error
	}{
		{"L1 entry unaligned", set(l1+8, 0x5200), upper, 4 << 20, ondisk.ErrCorrupt},
		{"L2 table past the end", set(l1+8, 1<<40), upper, 4 << 20, ondisk.ErrTruncated},
		{"L2 entry unaligned", set(l2+8, 1<<63|0x5200), upper + 4096, upper + 8192, ondisk.ErrCorrupt},
		{"cluster past the end", set(l2+8, 1<<63|1<<40), upper + 4096, upper + 8192, ondisk.ErrTruncated},
		{"cluster at the highest offset", set(l2+8, 1<<63|0xfffffffffff000), upper + 4096, upper + 8192, ondisk.ErrTruncated},
		{"zero cluster unaligned", set(l2+8, 0x5201), upper + 4096, upper + 8192, ondisk.ErrCorrupt},
		{"compressed past the end", set(l2+8, 1<<62|1<<40), upper + 4096, upper + 8192, ondisk.ErrTruncated},
		{"compressed offset too large", set(l2+8, 1<<62|1<<57), upper + 4096, upper + 8192, ondisk.ErrCorrupt},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bad.qcow2")
			mustWrite(t, path, tc.set(bytes.Clone(sound)))
			open := func(t testing.TB) *formats.Image { return formatstest.Open(t, table, path, nil) }
			formatstest.Run(t, formatstest.Case{Open: open, Truth: bytes.NewReader(truth), Size: 4 << 20, Gone: func(off int64) formats.Kind {
				if off >= tc.from && off < tc.to {
					return formats.Missing
				}
				return 0
			}})
			img := open(t)
			if e, err := img.ExtentAt(tc.from, img.Size()-tc.from); !errors.Is(err, tc.is) || e.Len != tc.to-tc.from {
				t.Errorf("extent of %d bytes, %v; want %d, %v", e.Len, err, tc.to-tc.from, tc.is)
			}
			if _, err := img.ReadAt(make([]byte, 1), tc.from); !errors.Is(err, tc.is) {
				t.Errorf("read: %v, want %v", err, tc.is)
			}
		})
	}
	t.Run("garbage in a compressed cluster", func(t *testing.T) {
		b := bytes.Clone(sound)
		e := be.Uint64(b[l2+256*8:])
		copy(b[e&(1<<56-1)&(1<<58-1):], "\xff\xff\xff\xff")
		path := filepath.Join(t.TempDir(), "bad.qcow2")
		mustWrite(t, path, b)
		img := formatstest.Open(t, table, path, nil)
		if n, err := img.ReadAt(make([]byte, 8192), 3<<20-4096); n != 4096 || !errors.Is(err, ondisk.ErrCorrupt) {
			t.Errorf("read %d, %v", n, err)
		}
	})
}

// TestTruncated cuts an image at many places: whatever is read must be the truth, all else an error.
func TestTruncated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	create(t, path, "qcow2", "cluster_size=4k", 1<<20)
	scribble(t, path, "qcow2", 4, 40, true)
	whole := mustRead(t, path)
	truth, size := formatstest.Convert(t, path)
	want := make([]byte, size)
	if _, err := truth.ReadAt(want, 0); err != nil {
		t.Fatal(err)
	}
	cut := filepath.Join(t.TempDir(), "cut.qcow2")
	for n := len(whole); n > 0; n -= 3001 {
		mustWrite(t, cut, whole[:n])
		img, err := formatstest.TryOpen(t, table, cut, nil)
		if err != nil {
			if !errors.Is(err, ondisk.ErrTruncated) {
				t.Errorf("cut at %d: %v", n, err)
			}
			continue
		}
		for off := int64(0); off < size; off += 4096 {
			got := make([]byte, 4096)
			k, err := img.ReadAt(got, off)
			if err != nil && !errors.Is(err, ondisk.ErrTruncated) && !errors.Is(err, ondisk.ErrCorrupt) {
				t.Errorf("cut at %d: read at %#x: %v", n, off, err)
			}
			if !bytes.Equal(got[:k], want[off:off+int64(k)]) {
				t.Errorf("cut at %d: wrong bytes at %#x", n, off)
			}
		}
	}
}

// TestInUse opens an image that a QEMU program has open for writing.
func TestInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	create(t, path, "qcow2", "", 1<<20)
	cmd := exec.Command(formatstest.Tool(t, "qemu-io"), "-f", "qcow2", path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 1)); err != nil { // the prompt: it is open
		t.Fatal(err)
	}
	if _, err := formatstest.TryOpen(t, table, path, nil); err == nil || !strings.Contains(err.Error(), "--force-share") {
		t.Errorf("error %v", err)
	}
	img := formatstest.Open(t, table, path, func(o *formats.Opener) { o.Source.(*formats.OSSource).ForceShare = true })
	if img.State != formats.StateInUse {
		t.Errorf("state %s", img.State)
	}
}

func TestHealth(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	create(t, path, "qcow2", "lazy_refcounts=on", 1<<20)
	sound := mustRead(t, path)
	for bits, want := range map[byte]formats.State{0: formats.StateClean, 1: formats.StateDirty, 2: formats.StateCorrupt, 3: formats.StateCorrupt} {
		b := bytes.Clone(sound)
		b[79] |= bits
		mustWrite(t, path, b)
		img := formatstest.Open(t, table, path, nil)
		if img.State != want || (len(img.Notes) > 0) != (bits != 0) {
			t.Errorf("bits %d: state %s, notes %q", bits, img.State, img.Notes)
		}
	}
}
