package vmdk_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/formatstest"
	"vmkit/formats/ondisk"
	"vmkit/formats/vmdk"
)

func memory(b []byte) *formats.File {
	return &formats.File{ReaderAt: bytes.NewReader(b), Size: int64(len(b))}
}

// renamed gives the bytes of a file whose descriptor was changed.
func renamed(t testing.TB, b []byte, change func(key, value string) string) ([]byte, error) {
	t.Helper()
	d, err := vmdk.ReadDescriptor(memory(b))
	if err != nil || d == nil {
		t.Fatalf("descriptor: %v, %v", d, err)
	}
	text, err := d.Rename(change)
	if err != nil || d.Off == 0 {
		return text, err
	}
	out := bytes.Clone(b)
	copy(out[d.Off:], text)
	return out, nil
}

// TestRename: QEMU finds the files under their new names, and reads the same disk.
func TestRename(t *testing.T) {
	for _, subformat := range []string{"monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "streamOptimized"} {
		t.Run(subformat, func(t *testing.T) {
			t.Chdir(t.TempDir())
			raw := content(t, ".", 4<<20)
			formatstest.Exec(t, "qemu-img", "convert", "-O", "vmdk", "-o", "subformat="+subformat, raw, "Virtual 01.vmdk")
			if err := os.Mkdir("clone", 0o755); err != nil {
				t.Fatal(err)
			}
			to := func(name string) string { return strings.Replace(name, "Virtual 01", "Würfel = 03 # x", 1) }
			files, err := filepath.Glob("Virtual 01*.vmdk")
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range files {
				b := read(t, name)
				if name == "Virtual 01.vmdk" {
					if b, err = renamed(t, b, func(key, value string) string {
						if key == vmdk.KeyExtent {
							return to(value)
						}
						return value
					}); err != nil {
						t.Fatal(err)
					}
				}
				write(t, filepath.Join("clone", to(name)), b)
			}
			clone := filepath.Join("clone", to("Virtual 01.vmdk"))
			formatstest.Exec(t, "qemu-img", "compare", "-f", "vmdk", "-F", "raw", clone, raw)
			if subformat != "streamOptimized" {
				formatstest.Exec(t, "qemu-img", "check", clone)
			}
		})
	}
}

func TestRenameText(t *testing.T) {
	const text = "# Disk DescriptorFile\r\nversion=1\r\nCID=fffffffe\r\nparentCID = 0000000a\r\n parentFileNameHint = \"C:\\a\\b.vmdk\" \r\n" +
		"createType=\"twoGbMaxExtentFlat\"\r\n# RW 1 FLAT \"no\"\r\n\tRW 8 FLAT \"a-f001.vmdk\" 16\r\nRW 1 ZERO\r\nddb.uuid.image=\"11-22\"\r\nodd\r\n"
	var seen []string
	got, err := renamed(t, []byte(text), func(key, value string) string {
		seen = append(seen, key+"|"+value)
		return value
	})
	if err != nil || string(got) != text {
		t.Errorf("unchanged: %q, %v", got, err)
	}
	want := `version|1 cid|fffffffe parentcid|0000000a parentfilenamehint|C:\a\b.vmdk createtype|twoGbMaxExtentFlat extent|a-f001.vmdk ddb.uuid.image|11-22`
	if s := strings.Join(seen, " "); s != want {
		t.Errorf("seen %s\nwant %s", s, want)
	}
	change := map[string]string{"a-f001.vmdk": "ä b.vmdk", `C:\a\b.vmdk`: "b.vmdk", "11-22": "33"}
	got, err = renamed(t, []byte(text), func(_, value string) string {
		if to, ok := change[value]; ok {
			return to
		}
		return value
	})
	all := strings.NewReplacer("a-f001.vmdk", "ä b.vmdk", `C:\a\b.vmdk`, "b.vmdk", "11-22", "33", "CID=fff", "encoding=\"UTF-8\"\r\nCID=fff").Replace(text)
	if err != nil || string(got) != all {
		t.Errorf("changed: %q, %v\nwant %q", got, err, all)
	}
	for _, c := range []struct{ text, name string }{
		{text, `a"b`}, {text, "a\nb"}, {text + "ddb.comment = \"caf\xe9\"\n", "ä.vmdk"}, {"\xff\xfe" + text, "x"},
	} {
		d, err := vmdk.ReadDescriptor(memory([]byte(c.text)))
		if err == nil && d != nil {
			_, err = d.Rename(func(key, value string) string {
				if key == vmdk.KeyExtent {
					return c.name
				}
				return value
			})
		} else if d == nil && err == nil {
			continue // bytes that are no descriptor
		}
		if !errors.Is(err, ondisk.ErrUnsupported) && !errors.Is(err, ondisk.ErrNot) {
			t.Errorf("%q: %v", c.name, err)
		}
	}
	// Windows-1252 is told, and becomes UTF-8 where a new name needs it.
	latin := "# Disk DescriptorFile\nencoding=\"windows-1252\"\nCID=1\nRW 8 FLAT \"caf\xe9.vmdk\" 0\n"
	got, err = renamed(t, []byte(latin), func(key, value string) string {
		if key == vmdk.KeyExtent {
			return value + "é"
		}
		return value
	})
	if want := "# Disk DescriptorFile\nencoding=\"UTF-8\"\nCID=1\nRW 8 FLAT \"café.vmdké\" 0\n"; err != nil || string(got) != want {
		t.Errorf("windows-1252: %q, %v", got, err)
	}
}

func TestRenameRoom(t *testing.T) {
	path := image(t, content(t, t.TempDir(), 1<<20), "monolithicSparse")
	_, err := renamed(t, read(t, path), func(key, value string) string {
		if key == vmdk.KeyExtent {
			return strings.Repeat("n", 20*512)
		}
		return value
	})
	if !errors.Is(err, ondisk.ErrUnsupported) {
		t.Errorf("a name that has no room: %v", err)
	}
}

func FuzzRename(f *testing.F) {
	f.Add([]byte("# Disk DescriptorFile\nversion=1\nCID=1\nRW 8 FLAT \"a.vmdk\" 0\nparentFileNameHint=\"b\"\n"), "c.vmdk")
	f.Add([]byte("version=1\r\nencoding = windows-1252\r\ncreateType = \"x\"\r\n"), "é")
	f.Fuzz(func(t *testing.T, b []byte, name string) {
		d, err := vmdk.ReadDescriptor(memory(b))
		if err != nil || d == nil {
			return
		}
		names := func(key string) bool { return key == vmdk.KeyExtent || key == vmdk.KeyParent }
		out, err := d.Rename(func(key, value string) string {
			if names(key) {
				return name
			}
			return value
		})
		if err != nil || d.Off != 0 || strings.TrimSpace(name) != name || name == "" {
			return
		}
		again, err := vmdk.ReadDescriptor(memory(out))
		if err != nil || again == nil {
			return // too long by now, or its first line was no comment
		}
		if _, err := again.Rename(func(key, value string) string {
			if names(key) && value != name && strings.ToValidUTF8(name, "") == name {
				t.Fatalf("%s is %q after a change to %q: %q", key, value, name, out)
			}
			return value
		}); err != nil {
			t.Fatalf("%v: %q", err, out)
		}
	})
}
