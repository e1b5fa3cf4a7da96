package vmware

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/drivertest"
	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fsmap/mapfile"
)

// vmrun stands in for VMware's: its arguments, its output and its failures are as documented. $STATE/vmx names the one
// machine that it knows, $STATE/state is what it does.
const vmrun = `
[ "$1" = -T ] || { echo "vmrun version 1.17.0 build-20800274"; exit 255; }
[ "$2" = "$(cat "$STATE/product")" ] || { echo "Error: Unable to connect to host."; exit 255; }
shift 2
is=$(cat "$STATE/state"); vmx=$(cat "$STATE/vmx")
fail() { echo "Error: $1"; exit 255; }
case $1 in
"") printf '\nvmrun version 1.17.0 build-20800274\n\nUsage: vmrun [AUTHENTICATION-FLAGS] COMMAND [PARAMETERS]\n'; exit 255 ;;
list)
	case $is in
	running | paused) printf 'Total running VMs: 1\n%s\n' "$vmx" ;;
	*) echo "Total running VMs: 0" ;;
	esac
	exit 0 ;;
esac
[ "$2" -ef "$vmx" ] || fail "Cannot open VM: $2, The virtual machine cannot be found"
case $1 in
listSnapshots) echo "Total snapshots: $(cat "$STATE"/snap.* 2>/dev/null | wc -l)"; cat "$STATE"/snap.* 2>/dev/null; exit 0 ;;
deleteSnapshot) [ -e "$STATE/snap.$3" ] || fail "The snapshot does not exist"; rm "$STATE/snap.$3"; exit 0 ;;
start)
	[ "$3" = nogui ] || fail "Invalid argument"
	[ "$is" = suspended ] && rm "${vmx%.vmx}.vmss" && sed -i '/vmState/d' "$vmx"
	echo running >"$STATE/state"; exit 0 ;;
esac
case $is in running | paused) ;; *) fail "The virtual machine is not powered on: $2" ;; esac
case $1 in
snapshot) [ -e "$STATE/snap.$3" ] && fail "The name already exists"; echo "$3" >"$STATE/snap.$3"; echo changed >>"$vmx" ;;
pause) [ "$is" = running ] || fail "The virtual machine is already paused"; echo paused >"$STATE/state" ;;
unpause) [ "$is" = paused ] || fail "The virtual machine is not paused"; echo running >"$STATE/state" ;;
suspend)
	[ "$3" = hard ] || [ ! -e "$STATE/notools" ] || fail "VMware Tools are not running in the guest"
	echo 'checkpoint.vmState = "web 1.vmss"' >>"$vmx"; : >"${vmx%.vmx}.vmss"
	echo suspended >"$STATE/state" ;;
*) fail "Unrecognized command: $1" ;;
esac
`

// host is a stand-in with one machine.
type host struct {
	t          *testing.T
	state, vmx string
}

func newHost(t *testing.T, state string) *host {
	t.Helper()
	qemutest.Need(t)
	t.Setenv("HOME", t.TempDir())
	h := &host{t: t, state: drivertest.Program(t, "vmrun", vmrun)}
	dir := filepath.Join(t.TempDir(), `web "1"`)
	h.vmx = drivertest.Write(t, filepath.Join(dir, "web 1.vmx"), "displayName = \"Wéb\"\nscsi0:0.fileName = \"web 1.vmdk\"\nscsi0:0.present = \"TRUE\"\n")
	drivertest.Write(t, filepath.Join(dir, "web 1.nvram"), "x")
	qemutest.Img(t, dir, "create", "-q", "-f", "vmdk", "web 1.vmdk", "8M")
	h.set("product", "ws")
	h.set("vmx", h.vmx)
	h.set("state", state)
	return h
}

func (h *host) set(name, value string) {
	drivertest.Write(h.t, filepath.Join(h.state, name), value+"\n")
}

func (h *host) is(want string) {
	h.t.Helper()
	b, err := os.ReadFile(filepath.Join(h.state, "state"))
	if err != nil || strings.TrimSpace(string(b)) != want {
		h.t.Errorf("it is %s, want %s: %v", b, want, err)
	}
	if left, _ := filepath.Glob(filepath.Join(h.state, "snap.*")); len(left) > 0 {
		h.t.Errorf("left behind: %q", left)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(h.vmx), ".vmfreeze*")); len(left) > 0 {
		h.t.Errorf("left behind: %q", left)
	}
}

func (h *host) open() hypervisor.Machine { return drivertest.Open(h.t, New(), h.vmx) }

func TestModes(t *testing.T) {
	for mode, during := range map[hypervisor.Mode]string{"auto": "running", "snapshot": "running", "pause": "paused", "suspend": "suspended"} {
		h := newHost(t, "running")
		m := h.open()
		vm, p := drivertest.Plan(t, m, hypervisor.Request{Mode: mode})
		drivertest.Calls(t, h.state)
		drivertest.Do(t, m, p, len(p.Steps), false)
		calls := drivertest.Calls(t, h.state)
		if b, _ := os.ReadFile(filepath.Join(h.state, "state")); strings.TrimSpace(string(b)) != during {
			t.Errorf("%s: held, it is %s", mode, b)
		}
		if p.Mode == hypervisor.Snapshot {
			i := slices.IndexFunc(vm.Files, func(f mapfile.VMFile) bool { return filepath.Base(f.Path) == "web 1.vmx" })
			if b, err := os.ReadFile(vm.Files[i].Path); err != nil || strings.Contains(string(b), "changed") {
				t.Errorf("the configuration of before is not kept: %s, %v", b, err)
			}
		}
		drivertest.Undo(t, m, p)
		h.is("running")
		calls += drivertest.Calls(t, h.state)
		name := p.Steps[len(p.Steps)-1].Args["name"]
		want := map[hypervisor.Mode][]string{
			"snapshot": {"[snapshot][" + h.vmx + "][" + name + "]", "[deleteSnapshot][" + h.vmx + "][" + name + "]\n"},
			"pause":    {"[pause][" + h.vmx + "]\n", "[unpause][" + h.vmx + "]\n"},
			"suspend":  {"[suspend][" + h.vmx + "][soft]\n", "[start][" + h.vmx + "][nogui]\n"},
		}[p.Mode]
		for _, w := range want {
			if !strings.Contains(calls, "[-T][ws]"+w) {
				t.Errorf("%s: %q is not among\n%s", mode, w, calls)
			}
		}
	}
}

func TestFromJournal(t *testing.T) {
	defer func(d time.Duration) { settling = d }(settling)
	settling = 0
	for _, mode := range []hypervisor.Mode{"snapshot", "pause", "suspend"} {
		h := newHost(t, "running")
		drivertest.FromJournal(t, h.open, hypervisor.Request{Mode: mode}, func() { h.is("running") })
	}
}

// TestFound: states found are states left.
func TestFound(t *testing.T) {
	h := newHost(t, "paused")
	m := h.open()
	_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: "pause"})
	p.Steps[0].State = "begun"
	if err := m.Do(t.Context(), &p.Steps[0]); err == nil || !strings.Contains(err.Error(), "already paused") {
		t.Errorf("it was paused twice: %v", err)
	}
	drivertest.Undo(t, m, p)
	h.is("paused")

	for _, state := range []string{"off", "suspended"} {
		h := newHost(t, state)
		if state == "suspended" {
			h.set("state", "running")
			if out, err := exec.Command("vmrun", "-T", "ws", "suspend", h.vmx, "hard").CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
		m := h.open()
		vm, p := drivertest.Plan(t, m, hypervisor.Request{Mode: "suspend"})
		if vm.StateFound != state || p.Mode != hypervisor.Off {
			t.Errorf("%s: %s, mode %s", state, vm.StateFound, p.Mode)
		}
		drivertest.Do(t, m, p, len(p.Steps), false)
		drivertest.Undo(t, m, p)
		h.is(state)
	}

	// It was shut down while it was held: nobody starts it.
	h = newHost(t, "running")
	for _, mode := range []hypervisor.Mode{"pause", "suspend"} {
		h.set("state", "running")
		m := h.open()
		_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: mode})
		drivertest.Do(t, m, p, 1, false)
		h.set("state", "off")
		os.Remove(strings.TrimSuffix(h.vmx, ".vmx") + ".vmss")
		drivertest.Undo(t, m, p)
		h.is("off")
	}
}

func TestWithoutTools(t *testing.T) {
	h := newHost(t, "running")
	h.set("notools", "")
	m := h.open()
	_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: "suspend"})
	drivertest.Do(t, m, p, 1, false)
	if calls := drivertest.Calls(t, h.state); !strings.Contains(calls, "[suspend]["+h.vmx+"][hard]") {
		t.Errorf("calls\n%s", calls)
	}
	drivertest.Undo(t, m, p)
	h.is("running")
}

func TestOpen(t *testing.T) {
	h := newHost(t, "running")
	h.set("product", "player")
	vm, err := drivertest.Open(t, New(), "Wéb").Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if vm.Name != "Wéb" || vm.Target != "vmx:"+h.vmx || vm.StateFound != "running" || vm.Versions["vmrun"] != "1.17.0 build-20800274" {
		t.Errorf("%+v", vm)
	}
	if _, err := drivertest.Open(t, New(), h.vmx).Plan(t.Context(), vm, hypervisor.Request{Quiesce: true}); err == nil || !strings.Contains(err.Error(), "--quiesce") {
		t.Errorf("quiescing: %v", err)
	}
	h.set("state", "off")
	for _, target := range []string{"Wéb", "/nowhere.vmx"} {
		if _, err := New().Open(t.Context(), target); !errors.Is(err, hypervisor.ErrNoMachine) {
			t.Errorf("%s: %v", target, err)
		}
	}
	drivertest.Write(t, filepath.Join(os.Getenv("HOME"), ".vmware", "inventory.vmls"), "vmlist1.config = \""+strings.ReplaceAll(h.vmx, `"`, "|22")+"\"\nvmlist2.config = \"\"\nvmlist3.config = \"folder1\"\n")
	drivertest.Open(t, New(), "web 1")
	if list, err := New().List(t.Context()); err != nil || !slices.Equal(list, []string{h.vmx}) {
		t.Errorf("%q, %v", list, err)
	}
	h.set("product", "none")
	if _, err := New().Open(t.Context(), h.vmx); !errors.Is(err, hypervisor.ErrUnavailable) || !strings.Contains(err.Error(), "Unable to connect") {
		t.Errorf("without a product: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := New().Open(t.Context(), h.vmx); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("without vmrun: %v", err)
	}
}
