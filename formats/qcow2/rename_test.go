package qcow2_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/formatstest"
	"vmkit/formats/ondisk"
	"vmkit/formats/qcow2"
)

// rename changes the names in the image at path.
func rename(t testing.TB, path string, change func(*qcow2.Names)) error {
	t.Helper()
	src := &formats.OSSource{}
	defer src.Close()
	f, err := src.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	names, err := qcow2.ReadNames(f)
	if err != nil {
		t.Fatal(err)
	}
	change(&names)
	head, err := qcow2.Rename(f, names)
	if err != nil {
		return err
	}
	w, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.WriteAt(head, 0); err != nil {
		t.Fatal(err)
	}
	return nil
}

// TestRename: QEMU reads the new names, finds the image sound, and reads the same disk.
func TestRename(t *testing.T) {
	for _, options := range []string{"", "compat=0.10", "cluster_size=2M", "cluster_size=512,compat=0.10", "extended_l2=on,compression_type=zstd", "data_file=a.data"} {
		t.Run(options, func(t *testing.T) {
			t.Chdir(t.TempDir())
			create(t, "base.qcow2", "qcow2", "", 4<<20)
			scribble(t, "base.qcow2", "qcow2", 1, 8, false)
			external := strings.HasPrefix(options, "data_file")
			if external { // which has no backing file
				create(t, "a.qcow2", "qcow2", options, 4<<20)
			} else {
				create(t, "a.qcow2", "qcow2", options, 4<<20, "-b", "base.qcow2", "-F", "qcow2")
			}
			scribble(t, "a.qcow2", "qcow2", 2, 8, false)
			formatstest.Exec(t, "qemu-img", "convert", "-O", "raw", "a.qcow2", "truth.raw")
			const name = "ein längerer Name, \"quoted\".img"
			old := map[bool]string{true: "a.data", false: "base.qcow2"}[external]
			if err := os.Rename(old, name); err != nil {
				t.Fatal(err)
			}
			err := rename(t, "a.qcow2", func(n *qcow2.Names) {
				if external {
					n.Data = name
				} else {
					n.Backing = name
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			formatstest.Exec(t, "qemu-img", "check", "a.qcow2")
			formatstest.Exec(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", "a.qcow2", "truth.raw")
			var info struct {
				Backing  string `json:"backing-filename"`
				Format   string `json:"backing-filename-format"`
				Specific struct {
					Data struct {
						File string `json:"data-file"`
					}
				} `json:"format-specific"`
			}
			if err := json.Unmarshal(formatstest.Exec(t, "qemu-img", "info", "--output=json", "a.qcow2"), &info); err != nil {
				t.Fatal(err)
			}
			if external && info.Specific.Data.File != name || !external && (info.Backing != name || info.Format != "qcow2") {
				t.Errorf("qemu-img sees %+v", info)
			}
			run(t, "a.qcow2", nil)
		})
	}
}

func TestRenameRoom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	create(t, path, "qcow2", "cluster_size=512", 1<<20, "-u", "-b", "x", "-F", "qcow2")
	to := func(n int) error { return rename(t, path, func(x *qcow2.Names) { x.Backing = strings.Repeat("n", n) }) }
	// 104 bytes of header, 16 of the format, 8 of the end, and nothing left of the names of features.
	if err := to(512 - 104 - 8 - 16 - 8); err != nil {
		t.Error(err)
	}
	if err := to(512 - 104 - 8 - 16 - 7); !errors.Is(err, ondisk.ErrUnsupported) {
		t.Errorf("a name that has no room: %v", err)
	}
	if err := to(1024); !errors.Is(err, ondisk.ErrUnsupported) {
		t.Errorf("a name that is too long: %v", err)
	}
	if err := to(0); err != nil {
		t.Error(err)
	}
	if out := string(formatstest.Exec(t, "qemu-img", "info", path)); strings.Contains(out, "backing file:") {
		t.Errorf("the backing file is still there:\n%s", out)
	}
}

func FuzzRename(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b, "base.qcow2", "data")
	}
	f.Fuzz(func(t *testing.T, b []byte, backing, data string) {
		if strings.ContainsRune(backing+data, 0) {
			return
		}
		open := func(b []byte) *formats.File {
			return &formats.File{ReaderAt: strings.NewReader(string(b)), Size: int64(len(b))}
		}
		names, err := qcow2.ReadNames(open(b))
		if err != nil {
			return
		}
		names.Backing, names.Data = backing, data
		head, err := qcow2.Rename(open(b), names)
		if err != nil {
			return
		}
		got, err := qcow2.ReadNames(open(append(head, b[len(head):]...)))
		if err != nil || got != names {
			t.Fatalf("%+v, %v after a change to %+v", got, err, names)
		}
	})
}
