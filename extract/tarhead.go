package extract

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"vmkit/fsmap/mapfile"
)

// A tar member's header: POSIX.1-2001 "pax Interchange Format", with what GNU tar adds for sparse files (GNU tar
// manual, "PAX Format, Version 1.0") and star for extended attributes (SCHILY.xattr). archive/tar writes no sparse
// members.

const (
	tarBlock    = 512
	maxUstarNum = 1<<33 - 1 // eleven octal digits: the size and the time
	maxUstarID  = 1<<21 - 1 // seven octal digits
)

// member is what a header says.
type member struct {
	name   string
	link   string
	flag   byte  // '0' file, '1' hard link, '2' symlink, '3' char, '4' block, '5' folder, '6' FIFO
	size   int64 // of what follows the header
	real   int64 // of the file, where it's sparse
	sparse bool
	mode   uint32
	uid    int64
	gid    int64
	mtime  mapfile.Time
	atime  mapfile.Time
	major  uint32
	minor  uint32
	xattrs []mapfile.Xattr
}

// appendTo appends the member's header blocks.
func (m *member) appendTo(dst []byte) []byte {
	var pax []byte
	name, link := m.name, m.link
	if m.sparse {
		name = path.Join(path.Dir(name), "GNUSparseFile.0", path.Base(name)) // seen by programs that don't know the rest
	}
	if len(name) > 100 || !printable(name) {
		pax = appendPax(pax, "path", name)
	}
	if m.sparse {
		pax = appendPax(pax, "GNU.sparse.major", "1")
		pax = appendPax(pax, "GNU.sparse.minor", "0")
		pax = appendPax(pax, "GNU.sparse.name", m.name) // behind path: in some programs the last one counts
		pax = appendPax(pax, "GNU.sparse.realsize", strconv.FormatInt(m.real, 10))
	}
	if len(link) > 100 || !printable(link) {
		pax = appendPax(pax, "linkpath", link)
	}
	if m.size > maxUstarNum {
		pax = appendPax(pax, "size", strconv.FormatInt(m.size, 10))
	}
	uid, gid := max(m.uid, 0), max(m.gid, 0)
	if uid > maxUstarID {
		pax = appendPax(pax, "uid", strconv.FormatInt(uid, 10))
	}
	if gid > maxUstarID {
		pax = appendPax(pax, "gid", strconv.FormatInt(gid, 10))
	}
	mtime := m.mtime.Sec
	if m.mtime.Known && (m.mtime.Nsec != 0 || mtime < 0 || mtime > maxUstarNum) {
		pax = appendPax(pax, "mtime", paxTime(m.mtime))
	}
	if m.atime.Known {
		pax = appendPax(pax, "atime", paxTime(m.atime))
	}
	for _, x := range m.xattrs {
		pax = appendPax(pax, "SCHILY.xattr."+paxKey.Replace(x.Name), string(x.Value))
	}
	if len(pax) > 0 {
		x := member{name: "PaxHeaders.0/" + path.Base(m.name), flag: 'x', size: int64(len(pax)), mode: 0o644}
		dst = x.appendBlock(dst, cutName(x.name), "", 0, 0, 0)
		dst = appendPadded(dst, pax)
	}
	return m.appendBlock(dst, cutName(name), cutName(link), uid, gid, min(max(mtime, 0), maxUstarNum))
}

// paxKey escapes what can't stand in a keyword, as GNU tar does.
var paxKey = strings.NewReplacer("%", "%25", "=", "%3D")

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// cutName is what fits into a header block; the whole stands in a pax record.
func cutName(s string) string { return s[:min(len(s), 100)] }

// appendBlock appends one header block.
func (m *member) appendBlock(dst []byte, name, link string, uid, gid, mtime int64) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, tarBlock)...)
	b := dst[start:]
	copy(b[0:100], name)
	octal(b[100:108], int64(m.mode))
	octal(b[108:116], min(uid, maxUstarID))
	octal(b[116:124], min(gid, maxUstarID))
	octal(b[124:136], min(m.size, maxUstarNum))
	octal(b[136:148], mtime)
	copy(b[148:156], "        ")
	b[156] = m.flag
	copy(b[157:257], link)
	copy(b[257:265], "ustar\x0000")
	if m.flag == '3' || m.flag == '4' {
		number(b[329:337], int64(m.major))
		number(b[337:345], int64(m.minor))
	}
	sum := int64(0)
	for _, c := range b {
		sum += int64(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return dst
}

// octal fills a field with digits and a NUL.
func octal(b []byte, v int64) {
	for i := len(b) - 2; i >= 0; i-- {
		b[i] = '0' + byte(v&7)
		v >>= 3
	}
	b[len(b)-1] = 0
}

// number is octal, or GNU's binary form for what doesn't fit.
func number(b []byte, v int64) {
	if v <= maxUstarID {
		octal(b, v)
		return
	}
	for i := len(b) - 1; i > 0; i-- {
		b[i] = byte(v)
		v >>= 8
	}
	b[0] = 0x80
}

// appendPax appends a pax record: its own length in decimal, a space, key=value, a newline.
func appendPax(dst []byte, key, value string) []byte {
	n := len(key) + len(value) + 3
	size := n + len(strconv.Itoa(n))
	if size = n + len(strconv.Itoa(size)); size != n+len(strconv.Itoa(size)) {
		size++
	}
	dst = append(strconv.AppendInt(dst, int64(size), 10), ' ')
	return append(append(append(append(dst, key...), '='), value...), '\n')
}

// paxTime gives a time in decimal; a fraction counts away from zero.
func paxTime(t mapfile.Time) string {
	sec, ns := t.Sec, int64(t.Nsec)
	sign := ""
	if sec < 0 && ns > 0 {
		sec, ns = sec+1, 1e9-ns
		if sec == 0 {
			sign = "-"
		}
	}
	if ns == 0 {
		return strconv.FormatInt(sec, 10)
	}
	return fmt.Sprintf("%s%d.%09d", sign, sec, ns)
}

// appendPadded appends bytes and zeros up to the next block.
func appendPadded(dst, b []byte) []byte {
	dst = append(dst, b...)
	return append(dst, zeros[:padding(int64(len(b)))]...)
}

// padding is how many bytes lack to a whole block.
func padding(n int64) int64 { return -n & (tarBlock - 1) }
