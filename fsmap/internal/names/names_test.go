package names

import "testing"

func TestAppendUTF16(t *testing.T) {
	for _, test := range []struct {
		units []uint16
		want  string
	}{
		{[]uint16{'a', 0xE9, 0x65E5}, "aé日"},
		{[]uint16{0xD83D, 0xDE00}, "😀"},
		{[]uint16{0xD83D}, "\xED\xA0\xBD"},
		{[]uint16{0xDE00, 0xD83D, 'x'}, "\xED\xB8\x80\xED\xA0\xBDx"},
		{[]uint16{0xFFFD}, "\uFFFD"},
	} {
		if got := string(AppendUTF16(nil, test.units)); got != test.want {
			t.Errorf("%x: %q, should be %q", test.units, got, test.want)
		}
	}
}

func TestRepair(t *testing.T) {
	for name, want := range map[string]string{"a/b": "a_b", "": "_", ".": "._", "..": ".._", "/": "_", "a\x00": "a_", "ok": "ok"} {
		if got := string(Repair([]byte(name))); got != want {
			t.Errorf("%q: %q, should be %q", name, got, want)
		}
		if Usable([]byte(name)) != (name == want) {
			t.Errorf("%q: usable", name)
		}
	}
}
