// Package boottest finds a kernel for the tests that boot a machine.
package boottest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Kernel finds a kernel with the drivers that the tests want: $VMKIT_KERNEL, the host's, or Debian's, which is fetched
// into the user's cache. Its modules are in ../lib/modules from there, as they are on a host.
func Kernel(t testing.TB) string {
	t.Helper()
	if k := os.Getenv("VMKIT_KERNEL"); k != "" {
		return k
	}
	images, _ := filepath.Glob("/boot/vmlinuz-*")
	for _, image := range images {
		drivers, _ := filepath.Glob("/lib/modules/" + strings.TrimPrefix(filepath.Base(image), "vmlinuz-") + "/kernel/fs/f2fs/f2fs.ko*")
		if f, err := os.Open(image); err == nil && len(drivers) > 0 {
			f.Close()
			return image
		}
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	cache = filepath.Join(cache, "vmkit-kernel")
	if images, _ = filepath.Glob(filepath.Join(cache, "boot/vmlinuz-*")); len(images) > 0 {
		return images[0]
	}
	skip := func(what string, out []byte, err error) {
		t.Skipf("no kernel with f2fs in /boot, none in $VMKIT_KERNEL, and none from apt: %s: %v: %.500s", what, err, out)
	}
	out, err := exec.Command("apt-cache", "depends", "linux-image-"+debianArch(t)).CombinedOutput()
	m := regexp.MustCompile(`Depends: (linux-image-\S+)`).FindSubmatch(out)
	if err != nil || m == nil {
		skip("apt-cache depends", out, err)
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	work, err := os.MkdirTemp(cache, "new")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(work)
	get := exec.Command("apt-get", "-q", "download", string(m[1]))
	get.Dir = work
	if out, err := get.CombinedOutput(); err != nil {
		skip("apt-get download", out, err)
	}
	packages, _ := filepath.Glob(filepath.Join(work, "*.deb"))
	if len(packages) != 1 {
		skip("apt-get download", nil, fmt.Errorf("%d packages", len(packages)))
	}
	if out, err := exec.Command("dpkg", "-x", packages[0], work).CombinedOutput(); err != nil {
		skip("dpkg -x", out, err)
	}
	for _, dir := range []string{"lib", "boot"} { // boot last: it says that the rest is there
		if err := os.Rename(filepath.Join(work, dir), filepath.Join(cache, dir)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	images, _ = filepath.Glob(filepath.Join(cache, "boot/vmlinuz-*"))
	return images[0]
}

func debianArch(t testing.TB) string {
	out, err := exec.Command("dpkg", "--print-architecture").Output()
	if err != nil {
		t.Skip("this is no Debian, and there is no kernel with f2fs in /boot and none in $VMKIT_KERNEL")
	}
	return strings.TrimSpace(string(out))
}
