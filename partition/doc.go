// Package partition finds the volumes of virtual disks: partitions, logical volumes, RAID sets, decrypted containers,
// and the gaps and tables between them, which together cover each disk from 0 to its end.
//
// Every volume is a [formats.Disk] made of the ones it lies on, so that whoever reads it needs to know nothing of
// tables, stripes or keys. It finds no file systems: those are fsmap's; but it recognises what is none ([Recognise]).
//
// # What is read
//
//   - MBR with logical partitions as Linux follows and numbers them; GPT (UEFI 2.10, chapter 5) with both headers and
//     all checksums, in sectors of 512 or 4096 bytes; BSD disklabels in slices and on bare disks; Apple partition maps.
//   - LVM2 (text metadata, the newest generation of all physical volumes): linear, striped, mirror, raid0, raid1,
//     raid4, raid5, raid6 and raid10 of every layout, thin pools with thin snapshots and external origins, snapshots,
//     caches in mode writethrough.
//   - Linux md, superblocks 0.90, 1.0, 1.1 and 1.2: linear, RAID 0 (with zones), 1, 4, 5, 6, 10 of every layout;
//     degraded where the redundancy allows, without what event counts, rebuild positions and bad-block logs call stale.
//   - LUKS1 and LUKS2 with a passphrase (see formats/luks).
//
// Volumes nest: LUKS on LVM on md in a partition, partitions in a logical volume, and so on.
//
// # What is not read
//
// Named, with a problem that wraps ondisk.ErrUnsupported: SGI, Sun, AIX, Atari, Amiga and DASD tables, Windows dynamic
// disks and Storage Spaces; arrays in the middle of a reshape, md's write journal, external metadata (DDF, IMSM and other
// firmware RAID); LVM caches in mode writeback, writecache, integrity and VDO volumes.
//
// # Packed extents
//
// What is computed or decrypted comes as packed extents, of at most 64 KiB, that end at multiples of 64 KiB of the
// volume (RAID: of the member) and are otherwise as long as was asked for. Their parts say where the bytes lie.
package partition
