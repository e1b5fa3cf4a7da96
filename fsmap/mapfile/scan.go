package mapfile

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// scan is a pull parser over one line of JSON whose first error sticks. After an error every method returns zero
// values and every loop ends. It exists because encoding/json takes ten times as long for a file record and can't
// bound what a hostile line makes it allocate.
//
//	for s.begin('{'); s.field(); {
//		switch string(s.key) {
//		case "at":
//			at = s.int()
//		default:
//			s.skip()
//		}
//	}
type scan struct {
	b     []byte
	i     int
	key   []byte // of the field that is being read; valid until the next field
	start int    // where that field begins
	first bool   // nothing of the innermost object or list was read yet
	names map[string]string
	tmp   []byte
	err   error
}

// maxNest bounds how deep values may lie within one another.
const maxNest = 64

func (s *scan) reset(line []byte) {
	s.b, s.i, s.err = line, 0, nil
}

func (s *scan) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf(format, args...)
		s.i = len(s.b)
	}
}

// peek gives the next byte that isn't white space, or 0 at the end.
func (s *scan) peek() byte {
	for s.i < len(s.b) {
		switch c := s.b[s.i]; c {
		case ' ', '\t', '\r', '\n':
			s.i++
		default:
			return c
		}
	}
	return 0
}

func (s *scan) expect(c byte) {
	if s.peek() != c {
		s.fail("not JSON: %q expected at byte %d", c, s.i)
		return
	}
	s.i++
}

// begin enters an object or a list.
func (s *scan) begin(c byte) {
	s.expect(c)
	s.first = true
}

// more steps to the next element of an object or list that ends with c, or out of it.
func (s *scan) more(c byte) bool {
	if s.err != nil {
		return false
	}
	first := s.first
	s.first = false
	switch s.peek() {
	case c:
		s.i++
		return false
	case ',':
		if !first {
			s.i++
			return true
		}
	default:
		if first {
			return true
		}
	}
	s.fail("not JSON: ',' or %q expected at byte %d", c, s.i)
	return false
}

// field steps to the next field of an object, whose value isn't null, or out of the object.
func (s *scan) field() bool {
	for s.more('}') {
		s.peek()
		s.start = s.i
		s.key = s.raw()
		s.expect(':')
		if s.peek() != 'n' {
			return s.err == nil
		}
		s.skip()
	}
	return false
}

// raw gives a string's bytes between the quotes, or decoded where it has escapes; valid until the next string.
func (s *scan) raw() []byte {
	s.expect('"')
	start := s.i
	for i := start; i < len(s.b); i++ {
		c := s.b[i]
		if plain[c] || c >= utf8.RuneSelf || c == 0x7f {
			continue
		}
		switch {
		case c == '"':
			s.i = i + 1
			return s.b[start:i]
		case c == '\\':
			return s.escaped(start, i)
		}
		s.fail("not JSON: control character at byte %d", i)
		return nil
	}
	s.fail("not JSON: string at byte %d has no end", start)
	return nil
}

// escaped decodes a string that began at start and whose first escape is at i.
func (s *scan) escaped(start, i int) []byte {
	out := append(s.tmp[:0], s.b[start:i]...)
	for i < len(s.b) {
		c := s.b[i]
		i++
		switch {
		case c == '"':
			s.i, s.tmp = i, out
			return out
		case c < ' ':
			s.fail("not JSON: control character at byte %d", i-1)
			return nil
		case c != '\\':
			out = append(out, c)
			continue
		case i == len(s.b):
			continue
		}
		c = s.b[i]
		i++
		switch c {
		case '"', '\\', '/':
			out = append(out, c)
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case 'n':
			out = append(out, '\n')
		case 'r':
			out = append(out, '\r')
		case 't':
			out = append(out, '\t')
		case 'u':
			r := s.hex4(i)
			i += 4
			if utf16.IsSurrogate(r) {
				if i+2 > len(s.b) || s.b[i] != '\\' || s.b[i+1] != 'u' {
					s.fail("lone surrogate at byte %d: such a name needs its bytes in base64", i-6)
					return nil
				}
				if r = utf16.DecodeRune(r, s.hex4(i+2)); r == utf8.RuneError {
					s.fail("lone surrogate at byte %d: such a name needs its bytes in base64", i-6)
					return nil
				}
				i += 6
			}
			if s.err != nil {
				return nil
			}
			out = utf8.AppendRune(out, r)
		default:
			s.fail("not JSON: escape at byte %d", i-2)
			return nil
		}
	}
	s.fail("not JSON: string at byte %d has no end", start)
	return nil
}

func (s *scan) hex4(i int) rune {
	if i+4 > len(s.b) {
		s.fail("not JSON: escape at byte %d", i)
		return 0
	}
	var r rune
	for _, c := range s.b[i : i+4] {
		switch {
		case digit(c):
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			s.fail("not JSON: escape at byte %d", i)
			return 0
		}
		r = r<<4 | rune(c)
	}
	return r
}

func (s *scan) text() string { return string(s.raw()) }

// name is text for the few strings that are the same in many records: they share memory.
func (s *scan) name() string { return s.shared(s.raw()) }

func (s *scan) shared(b []byte) string {
	if v, ok := s.names[string(b)]; ok {
		return v
	}
	v := string(b)
	if len(v) <= 64 && len(s.names) < 1024 {
		if s.names == nil {
			s.names = make(map[string]string)
		}
		s.names[v] = v
	}
	return v
}

func (s *scan) texts() (list []string) {
	for s.begin('['); s.more(']'); {
		list = append(list, s.name())
	}
	return list
}

// base64 gives the bytes of a base64 string, newly allocated.
func (s *scan) base64() []byte { return s.decode64(s.raw()) }

func (s *scan) decode64(b []byte) []byte {
	out := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
	n, err := base64.StdEncoding.Strict().Decode(out, b)
	if err != nil {
		s.fail("%s: not base64", s.key)
		return nil
	}
	return out[:n]
}

// uint reads a number that is an integer from 0 up.
func (s *scan) uint() uint64 {
	s.peek()
	start := s.i
	var v uint64
	for ; s.i < len(s.b) && digit(s.b[s.i]); s.i++ {
		d := uint64(s.b[s.i] - '0')
		if v > (math.MaxUint64-d)/10 {
			s.fail("%s: number too large", s.key)
			return 0
		}
		v = v*10 + d
	}
	n := s.i - start
	if n == 0 || n > 1 && s.b[start] == '0' || s.i < len(s.b) && (s.b[s.i] == '.' || s.b[s.i]|0x20 == 'e') {
		s.fail("%s: not an integer", s.key)
		return 0
	}
	return v
}

func (s *scan) int() int64 {
	neg := s.peek() == '-'
	if neg {
		s.i++
		if !(s.i < len(s.b) && digit(s.b[s.i])) {
			s.fail("%s: not an integer", s.key)
			return 0
		}
	}
	v := s.uint()
	switch {
	case v <= math.MaxInt64 && !neg:
		return int64(v)
	case v <= math.MaxInt64+1 && neg:
		return -int64(v)
	}
	s.fail("%s: number too large", s.key)
	return 0
}

// size is an int that isn't negative.
func (s *scan) size() int64 {
	v := s.int()
	if v < 0 {
		s.fail("%s: %d is negative", s.key, v)
		return 0
	}
	return v
}

// id is a size that fits an int of 32 bits.
func (s *scan) id() int {
	v := s.size()
	if v > math.MaxInt32 {
		s.fail("%s: %d is too large", s.key, v)
		return 0
	}
	return int(v)
}

func (s *scan) bool() bool {
	switch s.peek() {
	case 't':
		s.word("true")
		return s.err == nil
	default:
		s.word("false")
	}
	return false
}

func (s *scan) word(w string) {
	if len(s.b)-s.i < len(w) || string(s.b[s.i:s.i+len(w)]) != w {
		s.fail("not JSON: %q expected at byte %d", w, s.i)
		return
	}
	s.i += len(w)
}

func (s *scan) time() Time {
	if s.err != nil {
		return Time{}
	}
	t, err := parseTime(s.raw())
	if err != nil {
		s.fail("%s: %w", s.key, err)
	}
	return t
}

// mode reads an octal string.
func (s *scan) mode() int64 {
	b := s.raw()
	var v int64
	for _, c := range b {
		if c < '0' || c > '7' {
			b = nil
			break
		}
		v = v<<3 | int64(c-'0')
	}
	if len(b) < 3 || len(b) > 5 {
		s.fail("%s: not an octal string", s.key)
		return 0
	}
	return v & 0o7777
}

// rdev reads "major:minor".
func (s *scan) rdev() (major, minor uint32) {
	b := s.raw()
	for i, c := range b {
		if c == ':' {
			p, err1 := strconv.ParseUint(string(b[:i]), 10, 32)
			q, err2 := strconv.ParseUint(string(b[i+1:]), 10, 32)
			if err1 == nil && err2 == nil {
				return uint32(p), uint32(q)
			}
		}
	}
	s.fail("%s: not MAJOR:MINOR", s.key)
	return 0, 0
}

// skip passes over a value of any kind.
func (s *scan) skip() { s.skipNested(0) }

func (s *scan) skipNested(depth int) {
	if depth > maxNest {
		s.fail("%s: nested too deep", s.key)
		return
	}
	switch c := s.peek(); c {
	case '"':
		s.raw()
	case '{':
		for s.begin(c); s.more('}'); {
			s.raw()
			s.expect(':')
			s.skipNested(depth + 1)
		}
	case '[':
		for s.begin(c); s.more(']'); {
			s.skipNested(depth + 1)
		}
	case 't':
		s.word("true")
	case 'f':
		s.word("false")
	case 'n':
		s.word("null")
	default:
		s.number()
	}
}

// number passes over a number of any form.
func (s *scan) number() {
	start := s.i
	digits := func() {
		from := s.i
		for s.i < len(s.b) && digit(s.b[s.i]) {
			s.i++
		}
		if s.i == from {
			s.fail("not JSON: value expected at byte %d", start)
		}
	}
	one := func(set string) bool {
		if s.i < len(s.b) && strings.IndexByte(set, s.b[s.i]) >= 0 {
			s.i++
			return true
		}
		return false
	}
	one("-")
	if !one("0") {
		digits()
	}
	if one(".") {
		digits()
	}
	if one("eE") {
		one("+-")
		digits()
	}
}

// rest passes over a field that isn't known and appends it to r.
func (s *scan) rest(r Rest) Rest {
	start := s.start
	s.skip()
	if s.err != nil {
		return r
	}
	return append(append(r, ','), s.b[start:s.i]...)
}

// value passes over a value and gives a copy of its text.
func (s *scan) value() []byte {
	s.peek()
	start := s.i
	s.skip()
	if s.err != nil {
		return nil
	}
	return append([]byte(nil), s.b[start:s.i]...)
}

// end tells that nothing follows the record.
func (s *scan) end() {
	if s.peek(); s.err == nil && s.i < len(s.b) {
		s.fail("not JSON: more after the object, at byte %d", s.i)
	}
}
