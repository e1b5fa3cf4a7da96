package vbox

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/drivertest"
	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fsmap/mapfile"
)

// vboxManage stands in for VirtualBox's: its arguments, its output and its failures are as documented. It knows one
// machine: $STATE/state is what it does, $STATE/cfg names its settings.
const vboxManage = `
is=$(cat "$STATE/state"); cfg=$(cat "$STATE/cfg")
uuid=60522a58-c73d-4051-ba3f-235f0ecd5bbc
fail() { printf 'VBoxManage: error: %s\nVBoxManage: error: Details: code VBOX_E_X (0x80bb0001), component X\n' "$1" >&2; exit 1; }
case $1 in
--version) echo 7.0.10r158379; exit ;;
list) printf '"other" {11111111-c73d-4051-ba3f-235f0ecd5bbc}\n"w "1" é" {%s}\n<inaccessible> {22222222-c73d-4051-ba3f-235f0ecd5bbc}\n' $uuid; exit ;;
esac
[ "$2" = $uuid ] || fail "Could not find a registered machine named '$2'"
case $1 in
showvminfo)
	[ "$3" = --machinereadable ] || fail "Unknown option: $3"
	# A machine that is being saved is so for a while.
	[ "$is" = saving ] && echo saved >"$STATE/state"
	printf 'name="w \\"1\\" é"\nUUID="%s"\nCfgFile="%s"\nVMState="%s"\n"SATA-0-0"="x.vdi"\nbroken="\ndescription="lies\nVMState="poweroff""\n' $uuid "$cfg" "$is" ;;
controlvm)
	case $is in running | paused) ;; *) fail "Machine 'w' is not currently running." ;; esac
	case $3 in
	pause) [ "$is" = running ] || fail "Invalid machine state: Paused"; echo paused >"$STATE/state" ;;
	resume) [ "$is" = paused ] || fail "Invalid machine state: Running"; echo running >"$STATE/state" ;;
	savestate) echo saving >"$STATE/state" ;;
	*) fail "Invalid parameter '$3'" ;;
	esac ;;
startvm)
	[ "$3 $4" = "--type headless" ] || fail "Invalid type"
	[ "$is" = saved ] || [ "$is" = poweroff ] || fail "The machine 'w' is already locked by a session (or being locked or unlocked)"
	echo running >"$STATE/state" ;;
snapshot)
	case $3 in
	take) [ "$5" = --live ] || fail "Unknown option"; printf '%s' "$4" >"$STATE/snap"; echo '<!-- changed -->' >>"$cfg"; echo "Snapshot taken. UUID: 1" ;;
	delete) [ "$(cat "$STATE/snap" 2>/dev/null)" = "$4" ] || fail "Could not find a snapshot named '$4'"; rm "$STATE/snap" ;;
	list)
		[ -e "$STATE/snap" ] || { echo "This machine does not have any snapshots"; exit 1; }
		printf 'SnapshotName="mine"\nSnapshotUUID="1"\nSnapshotName-1="%s"\nCurrentSnapshotName="%s"\n' "$(cat "$STATE/snap")" "$(cat "$STATE/snap")" ;;
	esac ;;
*) fail "Invalid command '$1'" ;;
esac
`

const settings = `<?xml version="1.0"?>
<VirtualBox xmlns="http://www.virtualbox.org/" version="1.16-linux">
<Machine uuid="{60522a58-c73d-4051-ba3f-235f0ecd5bbc}" name="w &quot;1&quot; é" snapshotFolder="Snapshots"><MediaRegistry><HardDisks>
<HardDisk uuid="{1}" location="base.vdi" format="VDI"><HardDisk uuid="{2}" location="Snapshots/{2}.vdi" format="VDI"/></HardDisk>
</HardDisks></MediaRegistry><Snapshot stateFile="Snapshots/1.sav"><Snapshots><Snapshot stateFile="Snapshots/2.sav"/></Snapshots></Snapshot>
<StorageControllers><StorageController name="SATA">
<AttachedDevice type="HardDisk" port="0" device="0"><Image uuid="{2}"/></AttachedDevice>
<AttachedDevice type="DVD" port="1" device="0"><Image uuid="{9}"/></AttachedDevice></StorageController></StorageControllers>
</Machine></VirtualBox>
`

const target = `w "1" é`

type host struct {
	t          *testing.T
	state, cfg string
}

func newHost(t *testing.T, state string) *host {
	t.Helper()
	qemutest.Need(t)
	h := &host{t: t, state: drivertest.Program(t, "VBoxManage", vboxManage)}
	h.cfg = drivertest.Write(t, filepath.Join(t.TempDir(), "w 1", "w 1.vbox"), settings)
	drivertest.Write(t, filepath.Join(h.dir(), "Snapshots", "1.sav"), "x")
	drivertest.Write(t, filepath.Join(h.dir(), "Snapshots", "2.sav"), "x")
	for _, name := range []string{"base.vdi", "Snapshots/{2}.vdi"} {
		qemutest.Img(t, h.dir(), "create", "-q", "-f", "vdi", name, "8M")
	}
	h.set("cfg", h.cfg)
	h.set("state", state)
	return h
}

func (h *host) dir() string { return filepath.Dir(h.cfg) }

func (h *host) set(name, value string) {
	drivertest.Write(h.t, filepath.Join(h.state, name), value+"\n")
}

func (h *host) get() string {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.state, "state"))
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func (h *host) is(want string) {
	h.t.Helper()
	if got := h.get(); got != want {
		h.t.Errorf("it is %s, want %s", got, want)
	}
	if _, err := os.Stat(filepath.Join(h.state, "snap")); err == nil {
		h.t.Error("its snapshot was left behind")
	}
	if left, _ := filepath.Glob(filepath.Join(h.dir(), "Snapshots", ".vmfreeze*")); len(left) > 0 {
		h.t.Errorf("left behind: %q", left)
	}
}

func (h *host) open() hypervisor.Machine { return drivertest.Open(h.t, New(), target) }

func TestDescribe(t *testing.T) {
	h := newHost(t, "running")
	vm, err := h.open().Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range vm.Files {
		rel, err := filepath.Rel(h.dir(), f.Path)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, f.Role+" "+f.Disk+" "+rel)
	}
	want := []string{"config  w 1.vbox", "disk SATA-0-0 Snapshots/{2}.vdi", "backing SATA-0-0 base.vdi", "memory  Snapshots/1.sav", "memory  Snapshots/2.sav"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if vm.Name != target || vm.StateFound != "running" || vm.Target != "vbox:"+target || vm.Versions["virtualbox"] != "7.0.10r158379" {
		t.Errorf("%+v", vm)
	}
	drivertest.Write(t, h.cfg, strings.Replace(settings, `<HardDisk uuid="{1}"`, `<HardDisk uuid="{3}"`, 1))
	if _, err := h.open().Describe(t.Context()); err != nil {
		t.Error(err)
	}
	drivertest.Write(t, h.cfg, strings.Replace(settings, `<HardDisk uuid="{2}"`, `<HardDisk uuid="{3}"`, 1))
	if _, err := h.open().Describe(t.Context()); err == nil || !strings.Contains(err.Error(), "SATA-0-0") {
		t.Errorf("a disk that the settings don't know: %v", err)
	}
}

func TestModes(t *testing.T) {
	const uuid = "60522a58-c73d-4051-ba3f-235f0ecd5bbc"
	for mode, during := range map[hypervisor.Mode]string{"auto": "", "snapshot": "", "pause": "paused", "suspend": "saved"} {
		for _, found := range []string{"running", "paused"} {
			if mode == "suspend" && found == "paused" {
				continue
			}
			h := newHost(t, found)
			m := h.open()
			vm, p := drivertest.Plan(t, m, hypervisor.Request{Mode: mode})
			if p.Stops != (during != "") {
				t.Errorf("%s: Stops is %v", mode, p.Stops)
			}
			drivertest.Calls(t, h.state)
			drivertest.Do(t, m, p, len(p.Steps), false)
			calls := drivertest.Calls(t, h.state)
			if got := h.get(); during != "" && got != during && got != "saving" || during == "" && got != found {
				t.Errorf("%s of %s: held, it is %s", mode, found, got)
			}
			if p.Mode == hypervisor.Snapshot {
				i := slices.IndexFunc(vm.Files, func(f mapfile.VMFile) bool { return f.Role == mapfile.RoleConfig })
				if b, err := os.ReadFile(vm.Files[i].Path); err != nil || string(b) != settings {
					t.Errorf("the settings of before are not kept: %s, %v", b, err)
				}
			}
			drivertest.Undo(t, m, p)
			h.is(found)
			calls += drivertest.Calls(t, h.state)
			var want []string
			switch {
			case p.Mode == hypervisor.Snapshot:
				name := p.Steps[1].Args["name"]
				want = []string{"[snapshot][" + uuid + "][take][" + name + "][--live]\n", "[snapshot][" + uuid + "][delete][" + name + "]\n"}
			case p.Mode == hypervisor.Suspend:
				want = []string{"[controlvm][" + uuid + "][savestate]\n", "[startvm][" + uuid + "][--type][headless]\n"}
			case found == "running":
				want = []string{"[controlvm][" + uuid + "][pause]\n", "[controlvm][" + uuid + "][resume]\n"}
			}
			for _, w := range want {
				if !strings.Contains(calls, w) {
					t.Errorf("%s: %q is not among\n%s", mode, w, calls)
				}
			}
		}
	}
}

func TestFromJournal(t *testing.T) {
	for _, mode := range []hypervisor.Mode{"snapshot", "pause", "suspend"} {
		h := newHost(t, "running")
		drivertest.FromJournal(t, h.open, hypervisor.Request{Mode: mode}, func() { h.is("running") })
	}
}

// TestFound: states found are states left.
func TestFound(t *testing.T) {
	for _, state := range []string{"poweroff", "saved", "aborted"} {
		h := newHost(t, state)
		m := h.open()
		_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: "suspend", Quiesce: true})
		if p.Mode != hypervisor.Off {
			t.Errorf("%s: mode %s", state, p.Mode)
		}
		drivertest.Do(t, m, p, len(p.Steps), false)
		drivertest.Undo(t, m, p)
		h.is(state)
	}

	h := newHost(t, "running")
	m := h.open()
	_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: "pause"})
	h.set("state", "paused") // by somebody else, in between
	p.Steps[0].State = "begun"
	if err := m.Do(t.Context(), &p.Steps[0]); err == nil {
		t.Error("it was paused twice")
	}
	drivertest.Undo(t, m, p)
	h.is("paused")

	for _, mode := range []hypervisor.Mode{"pause", "suspend"} {
		h.set("state", "running")
		_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: mode})
		drivertest.Do(t, m, p, 1, false)
		h.set("state", "poweroff")
		drivertest.Undo(t, m, p)
		h.is("poweroff")
	}

	for state, want := range map[string]string{"paused": "-m snapshot", "gurumeditation": "wait until", "running": "--quiesce"} {
		h.set("state", state)
		m := h.open()
		vm, err := m.Describe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Plan(t.Context(), vm, hypervisor.Request{Mode: "suspend", Quiesce: state == "running"}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", state, err)
		}
	}
}

func TestOpen(t *testing.T) {
	newHost(t, "running")
	drivertest.Open(t, New(), "{60522A58-c73d-4051-ba3f-235f0ecd5bbc}")
	if _, err := New().Open(t.Context(), "nobody"); !errors.Is(err, hypervisor.ErrNoMachine) {
		t.Error(err)
	}
	if names, err := New().List(t.Context()); err != nil || !slices.Equal(names, []string{"other", target}) {
		t.Errorf("%q, %v", names, err)
	}
	if err := func() error { _, err := drivertest.Open(t, New(), "other").Describe(t.Context()); return err }(); err == nil ||
		!strings.Contains(err.Error(), "VBoxManage showvminfo: Could not find a registered machine") || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := New().Open(t.Context(), target); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("without VBoxManage: %v", err)
	}
}

func FuzzWord(f *testing.F) {
	f.Add(`"a\"b"="c"`)
	f.Fuzz(func(t *testing.T, s string) {
		if w, rest, ok := word(s); ok && len(w)+len(rest) > len(s) {
			t.Errorf("%q became %q and %q", s, w, rest)
		}
	})
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte(settings))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSettings(b)
		if err != nil {
			return
		}
		s.Machine.Snapshot.states()
		for _, d := range s.Disks() {
			if len(d.Chain) > 0 && !strings.EqualFold(d.Chain[0].UUID, d.UUID) {
				t.Errorf("%s is attached, and its chain begins with %s", d.UUID, d.Chain[0].UUID)
			}
		}
	})
}
