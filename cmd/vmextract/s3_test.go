package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/cmd/internal/repo"
	"vmkit/cmd/internal/repo/repotest"
	"vmkit/fixtures"
)

// TestS3: the host files of a map may lie in a bucket, from which only what is needed is read.
func TestS3(t *testing.T) {
	g := repotest.Start(t)
	disk := fixtures.Image(t, "gpt-disk", "disk.qcow2.zst")
	text, err := exec.Command("mkmap", disk).Output()
	if err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	s, err := repo.OpenS3(t.Context(), "s3://"+repotest.Bucket)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w, err := s.Create(t.Context(), "some/disk.qcow2", true)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(image)
	if _, err := w.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	url := "s3://" + repotest.Bucket + "/some/disk.qcow2"
	text = bytes.ReplaceAll(text, []byte(`"path":"`+disk+`"`), []byte(`"path":"`+url+`"`))
	proxy := g.Proxy(t)
	extract := func(args ...string) (status int, stdout, stderr string) {
		var out, errs bytes.Buffer
		status = run(t.Context(), args, bytes.NewReader(text), &out, &errs)
		return status, out.String(), errs.String()
	}
	if status, out, errs := extract("--cat", "/etc/hostname", "--ignore-mtime"); status != 0 || out == "" || proxy.Requests() > 8 {
		t.Errorf("status %d, %q after %d requests: %s", status, out, proxy.Requests(), errs)
	}
	dir := t.TempDir()
	if status, _, errs := extract("-C", dir, "--ignore-mtime"); status != 0 {
		t.Errorf("status %d: %s", status, errs)
	}
	sums := exec.Command("sh", "-c", `grep -v "^#" "$0" | grep -v "[?]" | sha256sum -c --quiet`, filepath.Join(fixtures.Dir(t, "gpt-disk"), "now.sums"))
	sums.Dir = filepath.Join(dir, "p2")
	if out, err := sums.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if status, _, errs := extract("-C", dir+"/x"); status != 4 || !strings.Contains(errs, url+": it changed since the map was made") {
		t.Errorf("another time of change: status %d: %s", status, errs)
	}
	if err := s.Remove(t.Context(), "some/disk.qcow2"); err != nil {
		t.Fatal(err)
	}
	if status, _, errs := extract("-C", dir+"/x"); status != 4 || !strings.Contains(errs, url+": file does not exist") {
		t.Errorf("an object that is gone: status %d: %s", status, errs)
	}
}
