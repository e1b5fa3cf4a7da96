package partition

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/luks"
)

const luksPassphrase = "correct horse"

// luksDisk makes a LUKS container of plain with qemu-img (LUKS1) or cryptsetup (LUKS2, whose --encrypt needs neither
// root nor device mapper).
func luksDisk(t testing.TB, version string, plain []byte) string {
	t.Helper()
	dir := t.TempDir()
	key, raw, path := filepath.Join(dir, "key"), filepath.Join(dir, "plain"), filepath.Join(dir, "luks.img")
	for name, b := range map[string][]byte{key: []byte(luksPassphrase), raw: plain} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var c *exec.Cmd
	if version == "luks1" {
		c = exec.Command(tool(t, "qemu-img"), "convert", "-O", "luks", "--object", "secret,id=s,file="+key, "-o", "key-secret=s,iter-time=10", raw, path)
	} else {
		path = raw
		if err := os.Truncate(raw, int64(len(plain))+32<<20); err != nil {
			t.Fatal(err)
		}
		c = exec.Command(tool(t, "cryptsetup"), append(strings.Fields("reencrypt --encrypt --type luks2 -q --force-offline-reencrypt --reduce-device-size 32M --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file "+key), append(strings.Fields(version)[1:], raw)...)...)
	}
	if out, err := c.CombinedOutput(); err != nil {
		t.Skipf("%v: %v\n%s", c.Args, err, out)
	}
	return path
}

func passphrase(s string) formats.Passphrase {
	return func(string) ([]byte, bool) { return []byte(s), true }
}

func TestLUKS(t *testing.T) {
	plain := make([]byte, 300<<10)
	for i := range plain {
		plain[i] = byte(i*i>>7 + i)
	}
	for _, version := range []string{"luks1", "luks2", "luks2 --sector-size 4096"} {
		t.Run(version, func(t *testing.T) {
			path := luksDisk(t, version, plain)
			env := formats.NewEnv(0)
			vols := scan(t, file(t, path), Options{Env: env, Passphrase: passphrase(luksPassphrase)})
			v := find(t, vols, "disk/luks")
			if v.Kind != KindLUKS || v.Scheme != version[:5] || vols[0].Holds != "crypto_LUKS" || len(v.Problems) > 0 {
				t.Errorf("volume %+v", v)
			}
			// The disk has its own Env; the key is in that of Scan, which the volume reads with.
			for _, r := range [][2]int64{{0, int64(len(plain))}, {1, 511}, {511, 2}, {4095, 4098}, {65535, 70000}, {100, 1}, {299 << 10, 1024}} {
				got := make([]byte, r[1])
				if n, err := v.Disk.ReadAt(got, r[0]); err != nil || !bytes.Equal(got, plain[r[0]:r[0]+r[1]]) {
					t.Errorf("reading %d+%d: %d, %v", r[0], r[1], n, err)
				}
			}
			for off := int64(0); off < int64(len(plain)); {
				e, err := v.Disk.ExtentAt(off, v.Size-off)
				if err != nil || e.Kind != formats.Packed || e.Pack.Key != "luks:"+v.UUID || e.Len > packWindow || e.Disk != formats.NoPos {
					t.Fatalf("extent at %d: %+v, %v", off, e, err)
				}
				for _, p := range e.Pack.Parts {
					if p.Kind != formats.Data || p.Disk != p.Off {
						t.Fatalf("part %+v", p)
					}
				}
				if (off+e.Len)%packWindow != 0 && off+e.Len != v.Size {
					t.Fatalf("extent at %d ends at %d", off, off+e.Len)
				}
				got := make([]byte, e.Len)
				if err := env.Fill(got, e); err != nil {
					t.Fatal(err)
				}
				if n := min(e.Len, int64(len(plain))-off); !bytes.Equal(got[:n], plain[off:off+n]) {
					t.Fatalf("extent at %d differs", off)
				}
				off += e.Len
			}

			v = find(t, scan(t, file(t, path), Options{}), "disk/luks")
			if e, err := v.Disk.ExtentAt(5, 1000); err != nil || e.Kind != formats.Encrypted || len(v.Problems) > 0 {
				t.Errorf("without a passphrase: %+v, %v, %v", e, err, v.Problems)
			}
			if _, err := v.Disk.ReadAt(make([]byte, 10), 0); !errors.Is(err, formats.ErrEncrypted) {
				t.Errorf("reading without a passphrase: %v", err)
			}
			if version != "luks1" {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				clear(b[:4096])
				v = find(t, scan(t, memory(b), Options{Passphrase: passphrase(luksPassphrase)}), "disk/luks")
				got := make([]byte, 100)
				if _, err := v.Disk.ReadAt(got, 1000); err != nil || !bytes.Equal(got, plain[1000:1100]) || len(v.Notes) == 0 {
					t.Errorf("without the primary header: %v, notes %q", err, v.Notes)
				}
			}
			v = find(t, scan(t, file(t, path), Options{Passphrase: passphrase("wrong")}), "disk/luks")
			if len(v.Problems) != 1 || !errors.Is(v.Problems[0], luks.ErrPassphrase) {
				t.Errorf("with a wrong passphrase: %v", v.Problems)
			}
		})
	}
}

// TestLUKSInside puts a disk with partitions into a container in a partition, and cuts the image.
func TestLUKSInside(t *testing.T) {
	inner := mbrDisk(2048, [4]uint32{0, 0x83, 63, 1000})
	copy(inner[63*512:], "hello")
	container, err := os.ReadFile(luksDisk(t, "luks1", inner))
	if err != nil {
		t.Fatal(err)
	}
	disk := mbrDisk(64+int64(len(container))/512, [4]uint32{0, 0x83, 64, uint32(len(container) / 512)})
	copy(disk[64*512:], container)
	vols := scan(t, memory(disk), Options{Passphrase: passphrase(luksPassphrase)})
	v := find(t, vols, "p1/luks/p1")
	b := make([]byte, 5)
	if _, err := v.Disk.ReadAt(b, 0); err != nil || string(b) != "hello" {
		t.Errorf("p1/luks/p1 reads %q, %v", b, err)
	}
	if v.Image != -1 || v.Start != -1 || len(v.Segments) != 1 || vols[v.In].Name != "p1/luks" {
		t.Errorf("%+v", v)
	}
	cut := disk[:len(disk)-300*512-100]
	v = find(t, scan(t, memory(cut), Options{Passphrase: passphrase(luksPassphrase)}), "p1/luks/p1")
	if _, err := io.Copy(io.Discard, io.NewSectionReader(v.Disk, 0, v.Size)); err != nil {
		t.Errorf("the part that is left: %v", err)
	}
}
