// Package exfat reads exFAT.
//
// Specification: Microsoft, "exFAT file system specification", revision 1.00.
//
// Bytes behind a file's valid data length are unwritten: they read as zeros, and what lies there is stale. Times carry
// the offset of their zone; where it is absent they are shown as if they were UTC. Benign entries that are not known
// (vendor extensions, Windows CE access control lists) are passed over, as the specification has it. Where the volume
// has two tables and two bitmaps (TexFAT), the active ones count.
//
// Not supported: deleted entries; a revision above 1. Name hashes are not checked: no name is looked up by them here.
package exfat
