package exfat

import (
	"testing"

	"vmkit/fixtures"
	"vmkit/fsmap/fsmaptest"
)

func TestFree(t *testing.T) {
	for _, name := range []string{"small.img.zst", "large.img.zst"} {
		t.Run(name, func(t *testing.T) { fsmaptest.Free(t, Driver, fixtures.Image(t, "exfat-fuse", name), 512) })
	}
}
