package vpc_test

import (
	"bytes"
	"encoding/binary"
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
	top, _ := pair(t, "base.vhd", `.\base.vhd`, `C:\VMs\base.vhd`)
	if found := check(t, top); found != "" {
		t.Errorf("differencing: %s", found)
	}
	path, _ := image(t, 9<<20, "subformat=dynamic,force_size=on")
	good := read(t, path)
	bat := int(binary.BigEndian.Uint64(good[512+16:]))
	for _, c := range []struct {
		name, want string
		damage     func(b []byte)
	}{
		{"outside", "block: block 0 at byte", func(b []byte) { b[bat] = 0x10 }},
		{"overlap", "overlap: blocks at bytes", func(b []byte) { copy(b[bat+4:bat+8], b[bat:]) }},
		{"footer", "image: vhd: the footer is missing or damaged", func(b []byte) { b[len(b)-1]++ }},
		{"header", "image: vhd dynamic disk header: checksum", func(b []byte) { b[512+1000]++ }},
	} {
		b := bytes.Clone(good)
		c.damage(b)
		if found := check(t, write(t, in(t, "x.vhd"), b)); !strings.Contains(found, c.want) {
			t.Errorf("%s: %s", c.name, found)
		}
	}
}
