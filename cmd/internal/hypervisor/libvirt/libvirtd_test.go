package libvirt

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vmkit/cmd/internal/hypervisor/program"
	"vmkit/cmd/internal/hypervisor/qemutest"
)

// daemon is a libvirtd of the tests' own, in a mount namespace in which all its folders are temporary ones.
type daemon struct {
	dir string
	cmd *exec.Cmd
	uri string
}

var (
	startOnce sync.Once
	libvirtd  *daemon
	noDaemon  string // why there is none
)

func TestMain(m *testing.M) {
	status := m.Run()
	if libvirtd != nil {
		libvirtd.stop()
	}
	os.Exit(status)
}

const daemonScript = `set -eu
mkdir -p "$T/etc/qemu" "$T/lib" "$T/log" "$T/cache" "$T/run"
cat >"$T/etc/libvirtd.conf" <<E
unix_sock_dir = "$T/run"
auth_unix_rw = "none"
E
cat >"$T/etc/qemu.conf" <<E
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
stdio_handler = "file"
cgroup_controllers = []
namespaces = []
E
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mkdir -p /etc/libvirt /var/lib/libvirt /var/log/libvirt /var/cache/libvirt
mount --bind "$T/etc" /etc/libvirt
mount --bind "$T/lib" /var/lib/libvirt
mount --bind "$T/log" /var/log/libvirt
mount --bind "$T/cache" /var/cache/libvirt
exec libvirtd -f /etc/libvirt/libvirtd.conf -p "$T/run/libvirtd.pid"
`

// uri gives the URI of a running libvirtd, and skips the test where none can be had.
func uri(t *testing.T) string {
	t.Helper()
	startOnce.Do(startDaemon)
	if libvirtd == nil {
		t.Skip(noDaemon)
	}
	return libvirtd.uri
}

func startDaemon() {
	for _, tool := range []string{"libvirtd", "virsh", "unshare", "qemu-system-x86_64", "qemu-img"} {
		if _, err := exec.LookPath(tool); err != nil {
			noDaemon = "needs " + tool + " (packages libvirt-daemon, libvirt-clients, qemu-system-x86, qemu-utils)"
			return
		}
	}
	if os.Getuid() != 0 {
		noDaemon = "a libvirtd of its own needs root"
		return
	}
	dir, err := os.MkdirTemp("", "libvirt") // short: the path of a socket is
	if err != nil {
		noDaemon = err.Error()
		return
	}
	d := &daemon{dir: dir, uri: "qemu+unix:///system?socket=" + dir + "/run/libvirt-sock"}
	d.cmd = exec.Command("unshare", "-m", "sh", "-c", daemonScript)
	d.cmd.Env = append(os.Environ(), "T="+dir)
	log, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		noDaemon = err.Error()
		return
	}
	defer log.Close()
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := d.cmd.Start(); err != nil {
		noDaemon = err.Error()
		return
	}
	ended := make(chan error, 1)
	go func() { ended <- d.cmd.Wait() }()
	virsh := &program.Program{Name: "virsh", Args: []string{"-c", d.uri}}
	for range 600 {
		if _, err = virsh.Run(context.Background(), "version"); err == nil {
			libvirtd = d
			return
		}
		select {
		case err := <-ended:
			said, _ := os.ReadFile(log.Name())
			noDaemon = fmt.Sprintf("libvirtd doesn't start here: %v: %.500s", err, said)
			return
		case <-time.After(50 * time.Millisecond):
		}
	}
	noDaemon = fmt.Sprintf("libvirtd doesn't answer: %v", err)
	d.stop()
}

func (d *daemon) stop() {
	virsh := &program.Program{Name: "virsh", Args: []string{"-q", "-c", d.uri}}
	if list, err := virsh.Run(context.Background(), "list", "--uuid"); err == nil {
		for uuid := range strings.FieldsSeq(list) {
			virsh.Run(context.Background(), "destroy", uuid)
		}
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	for range 100 {
		if d.cmd.Process.Signal(syscall.Signal(0)) != nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	os.RemoveAll(d.dir)
}

// pid finds the QEMU of a machine, in what libvirtd keeps of it.
func (d *daemon) pid(name string) (pid int, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/run/libvirt/qemu/%s.xml", d.cmd.Process.Pid, name))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), " pid='")
	_, err = fmt.Sscanf(rest, "%d", &pid)
	return pid, err
}

// guest is a machine of the tests', with two disks, one of them on a backing file, and no system on them.
type guest struct {
	t      *testing.T
	virsh  *program.Program
	target string
	name   string
	memory int // MiB
	dir    string
	disk   string // a QCOW2 image over base.qcow2
	raw    string
	xml    string // before it was ever frozen
}

var guests atomic.Int32

const definition = `<domain type='qemu'>
 <name>%s</name>
 <memory unit='MiB'>%d</memory>
 <os><type arch='x86_64' machine='pc'>hvm</type></os>
 <on_crash>preserve</on_crash>
 <devices>
  <emulator>/usr/bin/qemu-system-x86_64</emulator>
  <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='%s'/><target dev='vda' bus='virtio'/></disk>
  <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%s'/><target dev='vdb' bus='virtio'/></disk>
  <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
  <memballoon model='none'/>
 </devices>
</domain>`

func newGuest(t *testing.T) *guest {
	t.Helper()
	u := uri(t)
	dir := t.TempDir()
	g := &guest{
		t: t, memory: 16, virsh: &program.Program{Name: "virsh", Args: []string{"-q", "-c", u}}, dir: dir,
		name: `wéb "1" & 'co', ` + fmt.Sprint(guests.Add(1)),
		disk: filepath.Join(dir, `wéb, "1" 'x'.qcow2`), raw: filepath.Join(dir, "data.img"),
	}
	g.target = u + "/" + g.name
	qemutest.Img(t, dir, "create", "-q", "-f", "qcow2", "base.qcow2", "16M")
	qemutest.Img(t, dir, "create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", g.disk)
	qemutest.Img(t, dir, "create", "-q", "-f", "raw", g.raw, "4M")
	return g
}

var escaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", "'", "&apos;", `"`, "&quot;")

func (g *guest) definition() string {
	return fmt.Sprintf(definition, escaper.Replace(g.name), g.memory, escaper.Replace(g.disk), g.raw)
}

// start defines and starts the machine.
func (g *guest) start() *guest {
	g.t.Helper()
	g.define().sh("start", g.name)
	return g
}

func (g *guest) define() *guest {
	g.t.Helper()
	if _, err := g.virsh.Feed(g.t.Context(), g.definition(), "define", "/dev/stdin"); err != nil {
		g.t.Fatal(err)
	}
	g.clean()
	g.xml = g.sh("dumpxml", "--inactive", g.name)
	return g
}

// clean takes the machine away with the test.
func (g *guest) clean() {
	g.t.Cleanup(func() {
		ctx := context.Background()
		// QEMU's orderly end takes seconds on a busy host.
		if pid, err := libvirtd.pid(g.name); err == nil {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		g.virsh.Run(ctx, "destroy", g.name)
		g.virsh.Run(ctx, "undefine", g.name, "--managed-save")
	})
}

// sh runs virsh.
func (g *guest) sh(args ...string) string {
	g.t.Helper()
	out, err := g.virsh.Run(g.t.Context(), args...)
	if err != nil {
		g.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// write has the machine's first disk written to: n KiB of a pattern from the start.
func (g *guest) write(pattern byte) {
	g.t.Helper()
	out := g.sh("qemu-monitor-command", g.name, "--hmp",
		fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P %d 0 64k"`, pattern))
	if strings.Contains(strings.ToLower(out), "error") {
		g.t.Fatalf("writing: %s", out)
	}
}

// holds checks that an image begins with a pattern.
func (g *guest) holds(image string, pattern byte) {
	g.t.Helper()
	out, err := exec.Command("qemu-io", "-r", "-U", "-f", "qcow2", "-c", fmt.Sprintf("read -P %d 0 64k", pattern), image).CombinedOutput()
	if err != nil || strings.Contains(string(out), "Pattern verification failed") {
		g.t.Errorf("%s doesn't hold %#x: %v %s", image, pattern, err, out)
	}
}

// kill ends the machine's QEMU as a crash would.
func (g *guest) kill() {
	g.t.Helper()
	pid, err := libvirtd.pid(g.name)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		g.t.Fatal(err)
	}
	g.waitFor("shut off")
}

func (g *guest) waitFor(state string) {
	g.t.Helper()
	for range 200 {
		if out, _ := g.virsh.Run(g.t.Context(), "domstate", g.name); strings.TrimSpace(out) == state {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	g.t.Fatalf("it is not %s", state)
}

// asBefore checks that the machine is in a state, with the definition that it had, and that nothing was left behind.
func (g *guest) asBefore(state string) {
	g.t.Helper()
	if got := g.sh("domstate", g.name); got != state {
		g.t.Errorf("it is %q, and was %q", got, state)
	}
	if got := g.sh("dumpxml", "--inactive", g.name); got != g.xml {
		g.t.Errorf("its definition became\n%s\nand was\n%s", got, g.xml)
	}
	if live := g.sh("dumpxml", g.name); strings.Contains(live, ".vmfreeze-") || strings.Contains(live, "<mirror") {
		g.t.Errorf("it still uses an overlay:\n%s", live)
	}
	g.clear()
}

func (g *guest) clear() {
	g.t.Helper()
	left, err := filepath.Glob(filepath.Join(g.dir, "*vmfreeze*"))
	more, err2 := filepath.Glob(filepath.Join(g.dir, ".vmfreeze*"))
	if left = append(left, more...); err != nil || err2 != nil || len(left) > 0 {
		g.t.Errorf("left behind: %q", left)
	}
}
