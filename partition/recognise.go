package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
)

// Category says what kind of thing was recognised. The values are blkid's.
type Category string

const (
	Filesystem Category = "filesystem"
	RAID       Category = "raid" // a member of something that spans devices
	Crypto     Category = "crypto"
	Other      Category = "other"
)

// Content is what the marks in a volume say of it. Name is as blkid has it ("swap", "LVM2_member", "crypto_LUKS"), and
// empty where nothing is known.
type Content struct {
	Name        string
	What        Category
	UUID, Label string
}

// Recognise names what a volume holds, by its marks alone: for what is no file system, or one that no driver reads.
// Members of RAID sets and the like come before file systems, as those shine through a mirror's member.
func Recognise(r io.ReaderAt, size int64) (Content, bool) {
	return recognise(r, size, func(m *mark) bool { return true })
}

func recognise(r io.ReaderAt, size int64, want func(*mark) bool) (Content, bool) {
	v := &view{r: r, size: size}
	for i := range marks {
		if want(&marks[i]) {
			if c, ok := marks[i].match(v); ok {
				return c, true
			}
		}
	}
	return Content{}, false
}

// firmware is the RAID of BIOSes and host adapters: its members are whole disks, and its marks lie at their ends.
func (m *mark) firmware() bool {
	return m.what == RAID && (m.block < 0 && m.name != "drbd" || m.name == "promise_fasttrack_raid_member" || m.name == "hpt37x_raid_member")
}

// view is the volume that is looked at. The first bytes, where most marks lie, are read once.
type view struct {
	r    io.ReaderAt
	size int64
	head []byte
}

const viewHead = 68 << 10

// at gives n bytes at off (negative: before the end of the volume), or nil.
func (v *view) at(off int64, n int) []byte {
	if off < 0 {
		off += v.size
	}
	if off < 0 || int64(n) > v.size-off {
		return nil
	}
	if end := off + int64(n); end <= viewHead {
		if v.head == nil {
			v.head = make([]byte, min(v.size, viewHead))
			n, err := v.r.ReadAt(v.head, 0)
			if err != nil && !errors.Is(err, io.EOF) {
				v.head = v.head[:n] // the rest is read piece by piece, in vain or not
			}
		}
		if end <= int64(len(v.head)) {
			return v.head[off:end]
		}
	}
	b := make([]byte, n)
	if m, _ := v.r.ReadAt(b, off); m < n {
		return nil
	}
	return b
}

// has reports whether magic lies at off.
func (v *view) has(off int64, magic string) bool {
	b := v.at(off, len(magic))
	return b != nil && string(b) == magic
}

// mark is what tells one kind of content: a magic in a block at a fixed place, and where that block has the UUID and
// the label.
type mark struct {
	name  string
	what  Category
	block int64 // negative: from the end
	off   int   // of the magic in the block
	magic string
	min   int64 // a smaller volume can't be one
	// uuid and label are offsets in the block; 0: it has none.
	uuid            int
	label, labelLen int
	// more, when set, looks closer: it may veto, or fill in what the offsets can't say. b holds the block, blockLen
	// bytes or up to the end of the volume.
	more func(v *view, b []byte, c *Content) bool
}

const blockLen = 1024

func (m *mark) match(v *view) (Content, bool) {
	start := m.block
	if start < 0 {
		start += v.size
	}
	if v.size < m.min || start < 0 || m.magic != "" && !v.has(start+int64(m.off), m.magic) {
		return Content{}, false
	}
	c := Content{Name: m.name, What: m.what}
	n := int(min(blockLen, v.size-start))
	if n <= 0 {
		return c, m.magic != ""
	}
	b := v.at(start, n)
	if b == nil {
		return c, m.magic != "" && m.more == nil
	}
	if m.uuid > 0 && m.uuid+16 <= n {
		c.UUID = uuid(b[m.uuid:])
	}
	if m.label > 0 && m.label+m.labelLen <= n {
		c.Label = label(b[m.label : m.label+m.labelLen])
	}
	if m.more != nil && !m.more(v, b, &c) {
		return Content{}, false
	}
	return c, true
}

// uuid renders 16 bytes in the order in which they lie; zeros are none.
func uuid(b []byte) string {
	if bytes.Equal(b[:16], make([]byte, 16)) {
		return ""
	}
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// label is text up to a NUL, without the padding.
func label(b []byte) string { return strings.TrimRight(text(b), " \n") }

// utf16Label is the same in UTF-16.
func utf16Label(b []byte, order binary.ByteOrder) string {
	u := make([]uint16, 0, len(b)/2)
	for ; len(b) >= 2; b = b[2:] {
		c := order.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	return strings.TrimRight(string(utf16.Decode(u)), " ")
}

// serial renders the 32-bit serial number of a FAT-like boot sector.
func serial(b []byte) string {
	return fmt.Sprintf("%02X%02X-%02X%02X", b[3], b[2], b[1], b[0])
}
