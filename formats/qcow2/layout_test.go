package qcow2

import (
	"encoding/binary"
	"reflect"
	"testing"
)

// TestLayout holds sizes and offsets against the byte positions in the specification.
func TestLayout(t *testing.T) {
	for _, tc := range []struct {
		v       any
		size    int
		offsets map[string]int
		base    int // where the structure starts in the specification's numbering
	}{
		{v: header{}, size: 72, offsets: map[string]int{
			"Magic": 0, "Version": 4, "BackingFileOffset": 8, "BackingFileSize": 16, "ClusterBits": 20, "Size": 24, "CryptMethod": 32, "L1Size": 36,
			"L1TableOffset": 40, "RefcountTableOffset": 48, "RefcountTableClusters": 56, "NbSnapshots": 60, "SnapshotsOffset": 64,
		}},
		{v: header3{}, size: 32, base: 72, offsets: map[string]int{
			"Incompatible": 72, "Compatible": 80, "Autoclear": 88, "RefcountOrder": 96, "HeaderLength": 100,
		}},
		{v: featureName{}, size: 48, offsets: map[string]int{"Type": 0, "Bit": 1, "Name": 2}},
		{v: bitmapsExt{}, size: 24, offsets: map[string]int{"NbBitmaps": 0, "Reserved": 4, "DirSize": 8, "DirOffset": 16}},
		{v: cryptoExt{}, size: 16, offsets: map[string]int{"Offset": 0, "Length": 8}},
		{v: snapshotEntry{}, size: 40, offsets: map[string]int{
			"L1TableOffset": 0, "L1Size": 8, "IDLen": 12, "NameLen": 14, "Seconds": 16, "Nanoseconds": 20, "GuestClock": 24, "VMStateSize": 32, "ExtraLen": 36,
		}},
		{v: snapshotExtra{}, size: 16, base: 40, offsets: map[string]int{"VMStateSize": 40, "DiskSize": 48}},
		{v: bitmapEntry{}, size: 24, offsets: map[string]int{
			"TableOffset": 0, "TableSize": 8, "Flags": 12, "Type": 16, "GranularityBits": 17, "NameLen": 18, "ExtraLen": 20,
		}},
	} {
		v := reflect.ValueOf(tc.v)
		if n := binary.Size(tc.v); n != tc.size {
			t.Errorf("%T has %d bytes, want %d", tc.v, n, tc.size)
		}
		if v.NumField() != len(tc.offsets) {
			t.Errorf("%T has %d fields, %d are tested", tc.v, v.NumField(), len(tc.offsets))
		}
		at := tc.base
		for i := range v.NumField() {
			if f := v.Type().Field(i); tc.offsets[f.Name] != at {
				t.Errorf("%T.%s is at byte %d, want %d", tc.v, f.Name, at, tc.offsets[f.Name])
			}
			at += binary.Size(v.Field(i).Interface())
		}
	}
}
