package hostfiles

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmkit/cmd/internal/hypervisor/drivertest"
	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fsmap/mapfile"
)

func TestChain(t *testing.T) {
	dir := t.TempDir()
	far := filepath.Join(t.TempDir(), "far.qcow2")
	top, middle := filepath.Join(dir, "top.qcow2"), filepath.Join(dir, "middle.qcow2")
	qemutest.Need(t)
	for _, args := range [][]string{{far, "4M"}, {"-F", "qcow2", "-b", far, middle, "6M"}, {"-F", "qcow2", "-b", "middle.qcow2", top, "8M"}} {
		qemutest.Img(t, dir, append([]string{"create", "-q", "-f", "qcow2"}, args...)...)
	}
	if _, _, err := Chain(top, "", "vda", nil); err == nil || !strings.Contains(err.Error(), "name it, too") {
		t.Errorf("a chain that leads away: %v", err)
	}
	files, notes, err := Chain(top, "qcow2", "vda", Anywhere)
	if err != nil || len(notes) > 0 {
		t.Fatal(err, notes)
	}
	for i := range files[1:] {
		files[i+1].Size = 0
	}
	want := []mapfile.VMFile{
		{Path: top, Role: "disk", Format: "qcow2", Disk: "vda", Size: 8 << 20},
		{Path: middle, Role: "backing", Disk: "vda"}, {Path: far, Role: "backing", Disk: "vda"},
	}
	if d := cmp.Diff(want, files); d != "" {
		t.Error(d)
	}
	if err := os.Remove(far); err != nil {
		t.Fatal(err)
	}
	if files, notes, err = Chain(top, "qcow2", "vda", Anywhere); err != nil || len(files) != 2 || len(notes) != 1 || !strings.Contains(notes[0], "far.qcow2") {
		t.Errorf("with a layer missing: %+v, %q, %v", files, notes, err)
	}
	if files, notes, err = Chain(top, "qed", "vda", nil); err != nil || len(files) != 1 || !strings.Contains(notes[0], "qed") {
		t.Errorf("of a format that can't be read: %+v, %q, %v", files, notes, err)
	}
}

// TestMerge: a disk may be a layer of another disk; it stays a disk, and is there once.
func TestMerge(t *testing.T) {
	a, b := mapfile.VMFile{Path: "/a", Role: "disk"}, mapfile.VMFile{Path: "/b", Role: "disk"}
	below := mapfile.VMFile{Path: "/b", Role: "backing"}
	for _, files := range [][]mapfile.VMFile{{a, below, b}, {b, a, below}} {
		vm := &mapfile.VM{}
		Merge(vm, files)
		if got := Paths(vm, mapfile.RoleDisk); len(vm.Files) != 2 || len(got) != 2 {
			t.Errorf("%+v became %+v", files, vm.Files)
		}
	}
}

func TestKeep(t *testing.T) {
	dir := t.TempDir()
	a := drivertest.Write(t, filepath.Join(dir, "a", "x \"1\"\n.vmx"), "one")
	b := drivertest.Write(t, filepath.Join(dir, "b", "x \"1\"\n.vmx"), "two")
	vm := &mapfile.VM{Files: []mapfile.VMFile{{Path: a, Role: "config"}, {Path: b, Role: "firmware"}, {Path: "/disk", Role: "disk"}}}
	s := KeepStep(vm, dir, append(Small(vm), Kept{Path: "web.xml", Text: "<domain/>", Role: "config"}))
	if len(vm.Files) != 4 || vm.Files[0].Path != "/disk" {
		t.Fatalf("%+v", vm.Files)
	}
	for range 2 {
		var h, other Steps
		if mine, err := h.Do(t.Context(), &s); !mine || err != nil {
			t.Fatal(mine, err)
		}
		for i, want := range []string{"one", "two", "<domain/>"} {
			if got, err := os.ReadFile(vm.Files[i+1].Path); err != nil || string(got) != want {
				t.Errorf("%s holds %q, want %q: %v", vm.Files[i+1].Path, got, want, err)
			}
		}
		back := drivertest.Journal(t, s)
		for range 2 {
			if _, err := other.Undo(t.Context(), &back); err != nil {
				t.Error(err)
			}
		}
		if _, err := os.Stat(s.Args["folder"]); !os.IsNotExist(err) {
			t.Errorf("the folder is still there: %v", err)
		}
	}

	// Only what it made goes.
	var h Steps
	if _, err := h.Do(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	other := drivertest.Write(t, filepath.Join(s.Args["folder"], "theirs"), "x")
	if _, err := h.Undo(t.Context(), &s); err == nil {
		t.Error("a folder went with somebody else's file in it")
	}
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}

// TestStable: a file that is being written is read as it is at one time, or not at all.
func TestStable(t *testing.T) {
	path := drivertest.Write(t, filepath.Join(t.TempDir(), "f"), "a")
	stop, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				os.WriteFile(path, []byte(strings.Repeat(string(rune('a'+i%26)), 1+i%1000)), 0o600)
			}
		}
	}()
	if b, err := stable(path); err == nil && len(b) > 0 && strings.Trim(string(b), string(b[:1])) != "" {
		t.Errorf("a mixture was read: %q", b)
	}
	close(stop)
	<-stopped
	if err := os.WriteFile(path, []byte("quiet"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := stable(path); err != nil || string(b) != "quiet" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestArguments(t *testing.T) {
	paths := []string{"a", "", "b\nc"}
	args := List("path", paths)
	args["base.vdb"], args["base.vda"], args["baseless"] = "1", "2", "3"
	if got := Strings(args, "path"); !slices.Equal(got, paths) {
		t.Errorf("%q", got)
	}
	if got := Disks(args, "base"); !slices.Equal(got, []string{"vda", "vdb"}) {
		t.Errorf("%q", got)
	}
}

func TestWorkDir(t *testing.T) {
	dir := t.TempDir()
	disk := drivertest.Write(t, filepath.Join(dir, "disk"), "")
	for _, c := range []struct {
		work, disk, want string
	}{{"/w", disk, "/w"}, {"", disk, dir}, {"", "/dev/null", os.TempDir()}, {"", "/absent", os.TempDir()}} {
		vm := &mapfile.VM{Files: []mapfile.VMFile{{Path: "/x/y", Role: "config"}, {Path: c.disk, Role: "disk"}}}
		if got := WorkDir(vm, c.work); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

func TestUntracked(t *testing.T) {
	u := Untracked{Of: &mapfile.VM{Files: []mapfile.VMFile{{Role: "disk", Disk: "vda"}, {Role: "backing", Disk: "vda"}}}}
	lost, err := u.Changed(t.Context(), nil)
	if d := cmp.Diff([]mapfile.Changed{{Disk: "vda", State: "lost", Reason: "not offered by this driver"}}, lost); d != "" || err != nil {
		t.Error(d, err)
	}
	if u.Tracked(t.Context(), "x") == nil {
		t.Error("a point counts as safe that was never tracked")
	}
}
