package qcow_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/formatstest"
	"vmkit/formats/ondisk"
	"vmkit/formats/qcow"
	"vmkit/formats/raw"
)

var table = []formats.Format{raw.Format, qcow.Format}

// scribble makes an image and has qemu-io write to it, compressed clusters first where packed is set.
func scribble(t testing.TB, path string, size int64, packed bool, create ...string) {
	t.Helper()
	formatstest.Exec(t, "qemu-img", append(append([]string{"create", "-q", "-f", "qcow"}, create...), path, fmt.Sprint(size))...)
	cluster := int64(4096)
	if len(create) > 0 {
		cluster = 512
	}
	r := rand.New(rand.NewPCG(5, 5))
	args := []string{"-f", "qcow", "-t", "unsafe"}
	if packed {
		for i := int64(0); i < size/cluster; i += 1 + r.Int64N(size/cluster/10) {
			args = append(args, "-c", fmt.Sprintf("write -c -P %d %d %d", 1+r.IntN(255), i*cluster, cluster))
		}
	}
	for range 40 {
		off := r.Int64N(size) &^ 511
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", 1+r.IntN(255), off, min(512+r.Int64N(100_000)&^511, size-off)))
	}
	formatstest.Exec(t, "qemu-io", append(args, path)...)
}

func run(t *testing.T, path string) {
	t.Helper()
	truth, size := formatstest.Convert(t, path)
	open := func(t testing.TB) *formats.Image { return formatstest.Open(t, table, path, nil) }
	formatstest.Run(t, formatstest.Case{Open: open, Truth: truth, Size: size})
	formatstest.CompareMap(t, path, open(t))
}

func TestQcow(t *testing.T) {
	for name, size := range map[string]int64{"small": 512, "several L2 tables": 9<<20 + 1536} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.qcow")
			scribble(t, path, size, size > 4096*10)
			run(t, path)
		})
	}
}

func TestBacking(t *testing.T) {
	dir := t.TempDir()
	base, top := filepath.Join(dir, "base.raw"), filepath.Join(dir, "top.qcow")
	b := make([]byte, 2<<20+512)
	rand.NewChaCha8([32]byte{1}).Read(b)
	if err := os.WriteFile(base, b, 0o600); err != nil {
		t.Fatal(err)
	}
	scribble(t, top, 3<<20, true, "-b", "base.raw", "-F", "raw")
	run(t, top)
	img := formatstest.Open(t, table, top, nil)
	if len(img.Files) != 2 || img.Files[1].Path != base {
		t.Errorf("files %v", img.Files)
	}
	if err := os.Remove(base); err != nil {
		t.Fatal(err)
	}
	if _, err := formatstest.TryOpen(t, table, top, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

// TestEncrypted reads what qemu-img encrypted, with the passphrase and without; passphrases are cut after 16 bytes.
func TestEncrypted(t *testing.T) {
	for _, passphrase := range []string{"hello", "sixteen bytes, and more"} {
		dir := t.TempDir()
		src, path, secret := filepath.Join(dir, "src"), filepath.Join(dir, "disk.qcow"), filepath.Join(dir, "secret")
		const size = 1<<20 + 512
		truth := make([]byte, size)
		rand.NewChaCha8([32]byte{1}).Read(truth[70_000:200_000])
		rand.NewChaCha8([32]byte{2}).Read(truth[size-700:])
		for name, b := range map[string][]byte{src: truth, secret: []byte(passphrase)} {
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		formatstest.Exec(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow", "--object", "secret,id=s,file="+secret,
			"-o", "encrypt.format=aes,encrypt.key-secret=s", src, path)
		env := formats.NewEnv(0)
		open := func(answers ...string) func(t testing.TB) *formats.Image {
			return func(t testing.TB) *formats.Image {
				return formatstest.Open(t, table, path, func(o *formats.Opener) {
					o.Env = env
					o.Passphrase = func(what string) ([]byte, bool) { return []byte(passphrase), what == path && len(answers) > 0 }
				})
			}
		}
		img := open()(t)
		if img.Encryption != "aes" {
			t.Errorf("encryption %q", img.Encryption)
		}
		formatstest.Run(t, formatstest.Case{Open: open(), Truth: bytes.NewReader(truth), Size: size, Gone: func(off int64) formats.Kind {
			if e, err := img.ExtentAt(off, 1); err != nil || e.Kind != formats.Zero {
				return formats.Encrypted
			}
			return 0
		}})
		formatstest.Run(t, formatstest.Case{Open: open(passphrase), Truth: bytes.NewReader(truth), Size: size, Env: env})
	}
}

func TestRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.qcow")
	scribble(t, path, 1<<20, false)
	sound, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	l2 := be.Uint64(sound[be.Uint64(sound[40:]):])
	for _, tc := range []struct {
		name   string
		set    func(b []byte)
		atOpen bool
		is     error
		want   string
	}{
		{"size", func(b []byte) { be.PutUint64(b[24:], 1<<63) }, true, ondisk.ErrCorrupt, "virtual size"},
		{"cluster bits", func(b []byte) { b[32] = 17 }, true, ondisk.ErrCorrupt, "cluster bits 17"},
		{"L2 bits", func(b []byte) { b[33] = 5 }, true, ondisk.ErrCorrupt, "L2 bits 5"},
		{"encryption", func(b []byte) { b[39] = 2 }, true, ondisk.ErrUnsupported, "encryption method 2"},
		{"L1 offset", func(b []byte) { be.PutUint64(b[40:], 1<<40) }, true, ondisk.ErrTruncated, "L1 table"},
		{"backing name", func(b []byte) { b[15], b[18] = 48, 4 }, true, ondisk.ErrCorrupt, "backing file's name 1024"},
		{"L1 entry", func(b []byte) { be.PutUint64(b[be.Uint64(b[40:]):], 1<<63) }, false, ondisk.ErrCorrupt, "L2 table"},
		{"L2 table past the end", func(b []byte) { be.PutUint64(b[be.Uint64(b[40:]):], 1<<40) }, false, ondisk.ErrTruncated, "L2 table"},
		{"L2 entry unaligned", func(b []byte) { be.PutUint64(b[l2:], 4097) }, false, ondisk.ErrCorrupt, "cluster offset"},
		{"cluster past the end", func(b []byte) { be.PutUint64(b[l2:], 1<<40) }, false, ondisk.ErrTruncated, "past the end"},
		{"compressed past the end", func(b []byte) { be.PutUint64(b[l2:], 1<<63|5<<51|1<<40) }, false, ondisk.ErrTruncated, "compressed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := bytes.Clone(sound)
			tc.set(b)
			path := filepath.Join(t.TempDir(), "bad.qcow")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			img, err := formatstest.TryOpen(t, table, path, nil)
			if err == nil && !tc.atOpen {
				_, err = img.ExtentAt(0, 1)
			}
			if !errors.Is(err, tc.is) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %v with %q", err, tc.is, tc.want)
			}
		})
	}
}

func FuzzOpen(f *testing.F) {
	if _, err := exec.LookPath("qemu-io"); err == nil {
		path := filepath.Join(f.TempDir(), "seed.qcow")
		scribble(f, path, 64<<10, true)
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { formatstest.Fuzz(t, qcow.Format, b) })
}
