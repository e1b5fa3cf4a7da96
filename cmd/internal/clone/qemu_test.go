package clone

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmkit/fsmap/mapfile"
)

// words gives the arguments that a script hands to its program, by having the shell say them.
func words(t *testing.T, script string) []string {
	t.Helper()
	bin := t.TempDir()
	write(t, bin+"/qemu-test", "#!/bin/sh\nfor a; do printf '%s\\0' \"$a\"; done\n")
	if err := os.Chmod(bin+"/qemu-test", 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(script, "last one")
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\x00"), "\x00")
}

func TestCommand(t *testing.T) {
	t.Chdir(t.TempDir())
	dir := filepath.Join(t.TempDir(), "it's, here")
	for _, f := range []string{"d.qcow2", "data.raw", "vars.fd"} {
		write(t, filepath.Join(dir, f), "x")
	}
	for _, tt := range []struct {
		in   string // words, separated by "|"
		want string
	}{
		{"-m|512|-enable-kvm|-smp|2|-S|-daemonize|-nographic", "-m|512|-enable-kvm|-smp|2"},
		{"-hda|d.qcow2|-cdrom|../cd.iso|data.raw", "-hda|./d.qcow2|-cdrom|PARENT/cd.iso|./data.raw"},
		{"-drive|file=DIR/d.qcow2,if=none,id=a,format=qcow2", "-drive|file=./d.qcow2,if=none,id=a,format=qcow2"},
		{"--drive|driver=qcow2,file.driver=file,file.filename=d.qcow2", "-drive|driver=qcow2,file.driver=file,file.filename=./d.qcow2"},
		{"-drive|if=pflash,readonly=on,file=/usr/share/OVMF.fd|-drive|if=pflash,file=vars.fd", "-drive|if=pflash,readonly=on,file=/usr/share/OVMF.fd|-drive|if=pflash,file=./vars.fd"},
		{"-drive|media=cdrom,if=ide", "-drive|media=cdrom,if=ide"},
		{"-drive|media=cdrom,file=a,,b.iso", "-drive|media=cdrom,file=DIR/a,,b.iso"},
		{`-drive|file=json:{"driver":"file",,"filename":"d.qcow2"}`, `-drive|file=json:{"driver":"file",,"filename":"./d.qcow2"}`},
		{"-blockdev|driver=file,filename=d.qcow2,node-name=f|-blockdev|driver=qcow2,file=f,node-name=q", "-blockdev|driver=file,filename=./d.qcow2,node-name=f|-blockdev|driver=qcow2,file=f,node-name=q"},
		{`-blockdev|{"driver":"raw","file":{"driver":"file","filename":"DIR/data.raw"},"size":9007199254740993}`, `-blockdev|{"driver":"raw","file":{"driver":"file","filename":"./data.raw"},"size":9007199254740993}`},
		{"-netdev|tap,id=n0,ifname=tap0|-device|virtio-net-pci,netdev=n0,id=x", "-netdev|hubport,hubid=5,id=n0|-device|virtio-net-pci,netdev=n0,id=x"},
		{"-net|nic|-net|user|-nic|user", ""},
		{"-chardev|socket,path=/run/x,server=on,id=c|-serial|chardev:c|-serial|file:/x|-parallel|none|-debugcon|stdio", "-chardev|null,id=c|-serial|chardev:c|-serial|null|-parallel|none|-debugcon|null"},
		{"-monitor|stdio|-qmp|unix:/x|-mon|chardev=c|-pidfile|/x|-vnc|:1|-spice|port=1|-display|gtk|-name|old|-uuid|1|-incoming|tcp:0|-runas|x|-virtfs|local", ""},
		{"-device|vfio-pci,host=1|-device|usb-host|-device|usb-tablet|-fsdev|local,id=f|-device|virtio-9p-pci,fsdev=f|-usbdevice|tablet|-usbdevice|host:1", "-device|usb-tablet|-usbdevice|tablet"},
		{"-object|memory-backend-file,id=m,size=1G,mem-path=/dev/shm/m,share=on|-object|iothread,id=i|-object|filter-dump,id=f,file=/x|-mem-path|/x", "-object|memory-backend-ram,id=m,size=1G|-object|iothread,id=i"},
		{`-object|{"qom-type":"memory-backend-file","id":"m","mem-path":"/x"}`, `-object|{"id":"m","qom-type":"memory-backend-ram"}`},
		{"-audiodev|wav,id=a,path=/x|-fw_cfg|name=n,file=fw|-kernel|vmlinuz|-initrd|/boot/initrd|-append|root=/dev/vda quiet", "-audiodev|none,id=a|-fw_cfg|name=n,file=DIRDIR/fw|-kernel|DIR/vmlinuz|-initrd|/boot/initrd|-append|root=/dev/vda quiet"},
		{"-object|secret,id=s,file=key", "-object|secret,id=s,file=DIRDIR/key"},
		{"-L|/usr/share/x|-unknown|-M|none", "-L|/usr/share/x|-unknown|-M|none"},
	} {
		m := machine(t, "m", dir+"/d.qcow2|disk|raw", dir+"/data.raw|disk|raw", dir+"/vars.fd|firmware")
		fill := strings.NewReplacer("DIRDIR", strings.ReplaceAll(dir, ",", ",,"), "PARENT", filepath.Dir(dir)).Replace
		m.VM.Dir = dir
		m.VM.Command = append([]string{"qemu-test"}, strings.Split(strings.ReplaceAll(tt.in, "DIR/d.qcow2,", strings.ReplaceAll(dir, ",", ",,")+"/d.qcow2,"), "|")...)
		for i, w := range m.VM.Command {
			m.VM.Command[i] = strings.ReplaceAll(w, "DIR", dir)
		}
		r := mustClone(t, m, Options{Name: "it's, x"})
		got := words(t, filepath.Join(r.Folder, runName))
		head := []string{"-name", "guest=it's,, x", "-uuid", "", "-display", "none", "-nic", "none"}
		if len(got) > 3 {
			head[3] = got[3]
		}
		want := head
		if tt.want != "" {
			w := fill(strings.ReplaceAll(tt.want, "DIR/a,,b.iso", strings.ReplaceAll(dir, ",", ",,")+"/a,,b.iso"))
			want = append(want, strings.Split(strings.ReplaceAll(w, "DIR", dir), "|")...)
		}
		if want = append(want, "last one"); !slices.Equal(got, want) {
			t.Errorf("%s:\n%q\nwant\n%q", tt.in, got, want)
		}
		if err := os.RemoveAll("out"); err != nil {
			t.Fatal(err)
		}
	}
	for in, want := range map[string]string{
		"-drive|file=/other.raw": "is written to", "-hda|/other.raw": "is written to", "other.raw": "is written to", "-readconfig|x": "in a file",
		`-blockdev|{"driver":"file","filename":"/other.raw"}`: "is written to", `-drive|file=json:{"driver":"nbd"`: "EOF", `-blockdev|{"driver":"raw","file":{"driver":"nbd","server":{"host":"x"}}}`: "nbd:",
		"-drive|file=nbd:x:1": "nbd:x:1", "-blockdev|driver=rbd,pool=p": "rbd:", "-blockdev|vvfat,dir=/x": "vvfat:", "-drive|file.driver=ssh,file.path=/x": "ssh:", "-drive": "no argument", "-blockdev|{": "EOF",
	} {
		m := machine(t, "m", dir+"/d.qcow2|disk|raw")
		m.VM.Dir, m.VM.Command = dir, append([]string{"./qemu"}, strings.Split(in, "|")...)
		r, problems, err := tryClone(t, m, Options{Name: "n"})
		if err != nil || len(problems) != 1 || !strings.Contains(problems[0].Error, want) {
			t.Errorf("%s: %v, %v", in, problems, err)
			continue
		}
		if slices.Contains(left(t, r.Folder), runName) {
			t.Errorf("%s: there is a script all the same", in)
		}
		if err := os.RemoveAll("out"); err != nil {
			t.Fatal(err)
		}
	}
}

// qmp asks a QEMU something, once its socket is there.
func qmp(t *testing.T, socket string, commands ...string) string {
	t.Helper()
	// The path of a socket has to be short.
	t.Chdir(filepath.Dir(socket))
	var conn net.Conn
	eventually(t, "QEMU answers", func() (ok bool) {
		var err error
		conn, err = net.Dial("unix", filepath.Base(socket))
		return err == nil
	})
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	d, last := json.NewDecoder(conn), json.RawMessage{}
	for _, c := range append([]string{"", "qmp_capabilities"}, commands...) {
		if c != "" {
			if _, err := conn.Write([]byte(`{"execute":"` + c + `"}`)); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Decode(&last); err != nil {
			t.Fatal(err)
		}
	}
	return string(last)
}

// TestBoot: QEMU itself starts the clone by its script, with the clone's disks.
func TestBoot(t *testing.T) {
	const program = "qemu-system-x86_64"
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("needs %s", program)
	}
	t.Chdir(t.TempDir())
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	noise(t, "a, b:c.raw", 4<<20, 1)
	qemuImg(t, "create", "-q", "-f", "qcow2", "-b", "./a, b:c.raw", "-F", "raw", "top.qcow2")
	m := machine(t, "m", "top.qcow2|disk|qcow2", "a, b:c.raw|backing|raw")
	m.VM.Driver, m.VM.Dir = "qmp", here
	m.VM.Command = []string{program, "-M", "none", "-accel", "tcg", "-qmp", "unix:/nowhere", "-netdev", "user,id=n0",
		"-blockdev", `{"driver":"qcow2","node-name":"q","file":{"driver":"file","filename":"top.qcow2"}}`, "-drive", "if=none,format=raw,file=./a,, b:c.raw,read-only=on"}
	r := mustClone(t, wrap(t, m.VM), Options{})
	if err := Boot(t.Context(), r, m.VM); err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(read(t, r.Folder+"/qemu.pid")))
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Signal(unix.SIGKILL)
	got := qmp(t, filepath.Join(here, r.Folder, "qmp.sock"), "query-named-block-nodes")
	for _, want := range []string{`"top.qcow2"`, `"./a, b:c.raw"`} {
		if !strings.Contains(strings.ReplaceAll(got, `"./top`, `"top`), want) {
			t.Errorf("no %s among %s", want, got)
		}
	}
	if strings.Contains(got, here+"/top") {
		t.Errorf("the machine's own disk is open: %s", got)
	}
	if where, err := Register(t.Context(), r, m.VM, "/nowhere"); err != ErrNoRegister {
		t.Errorf("registered with %q: %v", where, err)
	}
}

func TestBootNothing(t *testing.T) {
	if err := Boot(t.Context(), &mapfile.Clone{}, &mapfile.VM{}); err == nil || !strings.Contains(err.Error(), "no configuration") {
		t.Error(err)
	}
}

func FuzzProps(f *testing.F) {
	for _, s := range []string{"file=a,,b,if=none", "tap,id=n", `{"a":{"filename":"x"},"n":1e9}`, ",,", "a=,=b,c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ContainsRune(s, 0) {
			return
		}
		p, err := parseProps(s)
		if err != nil {
			return
		}
		again, err := parseProps(p.String())
		if err != nil || again.String() != p.String() {
			t.Fatalf("%q became %q, and that %q: %v", s, p, again, err)
		}
	})
}
