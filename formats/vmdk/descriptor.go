package vmdk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"vmkit/formats/ondisk"
)

// descriptor is what the text says of the disk.
type descriptor struct {
	version    int
	cid        uint32
	hasCID     bool
	parentCID  uint32
	createType string // as written
	parent     string // parentFileNameHint
	encoding   string
	encrypted  bool
	extents    []extentLine
}

// noParent is the parentCID of a disk that has none; longCID says that ddb.longContentID is what counts (ESXi).
const (
	noParent = 0xffffffff
	longCID  = 0xfffffffe
)

// extentLine is one line of the extent description.
type extentLine struct {
	line    int
	sectors int64
	kind    string // in upper case
	name    string // empty for ZERO
	offset  int64  // sectors, for flat extents
}

// extentRE takes an extent's line apart. What may follow the offset tells of physical partitions.
var extentRE = regexp.MustCompile(`(?i)^(RW|RDONLY|NOACCESS)\s+(\d+)\s+([A-Z0-9]+)(?:\s+"([^"]*)"(?:\s+(\d+))?)?(?:\s+[A-Z].*)?$`)

// accessRE finds the lines that must be of that form.
var accessRE = regexp.MustCompile(`(?i)^(RW|RDONLY|NOACCESS)\s`)

// plainText takes off a byte order mark, and turns the UTF-16 that Windows editors may have made of a descriptor into
// UTF-8.
func plainText(b []byte) string {
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(b, []byte("\xff\xfe")):
		order = binary.LittleEndian
	case bytes.HasPrefix(b, []byte("\xfe\xff")):
		order = binary.BigEndian
	default:
		return strings.TrimPrefix(string(b), "\ufeff")
	}
	u := make([]uint16, 0, len(b)/2)
	for b = b[2:]; len(b) >= 2; b = b[2:] {
		u = append(u, order.Uint16(b))
	}
	return string(utf16.Decode(u))
}

// parseDescriptor reads the text. Keys and types are in any case; lines end in LF or CRLF; blanks around them and
// around "=" don't count; keys that are not known don't either.
func parseDescriptor(text []byte) (*descriptor, error) {
	s := plainText(text)
	if i := strings.IndexByte(s, 0); i >= 0 {
		s = s[:i]
	}
	d := &descriptor{parentCID: noParent}
	n := 0
	for line := range strings.SplitSeq(s, "\n") {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if accessRE.MatchString(line) {
			e, err := parseExtent(line, n)
			if err != nil {
				return nil, err
			}
			d.extents = append(d.extents, e)
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok {
			if err := d.set(strings.ToLower(strings.TrimSpace(key)), unquote(strings.TrimSpace(value)), n); err != nil {
				return nil, err
			}
		}
	}
	return d, nil
}

func parseExtent(line string, n int) (extentLine, error) {
	m := extentRE.FindStringSubmatch(line)
	if m == nil {
		return extentLine{}, badLine(n, "extent", line)
	}
	e := extentLine{line: n, kind: strings.ToUpper(m[3]), name: m[4]}
	var err error
	if e.sectors, err = strconv.ParseInt(m[2], 10, 64); err != nil || e.sectors > maxCapacity {
		return e, badLine(n, "extent's size", m[2])
	}
	if m[5] != "" {
		if e.offset, err = strconv.ParseInt(m[5], 10, 64); err != nil || e.offset > maxCapacity {
			return e, badLine(n, "extent's offset", m[5])
		}
	}
	if e.name == "" && e.kind != "ZERO" {
		return e, badLine(n, "extent without a file name", line)
	}
	return e, nil
}

// set takes one key. Where a key is repeated the first one counts, as with QEMU.
func (d *descriptor) set(key, value string, n int) (err error) {
	switch key {
	case "version":
		if d.version, err = strconv.Atoi(value); err != nil || d.version < 1 {
			return badLine(n, "version", value)
		}
		if d.version > maxVersion {
			return ondisk.Unsupported("vmdk descriptor", fmt.Sprintf("line %d: version", n), -1, value)
		}
	case "cid":
		if !d.hasCID {
			if d.cid, err = parseCID(value); err != nil {
				return badLine(n, "CID", value)
			}
			d.hasCID = true
		}
	case "parentcid":
		if d.parentCID, err = parseCID(value); err != nil {
			return badLine(n, "parentCID", value)
		}
	case "createtype":
		d.createType = value
	case "parentfilenamehint":
		d.parent = value
	case "encoding":
		d.encoding = value
	case "encryptionkeys", "encryption.keysafe": // ESXi, Workstation
		d.encrypted = d.encrypted || value != ""
	case "ddb.iofilters":
		d.encrypted = d.encrypted || strings.Contains(strings.ToLower(value), "vmcrypt")
	}
	return nil
}

func parseCID(s string) (uint32, error) {
	v, err := strconv.ParseUint(strings.TrimPrefix(strings.ToLower(s), "0x"), 16, 32)
	return uint32(v), err
}

// unquote takes the quotes off a value, and what follows them.
func unquote(s string) string {
	if s == "" || s[0] != '"' {
		return s
	}
	s = s[1:]
	if i := strings.IndexByte(s, '"'); i >= 0 {
		s = s[:i]
	}
	return s
}

func badLine(n int, field, got string) error {
	return ondisk.Corrupt("vmdk descriptor", fmt.Sprintf("line %d: %s", n, field), -1, fmt.Sprintf("%.100q", got))
}

// isDescriptor tells whether a text begins as descriptors do: with the comment that names it, or, among the first
// settings, with one that no other text has.
func isDescriptor(head []byte) bool {
	for line := range strings.SplitSeq(plainText(head[:min(len(head), 4096)]), "\n") {
		line = strings.ToLower(strings.TrimSpace(line))
		switch {
		case strings.IndexByte(line, 0) >= 0:
			return false
		// VirtualBox accepts both spellings.
		case strings.HasPrefix(line, "# disk descriptorfile"), strings.HasPrefix(line, "# disk descriptor file"):
			return true
		case line == "", line[0] == '#':
		case strings.HasPrefix(line, "createtype"), strings.HasPrefix(line, "parentcid"):
			return strings.Contains(line, "=")
		case settingRE.MatchString(line):
		default:
			return false
		}
	}
	return false
}

var settingRE = regexp.MustCompile(`^(version|encoding|cid|isnativesnapshot)\s*=`)

// fileName gives a name as a host that stores names in UTF-8 has it. The encodings that can be told without large
// tables are known; in others the name's bytes are taken as they are.
func (d *descriptor) fileName(name string) string {
	if utf8.ValidString(name) {
		return name
	}
	switch strings.ToLower(d.encoding) {
	case "windows-1252", "cp1252", "iso-8859-1", "latin1":
	default:
		return name
	}
	var b strings.Builder
	for _, c := range []byte(name) {
		if c >= 0x80 && c < 0xa0 {
			b.WriteRune(windows1252[c-0x80])
		} else {
			b.WriteRune(rune(c))
		}
	}
	return b.String()
}

// windows1252 is what 0x80 to 0x9f stand for; five of them are nothing, and stay the control characters they are in
// ISO 8859-1.
var windows1252 = []rune("€\u0081‚ƒ„…†‡ˆ‰Š‹Œ\u008dŽ\u008f\u0090‘’“”•–—˜™š›œ\u009džŸ")
