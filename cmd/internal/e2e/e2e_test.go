package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"vmkit/fixtures"
)

// bin is where TestMain builds the commands.
var bin string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "vmkit-e2e-")
	if err != nil {
		panic(err)
	}
	bin = dir
	os.Setenv("CGO_ENABLED", "0") // as they are shipped
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin+"/", "vmkit/cmd/vmmap", "vmkit/cmd/vmextract", "vmkit/cmd/vmverify").CombinedOutput()
	code := 1
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
}

// run runs a command in dir and gives its stdout; statuses other than those that are fine fail the test.
func run(t *testing.T, dir string, stdin []byte, ok []int, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if !slices.Contains(ok, cmd.ProcessState.ExitCode()) {
		t.Fatalf("%s %v: %v\n%s", filepath.Base(name), args, err, stderr.Bytes())
	}
	return stdout.Bytes()
}

// closure gives "VOLUME/PATH" to sha256 by the map and the host files alone.
func closure(t *testing.T, dir string, m []byte) map[string]string {
	t.Helper()
	out := run(t, dir, m, []int{0}, "python3", filepath.Join(fixtures.Dir(t, "."), "closure.py"))
	sums := map[string]string{}
	for line := range strings.Lines(string(out)) {
		sum, path, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if ok && len(sum) == 64 {
			sums[path] = sum
		}
	}
	return sums
}

var sha = regexp.MustCompile(`\b[0-9a-f]{64}\b`)

// TestClosure maps stored images and produces every file from the map alone. All content that the oracle saw in the
// image must be among it. vmmap's own hashes are compared by closure.py.
func TestClosure(t *testing.T) {
	need(t, "python3", "zstd")
	cases := []struct{ name, image, expect string }{
		{"btrfs", "single.img.zst", "single.tree.tsv"}, {"btrfs", "log.img.zst", "log.tree.tsv"}, {"btrfs", "raid5.tar.zst", "raid5.tree.tsv"},
		{"btrfs", "raid6.tar.zst", "raid6.tree.tsv"},
		{"exfat-fuse", "small.img.zst", "tree.tsv"},
		{"ext4-journal", "data.img.zst", "data.tsv.zst"}, {"ext4-journal", "csum3-64bit.img.zst", "csum3-64bit.tsv.zst"}, {"ext4-journal", "fast.img.zst", "fast.tsv.zst"},
		{"ext4-journal", "wrapped.img.zst", "wrapped.tsv.zst"}, {"ext4-kernel", "ext4-inline.img.zst", "ext4-inline.tsv.zst"},
		{"fat-mtools", "fat12.img.zst", "tree.tsv"}, {"fat-mtools", "fat32.img.zst", "tree.tsv"},
		{"gpt-disk", "disk.qcow2.zst", "now.sums"},
		{"iso9660", "rr.iso.zst", "rr.tsv"}, {"iso9660", "zisofs.iso.zst", "zisofs.tsv"},
		{"ntfs-3g", "ntfs.img.zst", "tree.tsv"}, {"ntfs-3g", "ntfs.img.zst", "streams.tsv"},
		{"xfs-intents", "disk.img.zst", "expect.tsv.zst"}, {"xfs-quota", "disk.img.zst", "expect.tsv.zst"},
	}
	for _, c := range cases {
		t.Run(c.name+"/"+c.expect, func(t *testing.T) {
			dir := filepath.Dir(fixtures.Image(t, c.name, c.image))
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			args := []string{"--hash"}
			for i, e := range entries {
				if c.image != "raid6.tar.zst" || i%2 == 0 { // two of four devices are enough
					args = append(args, e.Name())
				}
			}

			sums := closure(t, dir, run(t, dir, nil, []int{0}, bin+"/vmmap", args...))
			have := map[string]bool{}
			for s := range maps.Values(sums) {
				have[s] = true
			}
			checked := 0
			for _, line := range fixtures.Expect(t, c.name, c.expect) {
				for _, s := range sha.FindAllString(line, -1) {
					checked++
					if !have[s] {
						t.Errorf("not in the map: %s", line)
					}
				}
			}
			if checked == 0 {
				t.Error("the oracle's account has no hashes")
			}
		})
	}
}

// TestContainers stores one guest's disk in every container that qemu-img writes: the same files must come out of each,
// through packed extents too, and the pipe must find no difference.
func TestContainers(t *testing.T) {
	need(t, "python3", "zstd", "qemu-img")
	dir := filepath.Dir(fixtures.Image(t, "gpt-disk", "disk.qcow2.zst"))
	want := closure(t, dir, run(t, dir, nil, []int{0}, bin+"/vmmap", "disk.qcow2"))
	if len(want) < 5 {
		t.Fatalf("only %d files", len(want))
	}
	for name, args := range map[string][]string{
		"raw.img":       {"-O", "raw"},
		"zlib.qcow2":    {"-c", "-O", "qcow2"},
		"zstd.qcow2":    {"-c", "-O", "qcow2", "-o", "compression_type=zstd"},
		"small.qcow2":   {"-O", "qcow2", "-o", "cluster_size=512"},
		"sub.qcow2":     {"-O", "qcow2", "-o", "extended_l2=on"},
		"sparse.vmdk":   {"-O", "vmdk"},
		"stream.vmdk":   {"-O", "vmdk", "-o", "subformat=streamOptimized"},
		"flat.vmdk":     {"-O", "vmdk", "-o", "subformat=monolithicFlat"},
		"split.vmdk":    {"-O", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"},
		"disk.vdi":      {"-O", "vdi"},
		"dynamic.vhd":   {"-O", "vpc", "-o", "force_size=on"},
		"dynamic.vhdx":  {"-O", "vhdx"},
		"version1.qcow": {"-O", "qcow"},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, dir, nil, []int{0}, "qemu-img", slices.Concat([]string{"convert"}, args, []string{"disk.qcow2", name})...)
			m := run(t, dir, nil, []int{0}, bin+"/vmmap", name)
			got := closure(t, dir, m)
			if !maps.Equal(got, want) {
				t.Errorf("%d files, or other content than the %d of the qcow2", len(got), len(want))
			}
			out := filepath.Join(t.TempDir(), "out")
			if err := os.Mkdir(out, 0o755); err != nil {
				t.Fatal(err)
			}
			results := run(t, dir, m, []int{0}, bin+"/vmextract", "-C", out)
			findings := run(t, dir, results, []int{0}, bin+"/vmverify")
			lines := bytes.Split(bytes.TrimSpace(findings), []byte("\n"))
			var end struct {
				Type                 string
				Checked, Differences int
			}
			if err := json.Unmarshal(lines[len(lines)-1], &end); err != nil || end.Type != "end" || end.Checked < len(want) || end.Differences != 0 {
				t.Errorf("vmverify ends with %s (%v)", lines[len(lines)-1], err)
			}
		})
	}
}

// TestEncrypted stores the disk in every kind of image that qemu-img encrypts. Without the passphrase there is nothing to
// map and no file to extract; with it the same files come out, and the map does not hold it.
func TestEncrypted(t *testing.T) {
	need(t, "python3", "zstd", "qemu-img")
	dir := filepath.Dir(fixtures.Image(t, "gpt-disk", "disk.qcow2.zst"))
	want := closure(t, dir, run(t, dir, nil, []int{0}, bin+"/vmmap", "disk.qcow2"))
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte("open sesame"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, options := range map[string]string{
		"luks.qcow2": "encrypt.format=luks,encrypt.iter-time=10", "aes.qcow2": "encrypt.format=aes", "aes.qcow": "encrypt.format=aes",
	} {
		t.Run(name, func(t *testing.T) {
			run(t, dir, nil, []int{0}, "qemu-img", "convert", "--object", "secret,id=s,file=key", "-O", strings.TrimPrefix(filepath.Ext(name), "."),
				"-o", options+",encrypt.key-secret=s", "disk.qcow2", name)
			run(t, dir, nil, []int{5}, bin+"/vmmap", name)
			m := run(t, dir, nil, []int{0}, bin+"/vmmap", "--key-file", "key", name)
			if bytes.Contains(m, []byte("sesame")) {
				t.Error("the passphrase stands in the map")
			}
			// Folders can be had, files can't.
			run(t, dir, m, []int{3}, bin+"/vmextract", "-C", filepath.Join(dir, name+".none"))
			var got []string
			for line := range bytes.Lines(run(t, dir, m, []int{0}, bin+"/vmextract", "--key-file", "key", "-C", filepath.Join(dir, name+".out"))) {
				var r struct{ Type, SHA256 string }
				if err := json.Unmarshal(line, &r); err == nil && r.Type == "result" && r.SHA256 != "" {
					got = append(got, r.SHA256)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, slices.Sorted(maps.Values(want))) {
				t.Errorf("%d files, or other content than the %d of the plain image", len(got), len(want))
			}
		})
	}
}

// TestOVA puts the disk into an OVA twice: both are mapped together, without unpacking.
func TestOVA(t *testing.T) {
	need(t, "python3", "zstd", "qemu-img", "tar")
	dir := filepath.Dir(fixtures.Image(t, "gpt-disk", "disk.qcow2.zst"))
	want := closure(t, dir, run(t, dir, nil, []int{0}, bin+"/vmmap", "disk.qcow2"))
	ovf := `<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"><References>` +
		`<File ovf:href="one.vmdk" ovf:id="f1"/><File ovf:href="two.vmdk" ovf:id="f2"/></References><DiskSection>` +
		`<Disk ovf:diskId="v1" ovf:fileRef="f1"/><Disk ovf:diskId="v2" ovf:fileRef="f2"/></DiskSection></Envelope>`
	if err := os.WriteFile(filepath.Join(dir, "web1.ovf"), []byte(ovf), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one.vmdk", "two.vmdk"} {
		run(t, dir, nil, []int{0}, "qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", "disk.qcow2", name)
	}
	run(t, dir, nil, []int{0}, "tar", "--format=ustar", "-cf", "web1.ova", "web1.ovf", "one.vmdk", "two.vmdk")
	got := closure(t, dir, run(t, dir, nil, []int{0}, bin+"/vmmap", "web1.ova"))
	if len(got) != 2*len(want) {
		t.Errorf("%d files, should be twice %d", len(got), len(want))
	}
	for path, sum := range want {
		for _, disk := range []string{"one", "two"} {
			if p := "web1.ova:" + disk + "/" + path; got[p] != sum {
				t.Errorf("%s: %q, should be %s", p, got[p], sum)
			}
		}
	}
}

// TestEvidence runs every command on an image and finds its bytes and times as they were.
func TestEvidence(t *testing.T) {
	need(t, "zstd")
	path := fixtures.Image(t, "ext4-journal", "csum3-64bit.img.zst")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	st, _ := os.Stat(path)
	dir, image := filepath.Split(path)
	run(t, dir, nil, []int{0}, bin+"/vmmap", "--hash", image)
	run(t, dir, nil, []int{0}, bin+"/vmextract", "-i", image, "-C", t.TempDir())
	run(t, dir, nil, []int{0, 1, 3}, bin+"/vmverify", "-i", image)
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	st2, _ := os.Stat(path)
	if !bytes.Equal(before, after) || !st.ModTime().Equal(st2.ModTime()) {
		t.Error("the image was written to")
	}
}
