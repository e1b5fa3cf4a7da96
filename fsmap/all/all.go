// Package all is the one ordered table of file-system drivers.
package all

import (
	"vmkit/fsmap"
	"vmkit/fsmap/btrfs"
	"vmkit/fsmap/exfat"
	"vmkit/fsmap/ext4"
	"vmkit/fsmap/fat"
	"vmkit/fsmap/iso9660"
	"vmkit/fsmap/ntfs"
	"vmkit/fsmap/xfs"
)

// Drivers lists every driver. Their order decides nothing: all probes run, and two hits are an error.
var Drivers = []fsmap.Driver{
	btrfs.Driver,
	exfat.Driver,
	ext4.Driver,
	fat.Driver,
	iso9660.Driver,
	ntfs.Driver,
	xfs.Driver,
}
