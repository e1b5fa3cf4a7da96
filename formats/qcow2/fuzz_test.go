package qcow2_test

import (
	"os/exec"
	"path/filepath"
	"testing"

	"vmkit/formats/formatstest"
	"vmkit/formats/qcow2"
)

func FuzzOpen(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { formatstest.Fuzz(t, qcow2.Format, b) })
}

// seeds makes small images of every kind; none where qemu-img is absent.
func seeds(f *testing.F) (list [][]byte) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		return nil
	}
	for _, options := range []string{
		"cluster_size=512", "cluster_size=512,compat=0.10", "cluster_size=512,compression_type=zstd",
		"cluster_size=512,refcount_bits=64", "cluster_size=16k,extended_l2=on",
	} {
		path := filepath.Join(f.TempDir(), "seed.qcow2")
		create(f, path, "qcow2", options, 256<<10)
		scribble(f, path, "qcow2", 1, 8, true)
		list = append(list, mustRead(f, path))
	}
	path := filepath.Join(f.TempDir(), "more.qcow2")
	create(f, path, "qcow2", "cluster_size=512", 128<<10, "-u", "-b", "fuzz-base", "-F", "qcow2")
	formatstest.Exec(f, "qemu-img", "bitmap", "--add", path, "bitmap")
	for _, args := range [][]string{{"snapshot", "-c", "one"}, {"snapshot", "-c", "two"}} {
		// The backing file is absent: only what needs none can be done.
		_ = exec.Command("qemu-img", append(args, path)...).Run()
	}
	return append(list, mustRead(f, path))
}
