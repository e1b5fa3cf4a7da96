// Package iso9660 reads ISO 9660, with Rock Ridge, Joliet, zisofs and El Torito.
//
// Specifications: ECMA-119; IEEE P1281 (SUSP 1.12) and P1282 (RRIP 1.12); Microsoft, "Joliet Specification" (1995);
// Phoenix and IBM, "El Torito" (1995); libisofs, "zisofs" and "zisofs2" format descriptions. Where practice differs,
// Linux's fs/isofs.
//
// Of the trees that a volume can hold, the one that Linux would mount is shown: the primary one where it has Rock
// Ridge, else Joliet's, else the primary one with its names in lower case and without versions. Of several sessions the
// last is shown. El Torito's boot images are listed in the volume's record. An associated file (a resource fork) is an
// alternate stream of its file. An inode number is the position of a directory record: hard links are not told apart
// from files that share their content.
//
// Not supported, and told so: High Sierra, UDF, files that are interleaved, that lie on another volume of the set, or
// that are sparse by Rock Ridge's SF entry. Not shown: ISO 9660:1999's enhanced tree, path tables, extended attribute
// records, the attributes and access control lists that libisofs keeps in AL entries.
package iso9660
