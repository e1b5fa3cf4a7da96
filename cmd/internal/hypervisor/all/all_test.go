package all

import "testing"

// TestNames: targets are told apart by what stands before their first colon.
func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range Drivers {
		if d.Name() == "" || seen[d.Name()] {
			t.Errorf("the name %q is nobody's or two drivers'", d.Name())
		}
		seen[d.Name()] = true
	}
	for _, name := range []string{"qmp", "libvirt", "vmx", "esx", "vbox", "files"} {
		if !seen[name] {
			t.Errorf("there is no driver %q", name)
		}
	}
}
