package clone

import (
	"strings"
	"testing"
	"time"

	"vmkit/fsmap/mapfile"
)

func TestDefaultName(t *testing.T) {
	for name, want := range map[string]string{
		"web1": "web1-20261122T090000Z", "a/b": "a_b-20261122T090000Z", "Würfel \"1\"\n": "Würfel \"1\"\n-20261122T090000Z",
		"..": "_-20261122T090000Z", "": "-20261122T090000Z", ".vmclone-x": "_vmclone-x-20261122T090000Z",
		strings.Repeat("ü", 200): strings.Repeat("ü", 119) + "-20261122T090000Z",
	} {
		if got := DefaultName(&mapfile.VM{Name: name}, instant); got != want {
			t.Errorf("%q: %q, want %q", name, got, want)
		}
	}
	at := instant.In(time.FixedZone("", 3600)).Add(time.Second)
	if got := DefaultName(&mapfile.VM{Name: "m", FrozenAt: &at}, instant); got != "m-20261122T090001Z" {
		t.Errorf("frozen at another time: %q", got)
	}
	for name, ok := range map[string]bool{"a b\n": true, "": false, ".": false, "..": false, ".a": false, "a/b": false, strings.Repeat("x", 256): false} {
		if got := CheckName(name) == nil; got != ok {
			t.Errorf("%q: %v", name, got)
		}
	}
}

func TestNames(t *testing.T) {
	vm := &mapfile.VM{Name: "Virtual 01", Files: []mapfile.VMFile{{Path: "/v/config.vmx", Role: mapfile.RoleConfig}}}
	files := []string{
		"/v/Virtual 01.vmx", "/v/Virtual 01-000001.vmdk", "/v/Virtual 011.vmdk", "/v/Virtual 01é.x", "/v/Virtual 01", "/w/Virtual 01.vmx", "/v/config.vmx",
		"/v/run.sh", "/v/Clone.JSON", "/v/noext", "/w/noext", "/x/NOEXT", "/v/a\"b\n.vmdk", "/v/a\"b\n.raw",
	}
	for _, tt := range []struct{ to, want string }{
		{"", "Virtual 01.vmx|Virtual 01-000001.vmdk|Virtual 011.vmdk|Virtual 01é.x|Virtual 01|Virtual 01-2.vmx|config.vmx|run-2.sh|Clone-2.JSON|noext|noext-2|NOEXT-3|a_b_.vmdk|a\"b\n.raw"},
		{"N", "N.vmx|N-000001.vmdk|Virtual 011.vmdk|Virtual 01é.x|N|N-2.vmx|N-3.vmx|run-2.sh|Clone-2.JSON|noext|noext-2|NOEXT-3|a_b_.vmdk|a\"b\n.raw"},
	} {
		n := newNames(vm, tt.to)
		var got []string
		for _, f := range files {
			got = append(got, n.name(mapfile.VMFile{Path: f}))
		}
		if s := strings.Join(got, "|"); s != tt.want {
			t.Errorf("%q: %q\nwant %q", tt.to, s, tt.want)
		}
	}
	long := newNames(vm, strings.Repeat("n", 255)).name(mapfile.VMFile{Path: "/v/Virtual 01.vmx"})
	if len(long) != 255 || !strings.HasSuffix(long, ".vmx") {
		t.Errorf("%d bytes: %s", len(long), long)
	}
}
