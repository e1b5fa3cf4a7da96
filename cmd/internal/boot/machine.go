package boot

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// helloPatience is how long a machine may take under KVM to say its first word, before emulation is tried instead: KVM
// may be there and not work, as within some virtual machines.
const helloPatience = 20 * time.Second

// errSilent says that a machine said nothing in time.
var errSilent = errors.New("the machine said nothing")

// run starts QEMU on the disks and gathers what it sends in out, until it is gone. memories are the initramfs and, if it
// could be unpacked, the kernel.
func (c *Config) run(ctx context.Context, accel string, k *kernel, memories []*os.File, disks []disk, layers []*overlay, out *os.File) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("the machine did not end within %v and was stopped: --boot-timeout gives it more time", c.Timeout))
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)

	files := slices.Clone(memories)
	var own []io.Closer
	defer func() {
		for _, f := range own {
			f.Close()
		}
	}()
	// pair makes a socket for the machine, and gives our end and the number that the machine's has there.
	pair := func() (*os.File, int, error) {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return nil, 0, fmt.Errorf("socketpair: %w", err)
		}
		unix.SetNonblock(fds[1], false)
		ours, theirs := os.NewFile(uintptr(fds[0]), "machine"), os.NewFile(uintptr(fds[1]), "machine")
		files = append(files, theirs)
		own = append(own, ours)
		return ours, 2 + len(files), nil
	}
	defer func() {
		for _, f := range files[len(memories):] {
			f.Close()
		}
	}()
	image := k.image
	if len(memories) > 1 {
		image = "/proc/self/fd/4"
	}
	args := c.arguments(accel, image)
	port, n, err := pair()
	if err != nil {
		return err
	}
	args = append(args, "-chardev", fmt.Sprintf("socket,id=map,fd=%d", n), "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=map,name="+portName)
	var servers []func()
	for i, d := range disks {
		conn, n, err := pair()
		if err != nil {
			return err
		}
		device := fmt.Sprintf("virtio-blk-pci,drive=disk%d,serial=%s", i, d.Serial)
		if cmp.Or(c.SectorSize, c.Images[i].SectorSize) == 4096 {
			device += ",logical_block_size=4096,physical_block_size=4096"
		}
		args = append(args, "-blockdev", fmt.Sprintf("driver=nbd,node-name=disk%d,server.type=fd,server.str=%d", i, n), "-device", device)
		servers = append(servers, func() {
			if err := serve(conn, layers[i]); errors.Is(err, errNBD) {
				stop(fmt.Errorf("serving %s to the machine: %w", d.Name, err))
			}
		})
	}
	cmd := exec.Command(c.Program, args...)
	cmd.ExtraFiles = files
	// The machine ends with this process, however that does, and with all that it may have started.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	console, said := &tail{}, &tail{}
	cmd.Stdout, cmd.Stderr = console, said
	cmd.WaitDelay = 2 * time.Second

	ended := make(chan error, 1)
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // Pdeathsig counts the thread that started it
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		ended <- cmd.Wait()
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("%w: install QEMU (qemu-system-x86), or name its program with --qemu", err)
	}
	for _, f := range files[len(memories):] {
		f.Close()
	}
	var wg sync.WaitGroup
	for _, s := range servers {
		wg.Go(s)
	}
	if accel == "kvm" && c.Accel == "auto" {
		timer := time.AfterFunc(helloPatience, func() { stop(errSilent) })
		defer timer.Stop()
		wg.Go(func() { c.collect(port, out, func() { timer.Stop() }, stop) })
	} else {
		wg.Go(func() { c.collect(port, out, func() {}, stop) })
	}
	var qemu error
	select {
	case qemu = <-ended:
	case <-ctx.Done():
	}
	unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
	if ctx.Err() != nil {
		<-ended
	}
	// What it had sent is read to its end; a program that it left behind is gone as well.
	port.SetReadDeadline(time.Now().Add(cmd.WaitDelay))
	for _, f := range own[1:] {
		f.(*os.File).SetDeadline(time.Now())
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	c.console = console.last()
	if qemu != nil && !errors.Is(qemu, exec.ErrWaitDelay) {
		return fmt.Errorf("%s: %w: %s", c.Program, qemu, said.last())
	}
	return nil
}

// arguments gives QEMU's, but for the disks and the port.
func (c *Config) arguments(accel, image string) []string {
	machine, tty := "q35", "ttyS0"
	if runtime.GOARCH == "arm64" {
		machine, tty = "virt", "ttyAMA0"
	}
	cpu := "max"
	if accel == "tcg" {
		accel = "tcg,thread=multi" // with a plain processor it is faster
		if runtime.GOARCH == "amd64" {
			cpu = "qemu64"
		}
	}
	return []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-nic", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-M", machine, "-accel", accel, "-cpu", cpu, "-smp", "2", "-m", strconv.Itoa(c.Memory),
		"-kernel", image, "-initrd", "/proc/self/fd/3",
		"-append", "console=" + tty + " loglevel=4 panic=-1 random.trust_cpu=on cryptomgr.notests rdinit=/init -- --appliance",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
	}
}

// collect takes what the machine sends. hello is called when it begins.
func (c *Config) collect(port io.Reader, out io.Writer, hello func(), stop context.CancelCauseFunc) {
	buf := make([]byte, 64<<10)
	for total := int64(0); ; {
		n, err := port.Read(buf)
		if n > 0 {
			hello()
		}
		if total += int64(n); total > c.Output {
			stop(fmt.Errorf("the machine sent more than %d MiB and was stopped: --boot-output allows more", c.Output>>20))
			return
		}
		if _, werr := out.Write(buf[:n]); werr != nil {
			stop(fmt.Errorf("keeping the machine's map: %w", werr))
			return
		}
		if err != nil {
			return
		}
	}
}

// tail keeps the end of what a program says.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const maxTail = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p[max(0, len(p)-maxTail):]...)
	t.b = t.b[max(0, len(t.b)-maxTail):]
	return len(p), nil
}

// last gives the line that tells most: that of a panic, else the last one.
func (t *tail) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	last := ""
	for line := range bytes.Lines(t.b) {
		line := strings.TrimSpace(string(line))
		if strings.Contains(line, "Kernel panic") || strings.Contains(line, "Out of memory") {
			return line
		}
		if line != "" {
			last = line
		}
	}
	if last == "" {
		return "it said nothing"
	}
	return last
}
