// Package ntfs reads NTFS 3.0 and 3.1 as Windows, ntfs-3g and Linux's ntfs3 write it.
//
// There is no published specification; names and offsets are those of the Linux-NTFS project's documentation
// (https://flatcap.github.io/linux-ntfs/ntfs/) and of Microsoft's [MS-FSCC] for reparse points and attributes.
//
// Read: MFT records of 1 and 4 KiB in any number of fragments, attribute lists without limit, resident and non-resident
// data, sparse and LZNT1-compressed files, valid-data lengths, alternate streams, hard links, directory indexes,
// symlinks, junctions, WSL's special files and extended attributes, WOF-compressed files (XPRESS and LZX), owners.
//
// The log ($LogFile, versions 1.1 and 2.0 of the log file service) is replayed into memory, as Windows does it when it
// mounts the volume: an analysis from the last checkpoint, then all that the volume lacks is redone, then transactions
// that did not end are undone. It is not documented either; what is known comes from the Linux-NTFS project, M. Suhanov's
// articles and what Windows left on volumes. What Windows does not log can't come back: the content of small files that
// lie in MFT records reads as zeros where only their size was logged. Where anything is not as expected (a torn page
// before the end, an operation that doesn't fit its target, relative updates of quotas, replaced clusters, prepared
// transactions), nothing is replayed, and the volume has a problem that says why.
//
// Reported, not read: EFS-encrypted content, deduplicated and cloud files, volume shadow copies (listed only). $MFTMirr
// is shown as it lies on disk.
package ntfs
