package qcow2_test

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"testing"

	"vmkit/formats/formatstest"
)

type qemuInfo struct {
	VirtualSize int64 `json:"virtual-size"`
}

func virtualSize(t testing.TB, path, format string) int64 {
	t.Helper()
	var info qemuInfo
	if err := json.Unmarshal(formatstest.Exec(t, "qemu-img", "info", "-U", "-f", format, "--output=json", path), &info); err != nil {
		t.Fatal(err)
	}
	return info.VirtualSize
}

// clusterSize reads a qcow2 image's cluster size from its header; 0 where it is none.
func clusterSize(t testing.TB, path string) int64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 24)
	if _, err := f.ReadAt(b, 0); err != nil || string(b[:4]) != "QFI\xfb" {
		return 0
	}
	return 1 << binary.BigEndian.Uint32(b[20:])
}
