package ntfs

import (
	"bytes"
	"fmt"
	"strings"

	"vmkit/formats/codec"
	"vmkit/formats/ondisk"
	"vmkit/fsmap"
	"vmkit/fsmap/mapfile"
)

// wofCodecs are the algorithms of WOF's file provider, with the bytes of a chunk ([MS-FSCC] names them only; the
// numbers are those of FILE_PROVIDER_COMPRESSION_*).
var wofCodecs = []wof{
	{chunk: 4 << 10, codec: codec.Xpress4K}, {chunk: 32 << 10, codec: codec.LZX32K},
	{chunk: 8 << 10, codec: codec.Xpress8K}, {chunk: 16 << 10, codec: codec.Xpress16},
}

// readReparse says what a reparse point stands for ([MS-FSCC] 2.1.2).
func (f *fs) readReparse(ino *inode, n *fsmap.Node) {
	b, err := f.value(ino, atReparsePoint, "", maxReparse)
	if err != nil || len(b) < 8 {
		n.Problems = append(n.Problems, fmt.Errorf("reparse point: %w", orCorrupt(err)))
		return
	}
	tag, v := le.Uint32(b), b[8:]
	unread := func(what string) {
		n.Reparse = what
		if n.Kind == mapfile.Regular {
			ino.wof.err = ondisk.Unsupported("reparse point", what, -1, fmt.Sprintf("(tag %#x)", tag))
		}
	}
	switch {
	case tag == tagSymlink, tag == tagMountPoint:
		at := 12
		n.Reparse = "symlink"
		if tag == tagMountPoint {
			at, n.Reparse = 8, "mount point"
		}
		target, ok := linkTarget(v, at)
		if !ok {
			n.Problems = append(n.Problems, ondisk.Corrupt("reparse point", "names", -1, len(v)))
			return
		}
		n.Kind, n.Target = mapfile.Symlink, append(n.Target, target...)
	case tag == tagLXSymlink && len(v) > 4:
		n.Kind, n.Reparse, n.Target = mapfile.Symlink, "wsl symlink", append(n.Target, v[4:]...)
	case tag == tagAFUnix:
		n.Kind, n.Reparse = mapfile.Socket, "wsl socket"
	case tag == tagLXFIFO:
		n.Kind, n.Reparse = mapfile.FIFO, "wsl fifo"
	case tag == tagLXChar:
		n.Kind, n.Reparse = mapfile.Char, "wsl character device"
	case tag == tagLXBlock:
		n.Kind, n.Reparse = mapfile.Block, "wsl block device"
	case tag == tagWOF:
		n.Reparse = "wof"
		// Provider 2 is the file provider; 1 (a WIM file elsewhere) keeps the content in another file.
		if len(v) < 16 || le.Uint32(v[4:]) != 2 || le.Uint32(v[12:]) >= uint32(len(wofCodecs)) {
			unread("wof with an unknown provider or algorithm")
			return
		}
		ino.wof = wofCodecs[le.Uint32(v[12:])]
		for i, s := range n.Streams {
			if s.Name == wofStream {
				n.Streams = append(n.Streams[:i], n.Streams[i+1:]...)
				break
			}
		}
	case tag == tagDedup:
		unread("deduplicated")
	case tag&tagCloudMask == tagCloud:
		n.Reparse = "cloud file"
		// A cloud file that is here has its content in its own data; a placeholder's is sparse and offline.
		for _, a := range n.Attrs {
			if a == "offline" || a == "sparse" {
				unread("cloud file whose content is elsewhere")
			}
		}
	default:
		n.Reparse = fmt.Sprintf("tag %#x", tag)
	}
}

func orCorrupt(err error) error {
	if err == nil {
		return ondisk.ErrCorrupt
	}
	return err
}

// linkTarget gives the printable name of a symlink or mount point, or the real one where there is no other. Paths
// that stay on the volume get slashes; others stay as Windows writes them.
func linkTarget(v []byte, names int) ([]byte, bool) {
	if len(v) < names {
		return nil, false
	}
	name := func(at int) ([]byte, bool) {
		off, n := int(le.Uint16(v[at:])), int(le.Uint16(v[at+2:]))
		if off+n > len(v)-names {
			return nil, false
		}
		return appendUTF16(nil, v[names+off:names+off+n]), true
	}
	t, ok := name(4)
	if ok && len(t) == 0 {
		t, ok = name(0)
		t = bytes.TrimPrefix(t, []byte(`\??\`))
	}
	if ok && !bytes.Contains(t, []byte(":")) && !bytes.HasPrefix(t, []byte(`\\`)) {
		t = bytes.ReplaceAll(t, []byte(`\`), []byte("/"))
	}
	return t, ok
}

// Interix files: a system file whose content says what it is, as Services for UNIX and ntfs-3g write them.
const (
	intxLink  = "IntxLNK\x01"
	intxChar  = "IntxCHR\x00"
	intxBlock = "IntxBLK\x00"
	maxIntx   = 8 + 2*4096
)

func (f *fs) readInterix(ino *inode, n *fsmap.Node) {
	if n.Size < 8 || n.Size > maxIntx || n.Encrypted {
		return
	}
	b, err := f.value(ino, atData, "", maxIntx)
	if err != nil {
		return // Runs meets it again and reports it
	}
	switch s := string(b[:8]); {
	case s == intxLink:
		n.Kind, n.Target = mapfile.Symlink, appendUTF16(n.Target, b[8:])
	case (s == intxChar || s == intxBlock) && len(b) >= 24:
		n.Kind, n.Size = mapfile.Char, 0
		if s == intxBlock {
			n.Kind = mapfile.Block
		}
		n.Major, n.Minor = uint32(le.Uint64(b[8:])), uint32(le.Uint64(b[16:]))
	default:
		return
	}
	n.Reparse = "interix"
}

// readEA takes what WSL keeps in extended attributes: $LXUID, $LXGID, $LXMOD and $LXDEV. The others become xattrs,
// as ntfs-3g shows them.
func (f *fs) readEA(ino *inode, n *fsmap.Node) {
	b, err := f.value(ino, atEA, "", maxEA)
	if err != nil {
		n.Problems = append(n.Problems, fmt.Errorf("extended attributes: %w", err))
		return
	}
	for len(b) >= 8 {
		next, nameLen, valueLen := int(le.Uint32(b)), int(b[5]), int(le.Uint16(b[6:]))
		if 8+nameLen+1+valueLen > len(b) || next != 0 && next < 8 || next > len(b) {
			n.Problems = append(n.Problems, ondisk.Corrupt("extended attributes", "length", -1, next))
			return
		}
		name, v := string(b[8:8+nameLen]), b[9+nameLen:9+nameLen+valueLen]
		switch {
		case name == "$LXUID" && len(v) == 4:
			n.UID = int64(le.Uint32(v))
		case name == "$LXGID" && len(v) == 4:
			n.GID = int64(le.Uint32(v))
		case name == "$LXMOD" && len(v) == 4:
			n.Mode = int64(le.Uint32(v) & 0o7777)
		case name == "$LXDEV" && len(v) == 8:
			n.Major, n.Minor = le.Uint32(v), le.Uint32(v[4:])
		default:
			n.Xattrs = append(n.Xattrs, mapfile.Xattr{Name: "user." + strings.ToLower(name), Value: bytes.Clone(v)})
		}
		if next == 0 {
			return
		}
		b = b[next:]
	}
}
