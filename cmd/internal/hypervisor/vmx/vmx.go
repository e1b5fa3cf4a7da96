// Package vmx reads and changes VMware's dictionary files: .vmx, .vmsd, and the preferences and inventories of its
// desktop products. What isn't changed is written back byte for byte.
//
// A line is a name, "=", and a value in double quotes, in which control characters, quotes and "|" are written as "|"
// and two hexadecimal digits (lib/dict/dictll.c of open-vm-tools). Names count in any case. The value of ".encoding"
// says which encoding the file is in; where it is missing VMware takes the host's own.
package vmx

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/htmlindex"
)

// MaxSize bounds a dictionary file: those of machines with a hundred devices take 30 KiB.
const MaxSize = 4 << 20

const (
	escape      = '|'
	encodingKey = ".encoding"
	bom         = "\ufeff"
)

// File is a dictionary file. The zero value is an empty one. It is not safe for concurrent use.
type File struct {
	bom   bool
	crlf  bool // how lines that are added end
	enc   encoding.Encoding
	lines []line
}

// line is one line. One without a name is a comment, blank, or nothing that VMware understands; it is kept.
type line struct {
	raw         []byte // with its line end; nil once it was changed
	name, value string // decoded
}

// Parse reads a dictionary file. Lines that VMware would not understand are kept and otherwise ignored, as it does.
func Parse(b []byte) (*File, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("a configuration of %d bytes: at most %d are read", len(b), MaxSize)
	}
	if bytes.IndexByte(b, 0) >= 0 {
		return nil, errors.New("it holds NUL bytes, so it is no VMware configuration")
	}
	f := &File{}
	b, f.bom = bytes.CutPrefix(b, []byte(bom))
	for raw := range bytes.Lines(b) {
		f.crlf = f.crlf || bytes.HasSuffix(raw, []byte("\r\n"))
		l := line{raw: raw}
		l.name, l.value = split(raw)
		f.lines = append(f.lines, l)
	}
	name, said := f.Get(encodingKey)
	switch e, err := htmlindex.Get(name); {
	case f.bom, !said && utf8.Valid(b):
		return f, nil
	case !said:
		f.enc = charmap.Windows1252 // the host's own, which isn't known; what isn't changed stays as it is
	case err != nil:
		return nil, fmt.Errorf(".encoding = %q is not known", name)
	default:
		if canonical, _ := htmlindex.Name(e); canonical == "utf-8" {
			return f, nil
		}
		f.enc = e
	}
	for i := range f.lines {
		l := &f.lines[i]
		value, err := f.enc.NewDecoder().String(l.value)
		if err != nil {
			return nil, fmt.Errorf("line %d: the value of %s: %w", i+1, l.name, err)
		}
		l.value = value
	}
	return f, nil
}

// split takes a line apart as VMware does. The value is unescaped, and still in the file's encoding.
func split(raw []byte) (name, value string) {
	const blanks = " \t"
	s := strings.TrimRight(string(raw), "\r\n")
	left, rest, ok := strings.Cut(s, "=")
	left, rest = strings.Trim(left, blanks), strings.TrimLeft(rest, blanks)
	if !ok || left == "" || strings.ContainsAny(left, blanks+"#") {
		return "", ""
	}
	if quoted, ok := strings.CutPrefix(rest, `"`); ok {
		if value, rest, ok = strings.Cut(quoted, `"`); !ok {
			return "", ""
		}
	} else {
		i := strings.IndexAny(rest, blanks+"#")
		if i < 0 {
			i = len(rest)
		}
		value, rest = rest[:i], rest[i:]
	}
	if rest = strings.TrimLeft(rest, blanks); rest != "" && rest[0] != '#' {
		return "", ""
	}
	return left, unescape(value)
}

func unescape(s string) string {
	if strings.IndexByte(s, escape) < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == escape && i+2 < len(s) {
			if hi, lo := digit(s[i+1]), digit(s[i+2]); hi >= 0 && lo >= 0 {
				b.WriteByte(byte(hi<<4 | lo))
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func digit(c byte) int {
	return strings.IndexByte("0123456789abcdef", c|' ')
}

// quote gives a value, in the file's encoding, as it stands in a line. It works on bytes: the second byte of a
// character in Shift_JIS or GBK may be a "|".
func quote(value string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, c := range []byte(value) {
		if c == '"' || c == escape || c == 0x7f || c < ' ' && c != '\t' {
			fmt.Fprintf(&b, "%c%02X", escape, c)
		} else {
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// All gives names and values in the file's order. A name that stands there twice is given twice.
func (f *File) All() iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, l := range f.lines {
			if l.name != "" && !yield(l.name, l.value) {
				return
			}
		}
	}
}

// index finds the first line of a name.
func (f *File) index(name string) int {
	return slices.IndexFunc(f.lines, func(l line) bool { return l.name != "" && strings.EqualFold(l.name, name) })
}

// Get gives the value of a name, of which the first counts.
func (f *File) Get(name string) (string, bool) {
	if i := f.index(name); i >= 0 {
		return f.lines[i].value, true
	}
	return "", false
}

// Value gives the value of a name, or "" where there is none.
func (f *File) Value(name string) string {
	v, _ := f.Get(name)
	return v
}

// True tells whether a name's value means yes.
func (f *File) True(name string) bool {
	switch strings.ToLower(f.Value(name)) {
	case "true", "yes", "y", "on", "1":
		return true
	}
	return false
}

// Set gives a name a value: in its place, or at the end where it is new. The name must hold no blank, "=" or "#".
func (f *File) Set(name, value string) {
	i := f.index(name)
	if i < 0 {
		f.lines = append(f.lines, line{name: name, value: value})
		return
	}
	if l := &f.lines[i]; l.value != value {
		l.raw, l.value = nil, value
	}
	tail := slices.DeleteFunc(f.lines[i+1:], func(l line) bool { return strings.EqualFold(l.name, name) })
	f.lines = f.lines[:i+1+len(tail)]
}

// Delete takes a name out, and tells whether it was there.
func (f *File) Delete(name string) bool {
	n := len(f.lines)
	f.lines = slices.DeleteFunc(f.lines, func(l line) bool { return l.name != "" && strings.EqualFold(l.name, name) })
	return len(f.lines) < n
}

// Bytes gives the file as it is to be written. Where a value that was set can't be written in the file's encoding, the
// whole file becomes UTF-8 and says so.
func (f *File) Bytes() ([]byte, error) {
	if b, err := f.write(f.enc); err == nil {
		return b, nil
	}
	utf := &File{bom: f.bom, crlf: f.crlf}
	for i, l := range f.lines {
		if l.name == "" && l.raw != nil {
			text, err := f.enc.NewDecoder().Bytes(l.raw)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", i+1, err)
			}
			l.raw = text
		} else {
			l.raw = nil
		}
		utf.lines = append(utf.lines, l)
	}
	utf.Set(encodingKey, "UTF-8")
	return utf.write(nil)
}

func (f *File) write(enc encoding.Encoding) ([]byte, error) {
	end := "\n"
	if f.crlf {
		end = "\r\n"
	}
	var b bytes.Buffer
	for _, l := range f.lines {
		// The last line may have had no end.
		if p := b.Bytes(); len(p) > 0 && p[len(p)-1] != '\n' {
			b.WriteString(end)
		}
		if l.raw != nil {
			b.Write(l.raw)
			continue
		}
		value := l.value
		if enc != nil {
			var err error
			if value, err = enc.NewEncoder().String(value); err != nil {
				return nil, err
			}
		}
		b.WriteString(l.name + " = " + quote(value) + end)
	}
	if f.bom {
		return append([]byte(bom), b.Bytes()...), nil
	}
	return b.Bytes(), nil
}
