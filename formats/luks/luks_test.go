package luks

import (
	"bytes"
	"crypto/aes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/crypto/xts"

	"vmkit/formats/ondisk"
)

const passphrase = "correct horse"

func tool(t testing.TB, name string) string {
	t.Helper()
	for _, p := range []string{name, "/sbin/" + name, "/usr/sbin/" + name} {
		if p, err := exec.LookPath(p); err == nil {
			return p
		}
	}
	t.Skipf("%s is not installed", name)
	return ""
}

// run runs a command; FILE and KEY stand for the image and the key file.
func run(t testing.TB, path, key, command string) string {
	t.Helper()
	args := strings.Fields(command)
	for i := range args {
		args[i] = strings.NewReplacer("FILE", path, "KEY", key).Replace(args[i])
	}
	c := exec.Command(tool(t, args[0]), args[1:]...)
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

func keyFile(t testing.TB, secret string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func container(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "luks.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// dumped is the volume key as cryptsetup prints it.
func dumped(t testing.TB, path, key string) []byte {
	t.Helper()
	out := run(t, path, key, "cryptsetup luksDump --dump-volume-key -q --key-file KEY FILE")
	m := regexp.MustCompile(`(?s)MK dump:\s*((?:[0-9a-f]{2}\s+)+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no volume key in\n%s", out)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(m[1]), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestUnlock compares with the volume key that cryptsetup prints.
func TestUnlock(t *testing.T) {
	const fast = " --pbkdf-force-iterations 1000"
	for _, c := range []struct{ name, format string }{
		{"luks1 sha256", "--type luks1" + fast},
		{"luks1 sha1 256 bits", "--type luks1 -h sha1 -s 256" + fast},
		{"luks1 sha512 plain", "--type luks1 -h sha512 -c aes-xts-plain" + fast},
		{"luks1 ripemd160", "--type luks1 -h ripemd160" + fast},
		{"luks2 pbkdf2", "--type luks2 --pbkdf pbkdf2 --label disk" + fast},
		{"luks2 argon2i", "--type luks2 --pbkdf argon2i --pbkdf-memory 4096 --pbkdf-parallel 1 --pbkdf-force-iterations 4"},
		{"luks2 argon2id", "--type luks2 --pbkdf argon2id --pbkdf-memory 8192 --pbkdf-parallel 4 --pbkdf-force-iterations 5"},
		{"luks2 4096-byte sectors", "--type luks2 --sector-size 4096 --pbkdf pbkdf2 -h sha512" + fast},
		{"luks2 small areas", "--type luks2 --luks2-metadata-size 64k --luks2-keyslots-size 512k --pbkdf pbkdf2" + fast},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, key := container(t, 32<<20), keyFile(t, passphrase)
			run(t, path, key, "cryptsetup -q luksFormat "+c.format+" FILE KEY")
			b := read(t, path)
			h, err := Read(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if want := strings.TrimSpace(run(t, path, key, "cryptsetup luksUUID FILE")); h.UUID != want {
				t.Errorf("UUID %s, want %s", h.UUID, want)
			}
			if strings.Contains(c.format, "--label") && h.Label != "disk" {
				t.Errorf("label %q", h.Label)
			}
			if len(h.Notes) > 0 && c.name != "luks1 sha512 plain" {
				t.Errorf("notes %v", h.Notes)
			}
			got, err := h.Unlock(bytes.NewReader(b), []byte(passphrase))
			if err != nil {
				t.Fatal(err)
			}
			if want := dumped(t, path, key); !bytes.Equal(got, want) {
				t.Errorf("volume key %x, want %x", got, want)
			}
			if _, err := h.Unlock(bytes.NewReader(b), []byte("wrong")); !errors.Is(err, ErrPassphrase) {
				t.Errorf("wrong passphrase: %v", err)
			}
		})
	}
}

// TestSlots adds a second passphrase and takes the first one away.
func TestSlots(t *testing.T) {
	for _, typ := range []string{"luks1", "luks2 --pbkdf pbkdf2"} {
		path, key, second := container(t, 32<<20), keyFile(t, passphrase), keyFile(t, "another")
		run(t, path, key, "cryptsetup -q luksFormat --pbkdf-force-iterations 1000 --type "+typ+" FILE KEY")
		run(t, path, key, "cryptsetup -q luksAddKey --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-slot 5 --key-file KEY FILE "+second)
		want := dumped(t, path, key)
		check := func(secret string, ok bool) {
			t.Helper()
			b := read(t, path)
			h, err := Read(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			got, err := h.Unlock(bytes.NewReader(b), []byte(secret))
			if ok != bytes.Equal(got, want) || ok != (err == nil) {
				t.Errorf("%s: %q gives %x, %v", typ, secret, got, err)
			}
		}
		check(passphrase, true)
		check("another", true)
		run(t, path, key, "cryptsetup -q luksRemoveKey FILE KEY")
		check(passphrase, false)
		check("another", true)
	}
}

// TestQEMU decrypts what qemu-img encrypted.
func TestQEMU(t *testing.T) {
	plain := make([]byte, 1<<20)
	for i := range plain {
		plain[i] = byte(i * i >> 3)
	}
	raw, path := filepath.Join(t.TempDir(), "plain"), filepath.Join(t.TempDir(), "luks.img")
	if err := os.WriteFile(raw, plain, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, path, keyFile(t, passphrase), "qemu-img convert -O luks --object secret,id=s,file=KEY -o key-secret=s,iter-time=10 "+raw+" FILE")
	b := read(t, path)
	h, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	key, err := h.Unlock(bytes.NewReader(b), []byte(passphrase))
	if err != nil {
		t.Fatal(err)
	}
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		t.Fatal(err)
	}
	got := b[h.PayloadOff:]
	for i := 0; i < len(got); i += h.SectorSize {
		c.Decrypt(got[i:i+h.SectorSize], got[i:i+h.SectorSize], h.IVStart+uint64(i/512))
	}
	if !bytes.Equal(got, plain) {
		t.Error("the payload differs")
	}
}

// TestHeaders2 damages one LUKS2 header after the other.
func TestHeaders2(t *testing.T) {
	path, key := container(t, 32<<20), keyFile(t, passphrase)
	run(t, path, key, "cryptsetup -q luksFormat --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 FILE KEY")
	sound := read(t, path)
	want := dumped(t, path, key)
	for _, c := range []struct {
		name   string
		damage func(b []byte)
		note   string
	}{
		{"primary checksum", func(b []byte) { b[5000]++ }, "secondary LUKS2 header at byte 16384 is used: luks2 header: checksum"},
		{"primary gone", func(b []byte) { clear(b[:4096]) }, "there is no primary one"},
		{"secondary checksum", func(b []byte) { b[16384+5000]++ }, "not usable: secondary luks2 header: checksum"},
		{"secondary gone", func(b []byte) { clear(b[16384:20480]) }, "not usable: there is none"},
	} {
		b := bytes.Clone(sound)
		c.damage(b)
		h, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !strings.Contains(strings.Join(h.Notes, ";"), c.note) {
			t.Errorf("%s: notes %q", c.name, h.Notes)
		}
		if got, err := h.Unlock(bytes.NewReader(b), []byte(passphrase)); !bytes.Equal(got, want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	b := bytes.Clone(sound)
	b[5000]++
	b[16384+5000]++
	if _, err := Read(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ondisk.ErrCorrupt) {
		t.Errorf("both damaged: %v", err)
	}
}

func TestUnsupported(t *testing.T) {
	for _, format := range []string{"--type luks1 -c aes-cbc-essiv:sha256", "--type luks1 -c aes-cbc-plain64"} {
		path, key := container(t, 32<<20), keyFile(t, passphrase)
		run(t, path, key, "cryptsetup -q luksFormat --pbkdf-force-iterations 1000 "+format+" FILE KEY")
		b := read(t, path)
		h, err := Read(bytes.NewReader(b), int64(len(b)))
		if !errors.Is(err, ondisk.ErrUnsupported) || h == nil || h.UUID == "" || !strings.Contains(err.Error(), strings.Fields(format)[len(strings.Fields(format))-1]) {
			t.Errorf("%s: %v %+v", format, err, h)
		}
	}
}

// TestCost asks for more than the limits allow: the slot is named and not tried.
func TestCost(t *testing.T) {
	path, key := container(t, 32<<20), keyFile(t, passphrase)
	run(t, path, key, "cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 FILE KEY")
	b := read(t, path)
	binary.BigEndian.PutUint32(b[208+4:], 1<<32-1)
	h, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	_, err = h.Unlock(bytes.NewReader(b), []byte(passphrase))
	if !errors.Is(err, ErrPassphrase) || !errors.Is(err, ondisk.ErrUnsupported) || !strings.Contains(err.Error(), "beyond the limit") {
		t.Errorf("4 billion iterations: %v", err)
	}
	for _, k := range []kdf{{name: "argon2id", time: 1, memory: 1 << 40, lanes: 1}, {name: "argon2i", time: 1 << 40, memory: 64, lanes: 1},
		{name: "argon2i", time: 1, memory: 64, lanes: 1 << 20}, {name: "scrypt"}, {name: "pbkdf2", hash: "whirlpool", time: 1}} {
		if _, err := k.derive([]byte("x"), 32); err == nil {
			t.Errorf("%+v was derived", k)
		}
	}
}

func TestLayout(t *testing.T) {
	if n := binary.Size(header1{}); n != 592 {
		t.Errorf("LUKS1 header has %d bytes, want 592", n)
	}
	if n := binary.Size(header2{}); n != header2Len {
		t.Errorf("LUKS2 header has %d bytes, want %d", n, header2Len)
	}
	b := make([]byte, header2Len)
	b[104], b[107], b[108], b[168], b[211], b[208+47], b[256+208-1] = 1, 2, 3, 4, 5, 6, 7
	var h header1
	if _, err := binary.Decode(b, binary.BigEndian, &h); err != nil {
		t.Fatal(err)
	}
	if h.PayloadOffset>>24 != 1 || h.PayloadOffset&0xff != 2 || h.KeyBytes>>24 != 3 || h.UUID[0] != 4 || h.Slots[0].Active&0xff != 5 && h.Slots[0].Active>>24 != 0 || h.Slots[0].Stripes&0xff != 6 {
		t.Errorf("LUKS1 header %+v", h)
	}
	clear(b)
	b[15], b[23], b[24], b[72], b[104], b[168], b[208], b[263], b[0x1c0] = 1, 2, 3, 4, 5, 6, 7, 8, 9
	var x header2
	if _, err := binary.Decode(b, binary.BigEndian, &x); err != nil {
		t.Fatal(err)
	}
	if x.Size != 1 || x.Sequence != 2 || x.Label[0] != 3 || x.ChecksumAlg[0] != 4 || x.Salt[0] != 5 || x.UUID[0] != 6 || x.Subsystem[0] != 7 || x.Offset != 8 || x.Checksum[0] != 9 {
		t.Errorf("LUKS2 header %+v", x)
	}
}

func FuzzRead(f *testing.F) {
	if _, err := exec.LookPath("cryptsetup"); err == nil {
		for _, typ := range []string{"luks1", "luks2"} {
			path, key := container(f, 32<<20), keyFile(f, passphrase)
			run(f, path, key, "cryptsetup -q luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --type "+typ+" FILE KEY")
			b := read(f, path)[:20480]
			f.Add(b)
		}
	}
	f.Add([]byte(magic1 + "\x00\x01" + strings.Repeat("\x00", 600)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 64 { // let mutations of the JSON text through the checksum
			if len(b) >= 16384 && b[7] == 2 {
				clear(b[checksum2Off : checksum2Off+64])
				copy(b[checksum2Off:], sum(b[:16384]))
			}
		}
		h, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil || h == nil {
			return
		}
		for i := range h.slots { // cost is tested elsewhere
			h.slots[i].kdf.time = min(h.slots[i].kdf.time, 2)
			h.slots[i].kdf.memory = min(h.slots[i].kdf.memory, 64)
		}
		for i := range h.digests {
			h.digests[i].kdf.time = min(h.digests[i].kdf.time, 2)
			h.digests[i].kdf.memory = min(h.digests[i].kdf.memory, 64)
		}
		h.Unlock(bytes.NewReader(b), []byte(passphrase))
	})
}

func sum(b []byte) []byte {
	h := hashes["sha256"]()
	h.Write(b)
	return h.Sum(nil)
}
