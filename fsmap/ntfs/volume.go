package ntfs

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"

	"vmkit/formats/ondisk"
	"vmkit/fsmap"
)

// owner is what a security descriptor says of ownership.
type owner struct{ user, group string }

// setOwner looks up the security id of a file. $Secure is read when the first file asks.
func (f *fs) setOwner(n *fsmap.Node, id uint32) {
	f.sdsOnce.Do(f.readSecure)
	if o, ok := f.owners[id]; ok {
		n.Owner, n.Group = o.user, o.group
	} else if id != 0 && f.sdsErr != nil {
		n.Problems = append(n.Problems, fmt.Errorf("owner: %w", f.sdsErr))
	}
}

// readSecure goes through $Secure:$SDS: blocks of 256 KiB, each followed by its copy, of security descriptors behind
// a head of hash, id, position and length, aligned to 16 bytes.
func (f *fs) readSecure() {
	const block, head = 256 << 10, 20
	f.owners = make(map[uint32]owner)
	ino := f.newInode()
	err := f.load(ino, recSecure, 0)
	if err != nil {
		f.sdsErr = fmt.Errorf("$Secure: %w", err)
		return
	}
	s, err := f.open(ino, atData, "$SDS")
	if err != nil {
		if len(ino.segments(atData, "$SDS")) > 0 {
			f.sdsErr = fmt.Errorf("$Secure: %w", err)
		}
		return // NTFS 1.x has none
	}
	buf := make([]byte, block)
	for off := int64(0); off < min(s.size, maxSDS); off += 2 * block {
		b := buf[:min(block, s.size-off)]
		if err := ondisk.ReadFull(s, b, off, "$Secure:$SDS"); err != nil {
			f.sdsErr = err
			return
		}
		for at := 0; at+head <= len(b); {
			id, n := le.Uint32(b[at+4:]), int(le.Uint32(b[at+16:]))
			if n == 0 {
				break // the rest of the block is free
			}
			if n < head || n > len(b)-at {
				f.sdsErr = ondisk.Corrupt("$Secure:$SDS", "length", off+int64(at)+16, n)
				break
			}
			d := b[at+head : at+n]
			if len(d) >= 20 {
				f.owners[id] = owner{sid(d, le.Uint32(d[4:])), sid(d, le.Uint32(d[8:]))}
			}
			at += (n + 15) &^ 15
		}
	}
}

// sid prints the SID at off of a security descriptor ([MS-DTYP] 2.4.2); empty when there is none.
func sid(d []byte, off uint32) string {
	if off == 0 || uint64(off)+8 > uint64(len(d)) {
		return ""
	}
	b := d[off:]
	n := int(b[1])
	if b[0] != 1 || n > 15 || 8+4*n > len(b) {
		return ""
	}
	var authority uint64
	for _, c := range b[2:8] {
		authority = authority<<8 | uint64(c)
	}
	var s strings.Builder
	s.WriteString("S-1-")
	s.WriteString(strconv.FormatUint(authority, 10))
	for i := range n {
		s.WriteByte('-')
		s.WriteString(strconv.FormatUint(uint64(le.Uint32(b[8+4*i:])), 10))
	}
	return s.String()
}

// findHibernation looks for a hibernated Windows, whose memory holds newer state than the volume.
func (f *fs) findHibernation() {
	var n fsmap.Node
	n.Reset()
	if f.Node(fsmap.Entry{Ref: f.info.Root}, &n) != nil {
		return
	}
	var e fsmap.Entry
	f.ReadDir(&n, func(x fsmap.Entry) bool { // a root that can't be read is reported by the walk
		if bytes.EqualFold(x.Name, []byte("hiberfil.sys")) {
			e = x
			return false
		}
		return true
	})
	if e.Name == nil {
		return
	}
	n.Reset()
	var r fsmap.Runs
	if f.Node(e, &n) != nil || n.Size < 4096 {
		return
	}
	r.Reset(4)
	magic := make([]byte, 4)
	if f.Runs(&n, nil, &r) == nil && f.readRuns(r.List, magic) == nil && strings.EqualFold(string(magic), "hibr") {
		f.doubtful = "Windows is hibernated: its memory (hiberfil.sys) holds newer state than the volume"
		f.note("%s", f.doubtful)
	}
}

// readShadows lists volume shadow copies from their catalog (libvshadow's documentation): a header at 0x1E00 that
// points to blocks of 16 KiB of 128-byte entries.
func (f *fs) readShadows() {
	const header, block, entry, maxBlocks = 0x1E00, 16 << 10, 128, 512
	guid := []byte("\x6b\x87\x08\x38\x76\xc1\x48\x4e\xb7\xae\x04\x04\x6e\x6c\xc7\x52")
	b := make([]byte, block)
	if ondisk.ReadFull(f.r, b[:entry], header, "volume shadow copies") != nil || !bytes.Equal(b[:16], guid) {
		return
	}
	next := int64(le.Uint64(b[48:]))
	for i := 0; next != 0 && i < maxBlocks; i++ {
		if !ondisk.Within(next, block, f.size) || ondisk.ReadFull(f.r, b, next, "volume shadow catalog") != nil || !bytes.Equal(b[:16], guid) {
			f.note("volume shadow copies: the catalog at byte %#x can't be read", next)
			break
		}
		for at := entry; at < block; at += entry {
			if e := b[at : at+entry]; le.Uint64(e) == 2 {
				t := fileTime(le.Uint64(e[48:]))
				f.info.Snapshots = append(f.info.Snapshots, fmt.Sprintf("vss %s %s", guidString(e[16:32]), t.String()))
			}
		}
		next = int64(le.Uint64(b[40:]))
	}
	if n := len(f.info.Snapshots); n > 0 {
		f.note("%d volume shadow copies are listed, not read", n)
	}
}

// guidString prints a GUID, whose first three fields are little-endian.
func guidString(b []byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), b[8:10], b[10:16])
}
