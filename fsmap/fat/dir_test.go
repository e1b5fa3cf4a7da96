package fat

import (
	"encoding/binary"
	"testing"
	"unicode/utf16"

	"vmkit/fsmap/internal/dos"
	"vmkit/fsmap/internal/names"
)

// short makes a directory entry.
func short(name string, lower byte) []byte {
	e := make([]byte, dos.SlotLen)
	copy(e, name)
	e[entCase] = lower
	return e
}

// pieces makes the entries of a long name, the last piece first, as they lie on disk.
func pieces(name []uint16, sum byte) [][]byte {
	n := (len(name) + longUnits - 1) / longUnits
	units := make([]uint16, n*longUnits)
	for i := range units {
		units[i] = 0xFFFF
	}
	if copy(units, name); len(name) < len(units) {
		units[len(name)] = 0
	}
	var all [][]byte
	for no := n; no > 0; no-- {
		e := make([]byte, dos.SlotLen)
		e[longOrder], e[entAttr], e[longSum] = byte(no), attrLong, sum
		if no == n {
			e[longOrder] |= longLast
		}
		for i, at := range longAt {
			binary.LittleEndian.PutUint16(e[at:], units[(no-1)*longUnits+i])
		}
		all = append(all, e)
	}
	return all
}

func TestShortNames(t *testing.T) {
	for _, test := range []struct {
		raw   string
		lower byte
		want  string
	}{
		{"README  TXT", 0, "README.TXT"},
		{"README  TXT", caseBase, "readme.TXT"},
		{"README  TXT", caseExt, "README.txt"},
		{"README  TXT", caseBase | caseExt, "readme.txt"},
		{"NOEXT      ", caseExt, "NOEXT"},
		{"A B     C D", 0, "A B.C D"},
		{"\x05BC     TXT", 0, "ÕBC.TXT"}, // 0xE5 is Õ in code page 850
		{"\x8E\x99\x9A     \xE1  ", 0, "ÄÖÜ.ß"},
		{"\x8E\x99\x9A        ", caseBase, "äöü"},
		{"12345678901", 0, "12345678.901"},
	} {
		if got := string(appendShort(nil, short(test.raw, test.lower))); got != test.want {
			t.Errorf("%q with case %#x is %q, should be %q", test.raw, test.lower, got, test.want)
		}
	}
}

// TestLongNames puts pieces in order, out of order, and before other entries.
func TestLongNames(t *testing.T) {
	const name = "a long name that takes three pieces"
	sum := checksum([]byte("ALONGN~1   "))
	units := utf16.Encode([]rune(name))
	for _, test := range []struct {
		what   string
		pieces func(p [][]byte) [][]byte
		want   string
	}{
		{"in order", func(p [][]byte) [][]byte { return p }, name},
		{"the first lacks", func(p [][]byte) [][]byte { return p[1:] }, ""},
		{"the last lacks", func(p [][]byte) [][]byte { return p[:2] }, ""},
		{"one lacks", func(p [][]byte) [][]byte { return [][]byte{p[0], p[2]} }, ""},
		{"two changed places", func(p [][]byte) [][]byte { return [][]byte{p[0], p[2], p[1]} }, ""},
		{"one twice", func(p [][]byte) [][]byte { return [][]byte{p[0], p[1], p[1], p[2]} }, ""},
		{"orphans before", func(p [][]byte) [][]byte { return append([][]byte{p[0], p[1]}, p...) }, name},
		{"another's sum", func(p [][]byte) [][]byte { p[1][longSum]++; return p }, ""},
		{"all another's sum", func(p [][]byte) [][]byte {
			for _, e := range p {
				e[longSum]++
			}
			return p
		}, ""},
		{"number 0", func(p [][]byte) [][]byte { p[2][longOrder] = 0; return p }, ""},
		{"number 21", func(p [][]byte) [][]byte { p[0][longOrder] = 21 | longLast; return p }, ""},
	} {
		var l longName
		for _, e := range test.pieces(pieces(units, sum)) {
			l.add(e)
		}
		got := string(names.AppendUTF16(nil, l.take(short("ALONGN~1   ", 0))))
		if got != test.want {
			t.Errorf("%s: %q, should be %q", test.what, got, test.want)
		}
		if again := l.take(short("ALONGN~1   ", 0)); again != nil {
			t.Errorf("%s: the name is used twice", test.what)
		}
	}
}

func TestLongestName(t *testing.T) {
	units := make([]uint16, maxPieces*longUnits)
	for i := range units {
		units[i] = 'x'
	}
	var l longName
	e := short("X          ", 0)
	for _, p := range pieces(units, checksum(e[:11])) {
		l.add(p)
	}
	if n := len(l.take(e)); n != maxLongUnits {
		t.Errorf("%d units, should be %d", n, maxLongUnits)
	}
}
