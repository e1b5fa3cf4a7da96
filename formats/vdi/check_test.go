package vdi_test

import (
	"fmt"
	"strings"
	"testing"

	"vmkit/formats"
	"vmkit/formats/all"
)

func check(t *testing.T, path string) string {
	t.Helper()
	src := &formats.OSSource{}
	defer src.Close()
	var found []string
	_, err := (&formats.Opener{Formats: all.Formats, Source: src}).Check(path, func(f formats.Finding) {
		found = append(found, fmt.Sprintf("%s at %d: %s, not %s", f.What, f.Off, f.Found, f.Expected))
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(found, "\n")
}

func TestCheck(t *testing.T) {
	for _, options := range []string{"static=off", "static=on"} {
		path, _ := image(t, 8<<20, options)
		if found := check(t, path); found != "" {
			t.Errorf("%s: %s", options, found)
		}
	}
	path, _ := image(t, 8<<20, "static=off")
	for _, c := range []struct {
		off  int
		set  uint32
		want string
	}{
		{512, 1 << 20, "block at 512: block 0 at byte"},
		{512, 1, "overlap at 520: block 2 at byte"},
		{388, 77, "header at 388: 77, not 5 blocks allocated"},
	} {
		if found := check(t, patched(t, path, c.off, c.set)); !strings.Contains(found, c.want) {
			t.Errorf("byte %d = %d: %s", c.off, c.set, found)
		}
	}
}
