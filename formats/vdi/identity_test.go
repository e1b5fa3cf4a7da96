package vdi_test

import (
	"os"
	"testing"

	"vmkit/formats"
	"vmkit/formats/formatstest"
	"vmkit/formats/vdi"
)

func TestIdentity(t *testing.T) {
	path, _ := image(t, 2<<20, "static=off")
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	src := &formats.OSSource{}
	defer src.Close()
	f, err := src.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	old, err := vdi.ReadIdentity(f)
	if err != nil {
		t.Fatal(err)
	}
	want := vdi.Identity{UUID: "00112233-4455-6677-8899-aabbccddeeff", Parent: old.Parent}
	head, err := vdi.Identify(f, want)
	if err != nil {
		t.Fatal(err)
	}
	// VirtualBox keeps the first three fields in little-endian order, from byte 392 on.
	if got := string(head[392:408]); got != "\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff" {
		t.Errorf("UUID %x", got)
	}
	if string(head[:392])+string(head[408:]) != string(before[:392])+string(before[408:len(head)]) {
		t.Error("more than the UUID was changed")
	}
	if err := os.WriteFile(path, append(head, before[len(head):]...), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := vdi.ReadIdentity(f); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	formatstest.Exec(t, "qemu-img", "check", path)
	if _, err := vdi.Identify(f, vdi.Identity{UUID: "no", Parent: old.Parent}); err == nil {
		t.Error("a UUID that is none was taken")
	}
}
