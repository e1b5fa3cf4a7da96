package xfs

import (
	"encoding/binary"
	"reflect"
	"testing"
)

// TestSuperblockLayout checks places in struct xfs_dsb, counted by hand from xfs_format.h.
func TestSuperblockLayout(t *testing.T) {
	if n := binary.Size(dsb{}); n != sbLen {
		t.Fatalf("dsb takes %d bytes, want %d", n, sbLen)
	}
	want := map[string]int{"Magic": 0, "BlockSize": 4, "DBlocks": 8, "RBlocks": 16, "RExtents": 24, "UUID": sbUUIDOff, "LogStart": 48,
		"RootIno": 56, "RBmIno": 64, "RSumIno": 72, "RExtSize": 80, "AGBlocks": 84, "AGCount": 88, "RBmBlocks": 92, "LogBlocks": 96,
		"VersionNum": sbVerOff, "SectSize": 102, "InodeSize": 104, "InoPBlock": 106, "FName": 108, "BlockLog": 120, "SectLog": 121,
		"InodeLog": 122, "InoPBLog": 123, "AGBlkLog": 124, "RExtSLog": 125, "InProgress": 126, "IMaxPct": 127, "ICount": 128, "IFree": 136,
		"FDBlocks": 144, "FRExtents": 152, "UQuotIno": 160, "GQuotIno": 168, "QFlags": 176, "Flags": 178, "SharedVN": 179,
		"InoAlignMt": 180, "Unit": 184, "Width": 188, "DirBlkLog": 192, "LogSectLog": 193, "LogSectSize": 194, "LogSUnit": 196,
		"Features2": 200, "BadFeatures": 204, "Compat": 208, "ROCompat": 212, "Incompat": sbIncompatOff, "LogIncompat": 220, "CRC": sbCRCOff,
		"SpInoAlign": 228, "PQuotIno": 232, "LSN": sbLSNOff, "MetaUUID": sbMetaOff}
	typ, at := reflect.TypeFor[dsb](), 0
	for i := range typ.NumField() {
		f := typ.Field(i)
		if w, ok := want[f.Name]; !ok || w != at {
			t.Errorf("%s lies at %d, want %d", f.Name, at, w)
		}
		at += int(f.Type.Size())
	}
}
