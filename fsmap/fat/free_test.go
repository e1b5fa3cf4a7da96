package fat

import (
	"testing"

	"vmkit/fixtures"
	"vmkit/fsmap/fsmaptest"
)

func TestFree(t *testing.T) {
	for _, name := range []string{"fat12.img.zst", "fat16.img.zst", "fat32.img.zst"} {
		t.Run(name, func(t *testing.T) { fsmaptest.Free(t, Driver, fixtures.Image(t, "fat-mtools", name), 512) })
	}
}
