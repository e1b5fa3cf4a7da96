// Package ntfs reads NTFS 3.0 and 3.1 as Windows, ntfs-3g and Linux's ntfs3 write it.
//
// There is no published specification; names and offsets are those of the Linux-NTFS project's documentation
// (https://flatcap.github.io/linux-ntfs/ntfs/) and of Microsoft's [MS-FSCC] for reparse points and attributes.
//
// Read: MFT records of 1 and 4 KiB in any number of fragments, attribute lists without limit, resident and non-resident
// data, sparse and LZNT1-compressed files, valid-data lengths, alternate streams, hard links, directory indexes,
// symlinks, junctions, WSL's special files and extended attributes, WOF-compressed files (XPRESS and LZX), owners.
//
// Reported, not read: EFS-encrypted content, deduplicated and cloud files, volume shadow copies (listed only). The
// journal ($LogFile) is not replayed: when it holds work the volume says so and has a problem.
package ntfs
