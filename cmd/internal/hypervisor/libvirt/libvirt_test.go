package libvirt

import (
	"cmp"
	"encoding/xml"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"vmkit/cmd/internal/hypervisor"
	"vmkit/cmd/internal/hypervisor/domain"
	"vmkit/cmd/internal/hypervisor/drivertest"
	"vmkit/cmd/internal/hypervisor/hostfiles"
	"vmkit/cmd/internal/hypervisor/program"
	"vmkit/cmd/internal/hypervisor/qemutest"
	"vmkit/fsmap/mapfile"
)

func (g *guest) open() hypervisor.Machine { return drivertest.Open(g.t, New(), g.target) }

func TestDescribe(t *testing.T) {
	t.Parallel()
	g := newGuest(t).define()
	for _, state := range []string{"off", "running", "paused", "suspended"} {
		switch state {
		case "running":
			g.sh("start", g.name)
		case "paused":
			g.sh("suspend", g.name)
		case "suspended":
			g.sh("managedsave", g.name)
		}
		vm, err := g.open().Describe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if vm.StateFound != state || vm.Name != g.name || vm.Target != "libvirt:"+g.target || vm.UUID != g.sh("domuuid", g.name) {
			t.Errorf("%s: %+v", state, vm)
		}
		want := []mapfile.VMFile{
			{Path: g.disk, Role: "disk", Format: "qcow2", Disk: "vda", Size: 16 << 20},
			{Path: filepath.Join(g.dir, "base.qcow2"), Role: "backing", Disk: "vda"},
			{Path: g.raw, Role: "disk", Format: "raw", Disk: "vdb", Size: 4 << 20},
		}
		if len(vm.Files) > 1 {
			vm.Files[1].Size = 0
		}
		if d := gocmp.Diff(want, vm.Files); d != "" {
			t.Errorf("%s: %s", state, d)
		}
		if vm.Versions["libvirt"] == "" || vm.Versions["qemu"] == "" {
			t.Errorf("versions %q", vm.Versions)
		}
	}
}

func TestOpen(t *testing.T) {
	g := newGuest(t).define()
	base := strings.TrimSuffix(g.target, "/"+g.name)
	byUUID := drivertest.Open(t, New(), base+"/"+g.sh("domuuid", g.name))
	if vm, err := byUUID.Describe(t.Context()); err != nil || vm.Name != g.name {
		t.Errorf("by UUID: %+v, %v", vm, err)
	}
	for target, want := range map[string]struct {
		is   error
		text string
	}{
		base + "/nobody": {hypervisor.ErrNoMachine, base},
		"qemu+unix:///system?socket=/nowhere/web1": {hypervisor.ErrUnavailable, "No such file"},
		"qemu+ssh://root@far.example/system/web1":  {nil, "run vmfreeze on far.example"},
		"test:///default/test":                     {hypervisor.ErrUnavailable, "no QEMU machines"},
	} {
		_, err := New().Open(t.Context(), target)
		if err == nil || want.is != nil && !errors.Is(err, want.is) || !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v", target, err)
		}
	}
	t.Setenv("LIBVIRT_DEFAULT_URI", base)
	list, err := New().List(t.Context())
	if err != nil || !slices.Contains(list, g.name) {
		t.Errorf("%q, %v", list, err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := New().List(t.Context()); !errors.Is(err, hypervisor.ErrUnavailable) {
		t.Errorf("without virsh: %v", err)
	}
}

// TestModes goes through each mode, from each state that a machine may be found in: while it is held its files stand
// still, afterwards all is as before, and nothing that it wrote is lost.
func TestModes(t *testing.T) {
	t.Parallel()
	g := newGuest(t).start()
	for _, found := range []string{"running", "paused"} {
		if found == "paused" {
			g.sh("suspend", g.name)
		}
		for mode, during := range map[hypervisor.Mode]string{"snapshot": "", "pause": "paused", "suspend": "shut off"} {
			t.Run(string(mode)+" of "+found, func(t *testing.T) { testMode(t, g, mode, found, during) })
		}
	}
}

// testMode freezes a machine, which then is as during tells, or goes on, where that is empty.
func testMode(t *testing.T, g *guest, mode hypervisor.Mode, found, during string) {
	defer func(outer *testing.T) { g.t = outer }(g.t)
	g.t = t
	g.write(1)
	m := g.open()
	vm, p := drivertest.Plan(t, m, hypervisor.Request{Mode: mode})
	if p.Stops != (during != "") {
		t.Errorf("Stops is %v", p.Stops)
	}
	drivertest.Do(t, m, p, len(p.Steps), false)
	if got := g.sh("domstate", g.name); got != cmp.Or(during, found) {
		t.Errorf("held, it is %q", got)
	}
	checkKept(t, g, vm)
	before := read(t, g.disk)
	if p.Mode == hypervisor.Snapshot {
		g.write(2)
	}
	if after := read(t, g.disk); after != before {
		t.Error("its disk changed while it was held")
	}
	// One that was saved while it was paused starts paused, and takes the locks when it is resumed.
	if during == "shut off" && found == "running" {
		if _, err := g.virsh.Run(t.Context(), "start", g.name); err == nil {
			t.Error("it could be started while its files were held")
		}
	}
	drivertest.Undo(t, m, p)
	g.asBefore(found)
	if p.Mode == hypervisor.Snapshot {
		g.holds(g.disk, 2)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// checkKept checks that the definition is among the files, as a file that is there.
func checkKept(t *testing.T, g *guest, vm *mapfile.VM) {
	t.Helper()
	i := slices.IndexFunc(vm.Files, func(f mapfile.VMFile) bool { return f.Role == mapfile.RoleConfig })
	if i < 0 {
		t.Fatalf("no configuration among %+v", vm.Files)
	}
	if filepath.Base(vm.Files[i].Path) != g.name+".xml" {
		t.Errorf("it is called %s", vm.Files[i].Path)
	}
	if strings.TrimSpace(read(t, vm.Files[i].Path)) != g.xml {
		t.Error("another definition was kept")
	}
}

func TestOff(t *testing.T) {
	t.Parallel()
	g := newGuest(t).define()
	m := g.open()
	vm, p := drivertest.Plan(t, m, hypervisor.Request{Mode: hypervisor.Pause})
	if p.Mode != hypervisor.Off {
		t.Errorf("mode %s", p.Mode)
	}
	drivertest.Do(t, m, p, len(p.Steps), false)
	checkKept(t, g, vm)
	if _, err := g.virsh.Run(t.Context(), "start", g.name); err == nil {
		t.Error("it could be started while its files were held")
	}
	drivertest.Undo(t, m, p)
	g.asBefore("shut off")
	g.sh("start", g.name)
}

func TestFromJournal(t *testing.T) {
	t.Parallel()
	g := newGuest(t).start()
	g.write(1)
	for _, mode := range []hypervisor.Mode{"snapshot", "pause", "suspend"} {
		drivertest.FromJournal(t, g.open, hypervisor.Request{Mode: mode}, func() { g.asBefore("running") })
	}
	g.holds(g.disk, 1)
}

// frozen gives a machine that is frozen by an overlay that holds a pattern of 2, and the plan.
func frozen(t *testing.T, g *guest) *hypervisor.Plan {
	t.Helper()
	g.write(1)
	m := g.open()
	_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: hypervisor.Snapshot})
	drivertest.Do(t, m, p, len(p.Steps), false)
	g.write(2)
	m.Close()
	return p
}

// TestCommitInterrupted takes back an overlay at each place at which taking it back may have been interrupted.
func TestCommitInterrupted(t *testing.T) {
	t.Parallel()
	g := newGuest(t).start()
	for _, place := range []string{"committing", "level", "marked", "back", "off"} {
		p := frozen(t, g)
		s := p.Steps[len(p.Steps)-1]
		l := layerOf(&s, "vda")
		commit := []string{"blockcommit", g.name, "--path", "vda", "--base", l.base, "--top", l.overlay, "--active"}
		if place != "committing" {
			commit = append(commit, "--wait")
		}
		g.sh(commit...)
		if place == "marked" || place == "back" || place == "off" {
			if err := mark(l); err != nil {
				t.Fatal(err)
			}
		}
		state, want := "running", byte(2)
		if place == "back" || place == "off" {
			g.sh("blockjob", g.name, "--path", "vda", "--pivot")
			g.write(3) // only the base holds it, and the overlay must not come back
			want = 3
		}
		if place == "off" {
			g.kill()
			state = "shut off"
		}
		drivertest.Undo(t, g.open(), p)
		g.asBefore(state)
		g.holds(g.disk, want)
		if t.Failed() {
			t.Fatalf("interrupted when it was %s", place)
		}
	}
}

// TestSaveInterrupted takes back a managed save that libvirt is still at.
func TestSaveInterrupted(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	g.memory = 1024 // which takes a while
	g.start()
	m := g.open()
	_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: "suspend"})
	i := slices.IndexFunc(p.Steps, func(s hypervisor.Step) bool { return s.Op == opSave })
	saved := make(chan error, 1)
	go func() { saved <- m.Do(t.Context(), &p.Steps[i]) }()
	for g.sh("domstate", g.name) == "running" {
		time.Sleep(5 * time.Millisecond)
	}
	s := drivertest.Journal(t, hypervisor.Step{Op: opSave, Args: map[string]string{"run": p.Steps[i].Args["run"]}, State: "undoing"})
	if err := g.open().Undo(t.Context(), &s); err != nil {
		t.Error(err)
	}
	t.Logf("the save ended with: %v", <-saved)
	g.asBefore("running")
}

// TestCrash has QEMU die while the machine is frozen.
func TestCrash(t *testing.T) {
	t.Parallel()
	for mode, state := range map[hypervisor.Mode]string{"snapshot": "shut off", "pause": "shut off"} {
		g := newGuest(t).start()
		var p *hypervisor.Plan
		if mode == hypervisor.Snapshot {
			p = frozen(t, g)
		} else {
			m := g.open()
			_, p = drivertest.Plan(t, m, hypervisor.Request{Mode: mode})
			drivertest.Do(t, m, p, len(p.Steps), false)
		}
		g.kill()
		drivertest.Undo(t, g.open(), p)
		g.asBefore(state)
		if mode == hypervisor.Snapshot {
			g.holds(g.disk, 2)
		}
		qemutest.Img(t, "", "check", "-q", g.disk)
		g.sh("start", g.name)
	}
}

// TestRestarted has the machine started anew while it is frozen: what is done to that run is not vmfreeze's.
func TestRestarted(t *testing.T) {
	t.Parallel()
	g := newGuest(t).start()
	m := g.open()
	_, p := drivertest.Plan(t, m, hypervisor.Request{Mode: hypervisor.Pause})
	drivertest.Do(t, m, p, len(p.Steps), false)
	g.sh("destroy", g.name)
	g.sh("start", g.name, "--paused")
	drivertest.Undo(t, g.open(), p)
	g.asBefore("paused")
}

// TestParted has the machine started from its base while the overlay holds writes: only its owner can say which count.
func TestParted(t *testing.T) {
	t.Parallel()
	g := newGuest(t).start()
	p := frozen(t, g)
	g.sh("destroy", g.name)
	if _, err := g.virsh.Feed(t.Context(), g.xml, "define", "/dev/stdin"); err != nil {
		t.Fatal(err)
	}
	g.sh("start", g.name)
	g.write(3)
	s := drivertest.Journal(t, p.Steps[len(p.Steps)-1])
	for _, end := range []string{"", "destroy"} {
		if end != "" {
			g.sh(end, g.name)
		}
		err := g.open().Undo(t.Context(), &s)
		if err == nil || !strings.Contains(err.Error(), "qemu-img commit -b") {
			t.Errorf("%s: %v", end, err)
		}
		if _, err := os.Stat(layerOf(&s, "vda").overlay); err != nil {
			t.Errorf("the overlay is gone: %v", err)
		}
		g.holds(g.disk, 3)
	}
}

// TestTransient freezes a machine that was never defined, and that is no more once it ends.
func TestTransient(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	if _, err := g.virsh.Feed(t.Context(), g.definition(), "create", "/dev/stdin"); err != nil {
		t.Fatal(err)
	}
	g.clean()
	m := g.open()
	vm, err := m.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Plan(t.Context(), vm, hypervisor.Request{Mode: hypervisor.Suspend}); err == nil || !strings.Contains(err.Error(), "transient") {
		t.Errorf("suspending it: %v", err)
	}
	p := frozen(t, g)
	g.sh("destroy", g.name)
	if _, err := New().Open(t.Context(), g.target); !errors.Is(err, hypervisor.ErrNoMachine) {
		t.Fatalf("it is still there: %v", err)
	}
	again, err := New().(hypervisor.Survivor).Gone(vm)
	if err != nil {
		t.Fatal(err)
	}
	drivertest.Undo(t, again, p)
	g.clear()
	g.holds(g.disk, 2)
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	g := newGuest(t).start()
	m := g.open()
	vm, p := drivertest.Plan(t, m, hypervisor.Request{Mode: hypervisor.Auto, Quiesce: true})
	if p.Mode != hypervisor.Snapshot {
		t.Errorf("auto is %s", p.Mode)
	}
	i := slices.IndexFunc(p.Steps, func(s hypervisor.Step) bool { return s.Op == opFreeze })
	if i < 0 || !p.Steps[i].Early || !p.Steps[i].Freezes {
		t.Fatalf("steps %+v", p.Steps)
	}
	if err := m.Do(t.Context(), &p.Steps[i]); err == nil || !strings.Contains(err.Error(), "guest agent") {
		t.Errorf("without an agent: %v", err)
	}
	g.sh("suspend", g.name)
	vm.StateFound = "paused"
	if _, err := m.Plan(t.Context(), vm, hypervisor.Request{Quiesce: true}); err == nil || !strings.Contains(err.Error(), "--quiesce") {
		t.Errorf("quiescing what is paused: %v", err)
	}
	stop := hypervisor.Step{Op: opPause, Args: map[string]string{"run": p.Steps[i].Args["run"]}}
	if err := m.Do(t.Context(), &stop); err == nil {
		t.Error("it was paused twice")
	}
	if err := m.Undo(t.Context(), &stop); err != nil || g.sh("domstate", g.name) != "paused" {
		t.Errorf("somebody else's pause ended: %v", err)
	}
}

// TestAfterError: what QEMU stopped for want of room for an overlay goes on, and nothing else.
func TestAfterError(t *testing.T) {
	state := drivertest.Program(t, "virsh", `[ "$1" = resume ] || cat "$STATE/domstate"`)
	m := &machine{virsh: &program.Program{Name: "virsh"}, uuid: "u"}
	for is, want := range map[string]bool{"paused (I/O error)": true, "paused (user)": false, "running (booted)": false, "shut off (crashed)": false} {
		drivertest.Write(t, filepath.Join(state, "domstate"), is+"\n\n")
		if err := m.afterError(t.Context()); err != nil {
			t.Error(err)
		}
		if got := strings.Contains(drivertest.Calls(t, state), "[resume][u]"); got != want {
			t.Errorf("%s: resumed: %v", is, got)
		}
	}
}

// TestFolders looks for the files of a user's own libvirt, and leaves alone what somebody else saved.
func TestFolders(t *testing.T) {
	const uuid = "60522a58-c73d-4051-ba3f-235f0ecd5bbc"
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	state := drivertest.Program(t, "virsh", `
shift 3 # -q -c URI
case $1 in
list) echo "`+uuid+` w 1" ;;
domstate) echo "shut off (saved)" ;;
dominfo) echo "Managed save:   yes" ;;
dumpxml) echo "<domain><name>w 1</name><os><nvram>`+config+`/v.fd</nvram></os><devices><tpm><backend type='emulator' version='2.0'/></tpm><tpm><backend type='emulator' version='1.2'/></tpm></devices></domain>" ;;
version) echo "Using library: libvirt 9.0.0" ;;
domjobinfo) echo "error: Requested operation is not valid: domain is not running" >&2; exit 1 ;;
esac`)
	dir := filepath.Join(config, "libvirt", "qemu")
	want := []string{
		drivertest.Write(t, filepath.Join(dir, "w 1.xml"), "x"), drivertest.Write(t, filepath.Join(config, "v.fd"), "x"),
		drivertest.Write(t, filepath.Join(dir, "swtpm", uuid, "tpm2", "tpm2-00.permall"), "x"),
		drivertest.Write(t, filepath.Join(dir, "swtpm", uuid, "tpm1.2", "tpm-00.permall"), "x"),
		drivertest.Write(t, filepath.Join(dir, "save", "w 1.save"), "x"),
	}
	m := drivertest.Open(t, New(), "qemu:///session/w 1")
	vm, err := m.Describe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := gocmp.Diff(want, hostfiles.Paths(vm)); d != "" || vm.StateFound != "suspended" {
		t.Error(vm.StateFound, d)
	}
	for _, after := range []time.Duration{-time.Hour, time.Hour} {
		done := time.Now().Add(after)
		drivertest.Calls(t, state)
		if err := m.Undo(t.Context(), &hypervisor.Step{Op: opSave, Done: &done}); err != nil {
			t.Error(err)
		}
		if got := strings.Contains(drivertest.Calls(t, state), "[start]["+uuid+"]"); got != (after > 0) {
			t.Errorf("saved %v before: started: %v", after, got)
		}
	}
}

func TestRedefine(t *testing.T) {
	const text = `<domain><name>a</name><devices>
<disk type="file"><driver name="qemu" type="qcow2"/><source file="/x/ov"/><backingStore type="block"/><target dev="vda"/></disk>
<disk type="file"><driver name="qemu" type="qcow2"/><source file="/x/other"/><target dev="vdb"/></disk></devices></domain>`
	out, err := redefine(text, layer{disk: "vda", base: `/dev/a "b" & c`, format: "raw", kind: "block"})
	if err != nil {
		t.Fatal(err)
	}
	d, err := domain.Parse(out)
	if err != nil {
		t.Fatal(err)
	}
	a, b := d.Disk("vda"), d.Disk("vdb")
	if a.Source.Dev != `/dev/a "b" & c` || a.Source.File != "" || a.Type != "block" || a.Driver.Type != "raw" || a.Backing != nil {
		t.Errorf("%+v", a)
	}
	if b.Source.File != "/x/other" || b.Driver.Type != "qcow2" {
		t.Errorf("%+v", b)
	}
	if err := xml.Unmarshal([]byte(out), new(any)); err != nil && !strings.Contains(err.Error(), "interface") {
		t.Error(err)
	}
}

func TestRemoveOverlay(t *testing.T) {
	path := drivertest.Write(t, filepath.Join(t.TempDir(), "disk.qcow2"), "precious")
	if err := removeOverlay(layer{overlay: path}); err == nil {
		t.Error("a file that is no overlay was removed")
	}
	qemutest.Need(t)
	overlay := filepath.Join(t.TempDir(), "a.vmfreeze-1")
	qemutest.Img(t, "", "create", "-q", "-f", "qcow2", overlay, "1M")
	if used, err := holdsData(t.Context(), overlay); err != nil || used {
		t.Errorf("an empty overlay: %v, %v", used, err)
	}
}
