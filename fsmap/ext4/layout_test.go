package ext4

import (
	"testing"

	"vmkit/fsmap/fsmaptest"
)

// Offsets are those of the kernel's documentation ("Super Block", "Journal (jbd2)").
func TestLayout(t *testing.T) {
	fsmaptest.Layout(t, superblock{}, sbLen, map[string]int{
		"InodesCount": 0x0, "BlocksCountLo": 0x4, "FirstDataBlock": 0x14, "LogBlockSize": 0x18, "BlocksPerGroup": 0x20, "InodesPerGroup": 0x28,
		"Magic": sbMagicOff, "State": 0x3A, "CreatorOS": 0x48, "Rev": 0x4C, "FirstIno": 0x54, "InodeSize": 0x58, "BlockGroupNr": 0x5A,
		"Compat": 0x5C, "Incompat": 0x60, "ROCompat": 0x64, "UUID": 0x68, "Label": 0x78, "LastMounted": 0x88, "JournalUUID": 0xD0,
		"JournalInum": 0xE0, "LastOrphan": 0xE8, "HashSeed": 0xEC, "DefHashVersion": 0xFC, "JnlBackupType": 0xFD, "DescSize": 0xFE,
		"FirstMetaBG": 0x104, "JnlBlocks": 0x10C, "BlocksCountHi": 0x150, "FreeBlocksHi": 0x158, "Flags": 0x160, "MMPInterval": 0x166,
		"MMPBlock": 0x168, "LogGroupsPerFlex": 0x174, "ChecksumType": 0x175, "ErrorCount": 0x194, "MountOpts": 0x200, "UsrQuotaInum": 0x240,
		"BackupBGs": 0x24C, "EncryptPWSalt": 0x258, "PrjQuotaInum": 0x26C, "ChecksumSeed": 0x270, "Encoding": 0x27C, "OrphanFileInum": 0x280,
		"Checksum": sbCsumOff,
	})
	fsmaptest.Layout(t, journalSuper{}, jsLen, map[string]int{
		"Magic": 0x0, "BlockType": 0x4, "BlockSize": 0xC, "MaxLen": 0x10, "First": 0x14, "StartSeq": 0x18, "Start": 0x1C, "Errno": 0x20,
		"Compat": 0x24, "Incompat": 0x28, "ROCompat": 0x2C, "UUID": 0x30, "ChecksumType": 0x50, "NumFCBlocks": 0x54, "Head": 0x58,
		"Checksum": jsCsumOff, "Users": 0x100,
	})
}
