package mapfile

import (
	"encoding/base64"
	"strconv"
	"unicode/utf8"
)

// plain says which bytes stand for themselves in a JSON string.
var plain = func() (t [256]bool) {
	for c := ' '; c < 0x7f; c++ {
		t[c] = c != '"' && c != '\\'
	}
	return
}()

const hex = "0123456789abcdef"

// appendText appends s as a JSON string. Control characters, and those that turn the direction of text round, are
// escaped: names come from images that nobody trusts and end up on terminals. A byte that isn't UTF-8 is rendered as
// \xNN, and then ok is false.
func appendText(dst []byte, s string) (b []byte, ok bool) {
	dst = append(dst, '"')
	ok = true
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		dst = append(dst, s[start:i]...)
		r, n := rune(c), 1
		if c >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(s[i:])
		}
		switch {
		case r == '"' || r == '\\':
			dst = append(dst, '\\', c)
		case r == utf8.RuneError && n == 1:
			ok = false
			dst = append(dst, '\\', '\\', 'x', hex[c>>4], hex[c&15])
		case r < ' ' || r >= 0x7f && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			dst = append(dst, '\\', 'u', hex[r>>12], hex[r>>8&15], hex[r>>4&15], hex[r&15])
		default:
			dst = append(dst, s[i:i+n]...)
		}
		i += n
		start = i
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"'), ok
}

// appendName appends `,"key":"text"` and, where s isn't valid UTF-8, `,"key_base64":"…"`.
func appendName(dst []byte, key, s string) []byte {
	dst, ok := appendText(appendKey(dst, key), s)
	if !ok {
		dst = append(append(dst, ',', '"'), key...)
		dst = append(dst, `_base64":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, []byte(s))
		dst = append(dst, '"')
	}
	return dst
}

// appendNotEmpty is appendName for a field that is left out when empty.
func appendNotEmpty(dst []byte, key, s string) []byte {
	if s == "" {
		return dst
	}
	return appendName(dst, key, s)
}

// appendKey appends `,"key":`.
func appendKey(dst []byte, key string) []byte {
	dst = append(append(dst, ',', '"'), key...)
	return append(dst, '"', ':')
}

func appendInt(dst []byte, key string, v int64) []byte {
	return strconv.AppendInt(appendKey(dst, key), v, 10)
}

// appendNotNone appends an integer field that is left out when it has no value.
func appendNotNone(dst []byte, key string, v int64) []byte {
	if v == None {
		return dst
	}
	return appendInt(dst, key, v)
}

// appendTexts appends a list of strings, or nothing when it is empty.
func appendTexts(dst []byte, key string, list []string) []byte {
	if len(list) == 0 {
		return dst
	}
	dst = append(appendKey(dst, key), '[')
	for i, s := range list {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst, _ = appendText(dst, s)
	}
	return append(dst, ']')
}

func appendBase64(dst []byte, b []byte) []byte {
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, b)
	return append(dst, '"')
}
