package formatstest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Mount mounts a new file system, which the program mkfs makes, of a size such as "300M", and gives its folder. The test
// is skipped where none can be had.
func Mount(t testing.TB, mkfs, size string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting takes root")
	}
	Tool(t, mkfs)
	img, mnt := filepath.Join(t.TempDir(), "fs.img"), t.TempDir()
	Exec(t, "truncate", "-s", size, img)
	Exec(t, mkfs, "-q", img)
	if out, err := exec.Command("mount", "-o", "loop", img, mnt).CombinedOutput(); err != nil {
		t.Skipf("no loop mounts: %s", out)
	}
	t.Cleanup(func() { exec.Command("umount", mnt).Run() })
	return mnt
}
