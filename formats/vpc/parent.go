package vpc

import (
	"encoding/binary"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"unicode/utf16"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// openParent opens the disk that a differencing one changes. The header names it in several ways; the first file that
// has the UUID is it.
func (d *dynamic) openParent(o *formats.Opener, img *formats.Image, h *dynHeader) error {
	names := parentNames(d.f, h)
	if len(names) == 0 {
		return ondisk.Corrupt("vhd dynamic disk header", "no name of the parent", -1, nil)
	}
	name, found := o.PickLayer(d.f, names, func(f *formats.File) bool {
		t, _, _, _, err := readFooter(f)
		return err == nil && t.UUID == h.ParentUUID
	})
	if name != names[0] {
		img.Notes = append(img.Notes, fmt.Sprintf("parent %q is not there; %s, which has the UUID that is wanted, was taken for it", names[0], name))
	}
	n := len(img.Files)
	var err error
	if d.parent, err = o.OpenLayer(img, d.f, name, "vpc", d.size); err != nil {
		return err
	}
	if !found && len(img.Files) > n {
		img.Problems = append(img.Problems, ondisk.Corrupt("vhd dynamic disk header",
			fmt.Sprintf("parent %s has another UUID than the one wanted,", name), -1, fmt.Sprintf("%x", h.ParentUUID)))
	}
	return nil
}

// parentNames lists where the parent may be: at the relative path, and beside the file under the last part of each
// name. Paths of Windows can't be followed further.
func parentNames(f *formats.File, h *dynHeader) (names []string) {
	add := func(n string) {
		if n != "" && n != "." && n != "/" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	var absolute []string
	for _, platform := range []string{platformRelative, platformAbsolute, platformMac} {
		for _, l := range h.Locators {
			if string(l.Platform[:]) != platform || l.Len == 0 || l.Len > maxLocator || l.Off > uint64(f.Size) {
				continue
			}
			b, err := ondisk.Read(f, int64(l.Off), int64(l.Len), "vhd parent locator")
			if err != nil {
				continue
			}
			n := string(b)
			if platform != platformMac {
				n = utf16Text(b, binary.LittleEndian)
			} else if u, err := url.Parse(n); err == nil {
				n = u.Path
			}
			n = strings.ReplaceAll(strings.TrimRight(n, "\x00"), `\`, "/")
			if platform == platformRelative {
				add(strings.TrimPrefix(n, "./"))
			}
			absolute = append(absolute, n)
		}
	}
	absolute = append(absolute, strings.ReplaceAll(utf16Text(h.ParentName[:], binary.BigEndian), `\`, "/"))
	for _, n := range absolute {
		add(path.Base(n))
	}
	return names
}

// utf16Text decodes UTF-16 up to a zero.
func utf16Text(b []byte, order binary.ByteOrder) string {
	var u []uint16
	for ; len(b) >= 2; b = b[2:] {
		c := order.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return string(utf16.Decode(u))
}
