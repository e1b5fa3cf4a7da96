// Package names turns what file systems hold as names into names that a path can have.
package names

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// AppendUTF16 appends a name in UTF-16 to dst as UTF-8. A surrogate without its other half, which UTF-8 has no place
// for, becomes the three bytes that it would have: so different names stay different, and none is lost.
func AppendUTF16(dst []byte, name []uint16) []byte {
	for i := 0; i < len(name); i++ {
		switch u := rune(name[i]); {
		case u < utf8.RuneSelf:
			dst = append(dst, byte(u))
		case !utf16.IsSurrogate(u):
			dst = utf8.AppendRune(dst, u)
		default:
			if i+1 < len(name) {
				if r := utf16.DecodeRune(u, rune(name[i+1])); r != utf8.RuneError {
					dst = utf8.AppendRune(dst, r)
					i++
					continue
				}
			}
			dst = append(dst, 0xE0|byte(u>>12), 0x80|byte(u>>6)&0x3F, 0x80|byte(u)&0x3F)
		}
	}
	return dst
}

// Usable reports whether name can be the name of a file: not empty, not "." or "..", without '/' and NUL.
func Usable(name []byte) bool {
	return len(name) > 0 && string(name) != "." && string(name) != ".." && bytes.IndexByte(name, '/') < 0 && bytes.IndexByte(name, 0) < 0
}

// Repair makes a name usable that is not.
func Repair(name []byte) []byte {
	for i, c := range name {
		if c == '/' || c == 0 {
			name[i] = '_'
		}
	}
	if !Usable(name) {
		name = append(name, '_')
	}
	return name
}
