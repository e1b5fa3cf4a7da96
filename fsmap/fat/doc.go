// Package fat reads FAT12, FAT16 and FAT32, with long names.
//
// Specification: Microsoft, "FAT: General Overview of On-Disk Format", version 1.03 (2000), and the long name part of
// "Long File Name Specification" (1992); where practice differs, Linux's fs/fat. Names without a long one are in code
// page 850.
//
// Not supported: OEM-specific extensions (FAT+ files above 4 GiB, OS/2 extended attributes, DR-DOS passwords and
// owners), volumes without a BIOS parameter block (DOS 1.x floppies). The times are the writer's local ones, whose zone
// is stored nowhere; they are shown as if they were UTC. Deleted entries are not shown. Chains that run into one another
// are told from the table, where it is at most 16 MiB long; two files that begin at one cluster are not.
package fat
