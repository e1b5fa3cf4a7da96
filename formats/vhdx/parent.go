package vhdx

import (
	"encoding/binary"
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf16"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// locate reads the parent locator: pairs of keys and values (2.6.2.6).
func locate(b []byte) (map[string]string, error) {
	const what = "vhdx parent locator"
	if len(b) < locatorHeaderLen {
		return nil, ondisk.Truncated(what, "", -1, nil)
	}
	if g := guid(b[:16]); g != locatorTypeVHDX {
		return nil, ondisk.Unsupported(what, "type", -1, g)
	}
	count := int(binary.LittleEndian.Uint16(b[18:]))
	var e locatorEntry
	if count > maxPairs || len(b) < locatorHeaderLen+count*binary.Size(e) {
		return nil, ondisk.Truncated(what, "pairs", -1, count)
	}
	pairs := map[string]string{}
	text := func(off uint32, n uint16) (string, bool) {
		if !ondisk.Within(int64(off), int64(n), int64(len(b))) {
			return "", false
		}
		u := make([]uint16, n/2)
		for i := range u {
			u[i] = binary.LittleEndian.Uint16(b[int(off)+2*i:])
		}
		return string(utf16.Decode(u)), true
	}
	for i := range count {
		if _, err := binary.Decode(b[locatorHeaderLen+i*binary.Size(e):], binary.LittleEndian, &e); err != nil {
			return nil, err
		}
		key, ok := text(e.KeyOffset, e.KeyLength)
		value, ok2 := text(e.ValueOffset, e.ValueLength)
		if !ok || !ok2 {
			return nil, ondisk.Truncated(what, "pair", -1, i)
		}
		pairs[strings.ToLower(key)] = value
	}
	return pairs, nil
}

// maxPairs bounds the pairs of a locator; five keys are known.
const maxPairs = 256

// openParent opens the disk that a differencing one changes: the first of the names in the locator whose file has the
// identity that the locator wants.
func (d *disk) openParent(f *formats.File, o *formats.Opener, img *formats.Image) error {
	pairs, err := locate(d.metadata.parent)
	if err != nil {
		return err
	}
	var names []string
	add := func(n string) {
		if n != "" && n != "." && n != "/" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	slashes := func(key string) string { return strings.ReplaceAll(pairs[key], `\`, "/") }
	add(strings.TrimPrefix(slashes("relative_path"), "./"))
	for _, key := range []string{"relative_path", "absolute_win32_path", "volume_path"} {
		if p := slashes(key); p != "" {
			add(path.Base(p))
		}
	}
	if len(names) == 0 {
		return ondisk.Corrupt("vhdx parent locator", "no name of the parent", -1, nil)
	}
	name, found := o.PickLayer(f, names, func(c *formats.File) bool {
		h, _, err := readHeader(c)
		return err == nil && links(pairs, h.DataWrite)
	})
	if name != names[0] {
		img.Notes = append(img.Notes, fmt.Sprintf("parent %q is not there; %s, which has the identity that is wanted, was taken for it", names[0], name))
	}
	n := len(img.Files)
	if d.parent, err = o.OpenLayer(img, f, name, "vhdx", d.size); err != nil {
		return err
	}
	if !found && len(img.Files) > n {
		img.Problems = append(img.Problems, ondisk.Corrupt("vhdx parent locator",
			fmt.Sprintf("parent %s was changed since, or is another disk: its identity is not", name), -1, pairs["parent_linkage"]))
	}
	return nil
}

// links tells whether a file's data write GUID is one that the locator accepts.
func links(pairs map[string]string, g guid) bool {
	for _, key := range []string{"parent_linkage", "parent_linkage2"} {
		if want, ok := parseGUID(pairs[key]); ok && want == g {
			return true
		}
	}
	return false
}
