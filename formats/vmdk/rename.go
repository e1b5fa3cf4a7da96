package vmdk

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"vmkit/formats"
	"vmkit/formats/ondisk"
)

// Keys of a descriptor, as [Descriptor.Rename] gives them. Others are the descriptor's own in lower case.
const (
	KeyExtent = "extent" // an extent's file
	KeyParent = "parentfilenamehint"
)

// Descriptor is the text that describes a disk, where it lies.
type Descriptor struct {
	Off  int64 // in its file; 0 where the file is nothing else
	text []byte
	room int
}

// ReadDescriptor finds the descriptor of a file; nil where it has none: a part of a disk that another file describes.
func ReadDescriptor(f *formats.File) (*Descriptor, error) {
	text, _, err := readDescriptor(f)
	if text == nil || err != nil {
		return nil, err
	}
	off, n, _, err := findDescriptor(f)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(text, []byte("\xff\xfe")) || bytes.HasPrefix(text, []byte("\xfe\xff")) {
		return nil, ondisk.Unsupported("vmdk descriptor", "a change of a text in UTF-16", -1, nil)
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	return &Descriptor{Off: off, text: text, room: int(n)}, nil
}

// Rename gives the text with other values, padded to the room that it has where other data follow: what to write at
// Off. change is asked for each value in the order of the text, and gives the new one; what it gives back as it was
// stays as it stands, byte for byte. Names are UTF-8 where the descriptor's encoding can be told.
func (d *Descriptor) Rename(change func(key, value string) string) ([]byte, error) {
	parsed, err := parseDescriptor(d.text)
	if err != nil {
		return nil, err
	}
	var out []byte
	unicode := false // a new value needs UTF-8
	n := 0
	for line := range strings.Lines(string(d.text)) {
		n++
		key, from, to := valueIn(line)
		if key != "" {
			old := line[from:to]
			if key == KeyExtent || key == KeyParent {
				old = parsed.fileName(old)
			}
			value := change(key, old)
			if strings.ContainsAny(value, "\"\r\n\x00") {
				return nil, ondisk.Unsupported("vmdk descriptor", fmt.Sprintf("line %d: a value with quotes or line ends", n), -1, fmt.Sprintf("%.100q", value))
			}
			if value != old {
				unicode = unicode || strings.IndexFunc(value, func(r rune) bool { return r >= utf8.RuneSelf }) >= 0
				line = line[:from] + value + line[to:]
			}
		}
		out = append(out, line...)
	}
	if unicode && !strings.EqualFold(parsed.encoding, "UTF-8") {
		if out, err = declareUTF8(out); err != nil {
			return nil, err
		}
	}
	if d.Off == 0 {
		return out, nil
	}
	if len(out) > d.room {
		return nil, ondisk.Unsupported("vmdk descriptor", fmt.Sprintf("bytes with the new names, more than the %d that it has:", d.room), -1, len(out))
	}
	return append(out, make([]byte, d.room-len(out))...), nil
}

// valueIn finds the value in a line, without its quotes. key is "" where there is none.
func valueIn(line string) (key string, from, to int) {
	trimmed := strings.TrimLeft(line, " \t")
	indent := len(line) - len(trimmed)
	text := strings.TrimSpace(line)
	if text == "" || text[0] == '#' {
		return "", 0, 0
	}
	if accessRE.MatchString(text) {
		if m := extentRE.FindStringSubmatchIndex(text); m != nil && m[8] >= 0 {
			return KeyExtent, indent + m[8], indent + m[9]
		}
		return "", 0, 0
	}
	name, rest, ok := strings.Cut(line, "=")
	if !ok {
		return "", 0, 0
	}
	value := strings.TrimSpace(rest)
	if value == "" {
		return "", 0, 0
	}
	from = len(name) + 1 + strings.Index(rest, value)
	if value[0] == '"' {
		from++
	}
	return strings.ToLower(strings.TrimSpace(name)), from, from + len(unquote(value))
}

// declareUTF8 makes the text say that it is UTF-8, which all of it then has to be.
func declareUTF8(text []byte) ([]byte, error) {
	if !utf8.Valid(text) {
		return nil, ondisk.Unsupported("vmdk descriptor", "new names in UTF-8 beside other text in another encoding", -1, nil)
	}
	end := "\n"
	var out []byte
	done := false
	for line := range strings.Lines(string(text)) {
		if strings.HasSuffix(line, "\r\n") {
			end = "\r\n"
		}
		switch key, from, to := valueIn(line); {
		case done:
		case key == "encoding":
			line, done = line[:from]+"UTF-8"+line[to:], true
		case key == "cid", key == KeyExtent: // VMware writes it before them
			line, done = `encoding="UTF-8"`+end+line, true
		}
		out = append(out, line...)
	}
	return out, nil
}
