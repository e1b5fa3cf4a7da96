package ntfs

import (
	"testing"

	"vmkit/fixtures"
	"vmkit/fsmap/fsmaptest"
)

func TestFree(t *testing.T) {
	fsmaptest.Free(t, Driver, fixtures.Image(t, "ntfs-3g", "ntfs.img.zst"), 0)
}
