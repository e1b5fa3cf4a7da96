package vhdx_test

import (
	"bytes"
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
		found = append(found, fmt.Sprintf("%s: %s, not %s", f.What, f.Found, f.Expected))
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(found, "\n")
}

func TestCheck(t *testing.T) {
	for _, options := range []string{"subformat=dynamic", "subformat=fixed"} {
		path, _ := image(t, 9<<20, options)
		if found := check(t, path); found != "" {
			t.Errorf("%s: %s", options, found)
		}
	}
	top, _ := pair(t, "base.vhdx", linked(`.\base.vhdx`, ""))
	if found := check(t, top); found != "" {
		t.Errorf("differencing: %s", found)
	}
	good := build(3*mib, 512, map[int]byte{0: 6, 1: 6}, nil, nil)
	for _, c := range []struct {
		name, want string
		damage     func(b []byte)
	}{
		{"outside", "block: block 0 at byte", func(b []byte) { le.PutUint64(b[3*mib:], 1<<30|6) }},
		{"twice", "overlap: block 1 lies", func(b []byte) { copy(b[3*mib+8:3*mib+16], b[3*mib:]) }},
		{"over the BAT", "overlap: block 0 lies", func(b []byte) { le.PutUint64(b[3*mib:], 3*mib|6) }},
		{"state", "entry: block 0 in state 4", func(b []byte) { le.PutUint64(b[3*mib:], 4) }},
		{"header", "image: vhdx: one of the two headers", func(b []byte) { b[64<<10+100]++ }},
	} {
		b := bytes.Clone(good)
		c.damage(b)
		if found := check(t, write(t, in(t, "x.vhdx"), b)); !strings.Contains(found, c.want) {
			t.Errorf("%s: %s", c.name, found)
		}
	}
}
