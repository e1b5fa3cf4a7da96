package mapfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestMachineRecords writes the records of machines and takes them apart again; what a later version adds passes
// through a filter that hands on Other records.
func TestMachineRecords(t *testing.T) {
	at := time.Date(2026, 11, 22, 9, 0, 0, 1, time.UTC)
	vm := VM{Type: "vm", Name: "web 1\n", Driver: "qmp", Target: "qmp:/s", StateFound: "running", Mode: "snapshot", FrozenAt: &at,
		Files:   []VMFile{{Path: "/a b", Role: RoleDisk, Format: "qcow2", Disk: "vda", Size: 1 << 53}},
		Changed: []Changed{{Disk: "vda", State: "complete", Granularity: 65536, Ranges: [][2]int64{{0, 65536}, {1<<53 + 1, 2}}}}}
	raw, err := json.Marshal(&vm)
	if err != nil {
		t.Fatal(err)
	}
	clone := Clone{Type: "clone", Name: "c", Folder: "/c", Of: raw, Released: &Released{PauseNS: 5, Thawed: true},
		Files: []CloneFile{{Path: "/c/a", Role: RoleDisk, From: "/a b", Method: "reflink", Size: 3}}, Images: []string{"/c/a"}}
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, r := range []any{&vm, &clone} {
		if err := w.Record(r); err != nil {
			t.Fatal(err)
		}
	}
	w.Other(&Other{Type: "vm", Raw: []byte(`{"type":"vm","name":"n","later":[1]}`)})
	w.End(&End{Kind: EndOfVMs, VMs: 1})
	w.Record(&Hold{Type: "hold", Seconds: 1})
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	r := NewReader(bytes.NewReader(b.Bytes()))
	next := func(v any) {
		t.Helper()
		rec, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if err := rec.(*Other).Decode(v); err != nil {
			t.Fatal(err)
		}
	}
	var gotVM VM
	var gotClone Clone
	next(&gotVM)
	next(&gotClone)
	if d := cmp.Diff(vm, gotVM); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(clone, gotClone); d != "" {
		t.Error(d)
	}
	if rec, err := r.Next(); err != nil || string(rec.(*Other).Raw) != `{"type":"vm","name":"n","later":[1]}` {
		t.Errorf("passed on: %v, %v", rec, err)
	}
	if rec, err := r.Next(); err != nil || rec.(*End).VMs != 1 || rec.(*End).Kind != EndOfVMs {
		t.Errorf("end: %v, %v", rec, err)
	}
	var hold Hold
	if next(&hold); hold.Seconds != 1 {
		t.Errorf("hold: %+v", hold)
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("after hold: %v", err)
	}
	if err := NewWriter(io.Discard).Record(&VM{Name: string(make([]byte, MaxLine))}); err == nil {
		t.Error("a record longer than a line was written")
	}
}
