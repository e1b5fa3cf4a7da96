package verify

import (
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"vmkit/fsmap/mapfile"
)

// The faults and limits that the second readers are known to have, at the versions in go.mod. Each was seen on an image
// whose truth the kernel or another tool told. What they explain is told as theirs; anything else is a difference.

// volumeFault tells why a reader can't be asked about a volume at all.
func volumeFault(reader string, v *mapfile.Volume) string {
	features, _ := v.Extra["features"].([]any)
	if reader == goExt4 && slices.Contains(features, any("inline_data")) {
		return "it doesn't know files and folders whose content lies in the inode"
	}
	return ""
}

// folderFault tells why what a reader says of a folder can't be compared.
func folderFault(f *mapfile.File) string {
	if slices.Contains(f.Attrs, "encrypted") {
		return "it doesn't render encrypted names"
	}
	return ""
}

// lostFault tells why a reader doesn't see a file of the map.
func lostFault(reader string, v *mapfile.Volume, f *mapfile.File) string {
	switch {
	case reader == goDiskfs && v.FS == "vfat" && !ascii(f.Path):
		return "it doesn't decode short names, which are in a code page"
	case reader == goNTFS && strings.HasPrefix(f.Path, "/$"):
		return "it isn't asked for the file system's own files"
	}
	return ""
}

// extraFault tells why a reader sees a file that the map has not.
func extraFault(reader string, v *mapfile.Volume, path string) string {
	if reader == goDiskfs && v.FS == "vfat" && !ascii(path) {
		return "it doesn't decode short names, which are in a code page"
	}
	return ""
}

func ascii(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}

// kindFault tells why a reader takes a file for another kind.
func kindFault(reader string, f *mapfile.File, kind mapfile.FileKind) string {
	if reader == goNTFS && (f.Reparse != "" || f.Kind != mapfile.Regular && f.Kind != mapfile.Directory) {
		return "it doesn't know what a reparse point stands for"
	}
	return ""
}

// unreadable tells why a reader isn't asked for a file's bytes.
func unreadable(reader string, v *mapfile.Volume, f *mapfile.File, list []mapfile.Extent) string {
	switch {
	case (reader == goExt4 || reader == goXFS) && !utf8.ValidString(f.Path):
		return "it opens no names that aren't UTF-8"
	case reader == goDiskfs && v.FS == "ext4" && has(list, mapfile.Hole, mapfile.Unwritten):
		return "it reads wrong bytes where a file has holes or unwritten extents, or never ends"
	}
	return ""
}

func has(list []mapfile.Extent, kinds ...mapfile.Kind) bool {
	return slices.ContainsFunc(list, func(e mapfile.Extent) bool { return slices.Contains(kinds, e.Kind) })
}

// contentFault tells why a reader gives other bytes than the map.
func contentFault(reader string, v *mapfile.Volume, list []mapfile.Extent) string {
	switch reader {
	case goExt4:
		long := func(e mapfile.Extent) bool {
			return e.Kind == mapfile.Data && v.BlockSize > 0 && e.Len/v.BlockSize >= 32768
		}
		if slices.ContainsFunc(list, long) {
			return "it reads zeros where an extent has exactly 32768 blocks"
		}
	case goNTFS:
		if has(list, mapfile.Packed) {
			return "it decodes some compressed files wrongly"
		}
	}
	return ""
}

// targetFault tells why a reader gives another target of a symlink.
func targetFault(reader string, v *mapfile.Volume, target string) string {
	if reader == goExt4 && v.FS != "ext4" && len(target) >= 60 {
		return "it takes the block of a long target for the target"
	}
	return ""
}

// cleaned is what go-ext4-filesystem makes of a symlink's target.
func cleaned(target string) string { return filepath.Clean(target) }
