package qcow

import (
	"encoding/binary"
	"reflect"
	"testing"
)

func TestLayout(t *testing.T) {
	offsets := map[string]int{
		"Magic": 0, "Version": 4, "BackingFileOffset": 8, "BackingFileSize": 16, "MTime": 20, "Size": 24, "ClusterBits": 32, "L2Bits": 33,
		"Padding": 34, "CryptMethod": 36, "L1TableOffset": 40,
	}
	at := 0
	for v, i := reflect.ValueOf(header{}), 0; i < v.NumField(); i++ {
		if f := v.Type().Field(i); offsets[f.Name] != at {
			t.Errorf("%s is at byte %d, want %d", f.Name, at, offsets[f.Name])
		}
		at += binary.Size(v.Field(i).Interface())
	}
	if at != 48 || binary.Size(header{}) != 48 {
		t.Errorf("the header has %d bytes, want 48", at)
	}
}
